"""Comparisons of a window with a reference, against SciPy and known values."""

import math

import msgspec
import numpy as np
import pytest
from scipy.stats import binom, chi2_contingency, ks_2samp, wasserstein_distance

from trimtab.stats.aggregate import IncompatibleCuts, observe_categories, observe_numeric
from trimtab.stats.cuts import CategoryCuts, build_numeric_cuts
from trimtab.stats.tests import compare


def numbers(reference, window, bins=64):
    cuts = build_numeric_cuts(reference, bins)
    return cuts, observe_numeric(cuts, window), observe_numeric(cuts, reference)


def classes(reference, window, categories):
    cuts = CategoryCuts(tuple(categories))
    return cuts, observe_categories(cuts, window), observe_categories(cuts, reference)


def ks_binned(*sides):
    return compare(*sides).ks


def chi_square(*sides):
    return compare(*sides).chi_square


def psi(*sides):
    return compare(*sides).psi


def jensen_shannon(*sides):
    return compare(*sides).jensen_shannon


def wasserstein_binned(*sides):
    return compare(*sides).wasserstein


def effect_binned(*sides):
    return compare(*sides).effect


def test_the_corrected_statistic_is_close_to_the_exact_one():
    random = np.random.default_rng(21)
    reference = random.normal(size=50_000)
    errors = []
    for shift in (0.0, 0.05, 0.1, 0.25):
        for _ in range(10):
            window = random.normal(shift, 1.0, 1_000)
            result = ks_binned(*numbers(reference, window))
            exact = ks_2samp(window, reference, method="asymp")
            assert result.d_low <= exact.statistic <= result.d_high
            errors.append(result.d - exact.statistic)
    assert np.sqrt(np.mean(np.square(errors))) < 0.002  # stated: .0014


def test_without_a_change_the_p_value_keeps_its_level():
    random = np.random.default_rng(22)
    reference = random.normal(size=50_000)
    cuts = build_numeric_cuts(reference)
    counted = observe_numeric(cuts, reference)
    rejected = sum(
        ks_binned(cuts, observe_numeric(cuts, random.normal(size=1_000)), counted).p_value < 0.05
        for _ in range(400)
    )
    assert rejected <= 20 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_missing_rows_and_type_errors_do_not_enter_a_comparison_of_values():
    reference = [1.0, 2.0, 3.0, 4.0] * 10
    cuts = build_numeric_cuts(reference)
    window = [*reference, *[math.nan] * 40]
    result = ks_binned(
        cuts, observe_numeric(cuts, window, type_errors=7), observe_numeric(cuts, reference)
    )
    assert (result.d, result.p_value, result.n_rows) == (0.0, 1.0, 40)


def test_infinities_are_the_ends_of_the_order():
    cuts, window, reference = numbers([1.0, 2.0], [math.inf, math.inf])
    assert ks_binned(cuts, window, reference).d == 1.0
    assert effect_binned(cuts, window, reference).p_greater == 1.0
    assert wasserstein_binned(cuts, window, reference) is None


@pytest.mark.parametrize("empty", [[], [math.nan]])
def test_nothing_on_one_side_cannot_tell(empty):
    for window, reference in ((empty, [1.0, 2.0]), ([1.0, 2.0], empty)):
        cuts, w, r = numbers(reference, window)
        comparison = compare(cuts, w, r)
        assert all(getattr(comparison, field) is None for field in comparison.__struct_fields__)


def test_one_row_against_one_row_tells_nothing_apart():
    assert ks_binned(*numbers([1.0], [2.0])).p_value == 1.0


def test_other_cuts_are_refused():
    cuts, window, _ = numbers([1.0, 2.0], [1.0])
    _, _, foreign = numbers([5.0, 6.0], [5.0])
    with pytest.raises(IncompatibleCuts):
        compare(cuts, window, foreign)


# --- chi-square -----------------------------------------------------------------------------------


