"""Kafka records to columns per model, with what could not be read and why.

The typed decoder of the model is tried first; a message that does not fit is read by the general one,
which accepts any scalar, so that type errors are counted per feature. Nothing here raises on a payload.

Records are read in chunks: a chunk's events become columns and are freed while the processor's cache
still holds them, which halves the cost of decoding (docs/performance.md).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from trimtab.arrow import ArrowBatch, read_arrow
from trimtab.events.cloudevents import DecodeError, Headers, Reason, Role, decode, is_arrow
from trimtab.events.types import Inference, InferenceBatch, Label, Resource, ResourceSample, time_ms
from trimtab.monitor.arrow_rows import arrow_block
from trimtab.monitor.columns import (
    Floats,
    Ints,
    Numbers,
    Objects,
    Rows,
    concatenate,
    floats,
    object_array,
)
from trimtab.monitor.views import ModelView, Views
from trimtab.source import Record, UnreadableHeadersError
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import category_key, numeric_column
from trimtab.store.ledger import ClassKey
from trimtab.windows.ids import WHOLE, Hashes, id_hashes, row_hashes

UNIT_OF_ROLE: dict[Role, str] = {
    "inference": "row",
    "labels": "label",
    "resources": "resource",
    "traffic": "resource",
}
CHUNK = 500
"""Records decoded at a time; 200 to 1,000 cost the same, 20,000 two thirds more."""
_ARROW_START = 0xFF
"""First byte of an Arrow stream, and of no JSON: the typed decoders need not look at it."""
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


class LabelColumns(Struct):
    """Labels of one model. For regression `numbers` holds the values, else `classes`."""

    record: Ints
    hashes: Hashes
    times_ms: Ints
    revision: Ints
    retracted: Any
    classes: Objects | None
    numbers: Floats | None


class ResourceRow(Struct, frozen=True):
    """Gauges of an instance at a moment, from a resource event or beside an inference."""

    record: int
    model: str
    version: str
    instance: str
    time_ms: int
    sample: ResourceSample


class Decoded(Struct):
    """What a batch of records holds."""

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
    """Read a batch of one partition. `views` are the contracts in force for it, by model.

    Offsets in `poison` have made counting fail before: they are rejected as `internal_error`.
    """
    out = Decoded()
    read = _Reading(out, role, topic, views, poison)
    for start in range(0, len(records), CHUNK):
        read.chunk(records[start : start + CHUNK], start)
    read.finish(records)
    return out


class _Reading:
    """What is known in the course of one batch."""

    def __init__(
        self, out: Decoded, role: Role, topic: str, views: Views, poison: frozenset[int]
    ) -> None:
        self.out, self.role, self.topic, self.views, self.poison = out, role, topic, views, poison
        self.blocks: dict[str, list[Rows]] = {}
        self.labels: dict[str, list[tuple[int, Label]]] = {}
        self._view: ModelView | None = None

    def chunk(self, records: Sequence[Record], start: int) -> None:
        """Read the next records; the first has the index `start` in the batch."""
        general: dict[str, tuple[list[int], list[Any]]] = {}
        if self.role != "inference" or self.poison:
            for index, record in enumerate(records, start):
                self._general(index, record, general)
        else:
            view = self._view
            if view is None:  # the first chunk of a batch: begin with the model that it begins with
                view = self._view = self._named(records[0].value or b"", None)
            events, regular = (
                ([None] * len(records), False) if view is None else view.decoder.decode_all(records)
            )
            if view is not None and regular and not self._is_bound_elsewhere(view):
                places = np.arange(start, start + len(records))
                self._typed_singles(view, places, events)
            else:
                self._one_by_one(records, start, events, general)
        for known, (indices, found) in general.items():
            self.views[known].meet(name for event in found for name in event.features)
            self._singles(self.views[known], np.array(indices, np.int64), found, typed=False)

    def _one_by_one(
        self,
        records: Sequence[Record],
        start: int,
        events: Sequence[Any | None],
        general: dict[str, tuple[list[int], list[Any]]],
    ) -> None:
        """Sort out a chunk in which not every message is a single inference of the model before."""
        singles: dict[str, tuple[list[int], list[Any]]] = {}
        before = view = self._view
        for index, (record, known) in enumerate(zip(records, events, strict=True), start):
            event: Any = known
            if event is not None:
                view = before
            elif record.value and record.value[0] != _ARROW_START:
                if view is not None and view is not before:
                    event = view.decoder.decode_all([record])[0][0]
                if event is None and (named := self._named(record.value, before)) is not None:
                    view = named
                    event = named.decoder.decode_all([record])[0][0]
            if event is None or view is None:
                self._general(index, record, general)
            elif self._is_bound_elsewhere(view):
                self._wrong_topic(index, view, getattr(event, "rows", 1))
            elif isinstance(event, InferenceBatch):
                self._batch(index, view, event, typed=True)
            else:
                indices, found = singles.setdefault(view.model, ([], []))
                indices.append(index)
                found.append(event)
        self._view = view
        for model, (indices, found) in singles.items():
            self._typed_singles(self.views[model], np.array(indices, np.int64), found)

    def finish(self, records: Sequence[Record]) -> None:
        """Put the blocks together."""
        offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
        stamps = np.fromiter((r.timestamp for r in records), np.int64, len(records))
        for model, parts in self.blocks.items():
            rows = concatenate(parts)
            rows.offset = offsets[rows.record]
            rows.record_ms = stamps[rows.record]
            self.out.rows[model] = rows
        for model, items in self.labels.items():
            _gather_labels(self.out, self.views[model], items)

    # --- one record -------------------------------------------------------------------------------

    def _named(self, value: bytes, view: ModelView | None) -> ModelView | None:
        """Return the contract of the model that the bytes seem to name, if it is another one."""
        found = _MODEL.search(value)
        named = self.views.get(found[1].decode("utf-8", "replace")) if found else None
        return None if named is view else named

    def _is_bound_elsewhere(self, view: ModelView) -> bool:
        return bool(view.topics) and self.topic not in view.topics

    def _wrong_topic(self, index: int, view: ModelView, rows: int) -> None:
        self.out.units["row"] += rows
        topics = ", ".join(sorted(view.topics))
        text = f"The contract of {view.model!r} binds it to {topics}."
        self.out.rejects.append(Reject(index, "row", view.model, "wrong_topic", text, rows))

    def _general(
        self, index: int, record: Record, singles: dict[str, tuple[list[int], list[Any]]]
    ) -> None:
        """Read a record with the general decoder."""
        out, unit = self.out, UNIT_OF_ROLE[self.role]
        if record.offset in self.poison:
            out.units[unit] += 1
            text = "Counting this message failed; see the monitor's log."
            out.rejects.append(Reject(index, unit, "", "internal_error", text))
            return
        try:
            headers = _headers(record)
            read = read_arrow if is_arrow(headers) else decode
            event = read(record.value, headers, self.role)
        except DecodeError as error:
            out.units[unit] += 1
            out.rejects.append(Reject(index, unit, "", error.reason.value, error.detail))
            return
        unit, count = _unit(event)
        view = self.views.get(event.model)
        if view is None:
            out.units[unit] += count
            out.ignored[ClassKey(unit, "", "ignored", "unknown_model")] += count
            return
        match event:
            case Inference() | InferenceBatch() | ArrowBatch() if self._is_bound_elsewhere(view):
                self._wrong_topic(index, view, count)
            case Inference():
                out.units[unit] += 1
                places, events = singles.setdefault(event.model, ([], []))
                places.append(index)
                events.append(event)
            case InferenceBatch():
                self._batch(index, view, event, typed=False)
            case ArrowBatch():
                out.units["row"] += count
                out.fast += 1
                self.blocks.setdefault(event.model, []).append(arrow_block(view, index, event))
            case Label():
                out.units[unit] += 1
                self.labels.setdefault(event.model, []).append((index, event))
            case Resource():
                out.units[unit] += 1
                out.resources.append(
                    ResourceRow(
                        *(index, event.model, event.version, event.instance),
                        time_ms(event.time),
                        event.sample,
                    )
                )
            case _:  # a traffic event on a topic of ours: nothing to count it under
                out.units[unit] += count
                out.ignored[ClassKey(unit, event.model, "ignored", "traffic")] += count

    # --- blocks -----------------------------------------------------------------------------------

    def _typed_singles(self, view: ModelView, places: Ints, events: list[Any]) -> None:
        self.out.units["row"] += len(events)
        self.out.fast += len(events)
        self._singles(view, places, events, typed=True)

    def _singles(self, view: ModelView, places: Ints, events: list[Any], *, typed: bool) -> None:
        block = _single_block(view, places, events, typed=typed)
        self.blocks.setdefault(view.model, []).append(block)
        self.out.beside += [
            ResourceRow(int(at), view.model, e.version, "", time_ms(e.time), e.resources)
            for at, e in zip(places, events, strict=True)
            if e.resources is not None
        ]

    def _batch(self, index: int, view: ModelView, event: Any, *, typed: bool) -> None:
        self.out.units["row"] += event.rows
        self.out.fast += typed
        if not typed:
            view.meet(event.features)
        self.blocks.setdefault(view.model, []).append(_batch_block(view, index, event, typed=typed))


def _headers(record: Record) -> Headers:
    """Return the headers, which one of the clients takes apart only now. Raises DecodeError."""
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


# --- inference rows -------------------------------------------------------------------------------


def _single_block(view: ModelView, index: Ints, events: list[Any], *, typed: bool) -> Rows:
    n = len(events)
    ids = [e.id for e in events]
    given = [e.features for e in events]
    if typed:
        numbers, errors = _typed_numbers(len(view.numbers), given), None
        categories = {
            name: Coded.of_keys([getattr(f, field) for f in given])
            for name, field in zip(view.categories, view.decoder.category_fields, strict=True)
        }
    else:
        numbers, errors = _matrix([[f.get(name) for f in given] for name in view.numbers], n)
        categories = {name: Coded.of_keys([f.get(name) for f in given]) for name in view.categories}
    revisions = [e.traffic_revision for e in events]
    return Rows(
        record=index,
        offset=index,
        record_ms=index,
        times_ms=_times([e.time for e in events]),
        ids=object_array(ids),
        batch_row=np.full(n, WHOLE, np.int32),
        hashes=id_hashes(ids),
        version=Coded.of_text([e.version for e in events]),
        arm=Coded.of_text([e.arm or "" for e in events]),
        revision=np.array([r or 0 for r in revisions], np.int64)
        if any(revisions)
        else np.zeros(n, np.int64),
        status=Coded.of_text([e.status for e in events]),
        latency_ms=floats([e.latency_ms for e in events]),
        score=_scores(view, [e.scores for e in events]),
        answers=_answers(view, [e.prediction for e in events]),
        numbers=numbers,
        number_errors=errors,
        number_names=view.numbers,
        categories=categories,
        attributes={
            name: Coded.of_keys([e.attributes.get(name) for e in events])
            for name in view.attributes
        },
    )


def _batch_block(view: ModelView, record: int, event: Any, *, typed: bool) -> Rows:
    n = event.rows
    nothing: list[Any] = [None] * n
    if typed:
        lists = msgspec.structs.astuple(event.features)
        k = len(view.numbers)
        numbers = np.full((k, n), np.nan)
        for row, column in zip(numbers, lists[:k], strict=True):
            if column:
                row[:] = floats(column)
        errors = None
        categories = {
            name: Coded.of_keys(column) if column else Coded.constant(None, n)
            for name, column in zip(view.categories, lists[k:], strict=False)
        }
    else:
        given = event.features
        numbers, errors = _matrix([given.get(name, nothing) for name in view.numbers], n)
        categories = {name: Coded.of_keys(given.get(name, nothing)) for name in view.categories}
    if event.ids:
        ids, within, hashes = object_array(event.ids), np.full(n, WHOLE), id_hashes(event.ids)
    else:
        ids, within = np.full(n, event.id, np.object_), np.arange(n)
        hashes = row_hashes(id_hashes([event.id]), within)
    index = np.full(n, record, np.int64)
    revisions = event.traffic_revision
    scores = event.scores or {}
    return Rows(
        record=index,
        offset=index,
        record_ms=index,
        times_ms=_times(event.time)
        if isinstance(event.time, list)
        else np.full(n, time_ms(event.time), np.int64),
        ids=ids,
        batch_row=within.astype(np.int32),
        hashes=hashes,
        version=Coded.constant(event.version, n),
        arm=Coded.of_text([arm or "" for arm in event.arm]) if event.arm else Coded.constant("", n),
        revision=np.array([r or 0 for r in revisions], np.int64)
        if revisions
        else np.zeros(n, np.int64),
        status=Coded.of_text(event.status) if event.status else Coded.constant("ok", n),
        latency_ms=floats(event.latency_ms) if event.latency_ms else np.full(n, np.nan),
        score=_batch_scores(view, scores, n),
        answers=_answers(view, event.prediction or nothing),
        numbers=numbers,
        number_errors=errors,
        number_names=view.numbers,
        categories=categories,
        attributes={
            name: Coded.of_keys(event.attributes.get(name, nothing)) for name in view.attributes
        },
    )


def _times(times: Sequence[Any]) -> Ints:
    try:
        return np.array(times, dtype=np.int64)
    except TypeError:  # some are datetimes
        return np.array([time_ms(time) for time in times], dtype=np.int64)


def _typed_numbers(k: int, given: list[Any]) -> Floats:
    """Return the numeric features of typed rows, shape (k, n): they are the first k fields of each."""
    tuples = list(map(msgspec.structs.astuple, given))
    if len(tuples[0]) > k:
        tuples = [values[:k] for values in tuples]
    pack = struct.Struct(f"{k}d").pack
    try:
        # Three times as fast as numpy's own conversion.
        rows = np.frombuffer(b"".join([pack(*values) for values in tuples]))
    except struct.error:  # a null among them
        rows = np.array(tuples, dtype=np.float64)
    return rows.reshape(len(given), k).T.copy()


def _matrix(columns: Sequence[Sequence[Any]], n: int) -> tuple[Floats, Any]:
    """Return (numbers, which of the NaN are values of another kind or None for none), shape (k, n)."""
    numbers = np.empty((len(columns), n))
    errors = np.zeros(numbers.shape, np.bool_)
    for row, values in enumerate(columns):
        numbers[row], wrong = numeric_column(values)
        if wrong:
            errors[row] = _wrong(values, numbers[row])
    return numbers, errors if errors.any() else None


def _wrong(values: Sequence[Any], numbers: Floats) -> Any:
    """Which values are of another kind: there is one, yet no number (JSON has no NaN)."""
    present = np.fromiter((v is not None for v in values), np.bool_, len(values))
    return present & np.isnan(numbers)


def _answers(view: ModelView, predictions: Sequence[Any]) -> Coded | Numbers:
    if not view.regression:
        return Coded.of_keys(predictions)
    numbers, wrong = numeric_column(predictions)
    return Numbers(numbers, _wrong(predictions, numbers) if wrong else None)


def _scores(view: ModelView, scores: Sequence[dict[str, float] | None]) -> Floats:
    """Return the score of the positive class (binary) or of the likeliest class; NaN without."""
    if not any(scores):
        return np.full(len(scores), np.nan)
    if view.contract.task == "multiclass":
        return floats([max(s.values()) if s else None for s in scores])
    names = view.score_names
    if len(names) == 1 and all(scores):
        try:
            return floats([s[names[0]] for s in scores])  # type: ignore[index]
        except KeyError:
            pass  # some name another class: look at each

    def positive(given: dict[str, float] | None) -> float | None:
        if not given:
            return None
        for name in names:
            if name in given:
                return given[name]
        return next(iter(given.values())) if len(given) == 1 else None

    return floats([positive(s) for s in scores])


def _batch_scores(view: ModelView, scores: Mapping[str, Sequence[float]], n: int) -> Floats:
    """Return what `_scores` gives for the rows of these columns."""
    if not scores:
        return np.full(n, np.nan)
    if view.contract.task == "multiclass":
        best: Floats = np.maximum.reduce([floats(column) for column in scores.values()])
        return best
    name = view.score_of(scores)
    return np.full(n, np.nan) if name is None else floats(scores[name])


# --- labels ---------------------------------------------------------------------------------------


def _gather_labels(out: Decoded, view: ModelView, items: list[tuple[int, Label]]) -> None:
    kept: list[tuple[int, Label]] = []
    values: list[Any] = []
    for index, label in items:
        if label.source not in view.label_sources:
            out.ignored[ClassKey("label", view.model, "ignored", "source")] += 1
            continue
        value = label_value(label.label, regression=view.regression)
        if value is None:
            if not label.retracted:
                text = f"{label.label!r} is no label of a {view.contract.task} model."
                out.rejects.append(Reject(index, "label", view.model, "bad_label", text[:300]))
                continue
            value = 0.0 if view.regression else ""
        kept.append((index, label))
        values.append(value)
    if not kept:
        return
    n = len(kept)
    out.labels[view.model] = LabelColumns(
        record=np.fromiter((i for i, _ in kept), np.int64, n),
        hashes=id_hashes(label.inference_id for _, label in kept),
        times_ms=np.fromiter((time_ms(label.time) for _, label in kept), np.int64, n),
        revision=np.fromiter((label.revision for _, label in kept), np.int64, n),
        retracted=np.fromiter((label.retracted for _, label in kept), np.bool_, n),
        classes=None if view.regression else object_array(values),
        numbers=np.array(values, dtype=np.float64) if view.regression else None,
    )


def label_value(value: Any, *, regression: bool) -> str | float | None:
    """Return the class text, or the number, that a label or prediction names; None for no such thing."""
    if not regression:
        key = category_key(value)
        return key if isinstance(key, str) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if np.isfinite(number) else None
