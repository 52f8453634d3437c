"""What to do with a rollout now, from its record and the counts so far. Pure.

Notation
    treated, control   the arms compared: challenger and champion in a step; while watching, the new
                       champion and the holdback that the old one keeps
    share              the treated arm's stated share of units under one traffic revision, 0 to 1
    failure            an error or a timeout, counted by *assigned* arm (statistics, E1)
    wrong              a labelled answer that differs from its label
Two guardrails: failures must not harm and stay below a ceiling; wrong answers must be non-inferior.
Every test is anytime-valid, so one may look at each tick.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from msgspec import Struct, field, to_builtins

from trimtab.contracts.model import Canary, Contract, duration_ms
from trimtab.records import Rollout, RolloutState
from trimtab_agent.rollout.evidence import (
    GuardrailEvidence,
    RevisionCounts,
    log_e_above_ceiling,
    log_e_label_coverage,
    log_e_sample_ratio,
    log_weighted_mean,
    rejects,
    weigh_guardrail,
)

ALPHA_VALID = 0.001
"""Level at which unequal shares or label coverage make the comparison invalid."""


class Move(StrEnum):
    """What to do."""

    WAIT = "wait"
    ADVANCE = "advance"
    HOLD = "hold"
    RESUME = "resume"
    PROMOTE = "promote"
    FINISH = "finish"
    ROLL_BACK = "roll_back"


class ArmTally(Struct, frozen=True):
    """Counts of one arm under one revision. Performance counts are of matured panes only."""

    rows: int = 0
    failures: int = 0
    labelled_rows: int = 0
    wrong: int = 0


class Tally(Struct, frozen=True):
    """Both arms under one traffic revision."""

    revision: int
    share: float
    control: ArmTally
    treated: ArmTally


class Terms(Struct, frozen=True, kw_only=True):
    """What the contract says about a canary, in milliseconds and shares."""

    steps: tuple[float, ...]
    step_ms: int
    longest_ms: int
    watch_ms: int
    holdback: float
    margin: float
    """How much larger the relative risk may be: 0.25 for the contract's 1.25."""
    alpha: float
    maturity_ms: int
    max_error_rate: float
    judges_answers: str | None = None
    """None: wrong answers are judged. Else why they are not: "no_labels" or "regression"."""


def terms_of(contract: Contract) -> Terms:
    """The terms of a contract's canary."""
    canary: Canary = contract.canary
    unjudged = None
    if contract.task == "regression":
        unjudged = "regression"
    elif contract.labels.horizon_ms is None:
        unjudged = "no_labels"
    return Terms(
        steps=canary.steps,
        step_ms=duration_ms(canary.step),
        longest_ms=duration_ms(canary.longest),
        watch_ms=duration_ms(canary.watch),
        holdback=canary.holdback,
        margin=canary.margin - 1.0,
        alpha=canary.alpha,
        maturity_ms=duration_ms(canary.maturity),
        max_error_rate=canary.max_error_rate,
        judges_answers=unjudged,
    )


class Weighed(Struct, frozen=True, kw_only=True):
    """The evidence of all guardrails together."""

    failures: GuardrailEvidence
    answers: GuardrailEvidence | None
    log_e_harm: float
    harm: str | None
    """What is harmed; None when nothing is shown."""
    invalid: str | None
    """Why the arms cannot be compared; None when they can."""
    log_e_coverage: float
    passed: bool
    missing: str
    """What is still to be shown; empty when `passed`."""


class Assessment(Struct, frozen=True, kw_only=True):
    """One look at a rollout: what to do, why, and the numbers."""

    move: Move
    reason: str
    next_wake_ms: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def weigh(tallies: Sequence[Tally], terms: Terms) -> Weighed:
    """Weigh the guardrails over all revisions, each with its own share."""
    failures = _counts(tallies, "rows", "failures")
    failing = weigh_guardrail(
        "failures",
        "must_not_harm",
        failures,
        ceiling=terms.max_error_rate,
        alpha_harm=terms.alpha,
        alpha_pass=terms.alpha,
        alpha_sample_ratio=ALPHA_VALID,
    )
    answers, answering, coverage = [], None, -math.inf
    if terms.judges_answers is None:
        answers = _counts(tallies, "labelled_rows", "wrong")
        answering = weigh_guardrail(
            "wrong_answers",
            "must_be_non_inferior",
            answers,
            margin=terms.margin,
            alpha_harm=terms.alpha,
            alpha_pass=terms.alpha,
            alpha_sample_ratio=ALPHA_VALID,
        )
        coverage = log_e_label_coverage(_counts(tallies, "rows", "labelled_rows"))
    evidence = [failing] if answering is None else [failing, answering]
    harm = log_weighted_mean([each.log_e_harm for each in evidence])
    return Weighed(
        failures=failing,
        answers=answering,
        log_e_harm=harm,
        harm=_harmed(failures, evidence, harm, terms),
        invalid=_invalid(failures, coverage),
        log_e_coverage=coverage,
        passed=not _missing(failing, answering, terms),
        missing=_missing(failing, answering, terms),
    )


def _counts(tallies: Sequence[Tally], units: str, events: str) -> list[RevisionCounts]:
    return [
        RevisionCounts(
            tally.revision,
            tally.share,
            getattr(tally.control, events),
            getattr(tally.treated, events),
            getattr(tally.control, units),
            getattr(tally.treated, units),
        )
        for tally in tallies
    ]