def test_chi_square_is_scipys_where_every_bin_is_large():
    window, reference = "a" * 30 + "b" * 50 + "c" * 20, "a" * 400 + "b" * 300 + "c" * 300
    result = chi_square(*classes(reference, window, "abc"))
    expected = chi2_contingency([[30, 50, 20], [400, 300, 300]], correction=False)
    assert result.statistic == pytest.approx(expected.statistic)
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.degrees_of_freedom == expected.dof == 2
    assert result.cramers_v == pytest.approx(math.sqrt(expected.statistic / 1_100))
    assert result.total_variation == pytest.approx((0.1 + 0.2 + 0.1) / 2)


def test_rare_categories_are_merged_until_five_rows_are_expected():
    window = ["a"] * 90 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3
    reference = ["a"] * 90 + ["b"] * 4 + ["c"] * 3 + ["d"] * 3
    result = chi_square(*classes(reference, window, "abcd"))
    assert result.degrees_of_freedom == 1  # a, and the three rare ones together
    assert (result.statistic, result.p_value) == (0.0, 1.0)


def counted(cuts, rows):
    """A state with these counts of the cuts' categories, then `unseen`."""
    state = observe_categories(cuts, [])
    counts = list(state.counts)
    counts[: len(rows) - 1] = rows[:-1]
    counts[-2] = rows[-1]
    return msgspec.structs.replace(state, counts=type(state.counts)(counts))


@pytest.mark.parametrize("swapped", [False, True])
def test_half_of_a_window_unseen_shows_beside_a_reference_of_any_size(swapped):
    cuts = CategoryCuts(("a", "b"))
    window, reference = counted(cuts, [100, 0, 100]), counted(cuts, [16_800, 16_800, 0])
    sides = (reference, window) if swapped else (window, reference)
    result = chi_square(cuts, *sides)
    assert result.p_value < 1e-100
    assert result.total_variation == pytest.approx(0.5)
    assert result.cramers_v > 0.5
    all_new = chi_square(cuts, counted(cuts, [0, 0, 3]), reference)
    assert all_new is not None


def test_a_rest_too_small_for_chi_square_is_tested_by_its_exact_tail():
    cuts = CategoryCuts(("a", "b"))
    window, reference = counted(cuts, [50, 49, 1]), counted(cuts, [10_000, 10_000, 3])
    result = chi_square(cuts, window, reference)
    assert result.degrees_of_freedom == 1  # a and b; the rest stands by itself
    tail = binom.sf(0, 4, 100 / 20_103)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))


def test_without_a_change_rare_categories_keep_the_level_of_chi_square():
    random = np.random.default_rng(31)
    cuts = CategoryCuts(tuple(f"k{i}" for i in range(12)))
    shares = np.array([0.5, 0.3, 0.197, *[0.003 / 10] * 10])
    low = 0
    for _ in range(3_000):
        window, reference = random.multinomial(200, shares), random.multinomial(20_000, shares)
        result = chi_square(cuts, counted(cuts, window), counted(cuts, reference))
        assert result.degrees_of_freedom == 2
        low += result.p_value <= 0.05
    assert low / 3_000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 3_000)


def test_numbers_merge_with_their_neighbours():
    random = np.random.default_rng(23)
    cuts, window, reference = numbers(random.normal(size=5_000), random.normal(size=100))
    result = chi_square(cuts, window, reference)
    assert 10 <= result.degrees_of_freedom <= 20  # 100 rows, at least 5 expected in each
    assert 0.001 < result.p_value < 1.0


def test_one_value_on_both_sides_cannot_differ():
    result = chi_square(*classes("aaaa", "aa", "a"))
    assert (result.statistic, result.degrees_of_freedom, result.p_value) == (0.0, 0, 1.0)


def test_a_category_that_was_never_seen_shows():
    result = chi_square(*classes(["a"] * 500 + ["b"] * 500, ["a"] * 50 + ["zz"] * 50, "ab"))
    assert result.p_value < 1e-10


# --- divergences ----------------------------------------------------------------------------------


