"""Columns to states: which rows are abnormal, which group and segments a row belongs to, what is counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from trimtab.monitor.columns import Codes, Ints, Mask, Numbers, Rows
from trimtab.monitor.views import ModelView
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.coded import Coded
from trimtab.stats.combinations import matches
from trimtab.stats.cuts import CategoryCuts, Key, ModelCuts, NumericCuts
from trimtab.stats.outliers import finds_outliers, outlying
from trimtab.store.label_runs import Group
from trimtab.windows import abnormal
from trimtab.windows.panes import split_by

MOST_SEGMENTS = 20
OTHER, MISSING = "other", "missing"
_SEGMENT_CHARS_MAX = 120
_CODES_MAX = 2**62
_MISSING: frozenset[Key] = frozenset((None,))
_NO_CATEGORY: frozenset[Key] = frozenset((False,))

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

    def names(self, view: ModelView, column: str, values: Coded) -> Coded:
        """Return "column=value" for each row."""
        feature = view.contract.features.get(column)
        declared = feature.values if feature is not None else ()
        known = set(declared[:MOST_SEGMENTS]) if declared else self._met.setdefault(column, set())
        # In the order of the rows, so that a re-read in other batches names the same ones.
        names = {
            key: f"{column}={self._name(key, known, grows=not declared)}"
            for key in values.present()
        }
        return values.map([names.get(key, "") for key in values.keys])

    @staticmethod
    def _name(key: Key, known: set[str], *, grows: bool) -> str:
        if key is None:
            return MISSING
        if key is False:  # there is a value, and it names no category
            return OTHER
        key = key[:_SEGMENT_CHARS_MAX]
        if key in known:
            return key
        if grows and len(known) < MOST_SEGMENTS and key not in (OTHER, MISSING):
            known.add(key)
            return key
        return OTHER


class Grouping(Struct):
    """The groups of a batch of rows: `codes[i]` is the place of row i's group in `groups`."""

    codes: Codes
    groups: list[Group]


def group_rows(view: ModelView, rows: Rows, segments: Segments) -> Grouping:
    """Group rows by version, arm, traffic revision and segments."""
    columns = [rows.version, rows.arm]
    for name in view.contract.windows.segments:
        values = rows.categories.get(name, rows.attributes.get(name))
        if values is not None:
            columns.append(segments.names(view, name, values))
    codes, most = np.zeros(rows.size, np.int64), 1  # every code is below `most`
    if rows.size and (rows.revision != rows.revision[0]).any():
        codes, most = _compressed(rows.revision)
    for column in columns:
        if len(column.keys) > 1:
            if most * len(column.keys) > _CODES_MAX:
                codes, most = _compressed(codes)
            codes = codes * len(column.keys) + column.codes
            most *= len(column.keys)
    if rows.size and not codes.any():  # no rollout, one version, no segments: the common case
        first = np.zeros(1, np.int64)
    else:
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    groups = []
    for row in first.tolist():
        version, arm, *named = (str(column.keys[column.codes[row]]) for column in columns)
        revision = int(rows.revision[row])
        groups.append(Group(version, arm, revision, tuple(named), view.rules.pane_ms))
    return Grouping(codes.reshape(-1).astype(np.int32), groups)


def _compressed(codes: Ints) -> tuple[Ints, int]:
    """Return the place of each code among those that occur, and how many these are."""
    found, places = np.unique(codes, return_inverse=True)
    return places.reshape(-1), int(found.size)


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
    if cuts is not None and finds_outliers(cuts):
        add(abnormal.OUTLIER, outlying(cuts, rows.numbers_by_name, rows.categories, rows.size))
    return masks


