"""A row's class does not depend on how its partition was cut into batches."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from trimtab.windows.ids import HashSet, id_hashes, row_hashes, whole_hashes
from trimtab.windows.lateness import NEVER_MS, TimeRules, classify, sealed_to

RULES = TimeRules(
    pane_ms=1_000, lateness_ms=3_000, out_of_order_ms=500, future_ms=2_000, idle_ms=1_000
)
ROWS = st.lists(st.tuples(st.integers(-20_000, 20_000), st.integers(-20_000, 20_000)), max_size=60)


def classes(rows, cuts):
    newest, found = NEVER_MS, []
    for part in np.split(np.array(rows, dtype=np.int64).reshape(-1, 2), cuts):
        one = classify(RULES, newest, part[:, 0], part[:, 1])
        newest = one.newest_ms
        found += list(zip(one.future.tolist(), one.too_late.tolist(), strict=True))
    return newest, found


@given(ROWS, st.lists(st.integers(0, 60), max_size=5))
def test_batches_do_not_change_a_rows_class(rows, cuts):
    cuts = sorted(min(cut, len(rows)) for cut in cuts)
    assert classes(rows, cuts) == classes(rows, [])


@given(ROWS)
def test_a_counted_row_lies_in_a_pane_that_was_open(rows):
    newest = NEVER_MS
    for time, record in rows:
        one = classify(RULES, newest, np.array([time]), np.array([record]))
        open_ = time // 1_000 * 1_000 + 1_000 > sealed_to(RULES, newest)
        assert one.too_late.item() == (not open_ and time <= record + 2_000)
        newest = one.newest_ms


@given(st.lists(st.lists(st.text(max_size=3), max_size=20), max_size=8))
def test_a_hash_set_knows_exactly_what_it_was_given(batches):
    known, expected = HashSet(), set()
    for batch in batches:
        hashes = id_hashes(batch)
        first = known.add_new(hashes)
        fresh = []
        for text in batch:
            fresh.append(text not in expected)
            expected.add(text)
        assert all(fresh) if first is None else first.tolist() == fresh
    assert len(known) == len(expected)


@given(st.text(min_size=1, max_size=5), st.integers(0, 9_999))
@example("x#3", 1)
def test_a_label_that_names_a_row_of_a_batch_meets_its_hash(batch, row):
    of_row = row_hashes(whole_hashes([batch]), np.array([row]))
    assert id_hashes([f"{batch}#{row}"]) == of_row


@given(st.text(max_size=3), st.sampled_from(["#", "#07", "#-1", "#1.0", "#12345", "#²", "# 1"]))
def test_only_the_one_spelling_of_a_row_is_taken_for_it(batch, tail):
    alone = id_hashes([batch + tail])
    for row in (0, 1, 2, 7):
        assert alone != row_hashes(id_hashes([batch]), np.array([row]))


def test_rows_of_batches_have_hashes_of_their_own():
    batches = id_hashes(f"b{i}" for i in range(50))
    every = np.concatenate([row_hashes(h, np.arange(2_000)) for h in batches] + [batches])
    assert np.unique(every).size == every.size
