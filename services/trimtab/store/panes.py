"""Panes as stored: written by the flush of their partition's owner, merged when they are read.

A pane's rows are spread over partitions, versions, arms, segments and generations, each with a state
of its own; any merge of them is a state. What `rollups` has folded is read with the rest: counts lie
in `panes` or in `rollups`, never in both. Times are milliseconds since the epoch, UTC.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, union

from trimtab.contracts.model import Contract
from trimtab.stats.aggregate import LatencyState, PaneState, ResourceState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.ledger import lost_between
from trimtab.store.models import active_cuts
from trimtab.store.tables import (
    contracts,
    folded_segments,
    models,
    panes,
    partitions,
    resource_panes,
    resource_rollups,
    rollups,
    watermarks,
)
from trimtab.windows.lateness import TimeRules
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import Origin, PartitionOrigin, Resolution
from trimtab.windows.watermark import Progress, Watermark, model_watermark


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


_KEY = (
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
        index_elements=list(_KEY), set_={name: statement.excluded[name] for name in changed}
    )
    values = [
        {
            **{name: getattr(row.key, name) for name in _KEY if name != "partition_id"},
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
    key = PaneKey(**{name: getattr(row, name) for name in _KEY if name != "partition_id"})
    return PaneRow(
        key,
        row.pane_length_ms,
        PaneState.from_bytes(row.state),
        row.sealed,
        row.first_offset,
        row.next_offset,
    )


# --- reading windows ------------------------------------------------------------------------------


class OffsetRange(Struct, frozen=True):
    """Offsets of one partition that a window's rows come from: [first, next)."""

    partition_id: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int


class WindowState(Struct, frozen=True, kw_only=True):
    """Everything counted about a window, over partitions, versions, arms and generations.

    `state` is None when nothing was counted. Rows under cuts that are no longer active are
    kept apart in `other_cuts_rows`. `flushes` is the input's version: the last flush per partition.
    """

    start_ms: int
    end_ms: int
    cuts_id: str | None
    state: PaneState | None
    by_version: dict[str, PaneState]
    offsets: tuple[OffsetRange, ...]
    panes: int
    """Panes with rows."""
    flushes: dict[int, int]
    other_cuts_rows: int
    lost: int
    """Offsets lost whose records may have belonged here."""
    digest: str
    """SHA-256 of what was counted, by version, arm, traffic revision and cuts: equal counts, equal
    digest, wherever they are stored."""
    coarser: Resolution | None = None
    """Set when rows of the window may have become part of an hour or day that reaches beyond it: they are
    not in `state` then, and nothing can tell them apart any more."""

    @property
    def rows(self) -> int:
        """Rows counted, under whatever cuts."""
        return self.other_cuts_rows + (self.state.rows if self.state else 0)


def window_state(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str = ""
) -> WindowState:
    """Merge the panes with start_ms <= pane start < end_ms, under the model's active cuts.

    Hours and days that lie in the window count like the panes they were made of. When no pane is under
    the active cuts, the cuts of the newest rows are taken.
    """
    found = [
        *_unfolded(connection, model, start_ms, end_ms, segment),
        *_folded(connection, model, start_ms, end_ms, segment),
    ]
    coarser = _coarser(connection, model, start_ms, end_ms)
    cuts_id = _cuts_to_read(connection, model, found)
    origin = Origin.merged(one.origin for one in found)
    states = _by_series(found)
    mine = {series: state for series, state in states.items() if series[3] == cuts_id}
    by_version: dict[str, PaneState] = {}
    whole: PaneState | None = None
    for (version, *_), state in mine.items():
        before = by_version.get(version)
        by_version[version] = state if before is None else before.merge(state)
    for state in by_version.values():
        whole = state if whole is None else whole.merge(state)
    return WindowState(
        start_ms=start_ms,
        end_ms=end_ms,
        cuts_id=cuts_id,
        state=whole,
        by_version=by_version,
        offsets=_offsets(connection, origin),
        panes=len(origin.starts_ms),
        flushes={p.partition_id: p.flush_seq for p in origin.partitions},
        other_cuts_rows=sum(s.rows for series, s in states.items() if series not in mine),
        lost=lost_between(connection, start_ms, end_ms),
        digest=_digest(states),
        coarser=coarser,
    )


_Series = tuple[str, str, int, str]
"""Version, arm, traffic revision, cuts."""


class _Counted(Struct, frozen=True):
    """One stored state, folded or not, with where it comes from."""

    series: _Series
    state: bytes
    origin: Origin


