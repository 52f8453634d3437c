"""Bins of a classifier's score: K uniform ones between 0 and 1, the same for every model.

They need no cuts, so counts over them merge whatever the cuts were, and a label that joins weeks later
finds the bin of its prediction in one byte. A score is the probability of the positive class (binary) or
of the likeliest class (multiclass); what is no number between 0 and 1 has no bin.

    bin b   b/K <= score < (b+1)/K, the last one with its end; computed as floor(score K + 1e-9) in
            float64, so that a score written 0.29 is in bin 29 although 0.29 * 100 is a little less
    middle  (b + 1/2)/K, what stands for the scores of a bin: wrong by at most 1/(2K) = 0.005
"""

import numpy as np
import numpy.typing as npt

BINS = 100
_ROUNDING = 1e-9
NO_SCORE = -1
"""Bin of a row without a score."""

Bins = npt.NDArray[np.int8]

MIDDLES: npt.NDArray[np.float64] = (np.arange(BINS) + 0.5) / BINS
MIDDLES.flags.writeable = False


def score_bins(scores: npt.ArrayLike) -> Bins:
    """Return the bin of each score, NO_SCORE where there is none; shape (n,)."""
    values = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore"):
        scaled = values * BINS + _ROUNDING
    np.minimum(scaled, BINS - 1, out=scaled)
    scaled[~((values >= 0.0) & (values <= 1.0))] = NO_SCORE  # NaN, too
    return scaled.astype(np.int8)
