"""Figures of scores against labels, from counts by score bin: ROC AUC, average precision, Brier, log loss, ECE.

Notation (b over the BINS bins of `scorebins`)
    P_b, Q_b  labelled rows in bin b that are positive (multiclass: answered right), and the others
    m_b       the bin's middle, taken for the score of each of its rows
    P, Q, n   their sums, n = P + Q
What binning changes, against the same figure of the scores themselves: rows of one bin count as ties, so
AUC is wrong by at most half the share of pairs (positive, negative) that share a bin; average precision
is a little too low (0.003 measured), since a bin enters as a whole; Brier is wrong by at most 0.01, and by about 1e-5 where scores spread evenly within bins; ECE by at most 0.005. Log loss is right
to a relative 1 % or so for scores between 0.05 and 0.95; beyond, it cannot tell 0.996 from 0.9999: a
wrong answer that was sure costs at most ln 200 = 5.3, a right one at least 0.005.
Intervals: of AUC the normal one of DeLong, DeLong & Clarke-Pearson (1988, eq. 4 and 5) with ties counted
half; of means the normal one. ECE is biased upwards by about sqrt(groups / n) / 2 and has none.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trimtab.stats.intervals import ALPHA, normal_mean, normal_quantile
from trimtab.stats.performance import Figure
from trimtab.stats.scorebins import BINS, MIDDLES

ECE_GROUPS = 10
"""Groups of equal width, as usual (Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017)."""
BINARY_FIGURES = ("auc", "average_precision", "brier", "log_loss", "ece")
MULTICLASS_FIGURES = ("ece",)
NO_SCORES = "no labelled row came with a score between 0 and 1"

Counts = npt.NDArray[np.int64]
Scored = Mapping[tuple[str, str, int], int]


def hits_and_misses(scored: Scored, positive: str | None) -> tuple[Counts, Counts]:
    """Return (P, Q), each shape (BINS,): by the label of the positive class, or (None) by answered right."""
    counts = np.zeros((2, BINS), np.int64)
    for (label, prediction, place), count in scored.items():
        hit = label == prediction if positive is None else label == positive
        counts[0 if hit else 1, place] += count
    return counts[0], counts[1]


def score_figures(
    scored: Scored,
    task: Literal["binary", "multiclass", "regression"],
    positive: str | None,
    alpha: float = ALPHA,
) -> dict[str, Figure]:
    """Return the figures of joined rows with a score (`PerformanceState.scored`); none when there are none.

    Binary models need `positive`, the class of the score. Of multiclass models the score is that of the
    likeliest class, so only its calibration (`ece`) can be said.
    """
    if not scored or task == "regression" or (task == "binary" and positive is None):
        return {}
    binary = task == "binary"
    p, q = hits_and_misses(scored, positive if binary else None)
    if min(p.min(), q.min()) < 0:
        reason = "a label was taken back before the row it belongs to arrived"
        names = BINARY_FIGURES if binary else MULTICLASS_FIGURES
        return {name: Figure(None, 0, reason=reason) for name in names}
    ece = Figure(expected_calibration_error(p, q), int(p.sum() + q.sum()))
    if not binary:
        return {"ece": ece}
    return {
        "auc": _auc(p, q, positive or "", alpha),
        "average_precision": _average_precision(p, q, positive or ""),
        "brier": _mean(p, q, (1 - MIDDLES) ** 2, MIDDLES**2, alpha),
        "log_loss": _mean(p, q, -np.log(MIDDLES), -np.log1p(-MIDDLES), alpha),
        "ece": ece,
    }


def auc(p: npt.NDArray[Any], q: npt.NDArray[Any]) -> float:
    """Return the ROC AUC of counts by bin, ties half; `p` and `q` have positive sums."""
    below = np.cumsum(q) - q
    return float((p * (below + q / 2)).sum() / (p.sum() * q.sum()))


def expected_calibration_error(p: Counts, q: Counts) -> float:
    """Return the mean distance of the positive share from the mean score over ECE_GROUPS groups."""
    gap = (p - (p + q) * MIDDLES).reshape(ECE_GROUPS, -1).sum(axis=1)
    return float(np.abs(gap).sum() / (p.sum() + q.sum()))


def _one_sided(p: Counts, positive: str) -> str:
    what = "was never the label" if p.sum() == 0 else "was always the label"
    return f"{positive!r} {what} of a row with a score"


def _auc(p: Counts, q: Counts, positive: str, alpha: float) -> Figure:
    positives, negatives = int(p.sum()), int(q.sum())
    n = positives + negatives
    if not positives or not negatives:
        return Figure(None, n, reason=_one_sided(p, positive))
    value = auc(p, q)
    if min(positives, negatives) < 2:
        return Figure(value, n)
    of_positive = (np.cumsum(q) - q / 2) / negatives  # share of negatives below, ties half
    of_negative = (positives - np.cumsum(p) + p / 2) / positives  # share of positives above
    variance = sum(
        float((counts * (placed - value) ** 2).sum()) / (size - 1) / size
        for counts, placed, size in ((p, of_positive, positives), (q, of_negative, negatives))
    )
    half = normal_quantile(alpha) * variance**0.5
    return Figure(value, n, max(0.0, value - half), min(1.0, value + half), "delong")


def _average_precision(p: Counts, q: Counts, positive: str) -> Figure:
    """Return sum_k (R_k - R_{k-1}) precision_k over the bins' lower ends as thresholds, from above."""
    n = int(p.sum() + q.sum())
    if not p.sum():
        return Figure(None, n, reason=_one_sided(p, positive))
    above, rows = np.cumsum(p[::-1]), np.cumsum((p + q)[::-1])
    precision = above / np.maximum(rows, 1)
    return Figure(float((p[::-1] * precision).sum() / p.sum()), n)


def _mean(
    p: Counts,
    q: Counts,
    of_positive: npt.NDArray[np.float64],
    of_negative: npt.NDArray[np.float64],
    alpha: float,
) -> Figure:
    n = int(p.sum() + q.sum())
    mean = float((p @ of_positive + q @ of_negative) / n)
    squares = float(p @ (of_positive - mean) ** 2 + q @ (of_negative - mean) ** 2)
    ends = normal_mean(n, mean, squares / (n - 1), alpha) if n > 1 else None
    if ends is None:
        return Figure(mean, n)
    return Figure(mean, n, max(0.0, ends[0]), ends[1], "normal")
