"""Roll-ups: panes folded into hours and hours into days, and when that may be done.

A fold merges stored states and replaces them by their sum, so nothing that sums can tell the difference.
What is lost is resolution: which rows were in which pane. A pane belongs to the hour and the day (of UTC)
in which it starts. All times are milliseconds of event time since the epoch.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Self

import msgspec
from msgspec import Struct

from trimtab.windows.panes import start_of

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Resolution(StrEnum):
    """How finely a stored state is resolved in time."""

    PANE = "pane"
    HOUR = "hour"
    DAY = "day"

    @property
    def length_ms(self) -> int:
        """Length of an hour or a day. Raises ValueError for panes: contracts give them theirs."""
        if self is Resolution.PANE:
            raise ValueError("Panes have the length that their contract gives them.")
        return HOUR_MS if self is Resolution.HOUR else DAY_MS


# --- where the counts of a folded state come from -------------------------------------------------


class PartitionOrigin(Struct, frozen=True, array_like=True):
    """What one partition has brought: offsets [first, next), last flush, highest generation."""

    partition_id: int
    first_offset: int
    next_offset: int
    flush_seq: int
    generation: int


class Origin(Struct, frozen=True):
    """Where the counts of a folded state come from. Merging is commutative and idempotent.

    `partitions` are by id, one entry each; `starts_ms` are the starts of panes with rows, ascending.
    """

    partitions: tuple[PartitionOrigin, ...] = ()
    starts_ms: tuple[int, ...] = ()

    @classmethod
    def merged(cls, origins: Iterable[Self]) -> Self:
        """Return the origin of all; of none, the identity."""
        found: dict[int, PartitionOrigin] = {}
        starts: set[int] = set()
        for origin in origins:
            starts.update(origin.starts_ms)
            for one in origin.partitions:
                before = found.get(one.partition_id)
                found[one.partition_id] = one if before is None else _both(before, one)
        return cls(tuple(found[p] for p in sorted(found)), tuple(sorted(starts)))

    def to_bytes(self) -> bytes:
        """Encode canonically. Starts in equal steps take the room of one: [first, step, how many]."""
        return msgspec.msgpack.encode([self.partitions, _runs(self.starts_ms)])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode `to_bytes`. Raises msgspec.MsgspecError on anything else."""
        partitions, runs = msgspec.msgpack.decode(
            data, type=tuple[tuple[PartitionOrigin, ...], list[tuple[int, int, int]]]
        )
        starts = (first + step * i for first, step, count in runs for i in range(count))
        return cls(partitions, tuple(starts))


def _both(a: PartitionOrigin, b: PartitionOrigin) -> PartitionOrigin:
    return PartitionOrigin(
        a.partition_id,
        min(a.first_offset, b.first_offset),
        max(a.next_offset, b.next_offset),
        max(a.flush_seq, b.flush_seq),
        max(a.generation, b.generation),
    )


def _runs(starts_ms: Sequence[int]) -> list[tuple[int, int, int]]:
    runs: list[tuple[int, int, int]] = []
    for start in starts_ms:
        first, step, count = runs[-1] if runs else (start, 0, 0)
        if count == 1:
            runs[-1] = (first, start - first, 2)
        elif count > 1 and start == first + step * count:
            runs[-1] = (first, step, count + 1)
        else:
            runs.append((start, 0, 1))
    return runs


# --- when ----------------------------------------------------------------------------------------


class Kept(Struct, frozen=True, kw_only=True):
    """How long counts are kept at each resolution, in milliseconds of a model's event time."""

    panes_ms: int = 48 * HOUR_MS
    hours_ms: int = 30 * DAY_MS
    days_ms: int = 2 * 365 * DAY_MS


class Judged(Struct, frozen=True, kw_only=True):
    """Where the judging of a watched model stands, and what may still make it judge again.

    `done_ms` is the time before which every window was judged and every row and label joined;
    `waiting_ms` the start of the oldest window or pane that changed and waits for its revision, if any.
    """

    done_ms: int
    waiting_ms: int | None
    window_ms: int
    label_horizon_ms: int


class FoldLimits(Struct, frozen=True, kw_only=True):
    """Panes before the first time may become hours, hours before the second days; the rest may go."""

    panes_ms: int
    hours_ms: int
    days_ms: int


def fold_limits(kept: Kept, newest_ms: int, judged: Judged | None) -> FoldLimits:
    """Return what may be folded of a model; `judged` is None for one that is watched no more.

    A label or a late row makes a new revision of its window, which is read from the window's counts.
    Windows of whole hours are read from hours as well as from panes; any other needs its panes for as
    long as labels may come, and while it waits. The same holds for days.
    """
    base_ms = newest_ms if judged is None else min(newest_ms, judged.done_ms)

    def before(age_ms: int, length_ms: int) -> int:
        if judged is None or judged.window_ms % length_ms == 0:
            return base_ms - age_ms
        needed_ms = judged.label_horizon_ms + 2 * judged.window_ms
        limit_ms = base_ms - max(age_ms, needed_ms)
        return limit_ms if judged.waiting_ms is None else min(limit_ms, judged.waiting_ms)

    return FoldLimits(
        panes_ms=before(kept.panes_ms, HOUR_MS),
        hours_ms=before(kept.hours_ms, DAY_MS),
        days_ms=base_ms - kept.days_ms,
    )


def whole_before(limit_ms: int, resolution: Resolution) -> int:
    """Return the end of the last whole hour or day that ends at or before `limit_ms`."""
    return start_of(limit_ms, resolution.length_ms)
