"""Outlying rows, scored from bins alone: usual rows are not, odd ones are, and why is told."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.cuts import (
    build_category_cuts,
    build_numeric_cuts,
    count_numeric,
    model_cuts,
)
from trimtab.stats.outliers import FeatureSurprise, explain, fit, held_columns

ROWS = 20_000
CHANNELS = ("web", "app", "branch")


def reference_columns(seed=1, rows=ROWS):
    rng = np.random.default_rng(seed)
    numbers = {f"n{i}": rng.normal(size=rows) for i in range(6)}
    numbers["skewed"] = rng.lognormal(size=rows)
    numbers["mostly_zero"] = np.where(rng.random(rows) < 0.8, 0.0, rng.exponential(size=rows))
    numbers["sparse"] = np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows))
    categories = {"channel": [CHANNELS[i] for i in rng.choice(3, rows, p=[0.7, 0.295, 0.005])]}
    return numbers, categories


def fitted(rows=ROWS):
    numbers, categories = reference_columns()
    cuts = model_cuts(
        [(name, build_numeric_cuts(values)) for name, values in numbers.items()]
        + [(name, build_category_cuts(values)) for name, values in categories.items()]
    )
    state = observe_pane(
        cuts,
        ROWS,
        numeric={name: Column(values) for name, values in numbers.items()},
        categories=categories,
        statuses={},
        rules={},
    )
    held = {name: values[:rows] for name, values in held_columns(numbers, {}).items()}
    held |= held_columns({}, {name: values[:rows] for name, values in categories.items()})
    return fit(cuts, state.features, held, rows)


@pytest.fixture(scope="module")
def outliers():
    return fitted()


def usual_rows(rows, seed):
    return held_columns(*reference_columns(seed, rows))


def test_a_thousandth_of_usual_rows_are_outliers(outliers):
    fresh = usual_rows(50_000, 2)
    assert 0.0003 < outliers.count(fresh, 50_000) / 50_000 < 0.003


def test_a_row_unusual_in_several_ways_is_one_and_in_one_way_is_none(outliers):
    columns = usual_rows(2_000, 3)
    before = outliers.outliers(columns, 2_000)
    columns["n0"][5] = 2.5  # in the outer hundredth
    assert outliers.outliers(columns, 2_000)[5] == before[5]
    for name in ("n0", "n1", "n2", "n3", "n4", "n5"):
        columns[name][7] = -2.5
    assert outliers.outliers(columns, 2_000)[7]


def test_an_outlier_is_explained_by_its_strongest_features(outliers):
    columns = usual_rows(100, 4)
    columns["n0"][9], columns["n1"][9], columns["n2"][9] = 50.0, -50.0, np.nan
    columns["skewed"][9] = np.inf
    found = explain(outliers, columns, 100)
    assert found[0].row == 9
    assert len(found[0].why) == 3
    told = {why.feature: why.says for why in found[0].why}
    assert told["n2"] == "missing"
    assert told["skewed"] == "positive infinity"
    everything = explain(outliers, columns, 100, most=0)
    assert everything == []


def test_values_beyond_the_reference_and_rare_or_unseen_categories_are_named(outliers):
    columns = usual_rows(4, 5)
    columns |= held_columns({}, {"channel": ["web", "branch", "fax", None]})
    surprise = next(f for f in outliers.features if f.name == "channel")
    places = surprise.bins(columns["channel"])
    assert [surprise.says(p) for p in places][1:] == ["rare value branch", "unseen", "missing"]
    assert surprise.table[places[0]] < 0 < surprise.table[places[1]] < surprise.table[places[2]]
    number = next(f for f in outliers.features if f.name == "n0")
    words = [number.says(p) for p in number.bins(np.array([-99.0, 99.0, -2.9, 2.9]))]
    assert words == ["below all of the reference", "above all of the reference", "low", "high"]


def test_a_value_that_most_rows_hold_is_no_surprise(outliers):
    zeros = next(f for f in outliers.features if f.name == "mostly_zero")
    assert zeros.table[zeros.bins(np.array([0.0, -0.0]))].tolist() == [-1.0, -1.0]
    sparse = next(f for f in outliers.features if f.name == "sparse")
    assert sparse.table[sparse.bins(np.array([np.nan]))][0] == pytest.approx(
        -math.log(0.3), abs=0.05
    )


def test_too_few_held_rows_make_no_outliers():
    few = fitted(rows=900)
    assert few.threshold == math.inf
    columns = usual_rows(10, 6)
    columns["n0"][:] = 1e9
    assert few.count(columns, 10) == 0


def test_columns_that_lack_or_do_not_fit_are_missing_or_refused(outliers):
    columns = usual_rows(50, 7)
    scores = outliers.scores(columns, 50)
    del columns["n0"]
    assert (outliers.scores(columns, 50) > scores).all()
    columns["n1"] = columns["n1"][:49]
    with pytest.raises(ValueError, match="49 values for 50 rows"):
        outliers.scores(columns, 50)
    with pytest.raises(ValueError, match="no share"):
        fit(model_cuts([]), {}, {}, 10, share=0)
    with pytest.raises(TypeError, match="numbers were expected"):
        outliers.features[0].bins(columns["channel"])


def test_no_rows_have_no_scores(outliers):
    assert outliers.scores({}, 0).shape == (0,)
    assert explain(outliers, {}, 0) == []


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=80), st.lists(numbers, max_size=80))
def test_bins_of_rows_are_those_that_are_counted(reference, values):
    cuts = build_numeric_cuts(reference)
    state = observe_pane(
        model_cuts([("x", cuts)]),
        len(reference),
        numeric={"x": Column(np.array(reference))},
        categories={},
        statuses={},
        rules={},
    ).features["x"]
    surprise = FeatureSurprise.of("x", cuts, state)
    places = surprise.bins(np.array(values, dtype=float))
    counts = np.bincount(places, minlength=cuts.size + 2)
    expected = count_numeric(cuts, values)
    assert counts[cuts.size - 4 : cuts.size].tolist() == expected[-4:].tolist()
    assert counts.sum() == len(values)
    inside = places < cuts.size - 4
    again = count_numeric(cuts, np.array(values, dtype=float)[inside])
    assert counts[: cuts.size - 4].tolist() == again[:-4].tolist()
    assert np.isfinite(surprise.table).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_grid_and_the_search_find_the_same_bins(seed):
    rng = np.random.default_rng(seed)
    cuts = build_numeric_cuts(rng.normal(size=3_000))
    values = np.concatenate([rng.normal(size=2_000), cuts.edge_array, [-0.0, 1e300, -1e300]])
    assert cuts.grid is not None
    assert (cuts.grid.bins(values) == cuts.edge_array.searchsorted(values, side="left")).all()
