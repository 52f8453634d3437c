"""Windows say what their figures would be without labels, what that assumes, and when it fails."""

import json
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from litestar.testing import TestClient
from sqlalchemy import select
from typer.testing import CliRunner

from trimtab.alerts.delivery import Relay
from trimtab.api.app import create_app
from trimtab.cli import app
from trimtab.contracts.model import (
    Alarms,
    Contract,
    Feature,
    Labels,
    Prediction,
    Reference,
    Windows,
)
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.joiner import Joiner
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Role
from trimtab.settings import load
from trimtab.store import keys, migrate
from trimtab.store.baselines import fit_from_file
from trimtab.store.engine import Store, open_store
from trimtab.store.models import active_cuts
from trimtab.store.tables import baselines, performance
from trimtab.store.verdicts import VerdictRow, verdict_history
from trimtab.testing.series import SeriesWriter

START = 1_700_000_000_000
LENGTH = 2_000
ROWS = 400
CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature("number")},
    prediction=Prediction(score="p", positive="yes", classes=("no", "yes")),
    labels=Labels("within 1 min"),
    windows=Windows(length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20),
    alarms=Alarms(rules=("missing_rate(x) > 0.5",)),
    reference=Reference(windows=4),
)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


class Sink:
    def publish(self, messages: list[Any]) -> list[None]:
        return [None] * len(messages)

    def close(self) -> None:
        return None


class Model:
    """A calibrated model with a window of rows and, where wanted, their labels at each call."""

    def __init__(self, store: Store, contract: Contract = CONTRACT) -> None:
        self.store, self.contract = store, contract
        self.random, self.windows, self.ticks = np.random.default_rng(17), 0, 0
        self.series = SeriesWriter(store, contract, START)
        self.evaluator = Evaluator(store, "one")
        self.truth: dict[str, float] = {}

    def draw(self, rows: int, drift: float = 0.0) -> tuple[list[float], list[str], list[str]]:
        logits = self.random.normal(0.0, 1.5, rows)
        scores = 1 / (1 + np.exp(-logits))
        hits = self.random.random(rows) < 1 / (1 + np.exp(-logits - drift))
        said = scores > 0.5
        self.truth = {
            "accuracy": float((said == hits).mean()),
            "precision": float((said & hits).sum() / said.sum()),
        }
        if self.contract.task == "multiclass":
            scores = np.maximum(scores, 1 - scores)
        names = np.array(["no", "yes"])
        return scores.tolist(), names[said * 1].tolist(), names[hits * 1].tolist()

    def fit(self) -> None:
        scores, answers, _ = self.draw(2_000)
        self.series.fit_cuts({"x": self.random.normal(size=2_000).tolist()}, answers, scores)

    def window(
        self, labelled: int = 0, drift: float = 0.0, *, missing: bool = False, x: float = 0.0
    ) -> int:
        start_ms = START + self.windows * LENGTH
        self.windows += 1
        scores, answers, labels = self.draw(ROWS, drift)
        values = [None] * ROWS if missing else self.random.normal(x, size=ROWS).tolist()
        self.series.rows(start_ms, {"x": values}, prediction=answers, score=scores)
        pairs = list(zip(labels, answers, strict=True))[:labelled]
        self.series.labels(start_ms, pairs, predicted_rows=ROWS, scores=scores[:labelled])
        self.series.passed(start_ms + LENGTH)
        return start_ms

    def judge(self) -> dict:
        for _ in range(3):
            self.ticks += 1
            self.evaluator.tick(START + 60_000 + self.ticks * 120_000)
        return self.newest().verdict.figures

    def newest(self) -> VerdictRow:
        return verdict_history(self.store, "m", START + (self.windows - 1) * LENGTH)[-1]

    def calibrated(self) -> "Model":
        self.fit()
        for _ in range(4):
            self.window(labelled=ROWS)
        self.judge()
        return self


