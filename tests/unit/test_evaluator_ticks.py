"""The evaluator over a store with panes and labels: which windows it judges, and what it writes."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from sqlalchemy import func, select, update

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.detect.series import EMPTY_WINDOWS
from trimtab.detect.verdict import encode
from trimtab.errors import TrimtabError
from trimtab.events.types import ResourceSample
from trimtab.monitor import evaluator as evaluator_module
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.partition import gauges_of
from trimtab.monitor.verify import verify_verdict
from trimtab.records import AlertState, Outcome, Reason
from trimtab.store import alerts, baselines, verdicts
from trimtab.store.engine import Store, open_store
from trimtab.store.models import apply_contract
from trimtab.store.tables import metadata, outbox
from trimtab.store.tables import verdicts as verdict_table
from trimtab.testing.series import SeriesWriter

SECOND = 1_000
START = 1_700_000_000_000
LENGTH = 2 * SECOND


def contract(**changes) -> Contract:
    given = {
        "name": "m",
        "task": "binary",
        "features": {"x": Feature("number")},
        "labels": Labels("within 1 min"),
        "windows": Windows(
            length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20
        ),
        "alarms": Alarms(rules=("accuracy < 0.9 in 2 of 3", "psi(x) > 0.25 in 2 of 3")),
        "reference": Reference(windows=3),
    }
    return Contract(**{**given, **changes})


def open_at(url: str) -> Store:
    store = open_store(url)
    metadata.create_all(store.engine)
    return store


class World:
    """A model whose windows are written in order, and an evaluator with a clock of its own."""

    def __init__(self, store: Store, made: Contract, **options) -> None:
        self.store = store
        self.now_ms = START
        self.writer = SeriesWriter(store, made, START)
        rng = np.random.default_rng(7)
        self.rng = rng
        self.writer.fit_cuts({"x": rng.normal(size=2_000).tolist()}, ["a", "b"])
        self.evaluator = Evaluator(store, "one", **options)

    def window(self, number: int, shift: float = 0.0, rows: int = 200, **more) -> int:
        start_ms = START + number * LENGTH
        self.writer.now_ms = self.now_ms
        x = (self.rng.normal(size=rows) + shift).tolist()
        answers = ["a" if i % 2 else "b" for i in range(rows)]
        self.writer.rows(start_ms, {"x": x}, prediction=answers, **more)
        return start_ms

    def label(self, number: int, right: int, wrong: int) -> None:
        pairs = [("a", "a")] * right + [("a", "b")] * wrong
        self.writer.labels(START + number * LENGTH, pairs, predicted_rows=200)

    def pass_to(self, number: int) -> None:
        """Close every window before this one."""
        self.writer.now_ms = self.now_ms
        self.writer.passed(START + number * LENGTH)

    def tick(self, after_s: float = 5.0) -> int:
        self.now_ms += round(after_s * SECOND)
        return self.evaluator.tick(self.now_ms)

    def outcomes(self) -> list[tuple[int, str, str]]:
        """(window number, outcome, reason) of the latest verdicts, oldest first."""
        rows = verdicts.verdicts_between(self.store, "m", 0, START * 2)
        return [
            ((r.verdict.window_start_ms - START) // LENGTH, r.verdict.outcome, r.verdict.reason)
            for r in rows
        ]

    def calm(self, windows: int, first: int = 0) -> None:
        for number in range(first, first + windows):
            self.window(number)
            self.label(number, 190, 10)
        self.pass_to(first + windows)
        self.tick()


@pytest.fixture
def store(store_url: str):
    opened = open_at(store_url)
    yield opened
    opened.close()


@pytest.fixture
def local(sqlite_url: str):
    opened = open_at(sqlite_url)
    yield opened
    opened.close()


def test_a_window_is_judged_once_its_watermark_has_passed(store):
    world = World(store, contract())
    world.window(0)
    world.label(0, 190, 10)

    assert world.tick() == 0
    world.pass_to(1)
    assert world.tick() == 1
    assert world.tick() == 0
    row = verdicts.latest_verdicts(store, "m")[0]
    assert row.verdict.outcome is Outcome.OK
    assert row.verdict.figures["performance"]["1"]["figures"]["accuracy"]["value"] == 0.95
    assert verdicts.verdict(store, row.id) == row


def test_the_baseline_from_traffic_is_the_first_windows_and_says_how_far_it_is(store):
    world = World(store, contract())
    world.calm(2)
    newest = verdicts.latest_verdicts(store, "m")[0].verdict
    assert newest.figures["baseline"]["reason"] == "calibrating: 1 of 3 windows"
    assert baselines.active_baseline(store, "m") is None

    world.calm(4, first=2)
    world.tick()
    made = baselines.active_baseline(store, "m")
    assert (made.number, made.windows, made.rows, made.source) == (1, 3, 600, "traffic")
    assert [n for n, _, _ in world.outcomes()] == [0, 1, 2, 3, 4, 5]
    newest = verdicts.latest_verdicts(store, "m")[0].verdict
    assert newest.evidence.baseline_id == made.id


def test_one_alert_opens_when_a_rule_is_met_m_of_n_times_and_resolves_when_it_is_calm(store):
    world = World(store, contract())
    world.calm(4)
    world.tick()
    for number in range(4, 8):
        world.window(number, shift=2.0)
        world.label(number, 190, 10)
        world.pass_to(number + 1)
        world.tick()
    opened = alerts.open_alerts(store, "m")
    assert [a.condition for a in opened] == ["psi(x) > 0.25 in 2 of 3"]
    assert opened[0].window_start_ms == START + 5 * LENGTH
    assert opened[0].windows == 3

    for number in range(8, 12):
        world.window(number)
        world.label(number, 190, 10)
        world.pass_to(number + 1)
        world.tick()
    assert alerts.open_alerts(store, "m") == []
    (closed,) = alerts.alerts_of(store, "m")
    assert closed.state is AlertState.RESOLVED
    assert closed.resolution == "Within limits in the last 3 windows."
    found = {n: (o, r) for n, o, r in world.outcomes()}
    assert found[4] == (Outcome.WARNING, Reason.RULE_BREACHED_ONCE)
    assert found[5] == (Outcome.ALARM, Reason.RULE_BREACHED)
    assert found[8] == (Outcome.ALARM, Reason.RULE_BREACHED)  # 2 of the last 3 still are
    assert found[10] == (Outcome.OK, Reason.WITHIN_LIMITS)


def test_a_window_is_judged_when_its_time_to_wait_for_labels_has_run_out(store):
    labels = Labels(arrive="within 1 day", judge_share=0.8, judge_after="4s")
    world = World(store, contract(alarms=Alarms(rules=("accuracy < 0.9",)), labels=labels))
    for number in range(2):
        world.window(number)
        world.label(number, 75, 75)
    world.pass_to(2)
    world.tick()
    assert {r for _, _, r in world.outcomes()} == {Reason.WAITING_FOR_LABELS}
    world.label(1, 80, 80)  # now it has its share
    world.tick()
    assert [r for _, _, r in world.outcomes()] == [
        Reason.WAITING_FOR_LABELS,
        Reason.RULE_BREACHED,
    ]
    for number in range(2, 4):
        world.window(number)
        world.pass_to(number + 1)
        world.tick()
    found = {n: r for n, _, r in world.outcomes()}
    assert (found[0], found[3]) == (Reason.RULE_BREACHED, Reason.WAITING_FOR_LABELS)


def test_labels_that_come_later_revise_their_window_and_the_windows_that_remember_it(store):
    world = World(store, contract(alarms=Alarms(rules=("accuracy < 0.9 in 2 of 3",))))
    for number in range(3):
        world.window(number)
    world.pass_to(3)
    world.tick()
    assert {r for _, _, r in world.outcomes()} == {Reason.WAITING_FOR_LABELS}

    world.label(1, 100, 100)
    world.label(2, 100, 100)
    world.tick()
    found = {n: (o, r) for n, o, r in world.outcomes()}
    assert found[1] == (Outcome.WARNING, Reason.RULE_BREACHED_ONCE)
    assert found[2] == (Outcome.ALARM, Reason.RULE_BREACHED)
    (alert,) = alerts.open_alerts(store, "m")
    assert alert.window_start_ms == START + 2 * LENGTH
    history = verdicts.verdict_history(store, "m", START + 2 * LENGTH)
    assert [h.verdict.revision for h in history] == [1, 2]
    assert history[1].verdict.changed == "+200 labelled rows"
    assert history[1].verdict.findings[-1].onset_ms == START + LENGTH

    world.label(1, 200, 0)  # the labels of window 1 are corrected: window 2 remembers it
    world.tick()
    found = {n: (o, r) for n, o, r in world.outcomes()}
    assert found[1] == (Outcome.OK, Reason.WITHIN_LIMITS)
    assert found[2] == (Outcome.WARNING, Reason.RULE_BREACHED_ONCE)
    (cleared,) = alerts.alerts_of(store, "m")
    assert cleared.state is AlertState.RESOLVED
    assert cleared.resolution.startswith("Revision 3 of its only window no longer meets the rule")


def test_revisions_of_a_window_are_at_most_one_per_window_length(local):
    world = World(local, contract())
    world.window(0)
    world.pass_to(1)
    world.tick()
    world.label(0, 30, 1)
    assert world.tick(after_s=0.5) == 0
    world.label(0, 190, 10)
    assert world.tick(after_s=0.5) == 0
    assert world.tick(after_s=2.0) == 1
    newest = verdicts.latest_verdicts(local, "m")[0].verdict
    assert newest.revision == 2
    assert newest.figures["performance"]["1"]["labelled_rows"] == 200


def test_a_late_row_makes_a_revision_that_says_what_changed(local):
    world = World(local, contract())
    world.calm(2)
    world.window(0, rows=7)
    world.tick()
    (newest,) = [
        r.verdict for r in verdicts.verdict_history(local, "m", START) if r.verdict.revision == 2
    ]
    assert newest.changed == "+7 rows"
    assert newest.figures["rows"] == 207


def test_labels_that_are_taken_back_give_the_verdict_of_before_again(store):
    """The evidence is what it was two revisions ago: the latest verdict must rest on it, not on what is no more."""
    world = World(store, contract())
    world.calm(4)
    world.tick()  # the first three were the baseline
    for right, wrong in ((100, 100), (190, 10)):
        world.label(3, right, wrong)
        world.tick(LENGTH / SECOND)
    history = [row.verdict for row in verdicts.verdict_history(store, "m", START + 3 * LENGTH)]
    assert [one.revision for one in history] == [1, 2, 3]
    digests = [one.evidence.input_digest for one in history]
    assert digests[0] == digests[2] != digests[1]
    assert history[0].findings == history[2].findings
    assert all(one.confirmed for one in verified(store))


def test_what_is_lost_revises_windows_that_were_judged_and_again_when_it_is_known_how_much(store):
    """A loss may reach any window since what was sealed; the first row after it tells how far it did."""
    world = World(store, contract())
    world.calm(3)
    world.writer.now_ms = START + 3 * LENGTH
    world.writer.loses(5)
    world.tick()
    lost = [(n, "cannot_tell", "lost_messages") for n in range(3)]
    assert world.outcomes() == lost
    assert [one.confirmed for one in verified(store)] == [True] * 3
    world.writer.reads_on(START + LENGTH + 1)
    world.tick(LENGTH / SECOND)
    assert world.outcomes()[:2] == lost[:2]
    assert world.outcomes()[2][1] != "cannot_tell"
    assert [one.confirmed for one in verified(store)] == [True] * 3


def verified(store: Store) -> list:
    rows = verdicts.verdicts_between(store, "m", 0, START * 2)
    return [verify_verdict(store, row.id) for row in rows]


def test_a_late_row_after_new_cuts_takes_no_row_from_its_window(local):
    world = World(local, contract())
    world.calm(4)
    before = verdicts.verdict_history(local, "m", START)[-1].verdict
    world.writer.fit_cuts({"x": (world.rng.normal(size=2_000) + 5).tolist()}, ["a", "b"])
    world.window(0, rows=1)
    assert world.tick() == 1
    after = verdicts.verdict_history(local, "m", START)[-1].verdict
    assert after.changed == "+1 rows"
    assert after.figures["rows"] == 201
    assert after.figures["features"] == before.figures["features"]
    assert after.evidence.cuts_id == before.evidence.cuts_id


def test_a_late_gauge_makes_a_revision_that_says_what_changed(store):
    world = World(store, contract())
    world.calm(2)
    first, second = START, START + LENGTH
    world.writer.gauges(second, {"cpu_percent": [10.0, 30.0], "memory_bytes": [5.0]})
    assert world.tick() == 1
    world.writer.gauges(second, {"cpu_percent": [20.0]})
    assert world.tick() == 1
    told = [r.verdict for r in verdicts.verdict_history(store, "m", second)]
    assert [v.changed for v in told[1:]] == ["+3 samples of resources", "+1 samples of resources"]
    assert told[-1].figures["resources"]["cpu_percent"]["samples"] == 3
    assert len(verdicts.verdict_history(store, "m", first)) == 1
    assert world.tick() == 0


def test_a_rule_on_a_gauge_is_judged_from_what_producers_send(local):
    made = contract(
        alarms=Alarms(rules=("cpu_percent > 90 in 1 of 1", "memory_bytes > 2000000000"))
    )
    world = World(local, made)
    sample = ResourceSample(cpu_percent=99.0, memory_bytes=1_600_000_000)
    world.window(0)
    world.writer.gauges(START, {name: [value] for name, value in gauges_of(sample)})
    world.pass_to(1)
    world.tick()
    (row,) = verdicts.latest_verdicts(local, "m")
    assert [(f.figure, f.value, f.outcome) for f in row.verdict.findings if f.rule] == [
        ("cpu_percent", 99.0, Outcome.ALARM),
        ("memory_bytes", 1_600_000_000, Outcome.OK),
    ]
    assert row.verdict.figures["resources"]["memory_bytes"]["mean"] == pytest.approx(1.6e9)


def test_a_late_gauge_makes_no_window_inside_those_of_another_length(local):
    world = World(local, contract())
    world.calm(4)
    shorter = contract(windows=msgspec.structs.replace(contract().windows, length="1s", pane="1s"))
    apply_contract(local, shorter, "", "test", world.now_ms)
    world.window(4)
    world.pass_to(6)
    world.tick()
    before = world.outcomes()
    for number in range(4):
        world.writer.gauges(START + number * LENGTH + SECOND, {"cpu_percent": [1.0]})
    world.tick()
    assert world.outcomes() == before


@pytest.mark.parametrize(
    ("before", "after"), [("4s", "6s"), ("6s", "4s"), ("4s", "2s"), ("2s", "6s")]
)
def test_every_row_is_in_one_window_when_their_length_changes(local, before, after):
    def of(length: str) -> Contract:
        return contract(windows=msgspec.structs.replace(contract().windows, length=length))

    made = of(before)
    world = World(local, made)
    first_ms = START // 12_000 * 12_000
    panes = [first_ms + 2 * SECOND * number for number in range(12)]

    def fill(times: list[int], rows: int) -> None:
        for at_ms in times:
            x = world.rng.normal(size=rows).tolist()
            world.writer.rows(at_ms, {"x": x}, prediction=["a", "b"] * (rows // 2))

    fill(panes[:5], 20)
    world.writer.passed(first_ms + 9 * SECOND)
    world.tick()
    apply_contract(local, of(after), "", "test", world.now_ms)
    fill(panes[5:], 20)
    world.writer.passed(first_ms + 24 * SECOND)
    for _ in range(4):
        world.tick()
    fill(panes, 2)  # late, into windows of both lengths and the one between them
    world.writer.labels(panes[1], [("a", "a")] * 4, predicted_rows=22)
    for _ in range(4):
        world.tick(after_s=10)
    rows = verdicts.verdicts_between(local, "m", 0, START * 2)
    spans = [(r.verdict.window_start_ms, r.verdict.window_end_ms) for r in rows]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "no two overlap"
    judged_to_ms = spans[-1][1]
    assert judged_to_ms >= first_ms + 22 * SECOND
    counted = [sum(22 for p in panes if start <= p < end) for start, end in spans]
    assert [r.verdict.figures["rows"] for r in rows] == counted
    assert sum(counted) == 22 * sum(p < judged_to_ms for p in panes)
    labelled = next(
        r.verdict for r in rows if r.verdict.window_start_ms <= panes[1] < r.verdict.window_end_ms
    )
    assert labelled.figures["performance"]["1"]["labelled_rows"] == 4
    assert [verify_verdict(local, r.id).parts for r in rows] == [[] for _ in rows]


def test_what_retention_has_taken_of_the_gauges_is_no_change(local):
    world = World(local, contract())
    world.window(0)
    world.writer.gauges(START, {"cpu_percent": [1.0, 2.0]})
    world.pass_to(1)
    world.tick()
    (row,) = verdicts.latest_verdicts(local, "m")
    body = msgspec.json.decode(encode(row.verdict))
    body["figures"].pop("resources")
    with local.write() as connection:
        connection.execute(update(verdict_table).values(body=msgspec.json.encode(body).decode()))
    world.evaluator = Evaluator(local, "two")
    world.now_ms += 120 * SECOND
    world.window(0, rows=3)
    world.tick()
    assert verdicts.latest_verdicts(local, "m")[0].verdict.changed == "+3 rows"


def test_many_changed_windows_are_looked_at_in_parts(local, monkeypatch):
    monkeypatch.setattr(evaluator_module, "WINDOWS_PER_TICK", 3)
    world = World(local, contract())
    world.calm(3)
    world.calm(3, first=3)
    world.tick()
    for number in range(6):
        world.writer.gauges(START + number * LENGTH, {"cpu_percent": [1.0]})

    def revised() -> list[int]:
        world.tick(after_s=120)
        rows = verdicts.verdicts_between(local, "m", 0, START * 2)
        numbers = [
            (r.verdict.window_start_ms - START) // LENGTH for r in rows if r.verdict.revision > 1
        ]
        return [number for number in numbers if number < 6]

    assert revised() == [0, 1, 2]
    assert revised() == [0, 1, 2, 3, 4, 5]


def test_gauges_alone_make_no_window(local):
    world = World(local, contract())
    world.writer.gauges(START - 5 * LENGTH, {"cpu_percent": [1.0]})
    world.calm(1)
    world.window(100)
    world.pass_to(101)
    world.tick()
    judged = world.outcomes()
    for number in (-5, 50, 200):  # before all, in a gap that was passed over, in the future
        world.writer.gauges(START + number * LENGTH, {"cpu_percent": [1.0]})
        world.tick()
    assert world.outcomes() == judged


def test_gauges_that_come_while_a_window_is_open_are_judged_with_it(local):
    world = World(local, contract())
    world.calm(1)
    world.window(1)
    world.writer.gauges(START + LENGTH, {"cpu_percent": [1.0, 2.0]})
    world.tick()
    world.writer.gauges(START + LENGTH, {"cpu_percent": [3.0]})
    world.pass_to(2)
    assert world.tick() == 1
    assert world.tick() == 0
    (only,) = verdicts.verdict_history(local, "m", START + LENGTH)
    assert only.verdict.figures["resources"]["cpu_percent"]["samples"] == 3


def test_a_gap_gives_a_bounded_number_of_windows_that_cannot_be_told(local):
    world = World(local, contract())
    world.calm(1)
    world.window(100)
    world.pass_to(101)
    for _ in range(3):
        world.tick()
    found = world.outcomes()
    empty = [n for n, o, r in found if r is Reason.NO_DATA and o is Outcome.CANNOT_TELL]
    assert empty == list(range(1, EMPTY_WINDOWS + 1))
    assert [n for n, _, _ in found][-1] == 100


def test_a_live_model_that_falls_silent_is_told_by_the_clock(local):
    world = World(
        local,
        contract(
            windows=Windows(
                length="2s", pane="2s", lateness="1 min", out_of_order="0s", idle="2s", min_rows=20
            )
        ),
    )
    world.calm(3)
    idle(world)
    for _ in range(3):
        idle(world)
        world.tick(after_s=4)
    last = world.outcomes()[-1]
    assert last[1:] == (Outcome.CANNOT_TELL, Reason.NO_DATA)


def idle(world: World) -> None:
    """The partition's owner has read to its end, and nothing came for long."""
    from sqlalchemy import update

    from trimtab.store.tables import partitions, watermarks

    with world.store.write() as connection:
        connection.execute(
            update(partitions).values(
                next_offset=1,
                end_offset=1,
                caught_up_ms=world.now_ms,
                owner_seen_ms=world.now_ms,
                updated_ms=world.now_ms,
                flush_seq=partitions.c.flush_seq + 1,
            )
        )
        # Only flushes write watermarks, and each leaves its number.
        of_last = select(partitions.c.flush_seq).where(partitions.c.id == watermarks.c.partition_id)
        connection.execute(
            update(watermarks).values(last_row_seen_ms=START, flush_seq=of_last.scalar_subquery())
        )


