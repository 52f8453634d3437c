"""Outlying rows, scored from bins alone: usual rows are not, odd ones are, and why is told."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats.coded import Coded
from trimtab.stats.cuts import (
    CutsError,
    ModelCuts,
    build_category_cuts,
    build_numeric_cuts,
    count_numeric,
    model_cuts,
)
from trimtab.stats.outliers import (
    LEAST_HELD_ROWS,
    OUTLIER_SHARE,
    explain,
    finds_outliers,
    fit,
    outlying,
    scores,
)
from trimtab.stats.surprise import UNIT_NATS, Outliers

ROWS = 20_000
CHANNELS = ("web", "app", "branch")


def reference_columns(seed=1, rows=ROWS):
    rng = np.random.default_rng(seed)
    numbers = {f"n{i}": rng.normal(size=rows) for i in range(6)}
    numbers["skewed"] = rng.lognormal(size=rows)
    numbers["mostly_zero"] = np.where(rng.random(rows) < 0.8, 0.0, rng.exponential(size=rows))
    numbers["sparse"] = np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows))
    channels = [CHANNELS[i] for i in rng.choice(3, rows, p=[0.7, 0.295, 0.005])]
    return numbers, {"channel": Coded.of_keys(channels)}


def fitted(rows=ROWS, share=OUTLIER_SHARE):
    numbers, categories = reference_columns(rows=rows)
    named = [(name, build_numeric_cuts(values)) for name, values in numbers.items()]
    named += [(name, build_category_cuts(values)) for name, values in categories.items()]
    return model_cuts(named, outliers=fit(dict(named), numbers, categories, rows, share))


@pytest.fixture(scope="module")
def cuts():
    return fitted()


def surprise(cuts, name, values):
    """What one column adds to the scores, in nats, beside another that is beyond the reference in every row."""
    numbers, categories = {"n5": np.full(len(values), 99.0)}, {}
    (categories if isinstance(values, Coded) else numbers)[name] = values
    return (scores(cuts, numbers, categories, len(values)) * UNIT_NATS).tolist()


def test_a_thousandth_of_usual_rows_are_outliers(cuts):
    share = outlying(cuts, *reference_columns(2, 50_000), 50_000).mean()
    assert 0.0003 < share < 0.003


def test_rows_beside_a_small_reference_are_outliers_as_seldom_as_its_own():
    """Of 20 numbers a new row is often beyond all of 1,000 rows in one, as none of these rows is; that alone is no outlier."""
    rng = np.random.default_rng(3)
    shares = []
    for _ in range(5):
        numbers = {f"n{i}": rng.normal(size=1_000) for i in range(20)}
        features = {name: build_numeric_cuts(values) for name, values in numbers.items()}
        found = model_cuts(features.items(), outliers=fit(features, numbers, {}, 1_000, 0.01))
        fresh = {name: rng.normal(size=20_000) for name in numbers}
        shares.append(outlying(found, fresh, {}, 20_000).mean())
    assert 0.005 < np.mean(shares) < 0.02


def test_a_row_unusual_in_several_ways_is_one_and_in_one_way_is_none(cuts):
    numbers, categories = reference_columns(3, 2_000)
    before = outlying(cuts, numbers, categories, 2_000)
    numbers["n0"][5] = 2.5  # in the outer hundredth
    assert outlying(cuts, numbers, categories, 2_000)[5] == before[5]
    for name in ("n0", "n1", "n2", "n3", "n4", "n5"):
        numbers[name][7] = -2.5
    assert outlying(cuts, numbers, categories, 2_000)[7]


def test_an_outlier_is_explained_by_its_strongest_features(cuts):
    numbers, categories = reference_columns(4, 100)
    numbers["n0"][9], numbers["n1"][9], numbers["n2"][9] = 50.0, -50.0, np.nan
    numbers["skewed"][9] = 1e9
    numbers["mostly_zero"][9] = 2.0
    found = explain(cuts, numbers, categories, 100)
    assert found[0].row == 9
    assert len(found[0].why) == 3
    assert {why.feature: why.says for why in found[0].why} == {
        "n0": "above all of the reference",
        "n1": "below all of the reference",
        "skewed": "above all of the reference",
    }
    assert explain(cuts, numbers, categories, 100, most=0) == []


@pytest.mark.parametrize(
    ("feature", "value", "says"),
    [
        ("channel", "branch", "rare value branch"),
        ("n0", -99.0, "below all of the reference"),
        ("n0", 99.0, "above all of the reference"),
        ("n0", -2.9, "low"),
        ("n0", 2.9, "high"),
    ],
)
def test_reasons_are_told_in_words(cuts, feature, value, says):
    every = msgspec.structs.replace(cuts.outliers, threshold=-(10**6))
    every_row_is_one = msgspec.structs.replace(cuts, outliers=every)
    if feature == "channel":
        found = explain(every_row_is_one, {}, {feature: Coded.of_keys([value])}, 1)
    else:
        found = explain(every_row_is_one, {feature: np.array([value])}, {}, 1)
    assert [(why.feature, why.says) for why in found[0].why] == [(feature, says)]


def test_the_rarer_a_category_the_more_it_surprises_and_what_has_a_rate_of_its_own_does_not(cuts):
    keys = ["web", "app", "branch", "fax", None]
    web, app, branch, unseen, missing = surprise(cuts, "channel", Coded.of_keys(keys))
    assert web < 0 < app < branch
    assert unseen == missing == 0
    odd = np.array([np.nan, np.inf, -np.inf])
    assert surprise(cuts, "n0", odd) == [0, 0, 0]


def test_what_is_unusual_in_one_feature_alone_makes_no_outlier(cuts):
    """However far out: the feature's own contrasts and rates see it, and an outlier says something else."""
    numbers, categories = reference_columns(9, 500)
    usual = outlying(cuts, numbers, categories, 500)
    median = {name: np.where(usual, 0.5, values) for name, values in numbers.items()}
    for name in ("n0", "skewed"):
        assert not outlying(cuts, median | {name: np.full(500, -1e9)}, categories, 500).all()
    far = {name: np.full(500, -1e9) for name in ("n0", "n1", "n2")}
    assert outlying(cuts, median | far, categories, 500).all()


