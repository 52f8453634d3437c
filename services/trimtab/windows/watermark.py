"""The watermark of a model: up to where its event time is complete, as far as anyone can know.

It is the minimum over the partitions that may still bring older rows. A partition stops counting only
when its current owner has read it to its end and nothing came for the idle time; one without an owner,
or one that lags, holds the watermark, past a limit as `stalled`. When all are idle the watermark moves
to the end of the last pane with rows. Times are milliseconds since the epoch, UTC.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from trimtab.windows.lateness import TimeRules, watermark_of
from trimtab.windows.panes import end_of

OWNER_SILENT_MS = 15_000
"""An owner that has not been seen for this long may be gone."""
STALLED_MS = 120_000
"""A partition that holds the watermark without any progress for this long is named as stalled."""


class Progress(Struct, frozen=True):
    """How far one partition is, for one model."""

    partition_id: int
    newest_ms: int | None
    """Newest event time of the model here; None while the partition has brought none."""
    last_row_seen_ms: int
    """When its owner last met a row of the model (0: never)."""
    caught_up_ms: int | None
    """When its owner last saw the end of the log; None while it has not."""
    lagging: bool
    """Records known to exist were not yet read."""
    owner_seen_ms: int
    advanced_ms: int
    """When its offset last moved, or its owner claimed it."""


WatermarkReason = Literal["open", "idle", "no_data", "catching_up", "stalled"]


class Watermark(Struct, frozen=True):
    """Where a model's event time stands. `ms` is None while nothing is known to be complete.

    With reason `stalled`, windows that end in (`ms`, `beyond_ms`] would be complete but for the
    partitions in `held_by`: they cannot be told.
    """

    ms: int | None
    reason: WatermarkReason
    beyond_ms: int | None = None
    held_by: tuple[int, ...] = ()


def model_watermark(
    partitions: Sequence[Progress],
    rules: TimeRules,
    now_ms: int,
    stalled_after_ms: int = STALLED_MS,
) -> Watermark:
    """Return the watermark of a model over the partitions that may carry it."""
    seen = [p for p in partitions if p.newest_ms is not None]
    if not seen:
        return Watermark(None, "no_data")
    holding = [p for p in partitions if not _passed(p, rules, now_ms)]
    last_pane_end = max(end_of(p.newest_ms, rules.pane_ms) for p in seen if p.newest_ms is not None)
    if not holding:
        return Watermark(last_pane_end, "idle")
    stalled = tuple(p.partition_id for p in holding if _stalled(p, now_ms, stalled_after_ms))
    unknown = [p for p in holding if p.newest_ms is None]
    at = None if unknown else _lowest(holding, rules)
    if stalled:
        moving = [p for p in holding if p.partition_id not in stalled]
        beyond = last_pane_end
        if any(p.newest_ms is None for p in moving):
            return Watermark(at, "catching_up")
        if moving:
            beyond = _lowest(moving, rules)
        return Watermark(at, "stalled", beyond, stalled)
    return Watermark(at, "catching_up" if unknown else "open")


def _lowest(partitions: Sequence[Progress], rules: TimeRules) -> int:
    return min(watermark_of(rules, p.newest_ms) for p in partitions if p.newest_ms is not None)


def _owned(p: Progress, now_ms: int) -> bool:
    return now_ms - p.owner_seen_ms <= OWNER_SILENT_MS


def _passed(p: Progress, rules: TimeRules, now_ms: int) -> bool:
    """Whether the partition no longer holds the watermark back."""
    if not _owned(p, now_ms) or p.lagging or p.caught_up_ms is None:
        return False
    if p.newest_ms is None:
        return True  # read to its end, and it has none of the model's rows
    return p.caught_up_ms - p.last_row_seen_ms >= rules.idle_ms


def _stalled(p: Progress, now_ms: int, after_ms: int) -> bool:
    """Whether a holding partition makes no progress: nobody owns it, or its owner is stuck."""
    if not _owned(p, now_ms):
        return now_ms - p.owner_seen_ms > after_ms
    return p.lagging and now_ms - p.advanced_ms > after_ms
