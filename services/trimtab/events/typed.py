"""Reading the inferences of one model, and labels: the innermost loop of the monitor.

What is done here is done for every event, so it is done by loops in C over many messages at once; what a
message is, is looked at message by message only where they differ.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, defstruct, field

from trimtab.contracts.model import Contract
from trimtab.events.cloudevents import (
    MESSAGE_BYTES_MAX,
    STRUCTURED_CONTENT_TYPE,
    STRUCTURED_START,
    DecodeError,
    Headers,
    check,
)
from trimtab.events.types import (
    BATCH_TYPE,
    INFERENCE_TYPE,
    LABEL_TYPE,
    Inference,
    InferenceBatch,
    Int64,
    Label,
    Scalar,
)

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
"""What the decoders raise; `cloudevents.decode` says it again, with the reason."""
_ESCAPE, _NUL_ESCAPE = b"\\", b"\\u0000"
"""Only an escape can bring U+0000 in. Looking for one byte costs a tenth of looking for six."""


class TypedInferenceDecoder:
    """Reads the inferences of one model with its declared features as typed Struct fields.

    Numbers are float or int (NaN when absent, None when null), categories str or None. A message that does
    not fit (another model, a feature of the wrong type, an undeclared feature) gives None: read it with
    `cloudevents.decode`, which accepts any scalar, and count there what does not fit. Undeclared
    features named in `also` are tolerated (fields x0, x1, …; UNSET when absent), so that a producer
    that always sends one more column does not take the slow way. Where the contract watches attributions,
    `attributions` is a Struct too, whose first fields are those of `attributed`, NaN when absent.

    Attributes:
        numbers, categories: the contract's features of either kind, in its order.
        attributed: those whose attributions are watched.
        no_attributions: what stands for the attributions of a row without any; None where none are watched.
        category_fields: the names of the categories' fields in the result's `features`, whose fields
            are the numbers, then the categories, then those of `also`.

    """

    def __init__(self, contract: Contract, also: Sequence[str] = ()) -> None:
        self.model = contract.name
        self.numbers = tuple(n for n, f in contract.features.items() if f.kind == "number")
        self.categories = tuple(n for n, f in contract.features.items() if f.kind != "number")
        self.category_fields = tuple(f"c{index}" for index in range(len(self.categories)))
        self.also = tuple(name for name in also if name not in contract.features)
        self.attributed = contract.attributed
        self.no_attributions: Any = None
        self._unattributed = tuple(n for n in contract.features if n not in self.attributed)
        row, batch = self._typed(batch=False), self._typed(batch=True)
        self._row = row
        self._decode_row = msgspec.json.Decoder(row).decode
        self._decode_batch = msgspec.json.Decoder(batch).decode
        self._decode_structured = msgspec.json.Decoder(
            _typed_envelope("One", INFERENCE_TYPE, row) | _typed_envelope("Many", BATCH_TYPE, batch)  # type: ignore[arg-type,unused-ignore]
        ).decode

    def decode(self, value: bytes, headers: Headers) -> Any | None:
        """Return a typed inference or batch, or None where `cloudevents.decode` has to read the message.

        The result has the fields of Inference or InferenceBatch; its `features` is a Struct (see the
        class; `msgspec.structs.astuple` gives its values), in a batch of lists, UNSET when the column
        is absent.
        """
        return self.decode_all([value], lambda: [headers])[0][0]

    def decode_all(
        self, values: Sequence[bytes | None], headers: Callable[[], Sequence[Headers]]
    ) -> tuple[list[Any | None], bool]:
        """Return what `decode` gives for each message, and whether all are single inferences.

        `headers` gives those of every message: it is asked only where the values do not say what they
        are, because some clients make headers when they are asked for.
        """
        payloads: list[bytes] = [value or b"" for value in values]
        read = self._reader_of_all(payloads, headers)
        if read is None:
            events = self._one_by_one(payloads, headers())
        else:
            events = _map(read, payloads)
            if read is self._decode_structured:
                events = [event and event.data for event in events]
        if (
            set(map(type, events)) == {self._row}
            and {type(event.time) for event in events} == {int}  # type: ignore[union-attr]
            and not any([_ESCAPE in payload and _NUL_ESCAPE in payload for payload in payloads])  # noqa: C419 - half the time
        ):
            return events, True
        events = [self._checked(*pair) for pair in zip(events, payloads, strict=True)]
        return events, set(map(type, events)) == {self._row}

    def _reader_of_all(
        self, payloads: list[bytes], headers: Callable[[], Sequence[Headers]]
    ) -> Callable[[bytes], Any] | None:
        """Return the one reader that is right for all of the messages, None if there is none."""
        if max(map(len, payloads)) > MESSAGE_BYTES_MAX:
            return None
        structured = [payload.startswith(STRUCTURED_START) for payload in payloads].count(True)
        if structured:
            return self._decode_structured if structured == len(payloads) else None
        given = headers()
        if not any(given):
            return self._decode_row
        first, n = given[0], len(given)
        names = [name for name, _ in first]
        if [name for each in given for name, _ in each] != names * n or len(
            set(map(len, given))
        ) > 1:
            return None
        for place, name in enumerate(names):
            if name in _TELLING_HEADERS:
                told = [each[place][1] for each in given]
                if told.count(told[0]) < n:
                    return None
        return self._reader_of(first)

    def _one_by_one(self, payloads: list[bytes], headers: Sequence[Headers]) -> list[Any | None]:
        """Read messages that differ in kind, each by what it says of itself."""
        events: list[Any | None] = []
        for payload, given in zip(payloads, headers, strict=True):
            event = None
            if len(payload) <= MESSAGE_BYTES_MAX:
                if payload.startswith(STRUCTURED_START):
                    read: Callable[[bytes], Any] | None = self._decode_structured
                else:
                    read = self._reader_of(given) if given else self._decode_row
                if read is not None:
                    (event,) = _map(read, [payload])
                    if event is not None and read is self._decode_structured:
                        event = event.data
            events.append(event)
        return events

    def _checked(self, event: Any | None, payload: bytes) -> Any | None:
        """Return the event if what its types cannot say is right, too; else None."""
        if event is None:
            return None
        plain = type(event) is self._row and type(event.time) is int  # type: ignore[attr-defined]
        if plain and _NUL_ESCAPE not in payload:
            return event
        try:
            check(event, payload)
        except DecodeError:
            return None
        return event

    def _reader_of(self, headers: Headers) -> Callable[[bytes], Any] | None:
        """Return the reader of a message by its headers, None where they are not plainly ours."""
        if len(headers) == 1 and headers[0][1] == STRUCTURED_CONTENT_TYPE:
            return self._decode_structured
        event_type = spec_version = b""
        for name, header in headers:
            if name == "ce_type":
                event_type = header or b""
            elif name == "ce_specversion":
                spec_version = header or b""
            elif name == "content-type":
                if header != b"application/json":
                    return None
            elif name not in _PLAIN_HEADERS:  # it may be one of these in capitals
                return None
        if spec_version != b"1.0":
            return None
        if event_type == _INFERENCE_TYPE_BYTES:
            return self._decode_row
        return self._decode_batch if event_type == _BATCH_TYPE_BYTES else None

    def _typed(self, *, batch: bool) -> type[Struct]:
        base = InferenceBatch if batch else Inference
        names: dict[str, str] = {}
        spec: list[tuple[str, Any, Any]] = []

        def add(key: str, name: str, kind: Any, default: Any) -> None:
            names[key] = name
            if batch:
                kind, default = list[kind] | UnsetType, UNSET
            spec.append((key, kind, default))

        for index, name in enumerate(self.numbers):
            # NaN for an absent one, so that a row of numbers is packed without a look at each. Int64:
            # what the general reader refuses must not count because this one was tried first.
            add(f"n{index}", name, float | Int64 | None, math.nan)
        for key, name in zip(self.category_fields, self.categories, strict=True):
            add(key, name, str | None, None)
        # As typed as the general reader has them: whether a name has been met must decide over no row.
        others: Any = list[Scalar] if batch else Scalar
        for index, name in enumerate(self.also):
            names[f"x{index}"] = name
            spec.append((f"x{index}", others | UnsetType, UNSET))
        features = defstruct(
            "Features", spec, rename=names, forbid_unknown_fields=True, frozen=True, gc=False
        )
        fields: list[Any] = [
            ("model", Literal[self.model]),
            ("features", features, field(default_factory=features)),
        ]
        if self.attributed:
            attributions = self._typed_attributions(batch=batch)
            fields.append(("attributions", attributions | None, None))
            if not batch:
                self.no_attributions = attributions()
        return defstruct(
            f"Typed{base.__name__}",
            fields,
            bases=(base,),
            kw_only=True,
            frozen=True,
            gc=False,  # trees of values: the collector finds nothing in them
        )

    def _typed_attributions(self, *, batch: bool) -> Any:
        """Return the Struct of attributions: the watched ones, then others that features may have."""
        kind: Any = list[float | None] | UnsetType if batch else float
        default: Any = UNSET if batch else math.nan
        names = (*self.attributed, *self._unattributed, *self.also)
        return defstruct(
            "Attributions",
            [(f"a{index}", kind, default) for index in range(len(names))],
            rename={f"a{index}": name for index, name in enumerate(names)},
            forbid_unknown_fields=True,
            frozen=True,
            gc=False,
        )


_TELLING_HEADERS = frozenset(("ce_type", "ce_specversion", "content-type"))
_PLAIN_HEADERS = frozenset(
    ("ce_id", "ce_source", "ce_time", "ce_subject", "ce_dataschema", "ce_partitionkey")
)
_INFERENCE_TYPE_BYTES, _BATCH_TYPE_BYTES = INFERENCE_TYPE.encode(), BATCH_TYPE.encode()


_read_label = msgspec.json.Decoder(Label).decode


def decode_labels(
    values: Sequence[bytes | None], headers: Callable[[], Sequence[Headers]]
) -> list[Label | None]:
    """Return the labels of messages, None where `cloudevents.decode` has to read the message.

    `headers` gives those of every message, asked only where the values do not say what they are.
    """
    payloads: list[bytes] = [value or b"" for value in values]
    nothing: list[Label | None] = [None] * len(payloads)
    if max(map(len, payloads)) > MESSAGE_BYTES_MAX:
        return nothing
    structured = [payload.startswith(STRUCTURED_START) for payload in payloads].count(True)
    if structured == len(payloads):
        found = [event and event.data for event in _map(_read_label_envelope, payloads)]
    elif structured or any(headers()):
        return nothing
    else:
        found = _map(_read_label, payloads)
    return [
        label if label is not None and type(label.time) is int and _ESCAPE not in payload else None
        for label, payload in zip(found, payloads, strict=True)
    ]


def _map(read: Callable[[bytes], Any], payloads: list[bytes]) -> list[Any | None]:
    """Return what `read` gives for each payload, None for those that it cannot read."""
    events: list[Any | None] = []
    rest = iter(payloads)
    while len(events) < len(payloads):
        try:
            events.extend(map(read, rest))  # on an error it keeps what came before
        except _UNREADABLE:
            events.append(None)
    return events


def typed_inference_decoder(contract: Contract, also: Sequence[str] = ()) -> TypedInferenceDecoder:
    """Return the fast reader of the contract's model. Build it once per contract revision."""
    return TypedInferenceDecoder(contract, also)


def _typed_envelope(name: str, event_type: str, data: type[Struct]) -> type[Struct]:
    return defstruct(
        name,
        [
            ("specversion", Literal["1.0"]),
            ("id", str),
            ("source", str),
            ("data", data),
            ("datacontenttype", Literal["application/json"], "application/json"),
        ],
        tag_field="type",
        tag=event_type,
        frozen=True,
        gc=False,
    )


_read_label_envelope = msgspec.json.Decoder(_typed_envelope("One", LABEL_TYPE, Label)).decode
