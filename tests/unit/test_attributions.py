"""Attributions of events become columns that are watched, from the message to the verdict."""

import csv
import io
import math

import msgspec
import numpy as np
import pytest
from litestar.testing import TestClient

from trimtab.api.app import create_app
from trimtab.arrow import decode_message
from trimtab.contracts.check import FEATURES_MAX, check
from trimtab.contracts.compare import compare
from trimtab.contracts.model import Alarms, Contract, Feature, Prediction, Reference, Windows
from trimtab.contracts.parse import parse_contract
from trimtab.errors import ContractError
from trimtab.events.cloudevents import batch_rows, encode_binary, encode_structured
from trimtab.events.types import Inference, InferenceBatch
from trimtab.monitor.counting import Segments, count_rows, group_rows
from trimtab.monitor.decode import decode_records
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.sampling import _sample_rows
from trimtab.monitor.views import ModelView
from trimtab.records import Outcome, Role
from trimtab.settings import load
from trimtab.source import Partition
from trimtab.store import alerts, keys, verdicts
from trimtab.store.baselines import build_cuts
from trimtab.store.engine import open_store
from trimtab.store.reference_file import read_reference
from trimtab.store.tables import metadata
from trimtab.testing.arrow import arrow_headers, arrow_stream, arrow_table
from trimtab.testing.log import MemoryLog
from trimtab.testing.series import SeriesWriter
from trimtab.windows.panes import pane_starts

PLACE = Partition("in", 0)
FEATURES = {
    "income": Feature("number", personal=True),
    "channel": Feature("category"),
    "brightness": Feature("number", input=False),
}


def contract(*, attributions=True, **changes):
    given = {
        "name": "m",
        "task": "binary",
        "features": FEATURES,
        "prediction": Prediction(attributions=attributions),
    }
    return Contract(**{**given, **changes})


# --- contracts ------------------------------------------------------------------------------------


def test_every_input_has_an_attribution_that_is_watched_and_not_trained_on():
    watched = contract().watched
    assert list(watched) == [*FEATURES, "attribution:income", "attribution:channel"]
    assert watched["attribution:income"] == Feature("number", personal=True, input=False)
    assert watched["attribution:channel"] == Feature("number", input=False)
    assert contract(attributions=False).watched == FEATURES


def test_the_agent_does_not_train_on_attributions():
    from trimtab_agent.data import _inputs

    assert list(_inputs(contract())) == ["income", "channel"]


RULED = """
name = "m"
task = "binary"
[features]
income = {{ kind = "number" }}
"length (cm)" = {{ kind = "number" }}
[prediction]
attributions = {attributions}
[alarms]
rules = ['psi(attribution:income) > 0.2', 'ks("attribution:length (cm)") > 0.1 in 2 of 3']
"""


def test_rules_name_attributions():
    made = parse_contract(RULED.format(attributions="true"), "m.toml")
    assert made.prediction.attributions
    with pytest.raises(ContractError, match=r"not watched\. Set prediction\.attributions = true"):
        parse_contract(RULED.format(attributions="false"), "m.toml")
    wrong = RULED.format(attributions="true").replace("(attribution:income)", "(attribution:incom)")
    with pytest.raises(ContractError, match="Did you mean 'attribution:income'"):
        parse_contract(wrong, "m.toml")


def test_no_feature_is_called_as_an_attribution_is():
    text = RULED.format(attributions="true").replace("income = {", '"attribution:x" = {')
    with pytest.raises(ContractError, match=r"features\.attribution:x: this is how"):
        parse_contract(text, "m.toml")


