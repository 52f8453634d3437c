"""Columns to states: which rows are abnormal, which group and segments a row belongs to, what is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from trimtab.monitor.columns import Ints, Mask, Objects, Rows
from trimtab.monitor.views import ModelView
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import (
    MAX_CATEGORY_CHARS,
    CategoryCuts,
    ModelCuts,
    NumericCuts,
    category_key,
    numeric_column,
)
from trimtab.store.labels import Group
from trimtab.windows import abnormal

MOST_SEGMENTS = 20
OTHER, MISSING = "other", "missing"
_SEGMENT_CHARS_MAX = 120

STATUS_RULES = {
    "error": abnormal.ERROR,
    "timeout": abnormal.TIMEOUT,
    "rejected": abnormal.REJECTED,
}


class Segments:
    """The values of each declared segment column that get a segment of their own in one partition.

    Declared categories: the first 20. Otherwise the first 20 values met; later ones are `other`.
    """

    def __init__(self, stored: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self._met: dict[str, set[str]] = {}
        for segment in stored:
            column, _, value = segment.partition("=")
            if value not in (OTHER, MISSING):
                self._met.setdefault(column, set()).add(value)

    def names(self, view: ModelView, column: str, values: Objects) -> list[str]:
        """Return "column=value" for each row."""
        feature = view.contract.features.get(column)
        declared = feature.values if feature is not None else ()
        known = set(declared[:MOST_SEGMENTS]) if declared else self._met.setdefault(column, set())
        names: dict[Any, str] = {}
        result = []
        for value in values:
            key = value if isinstance(value, str) else category_key(value)
            name = names.get(key)
            if name is None:
                name = names[key] = f"{column}={self._name(key, known, grows=not declared)}"
            result.append(name)
        return result

    @staticmethod
    def _name(key: str | bool | None, known: set[str], *, grows: bool) -> str:
        if not isinstance(key, str):
            return MISSING
        key = key[:_SEGMENT_CHARS_MAX]
        if key in known:
            return key
        if grows and len(known) < MOST_SEGMENTS and key not in (OTHER, MISSING):
            known.add(key)
            return key
        return OTHER


class Grouping(Struct):
    """The groups of a batch of rows: `codes[i]` is the place of row i's group in `groups`."""

    codes: Ints
    groups: list[Group]


def group_rows(view: ModelView, rows: Rows, segments: Segments) -> Grouping:
    """Group rows by version, arm, traffic revision and segments."""
    columns = []
    for name in view.contract.windows.segments:
        values = rows.categories.get(name, rows.attributes.get(name))
        if values is not None:
            columns.append(segments.names(view, name, values))
    keys = zip(rows.version, rows.arm, rows.revision.tolist(), *columns, strict=True)
    places: dict[tuple[Any, ...], int] = {}
    codes = [places.setdefault(key, len(places)) for key in keys]
    groups = [Group(key[0], key[1], key[2], key[3:]) for key in places]
    return Grouping(np.array(codes, dtype=np.int64), groups)


# --- abnormal rows --------------------------------------------------------------------------------


def rule_masks(view: ModelView, cuts: ModelCuts | None, rows: Rows) -> dict[str, Mask]:
    """Return which rows broke each rule; rules that no row broke are left out."""
    masks: dict[str, Mask] = {}

    def add(rule: str, mask: Mask) -> None:
        if mask.any():
            masks[rule] = masks[rule] | mask if rule in masks else mask

    _request_rules(view, cuts, rows, add)
    _response_rules(view, rows, add)
    for whole, rules in (
        (abnormal.REQUEST, abnormal.REQUEST_RULES),
        (abnormal.RESPONSE, abnormal.RESPONSE_RULES),
    ):
        broken = [masks[rule] for rule in rules if rule in masks]
        if broken:
            masks[whole] = np.logical_or.reduce(broken)
    return masks


