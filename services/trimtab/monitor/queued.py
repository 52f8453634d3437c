"""Rows and labels as the runs that joiners merge, by shard of the id's hash."""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.monitor.columns import Ints, Numbers, Rows
from trimtab.monitor.counting import Grouping
from trimtab.monitor.label_columns import LabelColumns
from trimtab.monitor.views import ModelView
from trimtab.stats.coded import Coded
from trimtab.stats.scorebins import NO_SCORE, score_bins
from trimtab.store.label_runs import DUPLICATES_SHARD, NO_VALUE, LabelRun, PredictionRun
from trimtab.windows.ids import Hashes
from trimtab.windows.label_sample import in_sample

_SHARD_SHIFT = np.uint64(32)


def prediction_runs(
    view: ModelView, rows: Rows, starts: Ints, grouping: Grouping, shards: int
) -> list[tuple[int, PredictionRun]]:
    """Return (shard, run) of rows in panes that begin at `starts`.

    Those that the contract's sample of labels leaves out are in DUPLICATES_SHARD.
    """
    values, classes = _answered(rows.answers)
    bins = None if view.regression else score_bins(rows.score)
    if bins is not None and (bins == NO_SCORE).all():
        bins = None
    group, groups = grouping.codes.astype(np.int32), tuple(grouping.groups)
    return [
        (
            shard,
            PredictionRun(
                rows.hashes[index],
                starts[index],
                group[index],
                values[index],
                groups,
                classes,
                None if bins is None else bins[index],
            ),
        )
        for shard, index in _places(view, rows.hashes, shards)
    ]


def queued_labels(
    view: ModelView, labels: LabelColumns, shards: int
) -> tuple[int, list[tuple[int, LabelRun]]]:
    """Return (labels that the contract's sample leaves out, (shard, run) of the others)."""
    values: Any = labels.numbers
    classes: tuple[str, ...] = ()
    if values is None:
        column = Coded.of_text([] if labels.classes is None else labels.classes.tolist())
        values, classes = column.codes, tuple(map(str, column.keys))
    runs = [
        (
            shard,
            LabelRun(
                labels.hashes[index],
                labels.times_ms[index],
                labels.revision[index],
                labels.retracted[index],
                values[index],
                classes,
            ),
        )
        for shard, index in _places(view, labels.hashes, shards)
        if shard != DUPLICATES_SHARD
    ]
    return labels.hashes.size - sum(run.hashes.size for _, run in runs), runs


def _answered(answers: Coded | Numbers) -> tuple[Any, tuple[str, ...]]:
    """Return (values, classes) of a PredictionRun."""
    if isinstance(answers, Numbers):
        return np.where(np.isfinite(answers.values), answers.values, np.nan), ()
    classes = tuple(key for key in answers.keys if isinstance(key, str))
    place = {name: code for code, name in enumerate(classes)}
    codes = [NO_VALUE if not isinstance(key, str) else place[key] for key in answers.keys]
    return np.array(codes, np.int32)[answers.codes], classes


def _places(view: ModelView, hashes: Hashes, shards: int) -> list[tuple[int, Any]]:
    """Return (shard, indices) of the ids, those that the contract's sample leaves out apart."""
    inside = in_sample(hashes, view.contract.labels.sample_share)
    if inside.all():
        return _shards(hashes, shards)
    chosen = np.flatnonzero(inside)
    found = [(shard, chosen[at]) for shard, at in _shards(hashes[chosen], shards)]
    return [(DUPLICATES_SHARD, np.flatnonzero(~inside)), *found]


def _shards(hashes: Hashes, shards: int) -> list[tuple[int, Any]]:
    if shards == 1:
        return [(0, slice(None))] if hashes.size else []
    owner = (hashes >> _SHARD_SHIFT) % np.uint64(shards)
    return [(int(s), np.flatnonzero(owner == s)) for s in np.unique(owner)]