def test_a_stalled_partition_makes_its_windows_untellable_until_it_moves(local):
    world = World(local, contract())
    world.calm(2)
    for number in (2, 3):
        world.window(number, partition=0)
        world.label(number, 190, 10)
    world.window(2, partition=1)  # partition 1 stops here
    world.now_ms += 400 * SECOND
    world.pass_to(4)
    world.tick(after_s=0)
    found = {n: (o, r) for n, o, r in world.outcomes()}
    assert found[3] == (Outcome.CANNOT_TELL, Reason.STALLED)

    world.writer.now_ms = world.now_ms
    world.writer.passed(START + 4 * LENGTH, partition=1)
    world.tick()
    found = {n: (o, r) for n, o, r in world.outcomes()}
    assert found[3] == (Outcome.OK, Reason.WITHIN_LIMITS)


def test_promised_labels_that_do_not_come_make_the_window_untellable_at_the_horizon(local):
    made = contract(labels=Labels("within 10s"))
    world = World(local, made)
    world.window(0)
    world.pass_to(1)
    world.tick()
    for number in range(1, 8):
        world.window(number)
    world.pass_to(8)
    world.tick()
    (old,) = [r for n, _, r in world.outcomes() if n == 0]
    assert old is Reason.TOO_FEW_ROWS
    assert verdicts.verdict_history(local, "m", START)[-1].verdict.findings[2].detail == (
        "0 of 20 labelled rows came, promised within 10s"
    )


