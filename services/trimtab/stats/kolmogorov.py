"""Two-sided p values of Kolmogorov-Smirnov for many statistics at once: `scipy.stats.kstwo.sf`, in arrays.

SciPy takes one value after another: 0.2 ms each near "no change", and beyond it a sum over all n rows, 8 ms
at 5,000 and 1.3 s at a million, so that a window which has drifted would take longest. Here a value costs
at most FEW terms, whatever n is.

Notation
    n, d   rows behind the statistic, and the statistic; z = sqrt(n) d
    u      place in the distribution, from 0 to 1 - d
    b      binomial probability of j among n
Which formula holds where is Simard and L'Ecuyer (2011), as in SciPy; what they compute exactly for few
rows or the least of distances is left to SciPy. Agreement, measured: 11 digits wherever p > 1e-100.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy
from scipy.stats import kstwo

Floats = npt.NDArray[np.float64]

FEW = 400
"""Up to it Smirnov's sum is taken as it is; beyond, at POINTS places."""
POINTS = 128

_SMALL, _SMALL_TAIL, _TAIL, _NOTHING = 140, 4.0, 2.2, 370.0
_EXACT_ROWS, _EXACT_REACH = 100_000, 1.4
_LEAST = 0.042**2
"""Below this z², P(D <= d) is less than any float."""
_TERMS = np.arange(1.0, 9.0)[:, None]
"""Of the theta series; the next is below 1e-100 while z² < _TAIL."""
_STIRLING = (1 / 12, -1 / 360, 1 / 1_260, -1 / 1_680, 1 / 1_188)


def kolmogorov_sf(d: Floats, n: Floats) -> Floats:
    """Return P(D_n > d), shape (k,), of `d` and whole numbers `n`, each shape (k,).

    1 where n is 0: nothing was seen.
    """
    p = np.ones(d.shape)
    z2 = n * d * d
    inside = (n * d > 1) & (d < 1)
    tail = inside & ((z2 >= np.where(n > _SMALL, _TAIL, _SMALL_TAIL)) | (d >= 0.5))
    exact = (n <= _SMALL) | ((n <= _EXACT_ROWS) & (n * d**1.5 <= _EXACT_REACH))
    series = inside & ~tail & ~exact & (z2 > _LEAST)
    sure = ~inside & ((d >= 1) | (n > _EXACT_ROWS)) | (inside & ~tail & ~exact & ~series)
    nothing = tail & (n > _SMALL) & (z2 >= _NOTHING)
    p[nothing | ((d >= 1) & (n > 0))] = 0.0
    for chosen, formula in (
        (tail & ~nothing & (n <= FEW), _sum),
        (tail & ~nothing & (n > FEW), _integral),
        (series, _series),
        (~(tail | series | sure) & (n > 0), kstwo.sf),
    ):
        if chosen.any():
            p[chosen] = formula(d[chosen], n[chosen])
    return np.clip(p, 0.0, 1.0)


def _sum(d: Floats, n: Floats) -> Floats:
    """Twice Smirnov's one-sided P(D+ > d): both sides at once is rarer than it matters (Miller 1956).

    The sum over j of d / (d + u) b(j; n, d + u), u = j / n <= 1 - d.
    """
    x, rows, j = d[:, None], n[:, None], np.arange(FEW + 1.0)
    place = x + j / rows
    used = place < 1
    place, rest = np.where(used, place, 0.5), np.where(used, rows - j, 0.0)
    log_b = gammaln(rows + 1) - gammaln(j + 1) - gammaln(rest + 1)
    log_b += xlogy(j, place) + xlog1py(rest, -place)
    terms = np.exp(np.where(used, log_b, -np.inf)) / place
    p: Floats = 2 * d * terms.sum(axis=1)
    return p


def _integral(d: Floats, n: Floats) -> Floats:
    """`_sum` for many rows.

    Its terms are a smooth function of u that ends, with its derivatives, in nothing on both sides. Of such
    a function every even spacing gives the same sum times the spacing, so POINTS places do for n. b comes
    from its deviance and Stirling's series (Loader 2000), which keeps the digits for any n.
    """
    x, rows = d[:, None], n[:, None]
    u = (1 - x) / POINTS * (np.arange(POINTS) + 0.5)
    deviance = -rows * (u * np.log1p(x / u) + (1 - u) * np.log1p(-x / (1 - u)))
    errors = _stirling(rows) - _stirling(rows * u) - _stirling(rows * (1 - u))
    b = np.exp(errors - deviance) / np.sqrt(2 * np.pi * rows * u * (1 - u))
    p: Floats = 2 * d * n * (1 - d) / POINTS * (b / (x + u)).sum(axis=1)
    return p


def _stirling(k: Floats) -> Floats:
    """Return ln k! - ln(sqrt(2 pi k) (k / e)^k); where k is below 3 the terms of it are nothing."""
    inverse = 1 / np.maximum(k, 1)
    square, total = inverse * inverse, np.zeros(k.shape)
    for coefficient in reversed(_STIRLING):
        total = total * square + coefficient
    return total * inverse


def _series(d: Floats, n: Floats) -> Floats:
    """1 - (K0(z) + K1(z)/sqrt(n) + K2(z)/n + K3(z)/n^1.5), Pelz and Good (1976)."""
    z2 = n * d * d
    z, z4, pi2 = np.sqrt(z2), z2**2, np.pi**2
    z6, z8 = z2 * z4, z4**2
    m = pi2 / 4 * (2 * _TERMS - 1) ** 2
    q = np.exp(-m / 2 / z2)
    k0 = q.sum(axis=0)
    k1 = ((m - z2) * q).sum(axis=0)
    k2 = ((6 * z6 + 2 * z4 + (2 * z4 - 5 * z2) * m + (1 - 2 * z2) * m**2) * q).sum(axis=0)
    k3 = -30 * z6 - 90 * z8 + (135 * z4 - 96 * z6) * m + (212 * z4 - 60 * z2) * m**2
    k3 = ((k3 + (5 - 30 * z2) * m**3) * q).sum(axis=0)
    whole = pi2 * _TERMS**2
    weights = whole * np.exp(-whole / 2 / z2)
    k2 = k2 / (72 * z4**2 / z) - weights.sum(axis=0) / (36 * z * z2)
    k3 = k3 / (6_480 * z8 * z2) + ((3 * z2 - whole) * weights).sum(axis=0) / (216 * z6)
    terms = k0 / z + k1 / (6 * z4 * np.sqrt(n)) + k2 / n + k3 / n**1.5
    p: Floats = 1 - np.sqrt(2 * np.pi) * terms
    return p
