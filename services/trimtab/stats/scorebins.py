"""Bins of a classifier's score: K uniform ones between 0 and 1, the same for every model.

They need no cuts, so counts over them merge whatever the cuts were, and a label that joins weeks later
finds the bin of its prediction in one byte. A score is the probability of the positive class (binary) or
of the likeliest class (multiclass); what is no number between 0 and 1 has no bin.

    bin b   b/K <= score < (b+1)/K, the last one with its end; computed as floor(score K) in float64
    middle  (b + 1/2)/K, what stands for the scores of a bin: wrong by at most 1/(2K) = 0.005
"""

import numpy as np
import numpy.typing as npt

BINS = 100
NO_SCORE = -1
"""Bin of a row without a score."""

Bins = npt.NDArray[np.int8]

MIDDLES: npt.NDArray[np.float64] = (np.arange(BINS) + 0.5) / BINS
MIDDLES.flags.writeable = False


def score_bins(scores: npt.ArrayLike) -> Bins:
    """Return the bin of each score, NO_SCORE where there is none; shape (n,)."""
    values = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore"):
        scaled = values * BINS
    np.minimum(scaled, BINS - 1, out=scaled)
    scaled[~((values >= 0.0) & (values <= 1.0))] = NO_SCORE  # NaN, too
    return scaled.astype(np.int8)
