"""The ledger: where each topic partition stands, who owns it, and what became of each row and label.

A partition is keyed by consumer, cluster, topic and topic id, so a topic created again starts a
ledger of its own. `claim` raises the epoch; every later write of the owner is fenced by it. Offsets are
Kafka's; times are milliseconds since the epoch, UTC.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, Table, and_, func, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from trimtab.errors import ConflictError
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import label_classes, loss_ranges, losses, partitions, row_classes


class Claim(Struct, frozen=True, kw_only=True):
    """What an owner knows about its partition right after it took it."""

    partition_id: int
    topic: str
    partition: int
    epoch: int
    first_offset: int
    next_offset: int
    flush_seq: int
    record_ms: int | None
    caught_up_ms: int | None = None
    """When an owner before had last seen the end of the log; None where that is not known."""


class Advance(Struct, frozen=True, kw_only=True):
    """How one flush moves a partition's ledger."""

    from_offset: int
    next_offset: int
    messages: int = 0
    lost: int = 0
    rows: int = 0
    labels: int = 0
    resources: int = 0
    record_ms: int | None = None
    end_offset: int | None = None
    caught_up_ms: int | None = None


class ClassKey(Struct, frozen=True):
    """What a row, label or resource became. `model` is "" where it could not be read."""

    unit: str
    """ "row", "label" or "resource"."""
    model: str
    cls: str
    reason: str = ""


def claim(
    store: Store,
    *,
    consumer: str,
    cluster_id: str,
    topic: str,
    topic_id: str,
    partition: int,
    owner: str,
    beginning_offset: int,
    now_ms: int,
    again: bool = False,
) -> Claim:
    """Take a partition: raise its epoch, then return its state. A new one starts at `beginning_offset`.

    `again` is of an owner that could count nothing since its last claim: when one was seen stays as it is.
    The epoch is raised before anything is read, so no earlier owner can write what this one misses.
    """
    with store.write() as connection:
        connection.execute(
            insert_for(connection, partitions)
            .values(
                consumer=consumer,
                cluster_id=cluster_id,
                topic=topic,
                topic_id=topic_id,
                partition=partition,
                epoch=0,
                first_offset=beginning_offset,
                next_offset=beginning_offset,
                flush_seq=0,
                updated_ms=now_ms,
            )
            .on_conflict_do_nothing()
        )
        mine = and_(
            partitions.c.consumer == consumer,
            partitions.c.cluster_id == cluster_id,
            partitions.c.topic == topic,
            partitions.c.topic_id == topic_id,
            partitions.c.partition == partition,
        )
        caught_up_ms = connection.scalar(
            select(partitions.c.caught_up_ms).where(mine).with_for_update()
        )
        row = connection.execute(
            update(partitions)
            .where(mine)
            .values(
                epoch=partitions.c.epoch + 1,
                owner=owner,
                caught_up_ms=None,
                **({} if again else {"owner_seen_ms": now_ms, "updated_ms": now_ms}),
            )
            .returning(partitions)
        ).one()
    return Claim(
        partition_id=row.id,
        topic=topic,
        partition=partition,
        epoch=row.epoch,
        first_offset=row.first_offset,
        next_offset=row.next_offset,
        flush_seq=row.flush_seq,
        record_ms=row.record_ms,
        caught_up_ms=caught_up_ms,
    )


def advance(
    connection: Connection, partition_id: int, epoch: int, step: Advance, now_ms: int
) -> int:
    """Move a partition's ledger; return the new `flush_seq`. The first statement of every flush.

    Offsets passed that brought neither a message nor a loss are gaps (control records, aborted
    transactions, compaction). Raises ConflictError unless this owner and this offset are current.
    """
    columns = partitions.c
    passed = step.next_offset - step.from_offset
    values: dict[str, object] = {
        "next_offset": step.next_offset,
        "flush_seq": columns.flush_seq + 1,
        "messages": columns.messages + step.messages,
        "gaps": columns.gaps + (passed - step.messages - step.lost),
        "lost": columns.lost + step.lost,
        "rows": columns.rows + step.rows,
        "labels": columns.labels + step.labels,
        "resources": columns.resources + step.resources,
        "owner_seen_ms": now_ms,
        "updated_ms": now_ms,
    }
    values |= {
        name: value
        for name, value in (
            ("record_ms", step.record_ms),
            ("end_offset", step.end_offset),
            ("caught_up_ms", step.caught_up_ms),
        )
        if value is not None
    }
    row = connection.execute(
        update(partitions)
        .where(
            columns.id == partition_id,
            columns.epoch == epoch,
            columns.next_offset == step.from_offset,
        )
        .values(**values)
        .returning(columns.flush_seq)
    ).one_or_none()
    if row is None:
        raise ConflictError(
            f"Partition {partition_id} has another owner or another offset; what was read is dropped "
            "and read again by whoever owns it."
        )
    return int(row.flush_seq)