def test_features_and_attributions_together_are_bounded():
    features = {f"f{k}": Feature("number") for k in range(FEATURES_MAX // 2 + 1)}
    problems = list(check(contract(features=features)))
    assert [path for path, _ in problems] == [("prediction", "attributions")]
    assert list(check(contract(features=features, attributions=False))) == []


def test_watching_them_restarts_nothing():
    difference = compare(contract(attributions=False), contract())
    assert difference.changed == ("prediction.attributions",)
    assert difference.restarts == ()


# --- decoding and counting ------------------------------------------------------------------------


def single(number, attributions, **changes):
    return Inference(
        id=f"i{number}",
        model="m",
        version="1",
        time=number,
        features={"income": float(number), "channel": "web", "brightness": 0.5},
        attributions=attributions,
        **changes,
    )


def read(messages, view):
    log = MemoryLog()
    for value, headers in messages:
        log.append(PLACE, value, 5, headers)
    return decode_records(log.records[PLACE], "inference", "in", {"m": view})


GIVEN = [{"income": 0.5, "channel": -1.0}, {"income": 2, "brightness": 9.0}, None, {}]
SHARES = {
    "attribution:income": [0.5, 2.0, None, None],
    "attribution:channel": [-1.0, None, None, None],
}


def batch():
    return InferenceBatch(
        id="b",
        model="m",
        version="1",
        time=1,
        rows=4,
        features={"income": [0.0, 1.0, 2.0, 3.0], "channel": ["web"] * 4},
        attributions={"income": [0.5, 2.0, None, None], "channel": [-1.0, None, None, None]},
    )


def arrow(flat):
    return arrow_stream(arrow_table(batch(), flat=flat)), arrow_headers(batch(), "s")


MESSAGES = {
    "structured": [encode_structured(single(n, a), "s") for n, a in enumerate(GIVEN)],
    "binary": [encode_binary(single(n, a), "s") for n, a in enumerate(GIVEN)],
    "bare": [(msgspec.json.encode(single(n, a)), []) for n, a in enumerate(GIVEN)],
    "batch": [encode_structured(batch(), "s")],
    "arrow": [arrow(flat=False)],
    "arrow, flat": [arrow(flat=True)],
}


@pytest.mark.parametrize("form", MESSAGES)
def test_every_form_of_event_carries_them(form):
    decoded = read(MESSAGES[form], ModelView(1, contract()))
    assert not decoded.rejects
    rows = decoded.rows["m"]
    values = rows.feature_values()
    assert {name: values[name] for name in SHARES} == SHARES
    assert values["income"] == [0, 1, 2, 3]
    assert rows.number_errors is None
    plain = read(MESSAGES[form], ModelView(1, contract(attributions=False))).rows["m"]
    assert plain.number_names == ("income", "brightness")


def test_the_fast_reader_reads_them():
    assert read(MESSAGES["bare"], ModelView(1, contract())).fast == 4
    assert read(MESSAGES["batch"], ModelView(1, contract())).fast == 1


def test_what_has_no_feature_of_its_name_is_no_obstacle():
    given = {"income": 1.0, "somewhere else": 2.0}
    for event in (
        single(1, given),
        msgspec.structs.replace(batch(), attributions={"income": [1.0] * 4, "else": [2.0] * 4}),
    ):
        rows = read([encode_structured(event, "s")], ModelView(1, contract())).rows["m"]
        assert set(rows.feature_values()["attribution:income"]) == {1.0}


def test_an_attribution_that_is_no_number_is_rejected_whether_it_is_watched_or_not():
    for name in ("income", "somewhere else"):
        value = msgspec.json.encode(single(1, {name: 1.0})).replace(b":1.0}", b':"much"}')
        for attributions in (True, False):
            decoded = read([(value, [])], ModelView(1, contract(attributions=attributions)))
            assert [reject.reason for reject in decoded.rejects] == ["wrong_type"]


def test_a_batch_with_a_column_of_another_length_is_rejected():
    short = msgspec.structs.replace(batch(), attributions={"income": [1.0]})
    decoded = read([encode_structured(short, "s")], ModelView(1, contract()))
    assert [reject.reason for reject in decoded.rejects] == ["unequal_columns"]


def test_rows_of_a_batch_have_the_attributions_that_they_had():
    expected = [{"income": 0.5, "channel": -1.0}, {"income": 2.0}, {}, {}]
    for value, headers in (*MESSAGES["batch"], *MESSAGES["arrow"]):
        rows = batch_rows(decode_message(value, headers, "inference"))
        assert [row.attributions for row in rows] == expected


def test_they_are_counted_in_bins_of_their_own():
    rng = np.random.default_rng(3)
    shares = rng.normal(size=500)
    events = [single(n, {"income": share}) for n, share in enumerate(shares.tolist())]
    view = ModelView(1, contract())
    rows = read([encode_structured(event, "s") for event in events], view).rows["m"]
    cuts = build_cuts(view.contract, rows.feature_values())
    panes = pane_starts(rows.times_ms, 60_000)
    (counted,) = count_rows(view, cuts, rows, panes, group_rows(view, rows, Segments()))
    found = counted.state.features["attribution:income"]
    assert (found.rows, found.missing) == (500, 0)
    assert sum(count > 0 for count in found.counts) > 50
    assert counted.state.features["attribution:channel"].missing == 500
    assert "missing_required" not in counted.state.rules


def test_attributions_of_personal_features_are_in_no_sample():
    view = ModelView(1, contract())
    rows = read(MESSAGES["bare"], view).rows["m"]
    features = _sample_rows(view, rows)[0].features
    assert set(features) == {"channel", "brightness", "attribution:channel"}


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["attribution:income"]])
def test_a_reference_file_may_have_their_columns(tmp_path, names):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*FEATURES, *names])
    writer.writerows([[k, "web", 0.5, *[k / 10 for _ in names]] for k in range(300)])
    file = tmp_path / "reference.csv"
    file.write_text(text.getvalue())
    found = read_reference(str(file), contract(), None, None, None, None)
    assert list(found.features) == [*FEATURES, *names]
    edges = build_cuts(contract(), found.features).feature["attribution:income"].edges
    assert (len(edges) > 30) == bool(names)


