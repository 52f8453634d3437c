"""The ledger of labels, and their figures, are a function of what came: not of flushes, merges or owners."""

from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joining_world import CLASSES, LABEL, ROW, World

from trimtab.monitor import joiner as joiner_module
from trimtab.monitor.repeats import Repeats
from trimtab.store.engine import open_store
from trimtab.store.entries import REPEAT_RECORD
from trimtab.store.tables import metadata

EVENT = st.tuples(
    st.integers(0, 1),
    ROW.map(lambda row: ("row", row)) | LABEL.map(lambda label: ("label", label)),
)
SCHEDULE = st.fixed_dictionaries(
    {
        "steps": st.lists(
            st.tuples(
                st.integers(0, 1), st.integers(1, 4), st.sampled_from(("", "merge", "take over"))
            ),
            max_size=12,
        ),
        "batch_rows": st.sampled_from((1, 2, 100_000)),
        "checkpoint_runs": st.sampled_from((1, 2, 1_000)),
        "kept_rows": st.sampled_from((1, 3, 10_000)),
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('laws') / 'laws.db'}")
    metadata.create_all(store.engine)
    yield store
    store.close()


def written(store, events, schedule):
    """What ledger and performance hold, as bytes, when `events` have come and been merged so."""
    world = World(store, schedule["batch_rows"])
    queues = [[event for number, event in events if number == mine] for mine in range(2)]

    def flush(number, size):
        some, queues[number] = queues[number][:size], queues[number][size:]
        rows = [event for kind, event in some if kind == "row"]
        world.flush(number, rows, [event for kind, event in some if kind == "label"])

    with patch.multiple(
        joiner_module,
        CHECKPOINT_RUNS=schedule["checkpoint_runs"],
        KEPT_RUN_ROWS=schedule["kept_rows"],
    ):
        for number, size, then in schedule["steps"]:
            flush(number, size)
            if then == "take over":
                world.take_over()
            if then:
                world.drain()
        for number in range(2):
            flush(number, len(queues[number]))
        world.drain()
    figures, entries = world.stored()
    assert [problem for entry in entries for problem in entry.balance()] == []
    books = {
        (entry.partition, cls): count
        for entry in entries
        for cls, count in (*entry.placed_labels.items(), ("waiting", entry.waiting_labels))
        if count
    }
    states = sorted((key, state.to_bytes(), *counts) for key, (state, *counts) in figures.items())
    return books, msgspec.json.encode([sorted(books.items()), states])


def by_definition(events):
    """Return the books: of an id's labels one counts, equal ones are duplicates, others are superseded."""
    predicted = {row[0] for _, (kind, row) in events if kind == "row"}
    labels, books = {}, {}
    for partition, (kind, said) in events:
        if kind == "label":
            row, _, revision, retracted, code = said
            rank = (revision, retracted, CLASSES[code].encode())
            labels.setdefault(row, []).append((rank, partition))
    for row, found in labels.items():
        most = max(rank for rank, _ in found)
        same = sorted(partition for rank, partition in found if rank == most)
        places = [(same[0], "joined" if row in predicted else "waiting")]
        places += [(partition, "duplicate") for partition in same[1:]]
        places += [(partition, "superseded") for rank, partition in found if rank != most]
        for place in places:
            books[place] = books.get(place, 0) + 1
    return books


def label(partition, code, revision=0):
    return partition, ("label", (0, 5, revision, False, code))


def at_once(**more):
    return {"steps": [], "batch_rows": 100_000, "checkpoint_runs": 1_000, "kept_rows": 9} | more


TWICE_THEN_CORRECTED = [label(1, 0), label(1, 0), label(0, 0), label(0, 1, revision=1)]
ONE_BY_ONE = [(1, 1, "merge"), (1, 1, "take over"), (0, 1, "take over"), (0, 1, "merge")]


@example(TWICE_THEN_CORRECTED, at_once(), at_once(steps=ONE_BY_ONE))
@example(TWICE_THEN_CORRECTED, at_once(), at_once(steps=ONE_BY_ONE, checkpoint_runs=1))
@settings(max_examples=60, deadline=None)
@given(st.lists(EVENT, max_size=16), SCHEDULE, SCHEDULE)
def test_flushes_merges_checkpoints_and_takeovers_leave_no_trace(store, events, one, other):
    books, first = written(store, events, one)
    assert books == by_definition(events)
    assert written(store, events, other)[1] == first


PAIRS = st.dictionaries(
    st.tuples(st.integers(0, 9), st.integers(0, 2)), st.integers(1, 3), max_size=6
)


@given(st.lists(st.tuples(PAIRS, st.sets(st.integers(0, 9), max_size=3)), max_size=8))
def test_repeats_are_a_sum_until_they_are_taken(steps):
    repeats, expected = Repeats(), {}
    for pairs, taken in steps:
        records = np.array([(p, n) for (_, p), n in pairs.items()], REPEAT_RECORD)
        repeats.add(np.array([h for h, _ in pairs], np.uint64), records)
        for pair, count in pairs.items():
            expected[pair] = expected.get(pair, 0) + count
        assert told(repeats.take(np.array(sorted(taken), np.uint64))) == sorted(
            (*pair, count) for pair, count in expected.items() if pair[0] in taken
        )
        expected = {pair: count for pair, count in expected.items() if pair[0] not in taken}
    assert told(repeats.get(np.arange(10, dtype=np.uint64))) == sorted(
        (*pair, count) for pair, count in expected.items()
    )


def told(found):
    hashes, records = found
    return [
        (h, p, n)
        for h, p, n in zip(
            hashes.tolist(), records["partition"].tolist(), records["count"].tolist(), strict=True
        )
    ]
