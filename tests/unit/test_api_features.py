"""One feature over time: its page and its columns, links to them, and what there is no feature of."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest
from hourly_world import HourlyWorld
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from trimtab.api.app import create_app
from trimtab.api.feature_pages import PLOT_HEIGHT, PLOT_WIDTH, bar_labels, drawn
from trimtab.api.links import feature_path
from trimtab.contracts.check import NAME_LENGTH_MAX
from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.detect.evidence import MOST_RANKED, MOST_SEGMENTS
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Role
from trimtab.settings import load
from trimtab.stats.bars import Bar
from trimtab.store import keys, migrate
from trimtab.store.engine import open_store

NUMBERS = ("income", "a/b", "..", "<b>&x</b>", "ü %2F", "C:\\d", "output:score")
REFERENCE = 60
ROWS = 200


class World(HourlyWorld):
    """Numbers with names of every kind, a category, and a segment; `shift` moves `income`."""

    def __init__(self, store) -> None:
        super().__init__(
            store,
            Contract(
                name="m",
                task="binary",
                features={
                    **{name: Feature("number") for name in NUMBERS},
                    "c": Feature("category", values=("a", "b", "rare")),
                    "bounded": Feature("number", min=-2, required=True),
                },
                windows=Windows(
                    length="1h",
                    pane="1h",
                    lateness="3h",
                    out_of_order="0s",
                    min_rows=50,
                    segments=("c",),
                ),
                alarms=Alarms(rules=("psi(income) > 0.3", "psi(prediction) > 0.5")),
                reference=Reference(windows=REFERENCE),
            ),
        )
        self.rng = np.random.default_rng(5)
        self.writer.fit_cuts(self.drawn(4_000), ["a", "b"])

    def drawn(self, rows: int, shift: float = 0.0) -> dict[str, list[object]]:
        columns = {name: self.rng.normal(size=rows).tolist() for name in (*NUMBERS, "bounded")}
        columns["income"] = (self.rng.normal(size=rows) + shift).tolist()
        return {**columns, "c": self.rng.choice(["a", "b"], rows, p=[0.6, 0.4]).tolist()}

    def write(self, number: int, shift: float = 0.0) -> None:
        self.writer.now_ms = self.now_ms
        columns = self.drawn(ROWS, shift)
        answers = self.rng.choice(["a", "b"], ROWS).tolist()
        for segment in ("", "c=a", "c=b"):
            mine = [n for n, c in enumerate(columns["c"]) if segment in ("", f"c={c}")]
            self.writer.rows(
                self.at(number),
                {name: [column[n] for n in mine] for name, column in columns.items()},
                prediction=[answers[n] for n in mine],
                segment=segment,
            )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world whose `income` moves after twelve calm windows, and a client of its API."""
    path = tmp_path_factory.mktemp("features")
    settings = load({"data_dir": str(path)}, environ={}).settings
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    made = World(store)
    made.go(REFERENCE + 12)
    made.calm = verify_verdict(store, made.rows_of(REFERENCE + 11)[-1].id)
    made.go(8, shift=0.8)
    _, secret = keys.create_key(store, "test", Role.VIEWER, "*", made.now_ms)
    with TestClient(create_app(store, settings)) as client:
        client.headers["Authorization"] = f"Bearer {secret}"
        made.client = client
        yield made
    store.close()


def page(world, path: str):
    return world.client.get(path, headers={"accept": "text/html"})


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NUMBERS, "c", "bounded"])
def test_a_feature_of_any_name_has_a_page_that_the_model_and_its_windows_link_to(
    world, name: str
) -> None:
    path = feature_path("m", name)
    link = f'href="{html.escape(path)}"'
    newest = world.at(world.next - 1)
    assert link in page(world, "/models/m").text
    assert link in page(world, f"/models/m/windows/{newest}").text
    answer = page(world, path)
    assert answer.status_code == 200
    assert f"<h1>{html.escape(name)}</h1>" in answer.text.replace("&#34;", '"')
    assert "<b>&x" not in answer.text
    assert answer.text.count("<rect class=") >= 6
    asked = re.search(r'data-series="([^"]+)"', answer.text)
    assert asked is not None
    told = world.client.get(html.unescape(asked[1])).json()
    assert told["name"] == name
    assert len(told["t"]) == world.next