def _unfolded(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str
) -> Iterator[_Counted]:
    for row in connection.execute(
        select(panes)
        .where(
            panes.c.model == model,
            panes.c.pane_start_ms >= start_ms,
            panes.c.pane_start_ms < end_ms,
            panes.c.segment == segment,
        )
        .order_by(*(panes.c[name] for name in _KEY))
    ):
        yield _Counted(_series_of(row), row.state, origin_of(row))


def _folded(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str
) -> Iterator[_Counted]:
    """What was folded and lies in the window as a whole."""
    for row in connection.execute(
        select(rollups)
        .where(
            rollups.c.model == model,
            rollups.c.segment == segment,
            or_(*(_inside(rollups, r, start_ms, end_ms) for r in Resolution)),
        )
        .order_by(rollups.c.resolution, rollups.c.start_ms, rollups.c.version, rollups.c.arm)
    ):
        yield _Counted(_series_of(row), row.state, Origin.from_bytes(row.origin))


def _inside(table: Any, resolution: Resolution, start_ms: int, end_ms: int) -> ColumnElement[bool]:
    length_ms = 1 if resolution is Resolution.PANE else resolution.length_ms
    condition: ColumnElement[bool] = and_(
        table.c.resolution == resolution.value,
        table.c.start_ms >= start_ms,
        table.c.start_ms <= end_ms - length_ms,
    )
    return condition


def _coarser(connection: Connection, model: str, start_ms: int, end_ms: int) -> Resolution | None:
    """The coarsest roll-up that holds a part of the window and more than it."""
    for resolution in (Resolution.DAY, Resolution.HOUR):
        length_ms = resolution.length_ms
        edges = {start_of(start_ms, length_ms), start_of(end_ms - 1, length_ms)}
        beyond = [e for e in edges if e < start_ms or e + length_ms > end_ms]
        for table in (rollups, resource_rollups) if beyond else ():
            found = connection.scalar(
                select(table.c.start_ms)
                .where(
                    table.c.model == model,
                    table.c.resolution == resolution.value,
                    table.c.start_ms.in_(beyond),
                )
                .limit(1)
            )
            if found is not None:
                return resolution
    return None


def _series_of(row: Any) -> _Series:
    return (row.version, row.arm, row.traffic_revision, row.cuts_id)


def origin_of(row: Any) -> Origin:
    """Return where the counts of a row of `panes` come from."""
    one = PartitionOrigin(
        row.partition_id, row.first_offset, row.next_offset, row.flush_seq, row.generation
    )
    return Origin((one,), (row.pane_start_ms,))


def _by_series(found: Sequence[_Counted]) -> dict[_Series, PaneState]:
    states: dict[_Series, PaneState] = {}
    for one in found:
        state = PaneState.from_bytes(one.state)
        before = states.get(one.series)
        states[one.series] = state if before is None else before.merge(state)
    return dict(sorted(states.items()))


def _digest(states: Mapping[_Series, PaneState]) -> str:
    digest = hashlib.sha256()
    for series, state in states.items():
        digest.update(repr(series).encode())
        digest.update(state.to_bytes())
    return digest.hexdigest()


def _offsets(connection: Connection, origin: Origin) -> tuple[OffsetRange, ...]:
    ids = [p.partition_id for p in origin.partitions]
    places = {
        row.id: row
        for row in connection.execute(
            select(partitions.c.id, partitions.c.topic, partitions.c.partition).where(
                partitions.c.id.in_(ids)
            )
        )
    }
    return tuple(
        OffsetRange(
            p.partition_id,
            places[p.partition_id].topic,
            places[p.partition_id].partition,
            p.first_offset,
            p.next_offset,
        )
        for p in origin.partitions
    )


def _cuts_to_read(connection: Connection, model: str, found: Sequence[_Counted]) -> str | None:
    active = active_cuts(connection, model)
    present = {one.series[3] for one in found}
    if active is not None and (active.cuts_id in present or not present):
        return active.cuts_id
    newest = max(
        found,
        key=lambda one: (max(p.flush_seq for p in one.origin.partitions), one.series[3]),
        default=None,
    )
    return None if newest is None else newest.series[3]


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


class ArmCounts(Struct, frozen=True):
    """What an arm of a traffic revision has answered so far."""

    revision: int
    arm: str
    rows: int
    errors: int
    timeouts: int
    latency: LatencyState


