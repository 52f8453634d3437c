"""Performance figures against scikit-learn, and intervals against SciPy."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics

from trimtab.stats.exactsum import UNIT_BITS, exact_moments, root_of_quotient
from trimtab.stats.intervals import clopper_pearson, normal_mean, wilson
from trimtab.stats.performance import (
    PerformanceState,
    PerformanceStateError,
    classification_figures,
    merge_all,
    regression_figures,
)

pairs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60
)


@given(pairs)
def test_multiclass_figures_are_scikit_learns(joined):
    labels, predictions = [p[0] for p in joined], [p[1] for p in joined]
    figures = classification_figures(PerformanceState.of_classes(labels, predictions))
    assert figures["accuracy"].value == pytest.approx(metrics.accuracy_score(labels, predictions))
    names = sorted(set(labels) | set(predictions))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predictions, labels=names, zero_division=0
    )
    for place, name in enumerate(names):
        assert (figures[f"precision({name})"].value or 0.0) == pytest.approx(precision[place])
        assert (figures[f"recall({name})"].value or 0.0) == pytest.approx(recall[place])
        assert (figures[f"f1({name})"].value or 0.0) == pytest.approx(f1[place])
    for short, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert figures[f"macro_{short}"].value == pytest.approx(values.mean())


@given(st.lists(st.tuples(st.sampled_from("yn"), st.sampled_from("yn")), min_size=1, max_size=60))
def test_binary_figures_are_scikit_learns_for_the_positive_class(joined):
    labels, predictions = [p[0] for p in joined], [p[1] for p in joined]
    figures = classification_figures(PerformanceState.of_classes(labels, predictions), "y")
    expected = {
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "f1": metrics.f1_score,
    }
    for name, function in expected.items():
        value = function(labels, predictions, pos_label="y", zero_division=np.nan)
        if np.isnan(value):
            assert figures[name].value is None
            assert figures[name].reason
        else:
            assert figures[name].value == pytest.approx(value)


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=60))
def test_regression_figures_are_scikit_learns(joined):
    labels, predictions = [p[0] for p in joined], [p[1] for p in joined]
    figures = regression_figures(PerformanceState.of_numbers(labels, predictions))
    mae = metrics.mean_absolute_error(labels, predictions)
    rmse = metrics.root_mean_squared_error(labels, predictions)
    assert figures["mae"].value == pytest.approx(mae)
    assert figures["rmse"].value == pytest.approx(rmse)
    bias = np.mean(np.array(predictions) - np.array(labels))
    assert figures["bias"].value == pytest.approx(bias, rel=1e-9, abs=1e-12)


def test_intervals_are_named_and_hold_the_value():
    state = PerformanceState.of_classes(
        ["y"] * 60 + ["n"] * 40, ["y"] * 50 + ["n"] * 45 + ["y"] * 5
    )
    figures = classification_figures(state, "y")
    assert figures["accuracy"].interval == "wilson"
    assert (figures["accuracy"].low, figures["accuracy"].high) == wilson(85, 100)
    for figure in figures.values():
        assert figure.low < figure.value < figure.high
    f1 = figures["f1"]
    assert (f1.value, f1.n) == (pytest.approx(100 / 115), 65)


def test_the_f1_interval_covers_at_its_level():
    """2,000 samples of 200 rows with F1 = .8 in the population."""
    random = np.random.default_rng(41)
    outcomes, probabilities = [("y", "y"), ("y", "n"), ("n", "y"), ("n", "n")], [0.4, 0.1, 0.1, 0.4]
    covered = 0
    for counts in random.multinomial(200, probabilities, size=2_000):
        confusion = dict(zip(outcomes, counts.tolist(), strict=True))
        f1 = classification_figures(PerformanceState(confusion, rows=200), "y")["f1"]
        covered += f1.low <= 0.8 <= f1.high
    assert 0.93 <= covered / 2_000 <= 0.97


def test_the_mae_interval_is_the_normal_one():
    errors = np.array([1.0, -2.0, 3.0, 0.5])
    figure = regression_figures(PerformanceState.of_numbers(np.zeros(4), errors))["mae"]
    expected = normal_mean(4, 1.625, float(np.var(np.abs(errors), ddof=1)))
    assert (figure.low, figure.high) == pytest.approx(expected)
    assert figure.interval == "normal"


def test_nothing_labelled_is_undefined_and_says_so():
    assert classification_figures(PerformanceState())["accuracy"].reason == "no labelled rows"
    assert classification_figures(PerformanceState())["macro_f1"].value is None
    assert regression_figures(PerformanceState())["mae"].value is None


def test_a_class_that_was_never_predicted_has_no_precision():
    figures = classification_figures(PerformanceState.of_classes(["y", "n"], ["n", "n"]), "y")
    assert figures["precision"].value is None
    assert "never predicted" in figures["precision"].reason
    assert figures["recall"].value == 0.0


def test_a_label_taken_back_too_early_is_undefined_and_heals():
    early = PerformanceState.of_classes(["y"], ["n"]).negate()
    figures = classification_figures(early, "y")
    assert {f.value for f in figures.values()} == {None}
    assert early.merge(PerformanceState.of_classes(["y"], ["n"])).is_empty
    assert (
        regression_figures(PerformanceState.of_numbers([1.0], [2.0]).negate())["mae"].value is None
    )


def test_a_correction_moves_one_row():
    state = merge_all(
        [
            PerformanceState.of_classes(["y", "y"], ["y", "n"]),
            PerformanceState.of_classes(["y"], ["n"]).negate(),
            PerformanceState.of_classes(["n"], ["n"]),
        ]
    )
    assert state == PerformanceState.of_classes(["y", "n"], ["y", "n"])
    assert merge_all([]) is None


def test_pairs_that_are_not_finite_are_counted_apart():
    state = PerformanceState.of_numbers([1.0, np.nan, np.inf], [1.5, 1.0, np.inf])
    assert (state.rows, state.unusable) == (1, 2)
    assert regression_figures(state)["mae"].value == 0.5
    assert regression_figures(state)["mae"].low is None


@pytest.mark.parametrize("unit", [1e-300, 1e-12, 1.0, 1e12, 1e300])
def test_errors_of_any_size_are_exact(unit):
    """Errors beyond 2**20 were once clamped, and small ones 0."""
    labels = unit * np.array([2.0, 2.0, 2.0])
    figures = regression_figures(PerformanceState.of_numbers(labels, labels + unit * 3.0))
    for name in ("mae", "rmse", "bias"):
        assert figures[name].value == pytest.approx(unit * 3.0, rel=1e-15)
    far = PerformanceState.of_numbers([2.0e6, 2.0e6], [5.0e6, 5.009e6])
    assert regression_figures(far)["mae"].value == 3_004_500.0
    near = PerformanceState.of_numbers([0.0, 0.0], [2e-6, -2e-6])
    assert regression_figures(near)["mae"].value == 2e-6
    assert regression_figures(near)["bias"].value == 0.0


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=50))
def test_sums_are_those_of_fractions(errors):
    state = PerformanceState.of_numbers(np.zeros(len(errors)), errors)
    exact = [Fraction(e) for e in errors]
    assert Fraction(state.sum_e, 2**UNIT_BITS) == sum(exact)
    assert Fraction(state.sum_abs_e, 2**UNIT_BITS) == sum(map(abs, exact))
    assert Fraction(state.sum_e2, 4**UNIT_BITS) == sum(e * e for e in exact)
    assert len(state.to_bytes()) < 1_200
    for figure in regression_figures(state).values():
        for value in (figure.value, figure.low, figure.high):
            assert value is None or np.isfinite(value)


def test_many_errors_of_the_longest_mantissa_do_not_overflow():
    error = np.nextafter(1.0, 0.0)
    n = 100_000
    total, absolute, squares = exact_moments(np.full(n, -error))
    assert Fraction(-total, 2**UNIT_BITS) == Fraction(absolute, 2**UNIT_BITS) == n * Fraction(error)
    assert Fraction(squares, 4**UNIT_BITS) == n * Fraction(error) ** 2


positive = st.integers(1, 2**5_000) | st.integers(1, 1_000)


@given(positive, positive)
def test_a_root_is_the_float_nearest_to_it(numerator, denominator):
    quotient = Fraction(numerator, denominator)
    try:
        root = root_of_quotient(numerator, denominator)
    except OverflowError:
        assert quotient >= Fraction(np.finfo(float).max) ** 2
        return
    assume(np.isfinite(np.nextafter(root, np.inf)))
    below = max(0, Fraction(root) + Fraction(np.nextafter(root, -np.inf))) / 2
    above = (Fraction(root) + Fraction(np.nextafter(root, np.inf))) / 2
    assert below**2 <= quotient <= above**2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\x91\x01",
        b"\x97\x02\x90\x00\x92\xc4\x00\x00\x92\xc4\x00\x00\x92\xc4\x00\x00\x00",
    ],
)
def test_bytes_of_something_else_are_refused(data):
    with pytest.raises(PerformanceStateError):
        PerformanceState.from_bytes(data)


# --- intervals ------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.data(), st.sampled_from([0.01, 0.05, 0.2]))
def test_proportions_have_scipys_intervals(n, data, alpha):
    k = data.draw(st.integers(0, n))
    test = binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = test.proportion_ci(1 - alpha, method)
        assert ours(k, n, alpha) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "alpha"), [(1, 0, 0.05), (3, 2, 0.05), (-1, 2, 0.05), (1, 2, 0)]
)
def test_what_is_no_proportion_is_refused(k, n, alpha):
    with pytest.raises(ValueError, match="give"):
        wilson(k, n, alpha)


def test_one_row_has_no_interval_of_its_mean():
    assert normal_mean(1, 3.0, 0.0) is None
