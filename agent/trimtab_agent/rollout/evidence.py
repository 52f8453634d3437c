"""Evidence of a canary, from counts alone; valid however often one looks.

Event-arm e-process: given that an event (an error, a wrong answer) happened, which arm did it come from?
If the challenger's rate is r times the champion's and it gets the share w of the traffic, the event is
the challenger's with probability q_r = r w / (1 - w + r w), whatever the base rate does over time.
(Lindon & Malek 2022; Turner, Ly & Grünwald 2024. Specification: statistics, E1.)

Notation
    w      share of units routed to the challenger under one traffic revision, 0 <= w <= 1
    x_B, x_A  events of challenger and champion, by *assigned* arm, under that revision
    r      relative risk, challenger's event rate over champion's
    q_0    q_r at the edge of the null hypothesis
    log_e  natural log of an e-value: reject its null at level alpha when log_e >= ln(1/alpha)
           (Ville's inequality, at any time)

Per alternative r the log terms add up over revisions, each with its own w and q_0; then the e-values,
not their logs, are averaged over r. Pooling counts over steps under the current w is wrong: it passed a
challenger 1.5 times worse in every run. A revision with w = 0 or 1 carries no evidence.

Preconditions, checked elsewhere or here: units are routed one by one by a hash with share w
(`log_e_sample_ratio`); one unit gives one outcome; the event is fixed before the start; labels of both
arms are equally complete (`log_e_label_coverage`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from scipy.special import betaln, xlog1py, xlogy

HARM_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
NON_INFERIOR_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0)
"""Alternatives of non-inferiority: the true ratio is (1 + margin) divided by one of these."""
CEILING_FRACTIONS = (0.02, 0.1, 0.25, 0.5)
"""Alternatives of the ceiling test, as fractions of the ceiling. At alpha .05 and 1 % they need 358 clean
units, 630 with one event (an alternative at 0 alone needs 300 and never recovers from an event)."""
SAMPLE_RATIO_STRENGTH = 100.0
"""Pseudo-units of the prior around the stated share; chosen by these units to show, at .001, a served
share of .20 for a stated .25: 1,280; .125: 240; .45 for .50: 1,780; .10 for .05: 460."""


class RevisionCounts(msgspec.Struct, frozen=True):
    """Counts under one traffic revision, by assigned arm; `weight` is the challenger's share."""

    revision: int
    weight: float
    champion_events: int
    challenger_events: int
    champion_units: int
    challenger_units: int

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise ValueError(f"Weight {self.weight} is no share; give one between 0 and 1.")
        for events, units in (
            (self.champion_events, self.champion_units),
            (self.challenger_events, self.challenger_units),
        ):
            if not 0 <= events <= units:
                raise ValueError(f"{events} events among {units} units; count one per unit.")


def share_of_events(weight: float, ratio: float) -> float:
    """Return q_r = r w / (1 - w + r w)."""
    return ratio * weight / (1 - weight + ratio * weight)


def _log_mean_exp(values: Iterable[float]) -> float:
    listed = list(values)
    top = max(listed)
    return top + math.log(sum(math.exp(v - top) for v in listed) / len(listed))


def _carrying(counts: Sequence[RevisionCounts]) -> list[RevisionCounts]:
    return [c for c in counts if 0.0 < c.weight < 1.0]


def _log_ratio(counts: Sequence[RevisionCounts], at_null: float, alternative: float) -> float:
    """Log likelihood ratio of the events' arms: relative risk `alternative` against `at_null`."""
    total = 0.0
    for c in _carrying(counts):
        q_0, q_r = share_of_events(c.weight, at_null), share_of_events(c.weight, alternative)
        total += c.challenger_events * math.log(q_r / q_0)
        total += c.champion_events * math.log((1 - q_r) / (1 - q_0))
    return total


def log_e_harm(
    counts: Sequence[RevisionCounts],
    ratios: Sequence[float] = HARM_RATIOS,
    dispersion: float = 1.0,
) -> float:
    """Return the evidence against "the challenger's event rate is at most the champion's".

    E = mean over r of prod (q_r/q_0)^x_B ((1-q_r)/(1-q_0))^x_A with q_0 = w; every r > 1. `dispersion`
    >= 1 tempers the log terms where units are not independent (measured between two equal arms).
    """
    _check_dispersion(dispersion)
    if min(ratios) <= 1.0:
        raise ValueError("Harm is a ratio above 1; give only such ratios.")
    return _log_mean_exp(_log_ratio(counts, 1.0, r) / dispersion for r in ratios)


