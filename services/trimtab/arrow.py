"""Inference batches as Arrow IPC streams: one Kafka message in, checked columns out.

The schema's metadata holds what all rows share (METADATA), its columns are those of the JSON batch
(COLUMNS), `features`, `scores` and `attributes` as structs or flattened (`features.income`). pyarrow is
imported when the first such message comes; without it they are rejected, with what to install.

What a message may cost is bounded before it is read: no compressed bodies, no extension types, and no
more rows, cells and (dictionaries expanded) text than stand in BATCH_ROWS_MAX, CELLS_MAX and
TEXT_CHARS_MAX. Columns of other names are not looked at.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct, field

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
    ARM_LENGTH_MAX,
    BATCH_TYPE,
    ID_LENGTH_MAX,
    NAME_LENGTH_MAX,
    TIME_MS_MAX,
    TIME_MS_MIN,
    InferenceBatch,
    Status,
    time_ms,
)
from trimtab.stats.coded import Coded, join
from trimtab.windows.ids import BATCH_ROWS_MAX

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CELLS_MAX = MESSAGE_BYTES_MAX // 2
"""Rows times columns: as many as JSON can hold, where a value and its comma are two bytes."""
TEXT_CHARS_MAX = 4 * MESSAGE_BYTES_MAX
"""Characters of all rows when each has its own copy of what a dictionary holds once."""
MESSAGES_MAX = 1_000
"""Arrow messages (record batches, dictionaries and their deltas) of one stream."""
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"

_EXTENSION = b"ARROW:extension:name"
_METADATA_VERSION = 4
"""V5, which all writers since Arrow 1.0 (2020) use; V4 marked compression in another place."""
_UTC_TIME = Annotated[datetime, Meta(tz=True)]
_UNITS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


class Rule(Struct, frozen=True):
    """What a column, or each column of a group, may hold."""

    holds: Literal["text", "number", "whole", "time", "scalar"]
    """`scalar`: text, numbers or booleans."""
    null: bool = True
    """Whether a row may have no value."""
    group: bool = False
    """A struct column, or flat columns `NAME.KEY`."""
    chars: tuple[int, int] | None = None
    """Least and most characters of a text."""
    values: tuple[str, ...] = ()
    """The only texts, where there are any."""


_ARM = Rule("text", chars=(0, ARM_LENGTH_MAX))
COLUMNS: dict[str, Rule] = {
    "time": Rule("time", null=False),
    "ids": Rule("text", null=False, chars=(1, ID_LENGTH_MAX)),
    "features": Rule("scalar", group=True),
    "prediction": Rule("scalar"),
    "scores": Rule("number", group=True),
    "latency_ms": Rule("number"),
    "status": Rule("text", null=False, values=get_args(Status)),
    "error": Rule("text"),
    "attributes": Rule("text", null=False, group=True),
    "arm": _ARM,
    "served_by": _ARM,
    "traffic_revision": Rule("whole"),
}
METADATA: dict[str, int] = {
    "id": ID_LENGTH_MAX,
    "model": NAME_LENGTH_MAX,
    "version": NAME_LENGTH_MAX,
}
"""Required keys of the schema's metadata, and their most characters; `time` and `sample_rate` beside."""


class Column(Struct, frozen=True):
    """Values of n rows. No value is NaN in floats, None in a text's keys, True in `missing` else."""

    values: Floats | Ints | Mask | Coded
    missing: Mask | None = None
    """Shape (n,), for whole numbers and booleans; None when every row has a value."""

    def tolist(self) -> list[Any]:
        """Return the values as the JSON batch has them, None for no value."""
        values = self.values
        if isinstance(values, Coded):
            return list(values)
        plain: list[Any] = values.tolist()
        if values.dtype.kind == "f":
            return [None if value != value else value for value in plain]  # noqa: PLR0124
        if self.missing is None:
            return plain
        return [None if gone else v for v, gone in zip(plain, self.missing.tolist(), strict=True)]

    @property
    def coded(self) -> Coded:
        """The texts of a text column, as they came."""
        return cast("Coded", self.values)

    @property
    def floats(self) -> Floats:
        """The numbers of a column of numbers as float64, shape (n,)."""
        values = cast("Floats | Ints", self.values)
        if values.dtype.kind == "f":
            return cast("Floats", values)
        numbers = values.astype(np.float64)
        if self.missing is not None:
            numbers[self.missing] = np.nan
        return numbers


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
        _check_stream(pa, ipc, value)
        options = ipc.IpcReadOptions(use_threads=False)
        reader = ipc.open_stream(pa.BufferReader(value), options=options)
        schema = reader.schema
        with np.errstate(over="ignore", invalid="ignore"):  # for the search for infinities
            return _batch(pa, schema, list(_record_batches(reader)))
    except UnicodeDecodeError as error:
        raise DecodeError(Reason.BAD_UTF8, str(error)) from error
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        reason = Reason.BAD_UTF8 if "UTF8" in str(error) else Reason.BAD_ARROW
        raise DecodeError(reason, str(error)) from error


