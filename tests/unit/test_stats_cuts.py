"""Cuts: how edges and categories are chosen, how columns are counted, and what identifies them."""

import hashlib
import math

import numpy as np
import pytest

from trimtab.stats.aggregate import mean_sd, observe_numeric
from trimtab.stats.coded import count_categories
from trimtab.stats.cuts import (
    CATEGORY_SPECIAL,
    NUMERIC_SPECIAL,
    CategoryCuts,
    CutsError,
    ModelCuts,
    NumericCuts,
    build_category_cuts,
    build_numeric_cuts,
    category_key,
    count_numeric,
    model_cuts,
    numeric_column,
    special_index,
)


def test_a_continuous_reference_gets_about_equal_bins():
    reference = np.random.default_rng(1).normal(size=50_000)
    cuts = build_numeric_cuts(reference)
    counts = count_numeric(cuts, reference)[:-4]
    assert len(cuts.edges) == 63
    assert counts.sum() == 50_000
    assert counts.max() <= 50_000 / 64 + 1


@pytest.mark.parametrize(
    ("reference", "bins"),
    [
        (np.full(100, 3.0), 3),  # below, the value, above
        (np.random.default_rng(2).integers(0, 10, 50_000), 21),  # ten atoms and eleven gaps
    ],
)
def test_few_distinct_values_are_atoms(reference, bins):
    cuts = build_numeric_cuts(reference)
    assert cuts.size - 4 == bins
    counts = count_numeric(cuts, reference)[:-4]
    assert counts[~cuts.atoms].sum() == 0
    assert counts[cuts.atoms].tolist() == np.unique(reference, return_counts=True)[1].tolist()


def test_a_default_fill_value_has_a_bin_of_its_own():
    random = np.random.default_rng(3)
    reference = np.where(random.random(20_000) < 0.6, 0.0, random.normal(size=20_000))
    cuts = build_numeric_cuts(reference)
    assert count_numeric(cuts, [0.0, -0.0, 5e-324, -5e-324])[:-4][cuts.atoms].sum() == 2


def test_a_small_reference_does_not_make_every_value_an_atom():
    cuts = build_numeric_cuts(np.random.default_rng(4).normal(size=100))
    assert not cuts.atoms.any()


def test_numbers_that_are_none_have_bins_of_their_own():
    cuts = build_numeric_cuts([1.0, 2.0, 3.0])
    column = [math.nan, math.nan, math.nan, -math.inf, math.inf, math.inf, 2.0]
    counts = count_numeric(cuts, column, type_errors=2)
    special = {name: counts[special_index(cuts, name)] for name in NUMERIC_SPECIAL}
    assert special == {
        "missing": 1,
        "type_error": 2,
        "negative_infinity": 1,
        "positive_infinity": 2,
    }
    assert counts.sum() == len(column)


def test_more_type_errors_than_rows_without_a_number_are_refused():
    with pytest.raises(ValueError, match="type errors"):
        count_numeric(build_numeric_cuts([1.0]), [1.0, math.nan], type_errors=2)


def test_an_empty_column_and_an_empty_reference_are_safe():
    assert count_numeric(build_numeric_cuts([1.0, 2.0]), []).sum() == 0
    cuts = build_numeric_cuts([])
    assert count_numeric(cuts, [1.0, math.nan]).tolist() == [1, 1, 0, 0, 0]
    assert build_numeric_cuts([math.nan, math.inf]).edges == ()


def test_the_largest_floats_and_denormals_are_counted():
    extreme = [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -5e-324, 0.0]
    cuts = build_numeric_cuts(extreme)
    counts = count_numeric(cuts, extreme)[:-4]
    # Nothing is beyond the largest float, so the last bin stays empty.
    assert counts[cuts.atoms].tolist() == [1, 1, 1, 1, 1, 0]


def test_a_float32_reference_meets_decimals_from_json_in_the_same_atom():
    cuts = build_numeric_cuts(np.array([0.1, 0.2], dtype=np.float32))
    assert count_numeric(cuts, [0.1, 0.2])[:-4][cuts.atoms].tolist() == [1, 1]


def test_arguments_stay_as_they_were():
    column = np.array([3.0, math.nan, 1.0, -0.0])
    column.flags.writeable = False
    cuts = build_numeric_cuts(column)
    count_numeric(cuts, column)
    assert column[0] == 3.0
    with pytest.raises(ValueError, match="read-only"):
        cuts.edge_array[0] = 5.0


def test_the_most_frequent_categories_get_a_bin_and_the_next_are_other():
    cuts = build_category_cuts(["a"] * 3 + ["b"] * 2 + ["c", "d"], most=2)
    assert cuts == CategoryCuts(("a", "b"), ("c", "d"))
    counts = count_categories(cuts, ["a", "c", "zz", None, [1], {"k": 1}, "d"])
    assert counts.tolist() == [1, 0, 1, 2, 1, 2]
    assert CATEGORY_SPECIAL == ("missing", "type_error", "unseen", "other")


