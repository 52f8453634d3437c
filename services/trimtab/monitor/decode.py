"""Kafka records to columns per model, with what could not be read and why.

The typed decoder of the model is tried first; a message that does not fit is read by the general one,
which accepts any scalar, so that type errors are counted per feature. Nothing here raises on a payload.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from trimtab.events.cloudevents import DecodeError, Role, decode
from trimtab.events.types import Inference, InferenceBatch, Label, Resource, ResourceSample, time_ms
from trimtab.monitor.columns import (
    Floats,
    Ints,
    Numbers,
    Objects,
    Rows,
    concatenate,
    object_array,
)
from trimtab.monitor.views import ModelView, Views
from trimtab.source import Record
from trimtab.stats.cuts import category_key, numeric_column
from trimtab.store.ledger import ClassKey
from trimtab.windows.ids import Hashes, id_hashes

UNIT_OF_ROLE: dict[Role, str] = {
    "inference": "row",
    "labels": "label",
    "resources": "resource",
    "traffic": "resource",
}
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
    singles: dict[tuple[str, bool], list[tuple[int, Any]]] = {}
    batches: dict[str, list[tuple[int, Any, bool]]] = {}
    labels: dict[str, list[tuple[int, Label]]] = {}
    view: ModelView | None = None
    for index, record in enumerate(records):
        event: Any = None
        typed = False
        if record.offset in poison:
            unit = UNIT_OF_ROLE[role]
            out.units[unit] += 1
            text = "Counting this message failed; see the monitor's log."
            out.rejects.append(Reject(index, unit, "", "internal_error", text))
            continue
        if role == "inference" and record.value:
            event, view = _typed(record, view, views)
            typed = event is not None
        if event is None:
            try:
                event = decode(record.value, record.headers, role)
            except DecodeError as error:
                unit = UNIT_OF_ROLE[role]
                out.units[unit] += 1
                out.rejects.append(Reject(index, unit, "", error.reason.value, error.detail))
                continue
        out.fast += typed
        unit, count = _unit(event)
        out.units[unit] += count
        known = views.get(event.model)
        if known is None:
            out.ignored[ClassKey(unit, "", "ignored", "unknown_model")] += count
        elif known.topics and unit == "row" and topic not in known.topics:
            text = f"The contract of {event.model!r} binds it to {', '.join(sorted(known.topics))}."
            out.rejects.append(Reject(index, unit, event.model, "wrong_topic", text, count))
        elif isinstance(event, Inference):
            singles.setdefault((event.model, typed), []).append((index, event))
        elif isinstance(event, InferenceBatch):
            batches.setdefault(event.model, []).append((index, event, typed))
        elif isinstance(event, Label):
            labels.setdefault(event.model, []).append((index, event))
        elif isinstance(event, Resource):
            out.resources.append(
                ResourceRow(
                    *(index, event.model, event.version, event.instance),
                    time_ms(event.time),
                    event.sample,
                )
            )
        else:  # a traffic event on a topic of ours: nothing to count it under
            out.ignored[ClassKey(unit, event.model, "ignored", "traffic")] += count
    _gather(out, singles, batches, records, views)
    for model, items in labels.items():
        _gather_labels(out, views[model], items)
    return out


def _typed(
    record: Record, view: ModelView | None, views: Views
) -> tuple[Any | None, ModelView | None]:
    """Try the decoder of the last record's model, then of the model the bytes seem to name."""
    value = record.value or b""
    try:
        if view is not None:
            event = view.decoder.decode(value, record.headers)
            if event is not None:
                return event, view
        found = _MODEL.search(value)
        named = views.get(found[1].decode("utf-8", "replace")) if found else None
        if named is None or named is view:
            return None, view
        return named.decoder.decode(value, record.headers), named
    except DecodeError:
        return None, view  # the general decoder says it again, with the reason


def _unit(event: Any) -> tuple[str, int]:
    match event:
        case Inference():
            return "row", 1
        case InferenceBatch():
            return "row", event.rows
        case Label():
            return "label", 1
        case _:
            return "resource", 1


# --- inference rows -------------------------------------------------------------------------------


def _gather(
    out: Decoded,
    singles: dict[tuple[str, bool], list[tuple[int, Any]]],
    batches: dict[str, list[tuple[int, Any, bool]]],
    records: Sequence[Record],
    views: Views,
) -> None:
    offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
    stamps = np.fromiter((r.timestamp for r in records), np.int64, len(records))
    blocks: dict[str, list[Rows]] = {}
    for (model, typed), items in singles.items():
        view = views[model]
        if not typed:
            view.meet(name for _, event in items for name in event.features)
        index = np.fromiter((i for i, _ in items), np.int64, len(items))
        events = [event for _, event in items]
        blocks.setdefault(model, []).append(_single_block(view, index, events, typed=typed))
        out.beside += [
            ResourceRow(i, model, e.version, "", time_ms(e.time), e.resources)
            for i, e in items
            if e.resources is not None
        ]
    for model, many in batches.items():
        for i, event, typed in many:
            if not typed:
                views[model].meet(event.features)
            blocks.setdefault(model, []).append(_batch_block(views[model], i, event, typed=typed))
    for model, parts in blocks.items():
        rows = concatenate(parts)
        rows.offset = offsets[rows.record]
        rows.record_ms = stamps[rows.record]
        out.rows[model] = rows


