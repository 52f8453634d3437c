"""How far the reference's segments were from what their scores promised: what a change of the mix may cost.

A calibrator holds for the reference's mix of rows. Where a model treats segments unevenly, a window with
another mix has another P(label | score), though in no segment anything has changed. How much that can be is
seen in the reference: in each segment the promise is bent to fit (Cox 1958),

    logit p_sb = logit g_b + a_s + c_s u_b,    theta_s = (a_s, c_s)

with u the place of bin b among the reference rows (mean 0, variance 1 there). It is fitted to the segment's
labelled rows n_b with hits y_b by maximum likelihood under theta ~ N(0, 1), which keeps apart what few rows
say nothing of. Were all rows of the window of segment s, a figure f would be off by

    e_s = f(p_s) - f(g),    variance s² = w' V w,  w = sum_b W_b p (1 - p) h_b,  h_b = (1, u_b)
    W_b its influences at p_s (sum over answers of n I, see `label_free`)
    V = H⁻¹ F H⁻¹, F = sum_b n_b p (1 - p) h_b h_b', H = F + 1

and the widening is max over s of sqrt(e_s² - z² s²), z the normal quantile of ALPHA over all k segments: what
exceeds sampling error. A reference whose segments have none widens something at most once in twenty.
"""

import math
from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from scipy.special import expit, log_expit, logit

from trimtab.detect.score_calibration import Calibrator, Floats, LabelledScores, contrasts
from trimtab.stats.intervals import ALPHA, normal_quantile

LEAST_OF_SEGMENT = 100
"""Labelled reference rows of a segment, fewer say nothing of it."""
MOST_KEPT = 8
"""Segments that a verdict's evidence keeps: those with the surest gap."""
MOST_CHECKED = 8
"""Segments whose later labels are compared with the reference's: those with most labels."""
_STEPS = 20
_CLOSE = 1e-9
_NEARLY_0 = 1e-9
DIGITS = 6


class SegmentGap(Struct, frozen=True):
    """One segment, `column=value`: its labelled reference rows, theta and V (variances of a, c; covariance)."""

    segment: str
    labels: int
    theta: tuple[float, float]
    variance: tuple[float, float, float]


class Gaps(Struct, frozen=True):
    """The reference's segments beside its calibrator. `reason` says why none could be looked at."""

    segments: int = 0
    """Looked at: those with LEAST_OF_SEGMENT labels."""
    largest: tuple[SegmentGap, ...] = ()
    """Of these, those whose gap exceeds sampling error for some figure at all."""
    reason: str = ""


class Widening(Struct, frozen=True):
    """What is added to either side of a figure's interval, and the segment that it was seen in."""

    by: float = 0.0
    segment: str = ""


class Expected(Struct, frozen=True):
    """What the reference says of a segment, whether or not that exceeds chance."""

    shares: Floats
    """p_sb, shape (BINS,)."""
    directions: Floats
    """p (1 - p) h_b, shape (2, BINS): what p_sb changes by with theta."""
    uncertainty: Floats
    """H⁻¹, shape (2, 2): V and what few rows leave open."""


NONE_EXPECTED: Mapping[str, Expected] = {}


def gaps_of(fitted: Calibrator, segments: Mapping[str, LabelledScores]) -> Gaps:
    """Return the gaps of the reference's segments, by name."""
    enough = {name: one for name, one in segments.items() if one.labels >= LEAST_OF_SEGMENT}
    if not enough:
        return Gaps(
            reason=f"no segment has {LEAST_OF_SEGMENT} labelled rows with a score in the reference"
        )
    limit = _limit(len(enough)) ** 2
    found = []
    for name, one in sorted(enough.items()):
        theta, information = _fit(fitted, np.array(one.hits), np.array(one.misses))
        inverse = np.linalg.inv(information + np.eye(2))
        v = inverse @ information @ inverse
        # V has rank 1 where all rows of the segment are of one bin; theta lies in its range then.
        surest = float(theta @ np.linalg.solve(v + _NEARLY_0 * np.eye(2), theta))
        if surest > limit:  # the most that e² / s² can be, whatever the figure
            a, c = (round(float(x), DIGITS) for x in theta)
            va, vc, vac = (round(float(x), 2 * DIGITS) for x in (v[0, 0], v[1, 1], v[0, 1]))
            found.append((-surest, SegmentGap(name, one.labels, (a, c), (va, vc, vac))))
    found.sort(key=lambda pair: (pair[0], pair[1].segment))
    return Gaps(len(enough), tuple(gap for _, gap in found[:MOST_KEPT]))