def test_a_second_evaluator_waits_for_the_lease_and_then_writes_nothing_twice(store):
    world = World(store, contract())
    world.calm(3)
    other = Evaluator(store, "two")
    assert other.tick(world.now_ms) == 0
    before = [encode(r.verdict) for r in verdicts.verdicts_between(store, "m", 0, START * 2)]

    assert other.tick(world.now_ms + 60 * SECOND) == 0
    after = [encode(r.verdict) for r in verdicts.verdicts_between(store, "m", 0, START * 2)]
    assert after == before
    world.window(3)
    world.pass_to(4)
    world.now_ms += 60 * SECOND
    assert world.tick(after_s=0) == 0  # it has lost the lease
    assert other.tick(world.now_ms + SECOND) == 1


def test_sqlite_and_postgresql_give_the_same_bytes(store, tmp_path):
    def run(target: Store) -> list[bytes]:
        world = World(target, contract())
        world.calm(4)
        world.tick()
        for number in range(4, 8):
            world.window(number, shift=1.0)
            world.label(number, 150, 50)
            world.pass_to(number + 1)
            world.tick()
        return [encode(r.verdict) for r in verdicts.verdicts_between(target, "m", 0, START * 2)]

    plain = open_at(f"sqlite:///{tmp_path / 'plain.db'}")
    try:
        assert run(store) == run(plain)
    finally:
        plain.close()