def _harmed(
    failures: list[RevisionCounts],
    evidence: list[GuardrailEvidence],
    harm: float,
    terms: Terms,
) -> str | None:
    if rejects(log_e_above_ceiling(failures, terms.max_error_rate), terms.alpha):
        return f"more than {terms.max_error_rate:.1%} of the challenger's requests fail"
    if not rejects(harm, terms.alpha):
        return None
    worst = max(evidence, key=lambda each: each.log_e_harm)
    return (
        f"{worst.name.replace('_', ' ')} are more frequent: "
        f"{_rate(worst.challenger_events, worst.challenger_units)} against "
        f"{_rate(worst.champion_events, worst.champion_units)}"
    )


def _rate(events: int, units: int) -> str:
    return f"{events} of {units}"


def _invalid(failures: list[RevisionCounts], coverage: float) -> str | None:
    if rejects(log_e_sample_ratio(failures), ALPHA_VALID):
        return "the arms did not get the shares they should have"
    if rejects(coverage, ALPHA_VALID):
        return "the arms are not labelled equally often"
    return None


def _missing(failing: GuardrailEvidence, answering: GuardrailEvidence | None, terms: Terms) -> str:
    open_points = []
    if failing.state != "passed":
        open_points.append(f"failures: {failing.reason}")
    if answering is not None and answering.state != "passed":
        open_points.append(f"wrong answers: {answering.reason}")
    if terms.judges_answers == "regression":
        open_points.append("answers of a regression have no bounded outcome to compare yet")
    return "; ".join(open_points)


def assess(
    rollout: Rollout,
    tallies: Sequence[Tally],
    terms: Terms,
    now_ms: int,
    *,
    observed: bool | None,
    blocked: str | None = None,
) -> Assessment:
    """Look at a rollout in a step, held, or watching.

    `tallies` are the revisions of the canary, or while watching the revision of the holdback.
    `observed` says whether the current split has been seen in traffic; None is "not known", which
    waits like False. `blocked` is why it must be held (a data-quality alarm, a person's pause).
    """
    weighed = weigh(tallies, terms)
    numbers = _numbers(weighed, tallies, observed)
    move, reason, wake = (
        _watch(rollout, weighed, terms, now_ms, blocked)
        if rollout.state is RolloutState.WATCHING
        else _step(rollout, weighed, tallies, terms, now_ms, observed, blocked)
    )
    return Assessment(move=move, reason=reason, next_wake_ms=wake, numbers=numbers)


_Say = tuple[Move, str, int | None]


def _watch(
    rollout: Rollout, weighed: Weighed, terms: Terms, now_ms: int, blocked: str | None
) -> _Say:
    if weighed.harm is not None and weighed.invalid is None:
        return Move.ROLL_BACK, f"After promotion {weighed.harm}: back to the old champion.", None
    until = rollout.step_since_ms + terms.watch_ms
    if now_ms < until or blocked is not None:
        why = f"; {blocked}" if blocked else ""
        return Move.WAIT, f"Watching the new champion beside the old one{why}.", until
    return Move.FINISH, "The new champion was watched and did no harm.", None


def _step(
    rollout: Rollout,
    weighed: Weighed,
    tallies: Sequence[Tally],
    terms: Terms,
    now_ms: int,
    observed: bool | None,
    blocked: str | None,
) -> _Say:
    share = _percent(terms.steps[min(rollout.step, len(terms.steps) - 1)])
    held = rollout.state is RolloutState.HELD
    longest = rollout.created_ms + terms.longest_ms
    if weighed.harm is not None and weighed.invalid is None:
        return Move.ROLL_BACK, f"Harm at {share}: {weighed.harm}.", None
    if now_ms >= longest:
        return Move.ROLL_BACK, "Undecided for the longest time allowed: the champion stays.", None
    stop = blocked or weighed.invalid
    if stop is not None:
        return (Move.WAIT if held else Move.HOLD), f"Held at {share}: {stop}.", longest
    if held:
        return Move.RESUME, f"What held it at {share} is over.", None
    if not observed:
        return Move.WAIT, f"The split of {share} is set and not yet seen in traffic.", longest
    until = rollout.step_since_ms + terms.step_ms
    if now_ms < until:
        return Move.WAIT, f"At {share} for its least time.", until
    current = [t for t in tallies if t.revision == rollout.traffic_revision]
    if not any(t.treated.rows for t in current):
        return Move.WAIT, f"At {share} the challenger has served nothing yet.", longest
    if rollout.step + 1 < len(terms.steps):
        return Move.ADVANCE, f"No harm shown at {share}: the next step.", None
    if weighed.passed:
        return Move.PROMOTE, f"Shown at {share}: no harm, and answers not worse.", None
    return Move.WAIT, f"At {share}, undecided: {weighed.missing}.", longest


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _numbers(weighed: Weighed, tallies: Sequence[Tally], observed: bool | None) -> dict[str, Any]:
    """What the record keeps; infinities become text, because JSON has none."""
    guardrails = [g for g in (weighed.failures, weighed.answers) if g is not None]
    return {
        "observed": observed,
        "log_e_harm": _finite(weighed.log_e_harm),
        "log_e_coverage": _finite(weighed.log_e_coverage),
        "harm": weighed.harm,
        "invalid": weighed.invalid,
        "missing": weighed.missing,
        "guardrails": {
            g.name: {key: _finite(value) for key, value in to_builtins(g).items()}
            for g in guardrails
        },
        "counts": [to_builtins(tally) for tally in tallies],
    }


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