# --- the stream -----------------------------------------------------------------------------------


def _check_stream(pa: Any, ipc: Any, value: bytes) -> None:
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


def _record_batches(reader: Any) -> Iterator[Any]:
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
    for (name, key), (index, child) in wanted.items():
        rule = COLUMNS[name]
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
            column = _joined([_column(pa, part, path) for part in parts])
            found[name if rule.group else ""][key] = _checked(rule, path, column)
    _check_text([column for columns in found.values() for column in columns.values()])
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
    values = cast("Ints", _joined([_column(pa, part, "time") for part in parts]).values)
    # Compared in their own unit: a product might overflow.
    most = TIME_MS_MAX * per_s // 1_000 - pa.types.is_timestamp(kind)
    outside = (values < TIME_MS_MIN * per_s // 1_000) | (values > most)
    if outside.any():
        raise DecodeError(
            Reason.BAD_TIME, f"`time` {values[outside][0]} ({kind}) is outside 1900 to 2199."
        )
    if per_s <= 1_000:
        return values * (1_000 // per_s)
    # As `time_ms` rounds a datetime: seconds as a float, then half to even.
    micros = values // (per_s // 1_000_000)
    return np.rint(micros / 1e6 * 1_000.0).astype(np.int64)


# --- columns --------------------------------------------------------------------------------------


def _column(pa: Any, array: Any, path: str) -> Column:
    """Return a column of Arrow's scalars as numpy's; floats and integers without nulls are not copied."""
    types, kind = pa.types, array.type
    if types.is_floating(kind) or types.is_decimal(kind):
        if types.is_decimal(kind):
            array = array.cast(pa.float64())
        numbers: Floats = array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
        # One product tells almost always; NaN, infinity or overflow need the look at each.
        if not math.isfinite(numbers.dot(numbers)) and np.isinf(numbers).any():
            raise DecodeError(Reason.NOT_FINITE, f"{path} holds an infinity; send null.")
        return Column(numbers)
    if types.is_dictionary(kind):
        if not _is_text(types, kind.value_type):
            raise DecodeError(Reason.WRONG_TYPE, f"{path} is {kind}; dictionaries hold text.")
        return Column(_coded(pa, array, distinct=False))
    if _is_text(types, kind):
        return Column(_coded(pa, array.dictionary_encode(), distinct=True))
    if types.is_null(kind):
        return Column(Coded.constant(None, len(array)))
    boolean = types.is_boolean(kind)
    if not boolean and not types.is_integer(kind):
        raise DecodeError(
            Reason.WRONG_TYPE,
            f"{path} is {kind}; send number, text (string, large_string, dictionary) or bool.",
        )
    missing = None
    if array.null_count:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        array = array.fill_null(False if boolean else 0)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "u" and (values > np.uint64(2**63 - 1)).any():
        raise DecodeError(Reason.BAD_VALUE, f"{path} holds an integer above 2**63 - 1.")
    return Column(values if boolean else values.astype(np.int64, copy=False), missing)


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _coded(pa: Any, array: Any, *, distinct: bool) -> Coded:
    """Return a dictionary array's texts, None for null; `distinct` when the dictionary's are."""
    keys: list[str | None] = array.dictionary.to_pylist()
    indices = array.indices
    if indices.null_count:
        # int64 first: the place after the last key need not fit the producer's type.
        indices = indices.cast(pa.int64()).fill_null(len(keys))
        keys.append(None)
    codes = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    if distinct or len(set(keys)) == len(keys):
        return Coded(codes, tuple(keys))
    unique = Coded.of_text(keys)
    return Coded(unique.codes[codes], unique.keys)


def _joined(parts: Sequence[Column]) -> Column:
    """Return the rows of the record batches' columns, which are of one type."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0].values, Coded):
        return Column(join([part.coded for part in parts]))
    arrays = [cast("Floats", part.values) for part in parts]
    missing = None
    if any(part.missing is not None for part in parts):
        missing = np.concatenate(
            [
                np.zeros(values.size, np.bool_) if part.missing is None else part.missing
                for part, values in zip(parts, arrays, strict=True)
            ]
        )
    return Column(np.concatenate(arrays), missing)


def _checked(rule: Rule, path: str, column: Column) -> Column:
    """Return the column as its rule wants it. Raises DecodeError."""
    values = column.values
    if isinstance(values, Coded) and values.keys == (None,) and rule.holds in ("number", "whole"):
        values = np.full(len(values), np.nan)  # Arrow's null type, or text without any
        column = Column(values)
    if isinstance(values, Coded):
        if rule.holds not in ("text", "scalar"):
            raise DecodeError(Reason.WRONG_TYPE, f"{path} is text, not {rule.holds}.")
        # What a dictionary holds and no row names is no fault; to find the present ones costs more.
        if not _fits(rule, values.keys) and (
            problem := _text_problem(rule, path, values.present())
        ):
            raise problem
        return column
    if rule.holds == "text":
        raise DecodeError(Reason.WRONG_TYPE, f"{path} is {values.dtype}, not text.")
    if rule.holds in ("number", "whole") and values.dtype.kind == "b":
        raise DecodeError(Reason.WRONG_TYPE, f"{path} is bool, not {rule.holds}.")
    if rule.holds == "whole" and values.dtype.kind == "f":
        return _whole(path, cast("Floats", values))
    return column


def _whole(path: str, values: Floats) -> Column:
    """Return floats as integers: data frames turn integers with nulls into floats."""
    missing = np.isnan(values)
    numbers = np.where(missing, 0.0, values)
    if (numbers != np.rint(numbers)).any() or (np.abs(numbers) > 2**53).any():
        raise DecodeError(Reason.WRONG_TYPE, f"{path} holds a number that is not whole.")
    return Column(numbers.astype(np.int64), missing if missing.any() else None)


def _fits(rule: Rule, keys: Sequence[Any]) -> bool:
    """Tell whether no key is a problem, all at once: ids are as many as rows."""
    texts = [key for key in keys if key is not None]
    if len(texts) < len(keys) and not rule.null:
        return False
    if "\0" in "".join(texts) or (rule.values and not set(texts) <= set(rule.values)):
        return False
    if rule.chars is None or not texts:
        return True
    lengths = list(map(len, texts))
    return rule.chars[0] <= min(lengths) and max(lengths) <= rule.chars[1]


def _text_problem(rule: Rule, path: str, keys: Sequence[Any]) -> DecodeError | None:
    least, most = rule.chars or (0, math.inf)
    for key in keys:
        if key is None:
            if not rule.null:
                return DecodeError(Reason.WRONG_TYPE, f"{path} has a null.")
        elif not least <= len(key) <= most:
            text = f"{path} has a text of {len(key)} characters, not {least} to {most}."
            return DecodeError(Reason.BAD_VALUE, text)
        elif rule.values and key not in rule.values:
            text = f"{path} is {key[:80]!r}; it may be {', '.join(rule.values)}."
            return DecodeError(Reason.BAD_VALUE, text)
        elif "\0" in key:
            return DecodeError(Reason.NUL_CHARACTER, f"{path} holds U+0000; remove it.")
    return None


def _check_text(columns: Sequence[Column]) -> None:
    """Refuse more text than TEXT_CHARS_MAX once each row has its own."""
    texts = [column.values for column in columns if isinstance(column.values, Coded)]
    lengths = [[len(key or "") for key in text.keys] for text in texts]
    most = sum(len(text) * max(each) for text, each in zip(texts, lengths, strict=True) if each)
    if most <= TEXT_CHARS_MAX:
        return
    chars = sum(
        int(text.counts() @ np.array(each)) for text, each in zip(texts, lengths, strict=True)
    )
    if chars > TEXT_CHARS_MAX:
        raise DecodeError(
            Reason.BAD_VALUE,
            f"The texts of all rows have {chars} characters; the limit is {TEXT_CHARS_MAX}.",
        )
