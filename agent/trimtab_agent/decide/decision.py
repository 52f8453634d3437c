"""Retrain or not, and why. Pure: the evidence and the time go in, one decision comes out.

The rules stand in `_RULES` in the order in which they are asked; the first that has an opinion gives
the decision (statistics, F: fix before roll back before wait before recalibrate before retrain). A "no"
carries its reason and numbers as a "yes" does, and both carry the diagnosis with every sign.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from trimtab.detect.diagnosis import Advice, Cause, Code, Diagnosis, subjects
from trimtab.records import IncidentState, Kind
from trimtab_agent.decide.evidence import Concern, Evidence
from trimtab_agent.decide.policy import Policy, cooldown_ms, next_month_ms, quiet_until_ms

REASONS_MOST = 40
"""Signs kept in a decision's record, which is written at each change; the first are those it rests on."""


class Action(StrEnum):
    """What the agent does. What it cannot do itself (fix, recalibrate) is `watch`, and the diagnosis advises it."""

    NONE = "none"
    WATCH = "watch"
    WAIT_FOR_LABELS = "wait_for_labels"
    HOLD = "hold"
    """Retraining is due, but not now: cooldown, budget or quiet hours."""
    RETRAIN = "retrain"
    ROLL_BACK = "roll_back"
    """Take back the promotion that is being watched."""
    ESCALATE = "escalate"


class Why(StrEnum):
    """Why; stable codes, the text beside them may change."""

    NOTHING_WRONG = "nothing_wrong"
    CANNOT_TELL = "cannot_tell"
    UNDER_WAY = "under_way"
    DATA_QUALITY = "data_quality"
    BAD_RELEASE = "bad_release"
    LABEL_PIPELINE = "label_pipeline"
    LABEL_SHIFT = "label_shift"
    CAUSE_UNCLEAR = "cause_unclear"
    DIAGNOSING = "diagnosing"
    NOT_THE_MODEL = "not_the_model"
    INPUTS_MOVED_NO_HARM = "inputs_moved_no_harm"
    INPUTS_MOVED_HARM_UNKNOWN = "inputs_moved_harm_unknown"
    INPUTS_MOVED_NO_LABELS = "inputs_moved_no_labels"
    TOO_FEW_LABELS = "too_few_labels"
    LABELS_NEVER_CAME = "labels_never_came"
    NO_CHAMPION = "no_champion"
    RETRAINING_OFF = "retraining_off"
    ATTEMPTS_SPENT = "attempts_spent"
    COOLDOWN = "cooldown"
    BUDGET_SPENT = "budget_spent"
    QUIET_HOURS = "quiet_hours"
    PERFORMANCE_FELL = "performance_fell"


class Decision(Struct, frozen=True, kw_only=True):
    """One decision with its reason and the numbers it rests on."""

    action: Action
    reason_code: Why
    reason: str
    """One plain sentence."""
    numbers: dict[str, Any] = field(default_factory=dict)
    next_wake_ms: int | None = None
    """When the answer may change by time alone; None when only new evidence changes it."""


_Rule = Callable[[Evidence, Policy, int], Decision | None]


def decide(evidence: Evidence, policy: Policy, now_ms: int) -> Decision:
    """Say what to do about a model now."""
    for rule in _RULES:
        decision = rule(evidence, policy, now_ms)
        if decision is not None:
            return _with_diagnosis(decision, evidence.diagnosis)
    return _of(Action.NONE, Why.NOTHING_WRONG, "Nothing is wrong: no rule is in alarm.")


def _with_diagnosis(decision: Decision, diagnosis: Diagnosis) -> Decision:
    """Add what kind of change it is to a decision's numbers, where it is any."""
    if diagnosis.cause is Cause.NONE:
        return decision
    said = msgspec.to_builtins(replace(diagnosis, reasons=diagnosis.reasons[:REASONS_MOST]))
    if len(diagnosis.reasons) > REASONS_MOST:
        said["more_reasons"] = len(diagnosis.reasons) - REASONS_MOST
    return replace(decision, numbers={**decision.numbers, "diagnosis": said})


def _of(
    action: Action, why: Why, reason: str, wake_ms: int | None = None, **numbers: Any
) -> Decision:
    return Decision(
        action=action, reason_code=why, reason=reason, numbers=numbers, next_wake_ms=wake_ms
    )


