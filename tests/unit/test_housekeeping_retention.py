"""Retention goes by a model's event time, in bounded steps."""

from __future__ import annotations

import numpy as np
from sqlalchemy import func, select

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Contract, Feature, Labels, Windows
from trimtab.monitor import housekeeping
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.joiner import Joiner
from trimtab.store import verdicts
from trimtab.store.engine import open_store
from trimtab.store.joiners import ask_expiry, claim_joiner
from trimtab.store.kept import next_expiry
from trimtab.store.label_runs import DUPLICATES_SHARD, LabelRun, write_run
from trimtab.store.tables import (
    deliveries,
    joiners,
    metadata,
    outbox,
    panes,
    partitions,
    rollups,
    row_samples,
)
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import HOUR_MS

START = 600_000_000_000  # 1989: the wall clock must not matter
MINUTE = 60_000
DAY = 6_944 * 24 * HOUR_MS


class Sink:
    def publish(self, messages):
        return [None] * len(messages)

    def close(self) -> None:
        return None


def count(store, table) -> int:
    with store.read() as connection:
        return connection.scalar(select(func.count()).select_from(table))


def by_resolution(store) -> dict[str, int]:
    with store.read() as connection:
        return {
            row.resolution: int(row.rows)
            for row in connection.execute(
                select(rollups.c.resolution, func.sum(rollups.c.rows).label("rows")).group_by(
                    rollups.c.resolution
                )
            )
        }


def twenty_hours(store_url):
    """A store with rows in each half hour of twenty hours of a model: (store, writer, now in ms)."""
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="30 min", pane="30 min", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    for number in range(40):
        writer.rows(DAY + number * 30 * MINUTE, {"x": [1.0] * 10})
    writer.passed(DAY + 20 * HOUR_MS)
    return store, writer, now_ms


def test_what_joined_after_it_was_to_go_is_kept_until_a_verdict_has_counted_it(store_url):
    """Labels that lag far behind in event time, as in a fast replay: the ledger says joined, so a verdict must."""
    store, writer, now_ms = twenty_hours(store_url)
    evaluator = Evaluator(store, "one")
    evaluator.tick(now_ms)
    writer.labels(DAY + HOUR_MS, [("a", "a")] * 4 + [("a", "b")] * 6, predicted_rows=10)
    asked_ms = DAY + 20 * HOUR_MS
    with store.write() as connection:
        ask_expiry(connection, "m", asked_ms)
    claim = claim_joiner(store, "m", 0, "test", now_ms, 0)

    def expiry():
        with store.read() as connection:
            return next_expiry(connection, claim)

    assert expiry() == DAY + HOUR_MS
    evaluator.tick(now_ms + 120_000)
    (verdict,) = [
        row.verdict
        for row in verdicts.verdicts_between(store, "m", DAY + HOUR_MS, DAY + HOUR_MS + 1)
    ]
    assert sum(v["labelled_rows"] for v in verdict.figures["performance"].values()) == 10
    assert expiry() == asked_ms
    store.close()


def test_old_panes_become_hours_and_days_by_event_time_and_old_detail_goes(store_url, monkeypatch):
    monkeypatch.setattr(housekeeping, "ROWS_PER_TICK", 10)
    store, writer, now_ms = twenty_hours(store_url)
    writer.seal(DAY + 20 * HOUR_MS)
    evaluator = Evaluator(store, "one")
    assert evaluator.tick(now_ms) == 40
    assert evaluator.tick(now_ms + 100_000) == 0

    keep = Retention(
        panes_ms=4 * HOUR_MS,
        hours_ms=10 * HOUR_MS,
        days_ms=100 * HOUR_MS,
        verdict_detail_ms=19 * HOUR_MS,
        outbox_ms=1_000,
    )
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), keep)
    # Deliveries; ten panes folded; those of four hours, which are surely whole, again; one verdict thinned.
    assert keeper.tick(now_ms) == 40 + 10 + 8 + 1
    assert (count(store, panes), by_resolution(store)) == (30, {"hour": 80, "pane": 20})
    for step in range(1, 12):
        keeper.tick(now_ms + 5_000 + step)
    # The day is not over: none of its hours can go yet.
    assert by_resolution(store) == {"pane": 80, "hour": 320}
    assert count(store, panes) == count(store, outbox) == count(store, deliveries) == 0

    writer.rows(DAY + 50 * HOUR_MS, {"x": [1.0] * 10})
    writer.passed(DAY + 51 * HOUR_MS)
    writer.seal(DAY + 51 * HOUR_MS)
    for step in range(1, 4):
        evaluator.tick(now_ms + step * 200_000)
    for step in range(1, 20):
        keeper.tick(now_ms + 800_000 + step)
    assert by_resolution(store) == {"day": 400, "pane": 10}
    kept = verdicts.verdicts_between(store, "m", 0, DAY + 20 * HOUR_MS)
    assert len(kept) == 40
    assert "features" not in kept[0].verdict.figures
    assert kept[0].verdict.figures["rows"] == 10

    writer.rows(DAY + 150 * HOUR_MS, {"x": [1.0] * 10})
    writer.passed(DAY + 151 * HOUR_MS)
    for step in range(1, 20):
        evaluator.tick(now_ms + step * 2_000_000)
    for step in range(1, 20):
        keeper.tick(now_ms + 100_000_000 + step)
    assert by_resolution(store) == {"day": 10}
    assert len(verdicts.verdicts_between(store, "m", 0, DAY + 20 * HOUR_MS)) == 40
    keeper.close()
    store.close()