def _single_block(view: ModelView, index: Ints, events: list[Any], *, typed: bool) -> Rows:
    names = events[0].__struct_fields__
    fields = dict(zip(names, zip(*map(msgspec.structs.astuple, events), strict=True), strict=True))
    declared = tuple(view.contract.features)
    if typed:
        tuples = zip(*map(msgspec.structs.astuple, fields["features"]), strict=True)
        columns: dict[str, Sequence[Any]] = dict(zip(declared, tuples, strict=False))
    else:
        columns = {name: [f.get(name) for f in fields["features"]] for name in declared}
    attributes = {
        name: object_array(a.get(name) for a in fields["attributes"]) for name in view.attributes
    }
    scores = _scores(view, fields["scores"])
    return _rows(view, index, fields, columns, attributes, scores, typed=typed)


def _batch_block(view: ModelView, record: int, event: Any, *, typed: bool) -> Rows:
    n = event.rows
    nothing: list[Any] = [None] * n
    if typed:
        lists = msgspec.structs.astuple(event.features)
        columns: dict[str, Sequence[Any]] = {
            name: column or nothing
            for name, column in zip(view.contract.features, lists, strict=False)
        }
    else:
        columns = {name: event.features.get(name, nothing) for name in view.contract.features}
    fields: dict[str, Sequence[Any]] = {
        "id": event.ids or [f"{event.id}-{i}" for i in range(n)],
        "time": event.time if isinstance(event.time, list) else [event.time] * n,
        "version": [event.version] * n,
        "status": event.status or ["ok"] * n,
    }
    for name in ("arm", "traffic_revision", "latency_ms", "prediction"):
        fields[name] = getattr(event, name) or nothing
    attributes = {
        name: object_array(event.attributes.get(name, nothing)) for name in view.attributes
    }
    dicts: Sequence[Any] = nothing
    if event.scores:
        keys = list(event.scores)
        dicts = [
            dict(zip(keys, row, strict=True)) for row in zip(*event.scores.values(), strict=True)
        ]
    index = np.full(n, record, np.int64)
    return _rows(view, index, fields, columns, attributes, _scores(view, dicts), typed=typed)


def _rows(
    view: ModelView,
    index: Ints,
    fields: dict[str, Sequence[Any]],
    columns: dict[str, Sequence[Any]],
    attributes: dict[str, Objects],
    scores: Floats,
    *,
    typed: bool,
) -> Rows:
    n = index.size
    times = [t if type(t) is int else time_ms(t) for t in fields["time"]]
    return Rows(
        record=index,
        offset=index,
        record_ms=index,
        times_ms=np.array(times, dtype=np.int64),
        ids=object_array(fields["id"]),
        version=object_array(fields["version"]),
        arm=object_array(arm or "" for arm in fields["arm"]),
        revision=np.array([r or 0 for r in fields["traffic_revision"]], dtype=np.int64),
        status=object_array(fields["status"]),
        latency_ms=np.array(fields["latency_ms"], dtype=np.float64).reshape(n),
        prediction=object_array(fields["prediction"]),
        score=scores,
        numeric={name: _numbers(columns[name], typed=typed) for name in view.numbers},
        categories={name: object_array(columns[name]) for name in view.categories},
        attributes=attributes,
        hashes=id_hashes(fields["id"]),
    )


def _numbers(values: Sequence[Any], *, typed: bool) -> Numbers:
    if typed:  # float or None only
        return Numbers(np.array(values, dtype=np.float64).reshape(len(values)))
    column, errors = numeric_column(values)
    if not errors:
        return Numbers(column)
    present = np.fromiter((v is not None for v in values), np.bool_, len(values))
    return Numbers(column, present & np.isnan(column))


def _scores(view: ModelView, scores: Iterable[dict[str, float] | None]) -> Floats:
    """Return the score of the positive class (binary) or of the likeliest class; NaN without."""
    if view.contract.task == "multiclass":
        return np.array([max(s.values()) if s else None for s in scores], dtype=np.float64)
    prediction = view.contract.prediction
    names = [name for name in (prediction.score, prediction.positive) if name]

    def positive(given: dict[str, float] | None) -> float | None:
        if not given:
            return None
        for name in names:
            if name in given:
                return given[name]
        return next(iter(given.values())) if len(given) == 1 else None

    return np.array([positive(s) for s in scores], dtype=np.float64)


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


def prediction_values(predictions: Iterable[Any], *, regression: bool) -> list[str | float | None]:
    """Return `label_value` of each prediction."""
    return [label_value(p, regression=r) for p, r in zip(predictions, repeat(regression))]
