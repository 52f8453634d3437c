"""Do later labels still fit a calibrator? A mixture of e-detectors on the residuals of scores.

Notation as in `score_calibration` and, of segments, `label_gaps`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import UNSET, Struct, UnsetType

from trimtab.detect.label_gaps import NONE_EXPECTED, Expected
from trimtab.detect.score_calibration import Calibrator, Floats, LabelledScores, contrasts
from trimtab.stats.scorebins import BINS

FALSE_INVALID_WINDOWS = 1_000
"""A calibrator that still holds is called invalid at most once in so many windows, on average."""
TOLERATED = 0.01
"""Mean residual (a share of the labels) that is let pass."""
_CALIBRATION_SE = 3.0
_TILTS = np.array([0.15, 0.5])
"""Steps in the log odds of a hit, per unit of contrast, that the residual check bets on."""
_CONTRAST_WEIGHTS = (0.75, 0.25)
_SEGMENTS_WEIGHT = 0.2
"""Of all segments together, where there are some."""


class LabelledWindow(Struct, frozen=True):
    """Labelled rows of one window by score bin, as in LabelledScores."""

    start_ms: int
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    segments: Mapping[str, LabelledScores] = {}


class SegmentResidual(Struct, frozen=True):
    """`residual` is the mean of (hit - p_sb) over the segment's `labels` rows (see `label_gaps`)."""

    segment: str
    labels: int
    residual: float


class ResidualCheck(Struct, frozen=True):
    """Whether labels of recent windows fit the calibrator.

    `residual` is the mean of (hit - g_b) over `labels` rows, `z` that over its standard error;
    `evidence` the value of the mixture e-detector, `invalid` whether it has reached
    FALSE_INVALID_WINDOWS.
    """

    labels: int
    windows: int
    residual: float
    z: float
    evidence: float
    invalid: bool
    segment: SegmentResidual | UnsetType = UNSET
    """Where it is a segment that makes it invalid: the one with most evidence."""


NOT_CHECKED = ResidualCheck(0, 0, 0.0, 0.0, 0.0, invalid=False)
_LOG_MOST = 700.0
"""Beyond it the evidence is no float64."""


def residual_check(
    fitted: Calibrator,
    windows: Sequence[LabelledWindow],
    expected: Mapping[str, Expected] = NONE_EXPECTED,
) -> ResidualCheck:
    """Test windows, oldest first, against the calibrator: a mixture of Shiryaev-Roberts e-detectors.

    Residuals hit - g_b are weighed by two contrasts h: 1, and the bin's place among the reference rows
    (mean 0, variance 1 there). For each sign and step t of the log odds a window's m labels give

        e = exp(t sum h (hit - g) - |t| delta m - sum psi(t h, g)),  psi(a, g) = log E exp(a (hit - g))

    whose mean is at most 1 while |E sum h (hit - g)| <= delta m (psi is that of g itself; a difference of
    delta changes it in second order). delta = max(TOLERATED, 3 standard errors of the calibrator under
    this window's bins), for a reference is a sample, too. M = (1 + M) e over the windows, averaged over
    contrasts (3/4 for the first), signs and steps (Shin, Ramdas & Rinaldo 2023): a calibrator that holds reaches A on average
    not before A windows, however often it is looked at.

    Labels of the segments in `expected` are compared with what those of the reference were in the segment (h = 1,
    p_sb in the place of g_b, delta from the uncertainty of theta), since a change in one of them is diluted
    in the whole: a fifth of the average.
    """
    if not windows:
        return NOT_CHECKED
    hits = np.array([window.hits for window in windows], np.float64)
    labels = hits + np.array([window.misses for window in windows])
    g = fitted.shares
    residuals = hits - labels * g
    weighed_by = contrasts(fitted)
    logs = []
    for h in weighed_by:
        noise = ((labels * h) @ fitted.weights) ** 2 @ fitted.variances
        logs.append(_log_e(hits, labels, g, h, noise))
    weights = list(_CONTRAST_WEIGHTS)
    of_segments = {name: _counts_of(windows, name) for name in expected}
    for name, known in expected.items():
        w = of_segments[name][1] @ known.directions.T
        noise = ((w @ known.uncertainty) * w).sum(axis=1)
        logs.append(_log_e(*of_segments[name], known.shares, np.ones(BINS), noise))
    if expected:
        weights = [x * (1 - _SEGMENTS_WEIGHT) for x in weights]
        weights += [_SEGMENTS_WEIGHT / len(expected)] * len(expected)
    log_m = np.full((len(logs), 2 * _TILTS.size), -np.inf)
    for step in np.stack(logs, axis=1):
        log_m = np.logaddexp(0.0, log_m) + step
    by_contrast = np.logaddexp.reduce(log_m, axis=1) + np.log(weights) - np.log(2 * _TILTS.size)
    log_evidence = float(np.logaddexp.reduce(by_contrast))
    invalid = log_evidence >= float(np.log(FALSE_INVALID_WINDOWS))
    strongest = int(by_contrast.argmax()) - len(weighed_by)
    segment: SegmentResidual | UnsetType = UNSET
    if invalid and strongest >= 0:
        name = list(expected)[strongest]
        y, n = of_segments[name]
        rows, off = int(n.sum()), float((y - n * expected[name].shares).sum())
        segment = SegmentResidual(name, rows, off / rows)
    count, pooled = int(labels.sum()), labels.sum(axis=0)
    variance = float(pooled @ (g * (1 - g))) + fitted.noise(pooled)
    total_residual = float(residuals.sum())
    return ResidualCheck(
        labels=count,
        windows=len(windows),
        residual=total_residual / count if count else 0.0,
        z=total_residual / variance**0.5 if variance else 0.0,
        evidence=float(np.exp(min(log_evidence, _LOG_MOST))),
        invalid=invalid,
        segment=segment,
    )


def _counts_of(windows: Sequence[LabelledWindow], segment: str) -> tuple[Floats, Floats]:
    """Return hits and labels of a segment, shape (windows, BINS) each."""
    nothing = LabelledScores((0,) * BINS, (0,) * BINS)
    found = [window.segments.get(segment, nothing) for window in windows]
    hits = np.array([one.hits for one in found], np.float64)
    return hits, hits + np.array([one.misses for one in found])


def _log_e(hits: Floats, labels: Floats, g: Floats, h: Floats, noise: Floats) -> Floats:
    """Return log e of each window and signed step, shape (windows, 2 x steps); `noise` is a variance per window."""
    tilts = np.concatenate((_TILTS, -_TILTS))
    tolerated = np.maximum(TOLERATED * labels.sum(axis=1), _CALIBRATION_SE * np.sqrt(noise))
    a = tilts[:, None] * h
    psi = np.log(g * np.exp(a * (1 - g)) + (1 - g) * np.exp(-a * g))
    total = ((hits - labels * g) @ h)[:, None] * tilts - tolerated[:, None] * np.abs(tilts)
    return np.asarray(total - labels @ psi.T, np.float64)
