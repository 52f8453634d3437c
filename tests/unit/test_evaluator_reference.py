"""Rules against the reference over a store: late labels, retention, re-basing, files; and verify confirms them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from trimtab.alerts.delivery import Relay
from trimtab.cli import app
from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.contracts.rules import parse_rule
from trimtab.detect.baseline import Baseline
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.joiner import Joiner
from trimtab.monitor.reference_inputs import ReferenceReader
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Finding, Outcome, Reason
from trimtab.settings import load
from trimtab.store import alerts, baselines, migrate, verdicts
from trimtab.store.engine import Store, open_store
from trimtab.store.models import active_cuts
from trimtab.store.tables import baseline_performance, performance
from trimtab.testing.series import SeriesWriter

START = 1_700_000_000_000
LENGTH = 2_000
ROWS = 200
RULE = "accuracy < reference - 0.05 in 2 of 2"


def contract(*rules: str, **changes: Any) -> Contract:
    given = {
        "name": "m",
        "task": "binary",
        "features": {"x": Feature("number")},
        "labels": Labels("within 1 min"),
        "windows": Windows(
            length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=50
        ),
        "alarms": Alarms(rules=rules or (RULE,)),
        "reference": Reference(windows=3),
    }
    return Contract(**{**given, **changes})


class Sink:
    def publish(self, messages: list[Any]) -> list[None]:
        return [None] * len(messages)

    def close(self) -> None:
        return None


class World:
    """Windows of one model, numbered; an evaluator with a clock of its own."""

    def __init__(self, store: Store, made: Contract | None = None, *, cuts: bool = True) -> None:
        self.store = store
        self.contract = made or contract()
        self.now_ms = START
        self.writer = SeriesWriter(store, self.contract, START)
        self.rng = np.random.default_rng(7)
        self.answers = ["a", "b"] * (ROWS // 2)
        if self.contract.task == "regression":
            self.answers = [1.0, 2.0] * (ROWS // 2)
        if cuts:
            self.writer.fit_cuts({"x": self.rng.normal(size=2_000).tolist()}, self.answers)
        self.evaluator = Evaluator(store, "one")
        self.next = 0

    def windows(
        self, count: int = 1, right: int | None = None, missing: int = 0, **more: Any
    ) -> int:
        """Write windows of ROWS rows, all labelled, `right` of them right (None: no labels); judge them."""
        for _ in range(count):
            start_ms = START + self.next * LENGTH
            x: list[float | None] = self.rng.normal(size=ROWS).tolist()
            x[:missing] = [None] * missing
            self.writer.rows(start_ms, {"x": x}, prediction=self.answers, **more)
            self.label(self.next, right, more.get("version", "1"))
            self.next += 1
        return self.judge()

    def label(self, number: int, right: int | None, version: str = "1", rows: int = ROWS) -> None:
        """Set the labels of a window; the rows that are not right are wrong."""
        pairs: list[tuple[Any, Any]] = []
        if right is not None and self.contract.task == "regression":
            pairs = [(0.0, 0.0)] * right + [(0.0, 1.0)] * (rows - right)
        elif right is not None:
            pairs = [("a", "a")] * right + [("a", "b")] * (rows - right)
        start_ms = START + number * LENGTH
        self.writer.labels(start_ms, pairs, predicted_rows=ROWS, version=version)

    def judge(self) -> int:
        """Close what is written and judge it; return the number of the newest window."""
        self.writer.now_ms = self.now_ms
        self.writer.passed(START + self.next * LENGTH)
        for _ in range(3):
            self.now_ms += 5_000
            self.evaluator.tick(self.now_ms)
        return self.next - 1

    def finding(self, number: int) -> Finding:
        """The newest verdict's first rule of a window; every such verdict is verified."""
        row = verdicts.verdict_history(self.store, "m", START + number * LENGTH)[-1]
        assert verify_verdict(self.store, row.id).parts == []
        return next(f for f in row.verdict.findings if f.rule is not None)

    def revision(self, number: int) -> int:
        history = verdicts.verdict_history(self.store, "m", START + number * LENGTH)
        return history[-1].verdict.revision


