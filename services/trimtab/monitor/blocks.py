"""Events of one model to columns: what is done for every field of every event, once per chunk.

Notation
    n      events, or rows of a batch
    k      numeric features of the contract
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from trimtab.events.types import time_ms
from trimtab.monitor.columns import Floats, Ints, Numbers, Rows, floats, object_array
from trimtab.monitor.views import ModelView
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import numeric_column
from trimtab.windows.ids import WHOLE, id_hashes, row_hashes, whole_hashes


def single_block(view: ModelView, index: Ints, events: list[Any], *, typed: bool) -> Rows:
    """Return inferences as rows; `index` are the places of their records, shape (n,).

    `typed` events come from the model's typed decoder, others have their features in a dict.
    """
    n = len(events)
    ids = [e.id for e in events]
    given = [e.features for e in events]
    features = view.numbers[: len(view.numbers) - len(view.attributed)]
    if typed:
        numbers, errors = _typed_numbers(len(features), given), None
        categories = {
            name: Coded.of_keys([getattr(f, field) for f in given])
            for name, field in zip(view.categories, view.decoder.category_fields, strict=True)
        }
    else:
        numbers, errors = _matrix([[f.get(name) for f in given] for name in features], n)
        categories = {name: Coded.of_keys([f.get(name) for f in given]) for name in view.categories}
    if view.attributed:
        found = [e.attributions for e in events]
        numbers, errors = _with_attributions(
            numbers, errors, _attributions(view, found, typed=typed)
        )
    revisions = [e.traffic_revision for e in events]
    arms = [e.arm for e in events]
    return Rows(
        record=index,
        offset=index,
        record_ms=index,
        times_ms=_times([e.time for e in events]),
        ids=object_array(ids),
        batch_row=np.full(n, WHOLE, np.int32),
        hashes=id_hashes(ids),
        version=Coded.of_text([e.version for e in events]),
        arm=Coded.of_text([arm or "" for arm in arms]) if any(arms) else Coded.constant("", n),
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


def batch_block(view: ModelView, record: int, event: Any, *, typed: bool) -> Rows:
    """Return the rows of a columnar JSON batch that came as one record."""
    n = event.rows
    nothing: list[Any] = [None] * n
    k = len(view.numbers) - len(view.attributed)
    if typed:
        lists = msgspec.structs.astuple(event.features)
        numbers = _number_columns(lists[:k], n)
        errors = None
        categories = {
            name: Coded.constant(None, n) if column is UNSET else Coded.of_keys(column)
            for name, column in zip(view.categories, lists[k:], strict=False)
        }
    else:
        given = event.features
        numbers, errors = _matrix([given.get(name, nothing) for name in view.numbers[:k]], n)
        categories = {name: Coded.of_keys(given.get(name, nothing)) for name in view.categories}
    if view.attributed:
        numbers, errors = _with_attributions(
            numbers, errors, _batch_attributions(view, event.attributions, n, typed=typed)
        )
    if event.ids:
        ids, within, hashes = object_array(event.ids), np.full(n, WHOLE), id_hashes(event.ids)
    else:
        ids, within = np.full(n, event.id, np.object_), np.arange(n)
        hashes = row_hashes(whole_hashes([event.id]), within)
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
    # Any may be longer: what is undeclared may have been met between two of them.
    if max(map(len, tuples)) > k:
        tuples = [values[:k] for values in tuples]
    pack = struct.Struct(f"{k}d").pack
    try:
        # Three times as fast as numpy's own conversion.
        rows = np.frombuffer(b"".join([pack(*values) for values in tuples]))
    except struct.error:  # a null among them
        rows = np.array(tuples, dtype=np.float64)
    return rows.reshape(len(given), k).T.copy()


def _number_columns(columns: Sequence[list[float | None] | UnsetType], n: int) -> Floats:
    """Return the numeric features of a typed batch, shape (k, n)."""
    pack = struct.Struct(f"{n}d").pack
    try:
        packed = b"".join([pack(*column) for column in columns])  # type: ignore[misc]
        return np.frombuffer(packed).reshape(len(columns), n)
    except (struct.error, TypeError):  # one has a null, or is absent
        numbers = np.full((len(columns), n), np.nan)
        for row, column in zip(numbers, columns, strict=True):
            if column is not UNSET:
                row[:] = floats(column)
        return numbers


def _attributions(view: ModelView, given: Sequence[Any | None], *, typed: bool) -> Floats:
    """Return the attributions of single inferences, shape (attributed, n); NaN where there is none."""
    if typed:
        nothing = view.decoder.no_attributions
        return _typed_numbers(len(view.attributed), [one or nothing for one in given])
    columns = [[one.get(name) if one else None for one in given] for name in view.attributed]
    return np.array([floats(column) for column in columns])


def _batch_attributions(view: ModelView, given: Any | None, n: int, *, typed: bool) -> Floats:
    """Return what `_attributions` gives for the rows of these columns."""
    if given is None:
        return np.full((len(view.attributed), n), np.nan)
    if typed:
        return _number_columns(msgspec.structs.astuple(given)[: len(view.attributed)], n)
    return _number_columns([given.get(name, UNSET) for name in view.attributed], n)


def _with_attributions(numbers: Floats, errors: Any, attributions: Floats) -> tuple[Floats, Any]:
    """Return numbers and errors with the attributions as further rows; no attribution is an error."""
    if errors is not None:
        errors = np.concatenate([errors, np.zeros(attributions.shape, np.bool_)])
    return np.concatenate([numbers, attributions]), errors


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
    if all(scores):
        try:
            if len(names) == 1:
                return floats([s[names[0]] for s in scores])  # type: ignore[index]
            if not names:  # where each has one score
                return floats([value for (value,) in map(dict.values, scores)])  # type: ignore[arg-type]
        except (KeyError, ValueError):
            pass  # some are otherwise: look at each

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
