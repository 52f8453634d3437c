"""Figures of scores: scikit-learn's on the bins' middles exactly, on the scores within the binning error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from trimtab.stats.performance import PerformanceState, classification_figures
from trimtab.stats.score_figures import score_figures
from trimtab.stats.scorebins import MIDDLES, NO_SCORE, score_bins

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 99)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def state_of(positive, bins, predicted=None):
    labels = ["y" if one else "n" for one in positive]
    said = labels if predicted is None else ["y" if one else "n" for one in predicted]
    return PerformanceState.of_classes(labels, said, bins)


def figures_of(positive, bins):
    return score_figures(state_of(positive, bins).scored, "binary", "y")


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_of_middles_the_figures_are_scikit_learns(rows):
    positive, bins = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scores, figures = MIDDLES[bins], figures_of(positive, bins)
    assert figures["auc"].value == pytest.approx(metrics.roc_auc_score(positive, scores))
    expected = metrics.average_precision_score(positive, scores)
    assert figures["average_precision"].value == pytest.approx(expected)
    assert figures["brier"].value == pytest.approx(metrics.brier_score_loss(positive, scores))
    assert figures["log_loss"].value == pytest.approx(metrics.log_loss(positive, scores))
    assert {figure.n for figure in figures.values()} == {len(rows)}
    for figure in figures.values():
        if figure.low is not None:
            assert figure.low <= figure.value <= figure.high


def population(seed, rows=20_000):
    random = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-random.normal(-0.5, 1.5, rows)))
    return random.random(rows) < scores, scores


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_scores_the_figures_are_scikit_learns_within_the_binning_error(seed):
    positive, scores = population(seed)
    predicted = scores > 0.4
    state = state_of(positive, score_bins(scores), predicted)
    figures = score_figures(state.scored, "binary", "y") | classification_figures(state, "y")
    close = {
        "auc": (metrics.roc_auc_score(positive, scores), 1e-4),
        "average_precision": (metrics.average_precision_score(positive, scores), 5e-3),
        "brier": (metrics.brier_score_loss(positive, scores), 1e-4),
        "log_loss": (metrics.log_loss(positive, scores), 1e-3),
    }
    for name, (expected, error) in close.items():
        assert figures[name].value == pytest.approx(expected, abs=error)
    assert figures["f1"].value == pytest.approx(metrics.f1_score(positive, predicted))
    assert figures["recall"].value == pytest.approx(metrics.recall_score(positive, predicted))
    groups = np.minimum((scores * 10).astype(int), 9)
    gaps = np.bincount(groups, positive - scores, minlength=10)
    assert figures["ece"].value == pytest.approx(np.abs(gaps).sum() / scores.size, abs=0.005)


def test_the_auc_interval_covers_at_its_level():
    """400 samples of 500 rows around the AUC of a million; 95 % within five standard errors (0.054)."""
    positive, scores = population(5, 1_000_000)
    truth = metrics.roc_auc_score(positive, scores)
    random, inside = np.random.default_rng(6), 0
    for _ in range(400):
        chosen = random.integers(0, scores.size, 500)
        figure = figures_of(positive[chosen], score_bins(scores[chosen]))["auc"]
        inside += figure.low <= truth <= figure.high
    assert abs(inside / 400 - 0.95) < 0.054


@given(ROWS)
def test_flipping_labels_and_scores_together_changes_no_auc(rows):
    positive, bins = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    one, other = figures_of(positive, bins)["auc"], figures_of(~positive, 99 - bins)["auc"]
    assert one.value == pytest.approx(other.value)
    assert 0 <= one.value <= 1


def test_a_score_of_one_class_only_has_no_auc_and_says_why():
    figures = figures_of([True, True], [10, 90])
    assert figures["auc"].value is None
    assert "always" in figures["auc"].reason
    assert figures["brier"].value == pytest.approx((0.895**2 + 0.095**2) / 2)
    assert "never" in figures_of([False], [10])["average_precision"].reason


def test_of_several_classes_the_likeliest_ones_calibration_is_said():
    state = PerformanceState.of_classes(list("aabc"), list("aacc"), [95, 95, 65, 65])
    figures = score_figures(state.scored, "multiclass", None)
    assert list(figures) == ["ece"]
    assert figures["ece"].value == pytest.approx((2 * 0.045 + abs(1 - 2 * 0.655)) / 4)


def test_without_scores_or_a_positive_class_nothing_is_said():
    assert score_figures(state_of([True], [NO_SCORE]).scored, "binary", "y") == {}
    assert score_figures(state_of([True], [50]).scored, "binary", None) == {}


def test_labels_taken_back_before_their_rows_leave_the_figures_open():
    figures = score_figures(state_of([True], [50]).negate().scored, "binary", "y")
    assert {figure.value for figure in figures.values()} == {None}
    assert all("taken back" in figure.reason for figure in figures.values())


def test_scores_of_two_decimals_have_a_bin_each():
    assert score_bins([float(f"0.{k:02}") for k in range(100)]).tolist() == list(range(100))


def test_what_is_no_probability_has_no_bin():
    scores = [
        0.0,
        0.00999,
        0.01,
        0.29,
        0.5,
        0.999,
        1.0,
        -0.0,
        1.0001,
        -1e-9,
        np.nan,
        np.inf,
        -np.inf,
    ]
    assert score_bins(scores).tolist() == [0, 0, 1, 29, 50, 99, 99, 0, *[NO_SCORE] * 5]
