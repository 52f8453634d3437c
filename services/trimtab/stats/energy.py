"""Whether two samples of rows come from one joint distribution, whatever the change: the energy test.

Notation
    x, y    rows of both samples, shape (n, q) and (m, q); pooled N = n + m
    E       2 mean |x - y| - mean |x - x'| - mean |y - y'|, 0 when the distributions are equal and positive
            otherwise (Székely & Rizzo 2004)
    H       E / (2 mean |x - y|), from 0 to 1 (Székely & Rizzo 2013)
The p-value comes from relabelling the pooled rows at random, 199 times: (1 + relabellings with E as large) / 200
(Davison & Hinkley 1997). It holds for rows that are exchangeable when nothing has changed; rows of one hour are
often not those of another, so it describes, and alarms nothing.
"""

import numpy as np
from msgspec import Struct
from scipy.spatial.distance import pdist, squareform

from trimtab.stats.cuts import Floats
from trimtab.stats.joint import JointColumn, column_scores

PERMUTATIONS = 199


class EnergyTest(Struct, frozen=True, kw_only=True):
    """What the two samples say."""

    coefficient: float
    """H."""
    p_value: float
    permutations: int


def scores_of(columns: list[JointColumn], pooled: dict[str, list[object]]) -> Floats:
    """Return pooled rows as numbers between -1 and 1, shape (N, q): mid-ranks; 1 or -1 for a value or another.

    A missing value is in the middle, 0. Ranks make units and far values matter alike in every column.
    """
    scaled = []
    for column in columns:
        scores = column_scores(column, pooled[column.feature])
        if column.value is not None:
            scores = 2 * scores - 1
        else:
            scores = scores / max(int(np.count_nonzero(~np.isnan(scores))), 1)
        scaled.append(np.nan_to_num(scores))
    return np.column_stack(scaled)


def energy_test(x: Floats, y: Floats, seed: int, permutations: int = PERMUTATIONS) -> EnergyTest:
    """Compare two samples, shape (n, q) and (m, q). Raises ValueError for fewer than 2 rows of either."""
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"{n} and {m} rows; the energy test needs 2 of each at least.")
    distance = squareform(pdist(np.vstack([x, y])))
    rng = np.random.default_rng(seed)
    first = np.zeros((n + m, permutations + 1))
    first[:n, 0] = 1
    for k in range(1, permutations + 1):
        first[rng.permutation(n + m)[:n], k] = 1
    total = distance.sum()
    within_x = (first * (distance @ first)).sum(0)
    between = (distance.sum(0) @ first) - within_x
    within_y = total - 2 * between - within_x
    cross = between / (n * m)
    energy = 2 * cross - within_x / n**2 - within_y / m**2
    # Relabellings that give the samples themselves back differ by rounding alone.
    as_large = int((energy[1:] >= energy[0] * (1 - 1e-9)).sum())
    coefficient = float(energy[0] / (2 * cross[0])) if cross[0] > 0 else 0.0
    return EnergyTest(
        coefficient=min(max(coefficient, 0.0), 1.0),
        p_value=(1 + as_large) / (permutations + 1),
        permutations=permutations,
    )
