"""Joining labels to predictions, as values: an index of what is current, and what a merge changes.

Notation
    index  hash -> current prediction and hash -> current label of one (model, shard)
    entry  what the index has of one id: its prediction, its label, or both, and the label's repeats
    U      the ids a merge touches, shape (u,)
A merge looks the ids up, finds the old and the new current pair of each, and returns the difference
of what they contribute as signed deltas; so labels may come before their prediction, twice, corrected or
withdrawn, in any order. The current prediction of an id is the one of the lowest (pane, partition),
the current label the one of the highest (revision, retracted, value bytes).

An entry lives by its prediction's pane, or, while it has none, by its label's time. Prediction and label
expire together: one without the other would count the label as waiting again, or join it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from trimtab.monitor.current import Current, Mask, distinct
from trimtab.monitor.label_classes import classify, count
from trimtab.monitor.repeats import Repeats
from trimtab.monitor.winners import Pairs, best, earliest, latest
from trimtab.stats.performance import PerformanceState
from trimtab.stats.scorebins import BINS, NO_SCORE
from trimtab.store.entries import LABEL_RECORD, PREDICTION_RECORD, KeptRun, Records
from trimtab.store.label_runs import NO_VALUE, Group, Ints, LabelRun, PredictionRun, StoredRun
from trimtab.store.performance import PerformanceDelta, PerformanceKey
from trimtab.windows.ids import Hashes


class Merge(Struct):
    """What a merge changes."""

    deltas: dict[PerformanceKey, PerformanceDelta] = field(default_factory=dict)
    classes: dict[tuple[int, str], int] = field(default_factory=dict)
    """Signed counts of label classes by (partition id, class)."""
    rows: int = 0


class Joining:
    """The index of one (model, shard)."""

    def __init__(self) -> None:
        self._predictions = Current(PREDICTION_RECORD)
        self._labels = Current(LABEL_RECORD)
        self._repeats = Repeats()
        self._groups: dict[Group, int] = {}
        self._classes: dict[str, int] = {}
        self._touched: list[Hashes] = []

    def __len__(self) -> int:
        """Entries in memory: predictions and labels."""
        return len(self._predictions) + len(self._labels)

    @property
    def touched_rows(self) -> int:
        """Ids that were merged since the last checkpoint, about."""
        return sum(hashes.size for hashes in self._touched)

    def merge(self, runs: Sequence[StoredRun]) -> Merge:
        """Take runs in and return what changes."""
        p_hash, p = self._prediction_events(runs)
        l_hash, events = self._label_events(runs)
        ids = distinct(np.concatenate((p_hash, l_hash)))
        result = Merge(rows=p_hash.size + l_hash.size)
        if ids.size == 0:
            return result
        before = Pairs(*self._predictions.get(ids), *self._labels.get(ids))
        p_place, l_place = ids.searchsorted(p_hash), ids.searchsorted(l_hash)
        has_p, new_p, p_winner = best(before.has_p, before.p, p_place, p, earliest)
        has_l, new_l, l_winner = best(before.has_l, before.label, l_place, events, self._latest)
        after = Pairs(has_p, new_p, has_l, new_l)
        changed_p, changed_l = p_winner >= 0, l_winner >= 0
        self._predictions.put(ids[changed_p], new_p[changed_p], before.has_p[changed_p])
        self._labels.put(ids[changed_l], new_l[changed_l], before.has_l[changed_l])
        self._touched.append(ids)
        self._deltas(result, before, after, changed_p, changed_l)
        result.classes = classify(ids, l_place, events, l_winner, before, after, self._repeats)
        return result

    # --- checkpoints ------------------------------------------------------------------------------

    def keep(self, now_ms: int) -> KeptRun:
        """Return the entries that changed since the last call, as they are now.

        Label times beyond `now_ms` become `now_ms`, so that a wrong clock keeps no label for ever.
        """
        touched = [np.empty(0, np.uint64), *self._touched]
        ids = distinct(np.concatenate(touched))
        self._touched = []
        has_p, p = self._predictions.get(ids)
        has_l, label = self._labels.get(ids)
        ahead = has_l & (label["time"] > now_ms)
        if ahead.any():
            label["time"][ahead] = now_ms
            self._labels.put(ids[ahead], label[ahead], np.ones(int(ahead.sum()), np.bool_))
        return KeptRun(
            ids[has_p],
            p[has_p],
            ids[has_l],
            label[has_l],
            *self._repeats.get(ids),
            tuple(self._groups),
            tuple(self._classes),
        )

    def load(self, kept: KeptRun) -> None:
        """Take a kept run in: its entries replace those of the same ids."""
        p, label = kept.predictions.copy(), kept.labels.copy()
        groups = [self._groups.setdefault(g, len(self._groups)) for g in kept.groups]
        if groups:
            p["group"] = np.array(groups, np.int32)[p["group"]]
        if kept.classes:
            for records in (p, label):
                records["code"] = self._code(kept.classes, records["code"])
        if len(self):
            ids = kept.hashes
            self._predictions.remove(ids)
            self._labels.remove(ids)
            self._repeats.take(ids)
        self._predictions.put(kept.prediction_hashes, p, np.zeros(p.size, np.bool_))
        self._labels.put(kept.label_hashes, label, np.zeros(label.size, np.bool_))
        self._repeats.add(kept.repeat_hashes, kept.repeats)

    def expire(self, before_ms: int) -> dict[tuple[int, str], int]:
        """Forget what is older than `before_ms`; return the labels that waited, as class counts."""
        old, _ = self._predictions.before("pane", before_ms)
        self._predictions.remove(old)
        self._labels.remove(old)
        self._repeats.take(old)
        waiting, records = self._labels.before("time", before_ms)
        has_p, _ = self._predictions.get(waiting)
        self._labels.remove(waiting[~has_p])
        self._repeats.take(waiting[~has_p])
        counts: dict[tuple[int, str], int] = {}
        count(counts, "expired", 1, records["partition"][~has_p])
        return counts

    # --- events of a merge ------------------------------------------------------------------------

    def _code(self, classes: Sequence[str], values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        mine = [self._classes.setdefault(name, len(self._classes)) for name in classes]
        # The last entry answers for NO_VALUE, which is -1.
        codes: npt.NDArray[np.int32] = np.array([*mine, NO_VALUE], np.int32)[values]
        return codes

    def _prediction_events(self, runs: Sequence[StoredRun]) -> tuple[Hashes, Records]:
        hashes, records = [np.empty(0, np.uint64)], [np.empty(0, PREDICTION_RECORD)]
        for stored in runs:
            run = stored.run
            if not isinstance(run, PredictionRun):
                continue
            groups = [self._groups.setdefault(g, len(self._groups)) for g in run.groups]
            part = np.zeros(run.hashes.size, PREDICTION_RECORD)
            part["pane"], part["partition"] = run.panes_ms, stored.partition_id
            part["group"] = np.array(groups, np.int32)[run.group]
            if run.values.dtype.kind == "f":
                part["number"] = run.values
                part["code"] = np.where(np.isnan(run.values), NO_VALUE, 0)
            else:
                part["code"] = self._code(run.classes, run.values)
            part["bin"] = NO_SCORE if run.bins is None else run.bins
            hashes.append(run.hashes)
            records.append(part)
        return np.concatenate(hashes), np.concatenate(records)

    def _label_events(self, runs: Sequence[StoredRun]) -> tuple[Hashes, Records]:
        hashes, records = [np.empty(0, np.uint64)], [np.empty(0, LABEL_RECORD)]
        for stored in runs:
            run = stored.run
            if not isinstance(run, LabelRun):
                continue
            part = np.zeros(run.hashes.size, LABEL_RECORD)
            part["time"], part["revision"] = run.times_ms, run.revision
            part["partition"], part["retracted"] = stored.partition_id, run.retracted
            if run.values.dtype.kind == "f":
                part["number"] = run.values
            else:
                part["code"] = self._code(run.classes, run.values)
            hashes.append(run.hashes)
            records.append(part)
        return np.concatenate(hashes), np.concatenate(records)

    def _latest(self, place: Ints, labels: Records) -> npt.NDArray[np.intp]:
        return latest(place, labels, self._value_ranks())

    def _value_ranks(self) -> Ints:
        """Return the place of each class in the order of bytes."""
        names = sorted(self._classes, key=lambda name: name.encode("utf-8", "surrogatepass"))
        ranks = np.zeros(len(names) + 1, np.int64)
        for rank, name in enumerate(names):
            ranks[self._classes[name]] = rank
        return ranks

    # --- what it contributes ----------------------------------------------------------------------

    def _deltas(
        self, result: Merge, before: Pairs, after: Pairs, changed_p: Mask, changed_l: Mask
    ) -> None:
        names, groups = list(self._classes), list(self._groups)

        def delta(pane: int, group: int) -> list[PerformanceDelta]:
            g = groups[group]
            return [
                result.deltas.setdefault(
                    PerformanceKey(pane, g.version, g.arm, g.traffic_revision, segment),
                    PerformanceDelta(PerformanceState()),
                )
                for segment in ("", *g.segments)
            ]

        changed = changed_p | changed_l
        for sign, pairs in ((-1, before), (1, after)):
            for pane, group, index in _by_place(pairs.p, np.flatnonzero(pairs.able & changed_p)):
                for d in delta(pane, group):
                    d.predicted_rows += sign * index.size
            for pane, group, index in _by_place(pairs.p, np.flatnonzero(pairs.joined & changed)):
                state = _state(names, pairs.label[index], pairs.p[index])
                for d in delta(pane, group):
                    d.labelled_rows += sign * index.size
                    d.state = d.state.merge(state if sign > 0 else state.negate())
        result.deltas = {
            key: d
            for key, d in result.deltas.items()
            if d.labelled_rows or d.predicted_rows or not d.state.is_empty
        }


def _by_place(p: Records, index: Any) -> Iterator[tuple[int, int, Any]]:
    """Yield (pane, group, indices) of the rows at `index`."""
    if index.size == 0:
        return
    pane, group = p["pane"][index], p["group"][index]
    order = np.lexsort((group, pane))
    pane, group, index = pane[order], group[order], index[order]
    cuts = np.flatnonzero((np.diff(pane) != 0) | (np.diff(group) != 0)) + 1
    starts = np.append(0, cuts)
    for start, part in zip(starts.tolist(), np.split(index, cuts), strict=True):
        yield int(pane[start]), int(group[start]), part


def _state(names: list[str], label: Records, p: Records) -> PerformanceState:
    if not names:  # no class was ever named: the model predicts numbers
        return PerformanceState.of_numbers(label["number"], p["number"])
    width, places = len(names), BINS + 1
    codes = label["code"].astype(np.int64) * width + p["code"]
    found, counts = np.unique(codes * places + p["bin"] + 1, return_counts=True)  # NO_SCORE is -1
    confusion: dict[tuple[str, str], int] = {}
    scored: dict[tuple[str, str, int], int] = {}
    for code, rows in zip(found.tolist(), counts.tolist(), strict=True):
        pair = names[code // places // width], names[code // places % width]
        confusion[pair] = confusion.get(pair, 0) + rows
        if code % places:
            scored[*pair, code % places - 1] = rows
    return PerformanceState(
        dict(sorted(confusion.items())), rows=label.size, scored=dict(sorted(scored.items()))
    )