def test_values_too_rare_for_a_bin_are_rare():
    values = [f"v{i}" for i in range(60) for _ in range(40)]
    cut = build_category_cuts(values)
    columns = {"c": Coded.of_keys(values), "d": Coded.of_keys(["a"] * 2_399 + ["b"])}
    named = {"c": cut, "d": build_category_cuts(["a"] * 2_399 + ["b"])}
    found = model_cuts(named.items(), outliers=fit(named, {}, columns, 2_400))
    every = msgspec.structs.replace(found.outliers, threshold=-(10**6))
    every_row_is_one = msgspec.structs.replace(found, outliers=every)
    odd = {"c": Coded.of_keys([cut.others[0]]), "d": Coded.of_keys(["b"])}
    (row,) = explain(every_row_is_one, {}, odd, 1)
    assert [why.says for why in row.why] == ["rare value b"]
    scored = {one.name: one for one in found.outliers.features}["c"]
    assert scored.surprise[cut.size - 1] * UNIT_NATS == pytest.approx(
        math.log(6) - (5 / 6 * math.log(60) + 1 / 6 * math.log(6)), abs=0.001
    )


def test_a_value_that_most_rows_hold_is_no_surprise(cuts):
    assert surprise(cuts, "mostly_zero", np.array([0.0, -0.0])) == [-1.0, -1.0]


def test_too_few_held_rows_make_no_outliers():
    few = fitted(rows=999)
    assert few.outliers == Outliers(held_rows=999)
    assert not finds_outliers(few)
    numbers, categories = reference_columns(6, 10)
    numbers["n0"][:] = 1e9
    assert not outlying(few, numbers, categories, 10).any()
    assert finds_outliers(fitted(rows=1_000))


def test_a_single_feature_makes_no_outliers():
    values = np.random.default_rng(1).normal(size=2_000)
    features = {"x": build_numeric_cuts(values)}
    assert fit(features, {"x": values}, {}, 2_000) == Outliers(held_rows=2_000)


def test_what_no_contract_declares_adds_nothing_and_what_does_not_fit_is_refused(cuts):
    numbers, categories = reference_columns(7, 50)
    missing = scores(cuts, numbers | {"n0": np.full(50, np.nan)}, categories, 50)
    without = {name: values for name, values in numbers.items() if name != "n0"}
    assert (scores(cuts, without, categories, 50) == missing).all()
    numbers["n1"] = numbers["n1"][:49]
    with pytest.raises(ValueError, match="49 values for 50 rows"):
        scores(cuts, numbers, categories, 50)
    with pytest.raises(ValueError, match="no share"):
        fit({}, {}, {}, 10, share=0)