class Sight(Struct, frozen=True):
    """What an owner sees of the log without flushing."""

    partition_id: int
    epoch: int
    end_offset: int | None
    caught_up: bool


def seen(store: Store, sights: Iterable[Sight], now_ms: int) -> list[int]:
    """Record that owners live and what they see; return the partitions that are no longer theirs."""
    gone = []
    with store.write() as connection:
        for sight in sights:
            values: dict[str, object] = {"owner_seen_ms": now_ms}
            if sight.end_offset is not None:
                values["end_offset"] = sight.end_offset
            if sight.caught_up:
                values["caught_up_ms"] = now_ms
            done = connection.execute(
                update(partitions)
                .where(partitions.c.id == sight.partition_id, partitions.c.epoch == sight.epoch)
                .values(**values)
            )
            if not done.rowcount:
                gone.append(sight.partition_id)
    return gone


def add_classes(connection: Connection, partition_id: int, counts: Mapping[ClassKey, int]) -> None:
    """Add (signed) counts to the classes of a partition."""
    for key, count in sorted(counts.items(), key=lambda item: repr(item[0])):
        if not count:
            continue
        statement = insert_for(connection, row_classes).values(
            {
                "partition_id": partition_id,
                "unit": key.unit,
                "model": key.model,
                "class": key.cls,
                "reason": key.reason,
                "count": count,
            }
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["partition_id", "unit", "model", "class", "reason"],
                set_={"count": row_classes.c.count + count},
            )
        )


# --- losses ---------------------------------------------------------------------------------------


def add_loss(
    connection: Connection,
    partition_id: int,
    from_offset: int,
    to_offset: int,
    from_ms: int | None,
    now_ms: int,
    flush_seq: int,
) -> None:
    """Record lost offsets [from, to); `from_ms` is the Kafka timestamp of the last record before.

    Where none was read it is when the end of the log was last seen.
    """
    connection.execute(
        insert_for(connection, losses)
        .values(
            partition_id=partition_id,
            from_offset=from_offset,
            to_offset=to_offset,
            from_ms=from_ms,
            to_ms=None,
            found_ms=now_ms,
            flush_seq=flush_seq,
        )
        .on_conflict_do_nothing()
    )


def close_losses(connection: Connection, partition_id: int, record_ms: int, flush_seq: int) -> None:
    """Bound the open losses of a partition by the Kafka timestamp of the first record after them."""
    connection.execute(
        update(losses)
        .where(losses.c.partition_id == partition_id, losses.c.to_ms.is_(None))
        .values(to_ms=record_ms, flush_seq=flush_seq)
    )


def add_loss_ranges(
    connection: Connection,
    partition_id: int,
    from_offset: int,
    sealed_ms: Mapping[str, int],
    flush_seq: int,
) -> None:
    """Keep from which event time on rows of each model may have been lost: from what it had sealed there."""
    values = [
        {
            "partition_id": partition_id,
            "from_offset": from_offset,
            "model": model,
            "from_ms": ms,
            "flush_seq": flush_seq,
        }
        for model, ms in sorted(sealed_ms.items())
    ]
    if values:
        connection.execute(insert_for(connection, loss_ranges).on_conflict_do_nothing(), values)


def models_with_open_losses(connection: Connection, partition_id: int) -> set[str]:
    """Return the models of which no row has come since something was lost in this partition."""
    found = connection.scalars(
        select(loss_ranges.c.model)
        .where(loss_ranges.c.partition_id == partition_id, loss_ranges.c.to_ms.is_(None))
        .distinct()
    )
    return set(found)


def close_loss_ranges(
    connection: Connection, partition_id: int, newest_ms: Mapping[str, int], flush_seq: int
) -> None:
    """Bound what was lost of these models by the newest event time that the next rows of them have brought."""
    for model, to_ms in sorted(newest_ms.items()):
        connection.execute(
            update(loss_ranges)
            .where(
                loss_ranges.c.partition_id == partition_id,
                loss_ranges.c.model == model,
                loss_ranges.c.to_ms.is_(None),
            )
            .values(to_ms=to_ms, flush_seq=flush_seq)
        )


