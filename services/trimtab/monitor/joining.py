"""Joining labels to predictions, as values: an index of what is current, and what a merge changes.

Notation
    index  hash -> current prediction and hash -> current label of one (model, shard)
    entry  what the index has of one id: its prediction, its label, or both
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

from trimtab.stats.performance import PerformanceState
from trimtab.store.labels import (
    LABEL_RECORD,
    NO_VALUE,
    PREDICTION_RECORD,
    Group,
    KeptRun,
    LabelRun,
    PerformanceDelta,
    PerformanceKey,
    PredictionRun,
    Records,
    StoredRun,
)
from trimtab.windows.ids import Hashes

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class Current:
    """A map from hash to a record, in a few sorted chunks; each hash stands once."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._chunks: list[tuple[Hashes, Records]] = []

    def __len__(self) -> int:
        return sum(hashes.size for hashes, _ in self._chunks)

    def get(self, hashes: Hashes) -> tuple[Mask, Records]:
        """Return (which are known, their records), each shape (n,)."""
        found = np.zeros(hashes.size, np.bool_)
        records = np.zeros(hashes.size, self._dtype)
        for keys, values in self._chunks:
            place = np.minimum(keys.searchsorted(hashes), keys.size - 1)
            here = keys[place] == hashes
            if here.any():
                records[here] = values[place[here]]
                found |= here
        return found, records

    def put(self, hashes: Hashes, records: Records, known: Mask) -> None:
        """Set the records of distinct, ascending hashes; `known` says which `get` has found."""
        if known.any():
            old_hashes, old_records = hashes[known], records[known]
            for keys, values in self._chunks:
                place = np.minimum(keys.searchsorted(old_hashes), keys.size - 1)
                here = keys[place] == old_hashes
                values[place[here]] = old_records[here]
        new = ~known
        keys, values = hashes[new], records[new]
        if keys.size == 0:
            return
        while self._chunks and self._chunks[-1][0].size <= keys.size:
            keys, values = _interleave(*self._chunks.pop(), keys, values)
        self._chunks.append((keys, values))

    def remove(self, hashes: Hashes) -> None:
        """Forget hashes; those that are not known change nothing."""
        if hashes.size == 0:
            return
        chunks = []
        for keys, values in self._chunks:
            place = np.minimum(keys.searchsorted(hashes), keys.size - 1)
            gone = place[keys[place] == hashes]
            if gone.size:
                stays = np.ones(keys.size, np.bool_)
                stays[gone] = False
                keys, values = keys[stays], values[stays]  # noqa: PLW2901 - what is left of the chunk
            if keys.size:
                chunks.append((keys, values))
        self._chunks = chunks

    def before(self, name: str, limit: int) -> tuple[Hashes, Records]:
        """Return (hashes, records) whose field `name` is below `limit`, hashes ascending."""
        found, records = [np.empty(0, np.uint64)], [np.empty(0, self._dtype)]
        for keys, values in self._chunks:
            low = values[name] < limit
            found.append(keys[low])
            records.append(values[low])
        hashes = np.concatenate(found)
        order = hashes.argsort()
        return hashes[order], np.concatenate(records)[order]


class Merge(Struct):
    """What a merge changes."""

    deltas: dict[PerformanceKey, PerformanceDelta] = field(default_factory=dict)
    classes: dict[tuple[int, str], int] = field(default_factory=dict)
    """Signed counts of label classes by (partition id, class)."""
    rows: int = 0


class _Pairs(Struct):
    """The current prediction and label of each id of a merge: which have one, and the records."""

    has_p: Mask
    p: Records
    has_l: Mask
    label: Records

    @property
    def joined(self) -> Mask:
        """Which ids have a prediction with a value and a label that stands."""
        stands: Mask = self.has_l & ~self.label["retracted"]
        return self.able & stands

    @property
    def able(self) -> Mask:
        """Which ids have a prediction that a label could join."""
        able: Mask = self.has_p & (self.p["code"] != NO_VALUE)
        return able