def _figures(found: list[Concern]) -> list[dict[str, Any]]:
    return [
        {"figure": c.figure, "value": c.value, "threshold": c.threshold, "onset_ms": c.onset_ms}
        for c in found
    ]


def _names(found: list[Concern]) -> str:
    return ", ".join(dict.fromkeys(c.figure for c in found))


def _called(evidence: Evidence, found: list[Concern], *codes: Code) -> str:
    """What is in trouble, as people call it: what the signs are about, or the figures' names."""
    return subjects([s for s in evidence.diagnosis.reasons if s.code in codes]) or _names(found)


def _taken_back(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    """A promotion that is watched is taken back where quality fell with it; moved answers alone do not do."""
    diagnosis = evidence.diagnosis
    if evidence.watching is None or diagnosis.cause is not Cause.BAD_RELEASE:
        return None
    if not any(sign.code is Code.QUALITY_DROP and sign.fresh for sign in diagnosis.reasons):
        return None
    return _of(
        Action.ROLL_BACK,
        Why.BAD_RELEASE,
        diagnosis.summary,
        rollout=evidence.watching,
        alarms=_figures(evidence.alarms(Kind.PERFORMANCE)),
    )


def _under_way(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    if evidence.busy is None:
        return None
    return _of(Action.NONE, Why.UNDER_WAY, f"{evidence.busy} is under way; one at a time.")


def _no_verdict(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    if evidence.newest_window_ms is not None and evidence.concerns:
        return None
    return _of(
        Action.NONE,
        Why.CANNOT_TELL,
        "No rule has been judged yet, so there is nothing to decide on.",
    )


def _data_quality(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    found = evidence.alarms(Kind.DATA_QUALITY)
    diagnosed = evidence.diagnosis.cause is Cause.DATA_QUALITY_BREAK
    if not found and not diagnosed:
        return None
    reason = evidence.diagnosis.summary
    if not diagnosed:
        reason = f"The data is broken ({_names(found)}): fix it upstream, do not retrain."
    return _of(Action.WATCH, Why.DATA_QUALITY, reason, alarms=_figures(found))


def _for_people(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    """What the agent can name and people must do: take back a release, mend labels, recalibrate."""
    why = _FOR_PEOPLE.get(evidence.diagnosis.cause)
    if why is None:
        return None
    return _of(Action.WATCH, why, evidence.diagnosis.summary, alarms=_figures(_standing(evidence)))


_FOR_PEOPLE = {
    Cause.BAD_RELEASE: Why.BAD_RELEASE,
    Cause.LABEL_PIPELINE_BREAK: Why.LABEL_PIPELINE,
    Cause.LABEL_SHIFT: Why.LABEL_SHIFT,
}


def _standing(evidence: Evidence) -> list[Concern]:
    return sorted((c for c in evidence.concerns if c.stands), key=lambda c: (c.onset_ms, c.figure))


def _harmed(evidence: Evidence) -> str:
    """Name what fell: rules on performance in alarm or, where no rule watches it, labelled rows; "" for nothing."""
    found = evidence.alarms(Kind.PERFORMANCE)
    if found:
        return _called(evidence, found, Code.QUALITY_DROP)
    diagnosis = evidence.diagnosis
    if evidence.watches_performance or diagnosis.advice is not Advice.RETRAIN:
        return ""
    return subjects([s for s in diagnosis.reasons if s.code is Code.QUALITY_DROP])


def _not_the_model(evidence: Evidence, _policy: Policy, _now_ms: int) -> Decision | None:
    found = evidence.alarms(Kind.VOLUME, Kind.RESOURCES)
    others = evidence.alarms(Kind.INPUT, Kind.PREDICTION, Kind.PERFORMANCE)
    if not found or others:
        return None
    return _of(
        Action.WATCH,
        Why.NOT_THE_MODEL,
        f"{_called(evidence, found, Code.SERVICE)} is in alarm. Retraining does not help there: look at the service.",
        alarms=_figures(found),
    )


def _inputs_moved(evidence: Evidence, policy: Policy, now_ms: int) -> Decision | None:
    moved = evidence.moved()
    if not moved or _harmed(evidence):
        return None
    figures = _figures(moved)
    names = _called(evidence, moved, Code.FEATURE_DRIFT, Code.SCORE_DRIFT)
    what = f"The inputs moved ({names})"
    if evidence.diagnosis.cause is Cause.JOINT_OR_SERVING_CHANGE:
        what = f"The answers moved ({names}), no single input did: check version and feature order"
    if not policy.labels_promised:
        return _of(
            Action.WATCH,
            Why.INPUTS_MOVED_NO_LABELS,
            f"{what}. No labels are promised, so harm cannot be shown: no retraining. A person may look.",
            alarms=figures,
        )
    if evidence.judged_performance:
        performance = [c for c in evidence.concerns if c.kind is Kind.PERFORMANCE]
        return _of(
            Action.WATCH,
            Why.INPUTS_MOVED_NO_HARM,
            f"{what}. Performance did not suffer: no retraining.",
            alarms=figures,
            performance=_figures(performance),
        )
    return _wait(
        evidence,
        policy,
        now_ms,
        Why.INPUTS_MOVED_HARM_UNKNOWN,
        f"{what}; whether it harms, labels must show",
        figures,
    )


def _wait(
    evidence: Evidence,
    policy: Policy,
    now_ms: int,
    why: Why,
    what: str,
    figures: list[dict[str, Any]],
) -> Decision:
    """Wait for labels, or say that the wait is over."""
    since = now_ms if evidence.waiting_since_ms is None else evidence.waiting_since_ms
    until = since + policy.label_wait_ms
    numbers: dict[str, Any] = {
        "labelled_rows": evidence.labelled_rows,
        "min_labels": policy.min_labels,
        "onset_ms": evidence.labels_onset_ms,
        "waiting_since_ms": since,
        "alarms": figures,
    }
    if now_ms >= until:
        return _of(
            Action.ESCALATE,
            Why.LABELS_NEVER_CAME,
            f"{what}. {evidence.labelled_rows} of {policy.min_labels} labels came in the time "
            "allowed: a person must decide.",
            **numbers,
        )
    return _of(
        Action.WAIT_FOR_LABELS,
        why,
        f"{what}: {evidence.labelled_rows} of {policy.min_labels} labels since the onset.",
        until,
        **numbers,
    )


def _performance(evidence: Evidence, policy: Policy, now_ms: int) -> Decision | None:
    fell = _harmed(evidence)
    if not fell:
        return None
    found = evidence.alarms(Kind.PERFORMANCE) or evidence.moved()
    numbers: dict[str, Any] = {
        "alarms": _figures(found),
        "labelled_rows": evidence.labelled_rows,
        "min_labels": policy.min_labels,
        "onset_ms": evidence.labels_onset_ms,
        "attempts": 0 if evidence.incident is None else evidence.incident.attempts,
        "runs_this_month": evidence.runs_this_month,
        "budget_per_month": policy.budget_per_month,
        "mode": policy.mode,
    }
    for check in (_forbidden, _too_few_labels, _unclear, _not_now):
        decision = check(evidence, policy, now_ms, fell)
        if decision is not None:
            return Decision(
                action=decision.action,
                reason_code=decision.reason_code,
                reason=decision.reason,
                numbers={**numbers, **decision.numbers},
                next_wake_ms=decision.next_wake_ms,
            )
    asked = "" if policy.mode == "auto" else " A person must approve it."
    return _of(
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
        f"Performance fell ({fell}) and {evidence.labelled_rows} labelled rows show the "
        f"new data{_KINDS_OF_CHANGE.get(evidence.diagnosis.cause, '')}: retrain.{asked}",
        **numbers,
    )


_KINDS_OF_CHANGE = {
    Cause.CONCEPT_DRIFT: ", in which the same inputs mean other labels",
    Cause.COVARIATE_HARMFUL: ", whose inputs moved to where the model is worse",
}


def _unclear(evidence: Evidence, policy: Policy, now_ms: int, fell: str) -> Decision | None:
    """There are labels enough, and what they show is not a change to learn, or not yet known."""
    if evidence.pending:
        return _of(
            Action.HOLD,
            Why.DIAGNOSING,
            f"Performance fell ({fell}); the labelled rows are being read to tell why.",
        )
    diagnosis = evidence.diagnosis
    if diagnosis.advice is not Advice.WAIT_FOR_LABELS:
        return None
    since = now_ms if evidence.waiting_since_ms is None else evidence.waiting_since_ms
    until = since + policy.label_wait_ms
    what = f"Performance fell ({fell}), and it is not clear why. {diagnosis.summary}"
    if now_ms >= until:
        return _of(
            Action.ESCALATE,
            Why.CAUSE_UNCLEAR,
            f"{what} Waiting has not told: a person must decide.",
            waiting_since_ms=since,
        )
    return _of(Action.WAIT_FOR_LABELS, Why.CAUSE_UNCLEAR, what, until, waiting_since_ms=since)


def _forbidden(evidence: Evidence, policy: Policy, _now_ms: int, fell: str) -> Decision | None:
    if policy.mode == "off":
        return _of(
            Action.WATCH,
            Why.RETRAINING_OFF,
            f"Performance fell ({fell}), but retraining is off in the contract.",
        )
    if not evidence.champion:
        return _of(
            Action.ESCALATE,
            Why.NO_CHAMPION,
            f"Performance fell ({fell}), but the model has no champion to replace. "
            "Name one with `trimtab model champion`.",
        )
    incident = evidence.incident
    if incident is not None and incident.attempts >= policy.max_attempts:
        return _of(
            Action.ESCALATE,
            Why.ATTEMPTS_SPENT,
            f"{incident.attempts} attempts did not end this incident: a person must act.",
        )
    return None


def _too_few_labels(evidence: Evidence, policy: Policy, now_ms: int, fell: str) -> Decision | None:
    if evidence.labelled_rows >= policy.min_labels:
        return None
    what = f"Performance fell ({fell})"
    return _wait(evidence, policy, now_ms, Why.TOO_FEW_LABELS, what, _figures(_standing(evidence)))


def _not_now(evidence: Evidence, policy: Policy, now_ms: int, fell: str) -> Decision | None:
    what = f"Performance fell ({fell}), but"
    last, incident = evidence.last_attempt, evidence.incident
    if last is not None:
        same = incident is not None and last.incident_id == incident.id
        attempts = max(1, incident.attempts) if same and incident is not None else 1
        until = last.finished_ms + cooldown_ms(policy, attempts)
        if now_ms < until:
            return _of(
                Action.HOLD,
                Why.COOLDOWN,
                f"{what} the last attempt ended {last.outcome.replace('_', ' ')}: "
                "the next one waits for its cooldown.",
                until,
                cooldown_until_ms=until,
            )
    if evidence.runs_this_month >= policy.budget_per_month:
        return _of(
            Action.HOLD,
            Why.BUDGET_SPENT,
            f"{what} {evidence.runs_this_month} of {policy.budget_per_month} runs of this month "
            "are used.",
            next_month_ms(policy, now_ms),
        )
    quiet = quiet_until_ms(policy, now_ms)
    if quiet is not None:
        return _of(
            Action.HOLD,
            Why.QUIET_HOURS,
            f"{what} these are quiet hours.",
            quiet,
            quiet_until_ms=quiet,
        )
    return None


_RULES: tuple[_Rule, ...] = (
    _taken_back,
    _under_way,
    _no_verdict,
    _data_quality,
    _for_people,
    _not_the_model,
    _inputs_moved,
    _performance,
)


def is_clear(evidence: Evidence) -> bool:
    """Whether the trouble is over: judged findings exist, and none stands.

    Silence is not health: with labels promised, a performance finding must be among them, unless
    no rule of the model looks at performance at all.
    """
    if evidence.newest_window_ms is None or not evidence.concerns or evidence.busy is not None:
        return False
    if evidence.watches_performance and not evidence.judged_performance:
        return False
    return not any(c.stands for c in evidence.concerns)


STATE_OF: dict[Action, IncidentState] = {
    Action.WATCH: IncidentState.WATCHING,
    Action.WAIT_FOR_LABELS: IncidentState.WAITING_FOR_LABELS,
    Action.HOLD: IncidentState.DIAGNOSING,
    Action.RETRAIN: IncidentState.ACTING,
    Action.ROLL_BACK: IncidentState.ACTING,
    Action.ESCALATE: IncidentState.ESCALATED,
}
"""The incident's state under each action; `none` leaves it where it is."""
