"""The gate: is the challenger better than the champion on held-out rows nobody has gated on? Pure.

Quality figures are larger-is-better; `neg_mae` is minus the mean absolute error. Sizes are in bytes,
times in milliseconds. Three answers, because not being able to tell is neither yes nor no.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from trimtab.contracts.model import Contract
from trimtab_agent.gate.intervals import (
    GainInterval,
    Metric,
    accuracy_floor,
    paired_gain,
)

ALPHA = 0.05
"""Two-sided level of the gain's interval: its lower end is a one-sided bound of level .025."""
MIN_ROWS = 100
"""Fewer held-out rows cannot tell; chosen, a bootstrap of few rows is too sure."""
SEGMENT_MIN_ROWS = 50
"""Smaller segments are reported and never block."""
MAX_SIZE_RATIO = 20.0
"""A challenger may be this many times the champion's size; chosen to stop accidents, not progress."""
MAX_LATENCY_RATIO = 5.0
LATENCY_FLOOR_MS = 5.0
"""Median time of one row: at most this many times the champion's, or this many ms if that is more.

The median, because a tail measured beside other work is that work's, not the model's: the p99 of a
hundred rows refused an equal challenger on a busy machine. Tails are judged on live traffic.
"""


class GateOutcome(StrEnum):
    """What the gate says."""

    BLESSED = "blessed"
    REFUSED = "refused"
    CANNOT_TELL = "cannot_tell"


class Terms(Struct, frozen=True, kw_only=True):
    """What the contract asks of a challenger."""

    metric: Metric
    min_gain: float = 0.0
    floor: float | None = None
    alpha: float = ALPHA
    min_rows: int = MIN_ROWS
    segment_min_rows: int = SEGMENT_MIN_ROWS


class Footprint(Struct, frozen=True):
    """What a model costs to serve: artifact bytes and the median time of one row in milliseconds."""

    size_bytes: int
    one_row_median_ms: float


class HeldOut(Struct, frozen=True, kw_only=True):
    """Held-out labelled rows with both models' answers, columns of shape (n,).

    Event times of the rows lie in [from_ms, to_ms). `segments` maps a segment's name to its mask.
    """

    labels: npt.NDArray[Any]
    champion: npt.NDArray[Any]
    challenger: npt.NDArray[Any]
    from_ms: int
    to_ms: int
    segments: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    champion_costs: Footprint | None = None
    challenger_costs: Footprint | None = None


class Check(Struct, frozen=True, omit_defaults=True):
    """One condition with its numbers. `passed` is None when it is only reported."""

    name: str
    passed: bool | None
    reason: str
    numbers: dict[str, float] = {}


class GateRecord(Struct, frozen=True, kw_only=True):
    """What is stored with the run: the answer, why, and every number it rests on."""

    outcome: GateOutcome
    reason: str
    metric: str
    rows: int
    from_ms: int
    to_ms: int
    gain: GainInterval | None
    checks: list[Check]


def terms_of(contract: Contract) -> Terms:
    """The gate's terms in a contract."""
    rules = contract.retraining
    default = "mae" if contract.task == "regression" else "accuracy"
    names: dict[str, Metric] = {"accuracy": "accuracy", "f1": "macro_f1", "mae": "neg_mae"}
    return Terms(metric=names[rules.metric or default], min_gain=rules.min_gain, floor=rules.floor)


def judge(rows: HeldOut, terms: Terms, spent: Sequence[tuple[int, int]], seed: int) -> GateRecord:
    """Compare challenger and champion. `spent` are ranges [from, to) of event time gated before.

    Blessed when the lower bound of the gain exceeds `min_gain`, the floor holds, no segment with
    enough rows is clearly worse, and size and latency stay within limits.
    """
    doubt = _doubt(rows, terms, spent)
    if doubt is not None:
        return _record(rows, terms, GateOutcome.CANNOT_TELL, doubt, None, [])
    gain = paired_gain(
        rows.labels, rows.champion, rows.challenger, terms.metric, alpha=terms.alpha, seed=seed
    )
    checks = [
        _gain_check(gain, terms),
        *_floor_check(rows, terms, gain),
        *_segment_checks(rows, terms, seed),
        *_cost_checks(rows),
    ]
    failed = [check for check in checks if check.passed is False]
    if failed:
        reason = "; ".join(check.reason for check in failed)
        return _record(rows, terms, GateOutcome.REFUSED, f"Refused: {reason}.", gain, checks)
    reason = (
        f"Blessed: {terms.metric} {gain.challenger:.4f} against {gain.champion:.4f} on {gain.n} "
        f"held-out rows, gain at least {gain.low:.4f}."
    )
    return _record(rows, terms, GateOutcome.BLESSED, reason, gain, checks)