def arm_counts(
    store: Store, model: str, revisions: Sequence[int], before_ms: int | None
) -> list[ArmCounts]:
    """Return the counts of each (revision, arm) over panes that start before `before_ms` (None: all).

    What was folded into hours or days counts with the start of its hour or day.
    """
    total: dict[tuple[int, str], ArmCounts] = {}
    with store.read() as connection:
        for row in _of_arms(connection, model, revisions, before_ms):
            state = PaneState.from_bytes(row.state)
            key = (row.traffic_revision, row.arm)
            before = total.get(key, ArmCounts(*key, 0, 0, 0, LatencyState()))
            total[key] = ArmCounts(
                *key,
                before.rows + state.rows,
                before.errors + state.statuses.get("error", 0),
                before.timeouts + state.statuses.get("timeout", 0),
                before.latency.merge(state.latency_ms),
            )
    return [total[key] for key in sorted(total)]


def _of_arms(
    connection: Connection, model: str, revisions: Sequence[int], before_ms: int | None
) -> Iterator[Any]:
    for table, start in ((panes, panes.c.pane_start_ms), (rollups, rollups.c.start_ms)):
        query: Select[Any] = select(table.c.traffic_revision, table.c.arm, table.c.state).where(
            table.c.model == model,
            table.c.traffic_revision.in_(list(revisions)),
            table.c.segment == "",
            table.c.arm != "",
        )
        if before_ms is not None:
            query = query.where(start < before_ms)
        yield from connection.execute(query)


# --- watermarks -----------------------------------------------------------------------------------


class WatermarkRow(Struct, frozen=True):
    """Where one model stands in one partition."""

    model: str
    newest_ms: int
    last_row_record_ms: int
    last_row_seen_ms: int
    sealed_ms: int


def write_watermarks(
    connection: Connection, partition_id: int, flush_seq: int, rows: Iterable[WatermarkRow]
) -> None:
    """Store where models stand, of every model that the flush touches; inside the flush."""
    place = {"partition_id": partition_id, "flush_seq": flush_seq}
    values = [place | msgspec.structs.asdict(row) for row in rows]
    if not values:
        return
    statement = insert_for(connection, watermarks)
    changed = ["flush_seq", *(name for name in WatermarkRow.__struct_fields__ if name != "model")]
    statement = statement.on_conflict_do_update(
        index_elements=["partition_id", "model"],
        set_={name: statement.excluded[name] for name in changed},
    )
    connection.execute(statement, sorted(values, key=lambda value: str(value["model"])))


def watermarks_of(connection: Connection, partition_id: int) -> list[WatermarkRow]:
    """Return where every model stands in a partition."""
    columns = [watermarks.c[name] for name in WatermarkRow.__struct_fields__]
    found = connection.execute(select(*columns).where(watermarks.c.partition_id == partition_id))
    return [WatermarkRow(*row) for row in found]


def watermark(source: Store | Connection, model: str, now_ms: int) -> Watermark:
    """Return the model's watermark: over its topics' current partitions, as `windows.watermark` defines."""
    if isinstance(source, Store):
        with source.read() as connection:
            return watermark(connection, model, now_ms)
    body = source.scalar(
        select(contracts.c.body)
        .join(models, models.c.name == contracts.c.model)
        .where(models.c.name == model, models.c.contract_revision == contracts.c.revision)
    )
    if body is None:
        return Watermark(None, "no_data")
    return watermark_of(source, msgspec.json.decode(body, type=Contract), now_ms)[0]


def watermark_of(
    connection: Connection, contract: Contract, now_ms: int
) -> "tuple[Watermark, list[MarkRow]]":
    """Return the watermark of a model by this contract, and what every partition has brought of it."""
    rows = mark_rows(connection, contract.name)
    by_partition = {row.partition_id: row for row in rows}
    mark = model_watermark(
        progress_of_model(partition_stands(connection), by_partition, contract.source.topics),
        TimeRules.of(contract.windows),
        now_ms,
    )
    return mark, rows


class MarkRow(Struct, frozen=True):
    """How far a partition has brought one model, as the watermark and what closes windows ask it."""

    partition_id: int
    newest_ms: int
    last_row_seen_ms: int
    last_row_record_ms: int


_MARK = [watermarks.c[name] for name in MarkRow.__struct_fields__]


class PartitionStand(Struct, frozen=True):
    """How far the monitor has read one partition."""

    partition_id: int
    topic: str
    has_rows: bool
    caught_up_ms: int | None
    lagging: bool
    owner_seen_ms: int
    advanced_ms: int