class Joining:
    """The index of one (model, shard)."""

    def __init__(self) -> None:
        self._predictions = Current(PREDICTION_RECORD)
        self._labels = Current(LABEL_RECORD)
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
        ids = _distinct(np.concatenate((p_hash, l_hash)))
        result = Merge(rows=p_hash.size + l_hash.size)
        if ids.size == 0:
            return result
        before = _Pairs(*self._predictions.get(ids), *self._labels.get(ids))
        p_place, l_place = ids.searchsorted(p_hash), ids.searchsorted(l_hash)
        has_p, new_p, p_winner = _best(before.has_p, before.p, p_place, p, _earliest)
        has_l, new_l, l_winner = _best(
            before.has_l, before.label, l_place, events, self._latest_label
        )
        after = _Pairs(has_p, new_p, has_l, new_l)
        changed_p, changed_l = p_winner >= 0, l_winner >= 0
        self._predictions.put(ids[changed_p], new_p[changed_p], before.has_p[changed_p])
        self._labels.put(ids[changed_l], new_l[changed_l], before.has_l[changed_l])
        self._touched.append(ids)
        self._deltas(result, before, after, changed_p, changed_l)
        _classify(result, l_place, events, l_winner, before, after)
        return result

    # --- checkpoints ------------------------------------------------------------------------------

    def keep(self, now_ms: int) -> KeptRun:
        """Return the entries that changed since the last call, as they are now.

        Label times beyond `now_ms` become `now_ms`, so that a wrong clock keeps no label for ever.
        """
        touched = [np.empty(0, np.uint64), *self._touched]
        ids = _distinct(np.concatenate(touched))
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
        self._predictions.put(kept.prediction_hashes, p, np.zeros(p.size, np.bool_))
        self._labels.put(kept.label_hashes, label, np.zeros(label.size, np.bool_))

    def expire(self, before_ms: int) -> dict[tuple[int, str], int]:
        """Forget what is older than `before_ms`; return the labels that waited, as class counts."""
        old, _ = self._predictions.before("pane", before_ms)
        self._predictions.remove(old)
        self._labels.remove(old)
        waiting, records = self._labels.before("time", before_ms)
        has_p, _ = self._predictions.get(waiting)
        self._labels.remove(waiting[~has_p])
        counts: dict[tuple[int, str], int] = {}
        _count(counts, "expired", 1, records["partition"][~has_p])
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

    def _latest_label(self, place: Ints, labels: Records) -> npt.NDArray[np.intp]:
        """Order labels so that of each place the winning one comes last.

        Of equal labels that is the one of the lowest partition, so that an index rebuilt in another
        order gives the same answer; of the same partition the one that came first.
        """
        ranks = self._value_ranks()[labels["code"]]
        arrival = np.arange(labels.size)
        return np.lexsort(
            (
                *(-arrival, -labels["partition"], labels["number"], ranks),
                *(labels["retracted"], labels["revision"], place),
            )
        )

    def _value_ranks(self) -> Ints:
        """Return the place of each class in the order of bytes."""
        names = sorted(self._classes, key=lambda name: name.encode("utf-8", "surrogatepass"))
        ranks = np.zeros(len(names) + 1, np.int64)
        for rank, name in enumerate(names):
            ranks[self._classes[name]] = rank
        return ranks

    # --- what it contributes ----------------------------------------------------------------------

    def _deltas(
        self, result: Merge, before: _Pairs, after: _Pairs, changed_p: Mask, changed_l: Mask
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


def compact(older: KeptRun, newer: KeptRun, expired_to_ms: int | None) -> KeptRun:
    """Return one kept run in place of two neighbours.

    `expired_to_ms` drops what has expired; None where an older kept run may hold the same ids.
    """
    groups = {group: place for place, group in enumerate(older.groups)}
    classes = {name: place for place, name in enumerate(older.classes)}
    group_of = np.array([groups.setdefault(g, len(groups)) for g in newer.groups], np.int32)
    class_of = np.array(
        [*(classes.setdefault(c, len(classes)) for c in newer.classes), NO_VALUE], np.int32
    )
    p, label = newer.predictions.copy(), newer.labels.copy()
    if group_of.size:
        p["group"] = group_of[p["group"]]
    if newer.classes:  # without one, a code only says whether there is a number
        p["code"], label["code"] = class_of[p["code"]], class_of[label["code"]]
    ids = newer.hashes
    p_stays, l_stays = ~_among(older.prediction_hashes, ids), ~_among(older.label_hashes, ids)
    p_hash, p = _interleave(
        older.prediction_hashes[p_stays], older.predictions[p_stays], newer.prediction_hashes, p
    )
    l_hash, label = _interleave(
        older.label_hashes[l_stays], older.labels[l_stays], newer.label_hashes, label
    )
    if expired_to_ms is not None:
        lives = p["pane"] >= expired_to_ms
        alone = (label["time"] >= expired_to_ms) & ~_among(l_hash, p_hash)
        keeps = alone | _among(l_hash, p_hash[lives])
        p_hash, p, l_hash, label = p_hash[lives], p[lives], l_hash[keeps], label[keeps]
    return KeptRun(p_hash, p, l_hash, label, tuple(groups), tuple(classes))


# --- sorted columns -------------------------------------------------------------------------------


def _distinct(hashes: Hashes) -> Hashes:
    ordered = np.sort(hashes)
    if ordered.size < 2:
        return ordered
    distinct: Hashes = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return distinct


def _among(hashes: Hashes, ordered: Hashes) -> Mask:
    """Which of the hashes are among ascending ones."""
    if ordered.size == 0:
        return np.zeros(hashes.size, np.bool_)
    place = np.minimum(ordered.searchsorted(hashes), ordered.size - 1)
    among: Mask = ordered[place] == hashes
    return among


def _interleave(
    old_keys: Hashes, old_values: Records, keys: Hashes, values: Records
) -> tuple[Hashes, Records]:
    """Merge two sorted chunks that share no key."""
    total = old_keys.size + keys.size
    place = old_keys.searchsorted(keys) + np.arange(keys.size)
    is_old = np.ones(total, np.bool_)
    is_old[place] = False
    all_keys, all_values = np.empty(total, np.uint64), np.empty(total, values.dtype)
    all_keys[place], all_values[place] = keys, values
    all_keys[is_old], all_values[is_old] = old_keys, old_values
    return all_keys, all_values


def _earliest(place: Ints, p: Records) -> npt.NDArray[np.intp]:
    """Order predictions so that of each place the one of the lowest (pane, partition) comes last."""
    return np.lexsort((-np.arange(p.size), -p["partition"], -p["pane"], place))


def _best(
    had: Mask, old: Records, place: Ints, events: Records, order: Any
) -> tuple[Mask, Records, Ints]:
    """Return (which ids have a record, the records, index of the winning event or -1 for the old one).

    `order(places, records)` sorts by place, and within it so that the winner comes last. Only ids with
    more than one candidate are compared.
    """
    candidates = np.bincount(place, minlength=had.size)
    has = had | (candidates > 0)
    contested = candidates + had > 1
    best, winner = old.copy(), np.full(had.size, -1, np.int64)
    if not contested.any():
        best[place], winner[place] = events, np.arange(place.size)
        return has, best, winner
    hard = contested[place]
    alone = np.flatnonzero(~hard)
    best[place[alone]] = events[alone]
    winner[place[alone]] = alone
    if hard.any():
        index = np.flatnonzero(hard)
        standing = np.flatnonzero(had & contested & (candidates > 0))
        places = np.concatenate((standing, place[index]))
        records = np.concatenate((old[standing], events[index]))
        ordered = order(places, records)
        ends = ordered[np.flatnonzero(np.diff(np.append(places[ordered], -1)))]
        best[places[ends]] = records[ends]
        origin = np.concatenate((np.full(standing.size, -1, np.int64), index))
        winner[places[ends]] = origin[ends]
    return has, best, winner


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
    width = len(names)
    pairs, counts = np.unique(
        label["code"].astype(np.int64) * width + p["code"], return_counts=True
    )
    confusion = {
        (names[pair // width], names[pair % width]): count
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
    }
    return PerformanceState(dict(sorted(confusion.items())), rows=label.size)


# --- the ledger's classes -------------------------------------------------------------------------


def _equal(a: Records, b: Records) -> Mask:
    """Which labels say the same."""
    equal: Mask = (a["revision"] == b["revision"]) & (a["retracted"] == b["retracted"])
    value: Mask = (a["code"] == b["code"]) & (a["number"] == b["number"])
    return equal & value


def _classify(
    result: Merge, place: Ints, events: Records, winner: Ints, before: _Pairs, after: _Pairs
) -> None:
    """Count what became of each label: joined, superseded or duplicate; waiting ones count nowhere."""
    old, new = before.label, after.label
    counts: dict[tuple[int, str], int] = {}
    if events.size:
        wins = winner[place] == np.arange(events.size)
        same = _equal(events, new[place])
        _count(counts, "joined", 1, events["partition"][wins & after.has_p[place]])
        _count(counts, "duplicate", 1, events["partition"][~wins & same])
        _count(counts, "superseded", 1, events["partition"][~wins & ~same])
    replaced = before.has_l & (winner >= 0)
    if replaced.any():
        again = _equal(old, new)
        _count(counts, "superseded", 1, old["partition"][replaced & ~again])
        _count(counts, "duplicate", 1, old["partition"][replaced & again])
        _count(counts, "joined", -1, old["partition"][replaced & before.has_p])
    stays = before.has_l & (winner < 0)
    _count(counts, "joined", 1, old["partition"][stays & after.has_p & ~before.has_p])
    result.classes = {key: count for key, count in counts.items() if count}


def _count(
    counts: dict[tuple[int, str], int], cls: str, sign: int, partitions: npt.NDArray[Any]
) -> None:
    """Add the rows of each partition to its class."""
    found, numbers = np.unique(partitions, return_counts=True)
    for partition, number in zip(found.tolist(), numbers.tolist(), strict=True):
        key = (partition, cls)
        counts[key] = counts.get(key, 0) + sign * number