def _request_rules(view: ModelView, cuts: ModelCuts | None, rows: Rows, add: Any) -> None:
    features, errors = view.watched, rows.number_errors
    if errors is not None:
        add(abnormal.TYPE_ERROR, errors.any(axis=0))
    for place, (name, values) in enumerate(zip(rows.number_names, rows.numbers, strict=True)):
        feature = features[name]
        if feature.required:
            absent = np.isnan(values)
            add(abnormal.MISSING_REQUIRED, absent if errors is None else absent & ~errors[place])
        if feature.min is not None:
            add(abnormal.OUT_OF_RANGE, values < feature.min)
        if feature.max is not None:
            add(abnormal.OUT_OF_RANGE, values > feature.max)
        add(abnormal.NOT_FINITE, np.isinf(values))
    for name, column in rows.categories.items():
        known = _known_categories(view, cuts, name)
        if features[name].required:
            add(abnormal.MISSING_REQUIRED, column.mask(_MISSING))
        add(abnormal.TYPE_ERROR, column.mask(_NO_CATEGORY))
        if known is not None:
            unseen = [key for key in column.keys if isinstance(key, str) and key not in known]
            if unseen:
                add(abnormal.UNSEEN_CATEGORY, column.mask(frozenset(unseen)))
    if view.impossible:
        numbers = rows.numbers_by_name
        for combination in view.impossible:
            add(abnormal.IMPOSSIBLE, matches(combination, numbers, rows.categories, rows.size))


def _known_categories(view: ModelView, cuts: ModelCuts | None, name: str) -> Any | None:
    declared = view.contract.features[name].values
    if declared:
        return frozenset(declared)
    stored = cuts.feature.get(name) if cuts is not None else None
    return stored.index if isinstance(stored, CategoryCuts) else None


def _response_rules(view: ModelView, rows: Rows, add: Any) -> None:
    for status, rule in STATUS_RULES.items():
        if status in rows.status.keys:
            add(rule, rows.status.mask((status,)))
    answers = rows.answers
    if isinstance(answers, Coded):
        absent = answers.mask(_MISSING)
        classes = frozenset(view.contract.prediction.classes)
        unknown = [key for key in answers.keys if key is not None and key not in classes]
        if classes and unknown:
            add(abnormal.UNKNOWN_CLASS, answers.mask(frozenset(unknown)))
    else:
        absent = np.isnan(answers.values)
        if answers.errors is not None:
            absent &= ~answers.errors
    add(abnormal.MISSING_PREDICTION, absent & rows.status.mask(("ok",)))
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
    parts: dict[tuple[int, str, str, int, str], list[Any]] = {}
    for pane, in_pane in split_by(panes_ms):
        for code, in_group in split_by(grouping.codes[in_pane]):
            group = grouping.groups[code]
            for segment in ("", *group.segments):
                key = (pane, group.version, group.arm, group.traffic_revision, segment)
                parts.setdefault(key, []).append(in_pane[in_group])
    for key, indices in parts.items():
        index: Any = indices[0] if len(indices) == 1 else np.concatenate(indices)
        if index.size == rows.size:  # counts do not ask for an order
            index = slice(None)
        offsets = rows.offset[index]
        yield Counted(
            *key,
            state=_state(view, cuts, rows, masks, index),
            first_offset=int(offsets.min()),
            next_offset=int(offsets.max()) + 1,
        )


def _state(
    view: ModelView, cuts: ModelCuts, rows: Rows, masks: Mapping[str, Mask], index: Any
) -> PaneState:
    features, errors = view.watched, rows.number_errors
    numbers = rows.numbers[:, index]
    numeric = {
        name: Column(
            numbers[place],
            0 if errors is None else int(np.count_nonzero(errors[place, index])),
            (features[name].min, features[name].max),
        )
        for place, name in enumerate(rows.number_names)
    }
    categories = {name: column.take(index) for name, column in rows.categories.items()}
    answers, output = rows.answers, cuts.output.get("prediction")
    if isinstance(answers, Coded) and isinstance(output, CategoryCuts):
        categories["prediction"] = answers.take(index)
    elif isinstance(answers, Numbers) and isinstance(output, NumericCuts):
        wrong = 0 if answers.errors is None else int(np.count_nonzero(answers.errors[index]))
        numeric["prediction"] = Column(answers.values[index], wrong)
    if "score" in cuts.output:
        numeric["score"] = Column(rows.score[index])
    status = rows.status.take(index)
    return observe_pane(
        cuts,
        len(status),
        numeric=numeric,
        categories=categories,
        statuses={
            str(key): count
            for key, count in zip(status.keys, status.counts().tolist(), strict=True)
        },
        rules={rule: int(np.count_nonzero(mask[index])) for rule, mask in masks.items()},
        latency_ms=rows.latency_ms[index],
    )