def partition_stands(connection: Connection) -> list[PartitionStand]:
    """Return how far the monitor is, of every partition as it is now, by id."""
    found = connection.execute(
        select(partitions).where(partitions.c.consumer == "monitor").order_by(partitions.c.id)
    )
    # A topic created again has a newer row per partition; the old one brings nothing any more.
    current = {(row.topic, row.partition): row for row in found}
    return [
        PartitionStand(
            partition_id=row.id,
            topic=row.topic,
            has_rows=bool(row.rows),
            caught_up_ms=row.caught_up_ms,
            lagging=row.end_offset is None or row.next_offset < row.end_offset,
            owner_seen_ms=row.owner_seen_ms or 0,
            advanced_ms=row.updated_ms,
        )
        for row in current.values()
    ]


def progress_of_model(
    stands: Sequence[PartitionStand], rows: Mapping[int, MarkRow], topics: Sequence[str]
) -> list[Progress]:
    """Return where the partitions stand that may carry a model: of its topics, or of topics with rows.

    `rows` are what the partitions have brought of the model, by partition id.
    """
    wanted = set(topics) or {s.topic for s in stands if s.has_rows or s.partition_id in rows}
    found = []
    for stand in stands:
        row = rows.get(stand.partition_id)
        if row is None and stand.topic not in wanted:
            continue
        found.append(
            Progress(
                partition_id=stand.partition_id,
                newest_ms=None if row is None else row.newest_ms,
                last_row_seen_ms=0 if row is None else row.last_row_seen_ms,
                caught_up_ms=stand.caught_up_ms,
                lagging=stand.lagging,
                owner_seen_ms=stand.owner_seen_ms,
                advanced_ms=stand.advanced_ms,
            )
        )
    return found


def mark_rows(connection: Connection, model: str) -> list[MarkRow]:
    """Return what every partition has brought of a model."""
    found = connection.execute(select(*_MARK).where(watermarks.c.model == model))
    return [MarkRow(*row) for row in found]


def last_flushes(connection: Connection) -> dict[int, int]:
    """Return the last flush of every partition of the monitor, also of topics that are no more."""
    found = connection.execute(
        select(partitions.c.id, partitions.c.flush_seq).where(partitions.c.consumer == "monitor")
    )
    return dict(found.tuples().all())


def marks_since(
    connection: Connection, partition_id: int, flush_seq: int
) -> list[tuple[str, MarkRow]]:
    """Return what later flushes of a partition have brought of each model that they touched."""
    return [
        (model, MarkRow(*values))
        for model, *values in connection.execute(
            select(watermarks.c.model, *_MARK).where(
                watermarks.c.partition_id == partition_id, watermarks.c.flush_seq > flush_seq
            )
        )
    ]


def newest_row(rows: Iterable[MarkRow]) -> MarkRow | None:
    """Return the row of the newest event time; of the lowest partition among equals."""
    return max(rows, key=lambda row: (row.newest_ms, -row.partition_id), default=None)


# --- resources ------------------------------------------------------------------------------------


def write_resources(
    connection: Connection,
    partition_id: int,
    states: dict[tuple[str, int, str, str], ResourceState],
) -> None:
    """Merge gauges into the stored panes, by (model, pane start, version, instance); inside the flush.

    Each row is locked before it is read: a fold that takes it away must not leave it here as well.
    """
    table = resource_panes.c
    for (model, pane_ms, version, instance), state in sorted(states.items()):
        key = {
            "model": model,
            "pane_start_ms": pane_ms,
            "version": version,
            "instance": instance,
            "partition_id": partition_id,
            "generation": 0,
        }
        stored = connection.scalar(
            select(table.state)
            .where(*(table[name] == value for name, value in key.items()))
            .with_for_update()
        )
        whole = state if stored is None else ResourceState.from_bytes(stored).merge(state)
        statement = insert_for(connection, resource_panes).values(state=whole.to_bytes(), **key)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=list(key), set_={"state": statement.excluded.state}
            )
        )


def window_resources(
    connection: Connection, model: str, start_ms: int, end_ms: int
) -> dict[str, ResourceState]:
    """Return the gauges of a window by version, over instances and partitions."""
    folded = select(resource_rollups.c.version, resource_rollups.c.state).where(
        resource_rollups.c.model == model,
        or_(
            *(
                _inside(resource_rollups, r, start_ms, end_ms)
                for r in (Resolution.HOUR, Resolution.DAY)
            )
        ),
    )
    unfolded = select(resource_panes.c.version, resource_panes.c.state).where(
        resource_panes.c.model == model,
        resource_panes.c.pane_start_ms >= start_ms,
        resource_panes.c.pane_start_ms < end_ms,
    )
    total: dict[str, ResourceState] = {}
    for query in (unfolded, folded):
        for row in connection.execute(query):
            state = ResourceState.from_bytes(row.state)
            total[row.version] = total[row.version].merge(state) if row.version in total else state
    return dict(sorted(total.items()))
