"""Joining labels to predictions, as values: an index of what is current, and what a merge changes.

Notation
    index  hash -> current prediction and hash -> current label of one (model, shard)
    U      the ids a merge touches, shape (u,)
A merge looks the ids up, finds the old and the new current pair of each, and returns the difference
of what they contribute as signed deltas; so labels may come before their prediction, twice, corrected or
withdrawn, in any order. The current prediction of an id is the one of the lowest (pane, partition),
the current label the one of the highest (revision, retracted, value bytes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from trimtab.stats.performance import PerformanceState
from trimtab.store.labels import (
    NO_VALUE,
    Group,
    LabelRun,
    PerformanceDelta,
    PerformanceKey,
    PredictionRun,
    StoredRun,
)
from trimtab.windows.ids import Hashes

PREDICTION = np.dtype(
    [("pane", "<i8"), ("partition", "<i8"), ("group", "<i4"), ("code", "<i4"), ("number", "<f8")]
)
LABEL = np.dtype(
    [
        *(("revision", "<i8"), ("partition", "<i8"), ("code", "<i4"), ("number", "<f8")),
        ("retracted", "?"),
    ]
)
Records = npt.NDArray[Any]


class Newest:
    """A map from hash to a record: sorted chunks, the newest one that knows a hash wins."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._chunks: list[tuple[Hashes, Records]] = []

    def __len__(self) -> int:
        return sum(hashes.size for hashes, _ in self._chunks)

    def get(self, hashes: Hashes) -> tuple[npt.NDArray[np.bool_], Records]:
        """Return (which are known, their records), each shape (n,)."""
        found = np.zeros(hashes.size, np.bool_)
        records = np.zeros(hashes.size, self._dtype)
        for keys, values in reversed(self._chunks):
            place = np.minimum(keys.searchsorted(hashes), keys.size - 1)
            here = (keys[place] == hashes) & ~found
            records[here] = values[place[here]]
            found |= here
        return found, records

    def put(self, hashes: Hashes, records: Records) -> None:
        """Set the records of distinct, ascending hashes."""
        if hashes.size == 0:
            return
        keys, values = hashes, records
        while self._chunks and self._chunks[-1][0].size <= 2 * keys.size:
            old_keys, old_values = self._chunks.pop()
            keys, first = np.unique(np.concatenate((keys, old_keys)), return_index=True)
            values = np.concatenate((values, old_values))[first]  # first: the newer one
        self._chunks.append((keys, values))


class Merge(Struct):
    """What a merge changes."""

    deltas: dict[PerformanceKey, PerformanceDelta] = field(default_factory=dict)
    classes: dict[tuple[int, str], int] = field(default_factory=dict)
    """Signed counts of label classes by (partition id, class)."""
    rows: int = 0


