"""Gate intervals: figures against scikit-learn, coverage, pairing, groups, and refusals."""

import numpy as np
import pytest
from sklearn import metrics

from trimtab_agent.gate.intervals import accuracy_floor, paired_gain

RANDOM = np.random.default_rng(51)
LABELS = RANDOM.integers(0, 5, 600)


def answers(right: float, seed: int) -> np.ndarray:
    """Predictions that are right with a probability and else any class."""
    random = np.random.default_rng(seed)
    guess = random.integers(0, 5, LABELS.size)
    return np.where(random.random(LABELS.size) < right, LABELS, guess)


CHAMPION, CHALLENGER = answers(0.5, 1), answers(0.9, 2)


def test_figures_are_scikit_learns():
    accuracy = paired_gain(LABELS, CHAMPION, CHALLENGER, "accuracy", seed=1)
    assert accuracy.champion == pytest.approx(metrics.accuracy_score(LABELS, CHAMPION))
    assert accuracy.challenger == pytest.approx(metrics.accuracy_score(LABELS, CHALLENGER))
    f1 = paired_gain(LABELS, CHAMPION, CHALLENGER, "macro_f1", seed=1)
    assert f1.champion == pytest.approx(metrics.f1_score(LABELS, CHAMPION, average="macro"))
    assert f1.challenger == pytest.approx(metrics.f1_score(LABELS, CHALLENGER, average="macro"))
    mae = paired_gain(LABELS, CHAMPION, CHALLENGER, "neg_mae", seed=1)
    assert mae.champion == pytest.approx(-metrics.mean_absolute_error(LABELS, CHAMPION))
    assert mae.value == pytest.approx(mae.challenger - mae.champion)
    assert (mae.n, mae.units) == (600, 600)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "neg_mae"])
def test_a_clear_gain_has_a_lower_bound_above_zero_and_an_equal_model_has_not(metric):
    clear = paired_gain(LABELS, CHAMPION, CHALLENGER, metric, seed=1)
    assert 0 < clear.low < clear.value < clear.high
    equal = paired_gain(LABELS, CHALLENGER, answers(0.9, 3), metric, seed=1)
    assert equal.low < 0 < equal.high
    same = paired_gain(LABELS, CHAMPION, CHAMPION, metric, seed=1)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "neg_mae"])
def test_the_same_seed_gives_the_same_interval_and_arguments_stay(metric):
    columns = [np.array(c, dtype=np.float64) for c in (LABELS, CHAMPION, CHALLENGER)]
    for column in columns:
        column.flags.writeable = False
    first = paired_gain(*columns, metric, seed=9)
    assert paired_gain(*columns, metric, seed=9) == first
    assert paired_gain(*columns, metric, seed=10) != first


def test_swapping_the_models_mirrors_the_gain():
    there = paired_gain(LABELS, CHAMPION, CHALLENGER, "accuracy", seed=1)
    back = paired_gain(LABELS, CHALLENGER, CHAMPION, "accuracy", seed=1)
    assert back.value == -there.value
    assert back.low == pytest.approx(-there.high, abs=0.01)


@pytest.mark.parametrize("continuous", [False, True])
def test_the_interval_covers_the_true_gain_at_its_level(continuous):
    """400 samples of 300 rows; true gains .1 (accuracy) and .2 (MAE); 95 % ± 3.3 %."""
    random = np.random.default_rng(52)
    covered = 0
    for seed in range(400):
        if continuous:
            y = random.normal(size=300)
            a, b = y + random.choice([-1, 1], 300) * 1.0, y + random.uniform(0.6, 1.0, 300)
            truth, metric = 0.2, "neg_mae"
        else:
            y = np.zeros(300, dtype=bool)
            a, b = (random.random(300) < wrong for wrong in (0.3, 0.2))
            truth, metric = 0.1, "accuracy"
        gain = paired_gain(y, a, b, metric, seed=seed, replicates=400)
        covered += gain.low <= truth <= gain.high
    assert 0.917 <= covered / 400 <= 0.983


def test_few_and_many_distinct_rows_are_drawn_from_the_same_distribution():
    """Merging equal rows into one multinomial cell must not change the interval."""
    jitter = np.linspace(0, 1e-9, LABELS.size)  # makes every row distinct
    merged = paired_gain(LABELS, CHAMPION, CHALLENGER, "neg_mae", seed=1)
    apart = paired_gain(LABELS, CHAMPION + jitter, CHALLENGER - jitter, "neg_mae", seed=1)
    assert (apart.low, apart.high) == pytest.approx((merged.low, merged.high), abs=0.02)


def test_rows_that_come_together_count_as_one_unit():
    labels, a, b = (np.repeat(c[:60], 10) for c in (LABELS, CHAMPION, CHALLENGER))
    alone = paired_gain(labels, a, b, "accuracy", seed=1)
    grouped = paired_gain(labels, a, b, "accuracy", seed=1, groups=np.repeat(np.arange(60), 10))
    assert grouped.units == 60
    assert grouped.value == alone.value
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_text_classes_work_like_numbers():
    as_text = [
        np.array([f"class {c}" for c in column]) for column in (LABELS, CHAMPION, CHALLENGER)
    ]
    numbers = paired_gain(LABELS, CHAMPION, CHALLENGER, "macro_f1", seed=4)
    assert paired_gain(*as_text, "macro_f1", seed=4) == numbers


def test_a_smaller_alpha_widens_the_interval():
    narrow = paired_gain(LABELS, CHAMPION, CHALLENGER, "accuracy", seed=1, alpha=0.2)
    wide = paired_gain(LABELS, CHAMPION, CHALLENGER, "accuracy", seed=1, alpha=0.01)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("labels", "champion", "challenger", "options"),
    [
        ([], [], [], {}),
        ([1, 2], [1], [1, 2], {}),
        ([1, 2], [1, 2], [1, 2], {"alpha": 0.0}),
        ([1, 2], [1, 2], [1, 2], {"replicates": 0}),
        ([1, 2], [1, 2], [1, 2], {"groups": [1]}),
        ([1.0, np.nan], [1.0, 2.0], [1.0, 2.0], {"metric": "neg_mae"}),
    ],
)
def test_what_cannot_be_compared_is_refused(labels, champion, challenger, options):
    arguments = {"metric": "accuracy", "seed": 1} | options
    with pytest.raises(ValueError, match=r"must|Give"):
        paired_gain(labels, champion, challenger, **arguments)


def test_a_floor_is_held_by_the_lower_end():
    labels = np.ones(1_000)
    predictions = np.where(np.arange(1_000) < 950, 1, 0)
    judged = accuracy_floor(labels, predictions, 0.93)
    assert judged.value == 0.95
    assert judged.passes
    assert judged.low == pytest.approx(0.9346, abs=1e-4)
    assert not accuracy_floor(labels, predictions, 0.94).passes
    assert not accuracy_floor(labels[:5], labels[:5], 0.93).passes  # 5 of 5 is not yet sure
