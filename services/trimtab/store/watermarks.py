"""Watermarks as stored, and how far the monitor has read each partition."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from trimtab.contracts.model import Contract
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import contracts, models, partitions, watermarks
from trimtab.windows.lateness import TimeRules
from trimtab.windows.watermark import Progress, Watermark, model_watermark


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
