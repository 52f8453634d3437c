"""The archive's manifest: which Parquet files exist, what they hold, and how far the log is written.

Readers go by this manifest, never by a listing: a file that was written but whose commit failed is
not part of the archive.
"""

from collections.abc import Collection

from msgspec import Struct
from sqlalchemy import Connection, select

from trimtab.store.ledger import Advance, advance
from trimtab.store.tables import archive_files, partitions


class ArchiveFile(Struct, frozen=True, kw_only=True):
    """One immutable Parquet file."""

    path: str
    kind: str
    """ "inference" or "label"."""
    model: str
    partition_id: int
    first_offset: int
    next_offset: int
    min_time_ms: int
    max_time_ms: int
    rows: int
    sha256: str


def commit_files(
    connection: Connection,
    partition_id: int,
    epoch: int,
    step: Advance,
    files: list[ArchiveFile],
    now_ms: int,
) -> None:
    """Enter `files` and move the archive's ledger by `step`, together.

    Raises:
        ConflictError: the partition has another owner, or the offset is not where it was left.

    """
    advance(connection, partition_id, epoch, step, now_ms)
    if files:
        connection.execute(
            archive_files.insert(),
            [
                {field: getattr(file, field) for field in file.__struct_fields__}
                | {"created_ms": now_ms}
                for file in files
            ],
        )


def files_of(
    connection: Connection,
    model: str,
    kind: str,
    from_ms: int,
    to_ms: int,
    topics: Collection[str] = (),
) -> list[ArchiveFile]:
    """Files of `model` and `kind` with an event time in [from_ms, to_ms), oldest entry first.

    `topics`: only files that came from these, where any are named.
    """
    query = select(archive_files).where(
        archive_files.c.model == model,
        archive_files.c.kind == kind,
        archive_files.c.max_time_ms >= from_ms,
        archive_files.c.min_time_ms < to_ms,
    )
    if topics:
        query = query.join(partitions, partitions.c.id == archive_files.c.partition_id)
        query = query.where(partitions.c.topic.in_(sorted(topics)))
    fields = ArchiveFile.__struct_fields__
    return [
        ArchiveFile(**{field: getattr(row, field) for field in fields})
        for row in connection.execute(query.order_by(archive_files.c.id))
    ]
