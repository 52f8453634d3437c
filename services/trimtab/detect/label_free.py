"""Performance without labels: what the figures would be if P(label | score) had not changed (CBPE).

From counts by score bin alone (the specification's section D; Kivimäki et al. 2025 on what confidence-based
estimates guarantee). A calibrator learns the share g_b of hits in each bin from reference rows with labels;
the expected confusion matrix of later rows, whose labels are not known yet, follows from their bins.

Notation (b over the BINS bins of `scorebins`; N, y, k, w, g, v as in `score_calibration`)
    n_1b, n_0b  rows of the window answered positive and negative; n_b their sum
    I         influence: what one more hit in a bin (and answer) adds to the figure
Standard error of (estimate - figure with all labels) = sqrt(label noise + calibration noise):
    label noise        sum n g_b (1 - g_b) I², over bins and answers
    calibration noise  sum_k (sum_b w_bk n_b I_b)² v_k
Coverage of ± 1.96 of these, simulated: 93 to 97 % with no shift and under a shift of the inputs that the
score stays calibrated for. While an alarm on inputs or answers stands, the interval is wider by what the
reference's segments show (`label_gaps`). None is promised when P(label | score) changes, so `residual_check` looks.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from msgspec import UNSET, Struct, UnsetType

from trimtab.detect.label_gaps import Gaps, Widening, bent
from trimtab.detect.label_residuals import NOT_CHECKED, ResidualCheck, SegmentResidual
from trimtab.detect.score_calibration import (
    Calibrator,
    Floats,
    Ints,
    LabelledScores,
    calibrator,
)
from trimtab.stats.intervals import ALPHA, normal_quantile
from trimtab.stats.score_figures import auc
from trimtab.stats.scorebins import BINS

MOST_UNSUPPORTED = 0.05
"""Share of rows in bins with fewer than LEAST_NEAR reference labels near beyond which it extrapolates."""

_PLAIN_Z = 2.0
"""Below it the mean residual is not what made the check invalid."""
NO_GAPS = Gaps()

_LIKELIEST_ONLY = "rows come with the score of their likeliest class alone, which does not tell the right answer where that is wrong"
NOT_OF_CLASSES = {
    "macro_precision": "how often a score is right is learnt over all classes together, not of each",
    "macro_recall": _LIKELIEST_ONLY,
    "macro_f1": _LIKELIEST_ONLY,
}
"""Figures of several classes that have no estimate, and why."""


class Estimate(Struct, frozen=True):
    """An estimated figure; `low` and `high` should hold the figure of all labels in 95 of 100 windows.

    They are 1.96 `se` and what it is widened by away.
    """

    value: float
    low: float
    high: float
    se: float
    widened: Widening = Widening()


# --- estimates --------------------------------------------------------------------------------------


class _Point(Struct, frozen=True):
    """A figure under some shares of hits: its value, and rows with their influence, (BINS,) each, by answer."""

    value: float
    parts: tuple[tuple[Ints, Floats], ...]

    @property
    def per_bin(self) -> Floats:
        """W: sum over answers of n I."""
        return np.asarray(np.sum([rows * i for rows, i in self.parts], axis=0), np.float64)


_Points = dict[str, _Point]


def binary_estimates(
    fitted: Calibrator, positive: Ints, negative: Ints, gaps: Gaps = NO_GAPS
) -> dict[str, Estimate]:
    """Return accuracy, precision, recall, f1 and auc of rows by bin, answered positive or negative.

    A figure that is undefined (0/0) is left out. `gaps` widen the intervals.
    """
    if not positive.any() and not negative.any():
        return {}
    return _estimates(fitted, gaps, lambda g: _binary(g, positive, negative))


def multiclass_estimates(
    fitted: Calibrator, rows: Ints, gaps: Gaps = NO_GAPS
) -> dict[str, Estimate]:
    """Return the accuracy of rows by bin of their likeliest class's score."""
    n = int(rows.sum())
    if n == 0:
        return {}
    each = np.full(BINS, 1 / n)
    return _estimates(
        fitted, gaps, lambda g: {"accuracy": _Point(float(rows @ g / n), ((rows, each),))}
    )


