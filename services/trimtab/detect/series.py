"""Which windows of a model's series are closed next, with gaps in the traffic kept bounded.

Windows are aligned to the epoch. Of a stretch without rows the first EMPTY_WINDOWS windows get a verdict
(`cannot_tell: no_data`); the rest of the stretch is passed over, so that a model that sleeps for a year
does not write a verdict every two seconds. Times are milliseconds since the epoch, UTC.
"""

from collections.abc import Collection

from msgspec import Struct

EMPTY_WINDOWS = 20
"""Chosen so that an hourly model's night is written in full, and the longest M-of-N rules in use see it."""


class Closing(Struct, frozen=True):
    """Windows to judge now, oldest first, and where the series then stands."""

    window_starts_ms: tuple[int, ...]
    evaluated_to_ms: int
    empty_windows: int
    """Windows without rows at the end of the series, passed-over ones not counted."""


def close_windows(
    from_ms: int,
    to_ms: int,
    length_ms: int,
    with_rows: Collection[int],
    empty_windows: int,
    limit: int,
) -> Closing:
    """Return the windows in [from_ms, to_ms) that end at or before `to_ms`, at most `limit` of them.

    `with_rows` are starts of windows that hold rows, `empty_windows` how many without rows the series
    ends with so far.
    """
    rows = sorted(start for start in with_rows if from_ms <= start <= to_ms - length_ms)
    last_ms = from_ms + max(0, (to_ms - from_ms) // length_ms) * length_ms
    chosen: list[int] = []
    at = from_ms
    for target in (*rows, None):
        stop = last_ms if target is None else target
        while at < stop and empty_windows < EMPTY_WINDOWS:
            if len(chosen) >= limit:
                return Closing(tuple(chosen), at, empty_windows)
            chosen.append(at)
            empty_windows += 1
            at += length_ms
        at = max(at, stop)
        if target is None:
            break
        if len(chosen) >= limit:
            return Closing(tuple(chosen), at, empty_windows)
        chosen.append(target)
        empty_windows = 0
        at = target + length_ms
    return Closing(tuple(chosen), at, empty_windows)


def coalesce_ms(length_ms: int) -> int:
    """Return the least time between two revisions of a window: its length, within 1 s and 60 s."""
    return min(60_000, max(1_000, length_ms))
