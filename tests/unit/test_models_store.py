"""Contracts, versions, cuts and baselines as rows, on both databases."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from sqlalchemy import func, select

from trimtab.contracts.model import Alarms, Contract, Feature, Prediction, Windows
from trimtab.errors import ConflictError, NotFoundError, TrimtabError
from trimtab.events.types import Inference
from trimtab.monitor.blocks import single_block
from trimtab.monitor.counting import rule_masks
from trimtab.monitor.views import ModelView
from trimtab.records import AlertState
from trimtab.stats.aggregate import describe_feature
from trimtab.store import alerts, baselines, models
from trimtab.store.engine import open_store
from trimtab.store.models import active_cuts
from trimtab.store.reference_file import ReferenceFileError
from trimtab.store.tables import baselines as baseline_table
from trimtab.store.tables import cuts as cuts_table
from trimtab.store.tables import metadata
from trimtab.testing.series import SeriesWriter
from trimtab.windows import abnormal

CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature("number"), "c": Feature("category")},
    prediction=Prediction(positive="b"),
    windows=Windows(length="2s", pane="2s", min_rows=5),
    alarms=Alarms(rules=("rows < 1",)),
)


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_a_contract_applied_again_changes_nothing_and_a_change_is_a_revision(store):
    first = models.apply_contract(store, CONTRACT, "text", "ann", 1)
    current = models.CurrentContracts(store)
    assert current.refresh() == {"m"}
    assert (first.revision, first.changed) == (1, True)
    again = models.apply_contract(store, CONTRACT, "text", "ann", 2)
    assert (again.revision, again.changed, again.difference_lines) == (1, False, [])
    assert current.refresh() == frozenset()

    changed = msgspec.structs.replace(CONTRACT, team="risk")
    second = models.apply_contract(store, changed, "text 2", "bob", 3)
    assert (second.revision, second.changed) == (2, True)
    assert any("risk" in line for line in second.difference_lines)
    assert current.refresh() == {"m"}
    assert current.rows["m"].contract == changed
    assert models.load_contracts(store)["m"].contract == changed
    assert models.contract_at(store, "m", 1).contract == CONTRACT
    assert [r.applied_by for r in models.contract_history(store, "m")] == ["ann", "bob"]


def test_a_retired_model_is_no_longer_loaded_until_it_is_applied_again(store):
    models.apply_contract(store, CONTRACT, "text", "ann", 1)
    models.retire_model(store, "m", 2)
    assert models.load_contracts(store) == {}
    assert models.apply_contract(store, CONTRACT, "text", "ann", 3).revision == 1
    assert list(models.load_contracts(store)) == ["m"]
    with pytest.raises(NotFoundError):
        models.retire_model(store, "nobody", 3)


def test_of_many_contracts_only_the_changed_ones_are_read_again(store, monkeypatch):
    monkeypatch.setattr(models, "NAMES_PER_QUERY", 2)
    named = {n: msgspec.structs.replace(CONTRACT, name=n) for n in ("a", "b", "c", "d", "e")}
    for one in named.values():
        models.apply_contract(store, one, "", "ann", 1)
    current = models.CurrentContracts(store)
    assert current.refresh() == set(named)
    before = current.rows
    models.apply_contract(store, msgspec.structs.replace(named["b"], team="risk"), "", "ann", 2)
    models.retire_model(store, "d", 2)
    models.apply_contract(store, msgspec.structs.replace(CONTRACT, name="aa"), "", "ann", 2)
    assert current.refresh() == {"aa", "b", "d"}
    assert list(current.rows) == ["a", "aa", "b", "c", "e"]
    assert current.rows["b"].contract.team == "risk"
    assert all(current.rows[name] is before[name] for name in ("a", "c", "e"))
    assert list(before) == ["a", "b", "c", "d", "e"]  # whoever holds it sees no change
    models.apply_contract(store, named["d"], "", "ann", 3)
    assert (current.refresh(), current.refresh()) == ({"d"}, frozenset())
    assert models.current_contract(store, "d") == current.rows["d"]
    assert models.current_contract(store, "nobody") is None


def test_a_version_seen_in_traffic_gains_its_artifact_and_keeps_it(store):
    models.register_version(store, "m", "1", None, None, None, "traffic", 1)
    for now_ms in (2, 3):
        models.register_version(store, "m", "1", "file:a", "a" * 64, "run", "agent", now_ms)
    (row,) = models.versions_of(store, "m")
    assert (row.created_ms, row.artifact_sha256, row.source) == (1, "a" * 64, "agent")
    with pytest.raises(ConflictError):
        models.register_version(store, "m", "1", "file:b", "b" * 64, "run", "agent", 4)


def reference(tmp_path, text):
    path = tmp_path / "reference.csv"
    path.write_text(text)
    return str(path)


GOOD = "time,x,c,answer,truth\n" + "".join(
    f"{1_000 + i * 100},{i % 7}.5,{'web' if i % 2 else 'app'},{'b' if i % 3 else 'a'},b\n"
    for i in range(60)
)


def test_a_reference_file_gives_cuts_and_windows_at_once(store, tmp_path):
    models.apply_contract(store, CONTRACT, "", "ann", 1)
    made = baselines.fit_from_file(
        store,
        "m",
        reference(tmp_path, GOOD),
        time_column="time",
        prediction_column="answer",
        label_column="truth",
        now_ms=2,
    )
    row = baselines.active_baseline(store, "m")
    assert (row.id, row.number, row.windows, row.rows) == (made, 1, 4, 60)
    assert (row.from_ms, row.to_ms) == (0, 8_000)
    assert row.cuts_id == models.active_cuts(store, "m").cuts_id
    assert row.notes["performance"]["accuracy"]["value"] == pytest.approx(40 / 60)
    with store.read() as connection:
        windows = baselines.windows_of(connection, made)
    assert [start for start, _ in windows] == [0, 2_000, 4_000, 6_000]
    assert sum(state.rows for _, state in windows) == 60


def test_a_reference_file_counts_its_outliers_as_traffic_of_the_same_rows_would(store, tmp_path):
    models.apply_contract(store, CONTRACT, "", "ann", 1)
    lines = [f"{i},{i % 101 / 10},{'web' if i % 2 else 'app'},b,b\n" for i in range(3_000)]
    lines[7], lines[2_500] = "7,-99,fax,b,b\n", "2500,99,tv,b,b\n"
    made = baselines.fit_from_file(
        store,
        "m",
        reference(tmp_path, "time,x,c,answer,truth\n" + "".join(lines)),
        time_column="time",
        prediction_column="answer",
        label_column="truth",
        now_ms=2,
    )
    stored = active_cuts(store, "m")
    assert stored.outliers.held_rows == 3_000
    with store.read() as connection:
        windows = baselines.windows_of(connection, made)
    counts = {start: dict(state.rules) for start, state in windows}
    assert counts == {0: {abnormal.OUTLIER: 1}, 2_000: {abnormal.OUTLIER: 1}}
    view = models.current_contract(store, "m").contract
    events = [
        Inference(id=str(i), model="m", version="1", time=0, features=features)
        for i, features in enumerate([{"x": -99, "c": "fax"}, {"x": 1.0, "c": "web"}])
    ]
    rows = single_block(ModelView(1, view), np.arange(2), events, typed=False)
    assert rule_masks(ModelView(1, view), stored, rows)[abnormal.OUTLIER].tolist() == [True, False]


def test_of_a_long_reference_an_even_sample_tells_what_an_outlier_is(monkeypatch):
    monkeypatch.setattr(baselines, "MOST_HELD_ROWS", 2_000)
    columns = {"x": [float(i) for i in range(5_000)], "c": ["web"] * 5_000}
    cuts = baselines.build_cuts(CONTRACT, columns)
    assert cuts.outliers.held_rows == 1_667
    assert cuts.outliers.features[0].maximum == 4_998  # every third row
    assert cuts.feature["x"] == baselines.build_cuts(CONTRACT, {"x": columns["x"]}).feature["x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("3.5", "three", 1), "line 5, column 'x': 'three' is not a number"),
        (GOOD.replace("time,x,c", "time,y,c"), "the feature 'x' is missing"),
        (GOOD.replace("1300,", "noon,", 1), "line 5, column 'time': 'noon' is no time"),
        (GOOD.replace("1300,", "2026-01-01T00:00:00,", 1), "has no time zone"),
        (GOOD + "1,2\n", "line 62 has 2 cells, line 1 names 5"),
        ("time,x,c,answer,truth\n", "no rows"),
    ],
)
def test_a_wrong_reference_file_names_the_line_and_stores_nothing(store, tmp_path, text, said):
    models.apply_contract(store, CONTRACT, "", "ann", 1)
    with pytest.raises(ReferenceFileError) as problem:
        baselines.fit_from_file(
            store,
            "m",
            reference(tmp_path, text),
            time_column="time",
            prediction_column="answer",
            label_column="truth",
            now_ms=2,
        )
    assert said in str(problem.value)
    with store.read() as connection:
        for table in (cuts_table, baseline_table):
            assert connection.scalar(select(func.count()).select_from(table)) == 0


def test_a_promotion_s_baseline_has_the_answers_of_the_promoted_version_alone(store):
    writer = SeriesWriter(store, CONTRACT, 1)
    columns = {"x": [float(i) for i in range(20)], "c": ["web", "app"] * 10}
    writer.fit_cuts(columns, ["yes", "no"])
    for number in range(15):
        writer.rows(number * 2_000, columns, prediction=["no"] * 20)
        if number > 7:
            writer.rows(number * 2_000, columns, prediction=["yes"] * 20, version="2")
    baselines.rebase(store, "m", 0, 30_000, "promotion:r1", 5, version="2")
    state = baselines.active_baseline(store, "m").state
    cuts = active_cuts(store, "m")
    answers = describe_feature(cuts.output["prediction"], state.outputs["prediction"])
    assert (answers.rows, answers.shares) == (140, {"yes": 1.0})
    assert state.features["x"].rows == 15 * 20 + 140


def test_a_re_base_takes_stored_windows_once_per_cause_and_can_be_taken_back(store):
    writer = SeriesWriter(store, CONTRACT, 1)
    columns = {"x": [float(i) for i in range(20)], "c": ["web", "app"] * 10}
    writer.fit_cuts(columns)
    for number in range(15):
        writer.rows(number * 2_000, columns)
    first = baselines.rebase(store, "m", 0, 24_000, "promotion:r1", 5)
    second = baselines.rebase(store, "m", 2_000, 30_000, "promotion:r2", 6)
    assert baselines.rebase(store, "m", 0, 24_000, "promotion:r1", 7) == first
    assert baselines.active_baseline(store, "m").id == first
    with store.write() as connection:
        baselines.restore(connection, "m", second)
    active = baselines.active_baseline(store, "m")
    assert (active.id, active.windows, active.from_ms) == (second, 14, 2_000)
    assert [b.number for b in baselines.baselines_of(store, "m")] == [1, 2]
    with pytest.raises(TrimtabError, match="3 stored windows"):
        baselines.rebase(store, "m", 0, 6_000, "promotion:r3", 8)

    def rolled_back(_connection):
        raise ConflictError("the rollout is rolled_back")

    with pytest.raises(ConflictError):  # a promotion's baseline that comes after its rollback
        baselines.rebase(store, "m", 0, 24_000, "promotion:r1", 9, fence=rolled_back)
    assert baselines.active_baseline(store, "m").id == second
    with store.write() as connection, pytest.raises(NotFoundError):
        baselines.restore(connection, "m", 999)


def test_people_acknowledge_silence_and_resolve(store):
    from trimtab.monitor.evaluator import Evaluator

    contract = msgspec.structs.replace(
        CONTRACT, alarms=Alarms(rules=("rows > 1",), webhooks=("w",))
    )
    writer = SeriesWriter(store, contract, 1)
    columns = {"x": [1.0] * 10, "c": ["web"] * 10}
    writer.fit_cuts(columns)
    alerts.silence(store, "m", None, 0, 10_000, "ann", "a drill")
    writer.rows(0, columns)
    writer.passed(2_000 + 1_000)
    evaluator = Evaluator(store, "one")
    evaluator.tick(5_000)
    (alert,) = alerts.open_alerts(store)
    receivers = {d.receiver for d in alerts.due_deliveries(store, 6_000, 100)}
    assert receivers == {"kafka"}  # silenced: recorded and published, nobody is called

    seen = alerts.acknowledge(store, alert.id, "ann", 6_000)
    assert (seen.state, seen.acknowledged_by) == (AlertState.ACKNOWLEDGED, "ann")
    done = alerts.resolve(store, alert.id, "ann", "known", 7_000)
    assert done.resolution == "Resolved by ann: known"
    assert alerts.open_alerts(store) == []
    with pytest.raises(ConflictError):
        alerts.acknowledge(store, alert.id, "bob", 8_000)
    with pytest.raises(NotFoundError):
        alerts.get_alert(store, "nothing")

    writer.rows(2_000, columns)
    writer.passed(4_000 + 1_000)
    evaluator.tick(20_000)  # the condition lasts, the silence has ended: a new alert, and a call
    (new,) = alerts.open_alerts(store, "m")
    assert new.id != alert.id
    receivers = {d.receiver for d in alerts.due_deliveries(store, 21_000, 100)}
    assert receivers == {"kafka", "webhook:w"}
