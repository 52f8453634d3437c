"""Inference batches as Arrow IPC streams: one Kafka message in, checked columns out.

The schema's metadata holds what all rows share (METADATA), its columns are those of the JSON batch
(COLUMNS), `features`, `scores`, `attributes` and `attributions` as structs or flattened (`features.income`). pyarrow is
imported when the first such message comes; without it they are rejected, with what to install.

What a message may cost is bounded before it is read: no compressed bodies, no extension types, and no
more rows, cells and (dictionaries expanded) text than stand in BATCH_ROWS_MAX, CELLS_MAX and
TEXT_CHARS_MAX. Columns of other names are not looked at.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, cast

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from trimtab.arrow.columns import (
    COLUMNS,
    TEXT_CHARS_MAX,
    Column,
    Floats,
    Ints,
    Rule,
    check_text,
    checked,
    joined,
    read_column,
)
from trimtab.arrow.stream import MESSAGES_MAX, STREAM_END, check_stream, record_batches
from trimtab.events.cloudevents import (
    ARROW_CONTENT_TYPE,
    MESSAGE_BYTES_MAX,
    SPEC_VERSION,
    DecodeError,
    Event,
    Headers,
    Reason,
    Role,
    decode,
    decode_error,
    is_arrow,
)
from trimtab.events.types import (
    BATCH_TYPE,
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
    InferenceBatch,
    time_ms,
)

__all__ = [
    "CELLS_MAX",
    "COLUMNS",
    "MESSAGES_MAX",
    "METADATA",
    "STREAM_END",
    "TEXT_CHARS_MAX",
    "ArrowBatch",
    "Column",
    "Rule",
    "arrow_batch",
    "decode_message",
    "read_arrow",
]

CELLS_MAX = MESSAGE_BYTES_MAX // 2
"""Rows times columns: as many as JSON can hold, where a value and its comma are two bytes."""
METADATA: dict[str, int] = {
    "id": ID_LENGTH_MAX,
    "model": NAME_LENGTH_MAX,
    "version": NAME_LENGTH_MAX,
}
"""Required keys of the schema's metadata, and their most characters; `time` and `sample_rate` beside."""

_UTC_TIME = Annotated[datetime, Meta(tz=True)]
_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class ArrowBatch(Struct, frozen=True):
    """An inference batch as checked columns of `rows` values; see InferenceBatch for the fields."""

    id: str
    model: str
    version: str
    rows: int
    time: int | Ints
    """Milliseconds since the epoch: one for all rows, or shape (n,)."""
    sample_rate: float = 1.0
    columns: dict[str, Column] = field(default_factory=dict)
    """Those without keys, by name, but for `time`."""
    features: dict[str, Column] = field(default_factory=dict)
    scores: dict[str, Column] = field(default_factory=dict)
    attributes: dict[str, Column] = field(default_factory=dict)
    attributions: dict[str, Column] = field(default_factory=dict)

    def event(self) -> InferenceBatch:
        """Return the batch as Python values. A missing score is NaN, other missing values are None."""
        return InferenceBatch(
            id=self.id,
            model=self.model,
            version=self.version,
            time=self.time if isinstance(self.time, int) else self.time.tolist(),
            rows=self.rows,
            sample_rate=self.sample_rate,
            features={name: column.tolist() for name, column in self.features.items()},
            scores={name: column.floats.tolist() for name, column in self.scores.items()} or None,
            attributes={name: column.tolist() for name, column in self.attributes.items()},
            attributions={name: column.tolist() for name, column in self.attributions.items()}
            or None,
            **{name: column.tolist() for name, column in self.columns.items()},
        )


def decode_message(value: bytes | None, headers: Headers, role: Role) -> Event:
    """Return the event that a Kafka message holds, in JSON or as an Arrow stream. Raises DecodeError."""
    if is_arrow(headers):
        return read_arrow(value, headers, role).event()
    return decode(value, headers, role)


def arrow_batch(value: bytes) -> InferenceBatch:
    """Return the batch that an Arrow IPC stream holds, as Python values. Raises DecodeError."""
    return _read(value).event()


def read_arrow(value: bytes | None, headers: Headers, role: Role) -> ArrowBatch:
    """Return the batch of a message whose content type is Arrow's. `role` is its topic's.

    Raises DecodeError, and nothing else, whatever the bytes are.
    """
    kind, spec_version = "", SPEC_VERSION
    for name, header in headers:
        if name.lower() == "ce_type":
            kind = (header or b"").decode("utf-8", "replace")
        elif name.lower() == "ce_specversion":
            spec_version = (header or b"").decode("utf-8", "replace")
    if spec_version != SPEC_VERSION:
        raise DecodeError(Reason.UNSUPPORTED_SPEC_VERSION, f"{spec_version!r}; send 1.0.")
    if kind != BATCH_TYPE and (kind or role != "inference"):
        raise DecodeError(
            Reason.UNSUPPORTED_CONTENT_TYPE,
            f"Only {BATCH_TYPE} comes as {ARROW_CONTENT_TYPE}; this is {kind or role!r}.",
        )
    return _read(value)