def test_a_crash_before_the_commit_leaves_nothing_and_the_next_owner_does_it_once(store):
    def crash(_model: str) -> None:
        raise KeyboardInterrupt

    world = World(store, contract(alarms=Alarms(rules=("rows > 1",))))
    world.evaluator = Evaluator(store, "one", before_commit=crash)
    world.window(0)
    world.pass_to(1)
    with pytest.raises(KeyboardInterrupt):
        world.tick()
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(verdict_table)) == 0
        assert connection.scalar(select(func.count()).select_from(outbox)) == 0
    world.evaluator = Evaluator(store, "two")
    assert world.tick(after_s=60) == 1
    assert len(alerts.open_alerts(store, "m")) == 1
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(outbox)) == 2


@pytest.mark.parametrize("error", [TrimtabError("it is gone"), ValueError("it is gone")])
def test_one_model_that_cannot_be_judged_does_not_stop_the_others(local, monkeypatch, error):
    world = World(local, contract())
    bad = SeriesWriter(local, contract(name="a-bad-one"), START)
    bad.fit_cuts({"x": [1.0, 2.0]})
    bad.rows(START, {"x": [1.0] * 30})
    bad.passed(START + LENGTH)
    world.window(0)
    world.pass_to(1)
    from trimtab.monitor import window_inputs

    real = window_inputs.window_state

    def broken(connection, model, *rest):
        if model == "a-bad-one":
            raise error
        return real(connection, model, *rest)

    monkeypatch.setattr(window_inputs, "window_state", broken)
    assert world.tick() == 1
    assert "it is gone" in world.evaluator.failures["a-bad-one"]
