"""Kafka records to columns per model, with what could not be read and why.

The typed decoder of the model is tried first; a message that does not fit is read by the general one,
which accepts any scalar, so that type errors are counted per feature. Nothing here raises on a payload.

Records are read as they arrive, in chunks: payloads and events become columns and are freed while the
processor's cache still holds them, which halves the cost (docs/performance.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, field

from trimtab.arrow import ArrowBatch, read_arrow
from trimtab.events.cloudevents import (
    STRUCTURED_START,
    DecodeError,
    Headers,
    Reason,
    Role,
    decode,
    is_arrow,
)
from trimtab.events.typed import decode_labels
from trimtab.events.types import Inference, InferenceBatch, Label, Resource, ResourceSample, time_ms
from trimtab.monitor.arrow_rows import arrow_block
from trimtab.monitor.blocks import batch_block, single_block
from trimtab.monitor.columns import Ints, Rows, concatenate
from trimtab.monitor.label_columns import (
    LabelColumns,
    joined_labels,
    label_columns,
    label_value,
    plain_values,
)
from trimtab.monitor.views import ModelView, Views
from trimtab.source import Record, UnreadableHeadersError, columns_of
from trimtab.store.flushes import PAYLOAD_BYTES_MAX
from trimtab.store.ledger import ClassKey
from trimtab.windows.lateness import is_future

UNIT_OF_ROLE: dict[Role, str] = {
    "inference": "row",
    "labels": "label",
    "resources": "resource",
    "traffic": "resource",
}
CHUNK = 500
"""Records decoded at a time; 200 to 1,000 cost the same, 20,000 two thirds more."""
CHUNK_BYTES = 512 * 1024
"""Of large records there are fewer in a chunk: a batch of 500 rows fills the cache by itself."""
_ARROW_START = 0xFF
"""First byte of an Arrow stream, and of no JSON: the typed decoders need not look at it."""
_NONE: Ints = np.empty(0, np.int64)
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')


class Reject(Struct, frozen=True):
    """A message (or the rows of one) that does not count, and why."""

    record: int
    """Index in the batch."""
    unit: str
    model: str
    reason: str
    detail: str
    rows: int = 1


class ResourceRow(Struct, frozen=True):
    """Gauges of an instance at a moment, from a resource event or beside an inference."""

    record: int
    model: str
    version: str
    instance: str
    time_ms: int
    sample: ResourceSample


class Decoded(Struct):
    """What some records of a partition hold. A record is named by its place among them."""

    offsets: Ints
    stamps_ms: Ints
    """Timestamps of the records."""
    payloads: dict[int, bytes] = field(default_factory=dict)
    """Of records of which something is rejected, cut to PAYLOAD_BYTES_MAX."""
    rows: dict[str, Rows] = field(default_factory=dict)
    labels: dict[str, LabelColumns] = field(default_factory=dict)
    resources: list[ResourceRow] = field(default_factory=list)
    beside: list[ResourceRow] = field(default_factory=list)
    """Gauges that came beside inferences; they are no units of the ledger."""
    rejects: list[Reject] = field(default_factory=list)
    ignored: Counter[ClassKey] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    """Rows, labels and resources received, whatever became of them."""
    fast: int = 0
    """Messages that the typed decoder read."""


def decode_records(
    records: Sequence[Record],
    role: Role,
    topic: str,
    views: Views,
    poison: frozenset[int] = frozenset(),
) -> Decoded:
    """Return what a batch of one partition holds: a `Reading` of one `add`."""
    reading = Reading(role, topic, views, poison)
    reading.add(records)
    return reading.decoded()


class Reading:
    """Records of one partition on their way to columns: `add` them as they come, then ask `decoded`.

    `views` are the contracts in force for all of them, by model. Offsets in `poison` have made counting
    fail before: they are rejected as `internal_error`.
    """

    def __init__(
        self, role: Role, topic: str, views: Views, poison: frozenset[int] = frozenset()
    ) -> None:
        self.role, self.topic, self.views, self.poison = role, topic, views, poison
        self.records = 0
        """Records added."""
        self.value_bytes = 0
        """Bytes of their values."""
        self._out = Decoded(_NONE, _NONE)
        self._offsets: list[Ints] = []
        self._stamps: list[Ints] = []
        self._blocks: dict[str, list[Rows]] = {}
        self._labels: dict[str, list[LabelColumns]] = {}
        self._odd_labels: dict[str, list[tuple[int, Label, Any]]] = {}
        """(record, label, value) of those that were looked at one by one."""
        self._view: ModelView | None = None

    @property
    def units(self) -> int:
        """Rows, labels and resources read: a record may hold many."""
        return self._out.units.total()

    def add(self, records: Sequence[Record]) -> None:
        """Read the records that come next in the partition."""
        start = 0
        while start < len(records):
            size = len(records[start].value or b"")
            stop = start + max(1, min(CHUNK, CHUNK_BYTES // max(1, size)))
            self._read(records[start:stop])
            start = stop

    def decoded(self) -> Decoded:
        """Return what the records hold. To be asked once, after the last `add`."""
        out = self._out
        if self._offsets:
            out.offsets, out.stamps_ms = map(np.concatenate, (self._offsets, self._stamps))
        for model, parts in self._blocks.items():
            rows = concatenate(parts)
            rows.offset = out.offsets[rows.record]
            out.rows[model] = rows
        for model, items in self._odd_labels.items():
            index, labels, values = zip(*items, strict=True)
            part = label_columns(self.views[model], np.array(index, np.int64), labels, values)
            self._labels.setdefault(model, []).append(part)
        for model, found in self._labels.items():
            out.labels[model] = joined_labels(found)
        return out

    # --- a chunk ----------------------------------------------------------------------------------

    def _read(self, records: Sequence[Record]) -> None:
        columns = columns_of(records)
        chunk = _Chunk(
            self.records,
            records,
            columns.values,
            np.array(columns.offsets, np.int64),
            np.array(columns.timestamps, np.int64),
        )
        self._offsets.append(chunk.offsets)
        self._stamps.append(chunk.stamps_ms)
        self.records += len(records)
        self.value_bytes += sum(map(len, filter(None, chunk.values)))
        untyped: _Singles = {}
        if self.poison or self.role not in ("inference", "labels"):
            for place in range(len(records)):
                self._general(chunk, place, untyped)
        elif self.role == "labels":
            self._typed_labels(chunk, decode_labels(columns.values, columns.headers), untyped)
        else:
            self._typed(chunk, columns.headers, untyped)
        for model, (places, found) in untyped.items():
            self.views[model].meet(name for event in found for name in event.features)
            self._singles(chunk, self.views[model], np.array(places, np.int64), found, typed=False)

    def _typed(
        self, chunk: _Chunk, headers: Callable[[], list[Headers]], untyped: _Singles
    ) -> None:
        """Read a chunk with the typed decoder of the model that its first message, or the one before, is of."""
        view = self._view
        if view is None:
            view = self._view = self._named(chunk.values[0] or b"", None)
        if view is None:
            self._one_by_one(chunk, [None] * len(chunk.values), untyped)
            return
        events, regular = view.decoder.decode_all(chunk.values, headers)
        if regular and not self._is_bound_elsewhere(view):
            self._singles(chunk, view, np.arange(len(events)), events, typed=True)
        else:
            self._one_by_one(chunk, events, untyped)

    def _one_by_one(self, chunk: _Chunk, events: Sequence[Any | None], untyped: _Singles) -> None:
        """Sort out a chunk in which not every message is a single inference of the model before."""
        singles: _Singles = {}
        before = view = self._view
        for place, (value, known) in enumerate(zip(chunk.values, events, strict=True)):
            event: Any = known
            if event is not None:
                view = before
            elif value and value[0] != _ARROW_START:
                if view is not None and view is not before:
                    event = self._with(view, chunk, place)
                if event is None and (named := self._named(value, before)) is not None:
                    view = named
                    event = self._with(view, chunk, place)
            if event is None or view is None:
                self._general(chunk, place, untyped)
            elif self._is_bound_elsewhere(view):
                self._wrong_topic(chunk, place, view, getattr(event, "rows", 1))
            elif isinstance(event, InferenceBatch):
                self._batch(chunk, place, view, event, typed=True)
            else:
                places, found = singles.setdefault(view.model, ([], []))
                places.append(place)
                found.append(event)
        self._view = view
        for model, (places, found) in singles.items():
            self._singles(chunk, self.views[model], np.array(places, np.int64), found, typed=True)

    # --- one record -------------------------------------------------------------------------------

    @staticmethod
    def _with(view: ModelView, chunk: _Chunk, place: int) -> Any | None:
        """Return what the typed decoder of a model makes of one message."""
        columns = columns_of(chunk.records[place : place + 1])
        return view.decoder.decode_all(columns.values, columns.headers)[0][0]

    def _named(self, value: bytes, view: ModelView | None) -> ModelView | None:
        """Return the contract of the model that the bytes seem to name, if it is another one."""
        found = _MODEL.search(value)
        named = self.views.get(found[1].decode("utf-8", "replace")) if found else None
        return None if named is view else named

    def _is_bound_elsewhere(self, view: ModelView) -> bool:
        return bool(view.topics) and self.topic not in view.topics

    def _wrong_topic(self, chunk: _Chunk, place: int, view: ModelView, rows: int) -> None:
        topics = ", ".join(sorted(view.topics))
        text = f"The contract of {view.model!r} binds it to {topics}."
        self._reject(chunk, place, "row", view.model, "wrong_topic", text, rows)

    def _reject(
        self,
        chunk: _Chunk,
        place: int,
        unit: str,
        model: str,
        reason: str,
        detail: str,
        rows: int = 1,
    ) -> None:
        self._out.units[unit] += rows
        self._out.rejects.append(Reject(chunk.first + place, unit, model, reason, detail, rows))
        self._keep_payload(chunk, place)

    def _keep_payload(self, chunk: _Chunk, place: int) -> None:
        payload = (chunk.values[place] or b"")[:PAYLOAD_BYTES_MAX]
        self._out.payloads[chunk.first + place] = payload

    def _general(self, chunk: _Chunk, place: int, untyped: _Singles) -> None:
        """Read a record with the general decoder."""
        out, unit = self._out, UNIT_OF_ROLE[self.role]
        if int(chunk.offsets[place]) in self.poison:
            text = "Counting this message failed; see the monitor's log."
            self._reject(chunk, place, unit, "", "internal_error", text)
            return
        value = chunk.values[place]
        try:
            headers = _headers(chunk.records[place], value)
            event = (read_arrow if is_arrow(headers) else decode)(value, headers, self.role)
        except DecodeError as error:
            self._reject(chunk, place, unit, "", error.reason.value, error.detail)
            return
        unit, count = _unit(event)
        view = self.views.get(event.model)
        if view is None:
            out.units[unit] += count
            out.ignored[ClassKey(unit, "", "ignored", "unknown_model")] += count
            return
        match event:
            case Inference() | InferenceBatch() | ArrowBatch() if self._is_bound_elsewhere(view):
                self._wrong_topic(chunk, place, view, count)
            case Inference():
                places, found = untyped.setdefault(event.model, ([], []))
                places.append(place)
                found.append(event)
            case InferenceBatch():
                self._batch(chunk, place, view, event, typed=False)
            case ArrowBatch():
                out.units["row"] += count
                out.fast += 1
                self._add_block(chunk, view, arrow_block(view, chunk.first + place, event))
            case Label():
                self._label(chunk, place, view, event)
            case Resource():
                out.units[unit] += 1
                sent_ms = time_ms(event.time)
                out.resources.append(
                    ResourceRow(
                        *(chunk.first + place, event.model, event.version, event.instance),
                        sent_ms,
                        event.sample,
                    )
                )
                if sent_ms > chunk.stamps_ms[place] + view.rules.future_ms:
                    self._keep_payload(chunk, place)
            case _:  # a traffic event on a topic of ours: nothing to count it under
                out.units[unit] += count
                out.ignored[ClassKey(unit, event.model, "ignored", "traffic")] += count

    # --- labels -----------------------------------------------------------------------------------

    def _typed_labels(
        self, chunk: _Chunk, events: Sequence[Label | None], untyped: _Singles
    ) -> None:
        """Take the plain labels of a chunk together, by model, and the others one by one."""
        by_model: dict[str, list[int]] = {}
        odd: list[int] = []
        for place, label in enumerate(events):
            if label is None:
                odd.append(place)
            else:
                by_model.setdefault(label.model, []).append(place)
        for model, places in by_model.items():
            view = self.views.get(model)
            labels = [events[place] for place in places]
            values = None if view is None else plain_values(labels, view)  # type: ignore[arg-type]
            if view is None or values is None:
                odd += places
                continue
            self._out.units["label"] += len(labels)
            index = np.array(places, np.int64) + chunk.first
            part = label_columns(view, index, labels, values)  # type: ignore[arg-type]
            self._labels.setdefault(model, []).append(part)
        for place in sorted(odd):
            self._general(chunk, place, untyped)

    def _label(self, chunk: _Chunk, place: int, view: ModelView, label: Label) -> None:
        if label.source not in view.label_sources:
            self._out.units["label"] += 1
            self._out.ignored[ClassKey("label", view.model, "ignored", "source")] += 1
            return
        value = label_value(label.label, regression=view.regression)
        if value is None and not label.retracted:
            text = f"{label.label!r} is no label of a {view.contract.task} model."
            self._reject(chunk, place, "label", view.model, "bad_label", text[:300])
            return
        self._out.units["label"] += 1
        none = 0.0 if view.regression else ""
        items = self._odd_labels.setdefault(view.model, [])
        items.append((chunk.first + place, label, none if value is None else value))

    # --- blocks of rows ---------------------------------------------------------------------------

    def _singles(
        self, chunk: _Chunk, view: ModelView, places: Ints, events: list[Any], *, typed: bool
    ) -> None:
        out = self._out
        out.units["row"] += len(events)
        out.fast += len(events) if typed else 0
        self._add_block(chunk, view, single_block(view, places + chunk.first, events, typed=typed))
        resources = [event.resources for event in events]
        if resources.count(None) < len(resources):
            out.beside += [
                ResourceRow(chunk.first + at, view.model, e.version, "", time_ms(e.time), sample)
                for at, e, sample in zip(places.tolist(), events, resources, strict=True)
                if sample is not None
            ]

    def _batch(
        self, chunk: _Chunk, place: int, view: ModelView, event: Any, *, typed: bool
    ) -> None:
        self._out.units["row"] += event.rows
        self._out.fast += typed
        if not typed:
            view.meet(event.features)
        self._add_block(chunk, view, batch_block(view, chunk.first + place, event, typed=typed))

    def _add_block(self, chunk: _Chunk, view: ModelView, block: Rows) -> None:
        block.record_ms = chunk.stamps_ms[block.record - chunk.first]
        self._blocks.setdefault(view.model, []).append(block)
        # They are rejected where rows are classified by their time; here is what they came in.
        future = is_future(view.rules, block.times_ms, block.record_ms)
        if future.any():
            for record in np.unique(block.record[future]).tolist():
                self._keep_payload(chunk, record - chunk.first)


class _Chunk(Struct, frozen=True):
    """Records that are read together."""

    first: int
    """Place of the first one in the batch; a *place* below is one in the chunk."""
    records: Sequence[Record]
    values: list[bytes | None]
    offsets: Ints
    stamps_ms: Ints


_Singles = dict[str, tuple[list[int], list[Any]]]
"""Single inferences by model: (places, events)."""


def _headers(record: Record, value: bytes | None) -> Headers:
    """Return the headers, which one of the clients takes apart only now. Raises DecodeError."""
    if value and value.startswith(STRUCTURED_START):
        return ()  # the value says it all, and says it to the typed decoder, too
    try:
        return list(record.headers)
    except UnreadableHeadersError as error:
        raise DecodeError(Reason.BAD_UTF8, str(error)) from error


def _unit(event: Any) -> tuple[str, int]:
    match event:
        case Inference():
            return "row", 1
        case InferenceBatch() | ArrowBatch():
            return "row", event.rows
        case Label():
            return "label", 1
        case _:
            return "resource", 1