# --- verdicts -------------------------------------------------------------------------------------


def test_an_attribution_that_moves_raises_the_alarm_of_its_rule(sqlite_url):
    """The input stays as it was; only what the model makes of it changes."""
    store = open_store(sqlite_url)
    metadata.create_all(store.engine)
    made = contract(
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20),
        reference=Reference(windows=3),
        alarms=Alarms(rules=("psi(attribution:x) > 0.25", "psi(x) > 0.25")),
    )
    start_ms = 1_700_000_000_000
    writer = SeriesWriter(store, made, start_ms)
    rng = np.random.default_rng(5)

    def columns(rows, share):
        x = rng.normal(size=rows)
        return {"x": x.tolist(), "attribution:x": (share * x).tolist()}

    writer.fit_cuts(columns(2_000, 1.0), ["a", "b"])
    for number in range(8):
        share = 1.0 if number < 6 else 0.2
        writer.rows(start_ms + number * 2_000, columns(400, share), prediction=["a", "b"] * 200)
    writer.passed(start_ms + 8 * 2_000)
    evaluator = Evaluator(store, "one")
    for second in range(1, 4):
        evaluator.tick(start_ms + second * 60_000)
    found = verdicts.verdicts_between(store, "m", 0, start_ms * 2)
    by_window = {(row.verdict.window_start_ms - start_ms) // 2_000: row.verdict for row in found}
    outcomes = [by_window[number].outcome for number in (5, 6, 7)]
    assert outcomes == [Outcome.OK, Outcome.ALARM, Outcome.ALARM]
    moved = {finding.figure: finding for finding in by_window[7].findings}
    assert moved["psi(attribution:x)"].outcome is Outcome.ALARM
    assert moved["psi(x)"].outcome is Outcome.OK
    figures = by_window[7].figures
    assert figures["drift"]["max_psi_feature"] == "attribution:x"
    assert math.isclose(figures["features"]["attribution:x"]["missing_rate"], 0)
    (alert,) = alerts.open_alerts(store, "m")
    assert alert.condition == "psi(attribution:x) > 0.25"
    shown_by_the_api(store, start_ms + 7 * 2_000)
    store.close()


def shown_by_the_api(store, window_ms):
    app = create_app(store, load({}, environ={}).settings)
    _, secret = keys.create_key(store, "test", Role.ADMIN, "*", window_ms)
    with TestClient(app) as client:
        bearer = {"Authorization": f"Bearer {secret}"}
        series = client.get("/v1/models/m/series", headers=bearer).json()
        assert {"psi(attribution:x)", "psi(x)"} <= series["drift"].keys()
        client.post("/login", data={"key": secret})
        page = client.get(f"/models/m/windows/{window_ms}", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert "attribution:x" in page.text