def lost_between(connection: Connection, model: str, from_ms: int, to_ms: int) -> int:
    """Return the offsets lost whose records may be rows of the model in [from_ms, to_ms).

    By their Kafka timestamps, which those of live traffic are near to; and by the event times that the
    model had in that partition before and after, which tell of a replay of the past. Where no row of it has
    come since, by when the loss was found: of a model that left the partition, later windows lost nothing.
    """
    ranges = loss_ranges.c
    in_kafka_time = (losses.c.from_ms.is_(None) | (losses.c.from_ms < to_ms)) & (
        _kafka_to_ms() >= from_ms
    )
    of_model = (
        select(ranges.model)
        .where(
            ranges.partition_id == losses.c.partition_id,
            ranges.from_offset == losses.c.from_offset,
            ranges.model == model,
            ranges.from_ms < to_ms,
            func.coalesce(ranges.to_ms, losses.c.found_ms) >= from_ms,
        )
        .exists()
    )
    row = connection.execute(
        select(func.coalesce(func.sum(losses.c.to_offset - losses.c.from_offset), 0))
        .join(partitions, partitions.c.id == losses.c.partition_id)
        .where(partitions.c.consumer == "monitor", in_kafka_time | of_model)
    ).scalar_one()
    return int(row)


def _kafka_to_ms() -> ColumnElement[int]:
    return func.coalesce(losses.c.to_ms, losses.c.found_ms)


class LossSpan(NamedTuple):
    """Event times of a model that a new or newly bounded loss may concern, or may have concerned before."""

    partition_id: int
    flush_seq: int
    from_ms: int
    to_ms: int


def losses_since(connection: Connection, model: str, seen: Mapping[str, int]) -> list[LossSpan]:
    """Return what losses have come, or were bounded, after the positions `seen` (partition id to flush).

    A loss reaches up to when it was found, until the first record after it tells how far.
    """
    spans = []
    for table in (losses, loss_ranges):
        c = table.c
        query = select(c.partition_id, c.flush_seq, c.from_ms, c.to_ms, losses.c.found_ms).where(
            _later(table, seen)
        )
        if table is loss_ranges:
            query = query.join(losses).where(c.model == model)
        for row in connection.execute(query):
            to_ms = row.found_ms if row.to_ms is None else max(row.found_ms, row.to_ms)
            spans.append(LossSpan(row.partition_id, row.flush_seq, row.from_ms or 0, to_ms))
    return spans


def _later(table: Table, seen: Mapping[str, int]) -> ColumnElement[bool]:
    """Rows that a flush after these positions has changed; of partitions that are not named, all."""
    c = table.c
    return or_(
        c.partition_id.not_in([int(key) for key in seen]),
        *(and_(c.partition_id == int(key), c.flush_seq > seq) for key, seq in seen.items()),
    )


def has_losses_since(connection: Connection, partition_id: int, flush_seq: int) -> bool:
    """Whether a later flush of a partition has found or bounded a loss."""
    return any(
        connection.scalar(
            select(table.c.partition_id)
            .where(table.c.partition_id == partition_id, table.c.flush_seq > flush_seq)
            .limit(1)
        )
        is not None
        for table in (losses, loss_ranges)
    )


# --- reading --------------------------------------------------------------------------------------