def _binary(g: Floats, positive: Ints, negative: Ints) -> _Points:
    """Each influence is I of (positive, negative) answers."""
    n = int(positive.sum() + negative.sum())
    tp, fn = float(positive @ g), float(negative @ g)
    said, right = int(positive.sum()), tp + float(negative @ (1 - g))
    one = np.ones(BINS)
    found = {"accuracy": (right / n, one / n, -one / n)}
    if said:
        found["precision"] = (tp / said, one / said, 0 * one)
    hits = tp + fn
    found["recall"] = (tp / hits, one * fn / hits**2, -one * tp / hits**2)
    both = said + hits
    found["f1"] = (2 * tp / both, one * 2 * (said + fn) / both**2, -one * 2 * tp / both**2)
    rows = positive + negative
    p, q = rows * g, rows * (1 - g)
    value, pairs = auc(p, q), float(p.sum() * q.sum())
    above, below = p.sum() - np.cumsum(p) + p / 2, np.cumsum(q) - q / 2
    of_auc = (below - above) / pairs - value * (q.sum() - p.sum()) / pairs
    found["auc"] = (value, of_auc, of_auc)
    return {
        name: _Point(value, ((positive, on_positive), (negative, on_negative)))
        for name, (value, on_positive, on_negative) in found.items()
    }


def _estimates(
    fitted: Calibrator, gaps: Gaps, at: Callable[[Floats], _Points]
) -> dict[str, Estimate]:
    points = at(fitted.shares)
    widened = dict.fromkeys(points, Widening())
    for segment in bent(fitted, gaps):
        for name, point in at(segment.shares).items():
            error = point.value - points[name].value
            by = segment.excess(error, point.per_bin, gaps.segments)
            if by > widened[name].by:
                widened[name] = Widening(by, segment.segment)
    return {name: _estimate(fitted, point, widened[name]) for name, point in points.items()}


def _estimate(fitted: Calibrator, point: _Point, widened: Widening) -> Estimate:
    g = fitted.shares
    label = sum(float((rows * g * (1 - g)) @ influence**2) for rows, influence in point.parts)
    se = (label + fitted.noise(point.per_bin)) ** 0.5
    half = normal_quantile(ALPHA) * se + widened.by
    return Estimate(
        point.value, max(0.0, point.value - half), min(1.0, point.value + half), se, widened
    )


# --- what a window says -----------------------------------------------------------------------------


class LabelFree(Struct, frozen=True):
    """What a window's estimate rests on beside its own rows; part of the verdict's evidence.

    Without `reference` there is no estimate, and `reason` says why. `since_ms` is the end of the
    reference. `gaps` are of the reference's segments; unset in verdicts from before they were looked at.
    """

    reference: LabelledScores | None = None
    since_ms: int = 0
    check: ResidualCheck = NOT_CHECKED
    reason: str = ""
    gaps: Gaps | UnsetType = UNSET


def estimated(
    known: LabelFree,
    scored: Mapping[str, Sequence[int]],
    rows: int,
    positive: str | None,
    broken: str | None = None,
    shifted: str | None = None,
) -> dict[str, Any]:
    """Return the tree of a window: `figures`, `status`, `reason`, and `assumes`, never without which to show.

    `not_estimated` says why other figures of the task are not among them.

    `scored` are the rows by predicted class and score bin (`PaneState.scored`), `positive` is None for
    multiclass; `broken` names an input that a rule found broken in this window, which makes the estimate
    invalid, `shifted` an alarm on inputs or answers that stands, which widens its intervals. The status is ok, extrapolating (rows where
    the reference has hardly any), invalid or not_available.
    """
    if known.reference is None:
        return _not_available(known.reason)
    shortage = known.reference.shortage
    if shortage is not None:
        return _not_available(shortage)
    fitted = calibrator(known.reference)
    by_class = {name: np.array(counts, np.int64) for name, counts in scored.items()}
    nothing = np.zeros(BINS, np.int64)
    total = np.sum([nothing, *by_class.values()], axis=0)
    count = int(total.sum())
    if count == 0:
        return _not_available("no row of the window came with a score between 0 and 1")
    gaps = known.gaps if shifted is not None and isinstance(known.gaps, Gaps) else NO_GAPS
    if positive is None:
        found = multiclass_estimates(fitted, total, gaps)
    else:
        said = by_class.get(positive, nothing)
        found = binary_estimates(fitted, said, total - said, gaps)
    status, reason = _status(known.check, fitted.unsupported(total), broken, positive)
    check = known.check
    return {
        "figures": {name: _figure(e) for name, e in found.items()},
        "not_estimated": _not_estimated(found, positive),
        "status": status,
        "reason": "; ".join(filter(None, (reason, _widened(known.gaps, shifted, found)))),
        "assumes": assumption(known),
        "scored_rows": count,
        "scored_share": count / rows if rows else None,
        "reference_labels": known.reference.labels,
        "checked": {
            "labels": check.labels,
            "windows": check.windows,
            "residual": check.residual,
            "z": check.z,
            "evidence": check.evidence,
        },
    }


