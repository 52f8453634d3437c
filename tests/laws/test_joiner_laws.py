"""Labels in any order, twice, corrected, withdrawn: the joiner ends at the same figures."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trimtab.monitor.compaction import compact
from trimtab.monitor.current import Current, distinct
from trimtab.monitor.joining import Joining
from trimtab.stats.performance import PerformanceState
from trimtab.store.entries import KeptRun, decode_kept, encode_kept
from trimtab.store.label_runs import Group, LabelRun, PredictionRun, StoredRun
from trimtab.windows.ids import id_hashes

GROUPS = (Group("1", "", 0, ("c=a",)), Group("2", "challenger", 3, ("c=b",)))
CLASSES = ("no", "yes", "maybe")

PREDICTIONS = st.tuples(
    st.just("p"), st.integers(0, 6), st.integers(0, 2), st.integers(0, 1), st.integers(-1, 2)
)
LABELS = st.tuples(
    st.just("l"), st.integers(0, 6), st.integers(0, 2), st.booleans(), st.integers(0, 2)
)
EVENTS = st.lists(st.tuples(st.integers(1, 3), PREDICTIONS | LABELS), max_size=25)


def bin_of(event):
    """The score bin of a prediction: any function of what else it says, -1 now and then."""
    _, row, second, third, code = event
    return (row * 37 + second * 23 + third * 11 + code * 7) % 101 - 1


def run_of(seq, partition, event):
    kind, row, second, third, code = event
    hashes = id_hashes([f"id{row}"])
    codes = np.array([code], np.int32)
    if kind == "p":
        pane = np.array([second * 1_000])
        group, place = np.array([third], np.int32), bin_of(event)
        bins = None if place < 0 else np.array([place], np.int8)
        run = PredictionRun(hashes, pane, group, codes, GROUPS, CLASSES, bins)
    else:
        time = np.array([(row * 7 + second * 3 + code) % 5 * 1_000])
        run = LabelRun(*(hashes, time, np.array([second]), np.array([third])), codes, CLASSES)
    return StoredRun(partition, seq, run)


def total(batches):
    index, states, classes = Joining(), {}, {}
    for batch in batches:
        merge = index.merge(batch)
        for key, delta in merge.deltas.items():
            state, labelled, predicted = states.get(key, (PerformanceState(), 0, 0))
            states[key] = (
                state.merge(delta.state),
                labelled + delta.labelled_rows,
                predicted + delta.predicted_rows,
            )
        for key, count in merge.classes.items():
            classes[key] = classes.get(key, 0) + count
    empty = (PerformanceState(), 0, 0)
    return {k: v for k, v in states.items() if v != empty}, classes


def recount(events):
    """The same by the definition, one id at a time."""
    predictions, labels = {}, {}
    for partition, (kind, row, second, third, code) in events:
        if kind == "p":
            place = bin_of((kind, row, second, third, code))
            predictions.setdefault(row, []).append((second * 1_000, partition, third, code, place))
        else:
            labels.setdefault(row, []).append((second, third, CLASSES[code].encode()))
    states = {}
    for row, found in predictions.items():
        pane, _, group, code, place = min(found, key=lambda p: p[:2])
        if code < 0:
            continue
        best = max(labels.get(row, []), default=None)
        for segment in ("", *GROUPS[group].segments):
            g = GROUPS[group]
            key = (pane, g.version, g.arm, g.traffic_revision, segment)
            confusion, labelled, predicted, scored = states.setdefault(key, [{}, 0, 0, {}])
            states[key][2] = predicted + 1
            if best is not None and not best[1]:
                pair = (best[2].decode(), CLASSES[code])
                confusion[pair] = confusion.get(pair, 0) + 1
                states[key][1] = labelled + 1
                if place >= 0:
                    scored[*pair, place] = scored.get((*pair, place), 0) + 1
    return states


def recounted_classes(events):
    """What becomes of each label by the definition, by (partition, class)."""
    predicted = {row for _, (kind, row, *_) in events if kind == "p"}
    labels, counts = {}, {}
    for partition, (kind, row, *said) in events:
        if kind == "l":
            labels.setdefault(row, []).append((tuple(said), partition))
    for row, found in labels.items():
        most = max((revision, gone, CLASSES[code].encode()) for (revision, gone, code), _ in found)
        same = sorted(p for (r, g, c), p in found if (r, g, CLASSES[c].encode()) == most)
        becomes = [(same[0], "joined")] if row in predicted else []
        becomes += [(p, "duplicate") for p in same[1:]]
        becomes += [
            (p, "superseded") for (r, g, c), p in found if (r, g, CLASSES[c].encode()) != most
        ]
        for place in becomes:
            counts[place] = counts.get(place, 0) + 1
    return counts


def unique_first_predictions(events):
    """One prediction per (id, partition, pane): the flush has removed the others as duplicates."""
    seen, kept = set(), []
    for partition, event in events:
        place = (partition, event[1], event[2])
        if event[0] == "p" and place in seen:
            continue
        seen |= {place} if event[0] == "p" else set()
        kept.append((partition, event))
    return kept


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 25), max_size=4), st.randoms(use_true_random=False))
def test_any_order_and_any_batches_end_at_the_recount(events, cuts, random):
    events = unique_first_predictions(events)
    runs = [run_of(seq, partition, event) for seq, (partition, event) in enumerate(events)]
    random.shuffle(runs)
    bounds = sorted({min(cut, len(runs)) for cut in cuts} | {0, len(runs)})
    batches = [runs[a:b] for a, b in pairwise(bounds)]
    states, classes = total(batches)
    found = {
        (k.pane_start_ms, k.version, k.arm, k.traffic_revision, k.segment): [
            dict(v[0].confusion),
            v[1],
            v[2],
            dict(v[0].scored),
        ]
        for k, v in states.items()
    }
    assert found == recount(events)
    assert {place: count for place, count in classes.items() if count} == recounted_classes(events)


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.integers(0, 25))
def test_an_index_rebuilt_from_the_runs_goes_on_as_the_old_one_would(events, cut):
    events = unique_first_predictions(events)
    runs = [run_of(seq, partition, event) for seq, (partition, event) in enumerate(events)]
    before, after = runs[:cut], runs[cut:]
    old = Joining()
    for one in before:
        old.merge([one])
    rebuilt = Joining()
    rebuilt.merge(sorted(before, key=lambda r: (r.partition_id, r.seq)))
    expected, found = old.merge(after), rebuilt.merge(after)
    assert found.deltas == expected.deltas
    assert found.classes == expected.classes
    assert entries(whole(rebuilt)) == entries(whole(old))


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers()), max_size=20), max_size=8))
def test_the_newest_record_of_a_hash_counts_and_old_ones_can_be_forgotten(batches):
    index, expected = Current(np.dtype([("v", "<i8")])), {}
    for number, batch in enumerate(batches):
        rows = {key: value % 1_000 for key, value in batch}
        keys = np.array(sorted(rows), np.uint64)
        records = np.zeros(keys.size, [("v", "<i8")])
        records["v"] = [rows[int(key)] for key in keys]
        index.put(keys, records, index.get(keys)[0])
        expected |= rows
        if number % 3 == 2:
            low, _ = index.before("v", 300)
            assert low.tolist() == sorted(key for key, value in expected.items() if value < 300)
            index.remove(low)
            expected = {key: value for key, value in expected.items() if value >= 300}
        assert len(index) == len(expected)
    found, records = index.get(np.arange(31, dtype=np.uint64))
    assert {int(k): int(records["v"][k]) for k in np.flatnonzero(found)} == expected
    hashes, records = index.before("v", 10**6)
    assert dict(zip(hashes.tolist(), records["v"].tolist(), strict=True)) == dict(
        sorted(expected.items())
    )


def whole(index):
    """Everything in an index as one kept run."""
    return KeptRun(
        *index._predictions.before("pane", 2**62),
        *index._labels.before("time", 2**62),
        *index._repeats.get(distinct(index._labels.before("time", 2**62)[0])),
        tuple(index._groups),
        tuple(index._classes),
    )


def entries(kept):
    """The entries of a kept run by id, with names in place of codes."""
    classes, groups = (*kept.classes, None), kept.groups
    found = {}
    for h, p in zip(kept.prediction_hashes.tolist(), kept.predictions, strict=True):
        value = (int(p["pane"]), int(p["partition"]), groups[p["group"]], classes[p["code"]])
        value = (*value, int(p["bin"]))
        found.setdefault(h, {})["p"] = value
    for h, one in zip(kept.label_hashes.tolist(), kept.labels, strict=True):
        value = (int(one["time"]), int(one["revision"]), int(one["partition"]))
        found.setdefault(h, {})["l"] = (*value, bool(one["retracted"]), classes[one["code"]])
    for h, one in zip(kept.repeat_hashes.tolist(), kept.repeats, strict=True):
        found[h].setdefault("r", []).append((int(one["partition"]), int(one["count"])))
    return found


THREE_TIMES = [(partition, ("l", 0, 0, False, 0)) for partition in (2, 1, 2)]


@example(THREE_TIMES, [1, 2], 0)
@settings(max_examples=150, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 25), max_size=3), st.integers(0, 3))
def test_kept_runs_loaded_in_order_or_compacted_are_the_index_that_wrote_them(
    events, cuts, before_s
):
    events = unique_first_predictions(events)
    runs = [run_of(seq, partition, event) for seq, (partition, event) in enumerate(events)]
    bounds = sorted({min(cut, len(runs)) for cut in cuts} | {0, len(runs)})
    live, kept = Joining(), []
    for a, b in pairwise(bounds):
        live.merge(runs[a:b])
        kept.append(live.keep(10_000))
        live.expire(before_s * 1_000)
    loaded, together = Joining(), Joining().keep(0)
    for number, one in enumerate(kept):
        loaded.load(one)
        together = compact(together, one, before_s * 1_000 if number == 0 else None)
    loaded.expire(before_s * 1_000)
    assert entries(whole(loaded)) == entries(whole(live))
    again = Joining()
    again.load(together)
    again.expire(before_s * 1_000)
    assert entries(whole(again)) == entries(whole(live))
    assert decode_kept(encode_kept(together)).until_ms == together.until_ms
    assert entries(decode_kept(encode_kept(together))) == entries(together)


def test_a_label_from_the_future_expires_by_the_time_at_which_it_was_kept():
    hashes = id_hashes(["a", "b"])
    times = np.array([3_000, 9_000_000])
    run = LabelRun(
        hashes,
        times,
        np.zeros(2, np.int64),
        np.zeros(2, np.bool_),
        np.zeros(2, np.int32),
        CLASSES,
    )
    index = Joining()
    index.merge([StoredRun(1, 1, run)])
    assert index.keep(5_000).until_ms == 5_000
    assert index.expire(5_000) == {(1, "expired"): 1}
    assert index.expire(5_001) == {(1, "expired"): 1}
    assert len(index) == 0


@pytest.mark.parametrize("predicted", [False, True])
def test_an_entry_that_expires_takes_its_repeats_along(predicted):
    truth, correction = ("l", 0, 0, False, 0), ("l", 0, 1, False, 0)
    index = Joining()
    first = [run_of(1, 1, ("p", 0, 0, 0, 0))] if predicted else []
    index.merge([*first, run_of(2, 1, truth), run_of(3, 1, truth)])
    index.expire(60_000)
    assert index.merge([run_of(4, 1, truth)]).classes == {}
    # What the entry before had repeated is not the correction's to supersede.
    assert index.merge([run_of(5, 1, correction)]).classes == {(1, "superseded"): 1}