class PartitionLedger(Struct, frozen=True, kw_only=True):
    """One partition's ledger. Class counts are by (unit, class, reason), summed over models."""

    partition_id: int
    consumer: str
    cluster_id: str
    topic: str
    topic_id: str
    partition: int
    epoch: int
    owner: str | None
    first_offset: int
    next_offset: int
    end_offset: int | None
    messages: int
    gaps: int
    lost: int
    rows: int
    labels: int
    resources: int
    classes: dict[tuple[str, str, str], int]
    queued_labels: int
    """Labels in runs, for the joiner."""
    placed_labels: dict[str, int]
    """What the joiner made of them, by class; `waiting` is the rest."""
    updated_ms: int

    @property
    def lag(self) -> int | None:
        """Records known to exist that are not yet flushed."""
        return None if self.end_offset is None else max(0, self.end_offset - self.next_offset)

    @property
    def waiting_labels(self) -> int:
        """Labels that have met no inference yet."""
        return self.queued_labels - sum(self.placed_labels.values())

    def unit(self, unit: str) -> dict[str, int]:
        """Return the classes of a unit ("row", "label", "resource") with their counts."""
        total: dict[str, int] = {}
        for (name, cls, _), count in self.classes.items():
            if name == unit:
                total[cls] = total.get(cls, 0) + count
        return total

    def balance(self) -> list[str]:
        """Return what does not balance, as text; empty when everything does."""
        if self.consumer != "monitor":
            return self._offset_problems()
        problems = self._offset_problems()
        for unit, total in (("row", self.rows), ("resource", self.resources)):
            classes = self.unit(unit)
            if sum(classes.values()) != total:
                problems.append(f"{self._name}: {total} {unit}s, but classes sum to {classes}")
        labels = self.unit("label")
        if sum(labels.values()) + self.queued_labels != self.labels:
            problems.append(
                f"{self._name}: {self.labels} labels, but {self.queued_labels} for the joiner and {labels}"
            )
        if self.waiting_labels < 0:
            problems.append(
                f"{self._name}: the joiner placed {self.placed_labels} of {self.queued_labels} labels"
            )
        negative = {key: count for key, count in self.classes.items() if count < 0}
        negative |= {("label", k, ""): c for k, c in self.placed_labels.items() if c < 0}
        if negative:
            problems.append(f"{self._name}: negative counts {negative}")
        return problems

    def _offset_problems(self) -> list[str]:
        passed = self.next_offset - self.first_offset
        if passed == self.messages + self.gaps + self.lost and min(self.gaps, self.lost) >= 0:
            return []
        parts = f"{self.messages} messages + {self.gaps} gaps + {self.lost} lost"
        return [f"{self._name}: {passed} offsets passed, but {parts}"]

    @property
    def _name(self) -> str:
        return f"{self.consumer} {self.topic}[{self.partition}]"


def ledger(store: Store, consumer: str | None = "monitor") -> list[PartitionLedger]:
    """Return the ledger of every partition (of one consumer, or of all), in one snapshot."""
    with store.read() as connection:
        return read_ledger(connection, consumer)


def read_ledger(connection: Connection, consumer: str | None = "monitor") -> list[PartitionLedger]:
    """Return the ledger inside the caller's snapshot; see `ledger`."""
    wanted: ColumnElement[bool] = (
        partitions.c.consumer == consumer if consumer else partitions.c.id.is_not(None)
    )
    classes: dict[int, dict[tuple[str, str, str], int]] = {}
    count = func.sum(row_classes.c.count)
    for pid, unit, cls, reason, number in connection.execute(
        select(
            row_classes.c.partition_id,
            row_classes.c.unit,
            row_classes.c["class"],
            row_classes.c.reason,
            count,
        ).group_by(
            row_classes.c.partition_id,
            row_classes.c.unit,
            row_classes.c["class"],
            row_classes.c.reason,
        )
    ):
        classes.setdefault(pid, {})[unit, cls, reason] = int(number)
    placed: dict[int, dict[str, int]] = {}
    for pid, cls, number in connection.execute(
        select(
            label_classes.c.partition_id,
            label_classes.c["class"],
            func.sum(label_classes.c.count),
        ).group_by(label_classes.c.partition_id, label_classes.c["class"])
    ):
        if number:  # labels may have left a class again
            placed.setdefault(pid, {})[cls] = int(number)
    rows = connection.execute(
        select(partitions)
        .where(wanted)
        .order_by(partitions.c.topic, partitions.c.partition, partitions.c.id)
    ).all()
    return [
        PartitionLedger(
            partition_id=row.id,
            consumer=row.consumer,
            cluster_id=row.cluster_id,
            topic=row.topic,
            topic_id=row.topic_id,
            partition=row.partition,
            epoch=row.epoch,
            owner=row.owner,
            first_offset=row.first_offset,
            next_offset=row.next_offset,
            end_offset=row.end_offset,
            messages=row.messages,
            gaps=row.gaps,
            lost=row.lost,
            rows=row.rows,
            labels=row.labels,
            resources=row.resources,
            classes={k: n for k, n in classes.get(row.id, {}).items() if k[1] != "queued"},
            queued_labels=classes.get(row.id, {}).get(("label", "queued", ""), 0),
            placed_labels=placed.get(row.id, {}),
            updated_ms=row.updated_ms,
        )
        for row in rows
    ]
