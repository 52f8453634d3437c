"""Intervals for proportions and means. All are two-sided with coverage 1 - alpha.

Notation
    k, n   successes and trials, integers, 0 <= k <= n
    alpha  total error probability, half in each tail
    z      standard normal quantile of 1 - alpha/2
"""

import math

from scipy.special import betaincinv, ndtri

ALPHA = 0.05


def _check(k: int, n: int, alpha: float) -> None:
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is no proportion; give 0 <= k <= n and n > 0.")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha} is no level; give one between 0 and 1.")


def normal_quantile(alpha: float) -> float:
    """Return z for a two-sided interval."""
    return float(ndtri(1.0 - alpha / 2.0))


def wilson(k: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson 1927). Raises ValueError on n = 0."""
    _check(k, n, alpha)
    z = normal_quantile(alpha)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At k = 0 and k = n the end is 0 or 1 exactly; rounding would leave 1e-17.
    low = 0.0 if k == 0 else max(0.0, centre - half)
    return low, 1.0 if k == n else min(1.0, centre + half)


def clopper_pearson(k: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper & Pearson 1934): never too short."""
    _check(k, n, alpha)
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha / 2))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha / 2))
    return low, high


def normal_mean(
    n: int, mean: float, variance: float, alpha: float = ALPHA
) -> tuple[float, float] | None:
    """Return mean ± z sqrt(variance / n); variance with ddof 1. None below two rows."""
    if n < 2:
        return None
    half = normal_quantile(alpha) * math.sqrt(max(0.0, variance) / n)
    return mean - half, mean + half