def _record(
    rows: HeldOut,
    terms: Terms,
    outcome: GateOutcome,
    reason: str,
    gain: GainInterval | None,
    checks: list[Check],
) -> GateRecord:
    return GateRecord(
        outcome=outcome,
        reason=reason,
        metric=terms.metric,
        rows=len(rows.labels),
        from_ms=rows.from_ms,
        to_ms=rows.to_ms,
        gain=gain,
        checks=checks,
    )


def _doubt(rows: HeldOut, terms: Terms, spent: Sequence[tuple[int, int]]) -> str | None:
    overlap = [(a, b) for a, b in spent if a < rows.to_ms and rows.from_ms < b]
    if overlap:
        return (
            "Cannot tell: these rows were gated before. Rows gated once are spent, since choosing "
            "on them again would flatter the challenger; wait for newer labels."
        )
    if len(rows.labels) < terms.min_rows:
        return (
            f"Cannot tell: {len(rows.labels)} held-out labelled rows, {terms.min_rows} are needed. "
            "Wait for more labels."
        )
    return None


def _gain_check(gain: GainInterval, terms: Terms) -> Check:
    return Check(
        "gain",
        gain.low > terms.min_gain,
        f"the gain's lower bound is {gain.low:.4f}, it must exceed {terms.min_gain:g}",
        {"value": gain.value, "low": gain.low, "high": gain.high, "min_gain": terms.min_gain},
    )


def _floor_check(rows: HeldOut, terms: Terms, gain: GainInterval) -> list[Check]:
    if terms.floor is None:
        return []
    if terms.metric == "accuracy":
        found = accuracy_floor(rows.labels, rows.challenger, terms.floor, terms.alpha)
        numbers = {"value": found.value, "low": found.low, "floor": terms.floor}
        text = f"accuracy is at least {found.low:.4f}, the floor is {terms.floor:g}"
        return [Check("floor", found.passes, text, numbers)]
    if terms.metric == "neg_mae":  # for an error the user's limit is the largest allowed
        error = -gain.challenger
        text = f"the mean absolute error is {error:.4f}, the limit is {terms.floor:g}"
        return [Check("floor", error <= terms.floor, text, {"value": error, "floor": terms.floor})]
    text = f"{terms.metric} is {gain.challenger:.4f}, the floor is {terms.floor:g}"
    return [
        Check(
            "floor",
            gain.challenger >= terms.floor,
            text,
            {"value": gain.challenger, "floor": terms.floor},
        )
    ]


def _segment_checks(rows: HeldOut, terms: Terms, seed: int) -> list[Check]:
    """A segment blocks only when it has enough rows and is clearly worse, at alpha over segments."""
    large = [name for name, mask in rows.segments.items() if mask.sum() >= terms.segment_min_rows]
    alpha = terms.alpha / max(1, len(large))  # Bonferroni: each of them may block
    checks = []
    for name in sorted(rows.segments):
        mask = rows.segments[name]
        if name not in large:
            text = f"segment {name} has {int(mask.sum())} rows, too few to judge"
            checks.append(Check(f"segment:{name}", None, text, {"rows": float(mask.sum())}))
            continue
        gain = paired_gain(
            rows.labels[mask],
            rows.champion[mask],
            rows.challenger[mask],
            terms.metric,
            alpha=alpha,
            seed=seed,
        )
        text = f"segment {name}: gain between {gain.low:.4f} and {gain.high:.4f}"
        numbers = {"rows": float(gain.n), "value": gain.value, "low": gain.low, "high": gain.high}
        checks.append(Check(f"segment:{name}", gain.high >= 0, text, numbers))
    return checks


def _cost_checks(rows: HeldOut) -> list[Check]:
    old, new = rows.champion_costs, rows.challenger_costs
    if old is None or new is None:
        return []
    size_limit = MAX_SIZE_RATIO * old.size_bytes
    latency_limit = max(LATENCY_FLOOR_MS, MAX_LATENCY_RATIO * old.one_row_median_ms)
    return [
        Check(
            "size",
            new.size_bytes <= size_limit,
            f"the artifact has {new.size_bytes} bytes, the limit is {size_limit:.0f}",
            {"value": float(new.size_bytes), "limit": size_limit},
        ),
        Check(
            "latency",
            new.one_row_median_ms <= latency_limit,
            f"one row takes {new.one_row_median_ms:.2f} ms (median), the limit is {latency_limit:.2f}",
            {"value": new.one_row_median_ms, "limit": latency_limit},
        ),
    ]
