"""The life of an alert: opened once per condition, updated while it lasts, resolved with a reason.

A condition is a rule's text, or `detector:KIND`. A verdict acts on the alerts of its own model:

- in alarm, none open: `opened`, unless an alert of that condition was resolved at a later window (a late
  revision of an old window does not bring it back);
- in alarm, one open: `updated`;
- judged ok in the last N windows of its rule, from the alert's last window on: `resolved`;
- the only window that made it is revised and no longer in alarm: `resolved`, saying so;
- its rule has left the contract: `resolved`, saying so.

An alert about inputs or answers that was opened under another baseline is resolved only while quality
is judged ok as well, or the contract promises no labels: a re-base alone proves nothing.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from trimtab.detect.drift import is_detectors
from trimtab.detect.rules import flag_of
from trimtab.records import Alert, AlertState, Finding, Kind, Outcome, Reason, Verdict

Change = Literal["opened", "updated", "resolved"]


class AlertChange(Struct, frozen=True):
    """What a verdict does to one alert; `alert` is how it is afterwards."""

    change: Change
    alert: Alert


def condition_of(finding: Finding) -> str:
    """Return the key of a finding's condition."""
    return finding.rule if finding.rule is not None else f"detector:{finding.kind}"


def next_alerts(
    alerts: Sequence[Alert], verdict: Verdict, verdict_id: int, now_ms: int
) -> list[AlertChange]:
    """Return what a verdict changes.

    `alerts` are the model's open ones and, per condition, the last resolved one.
    """
    changes = []
    judged: dict[str, Finding] = {}
    for finding in verdict.findings:
        if finding.rule is not None or is_detectors(finding):
            judged[condition_of(finding)] = finding
    held = {a.condition: a for a in alerts if a.state is not AlertState.RESOLVED}
    closed = {a.condition: a for a in alerts if a.state is AlertState.RESOLVED}
    for condition, finding in judged.items():
        alert = held.get(condition)
        if finding.outcome is Outcome.ALARM:
            if alert is not None:
                changes.append(_updated(alert, verdict, verdict_id, now_ms))
            elif _is_news(closed.get(condition), verdict):
                changes.append(_opened(condition, finding, verdict, verdict_id, now_ms))
        elif alert is not None and (why := _over(alert, finding, verdict)):
            changes.append(_resolved(alert, why, verdict, verdict_id, now_ms))
    for condition, alert in held.items():
        gone = condition not in judged and not condition.startswith("detector:")
        if gone and verdict.window_start_ms >= alert.last_window_ms:
            revision = verdict.evidence.contract_revision
            why = f"The rule is no longer in the contract (revision {revision})."
            changes.append(_resolved(alert, why, verdict, verdict_id, now_ms))
    return changes


def _is_news(closed: Alert | None, verdict: Verdict) -> bool:
    return closed is None or verdict.window_start_ms > closed.last_window_ms


def _opened(
    condition: str, finding: Finding, verdict: Verdict, verdict_id: int, now_ms: int
) -> AlertChange:
    key = "\x1f".join((verdict.model, condition, str(verdict.window_start_ms), str(verdict_id)))
    alert = Alert(
        id=hashlib.sha256(key.encode()).hexdigest()[:16],
        model=verdict.model,
        condition=condition,
        kind=finding.kind,
        state=AlertState.OPEN,
        opened_ms=now_ms,
        updated_ms=now_ms,
        window_start_ms=verdict.window_start_ms,
        last_window_ms=verdict.window_start_ms,
        windows=1,
        verdict_id=verdict_id,
        summary=_summary(finding),
        baseline_id=verdict.evidence.baseline_id,
    )
    return AlertChange("opened", alert)


def _updated(alert: Alert, verdict: Verdict, verdict_id: int, now_ms: int) -> AlertChange:
    newer = verdict.window_start_ms > alert.last_window_ms
    finding = next(f for f in verdict.findings if condition_of(f) == alert.condition)
    return AlertChange(
        "updated",
        msgspec.structs.replace(
            alert,
            updated_ms=now_ms,
            window_start_ms=min(alert.window_start_ms, verdict.window_start_ms),
            last_window_ms=max(alert.last_window_ms, verdict.window_start_ms),
            windows=alert.windows + newer,
            verdict_id=verdict_id if newer else alert.verdict_id,
            summary=_summary(finding) if newer else alert.summary,
        ),
    )


def _resolved(
    alert: Alert, why: str, verdict: Verdict, verdict_id: int, now_ms: int
) -> AlertChange:
    return AlertChange(
        "resolved",
        msgspec.structs.replace(
            alert,
            state=AlertState.RESOLVED,
            updated_ms=now_ms,
            resolved_ms=now_ms,
            last_window_ms=max(alert.last_window_ms, verdict.window_start_ms),
            verdict_id=verdict_id,
            resolution=why,
        ),
    )


def _over(alert: Alert, finding: Finding, verdict: Verdict) -> str | None:
    """Why the alert is over; None while it is not, or while nobody can tell."""
    only_window = alert.window_start_ms == alert.last_window_ms == verdict.window_start_ms
    if only_window and verdict.revision > 1 and finding.outcome is not Outcome.CANNOT_TELL:
        changed = f" ({verdict.changed})" if verdict.changed else ""
        return f"Revision {verdict.revision} of its only window no longer meets the rule{changed}."
    if verdict.window_start_ms < alert.last_window_ms or finding.outcome is not Outcome.OK:
        return None
    if finding.reason is Reason.NOT_APPLICABLE or not _calm(finding, verdict):
        return None
    rebased = (
        (alert.kind in (Kind.INPUT, Kind.PREDICTION) or finding.reference is not None)
        and alert.baseline_id is not None
        and alert.baseline_id != verdict.evidence.baseline_id
    )
    if rebased:
        quality = _quality(verdict)
        if quality is None:
            return None
        return f"Within limits against baseline {verdict.evidence.baseline_id}; {quality}."
    windows = "window" if finding.of == 1 else f"{finding.of} windows"
    return f"Within limits in the last {windows}."


def _calm(finding: Finding, verdict: Verdict) -> bool:
    """Whether the rule was judged and not met in all of its last N windows."""
    if finding.rule is None:
        return True
    length_ms = verdict.window_end_ms - verdict.window_start_ms
    first_ms = verdict.window_start_ms - (finding.of - 1) * length_ms
    flags = [
        window.get("flags", {}).get(finding.rule)
        for window in verdict.evidence.prior.get("windows", [])
        if window["window_start_ms"] >= first_ms
    ]
    return finding.breached == 0 and flags.count(False) == finding.of - 1


def _quality(verdict: Verdict) -> str | None:
    """Say that quality is ok, too; None when it is not, or cannot be told although labels come."""
    found = [f for f in verdict.findings if f.kind is Kind.PERFORMANCE]
    promised = verdict.figures.get("labels", "never") != "never"
    if any(f.outcome is not Outcome.OK for f in found):
        return None
    if any(flag_of(f) is not None for f in found):
        return "quality is within limits, too"
    return None if found and promised else "no rule judges quality, so inputs stand alone"


def _summary(finding: Finding) -> str:
    value = "?" if finding.value is None else f"{finding.value:.4g}"
    if finding.rule is None:
        return finding.detail or f"The detector raised an alarm ({finding.kind})."
    if finding.reference is not None:
        value += f", the reference {finding.reference:.4g}"
    return (
        f"{finding.figure} is {value}: `{finding.rule}` was met in "
        f"{finding.breached} of the last {finding.of} windows."
    )
