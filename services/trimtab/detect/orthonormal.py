"""Contrasts of bin counts: columns of a matrix H with mean 0 and variance 1 under a baseline's bin shares.

Notation
    p[b]    share of bin b in the baseline, over a source's ordinary bins
    u[b]    cumsum(p)[b] - p[b] / 2, the middle of bin b on the scale of ranks
    H[b,k]  contrast k: E_p[h] = 0, Var_p[h] = 1
A number has up to 4 smooth contrasts, the orthogonal polynomials of 2u - 1 under p (Neyman 1937: location,
spread, skew, tails; a mean of .05 of the first is about .051 standard deviations of a shifted Gaussian), and
8 standardised indicators of the octiles (local spikes, default values). A category has the standardised
indicator of each value with p > .001, and one of the others together.

What may only rise (`rising_contrasts`: latencies, gauges) has the location, and indicators of the values above
the baseline's quantiles: all of them grow with the value, so that their means rise where the distribution
moves up (stochastic order), and no fall is taken for a rise.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SMOOTH_LABELS = ("location", "spread", "skew", "tails")
SMOOTH = len(SMOOTH_LABELS)
OCTILES = 8
LEAST_SHARE = 0.001
"""A category below this share of the baseline has no contrast of its own."""
SMOOTH_WEIGHT, LOCAL_WEIGHT, RATE_WEIGHT = 0.5, 0.25, 0.25
CATEGORY_WEIGHT = 0.75
RISING_LEVELS = (0.95, 0.99)
"""Quantiles of the baseline above which values of a rising source are counted."""
RISING_LOCATION_WEIGHT = 0.3
MOST_LARGEST = 0.9
"""Where one bin holds more of the baseline than this, the location is too skewed to be followed."""

Columns = tuple[Floats, tuple[str, ...], tuple[float, ...]]
"""H, shape (B, K), with the label and weight of each contrast."""


def numeric_contrasts(counts: Floats) -> Columns:
    """Return H, labels and weights for the bin counts of a number in the baseline, shape (B,)."""
    total = counts.sum()
    filled = int(np.count_nonzero(counts))
    if filled < 2:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / total
    u = np.cumsum(p) - p / 2
    smooth = _polynomials(p, 2 * u - 1, min(SMOOTH, filled - 1))
    groups = min(OCTILES, filled)
    group = np.minimum((u * groups).astype(np.int64), groups - 1)
    local = [_indicator(p, group == g) for g in range(groups)]
    labels = [f"octile {g + 1} of {groups}" for g in range(groups) if local[g] is not None]
    columns = [column for column in local if column is not None]
    names = SMOOTH_LABELS[: smooth.shape[1]]
    weights = [SMOOTH_WEIGHT / len(names)] * len(names)
    weights += [LOCAL_WEIGHT / max(len(columns), 1)] * len(columns)
    return np.column_stack([smooth, *columns]), (*names, *labels), tuple(weights)


def smooth_contrasts(counts: Floats, degree: int) -> Columns:
    """Return the first smooth contrasts alone: location, spread. They share the weight of all contrasts."""
    filled = int(np.count_nonzero(counts))
    if filled < 2:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / counts.sum()
    matrix = _polynomials(p, 2 * (np.cumsum(p) - p / 2) - 1, min(degree, filled - 1))
    names = SMOOTH_LABELS[: matrix.shape[1]]
    return matrix, names, (CATEGORY_WEIGHT / len(names),) * len(names)


def category_contrasts(
    counts: Floats,
    categories: Sequence[str],
    least_share: float = LEAST_SHARE,
    *,
    with_rare: bool = True,
) -> Columns:
    """Return H, labels and weights for the counts of categories in the baseline, shape (B,).

    Those up to `least_share` have one contrast together, or none.
    """
    total = counts.sum()
    if not total:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / total
    common = p > least_share
    columns = [
        (f"category {categories[b]}", _indicator(p, np.arange(p.size) == b))
        for b in np.flatnonzero(common).tolist()
    ]
    if with_rare and np.count_nonzero(~common):
        rest = _indicator(p, ~common) if p[~common].sum() > least_share else None
        columns.append(("rare categories", rest))
    kept = [(label, column) for label, column in columns if column is not None]
    matrix = np.column_stack([c for _, c in kept]) if kept else np.zeros((counts.size, 0))
    weight = CATEGORY_WEIGHT / max(len(kept), 1)
    return matrix, tuple(label for label, _ in kept), (weight,) * len(kept)


def rising_contrasts(counts: Floats) -> Columns:
    """Return H, labels and weights of contrasts that only a rise of the values moves up, shape (B,).

    First the location, unless one bin holds most of the baseline, which makes its mean too skewed to be followed.
    Then indicators, 0 or 1, of the values above quantiles of the baseline: their means are shares, to be read as
    angles (`angle`). A value that the baseline never left has a contrast, too: all that is above it.
    Weights sum to .75.
    """
    total = counts.sum()
    if not total:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / total
    above = 1 - np.cumsum(p)
    columns: list[tuple[str, Floats]] = []
    if p.max() <= MOST_LARGEST:
        columns.append(("location", _polynomials(p, 2 * (np.cumsum(p) - p / 2) - 1, 1)[:, 0]))
    edges: set[int] = set()
    for level in RISING_LEVELS:
        edge = int(np.flatnonzero(above <= 1 - level + 1e-12)[0])
        if edge not in edges and edge < counts.size - 1:
            edges.add(edge)
            inside = np.arange(counts.size) > edge
            columns.append((f"above p{100 * level:g}", inside.astype(np.float64)))
    weights = _rising_weights([label for label, _ in columns])
    matrix = np.column_stack([c for _, c in columns]) if columns else np.zeros((counts.size, 0))
    return matrix, tuple(label for label, _ in columns), weights


def angle(share: Floats, n: float) -> Floats:
    """Return shares of n rows as angles, whose variance is about 1/n whatever the share.

    2 arcsin sqrt((n share + 3/8) / (n + 3/4)) (Anscombe 1948); a difference of angles is Cohen's h (1988). So a
    share that the hour of day makes larger is not also noisier, and one stray value is not many deviations.
    """
    return np.asarray(2 * np.arcsin(np.sqrt((n * share + 0.375) / (n + 0.75))), dtype=np.float64)


def _rising_weights(labels: Sequence[str]) -> tuple[float, ...]:
    tails = sum(label != "location" for label in labels)
    has_location = tails < len(labels)
    location = (RISING_LOCATION_WEIGHT if tails else CATEGORY_WEIGHT) if has_location else 0.0
    each = (CATEGORY_WEIGHT - location) / max(tails, 1)
    return tuple(location if label == "location" else each for label in labels)


def _polynomials(p: Floats, at: Floats, degree: int) -> Floats:
    """Orthonormal polynomials 1 .. degree of `at` under the weights p (Gram-Schmidt, done twice)."""
    basis = [np.ones_like(p)]
    for power in range(1, degree + 1):
        column = at**power
        for _ in range(2):
            for known in basis:
                column = column - (p * column * known).sum() * known
        basis.append(column / np.sqrt((p * column * column).sum()))
    return np.column_stack(basis[1:]) if degree else np.zeros((p.size, 0))


def _indicator(p: Floats, inside: npt.NDArray[np.bool_]) -> Floats | None:
    """The standardised indicator of some bins; None where it is constant under p."""
    share = float(p[inside].sum())
    if not 0 < share < 1:
        return None
    return np.asarray((inside - share) / math.sqrt(share * (1 - share)), dtype=np.float64)