def test_no_rows_have_no_scores_and_cuts_without_outliers_find_none(cuts):
    assert scores(cuts, {}, {}, 0).shape == (0,)
    assert explain(cuts, {}, {}, 0) == []
    old = model_cuts([("n0", cuts.feature["n0"])])
    assert not outlying(old, {"n0": np.array([1e9])}, {}, 1).any()
    assert explain(old, {"n0": np.array([1e9])}, {}, 1) == []


def test_a_row_has_the_same_score_alone_and_among_many(cuts):
    """Replicas, replays and recounts batch rows otherwise; the places of many are found another way than of one."""
    numbers, categories = reference_columns(8, 700)
    numbers["n0"][::50] = 1e300
    numbers["n1"][::70] = np.inf
    together = scores(cuts, numbers, categories, 700).tolist()
    alone = [
        int(
            scores(
                cuts,
                {name: values[i : i + 1] for name, values in numbers.items()},
                {name: column.take(slice(i, i + 1)) for name, column in categories.items()},
                1,
            )[0]
        )
        for i in range(700)
    ]
    assert together == alone


# --- as a part of the cuts ----------------------------------------------------------------------------


def test_outliers_are_a_part_of_the_cuts_and_of_their_id(cuts):
    again = ModelCuts.from_json(cuts.to_json())
    assert again == cuts
    assert again.cuts_id == cuts.cuts_id
    higher = msgspec.structs.replace(cuts.outliers, threshold=cuts.outliers.threshold + 1)
    assert msgspec.structs.replace(cuts, outliers=higher).cuts_id != cuts.cuts_id


def test_cuts_from_before_there_were_outliers_are_read_and_keep_their_id():
    text = (
        '{"features":[{"cuts":{"categories":["a"],"kind":"category","others":[]},"name":"c"}],'
        '"outputs":[],"version":1}'
    )
    old = ModelCuts.from_json(text)
    assert old.outliers is None
    assert old.to_json() == text
    assert old.cuts_id == "1717fdae2a2b05ef0f855e5cd33bc08e"


def test_scores_that_fit_no_cuts_are_refused(cuts):
    with pytest.raises(CutsError, match="'n1' do not fit its cuts"):
        model_cuts([("n0", cuts.feature["n1"])], outliers=cuts.outliers)


# --- laws ---------------------------------------------------------------------------------------------


floats = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(floats, min_size=1, max_size=80), st.lists(floats, max_size=80))
def test_bins_of_rows_are_those_that_are_counted(reference, values):
    """Each value's surprise is that of the bin it is counted in, or of being beyond the reference."""
    cut = build_numeric_cuts(reference)
    rows = np.array((reference * LEAST_HELD_ROWS)[:LEAST_HELD_ROWS])
    zero = build_numeric_cuts(np.zeros(rows.size))
    named, columns = {"x": cut, "zero": zero}, {"x": rows, "zero": np.zeros(rows.size)}
    found = model_cuts(named.items(), outliers=fit(named, columns, {}, rows.size))
    scored = found.outliers.features[0]
    given = np.array(values, dtype=float)
    expected = []
    for value in given:
        place = int(count_numeric(cut, [value]).argmax())
        finite = rows[np.isfinite(rows)]
        if np.isfinite(value) and finite.size:
            place = cut.size if value < finite.min() else place
            place = cut.size + 1 if value > finite.max() else place
        expected.append(scored.surprise[place])
    beside = np.ones(given.size)  # beyond its reference: no other surprise is larger
    assert scores(found, {"x": given, "zero": beside}, {}, given.size).tolist() == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_grid_and_the_search_find_the_same_bins(seed):
    rng = np.random.default_rng(seed)
    cuts = build_numeric_cuts(rng.normal(size=3_000))
    values = np.concatenate([rng.normal(size=2_000), cuts.edge_array, [-0.0, 1e300, -1e300]])
    assert cuts.grid is not None
    assert (cuts.grid.bins(values) == cuts.edge_array.searchsorted(values, side="left")).all()
