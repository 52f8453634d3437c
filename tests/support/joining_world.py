"""A model's joiner on a real store: flushes, ticks, expiry and takeovers as steps, for laws.

Beside it runs a bare index that never rebuilds and is never kept, to compare with.
"""

import itertools

import numpy as np
from hypothesis import strategies as st
from sqlalchemy import select

from trimtab.monitor import joiner
from trimtab.monitor.joiner import Joiner
from trimtab.monitor.joining import Joining
from trimtab.stats.performance import PerformanceState
from trimtab.store import ledger
from trimtab.store.entries import BEGINNING_MS
from trimtab.store.joiners import ask_expiry
from trimtab.store.label_runs import Group, LabelRun, PredictionRun, StoredRun, write_run
from trimtab.store.performance import PerformanceKey
from trimtab.store.tables import performance
from trimtab.windows.ids import id_hashes

GROUPS = (Group("1", "", 0, ("c=a",)), Group("2", "challenger", 3))
CLASSES = ("no", "yes")
IDS = [f"id{i}" for i in range(2)]

ROW = st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 1), st.integers(-1, 1))
LABEL = st.tuples(
    *(st.integers(0, 1), st.integers(0, 7), st.integers(0, 2), st.booleans(), st.integers(0, 1))
)
FLUSH = st.tuples(
    st.just("flush"), st.integers(0, 1), st.lists(ROW, max_size=3), st.lists(LABEL, max_size=3)
)
STEP = st.one_of(
    FLUSH,
    FLUSH,
    st.tuples(st.just("tick")),
    st.tuples(st.just("expire"), st.integers(0, 8)),
    st.tuples(st.just("take over")),
)
_model = itertools.count()


class World:
    """One model with two partitions; every run goes to SQL and, in the same order, to a bare index."""

    def __init__(self, store, batch_rows=joiner.BATCH_ROWS):
        self.store, self.model = store, f"m{next(_model)}"
        self.claims = [self.claim(number) for number in range(2)]
        self.seqs, self.seen = [0, 0], set()
        self.owners = itertools.count()
        self.index, self.waiting_runs = Joining(), []
        self.states, self.classes = {}, {}
        self.asked_ms = BEGINNING_MS
        self.batch_rows = batch_rows
        self.take_over()

    def claim(self, number):
        return ledger.claim(
            self.store,
            consumer="monitor",
            cluster_id="c",
            topic=self.model,
            topic_id="",
            partition=number,
            owner="laws",
            beginning_offset=0,
            now_ms=0,
        )

    def take_over(self):
        self.joiner = Joiner(self.store, f"joiner {next(self.owners)}", self.batch_rows)

    def flush(self, number, rows, labels):
        """One flush of a partition; the same id twice in a pane of it is a duplicate, as in the monitor."""
        fresh = []
        for row in rows:
            place = (number, row[0], row[1])
            if place not in self.seen:
                self.seen.add(place)
                fresh.append(row)
        claim = self.claims[number]
        step = ledger.Advance(
            from_offset=self.seqs[number],
            next_offset=self.seqs[number] + 1,
            messages=1,
            labels=len(labels),
        )
        runs = [predictions_of(fresh)] if fresh else []
        runs += [labels_of(labels)] if labels else []
        with self.store.write() as connection:
            seq = ledger.advance(connection, claim.partition_id, claim.epoch, step, 0)
            for run in runs:
                write_run(
                    connection,
                    partition_id=claim.partition_id,
                    model=self.model,
                    shard=0,
                    seq=seq,
                    next_offset=seq,
                    run=run,
                )
                self.waiting_runs.append(StoredRun(claim.partition_id, seq, run))
            key = ledger.ClassKey("label", self.model, "queued")
            ledger.add_classes(connection, claim.partition_id, {key: len(labels)})
        self.seqs[number] += 1

    def ask(self, before_s):
        self.asked_ms = max(self.asked_ms, before_s * 1_000)
        with self.store.write() as connection:
            ask_expiry(connection, self.model, before_s * 1_000)

    def tick(self):
        """Merge all there is; what was asked before the joiner had its row is asked again."""
        clock["now_ms"] += 60_000  # the hold of an owner before has run out
        self.one_tick()
        with self.store.write() as connection:
            ask_expiry(connection, self.model, self.asked_ms)
        self.one_tick()

    def drain(self):
        """Merge all there is, however many merges that takes; the bare index takes no part."""
        clock["now_ms"] += 60_000
        while self.joiner._tick(self.model, 0, clock["now_ms"]):
            pass

    def one_tick(self):
        self.joiner._tick(self.model, 0, clock["now_ms"])
        self.follow()
        (owned,) = self.joiner._owned.values()
        if owned.runs == 0:  # a checkpoint was made: what is old has gone with it
            before_ms = owned.claim.expired_to_ms
            self.count(self.index.expire(before_ms))
            self.states = {k: v for k, v in self.states.items() if k.pane_start_ms >= before_ms}
        assert len(owned.index) == len(self.index)

    def follow(self):
        """The same for the bare index, which never rebuilds and is never kept."""
        merge = self.index.merge(self.waiting_runs)
        self.waiting_runs = []
        self.count(merge.classes)
        for key, delta in merge.deltas.items():
            state, labelled, predicted = self.states.get(key, (PerformanceState(), 0, 0))
            self.states[key] = (
                state.merge(delta.state),
                labelled + delta.labelled_rows,
                predicted + delta.predicted_rows,
            )

    def count(self, classes):
        for key, number in classes.items():
            self.classes[key] = self.classes.get(key, 0) + number

    def stored(self):
        """Return (performance by key, partition ledgers) as they are stored."""
        with self.store.read() as connection:
            rows = connection.execute(
                select(performance).where(performance.c.model == self.model)
            ).all()
            entries = [
                entry for entry in ledger.read_ledger(connection) if entry.topic == self.model
            ]
        found = {
            PerformanceKey(
                **{name: getattr(row, name) for name in PerformanceKey.__struct_fields__}
            ): (PerformanceState.from_bytes(row.state), row.labelled_rows, row.predicted_rows)
            for row in rows
        }
        return {k: v for k, v in found.items() if v != (PerformanceState(), 0, 0)}, entries

    def check(self):
        found, entries = self.stored()
        assert found == {k: v for k, v in self.states.items() if v != (PerformanceState(), 0, 0)}
        placed = {
            (entry.partition_id, cls): number
            for entry in entries
            for cls, number in entry.placed_labels.items()
        }
        assert placed == {key: number for key, number in self.classes.items() if number}
        assert [problem for entry in entries for problem in entry.balance()] == []


clock = {"now_ms": 1_000_000}
"""One for all worlds: they share a store."""


def predictions_of(rows):
    ids, panes, groups, codes = zip(*rows, strict=True)
    return PredictionRun(
        id_hashes(IDS[i] for i in ids),
        np.array(panes, np.int64) * 1_000,
        np.array(groups, np.int32),
        np.array(codes, np.int32),
        GROUPS,
        CLASSES,
        np.array([(i * 40 + pane * 7 + group) % 101 - 1 for i, pane, group, _ in rows], np.int8),
    )


def labels_of(labels):
    ids, times, revisions, retracted, codes = zip(*labels, strict=True)
    return LabelRun(
        id_hashes(IDS[i] for i in ids),
        np.array(times, np.int64) * 1_000,
        np.array(revisions, np.int64),
        np.array(retracted, np.bool_),
        np.array(codes, np.int32),
        CLASSES,
    )
