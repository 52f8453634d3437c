"""Panes as stored: written by the flush of their partition's owner, merged when they are read.

A pane's rows are spread over partitions, versions, arms, segments and generations, each with a state
of its own; any merge of them is a state (`window_state.py`). What `rollups` has folded is read with the
rest: counts lie in `panes` or in `rollups`, never in both. Times are milliseconds since the epoch, UTC.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, and_, func, or_, select, union

from trimtab.stats.aggregate import PaneState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import folded_segments, panes, rollups
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import Origin, PartitionOrigin, Resolution


class PaneKey(Struct, frozen=True):
    """Where a state belongs. `segment` is "" for all rows, else "column=value"."""

    model: str
    pane_start_ms: int
    version: str
    arm: str
    traffic_revision: int
    segment: str
    generation: int
    cuts_id: str


class PaneRow(Struct, frozen=True):
    """One stored state of one partition."""

    key: PaneKey
    pane_length_ms: int
    state: PaneState
    sealed: bool
    first_offset: int
    next_offset: int


PANE_KEY = (
    *("model", "pane_start_ms", "version", "arm", "traffic_revision", "segment"),
    *("partition_id", "generation", "cuts_id"),
)


def write_panes(
    connection: Connection, partition_id: int, flush_seq: int, rows: Sequence[PaneRow]
) -> None:
    """Store the whole state of each pane that a flush has touched."""
    if not rows:
        return
    statement = insert_for(connection, panes)
    changed = ("rows", "state", "sealed", "next_offset", "flush_seq")
    statement = statement.on_conflict_do_update(
        index_elements=list(PANE_KEY), set_={name: statement.excluded[name] for name in changed}
    )
    values = [
        {
            **{name: getattr(row.key, name) for name in PANE_KEY if name != "partition_id"},
            "partition_id": partition_id,
            "pane_length_ms": row.pane_length_ms,
            "rows": row.state.rows,
            "state": row.state.to_bytes(),
            "sealed": row.sealed,
            "first_offset": row.first_offset,
            "next_offset": row.next_offset,
            "flush_seq": flush_seq,
        }
        for row in sorted(rows, key=lambda r: msgspec.structs.astuple(r.key))
    ]
    connection.execute(statement, values)


def open_panes(connection: Connection, partition_id: int) -> list[PaneRow]:
    """Return the states of a partition that may still take rows."""
    found = connection.execute(
        select(panes).where(panes.c.partition_id == partition_id, panes.c.sealed.is_(False))
    )
    return [_pane_row(row) for row in found]


def generations(connection: Connection, partition_id: int, model: str, pane_ms: int) -> int:
    """Return a generation that this partition has never stored of a pane: above all that it has.

    What was folded counts, too, so that a late row never takes the place of counts that are elsewhere.
    """
    newest = connection.scalar(
        select(func.max(panes.c.generation)).where(
            panes.c.model == model,
            panes.c.pane_start_ms == pane_ms,
            panes.c.partition_id == partition_id,
        )
    )
    used = [] if newest is None else [int(newest)]
    folded = connection.scalars(
        select(rollups.c.origin).where(
            rollups.c.model == model,
            or_(
                *(
                    and_(
                        rollups.c.resolution == r.value, rollups.c.start_ms == _first_of(r, pane_ms)
                    )
                    for r in Resolution
                )
            ),
        )
    )
    for body in folded:
        origin = Origin.from_bytes(body)
        used += [p.generation for p in origin.partitions if p.partition_id == partition_id]
    return max(used, default=-1) + 1


def stored_segments(connection: Connection, partition_id: int, model: str) -> set[str]:
    """Return the segments that this partition has stored for a model, folded ones too."""
    found = union(
        select(panes.c.segment).where(
            panes.c.model == model, panes.c.partition_id == partition_id, panes.c.segment != ""
        ),
        select(folded_segments.c.segment).where(
            folded_segments.c.model == model, folded_segments.c.partition_id == partition_id
        ),
    )
    return set(connection.scalars(found))


def _first_of(resolution: Resolution, time_ms: int) -> int:
    """The start of the first roll-up of this resolution that may hold a pane from `time_ms` on."""
    if resolution is Resolution.PANE:
        return time_ms
    return start_of(time_ms, resolution.length_ms)


def _pane_row(row: Any) -> PaneRow:
    key = PaneKey(**{name: getattr(row, name) for name in PANE_KEY if name != "partition_id"})
    return PaneRow(
        key,
        row.pane_length_ms,
        PaneState.from_bytes(row.state),
        row.sealed,
        row.first_offset,
        row.next_offset,
    )


def origin_of(row: Any) -> Origin:
    """Return where the counts of a row of `panes` come from."""
    one = PartitionOrigin(
        row.partition_id, row.first_offset, row.next_offset, row.flush_seq, row.generation
    )
    return Origin((one,), (row.pane_start_ms,))


def starts_with_rows(
    connection: Connection, model: str, from_ms: int, to_ms: int, limit: int | None = None
) -> list[int]:
    """Return the starts in [from_ms, to_ms) of panes with rows, and of hours and days, ascending."""
    found = union(
        *(
            select(start.label("start_ms")).where(
                table.c.model == model, start >= from_ms, start < to_ms
            )
            for table, start in ((panes, panes.c.pane_start_ms), (rollups, rollups.c.start_ms))
        )
    ).subquery()
    return list(
        connection.scalars(select(found.c.start_ms).order_by(found.c.start_ms).limit(limit))
    )


def first_start_ms(connection: Connection, model: str) -> int | None:
    """Return the start of the oldest pane, hour or day that is stored of a model."""
    found = [
        connection.scalar(select(func.min(start)).where(table.c.model == model))
        for table, start in ((panes, panes.c.pane_start_ms), (rollups, rollups.c.start_ms))
    ]
    return min((start for start in found if start is not None), default=None)


def pane_times(store: Store, model: str) -> list[int]:
    """Return the starts of all stored panes of a model, ascending; folded ones by their hour or day."""
    with store.read() as connection:
        return starts_with_rows(connection, model, -(2**62), 2**62)
