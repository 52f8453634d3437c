"""Writing the archive: rows collect per model and partition, become Parquet files, then a commit.

A file is written under a unique name, synced, and only then entered in the manifest together with
the archive's offset (compare-and-set). A crash in between leaves a file that nobody reads; the next
owner writes the same messages again under another name.
"""

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
from msgspec import Struct

from trimtab.archive.tables import Row, inference_table, label_table
from trimtab.events.types import Inference, Label, time_ms
from trimtab.store.archive import ArchiveFile

FOLDER_CHARS_MAX = 180


class Pending(Struct):
    """What one partition has brought since its last commit."""

    from_offset: int
    next_offset: int
    messages: int = 0
    lost: int = 0
    rows: int = 0
    value_bytes: int = 0
    """Of the messages read, so that what waits in memory is bounded."""
    since_ms: int = 0
    inferences: dict[str, list[Row[Inference]]] = {}
    labels: dict[str, list[Row[Label]]] = {}

    def add(self, event: Inference | Label, offset: int, record_ms: int) -> None:
        """Keep one event for the next file."""
        if isinstance(event, Inference):
            self.inferences.setdefault(event.model, []).append(Row(event, offset, record_ms))
        else:
            self.labels.setdefault(event.model, []).append(Row(event, offset, record_ms))
        self.rows += 1


def write_files(directory: Path, partition_id: int, pending: Pending) -> list[ArchiveFile]:
    """Write one Parquet file per model and kind, synced to disk; returns their manifest rows."""
    tables = [
        ("inference", model, [row.event.time for row in rows], inference_table(rows))
        for model, rows in pending.inferences.items()
    ] + [
        ("label", model, [row.event.time for row in rows], label_table(rows))
        for model, rows in pending.labels.items()
    ]
    files = []
    for kind, model, times, table in tables:
        folder = directory / kind / folder_name(model)
        path, sha256 = _write(folder, table)
        times_ms = [time_ms(time) for time in times]
        files.append(
            ArchiveFile(
                path=str(path),
                kind=kind,
                model=model,
                partition_id=partition_id,
                first_offset=pending.from_offset,
                next_offset=pending.next_offset,
                min_time_ms=min(times_ms),
                max_time_ms=max(times_ms),
                rows=table.num_rows,
                sha256=sha256,
            )
        )
    return files


def folder_name(model: str) -> str:
    """Return the name of a model's folder: `model=NAME`, percent-encoded.

    A name that gets too long for a file system (255 bytes) is cut and ends in its SHA-256: a folder
    that cannot be made would stop the partition for ever. Readers go by the manifest, not by names.
    """
    name = f"model={quote(model, safe='')}"
    if len(name) <= FOLDER_CHARS_MAX:
        return name
    return f"{name[:FOLDER_CHARS_MAX]}-{hashlib.sha256(model.encode()).hexdigest()}"


def _write(directory: Path, table: Any) -> tuple[Path, str]:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{uuid.uuid4().hex}.parquet"
    part = path.with_suffix(".part")
    pq.write_table(table, part, compression="zstd")
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    part.replace(path)
    _sync(directory)  # the name, too, outlives a power failure
    return path.absolute(), sha256


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
