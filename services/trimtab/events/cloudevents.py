"""CloudEvents 1.0 in the Kafka protocol binding: messages to typed events, and back.

Three forms are read: *structured* (the value holds the attributes and the data; header
`content-type: application/cloudevents+json`), *binary* (headers `ce_*` hold the attributes, the
value is the data) and *bare* (the value is the data, no attribute anywhere; the topic's role says
which type it is). Our own producers write structured mode with the one header.

A message that cannot be read raises DecodeError with a reason of a closed set; nothing else is
ever raised, whatever the bytes are. Duplicate keys in an object: the last one wins, as in most
JSON readers.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, cast

import msgspec
from msgspec import UNSET, Struct

from trimtab.errors import TrimtabError
from trimtab.events.types import (
    BATCH_TYPE,
    INFERENCE_TYPE,
    LABEL_TYPE,
    RESOURCE_TYPE,
    TRAFFIC_TYPE,
    EventTime,
    Inference,
    InferenceBatch,
    Label,
    Resource,
    Traffic,
    time_ms,
)

SPEC_VERSION = "1.0"
STRUCTURED_CONTENT_TYPE = b"application/cloudevents+json; charset=UTF-8"
STRUCTURED_HEADERS: list[tuple[str, bytes]] = [("content-type", STRUCTURED_CONTENT_TYPE)]
"""The one header our producers send; each more costs a Python consumer 1.6 µs."""
STRUCTURED_START = b'{"specversion":'
"""A value that begins so is a structured event, whatever its headers say: they need not be looked at."""
MESSAGE_BYTES_MAX = 1_048_576
"""Larger values are rejected as `too_large`; Kafka's own default limit."""
ARROW_CONTENT_TYPE = "application/vnd.apache.arrow.stream"
"""Of a batch as an Arrow IPC stream; `trimtab.arrow` reads it, since nothing here may know pyarrow."""
_DETAIL_LENGTH_MAX = 300
_YEAR_MIN, _YEAR_MAX = 1900, 2199

Role = Literal["inference", "labels", "resources", "traffic"]
"""What a topic carries; it names the type of bare messages."""
Headers = Sequence[tuple[str, bytes | None]]
Event = Inference | InferenceBatch | Label | Resource | Traffic


class Reason(StrEnum):
    """Why a message was rejected. Closed: metrics and the ledger count by it."""

    EMPTY = "empty"
    """No value (a Kafka tombstone) or no bytes."""
    TOO_LARGE = "too_large"
    BAD_UTF8 = "bad_utf8"
    BAD_JSON = "bad_json"
    BAD_ARROW = "bad_arrow"
    """Not one Arrow IPC stream, or with parts that are not read (compressed bodies, extension types)."""
    TOO_DEEP = "too_deep"
    NOT_FINITE = "not_finite"
    """NaN, Infinity, or a number that no 64-bit float or integer holds."""
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    BAD_VALUE = "bad_value"
    """The right type, outside its limits: an empty id, an unknown status, a negative count."""
    NAIVE_TIME = "naive_time"
    """A time without an offset."""
    BAD_TIME = "bad_time"
    """Not an RFC 3339 time, or outside 1900 to 2199."""
    NUL_CHARACTER = "nul_character"
    """U+0000 inside a string, which no SQL text holds."""
    UNEQUAL_COLUMNS = "unequal_columns"
    """A batch whose columns do not all have `rows` values."""
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    UNSUPPORTED_SPEC_VERSION = "unsupported_spec_version"


