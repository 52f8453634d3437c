"""From labelled reference rows by score bin to the share of hits that each score promises.

Notation (b over the BINS bins of `scorebins`)
    hit       label is the positive class (binary), answer is right (multiclass)
    N_b, y_b  labelled reference rows in the bin, and the hits among them
    k         blocks of the isotonic fit (PAV; Ayer et al. 1955), N_k rows with share g_k
    w_bk      weight of block k in bin b: 1 inside a block, shared between neighbours for an empty bin
    g_b       sum_k w_bk g_k, kept within [1e-4, 1 - 1e-4]
    v_k       p (1 - p) / N_k with p = (y_k + 1/2)/(N_k + 1): variance of g_k
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.optimize import isotonic_regression

from trimtab.stats.score_figures import auc
from trimtab.stats.scorebins import BINS

LEAST_LABELS = 500
"""Fewer labelled reference rows calibrate nothing: the interval would be wider than the figure is worth."""
LEAST_OF_BOTH = 20
"""Hits and misses that a reference needs at least."""
LEAST_NEAR = 30
_NEAR_BINS = 2
"""A bin is supported by LEAST_NEAR reference labels in it and so many bins on either side. The labels of the bin
alone, as the specification has it, call 78 % of windows extrapolations that are like a reference of 5,000 labels,
and all like one of 2,000; these rules call none (drawn: `bench/label_free.py`). What few labels in a bin cost is in
the standard error; only bins that hardly any are near say that the score goes where it was never compared."""
_CLIP = 1e-4

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class LabelledScores(Struct, frozen=True):
    """Labelled reference rows by score bin: `hits` and `misses` of each of the BINS bins."""

    hits: tuple[int, ...]
    misses: tuple[int, ...]

    @property
    def labels(self) -> int:
        """Labelled rows."""
        return sum(self.hits) + sum(self.misses)

    @property
    def shortage(self) -> str | None:
        """Why this calibrates nothing; None when it does."""
        if self.labels < LEAST_LABELS:
            return f"the reference has {self.labels} labelled rows with a score, {LEAST_LABELS} are needed"
        least = min(sum(self.hits), sum(self.misses))
        if least < LEAST_OF_BOTH:
            return (
                f"of one outcome the reference has only {least} labelled rows, "
                f"{LEAST_OF_BOTH} are needed"
            )
        if auc(np.array(self.hits), np.array(self.misses)) < 0.5:
            return (
                "in the reference the score is lower where the answer is the positive class; "
                "check which class `score` is for"
            )
        return None


class Calibrator(Struct, frozen=True):
    """g_b with what its noise is made of; arrays of shape (BINS,), (k,), `weights` of (BINS, k)."""

    shares: Floats
    weights: Floats
    variances: Floats
    """v_k."""
    labels: Ints
    """N_b."""

    def unsupported(self, rows: Ints) -> float:
        """Return the share of rows, by bin, in bins that hardly any reference label fell near."""
        total = int(rows.sum())
        near = np.convolve(self.labels, np.ones(2 * _NEAR_BINS + 1, np.int64), "same")
        return float(rows[near < LEAST_NEAR].sum() / total) if total else 0.0

    def noise(self, influence: Floats) -> float:
        """Return the calibration noise of a figure; `influence` is sum n I of each bin."""
        return float(((influence @ self.weights) ** 2) @ self.variances)


@lru_cache(maxsize=256)  # one of each model and version, asked for at every window
def calibrator(reference: LabelledScores) -> Calibrator:
    """Fit the shares of hits by bin. The reference has labels (see `LabelledScores.shortage`)."""
    hits, misses = np.array(reference.hits), np.array(reference.misses)
    labels = hits + misses
    filled = np.flatnonzero(labels)
    fit = isotonic_regression(hits[filled] / labels[filled], weights=labels[filled])
    block_of = np.repeat(np.arange(fit.blocks.size - 1), np.diff(fit.blocks))
    blocks = fit.blocks.size - 1
    k_hits = np.bincount(block_of, hits[filled], minlength=blocks)
    k_labels = np.bincount(block_of, labels[filled], minlength=blocks)
    weights = np.zeros((BINS, blocks))
    right = np.searchsorted(filled, np.arange(BINS)).clip(max=filled.size - 1)
    left = np.where(filled[right] > np.arange(BINS), right - 1, right).clip(min=0)
    gap = filled[right] - filled[left]
    share = np.where(gap > 0, (np.arange(BINS) - filled[left]) / np.maximum(gap, 1), 1.0)
    np.add.at(weights, (np.arange(BINS), block_of[left]), 1 - share)
    np.add.at(weights, (np.arange(BINS), block_of[right]), share)
    smoothed = (k_hits + 0.5) / (k_labels + 1)
    return Calibrator(
        shares=np.clip(weights @ (k_hits / k_labels), _CLIP, 1 - _CLIP),
        weights=weights,
        variances=smoothed * (1 - smoothed) / k_labels,
        labels=labels,
    )


def contrasts(fitted: Calibrator) -> tuple[Floats, Floats]:
    """Return 1 and the bin's place among the reference rows (mean 0, variance 1 there); shape (BINS,) each."""
    weights = fitted.labels / fitted.labels.sum()
    place = np.cumsum(weights) - weights / 2
    centred = place - weights @ place
    spread = float(np.sqrt(weights @ centred**2))
    return np.ones(BINS), centred / spread if spread else 0 * centred
