"""What the owner of a partition writes beside ledger and panes.

Held rows, rejected payloads, contract activations, versions seen in traffic.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from sqlalchemy import Connection, delete, func, insert, select, update

from trimtab.store.dialect import insert_for
from trimtab.store.tables import contract_activations, held_rows, models, rejected, versions

HOUR_MS = 3_600_000
KEPT_PER_REASON = 20
"""Payloads kept per partition, reason and hour; all are counted."""
PAYLOAD_BYTES_MAX = 4_096


class RejectedPayload(Struct, frozen=True):
    """A payload that does not count, as it is kept."""

    offset: int
    record_ms: int
    model: str
    reason: str
    detail: str
    payload: bytes


def keep_rejected(
    connection: Connection, partition_id: int, payloads: Sequence[RejectedPayload]
) -> int:
    """Keep the first payloads per reason and hour, truncated; return how many were kept."""
    by_hour: dict[tuple[str, int], list[RejectedPayload]] = {}
    for payload in payloads:
        hour = payload.record_ms // HOUR_MS * HOUR_MS
        by_hour.setdefault((payload.reason, hour), []).append(payload)
    kept = 0
    for (reason, hour), items in by_hour.items():
        stored = connection.scalar(
            select(func.count()).where(
                rejected.c.partition_id == partition_id,
                rejected.c.reason == reason,
                rejected.c.record_ms >= hour,
                rejected.c.record_ms < hour + HOUR_MS,
            )
        )
        for item in items[: max(0, KEPT_PER_REASON - int(stored or 0))]:
            connection.execute(
                insert(rejected).values(
                    partition_id=partition_id,
                    offset=item.offset,
                    record_ms=item.record_ms,
                    model=item.model[:200],
                    reason=item.reason,
                    detail=item.detail,
                    payload=item.payload[:PAYLOAD_BYTES_MAX],
                )
            )
            kept += 1
    return kept


# --- contract activations -------------------------------------------------------------------------


def activations(connection: Connection, partition_id: int) -> dict[str, int]:
    """Return the newest contract revision in force in a partition, by model."""
    found = connection.execute(
        select(contract_activations.c.model, func.max(contract_activations.c.revision))
        .where(contract_activations.c.partition_id == partition_id)
        .group_by(contract_activations.c.model)
    )
    return {model: int(revision) for model, revision in found}


def activate(
    connection: Connection, partition_id: int, revisions: Mapping[str, int], from_offset: int
) -> None:
    """Record from which offset on a contract revision counts in a partition."""
    for model, revision in sorted(revisions.items()):
        connection.execute(
            insert_for(connection, contract_activations)
            .values(
                partition_id=partition_id,
                model=model,
                revision=revision,
                from_offset=from_offset,
            )
            .on_conflict_do_nothing()
        )


def see_versions(connection: Connection, seen: Mapping[str, Sequence[str]], now_ms: int) -> None:
    """Record versions that traffic has brought; known ones stay as they are."""
    for model, names in sorted(seen.items()):
        for name in sorted(names):
            connection.execute(
                insert_for(connection, versions)
                .values(model=model, version=name, created_ms=now_ms, source="traffic")
                .on_conflict_do_nothing()
            )


# --- held rows ------------------------------------------------------------------------------------


def lock_model(connection: Connection, model: str) -> None:
    """Let one transaction at a time decide over a model's held rows."""
    connection.execute(
        update(models)
        .where(models.c.name == model)
        .values(contract_revision=models.c.contract_revision)
    )


def hold_rows(
    connection: Connection,
    partition_id: int,
    model: str,
    first_offset: int,
    rows: int,
    body: bytes,
) -> None:
    """Keep rows until the model has cuts."""
    connection.execute(
        insert(held_rows).values(
            model=model,
            partition_id=partition_id,
            first_offset=first_offset,
            rows=rows,
            body=body,
        )
    )


def held_total(connection: Connection, model: str) -> int:
    """Return the rows held for a model, over all partitions."""
    return int(
        connection.scalar(
            select(func.coalesce(func.sum(held_rows.c.rows), 0)).where(held_rows.c.model == model)
        )
        or 0
    )


def held_models(connection: Connection, partition_id: int) -> set[str]:
    """Return the models with rows held in a partition."""
    return set(
        connection.scalars(
            select(held_rows.c.model).distinct().where(held_rows.c.partition_id == partition_id)
        )
    )


def held_bodies(connection: Connection, model: str, partition_id: int | None = None) -> list[bytes]:
    """Return what is held for a model (in one partition, or in all), in order."""
    query = select(held_rows.c.body).where(held_rows.c.model == model)
    if partition_id is not None:
        query = query.where(held_rows.c.partition_id == partition_id)
    return list(
        connection.scalars(query.order_by(held_rows.c.partition_id, held_rows.c.first_offset))
    )


def held_with_contracts(
    connection: Connection, model: str, partition_id: int
) -> list[tuple[int, bytes]]:
    """Return what a partition holds for a model, in order, each with the contract revision it was read under."""
    c = contract_activations.c
    revision = (
        select(func.max(c.revision))
        .where(
            c.partition_id == held_rows.c.partition_id,
            c.model == held_rows.c.model,
            c.from_offset <= held_rows.c.first_offset,
        )
        .scalar_subquery()
    )
    found = connection.execute(
        select(revision, held_rows.c.body)
        .where(held_rows.c.model == model, held_rows.c.partition_id == partition_id)
        .order_by(held_rows.c.first_offset)
    )
    return [(int(number), body) for number, body in found]


def drop_held(connection: Connection, model: str, partition_id: int) -> None:
    """Forget what is held in a partition, in the transaction that counts it."""
    connection.execute(
        delete(held_rows).where(
            held_rows.c.model == model, held_rows.c.partition_id == partition_id
        )
    )
