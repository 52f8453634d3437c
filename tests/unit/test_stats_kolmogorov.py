"""P values of Kolmogorov-Smirnov: SciPy's, at every border between two formulas and for many rows."""

import warnings

import numpy as np
import pytest
from scipy.special import kolmogorov
from scipy.stats import kstwo

from trimtab.stats.kolmogorov import FEW, kolmogorov_sf


@pytest.mark.parametrize("n", [1, 2, 3, 7, 139, 140, 141, 200, FEW, FEW + 1, 1_000, 20_000])
def test_p_values_are_scipys_over_the_whole_range(n):
    squares = np.concatenate([np.linspace(1e-4, 2.3, 80), np.linspace(2.3, 250, 40)])
    d = np.sqrt(squares / n)
    d = np.concatenate([d[d < 1], np.linspace(0.0, 1.0, 21)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kolmogorov_sf(d, np.full(d.size, float(n)))
    assert found.tolist() == pytest.approx(kstwo.sf(d, n).tolist(), rel=1e-11, abs=1e-100)


def test_p_values_of_millions_of_rows_are_those_of_the_limit():
    z = np.linspace(0.3, 6.0, 60)
    n = np.full(z.size, 1e12)
    assert kolmogorov_sf(z / 1e6, n).tolist() == pytest.approx(kolmogorov(z).tolist(), rel=1e-4)


def test_p_falls_as_the_distance_grows_across_the_borders():
    for n in (140, 141, 400, 401, 5_000, 100_000, 100_001, 10_000_000):
        d = np.sqrt(np.linspace(0.01, 30, 3_000) / n)
        assert (np.diff(kolmogorov_sf(d, np.full(d.size, float(n)))) <= 1e-12).all()


def test_of_no_rows_nothing_is_told():
    assert kolmogorov_sf(np.array([1.0, 0.3]), np.zeros(2)).tolist() == [1.0, 1.0]