def _read(value: bytes | None) -> ArrowBatch:
    if not value:
        raise DecodeError(Reason.EMPTY, "The message has no value.")
    if len(value) > MESSAGE_BYTES_MAX:
        raise DecodeError(
            Reason.TOO_LARGE, f"{len(value)} bytes; the limit is {MESSAGE_BYTES_MAX}."
        )
    try:
        import pyarrow as pa
        from pyarrow import ipc
    except ImportError:
        raise DecodeError(
            Reason.UNSUPPORTED_CONTENT_TYPE,
            f"{ARROW_CONTENT_TYPE} needs pyarrow. Install trimtab[monitor], or send JSON.",
        ) from None
    try:
        check_stream(pa, ipc, value)
        options = ipc.IpcReadOptions(use_threads=False)
        reader = ipc.open_stream(pa.BufferReader(value), options=options)
        schema = reader.schema
        with np.errstate(over="ignore", invalid="ignore"):  # for the search for infinities
            return _batch(pa, schema, list(record_batches(reader)))
    except UnicodeDecodeError as error:
        raise DecodeError(Reason.BAD_UTF8, str(error)) from error
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        reason = Reason.BAD_UTF8 if "UTF8" in str(error) else Reason.BAD_ARROW
        raise DecodeError(reason, str(error)) from error


# --- what it holds --------------------------------------------------------------------------------


def _batch(pa: Any, schema: Any, batches: Sequence[Any]) -> ArrowBatch:
    metadata = schema.metadata or {}
    shared = {key: _name(metadata, key, most) for key, most in METADATA.items()}
    if not batches:
        raise DecodeError(Reason.BAD_VALUE, "The stream has no rows.")
    rows = sum(batch.num_rows for batch in batches)
    wanted = _wanted(schema)
    if rows * len(wanted) > CELLS_MAX:
        raise DecodeError(
            Reason.BAD_VALUE,
            f"{rows} rows of {len(wanted)} columns; the limit is {CELLS_MAX} values.",
        )
    groups = [name for name, rule in COLUMNS.items() if rule.group]
    found: dict[str, dict[str, Column]] = {name: {} for name in ("", *groups)}
    time: int | Ints | None = None
    children: dict[int, list[list[Any]]] = {}
    plain = _plain_numbers(pa, schema, batches, wanted)
    for (name, key), (index, child) in wanted.items():
        rule = COLUMNS[name]
        if index in plain:
            found[name if rule.group else ""][key] = plain[index]
            continue
        path = f"{name}.{key}" if rule.group else name
        if child is None:
            parts = [batch.column(index) for batch in batches]
        else:
            if index not in children:  # flatten: a row without the struct has none of its values
                children[index] = [batch.column(index).flatten() for batch in batches]
            parts = [columns[child] for columns in children[index]]
        if rule.holds == "time":
            time = _times(pa, parts)
        else:
            column = joined([read_column(pa, part, path) for part in parts])
            found[name if rule.group else ""][key] = checked(rule, path, column)
    check_text([column for columns in found.values() for column in columns.values()])
    if time is None:
        time = _one_time(_needed(metadata, "time"))
    return ArrowBatch(
        **shared,
        rows=rows,
        time=time,
        sample_rate=_sample_rate(metadata),
        columns=found[""],
        features=found["features"],
        scores=found["scores"],
        attributes=found["attributes"],
        attributions=found["attributions"],
    )


def _wanted(schema: Any) -> dict[tuple[str, str], tuple[int, int | None]]:
    """Return where the columns of ours lie: (column, key) to (index, the struct's child or None)."""
    from pyarrow import types

    wanted: dict[tuple[str, str], tuple[int, int | None]] = {}

    def want(name: str, key: str, index: int, child: int | None = None) -> None:
        if (name, key) in wanted:
            raise DecodeError(Reason.BAD_VALUE, f"Two columns are {name!r} {key!r}.")
        if "\0" in key:
            raise DecodeError(Reason.NUL_CHARACTER, f"A name in {name} holds U+0000; remove it.")
        wanted[name, key] = index, child

    for index, whole in enumerate(schema.names):
        name, dot, key = whole.partition(".")
        rule = COLUMNS.get(name)
        if rule is None or (dot and not rule.group):
            continue  # unknown columns are ignored, so that a newer producer stops nobody
        if dot or not rule.group:
            want(name, key if dot else name, index)
            continue
        kind = schema.field(index).type
        if not types.is_struct(kind):
            raise DecodeError(Reason.WRONG_TYPE, f"{name} is {kind}, not a struct.")
        for child in range(kind.num_fields):
            want(name, kind.field(child).name, index, child)
    return wanted