def test_the_page_tells_the_onset_the_floor_and_the_baselines_values(world) -> None:
    text = page(world, feature_path("m", "income")).text
    assert "income: shifted by +" in text
    assert "Baseline № 1" in text
    assert re.search(
        r"<td class=\"name\">level</td><td class=\"number nowrap\">0\.\d+ sd</td>", text
    )
    bounded = page(world, feature_path("m", "bounded")).text
    assert "at least -2" in bounded
    assert "required" in bounded
    assert "below min" in bounded


def test_an_output_has_a_page_too_and_a_feature_may_be_called_like_one(world) -> None:
    told = world.client.get("/v1/models/m/feature?name=output:prediction").json()
    assert (told["side"], told["kind"], told["watched"]) == ("output", "category", True)
    assert {bar["label"] for bar in told["bars"]} == {"a", "b"}
    assert sum(bar["window"] for bar in told["bars"]) == ROWS
    columns = world.client.get("/v1/models/m/feature/series?name=output:prediction").json()
    assert columns["thresholds"] == {"psi": 0.5}
    assert set(columns["shares"]) == {"a", "b"}
    link = f'href="{feature_path("m", "output:prediction")}"'
    assert link in page(world, f"/models/m/windows/{world.at(world.next - 1)}").text
    named = world.client.get("/v1/models/m/feature?name=output:score").json()
    assert (named["side"], named["watched"]) == ("feature", True)


def test_alerts_and_findings_link_the_features_that_they_name(world) -> None:
    link = f'<a href="{feature_path("m", "income")}">'
    model = page(world, "/models/m").text
    alerts = model[model.index("<h2>Alerts") : model.index("<h2>Detector")]
    assert alerts.count(link) == 2  # of the rule's alert and of the detector's
    window = page(world, f"/models/m/windows/{world.at(world.next - 1)}").text
    findings = window[window.index("<h2>Findings") : window.index("<h2>Features")]
    assert findings.count(link) >= 2