class Joining:
    """The index of one (model, shard)."""

    def __init__(self) -> None:
        self._predictions = Newest(PREDICTION)
        self._labels = Newest(LABEL)
        self._groups: dict[Group, int] = {}
        self._classes: dict[str, int] = {}

    def __len__(self) -> int:
        """Entries in memory: predictions and labels."""
        return len(self._predictions) + len(self._labels)

    def merge(self, runs: Sequence[StoredRun]) -> Merge:
        """Take runs in and return what changes."""
        p_hash, p = self._prediction_events(runs)
        l_hash, events = self._label_events(runs)
        ids = np.unique(np.concatenate((p_hash, l_hash)))
        result = Merge(rows=p_hash.size + l_hash.size)
        if ids.size == 0:
            return result
        had_p, old_p = self._predictions.get(ids)
        had_l, old_l = self._labels.get(ids)
        has_p, new_p = self._best_predictions(ids, had_p, old_p, p_hash, p)
        has_l, new_l, winner = self._best_labels(ids, had_l, old_l, l_hash, events)
        self._predictions.put(ids[has_p], new_p[has_p])
        self._labels.put(ids[has_l], new_l[has_l])
        old = _joined(had_p, old_p, had_l, old_l)
        new = _joined(has_p, new_p, has_l, new_l)
        self._deltas(result, (had_p, old_p, old_l, old), (has_p, new_p, new_l, new))
        _classify(result, ids, l_hash, events, winner, (had_p, had_l, old_l), (has_p, new_l))
        return result

    # --- events of a merge ------------------------------------------------------------------------

    def _code(self, classes: Sequence[str], values: Records) -> npt.NDArray[np.int32]:
        mine = [self._classes.setdefault(name, len(self._classes)) for name in classes]
        # The last entry answers for NO_VALUE, which is -1.
        return np.array([*mine, NO_VALUE], np.int32)[values]

    def _prediction_events(self, runs: Sequence[StoredRun]) -> tuple[Hashes, Records]:
        hashes, records = [np.empty(0, np.uint64)], [np.empty(0, PREDICTION)]
        for stored in runs:
            run = stored.run
            if not isinstance(run, PredictionRun):
                continue
            groups = [self._groups.setdefault(g, len(self._groups)) for g in run.groups]
            part = np.zeros(run.hashes.size, PREDICTION)
            part["pane"], part["partition"] = run.panes_ms, stored.partition_id
            part["group"] = np.array(groups, np.int32)[run.group]
            if run.values.dtype.kind == "f":
                part["number"] = run.values
                part["code"] = np.where(np.isnan(run.values), NO_VALUE, 0)
            else:
                part["code"] = self._code(run.classes, run.values)
            hashes.append(run.hashes)
            records.append(part)
        return np.concatenate(hashes), np.concatenate(records)

    def _label_events(self, runs: Sequence[StoredRun]) -> tuple[Hashes, Records]:
        hashes, records = [np.empty(0, np.uint64)], [np.empty(0, LABEL)]
        for stored in runs:
            run = stored.run
            if not isinstance(run, LabelRun):
                continue
            part = np.zeros(run.hashes.size, LABEL)
            part["revision"], part["partition"] = run.revision, stored.partition_id
            part["retracted"] = run.retracted
            if run.values.dtype.kind == "f":
                part["number"] = run.values
            else:
                part["code"] = self._code(run.classes, run.values)
            hashes.append(run.hashes)
            records.append(part)
        return np.concatenate(hashes), np.concatenate(records)

    def _value_ranks(self) -> npt.NDArray[np.int64]:
        """Return the place of each class in the order of bytes."""
        names = sorted(self._classes, key=lambda name: name.encode("utf-8", "surrogatepass"))
        ranks = np.zeros(len(names) + 1, np.int64)
        for rank, name in enumerate(names):
            ranks[self._classes[name]] = rank
        return ranks

    # --- the current pair of each id --------------------------------------------------------------

    @staticmethod
    def _best_predictions(
        ids: Hashes, had: Any, old: Records, hashes: Hashes, events: Records
    ) -> tuple[Any, Records]:
        place = np.concatenate((np.flatnonzero(had), ids.searchsorted(hashes)))
        all_ = np.concatenate((old[had], events))
        order = np.lexsort((all_["partition"], all_["pane"], place))
        found, first = np.unique(place[order], return_index=True)
        has = np.zeros(ids.size, np.bool_)
        has[found] = True
        best = np.zeros(ids.size, PREDICTION)
        best[found] = all_[order[first]]
        return has, best

    def _best_labels(
        self, ids: Hashes, had: Any, old: Records, hashes: Hashes, events: Records
    ) -> tuple[Any, Records, npt.NDArray[np.int64]]:
        """Return (which ids have a label, the labels, index of the winning event or -1 for the old one)."""
        kept = int(had.sum())
        place = np.concatenate((np.flatnonzero(had), ids.searchsorted(hashes)))
        all_ = np.concatenate((old[had], events))
        arrival = np.arange(all_.size)
        ranks = self._value_ranks()[all_["code"]]
        # The last in the order wins. Of equal labels that is the one of the lowest partition, so
        # that an index rebuilt in another order gives the same answer.
        order = np.lexsort(
            (
                *(-arrival, -all_["partition"], all_["number"], ranks),
                *(all_["retracted"], all_["revision"], place),
            )
        )
        ends = np.flatnonzero(np.diff(np.append(place[order], -1)))
        last = order[ends]
        has = np.zeros(ids.size, np.bool_)
        has[place[last]] = True
        best = np.zeros(ids.size, LABEL)
        best[place[last]] = all_[last]
        winner = np.full(ids.size, -1, np.int64)
        winner[place[last]] = np.where(last < kept, -1, last - kept)
        return has, best, winner

    # --- what it contributes ----------------------------------------------------------------------

    def _deltas(self, result: Merge, before: Any, after: Any) -> None:
        names = list(self._classes)
        groups = list(self._groups)

        def delta(pane: int, group: int) -> list[PerformanceDelta]:
            g = groups[group]
            return [
                result.deltas.setdefault(
                    PerformanceKey(pane, g.version, g.arm, g.traffic_revision, segment),
                    PerformanceDelta(PerformanceState()),
                )
                for segment in ("", *g.segments)
            ]

        for sign, (has, p, label, joined) in ((-1, before), (1, after)):
            able = has & (p["code"] != NO_VALUE)
            for pane, group, index in _by_place(p, np.flatnonzero(able)):
                for d in delta(pane, group):
                    d.predicted_rows += sign * index.size
            for pane, group, index in _by_place(p, np.flatnonzero(joined)):
                state = self._state(names, label[index], p[index])
                for d in delta(pane, group):
                    d.labelled_rows += sign * index.size
                    d.state = d.state.merge(state if sign > 0 else state.negate())
        result.deltas = {
            key: d
            for key, d in result.deltas.items()
            if d.labelled_rows or d.predicted_rows or not d.state.is_empty
        }

    def _state(self, names: list[str], label: Records, p: Records) -> PerformanceState:
        if not names:  # no class was ever named: the model predicts numbers
            return PerformanceState.of_numbers(label["number"], p["number"])
        pairs, counts = np.unique(np.stack((label["code"], p["code"])), axis=1, return_counts=True)
        confusion = {
            (names[true], names[said]): int(n)
            for true, said, n in zip(*pairs.tolist(), counts.tolist(), strict=True)
        }
        return PerformanceState(dict(sorted(confusion.items())), rows=label.size)