class DecodeError(TrimtabError):
    """A message cannot be read. `reason` is for counting, `detail` for people."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        # The detail may quote the payload: keep it short and printable.
        self.detail = detail.encode("unicode_escape").decode("ascii")[:_DETAIL_LENGTH_MAX]
        super().__init__(f"{reason}: {self.detail}")


class _InferenceEnvelope(Struct, tag_field="type", tag=INFERENCE_TYPE):
    specversion: str
    id: str
    source: str
    data: Inference
    datacontenttype: str = "application/json"


class _BatchEnvelope(Struct, tag_field="type", tag=BATCH_TYPE):
    specversion: str
    id: str
    source: str
    data: InferenceBatch
    datacontenttype: str = "application/json"


class _LabelEnvelope(Struct, tag_field="type", tag=LABEL_TYPE):
    specversion: str
    id: str
    source: str
    data: Label
    datacontenttype: str = "application/json"


class _ResourceEnvelope(Struct, tag_field="type", tag=RESOURCE_TYPE):
    specversion: str
    id: str
    source: str
    data: Resource
    datacontenttype: str = "application/json"


class _TrafficEnvelope(Struct, tag_field="type", tag=TRAFFIC_TYPE):
    specversion: str
    id: str
    source: str
    data: Traffic
    datacontenttype: str = "application/json"


_Envelope = (
    _InferenceEnvelope | _BatchEnvelope | _LabelEnvelope | _ResourceEnvelope | _TrafficEnvelope
)
# The envelope is one tagged union on `type`, so that structured mode is read in one pass.
_ENVELOPES = msgspec.json.Decoder(_Envelope)
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    INFERENCE_TYPE: msgspec.json.Decoder(Inference),
    BATCH_TYPE: msgspec.json.Decoder(InferenceBatch),
    LABEL_TYPE: msgspec.json.Decoder(Label),
    RESOURCE_TYPE: msgspec.json.Decoder(Resource),
    TRAFFIC_TYPE: msgspec.json.Decoder(Traffic),
}
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ROLE_TYPES: dict[str, str] = {
    "inference": INFERENCE_TYPE,
    "labels": LABEL_TYPE,
    "resources": RESOURCE_TYPE,
    "traffic": TRAFFIC_TYPE,
}
_ENCODER = msgspec.json.Encoder()


def decode(
    value: bytes | None,
    headers: Headers,
    role: Role,
    *,
    max_bytes: int = MESSAGE_BYTES_MAX,
) -> Event:
    """Return the event that a Kafka message holds.

    `role` is what the message's topic carries; it is used for bare messages only, so any type
    with attributes may come over any topic.
    Raises DecodeError.
    """
    if not value:
        raise DecodeError(Reason.EMPTY, "The message has no value.")
    if len(value) > max_bytes:
        raise DecodeError(Reason.TOO_LARGE, f"{len(value)} bytes; the limit is {max_bytes}.")
    try:
        event = _decode(value, headers, role)
    except DecodeError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise decode_error(error, value) from error
    check(event, value)
    return event


def is_arrow(headers: Headers) -> bool:
    """Tell whether a message's content type is that of an Arrow stream."""
    for name, header in headers:
        if name.lower() == "content-type":
            return _media_type(header or b"") == ARROW_CONTENT_TYPE
    return False


def _media_type(header: bytes) -> str:
    return header.decode("utf-8", "replace").lower().partition(";")[0].strip()


def _decode(value: bytes, headers: Headers, role: Role) -> Event:
    if value.startswith(STRUCTURED_START) or (
        len(headers) == 1 and headers[0][1] == STRUCTURED_CONTENT_TYPE
    ):
        return _decode_structured(value)
    content_type = ""
    event_type = ""
    spec_version = SPEC_VERSION
    for name, header in headers:
        key = name.lower()
        if header is None:
            continue
        if key == "content-type":
            content_type = _media_type(header)
        elif key == "ce_type":
            event_type = header.decode("utf-8", "replace")
        elif key == "ce_specversion":
            spec_version = header.decode("utf-8", "replace")
    if content_type == "application/cloudevents+json":
        return _decode_structured(value)
    if content_type not in ("", "application/json") and not content_type.endswith("+json"):
        raise DecodeError(
            Reason.UNSUPPORTED_CONTENT_TYPE, f"{content_type!r}; send application/json."
        )
    if spec_version != SPEC_VERSION:
        raise DecodeError(Reason.UNSUPPORTED_SPEC_VERSION, f"{spec_version!r}; send 1.0.")
    if event_type:
        decoder = _DECODERS.get(event_type)
        if decoder is None:
            raise DecodeError(Reason.UNKNOWN_EVENT_TYPE, repr(event_type))
        return cast("Event", decoder.decode(value))
    return _decode_bare(value, role)


def _decode_structured(value: bytes) -> Event:
    envelope = _ENVELOPES.decode(value)
    if envelope.specversion != SPEC_VERSION:
        raise DecodeError(Reason.UNSUPPORTED_SPEC_VERSION, f"{envelope.specversion!r}; send 1.0.")
    if envelope.datacontenttype != "application/json":
        kind = envelope.datacontenttype.lower().partition(";")[0].strip()
        if kind != "application/json" and not kind.endswith("+json"):
            raise DecodeError(Reason.UNSUPPORTED_CONTENT_TYPE, f"{kind!r}; send application/json.")
    return cast("Event", envelope.data)


