"""Folds: sealed panes into one row over partitions and generations, those into hours, hours into days.

A fold deletes rows and adds their sum in one transaction, which checks the lease of the only process that
folds. It is planned in a snapshot, where merging holds nobody up, and done in a short transaction that is
refused when the rows planned for are not exactly those there. That is safe because they cannot change:

- a sealed row of `panes` is written by nobody any more; a later row begins a new generation;
- only rows that the evaluator has seen are folded, and `flushed_since` looks at what flushes write, so a fold
  is no change to it, and a late row is one;
- `rollups` is written by folds only.

Gauges are the exception: a flush may still add to a row of `resource_panes`, so these are read and folded
under their locks. Each step is bounded by about `limit` rows, but never splits a pane, hour or day.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Delete,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
)

from trimtab.errors import ConflictError
from trimtab.stats.aggregate import PaneState, ResourceState
from trimtab.store.dialect import in_code_order, insert_for
from trimtab.store.panes import origin_of
from trimtab.store.tables import (
    folded_segments,
    panes,
    partitions,
    resource_panes,
    resource_rollups,
    rollups,
    watermarks,
)
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import Origin, Resolution, whole_before

_FINER = {Resolution.HOUR: Resolution.PANE, Resolution.DAY: Resolution.HOUR}


class RollupKey(Struct, frozen=True, order=True):
    """Where a folded state belongs."""

    model: str
    resolution: str
    start_ms: int
    version: str
    arm: str
    traffic_revision: int
    segment: str
    cuts_id: str


class Folded(Struct, frozen=True):
    """One row of `rollups`."""

    key: RollupKey
    state: PaneState
    origin: Origin


class Fold(Struct, frozen=True):
    """A fold that is ready to be done: what goes, what takes its place."""

    removed: int
    """Rows that go; the fold is refused when it is not exactly so many."""
    deletes: tuple[Delete, ...]
    rows: tuple[Folded, ...]
    """What the rows of these keys are afterwards, with what they held before."""
    segments: frozenset[tuple[int, str, str]] = frozenset()
    """(partition id, model, segment) of the rows that go: their partition still has to know them."""
    more: bool = False
    """Whether the limit was reached, so that more may be there to fold at once."""


# --- planning -------------------------------------------------------------------------------------


def plan_panes(
    connection: Connection, model: str, seen: Mapping[str, int] | None, before_ms: int, limit: int
) -> Fold | None:
    """Fold sealed panes before `before_ms` over partitions and generations; None when there are none.

    `seen` says up to which flush of each partition (by its id) the evaluator has looked at the model's
    counts and gauges; None for a model that nobody watches.
    """
    if seen is None:
        current = connection.execute(select(partitions.c.id, partitions.c.flush_seq))
        seen = {str(row.id): row.flush_seq for row in current}
    ready = (panes.c.model == model) & panes.c.sealed & (panes.c.pane_start_ms < before_ms)
    oldest = connection.execute(
        select(panes.c.pane_start_ms, panes.c.partition_id, panes.c.flush_seq)
        .where(ready)
        .order_by(panes.c.pane_start_ms)
        .limit(limit)
    ).all()
    starts = [row.pane_start_ms for row in oldest if _was_seen(row, seen)]
    if not starts:
        return None
    span = ready & panes.c.pane_start_ms.between(starts[0], starts[-1])
    found = [row for row in connection.execute(select(panes).where(span)) if _was_seen(row, seen)]
    added = [
        Folded(_key_of(row, Resolution.PANE, row.pane_start_ms), _state(row), origin_of(row))
        for row in found
    ]
    return Fold(
        len(found),
        tuple(
            delete(panes).where(
                span, panes.c.partition_id == pid, panes.c.flush_seq <= seen[str(pid)]
            )
            for pid in sorted({row.partition_id for row in found})
        ),
        _with_stored(connection, added),
        frozenset((row.partition_id, model, row.segment) for row in found if row.segment),
        more=len(oldest) == limit,
    )


def _was_seen(row: Any, seen: Mapping[str, int]) -> bool:
    return bool(row.flush_seq <= seen.get(str(row.partition_id), -1))


def plan_rollup(
    connection: Connection, model: str, resolution: Resolution, before_ms: int, limit: int
) -> Fold | None:
    """Fold panes into hours, or hours into days, where these end at or before `before_ms`."""
    finer = _FINER[resolution]
    ready = (
        (rollups.c.model == model)
        & (rollups.c.resolution == finer.value)
        & (rollups.c.start_ms < whole_before(before_ms, resolution))
    )
    starts = connection.scalars(
        select(rollups.c.start_ms).where(ready).order_by(rollups.c.start_ms).limit(limit)
    ).all()
    if not starts:
        return None
    first_ms, end_ms = _whole_steps(starts, resolution.length_ms, limit)
    span = ready & (rollups.c.start_ms >= first_ms) & (rollups.c.start_ms < end_ms)
    found = connection.execute(select(rollups).where(span)).all()
    added = [
        Folded(
            _key_of(row, resolution, start_of(row.start_ms, resolution.length_ms)),
            _state(row),
            Origin.from_bytes(row.origin),
        )
        for row in found
    ]
    return Fold(
        len(found),
        (delete(rollups).where(span),),
        _with_stored(connection, added),
        more=len(starts) == limit,
    )


def _whole_steps(starts: Sequence[int], length_ms: int, limit: int) -> tuple[int, int]:
    """The first start, and the end of the last hour (day) of which `starts` holds everything."""
    last_ms = start_of(starts[-1], length_ms)
    first_ms = start_of(starts[0], length_ms)
    if len(starts) == limit and last_ms > first_ms:
        return first_ms, last_ms
    return first_ms, last_ms + length_ms


def _key_of(row: Any, resolution: Resolution, start_ms: int) -> RollupKey:
    return RollupKey(
        row.model,
        resolution.value,
        start_ms,
        row.version,
        row.arm,
        row.traffic_revision,
        row.segment,
        row.cuts_id,
    )


def _state(row: Any) -> PaneState:
    return PaneState.from_bytes(row.state)


def _with_stored(connection: Connection, added: Iterable[Folded]) -> tuple[Folded, ...]:
    """Merge by key, with what is stored under these keys already."""
    by_key: dict[RollupKey, list[Folded]] = defaultdict(list)
    for one in added:
        by_key[one.key].append(one)
    starts = sorted({(key.resolution, key.start_ms) for key in by_key})
    model = next(iter(by_key)).model
    for row in connection.execute(
        select(rollups).where(
            rollups.c.model == model,
            rollups.c.resolution == starts[0][0],
            rollups.c.start_ms.between(starts[0][1], starts[-1][1]),
        )
    ):
        key = _key_of(row, Resolution(row.resolution), row.start_ms)
        if key in by_key:
            by_key[key].append(Folded(key, _state(row), Origin.from_bytes(row.origin)))
    return tuple(_merged(key, found) for key, found in sorted(by_key.items()))


def _merged(key: RollupKey, found: Sequence[Folded]) -> Folded:
    state = found[0].state
    for one in found[1:]:
        state = state.merge(one.state)
    return Folded(key, state, Origin.merged(one.origin for one in found))


# --- doing ----------------------------------------------------------------------------------------


def apply_fold(connection: Connection, fold: Fold) -> int:
    """Do a planned fold; return how many rows went. The caller's transaction has checked the lease.

    Raises ConflictError when other rows are there than it was planned for; nothing is kept then.
    """
    gone = sum(connection.execute(statement).rowcount for statement in fold.deletes)
    if gone != fold.removed:
        raise ConflictError(
            f"A fold was planned for {fold.removed} rows and found {gone}: it is planned again."
        )
    if fold.segments:
        names = ("partition_id", "model", "segment")
        connection.execute(
            insert_for(connection, folded_segments).on_conflict_do_nothing(),
            [dict(zip(names, one, strict=True)) for one in sorted(fold.segments)],
        )
    statement = insert_for(connection, rollups)
    changed = ("rows", "state", "origin")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(RollupKey.__struct_fields__),
            set_={name: statement.excluded[name] for name in changed},
        ),
        [
            {
                **msgspec.structs.asdict(row.key),
                "rows": row.state.rows,
                "state": row.state.to_bytes(),
                "origin": row.origin.to_bytes(),
            }
            for row in fold.rows
        ],
    )
    return fold.removed


def fold_gauge_panes(
    connection: Connection, model: str, seen: Mapping[str, int] | None, before_ms: int, limit: int
) -> int:
    """Fold gauges from panes into hours, over instances and partitions; return how many rows went.

    `seen` is that of `plan_panes`: gauges that the evaluator has not looked at stay.
    """
    c = resource_panes.c
    mine = c.model == model
    if seen is not None:
        mine &= c.partition_id.in_([int(partition_id) for partition_id in seen])

    def is_seen(row: Any) -> bool:
        return seen is None or _was_seen(row, seen)

    return _fold_gauges(
        connection, model, Resolution.HOUR, c.pane_start_ms, mine, before_ms, limit, is_seen
    )


def fold_gauge_hours(connection: Connection, model: str, before_ms: int, limit: int) -> int:
    """Fold gauges from hours into days; return how many rows went."""
    c = resource_rollups.c
    mine = (c.model == model) & (c.resolution == Resolution.HOUR.value)
    return _fold_gauges(
        connection, model, Resolution.DAY, c.start_ms, mine, before_ms, limit, lambda _row: True
    )


def _fold_gauges(
    connection: Connection,
    model: str,
    resolution: Resolution,
    start: Column[Any],
    mine: ColumnElement[bool],
    before_ms: int,
    limit: int,
    may_fold: Callable[[Any], bool],
) -> int:
    table: Table = start.table
    ready = mine & (start < whole_before(before_ms, resolution))
    starts = connection.scalars(select(start).where(ready).order_by(start).limit(limit)).all()
    if not starts:
        return 0
    first_ms, end_ms = _whole_steps(starts, resolution.length_ms, limit)
    span = ready & (start >= first_ms) & (start < end_ms)
    key = list(table.primary_key.columns)
    locked = connection.execute(
        # In the order in which a flush locks them.
        select(table, start.label("at_ms"))
        .where(span)
        .order_by(*in_code_order(connection, key))
        .with_for_update()
    ).all()
    found = [row for row in locked if may_fold(row)]
    if not found:
        return 0
    total: dict[tuple[int, str], ResourceState] = {}
    for row in found:
        place = (start_of(row.at_ms, resolution.length_ms), row.version)
        state = ResourceState.from_bytes(row.state)
        total[place] = total[place].merge(state) if place in total else state
    # Exactly the rows that were read: another may have come in between.
    connection.execute(
        delete(table).where(*(column == bindparam(f"this_{column.name}") for column in key)),
        [{f"this_{column.name}": getattr(row, column.name) for column in key} for row in found],
    )
    _add_resources(connection, model, resolution, total)
    return len(found)


def _add_resources(
    connection: Connection,
    model: str,
    resolution: Resolution,
    total: Mapping[tuple[int, str], ResourceState],
) -> None:
    for (start_ms, version), state in sorted(total.items()):
        place = {
            "model": model,
            "resolution": resolution.value,
            "start_ms": start_ms,
            "version": version,
        }
        same = [resource_rollups.c[name] == value for name, value in place.items()]
        stored = connection.scalar(select(resource_rollups.c.state).where(*same))
        whole = state if stored is None else ResourceState.from_bytes(stored).merge(state)
        connection.execute(delete(resource_rollups).where(*same))
        connection.execute(insert(resource_rollups).values(**place, state=whole.to_bytes()))


# --- forgetting -----------------------------------------------------------------------------------


def forget_counts(connection: Connection, model: str, before_ms: int, limit: int) -> int:
    """Delete what is older than days are kept, whatever its resolution; return how many rows went."""
    days_before_ms = whole_before(before_ms, Resolution.DAY)
    return sum(
        _forget(
            connection, table, start, (table.c.model == model) & (start < days_before_ms), limit
        )
        for table, start in (
            (rollups, rollups.c.start_ms),
            (resource_rollups, resource_rollups.c.start_ms),
            (panes, panes.c.pane_start_ms),
            (resource_panes, resource_panes.c.pane_start_ms),
        )
    )


def forget_stray_gauges(connection: Connection, kept_ms: int, limit: int) -> int:
    """Delete old gauges of models that no row has ever come of; return how many went.

    Old is what is `kept_ms` older than the model's newest gauge: it has no other time.
    """
    c = resource_panes.c
    newest = connection.execute(
        select(c.model, func.max(c.pane_start_ms))
        .where(c.model.not_in(select(watermarks.c.model)))
        .group_by(c.model)
    ).all()
    return sum(
        _forget(
            connection,
            resource_panes,
            c.pane_start_ms,
            (c.model == model) & (c.pane_start_ms < newest_ms - kept_ms),
            limit,
        )
        for model, newest_ms in newest
    )


def _forget(
    connection: Connection, table: Table, start: Any, old: ColumnElement[bool], limit: int
) -> int:
    times = connection.scalars(select(start).where(old).order_by(start).limit(limit)).all()
    if not times:
        return 0
    return int(connection.execute(delete(table).where(old, start <= times[-1])).rowcount)


# --- reading --------------------------------------------------------------------------------------


def newest_starts(
    connection: Connection,
    model: str,
    resolution: Resolution,
    from_ms: int,
    to_ms: int,
    limit: int,
) -> list[int]:
    """Return the starts of the newest hours (days) in [from_ms, to_ms) that hold rows, newest first.

    Only what is stored at this resolution or finer is found.
    """
    finer = [Resolution.PANE.value, Resolution.HOUR.value, Resolution.DAY.value]
    finer = finer[: finer.index(resolution.value) + 1]
    found: list[int] = []
    while len(found) < limit:
        newest = [
            connection.scalar(
                select(panes.c.pane_start_ms)
                .where(
                    panes.c.model == model,
                    panes.c.pane_start_ms >= from_ms,
                    panes.c.pane_start_ms < to_ms,
                )
                .order_by(panes.c.pane_start_ms.desc())
                .limit(1)
            ),
            *(
                connection.scalar(
                    select(rollups.c.start_ms)
                    .where(
                        rollups.c.model == model,
                        rollups.c.resolution == one,
                        rollups.c.start_ms >= from_ms,
                        rollups.c.start_ms < to_ms,
                    )
                    .order_by(rollups.c.start_ms.desc())
                    .limit(1)
                )
                for one in finer
            ),
        ]
        times = [time for time in newest if time is not None]
        if not times:
            break
        to_ms = start_of(max(times), resolution.length_ms)
        found.append(to_ms)
    return found