def test_what_waits_for_a_verdict_or_for_labels_keeps_its_panes_whatever_its_age(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        labels=Labels(arrive="within 4 h"),
        windows=Windows(length="30 min", pane="30 min", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    for number in range(40):
        writer.rows(DAY + number * 30 * MINUTE, {"x": [1.0] * 10})
    writer.passed(DAY + 20 * HOUR_MS)
    writer.seal(DAY + 20 * HOUR_MS)
    keep = Retention(panes_ms=HOUR_MS)
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), keep)
    keeper.tick(now_ms)
    assert (count(store, panes), count(store, rollups)) == (40, 0)  # nothing has been judged yet

    evaluator = Evaluator(store, "one")
    assert evaluator.tick(now_ms) == 40
    for step in range(1, 5):
        keeper.tick(now_ms + step * 100_000)
    # Labels may come for 4 h, and two windows more.
    assert by_resolution(store) == {"hour": 300, "pane": 100}

    # A label that comes too late still finds its panes while it waits.
    late_ms = DAY + 15 * HOUR_MS
    writer.labels(late_ms, {("yes", "no"): 9}, predicted_rows=10)
    writer.passed(DAY + 30 * HOUR_MS)
    assert evaluator.tick(now_ms + 1_000) == 20  # nothing came; the revision waits for its minute
    for step in range(5, 9):
        keeper.tick(now_ms + step * 100_000)
    assert by_resolution(store) == {"hour": 300, "pane": 100}
    assert evaluator.tick(now_ms + 2_000_000) == 1
    assert len(verdicts.verdict_history(store, "m", late_ms)) == 2
    for step in range(9, 12):
        keeper.tick(now_ms + step * 100_000)
    assert by_resolution(store) == {"hour": 400}
    keeper.close()
    store.close()


def test_what_is_old_goes_while_newer_labels_wait_for_the_joiner(store_url):
    store, _, now_ms = twenty_hours(store_url)
    assert Evaluator(store, "one").tick(now_ms) == 40
    hours = [DAY + number * HOUR_MS for number in range(20)]
    with store.write() as connection:
        partition_id = connection.scalar(select(partitions.c.id))
        for start_ms in hours:
            body = {"rows": 0, "body": b"", "partition_id": partition_id}
            connection.execute(
                row_samples.insert().values(model="m", sample_start_ms=start_ms, **body)
            )

    def append(seq, shard, time_ms):
        label = LabelRun(*(np.array([n]) for n in (7, time_ms, 0)), np.array([False]), np.zeros(1))
        with store.write() as connection:
            connection.execute(partitions.update().values(flush_seq=seq))
            write_run(
                connection,
                partition_id=partition_id,
                model="m",
                shard=shard,
                seq=seq,
                next_offset=1,
                run=label,
            )

    def left():
        with store.read() as connection:
            return sorted(connection.scalars(select(row_samples.c.sample_start_ms)))

    keep = Retention(samples_ms=5 * HOUR_MS, labels_ms=8 * HOUR_MS)
    keeper = Housekeeping(store, "one", Relay(store, Sink(), "tt"), keep)
    append(1_001, DUPLICATES_SHARD, DAY)  # it waits for nobody
    append(1_002, 0, DAY + 12 * HOUR_MS)
    claim_joiner(store, "m", 0, "somebody", now_ms, 0)
    keeper.tick(now_ms)
    # As old as if the waiting label were the newest: nobody has joined it yet.
    assert left() == [start_ms for start_ms in hours if start_ms >= DAY + 7 * HOUR_MS]
    assert asked_to_expire(store) == DAY + 4 * HOUR_MS
    append(1_003, 0, DAY + 19 * HOUR_MS)
    drain_joiner(store, now_ms + 60_000)
    append(1_004, 0, DAY + 18 * HOUR_MS)
    keeper.tick(now_ms + 100_000)
    assert left() == [start_ms for start_ms in hours if start_ms >= DAY + 13 * HOUR_MS]
    assert asked_to_expire(store) == DAY + 10 * HOUR_MS
    drain_joiner(store, now_ms + 200_000)
    keeper.tick(now_ms + 300_000)
    assert left() == [start_ms for start_ms in hours if start_ms >= DAY + 15 * HOUR_MS]
    keeper.close()
    store.close()


def asked_to_expire(store) -> int:
    with store.read() as connection:
        return connection.scalar(select(joiners.c.expire_to_ms))


def drain_joiner(store, now_ms) -> None:
    joiner = Joiner(store, "joiner")
    while joiner.tick(now_ms):
        pass
    joiner.stop()


def test_a_late_label_does_not_unsay_a_window_whose_counts_are_gone(store_url):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
    )
    now_ms = 1_700_000_000_000
    writer = SeriesWriter(store, contract, now_ms)
    writer.fit_cuts({"x": [float(i) for i in range(50)]})
    writer.rows(START, {"x": [1.0] * 10})
    writer.passed(START + 2_000)
    evaluator = Evaluator(store, "one")
    assert evaluator.tick(now_ms) == 1
    with store.write() as connection:
        connection.execute(panes.delete())
    writer.labels(START, {("yes", "yes"): 9, ("yes", "no"): 1}, predicted_rows=10)
    assert evaluator.tick(now_ms + 100_000) == 0
    (only,) = verdicts.verdict_history(store, "m", START)
    assert only.verdict.figures["rows"] == 10
    store.close()