def _joined(has_p: Any, p: Records, has_l: Any, label: Records) -> npt.NDArray[np.bool_]:
    """Which ids have a prediction with a value and a label that stands."""
    joined: npt.NDArray[np.bool_] = has_p & has_l & ~label["retracted"] & (p["code"] != NO_VALUE)
    return joined


def _by_place(p: Records, index: Any) -> Iterable[tuple[int, int, Any]]:
    """Yield (pane, group, indices) of the rows at `index`."""
    if index.size == 0:
        return
    pane, group = p["pane"][index], p["group"][index]
    order = np.lexsort((group, pane))
    pane, group, index = pane[order], group[order], index[order]
    cuts = np.flatnonzero((np.diff(pane) != 0) | (np.diff(group) != 0)) + 1
    for part in np.split(np.arange(index.size), cuts):
        yield int(pane[part[0]]), int(group[part[0]]), index[part]


def _equal(a: Records, b: Records) -> Any:
    """Which labels say the same."""
    return np.logical_and.reduce(
        [a[name] == b[name] for name in ("revision", "retracted", "code", "number")]
    )


def _classify(
    result: Merge,
    ids: Hashes,
    hashes: Hashes,
    events: Records,
    winner: npt.NDArray[np.int64],
    before: tuple[Any, Any, Records],
    after: tuple[Any, Records],
) -> None:
    """Count what became of each label: joined, superseded or duplicate; waiting ones count nowhere."""
    had_p, had_l, old_l = before
    has_p, new_l = after
    place = ids.searchsorted(hashes)
    wins = winner[place] == np.arange(events.size)
    current = new_l[place]
    same = _equal(events, current)
    replaced = had_l & (winner >= 0)
    again = _equal(old_l, new_l)
    stays = had_l & (winner < 0)
    for cls, sign, partitions in (
        ("joined", 1, events["partition"][wins & has_p[place]]),
        ("duplicate", 1, events["partition"][~wins & same]),
        ("superseded", 1, events["partition"][~wins & ~same]),
        ("superseded", 1, old_l["partition"][replaced & ~again]),
        ("duplicate", 1, old_l["partition"][replaced & again]),
        ("joined", -1, old_l["partition"][replaced & had_p]),
        ("joined", 1, old_l["partition"][stays & has_p & ~had_p]),
    ):
        for partition, count in zip(
            *(a.tolist() for a in np.unique(partitions, return_counts=True)), strict=True
        ):
            key = (partition, cls)
            result.classes[key] = result.classes.get(key, 0) + sign * count
    result.classes = {key: count for key, count in result.classes.items() if count}
