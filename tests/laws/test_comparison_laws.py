"""Comparing all features of a window at once gives what each gives alone, and SciPy's p values."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstwo

from trimtab.stats.aggregate import observe_categories, observe_numeric, quantile, quantiles
from trimtab.stats.cuts import build_category_cuts, build_numeric_cuts
from trimtab.stats.kolmogorov import kolmogorov_sf
from trimtab.stats.tests import Pair, compare, compare_all

few_numbers = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.just(float("inf"))),
    max_size=40,
)
few_words = st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=40)


@st.composite
def pairs(draw) -> Pair:
    """A feature of either kind; sides may be empty, and most of a side in one bin."""
    times = draw(st.integers(1, 30))
    if draw(st.booleans()):
        reference, window = draw(few_numbers) * times, draw(few_numbers)
        cuts = build_numeric_cuts(reference, draw(st.integers(2, 64)))
        return Pair(cuts, observe_numeric(cuts, window), observe_numeric(cuts, reference))
    reference, window = draw(few_words) * times, draw(few_words)
    words = build_category_cuts(reference, most=draw(st.integers(1, 3)))
    return Pair(words, observe_categories(words, window), observe_categories(words, reference))


@given(st.lists(pairs(), max_size=6))
def test_figures_of_a_feature_do_not_depend_on_the_features_beside_it(several):
    together = compare_all(several)
    assert together == [compare(p.cuts, p.window, p.reference) for p in several]
    assert compare_all(several[::-1]) == together[::-1]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(0, 600), st.integers(601, 4_000)),
            st.one_of(st.floats(0.0, 1.0), st.floats(0.0, 3.0).map(lambda z: -z)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_p_values_are_scipys(asked):
    n = np.array([float(rows) for rows, _ in asked])
    # A negative number stands for a distance in units of 1 / sqrt(n), where most distances are.
    d = np.array([x if x >= 0 else min(1.0, -x / max(1.0, rows) ** 0.5) for rows, x in asked])
    expected = [kstwo.sf(x, rows) if rows else 1.0 for x, rows in zip(d, n, strict=True)]
    assert kolmogorov_sf(d, n).tolist() == pytest.approx(expected, rel=1e-10, abs=1e-100)


@given(few_numbers, st.lists(st.floats(0.0, 1.0), max_size=5))
def test_quantiles_lie_between_the_extremes_and_rise_with_their_level(column, levels):
    cuts = build_numeric_cuts(column, 8)
    state = observe_numeric(cuts, column)
    found = quantiles(cuts, state, sorted(levels))
    assert found == [quantile(cuts, state, level) for level in sorted(levels)]
    if state.minimum is None or state.maximum is None:
        assert found == [None] * len(levels)
    else:
        numbers = [value for value in found if value is not None]
        assert len(numbers) == len(levels)
        assert all(state.minimum <= value <= state.maximum for value in numbers)
        assert all(a <= b + 1e-9 * abs(b) for a, b in pairwise(numbers))