def _decode_bare(value: bytes, role: Role) -> Event:
    try:
        return cast("Event", _DECODERS[_ROLE_TYPES[role]].decode(value))
    except (msgspec.ValidationError, RecursionError):
        # Two other forms look like a wrong inference: a structured event whose producer sent no
        # header, and a bare batch. What they hold at the top level tells them apart.
        keys = _TOP_LEVEL.decode(value).keys()
        if "specversion" in keys and "data" in keys:
            return _decode_structured(value)
        if role == "inference" and "rows" in keys:
            return cast("Event", _DECODERS[BATCH_TYPE].decode(value))
        raise


def check(event: Event, value: bytes) -> None:
    """Check what the types cannot say; cheap for a good message. Raises DecodeError."""
    if isinstance(event, Traffic):
        times: list[EventTime] = []
    else:
        times = event.time if isinstance(event.time, list) else [event.time]
    for time in times:  # integers were checked by their type
        if type(time) is not int and not _YEAR_MIN <= cast("datetime", time).year <= _YEAR_MAX:
            raise DecodeError(Reason.BAD_TIME, f"{time} is outside 1900 to 2199.")
    if isinstance(event, InferenceBatch):
        _check_columns(event)
    # Only an escape can bring U+0000 in, and looking for its first byte alone costs a tenth.
    if b"\\" in value and b"\\u0000" in value and _has_nul(msgspec.to_builtins(event)):
        raise DecodeError(Reason.NUL_CHARACTER, "A string holds U+0000; remove it.")


def _has_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    if isinstance(value, list):
        return any(_has_nul(item) for item in value)
    return False


def _check_columns(batch: InferenceBatch) -> None:
    if _lengths(batch) <= {batch.rows}:
        return
    for name, column in batch_columns(batch).items():
        if len(column) != batch.rows:
            raise DecodeError(
                Reason.UNEQUAL_COLUMNS,
                f"{name} holds {len(column)} values, `rows` says {batch.rows}.",
            )


def _lengths(batch: InferenceBatch) -> set[int]:
    """Return the lengths of the columns, without their names: a fifth of the work for a good batch."""
    found: set[int] = set()
    for content in msgspec.structs.astuple(batch):
        if isinstance(content, list):
            found.add(len(content))
        elif isinstance(content, Struct):  # the typed decoder's features
            found.update(len(c) for c in msgspec.structs.astuple(content) if c is not UNSET)
        elif isinstance(content, dict):
            found.update(map(len, content.values()))
    return found


def batch_columns(batch: InferenceBatch) -> dict[str, Sequence[object]]:
    """Every column of the batch that is present, by its path such as `features.income`."""
    columns: dict[str, Sequence[object]] = {}
    for name in InferenceBatch.__struct_fields__:
        content = getattr(batch, name)
        if isinstance(content, list):
            columns[name] = content
        elif isinstance(content, Struct):  # the typed decoder's features
            columns.update(
                {
                    f"{name}.{key}": column
                    for key, column in msgspec.structs.asdict(content).items()
                    if isinstance(column, list)
                }
            )
        elif isinstance(content, dict):
            columns.update({f"{name}.{key}": column for key, column in content.items()})
    return columns


def batch_rows(batch: InferenceBatch) -> list[Inference]:
    """Return the batch's rows as single inferences. Row i has `ids[i]`, or "{id}#{i}"."""
    columns = {name: column for name, column in batch_columns(batch).items() if "." not in name} | {
        "id": batch.ids or [f"{batch.id}#{index}" for index in range(batch.rows)]
    }
    columns.pop("ids", None)
    fixed: dict[str, Any] = {
        "model": batch.model,
        "version": batch.version,
        "sample_rate": batch.sample_rate,
    }
    if not isinstance(batch.time, list):
        fixed["time"] = batch.time
    rows = []
    for index in range(batch.rows):
        row: dict[str, Any] = {name: column[index] for name, column in columns.items()}
        row["features"] = {name: column[index] for name, column in batch.features.items()}
        row["attributes"] = {name: column[index] for name, column in batch.attributes.items()}
        if batch.scores is not None:
            row["scores"] = {name: column[index] for name, column in batch.scores.items()}
        if batch.attributions is not None:
            row["attributions"] = {
                name: value
                for name, column in batch.attributions.items()
                if (value := column[index]) is not None
            }
        rows.append(Inference(**fixed, **row))
    return rows