def log_e_non_inferior(
    counts: Sequence[RevisionCounts],
    margin: float,
    ratios: Sequence[float] = NON_INFERIOR_RATIOS,
    dispersion: float = 1.0,
) -> float:
    """Return the evidence against "the challenger's event rate is at least (1 + margin) × champion's".

    As `log_e_harm`, with q_0 at r = 1 + margin and the alternatives r = (1 + margin) / ratio.
    """
    _check_dispersion(dispersion)
    if margin <= 0.0 or min(ratios) <= 1.0:
        raise ValueError("Give a margin above 0 and ratios above 1.")
    worst = 1.0 + margin
    return _log_mean_exp(_log_ratio(counts, worst, worst / r) / dispersion for r in ratios)


def _check_dispersion(dispersion: float) -> None:
    if dispersion < 1.0:
        raise ValueError(f"Dispersion {dispersion} would sharpen the evidence; give 1 or more.")


def _log_e_share(share: float, successes: int, n: int) -> float:
    """Evidence against "successes are Binomial(n, share)", by a beta mixture around the share.

    E = B(a + x, b + n - x) / B(a, b) / (share^x (1 - share)^(n - x)), a = S share, b = S (1 - share):
    the beta-binomial likelihood ratio, a martingale in n under the null.
    """
    a, b = SAMPLE_RATIO_STRENGTH * share, SAMPLE_RATIO_STRENGTH * (1 - share)
    mixture = float(betaln(a + successes, b + n - successes) - betaln(a, b))
    return mixture - float(xlogy(successes, share) + xlog1py(n - successes, -share))


def log_e_sample_ratio(counts: Sequence[RevisionCounts]) -> float:
    """Return the evidence against "units were routed with the stated shares", over all revisions.

    A unit where the share is 0 or 1 and the other arm was assigned is a contradiction: infinity.
    """
    total = 0.0
    for c in counts:
        n = c.champion_units + c.challenger_units
        if c.weight in (0.0, 1.0):
            if c.challenger_units != n * c.weight:
                return math.inf
            continue
        total += _log_e_share(c.weight, c.challenger_units, n)
    return total


def log_e_label_coverage(counts: Sequence[RevisionCounts]) -> float:
    """Return the evidence against "the units of both arms are labelled equally often".

    Here the events of `counts` are the matured units that have a label. If the arm does not decide
    whether a unit is labelled, a labelled unit is the challenger's with probability w, as any unit is.
    """
    return sum(
        _log_e_share(c.weight, c.challenger_events, c.champion_events + c.challenger_events)
        for c in _carrying(counts)
    )


def log_e_below_ceiling(counts: Sequence[RevisionCounts], ceiling: float) -> float:
    """Return the evidence against "the challenger's event rate is at least `ceiling`" (0 to 1).

    Mean over p = ceiling × fraction of (p/ceiling)^x ((1-p)/(1-ceiling))^(n-x), all revisions together,
    those with share 1 too.
    """
    return _log_e_rate(counts, ceiling, CEILING_FRACTIONS)


def log_e_above_ceiling(counts: Sequence[RevisionCounts], ceiling: float) -> float:
    """Return the evidence against "the challenger's event rate is at most `ceiling`" (0 to 1)."""
    odds = [1.25, 1.5, 2.0, 4.0]
    return _log_e_rate(counts, ceiling, [share_of_events(ceiling, r) / ceiling for r in odds])


def _log_e_rate(
    counts: Sequence[RevisionCounts], ceiling: float, fractions: Sequence[float]
) -> float:
    if not 0.0 < ceiling < 1.0:
        raise ValueError(f"Ceiling {ceiling} is no rate; give one between 0 and 1.")
    x = sum(c.challenger_events for c in counts)
    clean = sum(c.challenger_units for c in counts) - x
    return _log_mean_exp(
        x * math.log(f) + clean * math.log((1 - f * ceiling) / (1 - ceiling)) for f in fractions
    )


