"""What becomes of a row because of its time: counted, too late, or from the future.

A row's class is a function of the earlier rows of its partition and model, its own event time and its
Kafka timestamp, never of a clock, so reading a partition again gives the same classes however its
records were cut into batches.

Notation (all int64 milliseconds)
    newest     greatest accepted event time so far; a row of the future is not accepted
    watermark  newest - out_of_order
    sealed     watermark - lateness: panes that end at or before it take no more rows
"""

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.contracts.model import Windows
from trimtab.windows.panes import Times, pane_starts

Mask = npt.NDArray[np.bool_]

NEVER_MS = -(2**62)
"""Before every event time: the newest time of a partition that has seen no row of a model."""


class TimeRules(Struct, frozen=True):
    """The lengths, in milliseconds, that decide over a row's time."""

    pane_ms: int
    lateness_ms: int
    out_of_order_ms: int
    future_ms: int
    idle_ms: int

    @classmethod
    def of(cls, windows: Windows) -> "TimeRules":
        """Read them from a contract's `[windows]`."""
        return cls(
            windows.pane_ms,
            windows.lateness_ms,
            windows.out_of_order_ms,
            windows.future_ms,
            windows.idle_ms,
        )


class Classified(Struct, frozen=True):
    """Rows of one batch by their time; each array has shape (n,)."""

    panes_ms: Times
    future: Mask
    too_late: Mask
    sealed_ms: Times
    """What the rows up to each, itself included, have sealed: panes that end at or before it."""
    newest_ms: int
    """Greatest accepted event time after the batch; NEVER_MS while there is none."""


def classify(rules: TimeRules, newest_ms: int, times_ms: Times, record_ms: Times) -> Classified:
    """Classify the rows of a batch, in the order of the partition.

    `newest_ms` is the greatest accepted event time before the batch, `record_ms` are the rows' Kafka
    timestamps. A row is of the future when time > record time + future; it is too late when the end of
    its pane is at or before the seal that the rows before it have set.
    """
    panes = pane_starts(times_ms, rules.pane_ms)
    future = is_future(rules, times_ms, record_ms)
    accepted = np.where(future, NEVER_MS, times_ms)
    # The maximum may include the row itself: a row's pane ends after the row, so no row seals its own.
    running = np.maximum.accumulate(np.concatenate(([newest_ms], accepted)))[1:]
    sealed = running - (rules.out_of_order_ms + rules.lateness_ms)
    too_late = ~future & (panes + rules.pane_ms <= sealed)
    newest_ms = int(running[-1]) if running.size else newest_ms
    return Classified(panes, future, too_late, sealed, newest_ms)


def is_future(rules: TimeRules, times_ms: Times, record_ms: Times) -> Mask:
    """Return which event times lie further beyond their Kafka timestamps than any skewed clock, shape (n,)."""
    future: Mask = times_ms > record_ms + rules.future_ms
    return future


def watermark_of(rules: TimeRules, newest_ms: int) -> int:
    """Return the watermark that a newest event time gives."""
    return newest_ms - rules.out_of_order_ms


def sealed_to(rules: TimeRules, newest_ms: int, before_ms: int = NEVER_MS) -> int:
    """Return the time up to which panes are sealed; it never goes back behind `before_ms`."""
    return max(before_ms, watermark_of(rules, newest_ms) - rules.lateness_ms)
