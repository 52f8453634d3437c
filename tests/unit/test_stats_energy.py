"""The energy test: keeps its level, sees what columns alone do not show, depends on nothing but rows and seed."""

import numpy as np
import pytest

from trimtab.stats.energy import energy_test, scores_of
from trimtab.stats.joint import JointColumn


def test_it_is_the_energy_distance_of_its_definition():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(40, 3)) + 0.5

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2).mean()

    energy = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    found = energy_test(x, y, seed=0)
    assert found.coefficient == pytest.approx(energy / (2 * mean(x, y)))
    assert found == energy_test(x, y, seed=0)


def test_unchanged_samples_are_seldom_called_different():
    rng = np.random.default_rng(2)
    p = [
        energy_test(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)), seed).p_value
        for seed in range(200)
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert 0.4 < np.mean(p) < 0.6


def test_a_change_that_no_correlation_shows_is_seen():
    """One column goes with the size of the other, whatever its sign: each column and their correlation stay."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    x[:, 1] = np.abs(rng.normal(size=400)) + 0.3 * rng.normal(size=400)
    y[:, 1] = np.abs(y[:, 0]) + 0.3 * rng.normal(size=400)
    for pair in (x, y):
        assert abs(np.corrcoef(pair.T)[0, 1]) < 0.2
    assert energy_test(x, y, seed=1).p_value <= 0.01


def test_equal_rows_are_equal():
    same = np.ones((20, 2))
    found = energy_test(same, same, seed=1)
    assert (found.coefficient, found.p_value) == (0.0, 1.0)


def test_a_single_row_is_refused():
    with pytest.raises(ValueError, match="2 of each"):
        energy_test(np.ones((1, 2)), np.ones((5, 2)), seed=1)


def test_scores_are_ranks_values_are_opposite_and_missing_is_in_the_middle():
    columns = [JointColumn("a"), JointColumn("c", "x")]
    scores = scores_of(columns, {"a": [1.0, 5.0, 1e9, None], "c": ["x", "y", None, "x"]})
    assert scores[:, 0] == pytest.approx([-2 / 3, 0, 2 / 3, 0])
    assert scores[:, 1].tolist() == [1, -1, 0, 1]
