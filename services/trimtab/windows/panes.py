"""Panes: event time cut into intervals of equal length, aligned to the epoch.

Times are int64 milliseconds since the epoch, UTC. A pane is named by its start and holds the rows with
start <= time < start + length; times before 1970 round down, too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]


def pane_starts(times_ms: Times, pane_ms: int) -> Times:
    """Return the start of each row's pane, shape (n,). Raises ValueError unless pane_ms > 0."""
    if pane_ms <= 0:
        raise ValueError(f"A pane of {pane_ms} ms holds no time.")
    starts: Any = np.floor_divide(times_ms, pane_ms) * pane_ms
    return np.asarray(starts, dtype=np.int64)


def start_of(time_ms: int, length_ms: int) -> int:
    """Return the start of the pane or window of `length_ms` that holds `time_ms`."""
    return time_ms // length_ms * length_ms


def end_of(time_ms: int, length_ms: int) -> int:
    """Return the (excluded) end of the pane or window of `length_ms` that holds `time_ms`."""
    return start_of(time_ms, length_ms) + length_ms


def split_by(keys: npt.NDArray[np.integer]) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield each distinct key with the indices of its rows, ascending; O(n log n) for any number of keys."""
    if keys.size and bool((keys == keys[0]).all()):  # one pane, one group: the common case
        yield int(keys[0]), np.arange(keys.size)
        return
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order])) + 1
    if order.size:
        for index in np.split(order, bounds):
            yield int(keys[index[0]]), index