def test_declared_categories_keep_their_order_and_the_rest_is_unseen():
    cuts = build_category_cuts(["app", "fax", "app"], declared=["web", "app", "branch"])
    assert cuts.categories == ("web", "app", "branch")
    assert count_categories(cuts, ["fax"])[special_index(cuts, "unseen")] == 1


@pytest.mark.parametrize("column", [[True, 1, 1.0, "1"], ["1", 1.0, 1, True]])
def test_one_and_true_are_different_categories_in_any_order(column):
    assert count_categories(CategoryCuts(("1", "true")), column).tolist() == [3, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("x", "x"),
        (True, "true"),
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (None, None),
        (math.nan, None),
        ([], False),
        ("y" * 300, False),
        (10**30, False),
    ],
)
def test_values_name_categories(value, key):
    assert category_key(value) == key


def test_a_numeric_column_tells_missing_from_wrong():
    column, errors = numeric_column([1, 2.5, None, "3", True, [4], 10**400])
    assert column[:2].tolist() == [1.0, 2.5]
    assert np.isnan(column[2:]).all()
    assert errors == 4
    plain, none = numeric_column([1, None, 2.0])
    assert (np.isnan(plain).tolist(), none) == ([False, True, False], 0)
    assert numeric_column([10**400, 1.0])[1] == 1
    assert numeric_column([])[0].shape == (0,)


def test_cuts_survive_json_and_keep_their_identity():
    cuts = model_cuts(
        [("x", build_numeric_cuts([0.1, 1e20, -5e-324])), ("c", CategoryCuts(("a",), ("b",)))],
        [("score", build_numeric_cuts([0.5]))],
    )
    again = ModelCuts.from_json(cuts.to_json())
    assert again == cuts
    assert again.cuts_id == cuts.cuts_id
    assert again.to_json() == cuts.to_json()
    assert list(again.feature) == ["x", "c"]


def test_the_identity_is_the_content():
    a, b = build_numeric_cuts([1.0, 2.0]), build_numeric_cuts([2.0, 1.0, 1.0, 2.0])
    assert a.cuts_id == b.cuts_id
    assert model_cuts([("x", a)]).cuts_id != model_cuts([("y", a)]).cuts_id
    text = (
        '{"features":[{"cuts":{"edges":[0.9999999999999999,1.0,1.9999999999999998,2.0],"exponent":17,'
        '"kind":"number","origin":1.0,"single":false},"name":"x"}],"outputs":[]}'
    )
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]
    assert model_cuts([("x", a)]).cuts_id == expected


@pytest.mark.parametrize("edges", [(1.0, 1.0), (2.0, 1.0), (math.inf,), (math.nan,)])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(CutsError, match="increasing"):
        NumericCuts(edges)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[",
        '{"version":2,"features":[]}',
        '{"version":1,"features":[{"name":"x","cuts":{"kind":"number","edges":[2,1]}}]}',
    ],
)
def test_what_is_no_cuts_is_refused_with_a_reason(text):
    with pytest.raises(CutsError):
        ModelCuts.from_json(text)


def test_a_bin_of_another_kind_of_feature_is_refused_by_name():
    with pytest.raises(CutsError, match="unseen"):
        special_index(build_numeric_cuts([1.0]), "unseen")


@pytest.mark.parametrize("share", [0.002, 0.01, 0.2])
def test_values_far_out_in_the_reference_do_not_blur_the_others(share):
    rng = np.random.default_rng(1)
    reference = rng.integers(0, 10, 2_000).astype(float)
    reference[: int(share * 2_000)] = 1e12
    cuts = build_numeric_cuts(reference)
    window = observe_numeric(cuts, np.arange(10.0))
    mean, sd = mean_sd(cuts, window)
    assert mean == pytest.approx(4.5, abs=1e-4)
    assert sd == pytest.approx(np.std(np.arange(10.0), ddof=1), abs=1e-4)
    assert mean_sd(cuts, observe_numeric(cuts, [1.0, 1e12])) == (None, None)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.lognormal(0, 2, 20_000),
        lambda rng: rng.exponential(5, 20_000) * (rng.random(20_000) > 0.6),
        lambda rng: (rng.random(20_000) > 0.99) * 3.0,
        lambda rng: np.full(20_000, 7.5),
    ],
    ids=["lognormal", "zero-inflated", "rare", "constant"],
)
def test_ordinary_features_have_a_mean(draw):
    rng = np.random.default_rng(2)
    cuts = build_numeric_cuts(draw(rng)[:2_000])
    values = draw(rng)
    mean, sd = mean_sd(cuts, observe_numeric(cuts, values))
    assert mean == pytest.approx(values.mean(), rel=1e-4, abs=1e-6)
    assert sd == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-6)
