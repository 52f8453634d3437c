"""Row samples for reports: per model, hour and partition the rows with the lowest id hashes.

Bottom-k by hash is the same sample whatever the order of arrival, and the sample of several partitions
is the bottom-k of their union. No personal features and no embeddings ever enter; each body is capped.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from trimtab.contracts.model import Contract
from trimtab.stats.cuts import ModelCuts
from trimtab.stats.joint import MOST_ROWS, JointState, joint_columns
from trimtab.store.dialect import insert_for
from trimtab.store.tables import row_samples

HOUR_MS = 3_600_000
SAMPLE_ROWS = 500
BODY_BYTES_MAX = 1_000_000


class SampleRow(Struct, frozen=True, array_like=True):
    """One sampled row; `features` leaves out personal ones."""

    hash: int
    id: str
    time_ms: int
    version: str
    prediction: Any
    score: float | None
    latency_ms: float | None
    features: dict[str, Any]


class _Sealed(Struct, frozen=True, array_like=True):
    """A sampled row whose values are not decoded: of many partitions' rows few are the hour's lowest."""

    hash: int
    id: msgspec.Raw
    time_ms: int
    version: msgspec.Raw
    prediction: msgspec.Raw
    score: msgspec.Raw
    latency_ms: msgspec.Raw
    features: msgspec.Raw


_ROWS = msgspec.msgpack.Decoder(list[SampleRow])
_SEALED = msgspec.msgpack.Decoder(list[_Sealed])
_FEATURES = msgspec.msgpack.Decoder(dict[str, Any])
Row = TypeVar("Row", SampleRow, _Sealed)


def bottom(rows: Sequence[Row], k: int = SAMPLE_ROWS) -> list[Row]:
    """Return the k rows of lowest hash, one per hash, ascending."""
    unique = {
        row.hash: row for row in sorted(rows, key=lambda r: (r.hash, r.time_ms), reverse=True)
    }
    return [unique[h] for h in sorted(unique)[:k]]


def write_sample(
    connection: Connection,
    partition_id: int,
    model: str,
    sample_start_ms: int,
    rows: list[SampleRow],
) -> None:
    """Store the sample of one hour of one partition; rows beyond the byte cap are left out."""
    write_samples(connection, partition_id, model, {sample_start_ms: rows})


def write_samples(
    connection: Connection,
    partition_id: int,
    model: str,
    samples: Mapping[int, Sequence[SampleRow]],
) -> None:
    """Store samples of one partition by the start of their hour, in one statement.

    A replay brings thousands of hours at once; a statement for each held up its flush for seconds.
    """
    if not samples:
        return
    values = []
    for sample_start_ms, rows in sorted(samples.items()):
        kept = bottom(rows)
        body = msgspec.msgpack.encode(kept)
        while len(body) > BODY_BYTES_MAX and len(kept) > 1:
            kept = kept[: len(kept) // 2]
            body = msgspec.msgpack.encode(kept)
        values.append(
            {
                "model": model,
                "sample_start_ms": sample_start_ms,
                "partition_id": partition_id,
                "rows": len(kept),
                "body": body,
            }
        )
    statement = insert_for(connection, row_samples)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["model", "sample_start_ms", "partition_id"],
            set_={"rows": statement.excluded.rows, "body": statement.excluded.body},
        ),
        values,
    )


def partition_samples(
    connection: Connection, partition_id: int, model: str, sample_starts_ms: Collection[int]
) -> dict[int, list[SampleRow]]:
    """Return a partition's stored samples of these hours, by start; only hours that have one."""
    if not sample_starts_ms:
        return {}
    found = connection.execute(
        select(row_samples.c.sample_start_ms, row_samples.c.body).where(
            row_samples.c.model == model,
            row_samples.c.partition_id == partition_id,
            row_samples.c.sample_start_ms.between(min(sample_starts_ms), max(sample_starts_ms)),
        )
    )
    wanted = set(sample_starts_ms)
    return {start: _ROWS.decode(body) for start, body in found if start in wanted}


def sample_between(connection: Connection, model: str, from_ms: int, to_ms: int) -> list[SampleRow]:
    """Return the sampled rows with from_ms <= time < to_ms, by time."""
    rows = _between(connection, model, from_ms, to_ms, _ROWS)
    return sorted(rows, key=lambda r: (r.time_ms, r.hash))


def _between(
    connection: Connection,
    model: str,
    from_ms: int,
    to_ms: int,
    decoder: msgspec.msgpack.Decoder[list[Row]],
) -> list[Row]:
    """The rows of a time that are their hour's lowest, over all partitions."""
    hours: dict[int, list[Row]] = {}
    for start, body in connection.execute(
        select(row_samples.c.sample_start_ms, row_samples.c.body).where(
            row_samples.c.model == model,
            row_samples.c.sample_start_ms > from_ms - HOUR_MS,
            row_samples.c.sample_start_ms < to_ms,
        )
    ):
        hours.setdefault(start, []).extend(decoder.decode(body))
    rows = (row for start in sorted(hours) for row in bottom(hours[start]))
    return [row for row in rows if from_ms <= row.time_ms < to_ms]


def window_joint(
    connection: Connection,
    contract: Contract,
    cuts: ModelCuts,
    start_ms: int,
    end_ms: int,
    only: Collection[str] | None = None,
) -> JointState:
    """Return how columns go together in a window's sampled rows: those that `only` names, else all that are paired."""
    columns = joint_columns(contract.features, cuts)
    if only is not None:
        columns = tuple(column for column in columns if column.name in only)
    if len(columns) < 2:
        return JointState()
    sealed = _between(connection, contract.name, start_ms, end_ms, _SEALED)
    lowest = sorted(sealed, key=lambda row: (row.hash, row.time_ms))[:MOST_ROWS]
    rows = [_FEATURES.decode(row.features) for row in lowest]
    names = {column.feature for column in columns}
    return JointState.observe(columns, {name: [row.get(name) for row in rows] for name in names})
