"""Laws of the aggregates and of binned KS, on inputs built by the operations themselves."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from trimtab.stats.aggregate import (
    Column,
    FeatureState,
    PaneState,
    ResourceState,
    StateError,
    _observe_by_grid,
    describe_feature,
    feature_identity,
    observe_categories,
    observe_numeric,
    observe_pane,
)
from trimtab.stats.coded import Coded, join
from trimtab.stats.cuts import (
    NumericCuts,
    at_precision,
    build_category_cuts,
    build_numeric_cuts,
    category_key,
    count_numeric,
    model_cuts,
)
from trimtab.stats.fixedpoint import (
    exact_sums,
    int_from_bytes,
    int_to_bytes,
    moments,
    quantise,
)
from trimtab.stats.loghistogram import LogHistogram
from trimtab.stats.performance import PerformanceState, merge_all
from trimtab.stats.tests import compare

anything = st.floats(allow_nan=True, allow_infinity=True)
ordinary = st.floats(-1e6, 1e6)
special = st.sampled_from(
    [0.0, -0.0, 5e-324, -5e-324, 1e-310, 1.7e308, -1.7e308, math.inf, -math.inf, 1.0, 2.0, 2.0]
)
values = st.lists(st.one_of(anything, ordinary, special), max_size=60)
numbers = st.lists(
    st.one_of(st.floats(allow_nan=False), special, st.integers(-3, 3).map(float)),
    min_size=1,
    max_size=80,
)
categories = st.lists(
    st.one_of(st.sampled_from(["a", "b", "c"]), st.none(), st.booleans(), st.integers(0, 2)),
    max_size=60,
)


def frozen(column) -> np.ndarray:
    array = np.array(column, dtype=np.float64)
    array.flags.writeable = False  # a function that changes its argument fails
    return array


NUMBER = build_numeric_cuts(np.random.default_rng(7).normal(10.0, 3.0, 4_000))
CATEGORY = build_category_cuts(["a"] * 5 + ["b"] * 3 + ["1", "true"])
SCORE = build_numeric_cuts(np.linspace(0.0, 1.0, 500))
ANSWER = build_category_cuts(["a", "b", "1"])
MODEL = model_cuts(
    [("x", NUMBER), ("channel", CATEGORY)], [("prediction", ANSWER), ("score", SCORE)]
)

rows = st.lists(
    st.tuples(
        st.one_of(anything, ordinary, special),
        st.sampled_from(["a", "b", "zz", None, True, 1, 1.0]),
        st.one_of(st.floats(0, 1), st.sampled_from([0.29, 1.0, 1.5, -0.01, math.nan, math.inf])),
        st.sampled_from(["ok", "error", "timeout"]),
        st.one_of(anything, st.floats(0, 5_000)),
    ),
    max_size=40,
)


def pane(batch) -> PaneState:
    status: dict[str, int] = {}
    for row in batch:
        status[row[3]] = status.get(row[3], 0) + 1
    return observe_pane(
        MODEL,
        len(batch),
        numeric={
            "x": Column(frozen([r[0] for r in batch]), bounds=(0.0, 20.0)),
            "score": Column(frozen([r[2] for r in batch])),
        },
        categories={"channel": [r[1] for r in batch], "prediction": [r[1] for r in batch]},
        statuses=status,
        rules={"slow": sum(1 for r in batch if r[4] > 100)},
        latency_ms=frozen([r[4] for r in batch]),
    )


@given(rows, st.randoms(use_true_random=False), st.integers(1, 6))
def test_any_split_and_any_order_of_rows_gives_the_same_bytes(batch, random, parts):
    expected = pane(batch).to_bytes()
    shuffled = list(batch)
    random.shuffle(shuffled)
    pieces = [pane(shuffled[i::parts]) for i in range(parts)]
    random.shuffle(pieces)
    merged = PaneState.identity(MODEL)
    for piece in pieces:
        merged = merged.merge(piece)
    assert merged.to_bytes() == expected


@given(rows, rows, rows)
def test_merging_panes_is_associative_commutative_and_has_an_identity(a, b, c):
    x, y, z = pane(a), pane(b), pane(c)
    assert x.merge(y).to_bytes() == y.merge(x).to_bytes()
    assert x.merge(y.merge(z)).to_bytes() == x.merge(y).merge(z).to_bytes()
    assert x.merge(PaneState.identity(MODEL)).to_bytes() == x.to_bytes()


@given(rows)
def test_a_pane_read_back_from_its_bytes_is_equal(batch):
    state = pane(batch)
    assert PaneState.from_bytes(state.to_bytes()) == state


@given(rows)
def test_rows_are_counted_by_predicted_class_and_hundredth_of_the_score(batch):
    expected: dict[str, dict[int, int]] = {}
    for _, channel, score, *_ in batch:
        name = category_key(channel)
        if name in ("a", "b", "1") and 0 <= score <= 1:
            of_class = expected.setdefault(name, {})
            place = min(math.floor(score * 100 + 1e-9), 99)
            of_class[place] = of_class.get(place, 0) + 1
    counted = pane(batch).scored
    assert {
        name: {place: count for place, count in enumerate(counts) if count}
        for name, counts in counted.items()
    } == expected
    assert all(len(counts) == 100 for counts in counted.values())


@given(rows)
def test_states_from_before_scores_were_counted_are_still_read_and_written(batch):
    state = pane(batch)
    old = msgspec.msgpack.encode(msgspec.msgpack.decode(state.to_bytes())[:8])
    read = PaneState.from_bytes(old)
    assert read == msgspec.structs.replace(state, scored={})
    assert read.to_bytes() == old


@pytest.mark.parametrize("pairs", [[100, 1], [1], [-1, 2]])
def test_a_pane_with_an_impossible_score_bin_is_refused(pairs):
    parts = msgspec.msgpack.decode(pane([(1.0, "a", 0.5, "ok", 1.0)]).to_bytes())
    with pytest.raises(StateError, match="recount from the archive"):
        PaneState.from_bytes(msgspec.msgpack.encode([*parts[:8], {"a": pairs}]))


@given(values, values)
def test_equal_feature_states_and_only_these_have_equal_counts_and_moments(a, b):
    x, y = (observe_numeric(NUMBER, frozen(column)) for column in (a, b))
    both = observe_numeric(NUMBER, frozen(a + b))
    assert x.merge(y) == both
    assert x.merge(feature_identity(NUMBER)) == x
    assert both.rows == len(a) + len(b)


@given(categories, categories)
def test_categories_count_the_same_together_as_apart(a, b):
    together = observe_categories(CATEGORY, a + b)
    assert observe_categories(CATEGORY, a).merge(observe_categories(CATEGORY, b)) == together
    assert together.rows == len(a) + len(b)


@given(values, values, values)
def test_log_histograms_merge_in_any_order(a, b, c):
    x, y, z = (LogHistogram.observe(frozen(column)) for column in (a, b, c))
    assert x.merge(y.merge(z)) == LogHistogram.observe(frozen(c + a + b))
    assert x.merge(LogHistogram()) == x


@given(st.dictionaries(st.sampled_from(["cpu", "memory", "gpu"]), values), values)
def test_resources_merge_and_survive_their_bytes(gauges, more):
    x, y = ResourceState.observe(gauges), ResourceState.observe({"cpu": more})
    assert x.merge(y).to_bytes() == y.merge(x).to_bytes()
    assert ResourceState.from_bytes(x.merge(y).to_bytes()) == x.merge(y)


@given(st.lists(st.integers(-(2**36), 2**36), max_size=50))
def test_sums_are_those_of_whole_numbers(q):
    assert exact_sums(frozen(q)) == (sum(q), sum(v * v for v in q))


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.sampled_from([-3, 0, 10, 20, 40]),
    st.floats(-1e3, 1e3),
)
def test_moments_are_the_exact_sums(column, exponent, origin):
    q, clamped = quantise(frozen(column), origin, exponent)
    expected = (*exact_sums(q), clamped)
    assert moments(frozen(column), min(column), max(column), origin, exponent) == expected


@given(values, values, st.integers(0, 3), st.booleans())
def test_a_grid_finds_the_bins_that_sorting_finds(reference, column, errors, single):
    kind = np.float32 if single else np.float64
    with np.errstate(over="ignore"):
        cuts = build_numeric_cuts(np.array(reference, dtype=kind))
    edges = [
        *cuts.edges,
        *np.nextafter(cuts.edge_array, np.inf),
        *np.nextafter(cuts.edge_array, -np.inf),
    ]
    every = frozen([*column, *edges, *[math.nan] * errors])
    assume(cuts.grid is not None)
    bounds = (-1.0, 2.0)
    by_grid = _observe_by_grid(cuts, cuts.grid, at_precision(cuts, every), errors, bounds)
    assert by_grid == observe_numeric(cuts, every, errors, bounds)
    assert by_grid.counts == tuple(count_numeric(cuts, every, errors).tolist())


def test_many_values_are_counted_by_the_grid_as_by_sorting():
    rng = np.random.default_rng(7)
    for column in (
        rng.normal(size=5_000),
        rng.poisson(4, 5_000),
        np.exp(rng.normal(size=5_000)),
    ):
        cuts = build_numeric_cuts(column[:2_000])
        assert cuts.grid is not None
        assert observe_numeric(cuts, column).counts == tuple(count_numeric(cuts, column).tolist())


@given(st.integers(1, 2**26), st.integers(1, 3_000))
def test_sums_too_large_for_one_float_are_added_in_blocks(largest, n):
    column = np.linspace(-largest, largest, n).round()
    whole = [int(v) for v in column]
    assert exact_sums(column) == (sum(whole), sum(v * v for v in whole))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([1.0, 2.5, -0.0]),
    st.sampled_from(["a", "b", "1", "x" * 300]), st.lists(st.integers(), max_size=1),
)  # fmt: skip


@given(st.lists(SCALARS, max_size=30), st.integers(0, 30))
def test_a_coded_column_holds_the_key_of_each_value(column, cut):
    coded = Coded.of_keys(column)
    keys = [category_key(value) for value in column]
    assert list(coded) == keys
    assert len(set(coded.keys)) == len(coded.keys)
    assert coded.present() == list(dict.fromkeys(keys))
    assert list(join([Coded.of_keys(column[:cut]), Coded.of_keys(column[cut:])])) == keys
    assert coded.mask(frozenset(("a", None))).tolist() == [key in ("a", None) for key in keys]


@given(st.integers())
def test_integers_of_any_size_survive_their_bytes(value):
    assert int_from_bytes(int_to_bytes(value)) == value


# --- binned KS ----------------------------------------------------------------------------------


def ks_binned(*sides):
    return compare(*sides).ks


def counted(cuts: NumericCuts, column) -> FeatureState:
    return observe_numeric(cuts, frozen(column))


def exact_d(window, reference) -> float:
    places = np.union1d(window, reference)
    F = np.searchsorted(np.sort(window), places, side="right") / len(window)
    G = np.searchsorted(np.sort(reference), places, side="right") / len(reference)
    return float(np.abs(F - G).max())


@given(numbers, numbers, st.integers(2, 16))
def test_the_binned_statistic_brackets_the_exact_one(window, reference, bins):
    cuts = build_numeric_cuts(frozen(reference), bins=bins)
    result = ks_binned(cuts, counted(cuts, window), counted(cuts, reference))
    assert result is not None
    exact = exact_d(window, reference)
    assert result.d_low <= exact + 1e-12
    assert exact <= result.d_high + 1e-12
    assert result.d_low <= result.d <= result.d_high
    assert 0.0 <= result.p_value <= 1.0


@given(
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=200),
    st.lists(st.integers(0, 9).map(float), min_size=1, max_size=200),
)
def test_a_discrete_feature_has_the_exact_statistic(window, reference):
    cuts = build_numeric_cuts(frozen(reference + window))
    result = ks_binned(cuts, counted(cuts, window), counted(cuts, reference))
    assert result is not None
    assert result.d_low == result.d == pytest.approx(exact_d(window, reference), abs=1e-12)
    assert result.d_high == pytest.approx(result.d_low, abs=1e-12)


@given(
    st.lists(st.integers(-20, 20).map(lambda i: i / 3), min_size=2, max_size=60),
    st.lists(st.integers(-20, 20).map(lambda i: i / 3), min_size=2, max_size=60),
)
def test_p_equals_scipys_when_every_value_has_its_bin(window, reference):
    cuts = build_numeric_cuts(frozen(reference + window))
    result = ks_binned(cuts, counted(cuts, window), counted(cuts, reference))
    assert result is not None
    expected = ks_2samp(window, reference, method="asymp")
    assert result.d == pytest.approx(expected.statistic, abs=1e-12)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=100), st.integers(2, 20))
def test_a_monotone_transform_leaves_the_counts_unchanged(column, bins):
    reference = np.round(np.array(column), 3)  # distinct values stay distinct when multiplied
    window = reference[::2]
    cuts, doubled = build_numeric_cuts(reference, bins), build_numeric_cuts(reference * 8, bins)
    assert count_numeric(cuts, window).tolist() == count_numeric(doubled, window * 8).tolist()


@given(numbers, st.integers(2, 64))
def test_every_row_falls_into_exactly_the_bin_whose_edges_hold_it(column, bins):
    cuts = build_numeric_cuts(frozen(column), bins)
    finite = [x for x in column if math.isfinite(x)]
    assume(finite)
    expected = np.bincount(
        np.searchsorted(cuts.edge_array, finite, side="left"), minlength=len(cuts.edges) + 1
    )
    assert count_numeric(cuts, frozen(column))[:-4].tolist() == expected.tolist()


@given(values, numbers, st.integers(2, 64))
def test_figures_of_anything_are_numbers_or_cannot_be_told(window, reference, bins):
    cuts = build_numeric_cuts(frozen(reference), bins)
    state = counted(cuts, window)
    summary = describe_feature(cuts, state)
    comparison = compare(cuts, state, counted(cuts, reference))
    for struct in (summary, comparison):
        for value in msgspec.structs.asdict(struct).values():
            for number in msgspec.structs.astuple(value) if hasattr(value, "p_value") else [value]:
                assert not isinstance(number, float) or math.isfinite(number)
    if comparison.effect is not None:
        assert math.isfinite(comparison.effect.sd_equivalents)


# --- performance --------------------------------------------------------------------------------

joined = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("abc"), st.integers(-1, 99)), max_size=40
)
any_error = st.one_of(ordinary, anything, special)
joined_numbers = st.lists(st.tuples(any_error, any_error), max_size=40)


def of_classes(pairs) -> PerformanceState:
    return PerformanceState.of_classes(
        [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]
    )


def of_numbers(pairs) -> PerformanceState:
    return PerformanceState.of_numbers([p[0] for p in pairs], [p[1] for p in pairs])


@given(joined, joined)
def test_class_deltas_cancel_exactly(a, b):
    x, y = of_classes(a), of_classes(b)
    assert x.merge(y).merge(x.negate()).to_bytes() == y.to_bytes()
    assert x.merge(x.negate()).is_empty
    assert x.merge(y).to_bytes() == of_classes(b + a).to_bytes()
    assert PerformanceState.from_bytes(x.negate().to_bytes()) == x.negate()


@given(st.lists(joined, max_size=5))
def test_merging_many_at_once_is_merging_one_by_one(parts):
    states = [of_classes(part) for part in parts]
    one_by_one = PerformanceState()
    for state in states:
        one_by_one = one_by_one.merge(state)
    merged = merge_all(states)
    assert (merged or PerformanceState()).to_bytes() == one_by_one.to_bytes()
    assert (merged is None) == (not states)


@given(joined)
def test_performance_from_before_scores_were_kept_is_still_read_and_written(pairs):
    state = of_classes(pairs)
    old = msgspec.msgpack.encode(msgspec.msgpack.decode(state.to_bytes())[:7])
    read = PerformanceState.from_bytes(old)
    assert read == msgspec.structs.replace(state, scored={})
    assert read.to_bytes() == old


@given(joined_numbers, joined_numbers)
def test_regression_deltas_cancel_exactly(a, b):
    x, y = of_numbers(a), of_numbers(b)
    assert x.merge(y).merge(x.negate()).to_bytes() == y.to_bytes()
    assert x.merge(x.negate()).is_empty
    assert x.merge(y).to_bytes() == of_numbers(b + a).to_bytes()
    assert PerformanceState.from_bytes(x.negate().to_bytes()) == x.negate()
