"""Labels of one model as columns, and what a label names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from trimtab.events.types import Label, time_ms
from trimtab.monitor.columns import Floats, Ints, Objects, object_array
from trimtab.monitor.views import ModelView
from trimtab.stats.cuts import category_key
from trimtab.windows.ids import Hashes, id_hashes


class LabelColumns(Struct):
    """Labels of one model. For regression `numbers` holds the values, else `classes`."""

    record: Ints
    hashes: Hashes
    times_ms: Ints
    revision: Ints
    retracted: Any
    classes: Objects | None
    numbers: Floats | None


def plain_values(labels: Sequence[Label], view: ModelView) -> Sequence[Any] | None:
    """Return what `label_value` gives for each of the labels, None where some have to be looked at."""
    if not {label.source for label in labels} <= view.label_sources:
        return None
    given = [label.label for label in labels]
    kinds = set(map(type, given))
    if view.regression:
        return (
            given if kinds == {float} and np.isfinite(np.array(given, np.float64)).all() else None
        )
    if len(kinds) > 1 or not kinds <= {str, int, bool}:
        return None  # of one kind, equal values are one category
    keys = {value: label_value(value, regression=False) for value in set(given)}
    return None if None in keys.values() else [keys[value] for value in given]


def label_columns(
    view: ModelView, index: Ints, labels: Sequence[Label], values: Sequence[Any]
) -> LabelColumns:
    """Return labels as columns; `index` are the places of their records, `values` what `label_value` gives."""
    return LabelColumns(
        record=index,
        hashes=id_hashes([label.inference_id for label in labels]),
        times_ms=np.array([time_ms(label.time) for label in labels], np.int64),
        revision=np.array([label.revision for label in labels], np.int64),
        retracted=np.array([label.retracted for label in labels], np.bool_),
        classes=None if view.regression else object_array(values),
        numbers=np.array(values, dtype=np.float64) if view.regression else None,
    )


def joined_labels(parts: list[LabelColumns]) -> LabelColumns:
    """Return the labels of several parts, in the order of their records."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate([part.record for part in parts]), kind="stable")

    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else np.concatenate(columns)[order]

    return LabelColumns(*map(joined, LabelColumns.__struct_fields__))


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
