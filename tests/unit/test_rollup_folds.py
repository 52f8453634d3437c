"""Folds of counts: nothing that reads them can tell, nothing half-done stays, nothing counts twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import event, func, select

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.detect.verdict import encode
from trimtab.errors import ConflictError
from trimtab.monitor import rollup
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.verify import verify_verdict
from trimtab.stats.aggregate import ResourceState
from trimtab.store import baselines, migrate
from trimtab.store import tables as t
from trimtab.store.arm_counts import arm_counts
from trimtab.store.engine import Store, open_store
from trimtab.store.leases import acquire
from trimtab.store.models import apply_contract
from trimtab.store.panes import generations, stored_segments
from trimtab.store.resources import window_resources, write_resources
from trimtab.store.rollups import (
    apply_fold,
    fold_gauge_panes,
    forget_stray_gauges,
    plan_panes,
    plan_rollup,
)
from trimtab.store.verdicts import flushed_since, progress_of, verdict_history
from trimtab.store.window_state import window_state
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import DAY_MS, HOUR_MS, Kept, Resolution

DAY = 19_700 * DAY_MS
MINUTE = 60_000
NOW = 1_800_000_000_000
SOON = Kept(panes_ms=HOUR_MS, hours_ms=100 * DAY_MS, days_ms=1_000 * DAY_MS)
SOONER = Kept(panes_ms=HOUR_MS, hours_ms=HOUR_MS, days_ms=1_000 * DAY_MS)


def contract(length: str = "1h", **changes) -> Contract:
    given = {
        "name": "m",
        "task": "binary",
        "features": {"x": Feature("number")},
        "labels": Labels("within 1 min"),
        "windows": Windows(
            length=length, pane="10 min", lateness="1 min", out_of_order="0s", min_rows=20
        ),
        "alarms": Alarms(rules=("psi(x) > 0.25 in 2 of 3",)),
        "reference": Reference(windows=2),
    }
    return Contract(**{**given, **changes})


class World:
    """Two partitions that both bring rows to every pane, an evaluator, and folds on demand."""

    def __init__(self, store: Store, made: Contract) -> None:
        self.store = store
        self.contract = made
        self.now_ms = NOW
        self.writer = SeriesWriter(store, made, NOW)
        self.rng = np.random.default_rng(5)
        self.writer.fit_cuts({"x": self.rng.normal(size=2_000).tolist()}, ["a", "b"])
        self.evaluator = Evaluator(store, "one")
        self.end_ms = DAY

    def hours(self, first: int, count: int) -> None:
        """Rows in each pane of these hours, sealed and judged."""
        for pane in range(first * 6, (first + count) * 6):
            for partition in (0, 1):
                self.rows(DAY + pane * 10 * MINUTE, partition)
        self.seal(first + count)

    def rows(self, pane_ms: int, partition: int, rows: int = 20, **more) -> None:
        self.writer.now_ms = self.now_ms
        x = self.rng.normal(size=rows).tolist()
        answers = ["a" if i % 3 else "b" for i in range(rows)]
        self.writer.rows(
            pane_ms, {"x": x}, prediction=answers, partition=partition, latency_ms=x, **more
        )

    def seal(self, hour: int) -> None:
        self.end_ms = DAY + hour * HOUR_MS
        self.writer.seal(self.end_ms)
        self.judge()

    def judge(self) -> int:
        total = 0
        for _ in range(3):
            self.now_ms += 100_000
            self.writer.now_ms = self.now_ms
            for partition in (0, 1):  # both owners live
                self.writer.passed(self.end_ms, partition)
            total += self.evaluator.tick(self.now_ms)
        return total

    def fold(self, kept: Kept = SOON, limit: int = 1_000) -> int:
        lease = acquire(self.store, "retention", "me", self.now_ms, 30_000)
        newest_ms = DAY + 1_000 * HOUR_MS  # the limit is what was judged
        total = 0
        while True:
            done = rollup.roll_up(self.store, lease, "m", self.contract, newest_ms, kept, limit)
            if not done.rows:
                return total
            total += done.rows

    def count(self, table) -> int:
        with self.store.read() as connection:
            return connection.scalar(select(func.count()).select_from(table))

    def hour(self, number: int):
        return self.window(DAY + number * HOUR_MS, HOUR_MS)

    def window(self, start_ms: int, length_ms: int):
        with self.store.read() as connection:
            return window_state(connection, "m", start_ms, start_ms + length_ms)

    def everything(self) -> list[list[tuple]]:
        tables = (t.panes, t.rollups, t.resource_panes, t.resource_rollups, t.folded_segments)
        with self.store.read() as connection:
            return [
                [
                    tuple(row)
                    for row in connection.execute(
                        select(table).order_by(*table.primary_key.columns)
                    )
                ]
                for table in tables
            ]

    def verdicts(self) -> list[bytes]:
        with self.store.read() as connection:
            starts = connection.scalars(
                select(t.verdicts.c.window_start_ms)
                .distinct()
                .order_by(t.verdicts.c.window_start_ms)
            ).all()
        return [encode(row.verdict) for s in starts for row in verdict_history(self.store, "m", s)]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.fixture
def local(sqlite_url: str) -> Iterator[Store]:
    opened = open_store(sqlite_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


@pytest.mark.parametrize("kept", [SOON, SOONER], ids=["hours", "days"])
def test_a_fold_is_no_change_to_anything_that_reads_counts(store, kept):
    length = "1h" if kept is SOON else "1d"
    world = World(store, contract(length))
    world.hours(0, 48)
    length_ms = world.contract.windows.length_ms
    before = [world.window(DAY + i * length_ms, length_ms) for i in range(2)]
    said = world.verdicts()
    arms = arm_counts(store, "m", [0], None)
    assert world.fold(kept) > 0
    # What is not old enough, at the least, is folded over partitions.
    assert world.count(t.panes) == 0

    assert [world.window(DAY + i * length_ms, length_ms) for i in range(2)] == before
    assert world.judge() == 0
    assert world.verdicts() == said
    assert arm_counts(store, "m", [0], None) == arms
    with store.read() as connection:
        progress = progress_of(connection, "m")
        assert flushed_since(connection, "m", progress.seen).pane_starts_ms == frozenset()
        ids = connection.scalars(select(t.verdicts.c.id).where(t.verdicts.c.latest)).all()
    # The windows that gave the baseline were judged while it was still being gathered.
    confirmed = [verify_verdict(store, one).confirmed for one in ids]
    assert all(confirmed[2:])
    assert len(confirmed) == (48 if kept is SOON else 2)


def test_each_step_keeps_what_a_reader_of_its_resolution_needs(store):
    world = World(store, contract())
    world.hours(0, 50)
    world.fold(SOONER)
    with store.read() as connection:
        found = connection.execute(
            select(t.rollups.c.resolution, func.count(), func.sum(t.rollups.c.rows))
            .group_by(t.rollups.c.resolution)
            .order_by(t.rollups.c.resolution)
        ).all()
    # Two days are over; labels may still come to the hours of the second one's end.
    assert [(r, n, int(rows)) for r, n, rows in found] == [
        ("day", 1, 24 * 6 * 40),
        ("hour", 25, 25 * 6 * 40),
        ("pane", 6, 6 * 40),
    ]


def test_a_row_that_comes_after_its_pane_was_folded_counts_once_and_revises_its_window(store):
    world = World(store, contract())
    world.hours(0, 10)
    start_ms = DAY + 3 * HOUR_MS
    assert len(verdict_history(store, "m", start_ms)) == 1
    world.fold()
    rows = world.hour(3).state.rows
    assert rows == 240

    world.rows(start_ms, 1, rows=7)  # a longer lateness lets its old owner count it
    assert world.hour(3).state.rows == rows + 7
    assert world.judge() == 1
    first, second = verdict_history(store, "m", start_ms)
    assert (first.verdict.figures["rows"], second.verdict.figures["rows"]) == (rows, rows + 7)
    assert second.verdict.changed == "+7 rows"

    world.writer.seal(DAY + 10 * HOUR_MS)
    assert world.judge() == 0
    world.fold()
    assert world.count(t.panes) == 0
    assert world.hour(3).state.rows == rows + 7
    assert world.judge() == 0
    assert len(verdict_history(store, "m", start_ms)) == 2
    assert verify_verdict(store, second.id).confirmed


def test_a_generation_is_never_used_twice_wherever_its_counts_are(store):
    world = World(store, contract())
    world.hours(0, 50)
    used = set()
    for kept in (None, Kept(panes_ms=40 * HOUR_MS), SOON, SOONER):
        if kept is not None:
            world.fold(kept)
        with store.read() as connection:
            fresh = generations(connection, 1, "m", DAY + HOUR_MS)
        assert fresh not in used
        used.add(fresh)
        world.rows(DAY + HOUR_MS, 0)
        world.writer.seal(DAY + 50 * HOUR_MS)
        world.judge()
    assert used == {1, 2, 3, 4}
    assert world.window(DAY, DAY_MS).state.rows == 24 * 6 * 40 + 80


def test_a_window_that_is_only_part_of_an_hour_keeps_what_was_judged_of_it(store):
    world = World(store, contract("30 min"))
    world.hours(0, 10)
    world.fold()
    said = world.verdicts()
    assert world.window(DAY, HOUR_MS // 2).coarser is Resolution.HOUR
    assert world.hour(0).coarser is None
    (only,) = verdict_history(store, "m", DAY + 3 * HOUR_MS)
    answer = verify_verdict(store, only.id)
    assert not answer.confirmed
    assert "its panes are part of a whole hour by now" in answer.said

    world.rows(DAY + 3 * HOUR_MS, 0, rows=7)
    world.writer.seal(DAY + 10 * HOUR_MS)
    assert world.judge() == 0
    world.fold()
    assert world.verdicts() == said
    assert world.hour(3).state.rows == 247
    with pytest.raises(Exception, match="0 stored windows"):
        baselines.rebase(store, "m", DAY, DAY + 3 * HOUR_MS, "rebase", NOW)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["panes", "hours", "days", "resources"])
def test_a_fold_killed_before_any_of_its_statements_leaves_all_or_nothing(store, step, request):
    world = World(store, contract())
    world.hours(0, 28)
    world.rows(DAY + 27 * HOUR_MS, 0, segment="c=a")
    gauges = {("m", DAY, "1", f"pod-{i}"): ResourceState.observe({"cpu": [i]}) for i in range(3)}
    with store.write() as connection:
        write_resources(connection, 1, 0, gauges)
    before_kept = Kept(panes_ms=400 * HOUR_MS)
    kept = {
        "panes": before_kept,
        "hours": SOON,
        "days": SOONER,
        "resources": SOON,
    }[step]
    if step == "hours":
        world.fold(before_kept)
    elif step == "days":
        world.fold(SOON)
    untouched = world.everything()
    survived: list[list] = []
    for fatal in range(200):
        seen = 0

        def kill(connection, *_args, fatal=fatal) -> None:
            nonlocal seen
            if connection.get_execution_options().get("trimtab_writes"):
                if seen == fatal:
                    raise Killed
                seen += 1

        def kill_commit(connection, fatal=fatal) -> None:
            kill(connection, fatal=fatal)

        event.listen(store.engine, "before_cursor_execute", kill)
        event.listen(store.engine, "commit", kill_commit)
        try:
            world.fold(kept, limit=10_000)
        except Killed:
            now = world.everything()
            assert (
                world.window(DAY, DAY_MS).state,
                world.window(DAY + DAY_MS, DAY_MS).state,
            ) == whole_days(world, untouched)
            if now not in survived:
                survived.append(now)
        else:
            break
        finally:
            event.remove(store.engine, "before_cursor_execute", kill)
            event.remove(store.engine, "commit", kill_commit)
    else:
        pytest.fail("the fold never ended")
    # Killed in each of its transactions: the states seen are those between whole transactions only.
    assert 1 <= len(survived) <= 4
    assert survived[0] == untouched
    assert world.fold(kept) == 0
    with store.read() as connection:
        cpu = window_resources(connection, "m", DAY, DAY + DAY_MS)["1"].gauges["cpu"]
    assert (cpu.count, cpu.maximum) == (3, 2.0)


def whole_days(world: World, rows: list[list[tuple]]) -> tuple:
    """The states of both days by a plain loop over stored rows."""
    from trimtab.stats.aggregate import PaneState

    found: list[PaneState | None] = [None, None]
    place = {name: i for i, name in enumerate(t.panes.c.keys())}
    spots = {name: i for i, name in enumerate(t.rollups.c.keys())}
    listed = [
        (row[place["pane_start_ms"]], row[place["segment"]], row[place["state"]]) for row in rows[0]
    ]
    listed += [(r[spots["start_ms"]], r[spots["segment"]], r[spots["state"]]) for r in rows[1]]
    for start_ms, segment, body in listed:
        if segment == "":
            which = (start_ms - DAY) // DAY_MS
            state = PaneState.from_bytes(body)
            before = found[which]
            found[which] = state if before is None else before.merge(state)
    return tuple(found)


def test_a_fold_is_idempotent_and_small_steps_give_what_one_step_gives(store):
    world = World(store, contract())
    world.hours(0, 26)
    first = world.everything()
    world.fold(SOONER, limit=7)
    small = world.everything()
    assert small != first
    assert world.fold(SOONER, limit=7) == 0
    assert world.fold(SOONER) == 0
    assert world.everything() == small


def test_small_steps_and_large_ones_end_in_the_same_bytes(local, tmp_path):
    worlds = [World(local, contract())]
    other = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    migrate.upgrade(other)
    worlds.append(World(other, contract()))
    for world, limit in zip(worlds, (5, 5_000), strict=True):
        world.hours(0, 60)
        world.fold(SOONER, limit=limit)
    assert worlds[0].everything() == worlds[1].everything()
    other.close()


def test_a_housekeeper_whose_lease_was_taken_over_is_refused_and_changes_nothing(store):
    world = World(store, contract())
    world.hours(0, 10)
    old = acquire(store, "retention", "one", NOW, 1_000)
    with store.read() as connection:
        progress = progress_of(connection, "m")
        planned = plan_panes(connection, "m", progress.seen, DAY + 10 * HOUR_MS, 1_000)
    assert acquire(store, "retention", "two", NOW + 2_000, 1_000) is not None
    before = world.everything()
    newest_ms = DAY + 10 * HOUR_MS
    with pytest.raises(ConflictError):
        rollup.roll_up(store, old, "m", world.contract, newest_ms, SOON, 1_000)
    assert world.everything() == before

    # The new owner folds; what the old one had planned no longer fits, whoever would try it.
    world.now_ms = NOW + 1_000_000
    world.fold()
    after = world.everything()
    with pytest.raises(ConflictError), store.write() as connection:
        apply_fold(connection, planned)
    assert world.everything() == after


def test_rows_the_evaluator_has_not_seen_and_open_panes_are_not_folded(store):
    world = World(store, contract())
    world.hours(0, 10)
    world.rows(DAY + HOUR_MS, 0, rows=5)
    world.rows(DAY + 2 * HOUR_MS, 1, rows=5)
    with store.read() as connection:
        progress = progress_of(connection, "m")
        fold = plan_panes(connection, "m", progress.seen, DAY + 10 * HOUR_MS, 1_000)
    assert fold.removed == 120  # nothing of what came since
    world.judge()
    world.fold()
    assert world.count(t.panes) == 2  # seen now, but not sealed
    world.writer.seal(DAY + 10 * HOUR_MS)
    with store.read() as connection:
        progress = progress_of(connection, "m")
        assert plan_panes(connection, "m", progress.seen, DAY + 10 * HOUR_MS, 10) is None
    world.judge()
    world.fold()
    assert world.count(t.panes) == 0
    assert world.hour(1).state.rows == 245


def test_a_model_that_nobody_watches_any_more_is_folded_as_well(store):
    world = World(store, contract())
    world.hours(0, 10)
    lease = acquire(store, "retention", "me", world.now_ms, 30_000)
    for _ in range(3):
        rollup.roll_up(store, lease, "m", None, DAY + 60 * HOUR_MS, SOON, 1_000)
    assert (world.count(t.panes), world.count(t.rollups)) == (0, 10)
    assert world.hour(4).state.rows == 240


def test_gauges_become_hours_over_instances_and_a_late_sample_joins_its_hour(store):
    world = World(store, contract())
    world.hours(0, 10)

    def sample(partition_id: int, pane: int, instance: str, value: float) -> None:
        key = ("m", DAY + pane * 10 * MINUTE, "1", instance)
        with store.write() as connection:
            gauges = {key: ResourceState.observe({"cpu": [value]})}
            write_resources(connection, partition_id, 0, gauges)

    for pane in range(60):
        for instance in ("a", "b"):
            sample(1 + pane % 2, pane, instance, 10.0)
    with store.read() as connection:
        before = window_resources(connection, "m", DAY + HOUR_MS, DAY + 2 * HOUR_MS)
    world.fold()
    assert (world.count(t.resource_panes), world.count(t.resource_rollups)) == (12, 9)
    with store.read() as connection:
        assert window_resources(connection, "m", DAY + HOUR_MS, DAY + 2 * HOUR_MS) == before
    sample(1, 6, "a", 99.0)
    world.fold(limit=5)
    assert (world.count(t.resource_panes), world.count(t.resource_rollups)) == (12, 9)
    with store.read() as connection:
        cpu = window_resources(connection, "m", DAY + HOUR_MS, DAY + 2 * HOUR_MS)["1"].gauges["cpu"]
    assert (cpu.count, cpu.maximum) == (13, 99.0)


def test_a_sample_that_nobody_has_judged_yet_is_not_folded(store):
    world = World(store, contract())
    world.hours(0, 10)
    key = ("m", DAY, "1", "pod")
    end_ms = DAY + 10 * HOUR_MS

    def fold(seen: dict[str, int]) -> int:
        with store.write() as connection:
            return fold_gauge_panes(connection, "m", seen, end_ms, 100)

    with store.write() as connection:
        write_resources(connection, 7, 5, {key: ResourceState.observe({"cpu": [1.0]})})
    assert [fold(seen) for seen in ({}, {"1": 9}, {"7": 4})] == [0, 0, 0]
    assert fold({"1": 9, "7": 5}) == 1
    assert world.count(t.resource_panes) == 0


def test_old_gauges_of_a_model_without_rows_go(store):
    keys = [("no rows", DAY + day * DAY_MS, "1", "pod") for day in range(4)]
    with store.write() as connection:
        write_resources(
            connection, 1, 1, {key: ResourceState.observe({"cpu": [1.0]}) for key in keys}
        )
        assert forget_stray_gauges(connection, 2 * DAY_MS, 100) == 1
        assert forget_stray_gauges(connection, 2 * DAY_MS, 100) == 0
    world = World(store, contract())
    world.hours(0, 1)
    with store.write() as connection:
        old = ("m", DAY - 90 * DAY_MS, "1", "pod")
        write_resources(connection, 1, 1, {old: ResourceState.observe({"cpu": [1.0]})})
        assert forget_stray_gauges(connection, 2 * DAY_MS, 100) == 0, "its rows tell its time"


def test_a_sample_that_comes_while_its_hour_is_folded_counts_once(store):
    world = World(store, contract())
    world.hours(0, 10)
    key = ("m", DAY, "1", "pod")
    one = {key: ResourceState.observe({"cpu": [1.0]})}
    with store.write() as connection:
        write_resources(connection, 1, 1, one)
    begun = threading.Event()
    done: list[int] = []

    def fold() -> None:
        begun.set()
        with store.write() as connection:
            end_ms = DAY + 10 * HOUR_MS
            done.append(fold_gauge_panes(connection, "m", {"1": 1}, end_ms, 100))

    folding = threading.Thread(target=fold)
    with store.write() as connection:
        write_resources(connection, 1, 1, one)
        folding.start()
        assert begun.wait(60)
        write_resources(connection, 1, 1, one)
    folding.join(60)
    assert done == [1]
    with store.read() as connection:
        cpu = window_resources(connection, "m", DAY, DAY + HOUR_MS)["1"].gauges["cpu"]
    assert cpu.count == 3


def test_a_partition_goes_on_to_know_its_segments_when_its_panes_are_folded(store):
    world = World(store, contract())
    for hour in range(10):
        for partition, value in ((0, "a"), (1, "b")):
            world.rows(DAY + hour * HOUR_MS, partition)
            world.rows(DAY + hour * HOUR_MS, partition, segment=f"c={value}")
    world.seal(10)
    world.fold()
    with store.read() as connection:
        assert stored_segments(connection, 1, "m") == {"c=a"}
        assert stored_segments(connection, 2, "m") == {"c=b"}
        found = window_state(connection, "m", DAY, DAY + HOUR_MS, "c=b")
    assert (found.state.rows, [o.partition for o in found.offsets]) == (20, [1])


def test_counts_under_other_cuts_and_of_arms_stay_apart_through_every_fold(store):
    world = World(store, contract())
    for hour in range(3):
        world.rows(DAY + hour * HOUR_MS, 0, arm="champion", traffic_revision=2)
        world.rows(DAY + hour * HOUR_MS, 1, arm="challenger", traffic_revision=2, version="2")
    world.writer.fit_cuts({"x": (world.rng.normal(size=2_000) + 9).tolist()}, ["a", "b"])
    for hour in range(3):
        world.rows(DAY + hour * HOUR_MS, 0, rows=30, arm="champion", traffic_revision=2)
    for hour in range(3, 50):
        world.rows(DAY + hour * HOUR_MS, 0)
    world.seal(50)
    window = world.hour(1)
    assert (window.state.rows, window.other_cuts_rows) == (70, 30)
    assert window.state.features["x"].rows == 40
    counts = arm_counts(store, "m", [2], None)
    assert {one.arm: one.rows for one in counts} == {"champion": 150, "challenger": 60}
    world.fold()
    assert world.hour(1) == window
    assert arm_counts(store, "m", [2], None) == counts
    with store.read() as connection:
        day = plan_rollup(connection, "m", Resolution.DAY, DAY + 2 * DAY_MS, 10_000)
    assert len({row.key.cuts_id for row in day.rows}) == 2
    world.fold(SOONER)
    assert arm_counts(store, "m", [2], None) == counts


def test_a_retired_model_that_comes_back_goes_on_where_it_was(store):
    world = World(store, contract())
    world.hours(0, 10)
    lease = acquire(store, "retention", "me", world.now_ms, 30_000)
    for _ in range(3):
        rollup.roll_up(store, lease, "m", None, DAY + 60 * HOUR_MS, SOON, 1_000)
    apply_contract(store, world.contract, "", "test", world.now_ms)
    world.hours(10, 2)
    assert len(world.verdicts()) == 12