@pytest.fixture
def store(store_url: str):
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def local(sqlite_url: str):
    opened = open_store(sqlite_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def test_a_model_that_answers_worse_than_its_baseline_alarms(store: Store) -> None:
    world = World(store)
    first = world.windows(3, right=190)
    assert world.finding(first).reason is Reason.CALIBRATING
    assert world.finding(world.windows(right=184)).outcome is Outcome.OK
    world.windows(right=160)
    found = world.finding(world.windows(right=160))
    assert (found.outcome, found.value, found.reference) == (Outcome.ALARM, 0.8, 0.95)
    assert found.threshold == pytest.approx(0.9)
    assert "accuracy 0.8, the reference has 0.95 (" in found.detail
    assert "600 labelled rows), the rule allows 0.9" in found.detail
    with store.read() as connection:
        (alert,) = alerts.open_alerts(connection, "m")
    assert alert.condition == RULE
    assert alert.summary.startswith("accuracy is 0.8, the reference 0.95: `accuracy < reference")


@pytest.mark.parametrize("restarted", [False, True])
def test_windows_that_waited_for_the_baselines_labels_are_judged_when_they_come(
    store: Store, restarted: bool
) -> None:
    world = World(store)
    world.windows(3)
    numbers = [world.windows(right=160), world.windows(right=160)]
    for number in numbers:
        found = world.finding(number)
        assert (found.outcome, found.reason) == (Outcome.CANNOT_TELL, Reason.WAITING_FOR_LABELS)
        assert "the baseline has 0 labelled rows, 50 are wanted" in found.detail
    if restarted:  # the labels come while no evaluator runs
        world.evaluator.close()
        world.evaluator = Evaluator(store, "two")
    for number in range(3):
        world.label(number, 190)
    world.judge()
    assert [world.finding(n).outcome for n in numbers] == [Outcome.WARNING, Outcome.ALARM]
    assert [world.finding(n).reference for n in numbers] == [0.95, 0.95]
    # They wait no longer, so that nothing more is revised.
    revisions = [world.revision(n) for n in numbers]
    newest = world.windows(right=180)
    if restarted:
        world.evaluator.close()
        world.evaluator = Evaluator(store, "three")
    world.judge()
    assert [world.revision(n) for n in numbers] == revisions == [2, 2]
    assert world.revision(newest) == 1


def test_labels_between_the_baselines_windows_are_not_its(store: Store) -> None:
    world = World(store)
    world.windows(2, right=190)
    start_ms = START + world.next * LENGTH  # ten rows: too few for a window of the baseline
    world.writer.rows(start_ms, {"x": [0.0] * 10}, prediction=["a"] * 10)
    world.writer.labels(start_ms, [("a", "b")] * 10, predicted_rows=10)
    world.next += 1
    world.windows(right=190)
    found = world.finding(world.windows(right=190))
    assert (found.reference, found.value) == (0.95, 0.95)
    assert "600 labelled rows" in found.detail
    world.windows(40, right=190)
    Housekeeping(store, "one", Relay(store, Sink(), "tt")).tick(START + 10_000_000)
    with store.read() as connection:
        (kept,) = connection.execute(select(baseline_performance)).all()
    assert (kept.labelled_rows, kept.predicted_rows) == (600, 600)


def test_a_judged_window_keeps_its_reference_when_the_baselines_labels_are_corrected(
    store: Store,
) -> None:
    world = World(store)
    world.windows(3, right=190)
    number = world.windows(right=180)
    for earlier in range(3):
        world.label(earlier, 170)  # corrected: .85 instead of .95
    world.label(number, 178)
    newest = world.windows(right=180)
    assert world.revision(number) == 2
    assert (world.finding(number).value, world.finding(number).reference) == (0.89, 0.95)
    assert world.finding(newest).reference == pytest.approx(0.85)


def test_a_share_of_the_baselines_labels_is_waited_for(store: Store) -> None:
    world = World(store, contract(labels=Labels("within 1 min", judge_share=0.5)))
    world.windows(3)
    world.label(0, 150, rows=150)
    found = world.finding(world.windows(right=190))
    assert found.reason is Reason.WAITING_FOR_LABELS
    assert "150 of the baseline's 600 rows are labelled so far, 50% are waited for" in found.detail
    newest = world.windows(40, right=190)  # over a minute: nobody waits any longer
    assert (world.finding(newest).outcome, world.finding(newest).reference) == (Outcome.OK, 1.0)


@pytest.mark.parametrize("labels_ms", [20_000, 10_000_000])
def test_the_reference_outlives_the_labels(store: Store, labels_ms: int) -> None:
    """It is kept when its labels are due, or would expire: rules go on as they were, verifiable."""
    world = World(store)
    world.windows(3, right=190)
    before = world.finding(world.windows(40, right=188))
    relay = Relay(store, Sink(), "tt")
    Housekeeping(store, "one", relay, Retention(labels_ms=labels_ms)).tick(START + 10_000_000)
    Joiner(store, "one").tick(START + 10_000_000)
    with store.read() as connection:
        panes = connection.scalars(select(performance.c.pane_start_ms)).all()
        kept = connection.execute(select(baseline_performance)).all()
    assert (START in panes) == (labels_ms > 20_000)
    assert [(row.version, row.labelled_rows, row.predicted_rows) for row in kept] == [
        ("1", 600, 600)
    ]
    if START in panes:
        world.label(0, 0)  # too late to change what the rule means
    after = world.finding(world.windows(right=188))
    assert (before.reference, after.reference) == (0.95, 0.95)
    assert after.detail == before.detail


def test_after_a_promotion_the_reference_is_the_new_versions(store: Store) -> None:
    world = World(store)
    world.windows(3, right=190)
    old = world.windows(2, right=160)
    assert world.finding(old).outcome is Outcome.ALARM
    since = world.next
    world.windows(14, right=150, version="2")
    baselines.rebase(
        store,
        "m",
        START + since * LENGTH,
        START + world.next * LENGTH,
        "promotion:r",
        world.now_ms,
        version="2",
    )
    first = world.windows(right=130, version="2")
    found = world.finding(first)
    assert (found.reference, found.threshold) == (0.75, pytest.approx(0.7))
    assert found.breached == 1  # windows under the old reference do not count
    assert found.outcome is Outcome.WARNING
    assert world.finding(world.windows(right=130, version="2")).outcome is Outcome.ALARM
    assert world.finding(old).reference == 0.95


def test_a_new_reference_alone_resolves_no_alert(store: Store) -> None:
    """As with drift: what is accepted as usual must not be what hurts."""
    missing = "missing_rate(x) > reference + 0.02"
    world = World(store, contract(missing, "accuracy < 0.9"))
    world.windows(3, right=190)
    since = world.next
    world.windows(13, right=170, missing=40)
    end_ms = START + world.next * LENGTH
    baselines.rebase(store, "m", START + since * LENGTH, end_ms, "rebase", world.now_ms)
    found = world.finding(world.windows(right=170, missing=40))
    assert (found.outcome, found.reference) == (Outcome.OK, 0.2)

    def alert() -> Any:
        with store.read() as connection:
            return next(
                (a for a in alerts.open_alerts(connection, "m") if a.condition == missing), None
            )

    assert alert() is not None
    world.windows(right=190, missing=40)
    assert alert() is None


def test_a_version_that_the_baseline_has_not_seen_is_held_to_its_predecessors(
    store: Store,
) -> None:
    world = World(store)
    world.windows(3, right=190)
    found = world.finding(world.windows(right=160, version="2"))
    assert found.reference == 0.95
    assert "600 labelled rows, version 1)" in found.detail


def test_counts_and_gauges_are_compared_with_the_baselines(store: Store) -> None:
    rules = (
        "missing_rate(x) > reference + 0.02",
        "p95_latency_ms > 1.5 * reference",
        "rows < 0.5 * reference",
        "cpu_percent > 1.2 * reference",
        "error_rate > reference + 0.1",
        "disk_percent > reference",
    )
    world = World(store, contract(*rules, labels=Labels("never")))

    def gauges(number: int, cpu: float) -> None:
        world.writer.gauges(START + number * LENGTH, {"cpu_percent": [cpu, cpu]})

    for number, cpu in enumerate((20.0, 30.0, 40.0, 60.0)):
        gauges(number, cpu)
    world.windows(3, missing=2, latency_ms=[10.0] * ROWS)
    number = world.windows(missing=12, latency_ms=[20.0] * ROWS, errors=10)
    world.writer.gauges(START + number * LENGTH, {"disk_percent": [50.0]})
    row = verdicts.verdict_history(store, "m", START + number * LENGTH)[-1]
    assert verify_verdict(store, row.id).parts != []  # a gauge has come since
    world.judge()
    world.finding(number)
    newest = verdicts.verdict_history(store, "m", START + number * LENGTH)[-1].verdict
    by_rule = {f.rule: f for f in newest.findings if f.rule is not None}
    said = {rule: (f.outcome, f.reference) for rule, f in by_rule.items()}
    assert said == {
        rules[0]: (Outcome.ALARM, 0.01),
        rules[1]: (Outcome.ALARM, pytest.approx(10.0, rel=0.02)),
        rules[2]: (Outcome.OK, 200.0),
        rules[3]: (Outcome.ALARM, pytest.approx(30.0, rel=0.02)),
        rules[4]: (Outcome.OK, 0.0),
        rules[5]: (Outcome.CANNOT_TELL, None),
    }
    assert "the baseline has no disk_percent" in by_rule[rules[5]].detail
    world.next += 1  # a window without any row
    empty = world.judge()
    row = verdicts.verdict_history(store, "m", START + empty * LENGTH)[-1]
    by_rule = {f.rule: f for f in row.verdict.findings if f.rule is not None}
    assert by_rule[rules[2]].outcome is Outcome.ALARM
    assert "rows 0, the reference has 200 (mean of its windows)" in by_rule[rules[2]].detail
    assert verify_verdict(store, row.id).confirmed


def test_errors_of_a_regression_are_compared_too(store: Store) -> None:
    world = World(store, contract("mae > 1.5 * reference", task="regression"))
    world.windows(3, right=180)
    found = world.finding(world.windows(right=160))
    assert (found.outcome, found.value) == (Outcome.ALARM, 0.2)
    assert found.reference == pytest.approx(0.1)
    assert "600 labelled rows" in found.detail


def test_in_season_the_rows_are_those_of_a_window_of_the_season(local: Store) -> None:
    world = World(local, contract("rows < reference"))
    world.windows(4, right=190)
    with local.read() as connection:
        row = baselines.active_baseline(connection, "m")
        assert row is not None
        cuts = active_cuts(connection, "m")
        season = Baseline(row.state, row.windows, 3, row.id, "14:00", 2)
        found = ReferenceReader().known(connection, world.contract, season, cuts, "1", None)
    assert found["rows < reference"].value == 300.0


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("with_times", [True, False])
def test_the_reference_of_a_file_is_its_labels(
    store: Store, tmp_path: Path, with_labels: bool, with_times: bool
) -> None:
    world = World(store, cuts=False)
    rows = [
        f"{i % 7},{START - 1_000_000 + i * 20},{'ab'[i % 2]},{'ba'[i % 2] if i % 10 == 0 else 'ab'[i % 2]}"
        for i in range(2_000)
    ]
    file = tmp_path / "reference.csv"
    file.write_text("\n".join(["x,at,said,label", *rows]))
    baselines.fit_from_file(
        *(store, "m", str(file)),
        time_column="at" if with_times else None,
        prediction_column="said",
        label_column="label" if with_labels else None,
        now_ms=START,
    )
    with store.read() as connection:
        world.writer.cuts = active_cuts(connection, "m")
    found = world.finding(world.windows(right=160))
    if with_labels:
        assert (found.outcome, found.reference) == (Outcome.WARNING, 0.9)
        assert "2,000 labelled rows, its file)" in found.detail
    else:
        assert (found.outcome, found.reason) == (Outcome.CANNOT_TELL, Reason.TOO_FEW_ROWS)
        assert "a file without labels; fit it again with a label column" in found.detail


def test_the_command_shows_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".trimtab").mkdir()
    store = open_store(load({}, environ={}).settings.store.url)
    migrate.upgrade(store)
    world = World(store)
    world.windows(3, right=190)
    number = world.windows(2, right=160)
    store.close()
    told = CliRunner().invoke(app, ["window", "show", "m", str(START + number * LENGTH)])
    assert told.exit_code == 0
    said = " ".join(told.stdout.split())
    assert "accuracy is 0.8, the reference 0.95; `accuracy < reference - 0.05 in 2 of 2`" in said
    assert "accuracy 0.8, the reference has 0.95 (" in said


def test_a_rule_of_a_stored_finding_reads_back() -> None:
    rule = parse_rule(RULE)
    assert msgspec.json.decode(msgspec.json.encode(rule), type=type(rule)) == rule
