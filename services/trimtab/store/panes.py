"""Panes as stored: written by the flush of their partition's owner, merged when they are read.

A pane's rows are spread over partitions, versions, arms, segments and generations, each with a state
of its own; any merge of them is a state. Times are milliseconds since the epoch, UTC.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, func, select

from trimtab.contracts.model import Contract
from trimtab.stats.aggregate import LatencyState, PaneState, ResourceState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.ledger import lost_between
from trimtab.store.models import active_cuts
from trimtab.store.tables import contracts, models, panes, partitions, resource_panes, watermarks
from trimtab.windows.lateness import TimeRules
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
    """Return how many generations of a pane this partition has stored."""
    newest = connection.scalar(
        select(func.max(panes.c.generation)).where(
            panes.c.model == model,
            panes.c.pane_start_ms == pane_ms,
            panes.c.partition_id == partition_id,
        )
    )
    return 0 if newest is None else int(newest) + 1


def stored_segments(connection: Connection, partition_id: int, model: str) -> set[str]:
    """Return the segments that this partition has stored for a model."""
    return set(
        connection.scalars(
            select(panes.c.segment)
            .distinct()
            .where(
                panes.c.model == model, panes.c.partition_id == partition_id, panes.c.segment != ""
            )
        )
    )


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
    """SHA-256 of all states in order: equal input, equal digest."""


def window_state(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str = ""
) -> WindowState:
    """Merge the panes with start_ms <= pane start < end_ms, under the model's active cuts.

    When no pane is under the active cuts, the cuts of the newest rows are taken.
    """
    found = connection.execute(
        select(panes, partitions.c.topic, partitions.c.partition)
        .join(partitions, partitions.c.id == panes.c.partition_id)
        .where(
            panes.c.model == model,
            panes.c.pane_start_ms >= start_ms,
            panes.c.pane_start_ms < end_ms,
            panes.c.segment == segment,
        )
        .order_by(*(panes.c[name] for name in _KEY))
    ).all()
    cuts_id = _cuts_to_read(connection, model, found)
    merged = _Merged()
    for row in found:
        merged.add(row, counts=row.cuts_id == cuts_id)
    return WindowState(
        start_ms=start_ms,
        end_ms=end_ms,
        cuts_id=cuts_id,
        state=merged.state,
        by_version=merged.by_version,
        offsets=tuple(merged.offsets[p] for p in sorted(merged.offsets)),
        panes=len(merged.starts),
        flushes=merged.flushes,
        other_cuts_rows=merged.other_rows,
        lost=lost_between(connection, start_ms, end_ms),
        digest=merged.digest.hexdigest(),
    )


def _cuts_to_read(connection: Connection, model: str, found: Sequence[Any]) -> str | None:
    active = active_cuts(connection, model)
    present = {row.cuts_id for row in found}
    if active is not None and (active.cuts_id in present or not present):
        return active.cuts_id
    newest = max(found, key=lambda row: (row.flush_seq, row.cuts_id), default=None)
    return None if newest is None else str(newest.cuts_id)


class _Merged:
    """Accumulates the rows of a window."""

    def __init__(self) -> None:
        self.state: PaneState | None = None
        self.by_version: dict[str, PaneState] = {}
        self.offsets: dict[int, OffsetRange] = {}
        self.flushes: dict[int, int] = {}
        self.starts: set[int] = set()
        self.other_rows = 0
        self.digest = hashlib.sha256()

    def add(self, row: Any, *, counts: bool) -> None:
        pid = row.partition_id
        self.digest.update(repr(tuple(getattr(row, name) for name in _KEY)).encode())
        self.digest.update(bytes(row.state))
        self.flushes[pid] = max(self.flushes.get(pid, 0), row.flush_seq)
        before = self.offsets.get(pid)
        first, after = row.first_offset, row.next_offset
        if before is not None:
            first, after = min(before.first_offset, first), max(before.next_offset, after)
        self.offsets[pid] = OffsetRange(pid, row.topic, row.partition, first, after)
        self.starts.add(row.pane_start_ms)
        if not counts:
            self.other_rows += row.rows
            return
        state = PaneState.from_bytes(row.state)
        self.state = state if self.state is None else self.state.merge(state)
        mine = self.by_version.get(row.version)
        self.by_version[row.version] = state if mine is None else mine.merge(state)


def pane_times(store: Store, model: str) -> list[int]:
    """Return the starts of all stored panes of a model, ascending."""
    with store.read() as connection:
        return list(
            connection.scalars(
                select(panes.c.pane_start_ms)
                .distinct()
                .where(panes.c.model == model)
                .order_by(panes.c.pane_start_ms)
            )
        )


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
    """Return the counts of each (revision, arm) over panes that start before `before_ms` (None: all)."""
    query = select(panes).where(
        panes.c.model == model,
        panes.c.traffic_revision.in_(list(revisions)),
        panes.c.segment == "",
        panes.c.arm != "",
    )
    if before_ms is not None:
        query = query.where(panes.c.pane_start_ms < before_ms)
    total: dict[tuple[int, str], ArmCounts] = {}
    with store.read() as connection:
        for row in connection.execute(query):
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


# --- watermarks -----------------------------------------------------------------------------------


class WatermarkRow(Struct, frozen=True):
    """Where one model stands in one partition."""

    model: str
    newest_ms: int
    last_row_record_ms: int
    last_row_seen_ms: int
    sealed_ms: int


def write_watermarks(
    connection: Connection, partition_id: int, rows: Iterable[WatermarkRow]
) -> None:
    """Store where models stand; inside the flush."""
    values = [{"partition_id": partition_id} | msgspec.structs.asdict(row) for row in rows]
    if not values:
        return
    statement = insert_for(connection, watermarks)
    changed = [name for name in WatermarkRow.__struct_fields__ if name != "model"]
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
    contract = msgspec.json.decode(body, type=Contract)
    return model_watermark(_progress(source, contract), TimeRules.of(contract.windows), now_ms)


def _progress(connection: Connection, contract: Contract) -> list[Progress]:
    """Where the partitions stand that may carry the model: of its topics, or of topics with rows."""
    found = connection.execute(
        select(
            partitions,
            watermarks.c.newest_ms,
            watermarks.c.last_row_seen_ms,
        )
        .join(
            watermarks,
            (watermarks.c.partition_id == partitions.c.id) & (watermarks.c.model == contract.name),
            isouter=True,
        )
        .where(partitions.c.consumer == "monitor")
        .order_by(partitions.c.id)
    ).all()
    # A topic created again has a newer row per partition; the old one brings nothing any more.
    current = {(row.topic, row.partition): row for row in found}
    topics = set(contract.source.topics) or {
        row.topic for row in current.values() if row.rows or row.newest_ms is not None
    }
    return [
        Progress(
            partition_id=row.id,
            newest_ms=row.newest_ms,
            last_row_seen_ms=row.last_row_seen_ms or 0,
            caught_up_ms=row.caught_up_ms,
            lagging=row.end_offset is None or row.next_offset < row.end_offset,
            owner_seen_ms=row.owner_seen_ms or 0,
            advanced_ms=row.updated_ms,
        )
        for row in current.values()
        if row.topic in topics or row.newest_ms is not None
    ]


# --- resources ------------------------------------------------------------------------------------


def write_resources(
    connection: Connection,
    partition_id: int,
    states: dict[tuple[str, int, str, str], ResourceState],
) -> None:
    """Merge gauges into the stored panes, by (model, pane start, version, instance); inside the flush."""
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
            select(table.state).where(*(table[name] == value for name, value in key.items()))
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
    total: dict[str, ResourceState] = {}
    for row in connection.execute(
        select(resource_panes.c.version, resource_panes.c.state)
        .where(
            resource_panes.c.model == model,
            resource_panes.c.pane_start_ms >= start_ms,
            resource_panes.c.pane_start_ms < end_ms,
        )
        .order_by(resource_panes.c.pane_start_ms, resource_panes.c.partition_id)
    ):
        state = ResourceState.from_bytes(row.state)
        total[row.version] = total[row.version].merge(state) if row.version in total else state
    return total