def _request_rules(view: ModelView, cuts: ModelCuts | None, rows: Rows, add: Any) -> None:
    features = view.contract.features
    for name, column in rows.numeric.items():
        feature, values = features[name], column.values
        if column.errors is not None:
            add(abnormal.TYPE_ERROR, column.errors)
        if feature.required:
            absent = np.isnan(values)
            add(
                abnormal.MISSING_REQUIRED,
                absent if column.errors is None else absent & ~column.errors,
            )
        if feature.min is not None:
            add(abnormal.OUT_OF_RANGE, values < feature.min)
        if feature.max is not None:
            add(abnormal.OUT_OF_RANGE, values > feature.max)
        add(abnormal.NOT_FINITE, np.isinf(values))
    for name, objects in rows.categories.items():
        keys = [
            v if isinstance(v, str) and len(v) <= MAX_CATEGORY_CHARS else category_key(v)
            for v in objects
        ]
        known = _known_categories(view, cuts, name)
        if features[name].required:
            add(abnormal.MISSING_REQUIRED, np.array([k is None for k in keys], np.bool_))
        add(abnormal.TYPE_ERROR, np.array([k is False for k in keys], np.bool_))
        if known is not None:
            unseen = [isinstance(k, str) and k not in known for k in keys]
            add(abnormal.UNSEEN_CATEGORY, np.array(unseen, np.bool_))


def _known_categories(view: ModelView, cuts: ModelCuts | None, name: str) -> Any | None:
    declared = view.contract.features[name].values
    if declared:
        return frozenset(declared)
    stored = cuts.feature.get(name) if cuts is not None else None
    return stored.index if isinstance(stored, CategoryCuts) else None


def _response_rules(view: ModelView, rows: Rows, add: Any) -> None:
    ok = rows.status == "ok"
    for status, rule in STATUS_RULES.items():
        add(rule, np.asarray(rows.status == status, np.bool_))
    absent = np.array([p is None for p in rows.prediction], np.bool_)
    add(abnormal.MISSING_PREDICTION, absent & np.asarray(ok, np.bool_))
    classes = frozenset(view.contract.prediction.classes)
    if classes and not view.regression:
        unknown = [p is not None and category_key(p) not in classes for p in rows.prediction]
        add(abnormal.UNKNOWN_CLASS, np.array(unknown, np.bool_))
    add(abnormal.BAD_SCORE, np.isinf(rows.score))


# --- states ---------------------------------------------------------------------------------------


class Counted(Struct, frozen=True):
    """A state to merge at (pane start, version, arm, traffic revision, segment), and its offsets."""

    pane_start_ms: int
    version: str
    arm: str
    traffic_revision: int
    segment: str
    state: PaneState
    first_offset: int
    next_offset: int


def count_rows(
    view: ModelView, cuts: ModelCuts, rows: Rows, panes_ms: Ints, grouping: Grouping
) -> Iterator[Counted]:
    """Count rows per pane, version, arm, traffic revision and segment ("" = all of them)."""
    masks = rule_masks(view, cuts, rows)
    parts: dict[tuple[int, str, str, int, str], list[Ints]] = {}
    pairs, inverse = np.unique(np.stack((panes_ms, grouping.codes)), axis=1, return_inverse=True)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    bounds = np.searchsorted(inverse.reshape(-1)[order], np.arange(pairs.shape[1] + 1))
    for place in range(pairs.shape[1]):
        pane, code = (int(v) for v in pairs[:, place])
        index = order[bounds[place] : bounds[place + 1]]
        group = grouping.groups[code]
        for segment in ("", *group.segments):
            key = (pane, group.version, group.arm, group.traffic_revision, segment)
            parts.setdefault(key, []).append(index)
    for key, indices in parts.items():
        index = indices[0] if len(indices) == 1 else np.concatenate(indices)
        offsets = rows.offset[index]
        yield Counted(
            *key,
            state=_state(view, cuts, rows, masks, index),
            first_offset=int(offsets.min()),
            next_offset=int(offsets.max()) + 1,
        )


def _state(
    view: ModelView, cuts: ModelCuts, rows: Rows, masks: Mapping[str, Mask], index: Ints
) -> PaneState:
    features = view.contract.features
    numeric = {
        name: Column(
            column.values[index],
            0 if column.errors is None else int(np.count_nonzero(column.errors[index])),
            (features[name].min, features[name].max),
        )
        for name, column in rows.numeric.items()
    }
    categories: dict[str, list[object]] = {
        name: column[index].tolist() for name, column in rows.categories.items()
    }
    predictions = rows.prediction[index].tolist()
    output = cuts.output.get("prediction")
    if isinstance(output, NumericCuts):
        numeric["prediction"] = Column(*numeric_column(predictions))
    elif output is not None:
        categories["prediction"] = predictions
    if "score" in cuts.output:
        numeric["score"] = Column(rows.score[index])
    return observe_pane(
        cuts,
        index.size,
        numeric=numeric,
        categories=categories,
        statuses=Counter(rows.status[index].tolist()),
        rules={rule: int(np.count_nonzero(mask[index])) for rule, mask in masks.items()},
        latency_ms=rows.latency_ms[index],
    )