def test_a_window_without_labels_has_an_estimate_that_holds_the_truth(store: Store) -> None:
    model = Model(store).calibrated()
    model.window(labelled=100)
    model.window()
    tree = model.judge()
    found = tree["estimated"]
    assert found["status"] == "ok"
    assert sorted(found["figures"]) == ["accuracy", "auc", "f1", "precision", "recall"]
    for name, value in model.truth.items():
        figure = found["figures"][name]
        assert figure["low"] - figure["se"] < value < figure["high"] + figure["se"]
    assert tree["performance"]["1"]["figures"]["accuracy"]["value"] is None
    assert found["reference_labels"] == 4 * ROWS
    assert found["assumes"].startswith(
        "Assumes P(label | score) has not changed since 2023-11-14 22:13 UTC; cannot see concept drift. "
        "Last checked against 100 labels: residual z="
    )
    assert verify_verdict(store, model.newest().id).confirmed


def test_realised_figures_of_scores_stand_beside_the_others(store: Store) -> None:
    model = Model(store).calibrated()
    model.window(labelled=ROWS)
    tree = model.judge()
    figures = tree["performance"]["1"]["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(model.truth["accuracy"])
    estimate = tree["estimated"]["figures"]["auc"]
    assert abs(figures["auc"]["value"] - estimate["value"]) < 4 * estimate["se"]
    assert {"auc", "average_precision", "brier", "log_loss", "ece"} <= figures.keys()


def test_labels_under_concept_drift_make_later_estimates_invalid(store: Store) -> None:
    model = Model(store).calibrated()
    for _ in range(3):
        model.window(labelled=ROWS, drift=-0.7)
    model.window(drift=-0.7)
    found = model.judge()["estimated"]
    assert found["status"] == "invalid"
    assert "contradict it" in found["reason"]
    assert found["checked"]["z"] < -4
    # It cannot see what happened.
    assert found["figures"]["precision"]["low"] > model.truth["precision"]
    assert verify_verdict(store, model.newest().id).confirmed


def test_a_broken_input_makes_the_estimate_invalid(store: Store) -> None:
    model = Model(store).calibrated()
    model.window(missing=True)
    found = model.judge()["estimated"]
    assert found["status"] == "invalid"
    assert "missing_rate(x) > 0.5" in found["reason"]


REGIONS = ("region=north", "region=south")


def uneven(store: Store, segments: tuple[str, ...] = ("region",)) -> Model:
    """A model whose scores promise too much in the south and too little in the north, and alarms on x."""
    windows = msgspec.structs.replace(CONTRACT.windows, segments=segments)
    alarms = Alarms(rules=("psi(x) > 0.5",))
    model = Model(store, msgspec.structs.replace(CONTRACT, windows=windows, alarms=alarms))
    model.fit()
    for _ in range(4):
        labelled_by_region(model, 0.8, -0.8)
    model.judge()
    return model


def labelled_by_region(model: Model, north: float, south: float) -> None:
    """A window with labels, half of either region, which are off by so much in the log odds."""
    half = ROWS // 2
    drawn = model.draw(half, north), model.draw(half, south)
    scores, answers, labels = (a + b for a, b in zip(*drawn, strict=True))
    start_ms = START + model.windows * LENGTH
    model.windows += 1
    values = model.random.normal(size=ROWS).tolist()
    model.series.rows(start_ms, {"x": values}, prediction=answers, score=scores)
    pairs = list(zip(labels, answers, strict=True))
    model.series.labels(start_ms, pairs, predicted_rows=ROWS, scores=scores)
    for name, rows in zip(REGIONS, (slice(None, half), slice(half, None)), strict=True):
        model.series.labels(
            start_ms, pairs[rows], predicted_rows=half, scores=scores[rows], segment=name
        )
    model.series.passed(start_ms + LENGTH)


def test_while_inputs_alarm_the_interval_is_wider_by_what_segments_show(store: Store) -> None:
    model = uneven(store)
    model.window()
    calm = model.judge()["estimated"]
    assert calm["status"] == "ok"
    assert calm["reason"] == ""
    assert "widened" not in calm["figures"]["precision"]
    model.window(drift=-0.8, x=3.0)  # rows of the south alone
    found = model.judge()["estimated"]
    precision, truth = found["figures"]["precision"], model.truth["precision"]
    half = 1.96 * precision["se"]
    assert truth < precision["value"] - half  # as it would have been
    assert precision["low"] < truth < precision["high"]
    assert precision["low"] == pytest.approx(
        precision["value"] - half - precision["widened"], abs=1e-4
    )
    assert found["reason"].startswith("an alarm on inputs or answers stands (`psi(x) > 0.5`)")
    assert "the reference's segment region=" in found["reason"]
    assert verify_verdict(store, model.newest().id).confirmed


def test_what_segments_showed_outlives_the_labels(store: Store) -> None:
    model = uneven(store)
    model.window(x=3.0)
    model.judge()
    before = model.newest().verdict.evidence.prior["label_free"]["gaps"]
    for _ in range(40):
        model.window()
    model.judge()
    relay = Relay(store, Sink(), "tt")
    Housekeeping(store, "one", relay, Retention(labels_ms=20_000)).tick(START + 10_000_000)
    Joiner(store, "one").tick(START + 10_000_000)
    with store.read() as connection:
        assert START not in connection.scalars(select(performance.c.pane_start_ms)).all()
    model.evaluator = Evaluator(store, "two")
    model.ticks += 100
    model.window(x=3.0)
    assert "widened, by at most" in model.judge()["estimated"]["reason"]
    after = model.newest().verdict.evidence.prior["label_free"]["gaps"]
    assert after == before
    assert {gap["segment"] for gap in after["largest"]} == set(REGIONS)


@pytest.mark.parametrize(("north", "said"), [(0.8, ""), (-0.8, "in the segment region=")])
def test_labels_that_change_sides_between_segments_make_it_invalid(
    store: Store, north: float, said: str
) -> None:
    """Of all rows as many are right as the scores promise: only the segments show it."""
    model = uneven(store)
    for _ in range(3):
        labelled_by_region(model, north, -north)
    model.window()
    found = model.judge()["estimated"]
    assert found["status"] == ("invalid" if said else "ok")
    assert said in found["reason"]
    assert abs(found["checked"]["z"]) < 3
    assert verify_verdict(store, model.newest().id).confirmed


def test_without_segments_it_says_that_the_interval_is_not_widened(store: Store) -> None:
    model = uneven(store, segments=())
    model.window(x=3.0)
    found = model.judge()["estimated"]
    assert found["status"] == "ok"
    assert "not widened for it: the contract declares no `segments`" in found["reason"]
    assert verify_verdict(store, model.newest().id).confirmed


def test_late_labels_of_the_reference_are_used_as_soon_as_they_join(store: Store) -> None:
    model = Model(store)
    model.fit()
    for _ in range(4):
        model.window()
    model.judge()
    model.window()
    found = model.judge()["estimated"]
    assert found["status"] == "not_available"
    assert "0 labelled rows with a score, 500 are needed" in found["reason"]
    for number in range(4):
        scores, answers, labels = model.draw(ROWS)
        pairs = list(zip(labels, answers, strict=True))
        start_ms = START + number * LENGTH
        model.series.labels(start_ms, pairs, predicted_rows=ROWS, scores=scores)
    model.window()
    assert model.judge()["estimated"]["status"] == "ok"


@pytest.mark.parametrize("labels_ms", [20_000, 10_000_000])
def test_what_it_is_calibrated_on_outlives_the_labels(store: Store, labels_ms: int) -> None:
    """It is kept when labels are due, or would expire: then estimates go on as they were, verifiable."""
    model = Model(store).calibrated()
    for _ in range(40):
        model.window()
    before = model.judge()["estimated"]
    keep = Retention(labels_ms=labels_ms)
    relay = Relay(store, Sink(), "tt")
    Housekeeping(store, "one", relay, keep).tick(START + 10_000_000)
    Joiner(store, "one").tick(START + 10_000_000)
    with store.read() as connection:
        kept = connection.scalars(select(performance.c.pane_start_ms)).all()
        notes = json.loads(connection.scalar(select(baselines.c.body).where(baselines.c.active)))
    assert (START in kept) == (labels_ms > 20_000)
    assert notes["labelled_scores"]["positive"] == "yes"
    model.window()
    after = model.judge()["estimated"]
    assert after["reference_labels"] == before["reference_labels"] == 4 * ROWS
    assert after["status"] == "ok"
    assert verify_verdict(store, model.newest().id).confirmed


def test_a_file_with_scores_and_labels_calibrates_a_model_whose_labels_never_come(
    store: Store, tmp_path: Path
) -> None:
    model = Model(store, msgspec.structs.replace(CONTRACT, labels=Labels("never")))
    columns = zip(*model.draw(2_000), strict=True)
    lines = [
        f"{row % 7},{score},{said},{label}" for row, (score, said, label) in enumerate(columns)
    ]
    file = tmp_path / "reference.csv"
    file.write_text("\n".join(["x,p,said,label", *lines]))
    fit_from_file(
        *(store, "m", str(file)),
        prediction_column="said",
        score_column="p",
        label_column="label",
        now_ms=START,
    )
    with store.read() as connection:
        model.series.cuts = active_cuts(connection, "m")
    model.window()
    found = model.judge()["estimated"]
    assert found["status"] == "ok"
    assert found["reference_labels"] == 2_000
    assert found["assumes"].endswith("Not checked against labels since.")
    figure = found["figures"]["accuracy"]
    assert figure["low"] - figure["se"] < model.truth["accuracy"] < figure["high"] + figure["se"]


def test_a_files_segments_are_read_from_its_columns(store: Store, tmp_path: Path) -> None:
    contract = msgspec.structs.replace(
        CONTRACT,
        features={"x": Feature("number"), "region": Feature("category")},
        windows=msgspec.structs.replace(CONTRACT.windows, segments=("region", "tenant")),
        labels=Labels("never"),
        alarms=Alarms(rules=("psi(x) > 0.5",)),
    )
    model = Model(store, contract)
    lines = [
        f"{row % 7},{region},{score},{said},{label}"
        for region, drift, rows in (("north", 0.8, 1_500), ("south", -0.8, 1_500), ("sea", 0.0, 50))
        for row, (score, said, label) in enumerate(zip(*model.draw(rows, drift), strict=True))
    ]
    file = tmp_path / "reference.csv"
    file.write_text("\n".join(["x,region,p,said,label", *lines]))
    columns = {"prediction_column": "said", "score_column": "p", "label_column": "label"}
    fit_from_file(store, "m", str(file), **columns, now_ms=START)
    with store.read() as connection:
        model.series.cuts = active_cuts(connection, "m")
    scores, answers, _ = model.draw(ROWS, -0.8)
    values = {"x": [20.0] * ROWS, "region": ["south"] * ROWS}
    model.series.rows(START, values, prediction=answers, score=scores)
    model.series.passed(START + LENGTH)
    model.windows = 1
    found = model.judge()["estimated"]
    precision = found["figures"]["precision"]
    assert precision["widened"] > 0.05
    se, truth = precision["se"], model.truth["precision"]
    assert precision["low"] - 2 * se < truth < precision["value"] - 1.96 * se - 0.05
    gaps = model.newest().verdict.evidence.prior["label_free"]["gaps"]
    assert gaps["segments"] == 2
    assert {gap["segment"] for gap in gaps["largest"]} == set(REGIONS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "regression", "prediction": Prediction()}, "a regression has no score"),
        ({"prediction": Prediction(classes=("no", "yes"))}, "names no `positive` class"),
    ],
)
def test_where_it_cannot_be_it_says_why(store: Store, change, said) -> None:
    contract = msgspec.structs.replace(CONTRACT, **change)
    series = SeriesWriter(store, contract, START)
    answers = [1.0, 2.0] * 100 if contract.task == "regression" else ["no", "yes"] * 100
    series.fit_cuts({"x": [float(i) for i in range(200)]}, answers)
    series.rows(START, {"x": [float(i) for i in range(200)]}, prediction=answers)
    series.passed(START + LENGTH)
    Evaluator(store, "one").tick(START + 60_000)
    (found,) = verdict_history(store, "m", START)
    estimated = found.verdict.figures["estimated"]
    assert estimated["status"] == "not_available"
    assert said in estimated["reason"]
    assert estimated["figures"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "regression", "prediction": Prediction()}, ["only labels say"]),
        (
            {"task": "multiclass", "prediction": Prediction(score="p", classes=("no", "yes"))},
            ["macro_f1", "score of their likeliest class alone", "macro_precision"],
        ),
    ],
)
def test_what_is_not_estimated_is_said_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({}, environ={}).settings
    (tmp_path / ".trimtab").mkdir()
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    model = Model(store, msgspec.structs.replace(CONTRACT, **change))
    if model.contract.task == "regression":
        x = [float(i) for i in range(200)]
        model.series.fit_cuts({"x": x}, x)
        model.series.rows(START, {"x": x}, prediction=x)
        model.series.passed(START + LENGTH)
        model.windows = 1
    else:
        model.calibrated().window()
    found = model.judge()["estimated"]
    assert list(found["figures"]) == ["accuracy"] * (model.contract.task == "multiclass")
    start_ms = model.newest().verdict.window_start_ms
    _, secret = keys.create_key(store, "test", Role.VIEWER, "*", START)
    headers = {"Authorization": f"Bearer {secret}"}
    with TestClient(create_app(store, settings)) as client:
        series = client.get("/v1/models/m/series", headers=headers).json()["estimated"]
        page = client.get(f"/models/m/windows/{start_ms}", headers=headers).text
    store.close()
    told = CliRunner().invoke(app, ["window", "show", "m", str(start_ms)]).stdout
    assert series["not_estimated"] == found.get("not_estimated", {})
    for text in (json.dumps(series), page.replace("macro f1", "macro_f1"), told):
        words = " ".join(unescape(text).split()).replace("macro precision", "macro_precision")
        for part in said:
            assert part in words