_MALFORMED_AT = re.compile(r"\(byte (\d+)\)")
_NOT_FINITE_TOKENS = (b"NaN", b"Infinity", b"-Infinity", b"nan", b"inf", b"-inf")


def decode_error(error: Exception, value: bytes) -> DecodeError:
    """Return the closed reason of what msgspec raised on `value`."""
    text = str(error)
    if isinstance(error, RecursionError):
        return DecodeError(Reason.TOO_DEEP, "The value nests too deep.")
    if isinstance(error, UnicodeDecodeError):
        return DecodeError(Reason.BAD_UTF8, text)
    if isinstance(error, msgspec.ValidationError):
        return DecodeError(_validation_reason(text), text)
    if isinstance(error, msgspec.DecodeError):
        found = _MALFORMED_AT.search(text)
        # msgspec names the first byte it could not use: for -Infinity that is the I.
        start = int(found[1]) if found else len(value)
        near = (value[start : start + 9], value[max(start - 1, 0) : start + 8])
        if any(part.startswith(_NOT_FINITE_TOKENS) for part in near):
            return DecodeError(Reason.NOT_FINITE, "JSON has no NaN or Infinity; send null.")
    return DecodeError(Reason.BAD_JSON, text)


def _validation_reason(text: str) -> Reason:
    if text.startswith("Object missing required field"):
        return Reason.MISSING_FIELD
    if "timezone component" in text:
        return Reason.NAIVE_TIME
    if "out of range" in text:
        return Reason.NOT_FINITE
    if text.startswith("Invalid RFC3339"):
        return Reason.BAD_TIME
    if text.startswith("Invalid value") and text.endswith("`$.type`"):
        return Reason.UNKNOWN_EVENT_TYPE
    if ", got `" in text:
        return Reason.WRONG_TYPE
    return Reason.BAD_TIME if "`$.data.time" in text or "`$.time" in text else Reason.BAD_VALUE


# --- writing --------------------------------------------------------------------------------------


def event_type(event: Event) -> str:
    """Return the CloudEvents type of the event."""
    match event:
        case Inference():
            return INFERENCE_TYPE
        case InferenceBatch():
            return BATCH_TYPE
        case Label():
            return LABEL_TYPE
        case Resource():
            return RESOURCE_TYPE
        case Traffic():
            return TRAFFIC_TYPE


def event_id(event: Event) -> str:
    """Return the CloudEvents id of the event: deterministic, so that a resend is recognised."""
    match event:
        case Inference() | InferenceBatch():
            return event.id
        case Label():
            return f"{event.inference_id}:{event.revision}" + ("-" if event.retracted else "")
        case Resource():
            return f"{event.instance}:{time_ms(event.time)}"
        case Traffic():
            return f"{event.model}:{event.revision}"


def event_key(event: Event) -> bytes:
    """Return the Kafka key our producers use: the inference id, an instance, or the model."""
    match event:
        case Inference() | InferenceBatch():
            return event.id.encode()
        case Label():
            return event.inference_id.encode()
        case Resource():
            return event.instance.encode()
        case Traffic():
            return event.model.encode()


class _Outgoing(Struct):
    specversion: str
    type: str
    id: str
    source: str
    data: Any


def encode_structured(event: Event, source: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the value and headers of the event's Kafka message in structured mode.

    `source` is a URI reference that names the producer, such as "trimtab/serve/digits".
    """
    value = _ENCODER.encode(
        _Outgoing(SPEC_VERSION, event_type(event), event_id(event), source, event)
    )
    return value, STRUCTURED_HEADERS


def encode_binary(event: Event, source: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return the value and headers of the event's Kafka message in binary mode."""
    headers = {
        "ce_specversion": SPEC_VERSION,
        "ce_type": event_type(event),
        "ce_id": event_id(event),
        "ce_source": source,
        "content-type": "application/json",
    }
    return _ENCODER.encode(event), [(name, text.encode()) for name, text in headers.items()]
