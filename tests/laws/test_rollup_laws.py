"""Roll-ups equal the direct count, whatever was split how and folded when; no verdict can tell."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Alarms, Contract, Feature, Prediction, Reference, Windows
from trimtab.detect.verdict import encode
from trimtab.events.types import Inference
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.ingest import Ingest
from trimtab.monitor.joiner import Joiner
from trimtab.source import Partition
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import ModelCuts
from trimtab.store import tables as t
from trimtab.store.engine import Store, open_store
from trimtab.store.models import active_cuts, apply_contract
from trimtab.store.verdicts import verdict_history
from trimtab.store.window_state import window_state
from trimtab.testing.log import MemoryLog, MemorySource
from trimtab.windows.rollup import (
    DAY_MS,
    HOUR_MS,
    FoldLimits,
    Judged,
    Kept,
    Origin,
    PartitionOrigin,
    fold_limits,
)

MINUTE = 60_000
T0 = 19_700 * DAY_MS
PANE_MS = 20 * MINUTE
SHORT_MS, LONG_MS = 30 * MINUTE, 30 * HOUR_MS
TOPIC = (Partition("in", 0), Partition("in", 1))

# --- pure -----------------------------------------------------------------------------------------

ORIGINS = st.builds(
    lambda starts, parts: Origin.merged(
        Origin((PartitionOrigin(pid, first, first + more, seq, generation),), tuple(sorted(starts)))
        for pid, first, more, seq, generation in parts
    ),
    st.sets(st.integers(-(10**6), 10**6).map(lambda n: n * 1_000), max_size=20),
    st.lists(
        st.tuples(
            st.integers(1, 4),
            st.integers(0, 10**9),
            st.integers(0, 10**6),
            st.integers(0, 10**6),
            st.integers(0, 5),
        ),
        max_size=6,
    ),
)


@given(ORIGINS, ORIGINS, ORIGINS)
def test_origins_merge_in_any_order_and_come_back_from_their_bytes(a, b, c):
    whole = Origin.merged([a, b, c])
    assert Origin.merged([c, Origin.merged([b, a]), a]) == whole
    assert Origin.merged([whole, Origin()]) == whole
    assert Origin.from_bytes(whole.to_bytes()) == whole
    assert Origin.from_bytes(whole.to_bytes()).to_bytes() == whole.to_bytes()
    ids = [p.partition_id for p in whole.partitions]
    assert ids == sorted(set(ids))
    assert list(whole.starts_ms) == sorted({*a.starts_ms, *b.starts_ms, *c.starts_ms})


TIMES = st.integers(0, 10**13)
AGES = st.integers(1, 10**11)


@given(TIMES, TIMES, st.none() | TIMES, AGES, AGES, AGES, AGES, st.integers(0, 10**10))
def test_no_window_loses_counts_that_a_label_or_a_row_may_still_change(
    newest, done, waiting, panes, hours, days, window, horizon
):
    kept = Kept(panes_ms=panes, hours_ms=hours, days_ms=days)
    judged = Judged(done_ms=done, waiting_ms=waiting, window_ms=window, label_horizon_ms=horizon)
    limits = fold_limits(kept, newest, judged)
    for limit, age, length in ((limits.panes_ms, panes, HOUR_MS), (limits.hours_ms, hours, DAY_MS)):
        assert limit <= min(newest, done) - age
        if window % length:
            assert limit <= min(newest, done) - horizon - 2 * window
            assert waiting is None or limit <= waiting
    unwatched = FoldLimits(panes_ms=newest - panes, hours_ms=newest - hours, days_ms=newest - days)
    assert fold_limits(kept, newest, None) == unwatched


# --- a stream, with and without folds -------------------------------------------------------------


def contract(lateness_ms: int) -> Contract:
    return Contract(
        name="m",
        task="binary",
        features={
            "x": Feature(kind="number", min=0, max=100),
            "c": Feature(kind="category", values=("a", "b")),
        },
        prediction=Prediction(classes=("yes", "no"), positive="yes"),
        windows=Windows(
            length="1h",
            pane="20 min",
            lateness=f"{lateness_ms // MINUTE} min",
            out_of_order="0s",
            min_rows=1,
            segments=("c",),
        ),
        alarms=Alarms(rules=("missing_rate(x) > 0.5 in 2 of 3", "psi(x) > 0.25 in 2 of 3")),
        reference=Reference(rows=1, windows=2),
    )


class Row:
    """One inference, and what the direct count needs of it."""

    def __init__(self, number: int, partition: int, time_ms: int, value: int) -> None:
        self.partition, self.time_ms = partition, time_ms
        self.x = None if value % 5 == 0 else float(value)
        self.c = "ab"[value % 2]
        self.answer = "yes" if value % 3 else "no"
        self.latency_ms = 1.0 + value
        self.version = "1" if value % 7 else "2"
        features: dict[str, object] = {"c": self.c} | ({} if self.x is None else {"x": self.x})
        self.event = Inference(
            id=f"id{number}",
            model="m",
            version=self.version,
            time=time_ms,
            features=features,
            prediction=self.answer,
            latency_ms=self.latency_ms,
        )

    def state(self, cuts: ModelCuts) -> PaneState:
        x = float("nan") if self.x is None else self.x
        return observe_pane(
            cuts,
            1,
            numeric={"x": Column([x], 0, (0.0, 100.0))},
            categories={"c": [self.c], "prediction": [self.answer]},
            statuses={"ok": 1},
            rules={},
            latency_ms=[self.latency_ms],
        )


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def monotonic(self) -> float:
        self.s += 1.0
        return self.s

    def now_ms(self) -> int:
        return T0 + round(self.s * 1_000)


class Sink:
    def publish(self, messages):
        return [None] * len(messages)

    def close(self) -> None:
        return None


class Monitor:
    """Ingest, evaluator and housekeeping over one log, driven by hand."""

    def __init__(self, url: str, retention: Retention | None) -> None:
        self.store = open_store(url)
        t.metadata.create_all(self.store.engine)
        self.log = MemoryLog()
        self.clock = Clock()
        self.joiner = Joiner(self.store, "one")
        self.evaluator = Evaluator(self.store, "one")
        self.keeper = None
        if retention is not None:
            relay = Relay(self.store, Sink(), "tt")
            self.keeper = Housekeeping(self.store, "one", relay, retention)
        self.keeper_ms = T0
        self.ingest: Ingest | None = None

    def begin(self, lateness_ms: int) -> None:
        """Put a contract in force, and let new owners take the partitions."""
        apply_contract(self.store, contract(lateness_ms), "", "test", T0)
        if self.ingest is not None:
            self.ingest.stop()
        self.ingest = Ingest(
            self.store,
            MemorySource(self.log, 7),
            {"in": "inference"},
            f"owner {lateness_ms}",
            now_ms=self.clock.now_ms,
            monotonic=self.clock.monotonic,
        )
        self.ingest.start()
        self.ingest.source.assign(*TOPIC)

    def read(self, rows: list[Row]) -> None:
        for row in rows:
            self.log.send(TOPIC[row.partition], row.event, T0 + 40 * DAY_MS)
        quiet = 0
        while quiet < 4:
            quiet = 0 if self.ingest.step(0) else quiet + 1

    def judge(self) -> None:
        self.clock.s += 70
        for _ in range(3):
            self.ingest.step(0)
        self.joiner.tick(self.clock.now_ms())
        self.evaluator.tick(self.clock.now_ms())

    def fold(self) -> None:
        if self.keeper is None:
            return
        for _ in range(8):
            self.keeper_ms += 61_000
            self.keeper.tick(self.keeper_ms)

    def verdicts(self) -> list[bytes]:
        with self.store.read() as connection:
            starts = sorted(
                set(
                    connection.scalars(
                        t.verdicts.select().with_only_columns(t.verdicts.c.window_start_ms)
                    )
                )
            )
        return [encode(row.verdict) for s in starts for row in verdict_history(self.store, "m", s)]

    def close(self) -> None:
        self.ingest.stop()
        self.joiner.stop()
        if self.keeper is not None:
            self.keeper.close()
        self.store.close()


def direct(rows: list[Row], short: int, cuts: ModelCuts, length_ms: int, segment: str) -> dict:
    """Count by a plain loop: rows in the order of their partition, under the lateness of their time."""
    newest = dict.fromkeys((0, 1), -(2**60))
    found: dict[int, PaneState] = {}
    for number, row in enumerate(rows):
        lateness_ms = SHORT_MS if number < short else LONG_MS
        newest[row.partition] = max(newest[row.partition], row.time_ms)
        pane_ms = row.time_ms // PANE_MS * PANE_MS
        if pane_ms + PANE_MS <= newest[row.partition] - lateness_ms:
            continue
        if segment not in ("", f"c={row.c}"):
            continue
        start_ms = row.time_ms // length_ms * length_ms
        state = row.state(cuts)
        found[start_ms] = state if start_ms not in found else found[start_ms].merge(state)
    return {start_ms: state.to_bytes() for start_ms, state in found.items()}


def stored(store: Store, starts: list[int], length_ms: int, segment: str) -> dict[int, bytes]:
    found = {}
    with store.read() as connection:
        for start_ms in starts:
            one = window_state(connection, "m", start_ms, start_ms + length_ms, segment)
            if one.state is not None:
                found[start_ms] = one.state.to_bytes()
    return found


def played(url: str, rows, cuts_at, acts, short, retention) -> Monitor:
    """Play the rows in parts; after each part, an act says whether to judge and whether to fold."""
    monitor = Monitor(url, retention)
    monitor.begin(SHORT_MS)
    bounds = sorted({0, short, len(rows), *cuts_at})
    for (first, last), (judges, folds) in zip(pairwise(bounds), acts, strict=False):
        if first == short:
            monitor.begin(LONG_MS)
        monitor.read(rows[first:last])
        if judges:
            monitor.judge()
        if folds:
            monitor.fold()
    for _ in range(6):
        monitor.judge()
    monitor.fold()
    return monitor


@st.composite
def streams(draw):
    """Rows that go forward in steps and sometimes back, over some days."""
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(0, 1),
                st.sampled_from((1, 5, 20, 60, 200)),
                st.sampled_from((0, 0, 0, 10, 25 * 60)),
                st.integers(0, 60),
            ),
            min_size=30,
            max_size=60,
        )
    )
    rows, at_ms = [], T0
    for number, (partition, forward, back, value) in enumerate(steps):
        at_ms += forward * MINUTE
        rows.append(Row(number, partition, max(T0, at_ms - back * MINUTE), value))
    cuts_at = draw(st.lists(st.integers(1, len(rows) - 1), max_size=6))
    short = draw(st.integers(5, len(rows) - 5))
    acts = draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=9, max_size=9))
    return rows, cuts_at, acts, short


HOURLY = Retention(
    panes_ms=2 * HOUR_MS,
    hours_ms=900 * DAY_MS,
    days_ms=1_000 * DAY_MS,
    verdict_detail_ms=900 * DAY_MS,
)
DAILY = Retention(
    panes_ms=2 * HOUR_MS,
    hours_ms=4 * HOUR_MS,
    days_ms=1_000 * DAY_MS,
    verdict_detail_ms=900 * DAY_MS,
)


# Shrinking a stream would take minutes, and a failing one says enough.
@settings(max_examples=6, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(streams())
def test_hours_and_days_equal_the_direct_count_and_no_verdict_differs(stream):
    rows, cuts_at, acts, short = stream
    with tempfile.TemporaryDirectory() as folder:
        plain, hourly, daily = (
            played(f"sqlite:///{Path(folder) / name}.db", rows, cuts_at, acts, short, retention)
            for name, retention in (("plain", None), ("hourly", HOURLY), ("daily", DAILY))
        )
        with plain.store.read() as connection:
            cuts = active_cuts(connection, "m")
        for length_ms in (HOUR_MS, DAY_MS):
            for segment in ("", "c=a", "c=b"):
                counted = direct(rows, short, cuts, length_ms, segment)
                starts = sorted({row.time_ms // length_ms * length_ms for row in rows})
                monitors = (plain, hourly) if length_ms == HOUR_MS else (plain, hourly, daily)
                for monitor in monitors:
                    assert stored(monitor.store, starts, length_ms, segment) == counted
        # Hours that became days early keep what was judged; those that are hours are judged anew.
        assert hourly.verdicts() == plain.verdicts()
        for monitor in (plain, hourly, daily):
            monitor.close()