@pytest.mark.parametrize("drift", [0.0, -0.7])
def test_pages_interface_and_command_show_it_with_its_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drift: float
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({}, environ={}).settings
    (tmp_path / ".trimtab").mkdir()
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    model = Model(store).calibrated()
    for _ in range(3):
        start_ms = model.window(labelled=ROWS, drift=drift)
    found = model.judge()["estimated"]
    sentence, accuracy = found["assumes"], found["figures"]["accuracy"]
    _, secret = keys.create_key(store, "test", Role.VIEWER, "*", START)
    headers = {"Authorization": f"Bearer {secret}"}
    with TestClient(create_app(store, settings)) as client:
        row = client.get(f"/v1/models/m/windows/{start_ms}", headers=headers).json()
        window = client.get(f"/models/m/windows/{start_ms}", headers=headers)
        whole = client.get("/models/m", headers=headers)
    store.close()
    told = CliRunner().invoke(app, ["window", "show", "m", str(start_ms)])
    assert told.exit_code == 0
    assert found == json.loads(json.dumps(row))["verdict"]["figures"]["estimated"]
    assert found["status"] == ("invalid" if drift else "ok")
    for text in (window.text, told.stdout):
        said = " ".join(unescape(text).split())
        assert sentence in said
        assert f"{accuracy['value']:.4g}" in said
        assert f"{model.truth['accuracy']:.4g}" in said
        assert ("contradict it" in said) == bool(drift)
    assert whole.status_code == 200
