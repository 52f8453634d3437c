"""Counts of a feature in two times become few bars that lose no row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.stats.aggregate import IncompatibleCuts, observe_categories, observe_numeric
from trimtab.stats.bars import bars
from trimtab.stats.cuts import CategoryCuts, build_category_cuts, build_numeric_cuts

REFERENCE = np.random.default_rng(1).exponential(size=5_000)
CUTS = build_numeric_cuts(REFERENCE)


def numbers(values, cuts=CUTS):
    return observe_numeric(cuts, np.array(values, dtype=np.float64))


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
    st.lists(st.floats(-1, 8), max_size=60),
    st.integers(2, 30),
)
def test_bars_of_a_number_hold_every_row_of_both_sides(now, was, most) -> None:
    window, baseline = numbers(now), numbers(was)
    found = bars(CUTS, window, baseline, most)
    assert (sum(b.window for b in found), sum(b.baseline for b in found)) == (len(now), len(was))
    assert len(found) <= most + 4
    assert len({bar.label for bar in found}) == len(found)


def test_an_unchanged_number_has_bars_of_about_one_height() -> None:
    found = bars(CUTS, numbers(REFERENCE[:2_500]), numbers(REFERENCE))
    shares = [bar.baseline / 5_000 for bar in found]
    assert len(found) == 16
    assert 0.03 < min(shares) <= max(shares) < 0.1


def test_a_bar_says_which_values_it_holds() -> None:
    cuts = build_numeric_cuts(np.array([0.0, 1.0, 2.5] * 50))
    found = bars(cuts, numbers([0, 1, 1, 7, np.nan, np.inf], cuts), numbers([0, 2.5], cuts))
    assert [(b.label, b.window, b.baseline) for b in found] == [
        ("0", 1, 1),
        ("1", 2, 0),
        ("2.5", 0, 1),
        ("above 2.5", 1, 0),
        ("missing", 1, 0),
        ("positive infinity", 1, 0),
    ]


def test_without_a_baseline_the_window_has_bars_of_its_own() -> None:
    found = bars(CUTS, numbers(REFERENCE[:500]), None)
    assert len(found) > 10
    assert all(bar.baseline == 0 for bar in found)
    assert bars(CUTS, numbers([]), None) == []


def test_the_rarest_of_many_categories_share_a_bar() -> None:
    names = [f"c{n:02}" for n in range(30)]
    values = [name for n, name in enumerate(names) for _ in range(60 - n)]
    cuts = build_category_cuts(values)
    was = observe_categories(cuts, values)
    found = bars(cuts, observe_categories(cuts, ["c29", "c00", "new", None]), was, 5)
    assert [b.label for b in found] == [
        "c00", "c01", "c02", "c03", "26 more categories", "missing", "unseen",
    ]  # fmt: skip
    assert found[4].window == 1
    assert sum(b.baseline for b in found) == len(values)


def test_counts_under_other_cuts_are_refused() -> None:
    with pytest.raises(IncompatibleCuts):
        bars(CategoryCuts(("a",)), numbers([1.0]), None)
    with pytest.raises(ValueError, match="2 or more"):
        bars(CUTS, None, None, 1)