# --- what is no feature ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/models/m/features", "No feature is named of m."),
        ("/models/m/features?name=", "No feature is named"),
        ("/models/m/features/incme", "Did you mean &#39;income&#39;?"),
        ("/models/m/features/" + "x" * 4_000, "is no feature or output of m"),
        ("/models/m/features/segment%20c=a:income", "is no feature or output of m"),
        ("/models/m/features/%3Cscript%3E", "&lt;script&gt;"),
    ],
)
def test_what_is_no_feature_is_a_page_that_tells_what_to_do(world, path: str, says: str) -> None:
    answer = page(world, path)
    assert answer.status_code == 404
    assert says in answer.text
    assert "<script>" not in answer.text
    assert "list its features" in answer.text
    assert 'href="/models/m"' in answer.text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("feature?name=nope", 404),
        ("feature?name=", 404),
        ("feature", 400),
        ("feature?name=" + "x" * 400, 400),
        ("feature/series?name=nope", 404),
        ("feature/series?name=income&limit=0", 400),
        ("feature/series?name=income&limit=2001", 400),
        ("feature/series?name=income&from=x", 400),
    ],
)
def test_queries_have_limits_and_errors_are_problems(world, query: str, status: int) -> None:
    answer = world.client.get(f"/v1/models/m/{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert world.client.get("/v1/models/other/feature?name=income").status_code == 404


# --- the columns ----------------------------------------------------------------------------------


def test_the_columns_are_the_figures_of_the_windows_verdicts(world) -> None:
    told = world.client.get("/v1/models/m/feature/series?name=income").json()
    last = world.verdict(world.next - 1)
    tree = last.figures["features"]["income"]
    assert told["figures"]["psi"][-1] == tree["psi"]
    assert told["figures"]["ks"][-1] == tree["ks"]["d"]
    assert told["figures"]["superiority"][-1] == tree["effect"]["superiority"]
    assert told["figures"]["sd_equivalents"][-1] == tree["effect"]["sd"]
    assert told["thresholds"] == {"psi": 0.3}
    assert abs(told["baseline"]["p50"]) < 0.05
    assert told["alarm_open"][: REFERENCE + 12] == [False] * (REFERENCE + 12)
    assert told["alarm_open"][-1] is True
    first = told["alarm_open"].index(True)
    ranking = world.verdict(first).figures["detector"]["ranking"]
    assert told["evidence_share"][first] == next(
        one["share"] for one in ranking if one["source"] == "income"
    )
    assert told["evidence_share"][0] is None  # no detector yet
    lengths = {len(told[name]) for name in ("t", "start_ms", "outcome", "evidence_share")}
    assert lengths | {len(v) for v in told["figures"].values()} == {world.next}


def test_a_range_of_windows_is_as_asked(world) -> None:
    from_ms, to_ms = world.at(10), world.at(15)
    path = f"/v1/models/m/feature/series?name=c&from={from_ms}&to={to_ms}&limit=4"
    told = world.client.get(path).json()
    assert told["start_ms"] == [world.at(n) for n in range(11, 15)]
    assert set(told["shares"]) == {"a", "b"}
    assert told["baseline_shares"]["a"] == pytest.approx(0.6, abs=0.02)


# --- the ranking ----------------------------------------------------------------------------------


def test_every_window_ranks_sources_and_segments_and_is_still_verified(world) -> None:
    for number in (REFERENCE + 3, REFERENCE + 12, world.next - 1):
        tree = world.verdict(number).figures["detector"]
        shares = [one["share"] for one in tree["ranking"]]
        assert 0 < len(shares) <= MOST_RANKED
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1.001
        assert len(tree["segments"]) <= MOST_SEGMENTS
    assert world.calm.confirmed
    assert verify_verdict(world.store, world.rows_of(world.next - 1)[-1].id).confirmed
    calm = world.verdict(REFERENCE + 3).figures["detector"]
    assert calm["moved"] == []
    assert {one["segment"] for one in calm["segments"]} == {"c=a", "c=b"}
    moved = world.verdict(world.next - 1).figures["detector"]
    assert "income" in moved["open"]
    assert not {one["source"] for one in moved["ranking"]} & set(moved["open"])
    text = page(world, "/models/m").text
    assert "Evidence from" in text
    assert "By segment" in text


def test_the_models_page_says_why_there_is_no_estimate(world) -> None:
    text = page(world, "/models/m").text
    assert "No estimate of performance without labels: the contract names no" in text


def test_the_ranking_is_told_by_the_detectors_route(world) -> None:
    told = world.client.get("/v1/models/m/detector").json()
    tree = world.verdict(world.next - 1).figures["detector"]
    assert [(one["source"], one["share"]) for one in told["ranking"]] == [
        (one["source"], one["share"]) for one in tree["ranking"]
    ]
    assert told["segments"] == tree["segments"]
    assert told["columns"]["income"] == "income"
    assert told["columns"].get("feature:output:score", "output:score") == "output:score"


# --- drawing --------------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(Bar, st.text(max_size=300), st.integers(0, 10**9), st.integers(0, 10**9)),
        max_size=25,
    )
)
def test_bars_stay_inside_the_drawing_and_keep_their_shares(found: list[Bar]) -> None:
    placed = drawn(found)
    assert len(placed) == len(found)
    for bar in placed:
        assert 0 <= bar.x <= bar.x + bar.width <= PLOT_WIDTH + 0.02
        assert 0 <= bar.window_height <= PLOT_HEIGHT
        assert 0 <= bar.baseline_height <= PLOT_HEIGHT
    for shares in ([b.window_share for b in placed], [b.baseline_share for b in placed]):
        told = [share for share in shares if share is not None]
        assert not told or sum(told) == pytest.approx(1)
    assert all(0 <= x <= PLOT_WIDTH for _, x, _ in bar_labels(placed))


@given(st.text(min_size=1, max_size=NAME_LENGTH_MAX).filter(lambda name: name.isprintable()))
def test_every_name_has_an_address_of_its_own(name: str) -> None:
    path = feature_path("m", name)
    assert path.isascii()
    assert not set(path) & set("<>\"' \\")
    assert path.startswith(("/models/m/features/", "/models/m/features?name="))
    assert path.count("/") <= 4
