"""What an Arrow IPC stream may be before anything in it is read: bounded, whole, uncompressed, valid."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NoReturn

from trimtab.events.cloudevents import DecodeError, Reason
from trimtab.windows.ids import BATCH_ROWS_MAX

MESSAGES_MAX = 1_000
"""Arrow messages (record batches, dictionaries and their deltas) of one stream."""
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

_EXTENSION = b"ARROW:extension:name"
_METADATA_VERSION = 4
"""V5, which all writers since Arrow 1.0 (2020) use; V4 marked compression in another place."""


def check_stream(pa: Any, ipc: Any, value: bytes) -> None:
    """Walk the stream's messages without reading what they hold; raise for what must not be read."""
    source = pa.BufferReader(value)
    messages = ipc.MessageReader.open_stream(source)
    count = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        count += 1
        metadata = message.metadata.to_pybytes()
        if int(message.metadata_version) < _METADATA_VERSION:
            _refuse("The stream has a format older than Arrow 1.0.")
        if (message.type == "schema") != (count == 1):
            _refuse("A stream begins with its schema and has no other.")
        if message.type not in _STREAM_PARTS:
            _refuse(f"A {message.type} is no part of a batch.")
        if _EXTENSION in metadata:
            _refuse("Extension types are not read; send the storage type.")
        if count > 1 and _is_compressed(metadata, dictionary=message.type == "dictionary"):
            _refuse("The bodies are compressed; let Kafka compress instead.")
        if count > MESSAGES_MAX:
            _refuse(f"More than {MESSAGES_MAX} Arrow messages in one stream.")
    # Without the end mark nobody can tell whether rows are missing.
    if source.tell() != len(value) or not value.endswith(STREAM_END):
        _refuse("The stream does not end with its end mark; close the writer, send one stream.")


_STREAM_PARTS = frozenset(("schema", "record batch", "dictionary"))


def _refuse(text: str) -> NoReturn:
    raise DecodeError(Reason.BAD_ARROW, text)


def _is_compressed(metadata: bytes, *, dictionary: bool) -> bool:
    """Tell whether a message's record batch names a codec.

    `metadata` is a flatbuffer that Arrow has verified, of the tables in Arrow's Message.fbs: Message
    (header in slot 2), DictionaryBatch (data in slot 1), RecordBatch (compression in slot 3).
    """
    (root,) = struct.unpack_from("<I", metadata)
    header = _table(metadata, root, 2)
    if header and dictionary:
        header = _table(metadata, header, 1)
    return bool(header and _table(metadata, header, 3))


def _table(buffer: bytes, table: int, slot: int) -> int:
    """Return where the table in a slot of a flatbuffer's table lies; 0 when it is absent."""
    (to_vtable,) = struct.unpack_from("<i", buffer, table)
    vtable = table - to_vtable
    (size,) = struct.unpack_from("<H", buffer, vtable)
    place = 4 + 2 * slot
    if place >= size:
        return 0
    (offset,) = struct.unpack_from("<H", buffer, vtable + place)
    if not offset:
        return 0
    (to_table,) = struct.unpack_from("<I", buffer, table + offset)
    return int(table + offset + to_table)


def record_batches(reader: Any) -> Iterator[Any]:
    """Yield the record batches that hold rows, validated: lengths, offsets, codes, UTF-8."""
    rows = 0
    for batch in reader:
        if batch.num_rows < 0:
            _refuse("A record batch has less than no rows.")
        rows += batch.num_rows
        if rows > BATCH_ROWS_MAX:
            raise DecodeError(
                Reason.BAD_VALUE, f"More than {BATCH_ROWS_MAX} rows; send smaller batches."
            )
        if batch.num_rows:
            batch.validate(full=True)
            yield batch
