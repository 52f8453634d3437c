"""Whether the monitor is done with what was sent: read, joined and judged, or what is still under way."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, func, select

from trimtab.contracts.model import Contract
from trimtab.store.engine import Store
from trimtab.store.joiners import read_positions
from trimtab.store.label_runs import DUPLICATES_SHARD
from trimtab.store.ledger import read_ledger
from trimtab.store.tables import contracts, evaluations, joiners, label_runs, models, watermarks
from trimtab.store.verdicts import Progress, flushed_since, joined_since, progress_of
from trimtab.store.watermarks import watermark
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import Judged


def under_way(
    store: Store, model: str, ends: Mapping[tuple[str, int], int], now_ms: int
) -> list[str]:
    """Return what the monitor still has to do for `model`, as text; empty when it is done.

    `ends` are the offsets, by topic and partition, up to which the log is to be read.
    """
    with store.read() as connection:
        unread = _unread(connection, ends)
        if unread:
            return [f"{unread:,} messages to read"]
        waiting_to_join = unjoined(connection, model)
        if waiting_to_join:
            return [f"{waiting_to_join:,} rows and labels to join"]
        waiting = _unjudged(connection, model, now_ms)
    return [waiting] if waiting else []


def _unread(connection: Connection, ends: Mapping[tuple[str, int], int]) -> int:
    # A topic created again has a newer entry per partition.
    stands = {
        (entry.topic, entry.partition): entry.next_offset for entry in read_ledger(connection)
    }
    return sum(max(0, end - stands.get(place, 0)) for place, end in ends.items())


def unjoined(connection: Connection, model: str) -> int:
    """Return how many predictions and labels of a model no joiner has merged yet."""
    positions = {
        row.shard: read_positions(row.positions)
        for row in connection.execute(
            select(joiners.c.shard, joiners.c.positions).where(joiners.c.model == model)
        )
    }
    runs = label_runs.c
    newest = connection.execute(
        select(runs.shard, runs.partition_id, func.max(runs.seq))
        .where(runs.model == model, runs.shard != DUPLICATES_SHARD)
        .group_by(runs.shard, runs.partition_id)
    ).all()
    total = 0
    for shard, partition_id, seq in newest:
        merged = positions.get(shard, {}).get(partition_id, 0)
        if seq > merged:
            total += connection.scalar(
                select(func.sum(runs.rows)).where(
                    runs.model == model,
                    runs.shard == shard,
                    runs.partition_id == partition_id,
                    runs.seq > merged,
                )
            )
    return total


def unjoined_from_ms(connection: Connection, model: str) -> int | None:
    """Return the oldest event time among predictions and labels that no joiner has merged yet."""
    merged = {
        (row.shard, partition_id): seq
        for row in connection.execute(
            select(joiners.c.shard, joiners.c.positions).where(joiners.c.model == model)
        )
        for partition_id, seq in read_positions(row.positions).items()
    }
    runs = label_runs.c
    oldest = []
    for shard, partition_id, newest in connection.execute(
        select(runs.shard, runs.partition_id, func.max(runs.seq))
        .where(runs.model == model, runs.shard != DUPLICATES_SHARD)
        .group_by(runs.shard, runs.partition_id)
    ).all():
        seq = merged.get((shard, partition_id), 0)
        if newest > seq:
            oldest.append(
                connection.scalar(
                    select(func.min(runs.min_pane_ms)).where(
                        runs.model == model,
                        runs.shard == shard,
                        runs.partition_id == partition_id,
                        runs.seq > seq,
                    )
                )
            )
    return min((time for time in oldest if time is not None), default=None)


class Standing(Struct, frozen=True, kw_only=True):
    """Where the judging of a watched model stands."""

    evaluated_to_ms: int
    """Windows that end at or before this have been judged."""
    seen: dict[str, int]
    """By partition: the flush up to which the evaluator has looked at counts and gauges of panes."""
    judged: Judged
    """The same for what may be folded."""


def standing(connection: Connection, contract: Contract) -> Standing | None:
    """Return where the judging of a model stands; None before its first window."""
    progress = progress_of(connection, contract.name)
    if progress is None:
        return None
    window_ms = contract.windows.length_ms
    changed = _changed(connection, contract.name, progress)
    waiting = [*(start_of(start_ms, window_ms) for start_ms in changed), *progress.pending]
    unjoined_ms = unjoined_from_ms(connection, contract.name)
    done_ms = progress.evaluated_to_ms
    return Standing(
        evaluated_to_ms=progress.evaluated_to_ms,
        seen=progress.seen,
        judged=Judged(
            done_ms=done_ms if unjoined_ms is None else min(done_ms, unjoined_ms),
            waiting_ms=min(waiting, default=None),
            window_ms=window_ms,
            label_horizon_ms=contract.labels.horizon_ms or 0,
        ),
    )


def _changed(connection: Connection, model: str, progress: Progress) -> frozenset[int]:
    """Return starts of panes and windows that the evaluator has still to look at."""
    flushed = flushed_since(connection, model, progress.seen)
    joined = joined_since(connection, model, progress.joined)
    return flushed.pane_starts_ms | flushed.windows_ms | joined.pane_starts_ms


def judged_to_ms(connection: Connection, model: str) -> int | None:
    """Return up to where no window of the model waits for a verdict; None while none has one."""
    progress = progress_of(connection, model)
    if progress is None:
        return None
    changed = _changed(connection, model, progress)
    return min((progress.evaluated_to_ms, *changed, *progress.pending))


def _unjudged(connection: Connection, model: str, now_ms: int) -> str:
    body = connection.scalar(
        select(contracts.c.body)
        .join(models, models.c.name == contracts.c.model)
        .where(models.c.name == model, models.c.contract_revision == contracts.c.revision)
    )
    if body is None:
        return f"{model} has no contract, so its rows are ignored: trimtab model apply"
    length_ms = msgspec.json.decode(body, type=Contract).windows.length_ms
    mark = watermark(connection, model, now_ms)
    if mark.reason not in ("idle", "no_data"):
        return "waiting until nothing more comes"
    progress = progress_of(connection, model)
    if progress is None or mark.ms is None:
        return "" if mark.ms is None else "windows to judge"
    if progress.evaluated_to_ms + length_ms <= mark.ms:
        return f"{(mark.ms - progress.evaluated_to_ms) // length_ms:,} windows to judge"
    changed = _changed(connection, model, progress)
    # Gauges of a window that is open are looked at when it closes.
    again = [start_ms for start_ms in changed if start_ms < progress.evaluated_to_ms]
    if again or progress.pending:
        return f"{len(progress.pending) or len(again):,} windows to judge again (each at most once in its length, or 60 s)"
    return ""


class Stand(Struct, frozen=True):
    """What decides which of a model's stored states are old: while it stays, no other state becomes so."""

    newest_ms: int
    """The newest event time of its rows."""
    flushes: int
    """Sum of its last flush numbers: it grows with every flush that touches the model."""
    merges: int
    """Sum of its joiners' positions: it grows with every merge."""
    progress: str | None
    """The evaluator's memory of it, as stored."""


def stands(connection: Connection) -> dict[str, Stand]:
    """Return where every model stands that has rows, by model."""
    merged = (
        select(joiners.c.model, func.sum(joiners.c.position).label("merges"))
        .group_by(joiners.c.model)
        .subquery()
    )
    marked = (
        select(
            watermarks.c.model,
            func.max(watermarks.c.newest_ms).label("newest_ms"),
            func.sum(watermarks.c.flush_seq).label("flushes"),
        )
        .group_by(watermarks.c.model)
        .subquery()
    )
    found = connection.execute(
        select(
            marked.c.model,
            marked.c.newest_ms,
            marked.c.flushes,
            func.coalesce(merged.c.merges, 0).label("merges"),
            evaluations.c.state,
        )
        .outerjoin(merged, merged.c.model == marked.c.model)
        .outerjoin(evaluations, evaluations.c.model == marked.c.model)
        .order_by(marked.c.model)
    )
    return {
        row.model: Stand(row.newest_ms, int(row.flushes), int(row.merges), row.state)
        for row in found
    }