def assumption(known: LabelFree) -> str:
    """Return the sentence that stands beside every estimate."""
    check = known.check
    since = f"{datetime.fromtimestamp(known.since_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    text = f"Assumes P(label | score) has not changed since {since}; cannot see concept drift."
    if check.labels == 0:
        return f"{text} Not checked against labels since."
    return f"{text} Last checked against {check.labels} labels: residual z={check.z:+.1f}."


def _not_estimated(found: Mapping[str, Estimate], positive: str | None) -> dict[str, str]:
    if positive is None:
        return NOT_OF_CLASSES
    return {} if "precision" in found else {"precision": f"no row was answered {positive!r}"}


def _figure(found: Estimate) -> dict[str, float]:
    figure = {"value": found.value, "low": found.low, "high": found.high, "se": found.se}
    return figure | ({"widened": found.widened.by} if found.widened.by else {})


def _widened(
    gaps: Gaps | UnsetType, shifted: str | None, found: Mapping[str, Estimate]
) -> str | None:
    """Say by what the intervals are wider, or why they are not; None where no alarm asks for it."""
    if shifted is None or not isinstance(gaps, Gaps):
        return None
    if gaps.reason:
        return f"{shifted}, and the intervals are not widened for it: {gaps.reason}"
    most = max((e.widened for e in found.values()), key=lambda w: w.by, default=Widening())
    if not most.by:
        return (
            f"{shifted}; the intervals are not widened, since none of the reference's {gaps.segments} "
            "segments was off by more than chance"
        )
    return (
        f"{shifted}, so the intervals are widened, by at most {100 * most.by:.1f} points: so far off would they be if "
        f"all rows were like the reference's segment {most.segment}"
    )


def _not_available(reason: str) -> dict[str, Any]:
    return {"figures": {}, "status": "not_available", "reason": reason}


def _status(
    check: ResidualCheck, unsupported: float, broken: str | None, positive: str | None
) -> tuple[str, str]:
    if check.invalid:
        return "invalid", _contradiction(check, positive)
    if broken is not None:
        return "invalid", f"{broken}, so the scores may come from broken inputs"
    if unsupported > MOST_UNSUPPORTED:
        return "extrapolating", (
            f"{100 * unsupported:.0f} % of the rows have scores that hardly any labelled row of the "
            "reference had"
        )
    return "ok", ""


def _contradiction(check: ResidualCheck, positive: str | None) -> str:
    text = f"labels of the last {check.windows} labelled windows contradict it: "
    if isinstance(check.segment, SegmentResidual):
        found = check.segment
        what = "the answer was right" if positive is None else f"{positive!r} was the label"
        more = "more" if found.residual > 0 else "less"
        points = 100 * abs(found.residual)
        return f"{text}in the segment {found.segment} {what} {points:.1f} points {more} often than its scores meant there"
    if abs(check.z) < _PLAIN_Z:
        return f"{text}high and low scores are wrong in opposite directions"
    what = "the answer was right" if positive is None else f"{positive!r} was the label"
    more = "more" if check.residual > 0 else "less"
    points = 100 * abs(check.residual)
    return f"{text}{what} {points:.1f} points {more} often than the scores promised"
