"""Event time as values: panes, lateness, watermarks."""

import numpy as np
import pytest

from trimtab.windows.lateness import NEVER_MS, TimeRules, classify, sealed_to
from trimtab.windows.panes import end_of, pane_starts, split_by, start_of
from trimtab.windows.watermark import Progress, model_watermark

RULES = TimeRules(
    pane_ms=1_000, lateness_ms=5_000, out_of_order_ms=500, future_ms=60_000, idle_ms=10_000
)
NOW = 1_000_000


def at(*times):
    return np.array(times, dtype=np.int64)


def progress(pid=1, *, newest=10_000, seen=NOW, caught_up=NOW, lagging=False, owner=NOW, moved=NOW):
    return Progress(
        partition_id=pid,
        newest_ms=newest,
        last_row_seen_ms=seen,
        caught_up_ms=caught_up,
        lagging=lagging,
        owner_seen_ms=owner,
        advanced_ms=moved,
    )


def test_a_pane_holds_its_start_and_not_its_end():
    assert pane_starts(at(0, 999, 1_000), 1_000).tolist() == [0, 0, 1_000]
    assert (start_of(1_999, 1_000), end_of(1_999, 1_000)) == (1_000, 2_000)


def test_times_before_1970_fall_into_the_pane_that_starts_before_them():
    assert pane_starts(at(-1, -1_000, -1_001), 1_000).tolist() == [-1_000, -1_000, -2_000]


def test_a_pane_without_length_is_refused():
    with pytest.raises(ValueError, match="holds no time"):
        pane_starts(at(1), 0)


def test_split_by_gives_each_key_its_rows_in_order():
    split = {key: index.tolist() for key, index in split_by(at(5, 3, 5, 3, 9))}
    assert split == {3: [1, 3], 5: [0, 2], 9: [4]}
    assert list(split_by(at())) == []


def test_a_row_is_too_late_when_its_pane_ended_before_the_seal_of_the_rows_before_it():
    # 10,500 seals up to 10,500 - 500 - 5,000 = 5,000: the pane [4,000, 5,000) is closed, the next is not.
    classified = classify(RULES, NEVER_MS, at(4_999, 10_500, 4_999, 5_000), at(0, 0, 0, 0) + 10_500)
    assert classified.too_late.tolist() == [False, False, True, False]
    assert classified.newest_ms == 10_500


def test_a_row_of_the_future_is_rejected_and_moves_no_watermark():
    classified = classify(RULES, 1_000, at(100_001, 1_200), at(40_000, 40_000))
    assert classified.future.tolist() == [True, False]
    assert classified.newest_ms == 1_200


def test_the_kafka_timestamp_decides_over_the_future_and_no_clock_does():
    last_ok = classify(RULES, NEVER_MS, at(160_000), at(100_000))
    one_more = classify(RULES, NEVER_MS, at(160_001), at(100_000))
    assert (last_ok.future.item(), one_more.future.item()) == (False, True)


def test_the_seal_never_goes_back():
    assert sealed_to(RULES, 20_000) == 14_500
    assert sealed_to(RULES, 20_000, before_ms=18_000) == 18_000


def test_a_model_without_rows_has_no_watermark():
    assert model_watermark([progress(newest=None)], RULES, NOW).reason == "no_data"


def test_the_slowest_active_partition_gives_the_watermark():
    found = model_watermark([progress(1, newest=50_000), progress(2, newest=20_000)], RULES, NOW)
    assert (found.ms, found.reason) == (19_500, "open")


def test_an_idle_partition_that_was_read_to_its_end_holds_nothing():
    idle = progress(2, newest=20_000, seen=NOW - 10_000)
    found = model_watermark([progress(1, newest=50_000), idle], RULES, NOW)
    assert (found.ms, found.reason) == (49_500, "open")


def test_a_lagging_partition_holds_the_watermark_however_long_it_was_silent():
    lagging = progress(2, newest=20_000, seen=0, lagging=True)
    assert model_watermark([progress(1, newest=50_000), lagging], RULES, NOW).ms == 19_500


def test_a_partition_without_an_owner_holds_the_watermark_even_if_it_was_caught_up():
    orphan = progress(2, newest=20_000, seen=0, owner=NOW - 20_000)
    assert model_watermark([progress(1, newest=50_000), orphan], RULES, NOW).ms == 19_500


def test_past_a_limit_an_orphan_is_named_as_stalled_with_what_would_be_complete():
    orphan = progress(2, newest=20_000, seen=0, owner=NOW - 200_000)
    found = model_watermark([progress(1, newest=50_000), orphan], RULES, NOW)
    assert (found.reason, found.ms, found.beyond_ms, found.held_by) == (
        "stalled",
        19_500,
        49_500,
        (2,),
    )


def test_an_owner_that_reads_nothing_of_a_lagging_partition_is_stalled_too():
    stuck = progress(2, newest=20_000, lagging=True, moved=NOW - 200_000)
    assert model_watermark([progress(1), stuck], RULES, NOW).held_by == (2,)


def test_when_all_are_idle_the_last_pane_with_rows_is_complete():
    found = model_watermark([progress(newest=20_300, seen=NOW - 10_000)], RULES, NOW)
    assert (found.ms, found.reason) == (21_000, "idle")


def test_a_partition_not_read_yet_may_bring_anything():
    unread = progress(2, newest=None, caught_up=None, lagging=True)
    found = model_watermark([progress(1), unread], RULES, NOW)
    assert (found.ms, found.reason) == (None, "catching_up")


def test_a_partition_read_to_its_end_without_the_models_rows_holds_nothing():
    other = progress(2, newest=None, seen=0)
    assert model_watermark([progress(1, newest=20_000), other], RULES, NOW).ms == 19_500