def test_psi_is_about_zero_when_nothing_changed():
    random = np.random.default_rng(24)
    reference = random.normal(size=20_000)
    cuts = build_numeric_cuts(reference)
    counted = observe_numeric(cuts, reference)
    results = [
        psi(cuts, observe_numeric(cuts, random.normal(size=1_000)), counted) for _ in range(200)
    ]
    assert abs(np.mean([r.psi for r in results])) < 0.001
    assert np.mean([r.raw for r in results]) == pytest.approx(
        19 * (1 / 1_000 + 1 / 20_000), abs=0.002
    )
    assert all(r.bins == 20 for r in results)


def test_psi_of_a_large_shift_is_the_analytic_one():
    random = np.random.default_rng(25)
    cuts, window, reference = numbers(random.normal(size=200_000), random.normal(0.5, 1, 200_000))
    # Symmetric Kullback-Leibler of two unit Gaussians is the shift squared; binning loses a little.
    assert psi(cuts, window, reference).psi == pytest.approx(0.25, rel=0.05)
    assert jensen_shannon(cuts, window, reference) == pytest.approx(0.25 / 8, rel=0.08)


def test_disjoint_categories_have_the_largest_divergence():
    assert jensen_shannon(*classes("aaaa", "bbbb", "ab")) == pytest.approx(math.log(2))
    assert jensen_shannon(*classes("abab", "baba", "ab")) == 0.0


def test_many_categories_are_merged_to_twenty():
    names = [f"c{i}" for i in range(45)]
    assert psi(*classes(names * 10, names * 10, names)).bins == 20


# --- effects --------------------------------------------------------------------------------------


def test_wasserstein_is_scipys_in_reference_standard_deviations():
    random = np.random.default_rng(26)
    reference, window = random.normal(3, 2, 20_000), random.normal(3.5, 2.2, 5_000)
    expected = wasserstein_distance(window, reference) / reference.std(ddof=1)
    assert wasserstein_binned(*numbers(reference, window)) == pytest.approx(expected, rel=0.02)


def test_wasserstein_of_a_wider_distribution_is_close():
    random = np.random.default_rng(28)
    reference, window = random.normal(size=20_000), random.normal(0.0, 1.3, 5_000)
    expected = wasserstein_distance(window, reference) / reference.std(ddof=1)
    assert wasserstein_binned(*numbers(reference, window)) == pytest.approx(expected, rel=0.15)


def test_one_far_outlier_counts_by_its_distance():
    reference = np.random.default_rng(29).normal(size=1_000)
    window = np.append(reference[:-1], 1_000.0)
    expected = wasserstein_distance(window, reference) / reference.std(ddof=1)
    assert wasserstein_binned(*numbers(reference, window)) == pytest.approx(expected, rel=0.01)


def test_wasserstein_of_atoms_is_exact():
    reference, window = [0.0, 1.0, 1.0, 4.0], [1.0, 4.0, 4.0]
    expected = wasserstein_distance(window, reference) / np.std(reference, ddof=1)
    assert wasserstein_binned(*numbers(reference, window)) == pytest.approx(expected)


def test_a_reference_that_does_not_vary_has_no_distance_in_its_deviations():
    assert wasserstein_binned(*numbers([2.0, 2.0], [3.0])) is None


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.1, 1.0])
def test_a_shift_is_recovered_in_standard_deviations(shift):
    random = np.random.default_rng(27)
    cuts, window, reference = numbers(
        random.normal(size=100_000), random.normal(shift, 1.0, 100_000)
    )
    assert effect_binned(cuts, window, reference).sd_equivalents == pytest.approx(shift, abs=0.02)


def test_the_effect_is_finite_when_all_is_larger():
    effect = effect_binned(*numbers([1.0, 2.0], [3.0, 4.0]))
    assert effect.p_greater == 1.0
    assert math.isfinite(effect.sd_equivalents)


def test_categories_get_no_figures_of_order():
    comparison = compare(*classes("aabb", "abab", "ab"))
    assert comparison.ks is None
    assert comparison.wasserstein is None
    assert comparison.chi_square is not None
