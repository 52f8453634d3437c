"""How a decision moves an incident. Pure: returns the next record, or the same one unchanged."""

from typing import Any

import msgspec

from trimtab.records import Incident, IncidentState
from trimtab_agent.decide.decision import STATE_OF, Action, Decision, Why, is_clear
from trimtab_agent.decide.evidence import Evidence

DIAGNOSED = frozenset({Why.DATA_QUALITY})
"""Decisions to watch that are a diagnosis for people to act on."""


def next_incident(
    incident: Incident | None, decision: Decision, evidence: Evidence, new_id: str, now_ms: int
) -> Incident | None:
    """The incident after this decision: opened, moved, resolved, or as it was.

    None when there is no trouble and no incident. The caller compares with what it had and writes a
    transition when state or reason code differ. `new_id` names the incident if one is opened.
    """
    if incident is None:
        return _opened(decision, evidence, new_id, now_ms)
    if decision.action is Action.NONE:
        if decision.reason_code is Why.NOTHING_WRONG and is_clear(evidence):
            return msgspec.structs.replace(
                incident,
                state=IncidentState.RESOLVED,
                reason="The trouble is over: no rule is in alarm.",
                updated_ms=now_ms,
                resolved_ms=now_ms,
                next_wake_ms=None,
                decision=_recorded(decision, now_ms),
            )
        return incident
    moved = msgspec.structs.replace(
        incident,
        state=_state(decision),
        reason=decision.reason,
        next_wake_ms=decision.next_wake_ms,
        decision=_recorded(decision, now_ms),
    )
    same = _unstamped(moved) == _unstamped(incident)
    return incident if same else msgspec.structs.replace(moved, updated_ms=now_ms)


def _opened(decision: Decision, evidence: Evidence, new_id: str, now_ms: int) -> Incident | None:
    if decision.action is Action.NONE:
        return None
    onsets = [c.onset_ms for c in evidence.concerns if c.stands]
    return Incident(
        id=new_id,
        model=evidence.model,
        state=_state(decision),
        reason=decision.reason,
        opened_ms=now_ms,
        updated_ms=now_ms,
        onset_ms=min(onsets, default=now_ms),
        next_wake_ms=decision.next_wake_ms,
        decision=_recorded(decision, now_ms),
    )


def _state(decision: Decision) -> IncidentState:
    if decision.reason_code in DIAGNOSED:
        return IncidentState.DIAGNOSING
    return STATE_OF[decision.action]


def _recorded(decision: Decision, now_ms: int) -> dict[str, Any]:
    return {
        "action": decision.action.value,
        "reason_code": decision.reason_code.value,
        "reason": decision.reason,
        **decision.numbers,
        "decided_ms": now_ms,
    }


def _unstamped(incident: Incident) -> Incident:
    decision = {key: value for key, value in incident.decision.items() if key != "decided_ms"}
    return msgspec.structs.replace(incident, decision=decision, updated_ms=0)


def is_transition(old: Incident | None, new: Incident) -> bool:
    """Whether the change is worth a transition: another state or another reason code."""
    return (
        old is None
        or old.state is not new.state
        or old.decision.get("reason_code") != new.decision.get("reason_code")
    )