class Bent(Struct, frozen=True):
    """The shares of hits in a segment, p_sb, shape (BINS,), with what makes V of theta a variance of a figure."""

    segment: str
    shares: Floats
    directions: Floats
    """p (1 - p) h_b, shape (2, BINS): what p_sb changes by with theta."""
    variance: Floats
    """V, shape (2, 2)."""

    def excess(self, error: float, influence: Floats, segments: int) -> float:
        """Return what `error` exceeds its sampling error by; `influence` is W at p_s, one of `segments` looked at."""
        w = self.directions @ influence
        noise = _limit(segments) ** 2 * float(w @ self.variance @ w)
        return math.sqrt(max(0.0, error**2 - noise))


def bent(fitted: Calibrator, gaps: Gaps) -> tuple[Bent, ...]:
    """Return what the scores mean in each segment that has a gap."""
    h = np.stack(contrasts(fitted)) if gaps.largest else np.zeros((2, 0))
    found = []
    for gap in gaps.largest:
        p = _bent(fitted.shares, np.array(gap.theta) @ h)
        va, vc, vac = gap.variance
        v = np.array([[va, vac], [vac, vc]])
        found.append(Bent(gap.segment, p, h * (p * (1 - p)), v))
    return tuple(found)


def expected_of(fitted: Calibrator, segments: Mapping[str, LabelledScores]) -> dict[str, Expected]:
    """Return what later labels of the reference's segments should be like; of those with most labels."""
    enough = [name for name, one in segments.items() if one.labels >= LEAST_OF_SEGMENT]
    most = sorted(enough, key=lambda name: (-segments[name].labels, name))[:MOST_CHECKED]
    h, found = np.stack(contrasts(fitted)), {}
    for name in sorted(most):
        one = segments[name]
        theta, information = _fit(fitted, np.array(one.hits), np.array(one.misses))
        p = _bent(fitted.shares, theta @ h)
        uncertainty = np.asarray(np.linalg.inv(information + np.eye(2)), np.float64)
        found[name] = Expected(p, h * (p * (1 - p)), uncertainty)
    return found


def _limit(segments: int) -> float:
    return normal_quantile(ALPHA / max(segments, 1))


def _bent(g: Floats, shift: Floats) -> Floats:
    return np.asarray(expit(logit(g) + shift), np.float64)


def _fit(fitted: Calibrator, hits: Floats, misses: Floats) -> tuple[Floats, Floats]:
    """Return theta, shape (2,), and F, shape (2, 2): Newton's steps, halved while they do not climb.

    A whole step goes astray where the segment's share is many times the scores'.
    """
    h, labels = np.stack(contrasts(fitted)), hits + misses
    odds = logit(fitted.shares)

    def height(theta: Floats) -> float:
        shift = odds + theta @ h
        return float(hits @ log_expit(shift) + misses @ log_expit(-shift) - theta @ theta / 2)

    theta, one = np.zeros(2), np.eye(2)
    for _ in range(_STEPS):
        p = _bent(fitted.shares, theta @ h)
        information = (h * (labels * p * (1 - p))) @ h.T
        step = np.linalg.solve(information + one, h @ (hits - labels * p) - theta)
        reached = height(theta)
        while height(theta + step) < reached and np.abs(step).max() >= _CLOSE:
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < _CLOSE:
            break
    p = _bent(fitted.shares, theta @ h)
    return theta, (h * (labels * p * (1 - p))) @ h.T
