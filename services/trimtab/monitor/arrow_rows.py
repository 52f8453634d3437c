"""An Arrow batch's columns as the monitor's rows, without a Python value per number.

What comes out is what the JSON batch of the same rows gives; a law test holds the two together.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from trimtab.arrow import ArrowBatch, Column
from trimtab.monitor.columns import Floats, Mask, Numbers, Rows, object_array
from trimtab.monitor.views import ModelView
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import MAX_CATEGORY_CHARS, category_key
from trimtab.windows.ids import WHOLE, id_hashes, row_hashes, whole_hashes


def arrow_block(view: ModelView, record: int, batch: ArrowBatch) -> Rows:
    """Return the rows of a batch that came as the message `record` of its poll."""
    n, columns = batch.rows, batch.columns
    if "ids" in columns:
        ids, within = object_array(columns["ids"].coded), np.full(n, WHOLE, np.int32)
        hashes = id_hashes(ids.tolist())
    else:
        ids, within = np.full(n, batch.id, np.object_), np.arange(n, dtype=np.int32)
        hashes = row_hashes(whole_hashes([batch.id]), within)
    index = np.full(n, record, np.int64)
    numbers, errors = _numbers(view, batch)
    revision = columns.get("traffic_revision")
    arm, status = columns.get("arm"), columns.get("status")
    return Rows(
        record=index,
        offset=index,
        record_ms=index,
        times_ms=np.full(n, batch.time, np.int64),
        ids=ids,
        batch_row=within,
        hashes=hashes,
        version=Coded.constant(batch.version, n),
        arm=_arms(arm.coded) if arm else Coded.constant("", n),
        # A missing one is 0 already.
        revision=np.array(revision.values, np.int64) if revision else np.zeros(n, np.int64),
        status=status.coded if status else Coded.constant("ok", n),
        latency_ms=columns["latency_ms"].floats if "latency_ms" in columns else np.full(n, np.nan),
        score=_score(view, batch),
        answers=_answers(view, columns.get("prediction"), n),
        numbers=numbers,
        number_errors=errors,
        number_names=view.numbers,
        categories={name: _keys(batch.features.get(name), n) for name in view.categories},
        attributes={name: _keys(batch.attributes.get(name), n) for name in view.attributes},
    )


def _numbers(view: ModelView, batch: ArrowBatch) -> tuple[Floats, Mask | None]:
    """Return (numbers, which of the NaN are values of another kind or None for none), shape (k, n)."""
    numbers = np.full((len(view.numbers), batch.rows), np.nan)
    errors: Mask | None = None
    features = len(view.numbers) - len(view.attributed)
    for row, name in enumerate(view.attributed, features):
        if name in batch.attributions:
            numbers[row] = batch.attributions[name].floats
    for row, name in enumerate(view.numbers[:features]):
        column = batch.features.get(name)
        if column is None:
            continue
        numbers[row], wrong = _number(column)
        if wrong is not None:
            errors = np.zeros(numbers.shape, np.bool_) if errors is None else errors
            errors[row] = wrong
    return numbers, errors


def _number(column: Column) -> tuple[Floats, Mask | None]:
    """Return a column as numbers and which values are none; None when all are numbers or missing."""
    values = column.values
    if isinstance(values, Coded):
        wrong = ~values.mask([None])
    elif values.dtype.kind == "b":
        wrong = np.ones(len(values), np.bool_) if column.missing is None else ~column.missing
    else:
        return column.floats, None
    return np.full(len(values), np.nan), wrong if wrong.any() else None


def _keys(column: Column | None, n: int) -> Coded:
    """Return a column as categories, shape (n,)."""
    if column is None:
        return Coded.constant(None, n)
    values = column.values
    if not isinstance(values, Coded):
        return Coded.of_keys(column.tolist())
    if all(key is None or len(cast("str", key)) <= MAX_CATEGORY_CHARS for key in values.keys):
        return values
    return values.map([category_key(key) for key in values.keys])


def _answers(view: ModelView, column: Column | None, n: int) -> Coded | Numbers:
    if not view.regression:
        return _keys(column, n)
    return Numbers(np.full(n, np.nan)) if column is None else Numbers(*_number(column))


def _arms(arm: Coded) -> Coded:
    return arm.map([key or "" for key in arm.keys]) if None in arm.keys else arm


def _score(view: ModelView, batch: ArrowBatch) -> Floats:
    scores: dict[str, Any] = batch.scores
    if scores and view.contract.task == "multiclass":
        best: Floats = np.maximum.reduce([column.floats for column in scores.values()])
        return best
    name = view.score_of(scores)
    return np.full(batch.rows, np.nan) if name is None else batch.scores[name].floats