def _plain_numbers(
    pa: Any,
    schema: Any,
    batches: Sequence[Any],
    wanted: Mapping[tuple[str, str], tuple[int, int | None]],
) -> dict[int, Column]:
    """Return the columns of float64 in a stream of one record batch, by index: most columns, in one piece.

    A column by itself takes some ten calls, which for a batch of 500 rows is as much as all the rest.
    """
    double = pa.float64()
    found = {
        index: name if name == key else f"{name}.{key}"
        for (name, key), (index, child) in wanted.items()
        if child is None
        and COLUMNS[name].holds in ("number", "scalar")
        and schema.field(index).type == double
    }
    if len(batches) > 1 or len(found) < 2:
        return {}
    tensor = batches[0].select(list(found)).to_tensor(null_to_nan=True, row_major=False)
    numbers: Floats = tensor.to_numpy().T
    # One sum tells almost always; NaN, infinity or overflow need the look at each.
    if not math.isfinite(numbers.sum()):
        for path, column in zip(found.values(), numbers, strict=True):
            if np.isinf(column).any():
                raise DecodeError(Reason.NOT_FINITE, f"{path} holds an infinity; send null.")
    return {index: Column(column) for index, column in zip(found, numbers, strict=True)}


def _needed(metadata: Mapping[bytes, bytes], key: str) -> str:
    value = metadata.get(key.encode())
    if value is None:
        hint = " or a column `time`" if key == "time" else ""
        raise DecodeError(Reason.MISSING_FIELD, f"The schema's metadata lacks `{key}`{hint}.")
    return value.decode()


def _name(metadata: Mapping[bytes, bytes], key: str, most: int) -> str:
    text = _needed(metadata, key)
    if not 1 <= len(text) <= most:
        raise DecodeError(Reason.BAD_VALUE, f"`{key}` has {len(text)} characters, not 1 to {most}.")
    if "\0" in text:
        raise DecodeError(Reason.NUL_CHARACTER, f"`{key}` holds U+0000; remove it.")
    return text


def _sample_rate(metadata: Mapping[bytes, bytes]) -> float:
    text = metadata.get(b"sample_rate", b"1")
    try:
        rate = float(text)
    except ValueError:
        raise DecodeError(Reason.WRONG_TYPE, f"`sample_rate` is {text!r}, no number.") from None
    if not 0 < rate <= 1:
        raise DecodeError(Reason.BAD_VALUE, f"`sample_rate` is {text!r}, not above 0 up to 1.")
    return rate


# --- times ----------------------------------------------------------------------------------------


def _one_time(text: str) -> int:
    """Return milliseconds since the epoch of the metadata's `time`: such milliseconds, or RFC 3339."""
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        if not TIME_MS_MIN <= int(text) <= TIME_MS_MAX:
            raise DecodeError(Reason.BAD_TIME, f"`time` {text} is outside 1900 to 2199.")
        return int(text)
    try:
        moment = msgspec.convert(text, _UTC_TIME)
    except msgspec.ValidationError as error:
        raise decode_error(error, b"") from error
    at_ms = time_ms(moment)
    if not TIME_MS_MIN <= at_ms < TIME_MS_MAX:
        raise DecodeError(Reason.BAD_TIME, f"`time` {text} is outside 1900 to 2199.")
    return at_ms


def _times(pa: Any, parts: Sequence[Any]) -> Ints:
    """Return milliseconds since the epoch, shape (n,). What is finer than a microsecond is cut."""
    kind = parts[0].type
    if pa.types.is_timestamp(kind):
        if kind.tz is None:
            raise DecodeError(Reason.NAIVE_TIME, "`time` has no time zone.")
        per_s = _UNITS_PER_S[kind.unit]
    elif pa.types.is_integer(kind):
        per_s = 1_000
    else:
        raise DecodeError(
            Reason.WRONG_TYPE, f"`time` is {kind}, neither timestamp with time zone nor int64."
        )
    if any(part.null_count for part in parts):
        raise DecodeError(Reason.WRONG_TYPE, "`time` has a null.")
    if pa.types.is_timestamp(kind):
        parts = [part.cast(pa.int64()) for part in parts]
    values = cast("Ints", joined([read_column(pa, part, "time") for part in parts]).values)
    # Compared in their own unit: a product might overflow.
    most = TIME_MS_MAX * per_s // 1_000 - pa.types.is_timestamp(kind)
    outside = (values < TIME_MS_MIN * per_s // 1_000) | (values > most)
    if outside.any():
        raise DecodeError(
            Reason.BAD_TIME, f"`time` {values[outside][0]} ({kind}) is outside 1900 to 2199."
        )
    if per_s <= 1_000:
        return values * (1_000 // per_s)
    return values // (per_s // 1_000)  # as `time_ms` cuts a datetime