def log_weighted_mean(log_es: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the log of the weighted average of e-values, itself an e-value: harm over all guardrails.

    Weights are positive and are scaled to sum 1; equal by default. -inf without any guardrail.
    """
    if not log_es:
        return -math.inf
    shares = [1.0] * len(log_es) if weights is None else list(weights)
    if len(shares) != len(log_es) or min(shares) <= 0.0:
        raise ValueError("Give one positive weight per guardrail.")
    top = max(log_es)
    if math.isinf(top):
        return top
    mean = sum(s * math.exp(v - top) for s, v in zip(shares, log_es, strict=True)) / sum(shares)
    return top + math.log(mean)


def rejects(log_e: float, alpha: float) -> bool:
    """Whether the evidence reaches level alpha: log_e >= ln(1/alpha)."""
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha {alpha} is no level; give one between 0 and 1.")
    return log_e >= -math.log(alpha)


class GuardrailEvidence(msgspec.Struct, frozen=True):
    """What the counts of one guardrail say, with the numbers a rollout's record keeps.

    `state` in order of precedence: `invalid` (units were not routed as stated, nothing else counts),
    `harm`, `passed` (non-inferior, or for `must_not_harm` below its ceiling), `undecided`. Note that
    `harm` of one guardrail is at its own level; the rollout's level is over `log_weighted_mean`.
    """

    name: str
    kind: Literal["must_not_harm", "must_be_non_inferior"]
    state: Literal["invalid", "harm", "passed", "undecided"]
    reason: str
    log_e_harm: float
    log_e_non_inferior: float | None
    log_e_ceiling: float | None
    log_e_sample_ratio: float
    champion_events: int
    challenger_events: int
    champion_units: int
    challenger_units: int


def weigh_guardrail(
    name: str,
    kind: Literal["must_not_harm", "must_be_non_inferior"],
    counts: Sequence[RevisionCounts],
    *,
    margin: float = 0.25,
    ceiling: float | None = None,
    alpha_harm: float = 0.05,
    alpha_pass: float = 0.05,
    alpha_sample_ratio: float = 0.001,
    dispersion: float = 1.0,
) -> GuardrailEvidence:
    """Weigh one guardrail. Event counts in `counts` are this guardrail's, units are the routed ones.

    `must_not_harm` passes when the evidence says the rate is below `ceiling`; without a ceiling it
    passes as long as no harm is shown. `must_be_non_inferior` passes on its own evidence and, with a
    ceiling, on that too.
    """
    harm = log_e_harm(counts, dispersion=dispersion)
    ratio = log_e_sample_ratio(counts)
    non_inferior = (
        log_e_non_inferior(counts, margin, dispersion=dispersion)
        if kind == "must_be_non_inferior"
        else None
    )
    below = None if ceiling is None else log_e_below_ceiling(counts, ceiling)
    above = None if ceiling is None else log_e_above_ceiling(counts, ceiling)
    state: Literal["invalid", "harm", "passed", "undecided"] = "undecided"
    if rejects(ratio, alpha_sample_ratio):
        state, reason = "invalid", "the arms did not get the shares they should have"
    elif rejects(harm, alpha_harm):
        state, reason = "harm", "the challenger's rate is above the champion's"
    elif above is not None and rejects(above, alpha_harm):
        state, reason = "harm", "the challenger's rate is above the ceiling"
    elif non_inferior is not None and not rejects(non_inferior, alpha_pass):
        reason = f"not yet shown to be less than {1 + margin:g} times the champion's rate"
    elif below is not None and not rejects(below, alpha_pass):
        reason = "not yet shown to be below the ceiling"
    elif non_inferior is None and not any(c.challenger_units for c in counts):
        reason = "the challenger has served nothing yet"
    else:
        state, reason = "passed", "within its limits"
    return GuardrailEvidence(
        name,
        kind,
        state,
        reason,
        harm,
        non_inferior,
        below,
        ratio,
        sum(c.champion_events for c in counts),
        sum(c.challenger_events for c in counts),
        sum(c.champion_units for c in counts),
        sum(c.challenger_units for c in counts),
    )
