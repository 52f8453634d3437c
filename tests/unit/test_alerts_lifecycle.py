"""The life of an alert as a function of verdicts."""

from __future__ import annotations

import pytest

from trimtab.alerts.lifecycle import next_alerts
from trimtab.records import (
    Alert,
    AlertState,
    Evidence,
    Finding,
    Kind,
    Outcome,
    Reason,
    Verdict,
)

L = 1_000
RULE = "psi(x) > 0.2 in 2 of 3"
QUALITY = "accuracy < 0.9 in 1 of 1"


def finding(rule=RULE, outcome=Outcome.ALARM, *, kind=Kind.INPUT, breached=2, of=3, value=0.5):
    reason = Reason.RULE_BREACHED if outcome is Outcome.ALARM else Reason.WITHIN_LIMITS
    return Finding(
        kind=kind,
        outcome=outcome,
        reason=reason,
        figure="psi(x)",
        value=value,
        threshold=0.2,
        rule=rule,
        breached=breached,
        needed=2,
        of=of,
    )


def fine(**more):
    return finding(outcome=Outcome.OK, breached=0, value=0.1, **more)


def verdict(number, *findings, revision=1, flags=(False, False), baseline=1, changed=None):
    windows = [
        {"window_start_ms": (number - len(flags) + i) * L, "flags": {RULE: flag}}
        for i, flag in enumerate(flags)
    ]
    return Verdict(
        model="m",
        window_start_ms=number * L,
        window_end_ms=(number + 1) * L,
        revision=revision,
        outcome=Outcome.OK,
        kind=None,
        reason=Reason.WITHIN_LIMITS,
        summary="",
        changed=changed,
        findings=list(findings),
        figures={"rows": 1, "labels": "within 1 day"},
        evidence=Evidence(
            input_digest="d",
            contract_revision=3,
            code_version="t",
            baseline_id=baseline,
            prior={"windows": windows},
        ),
    )


def opened(number=10) -> Alert:
    (change,) = next_alerts([], verdict(number, finding()), 1, 5)
    assert change.change == "opened"
    return change.alert


def test_a_condition_opens_once_and_is_updated_while_it_lasts():
    alert = opened()
    assert (alert.condition, alert.windows, alert.baseline_id) == (RULE, 1, 1)
    (again,) = next_alerts([alert], verdict(11, finding()), 2, 6)
    assert (again.change, again.alert.id, again.alert.windows) == ("updated", alert.id, 2)
    (late,) = next_alerts([again.alert], verdict(9, finding(), revision=2), 3, 7)
    assert (late.alert.windows, late.alert.window_start_ms) == (2, 9 * L)
    assert late.alert.last_window_ms == 11 * L


@pytest.mark.parametrize("flags", [(True, False), (None, False), (False,)])
def test_it_stays_open_until_every_window_of_its_rule_was_judged_and_calm(flags):
    assert next_alerts([opened()], verdict(13, fine(), flags=flags), 2, 6) == []


def test_it_is_resolved_when_the_last_n_windows_were_calm():
    (change,) = next_alerts([opened()], verdict(13, fine()), 2, 6)
    assert (change.change, change.alert.state) == ("resolved", AlertState.RESOLVED)
    assert change.alert.resolution == "Within limits in the last 3 windows."


@pytest.mark.parametrize("outcome", [Outcome.CANNOT_TELL, Outcome.WARNING])
def test_not_knowing_and_a_warning_resolve_nothing(outcome):
    said = finding(outcome=outcome, breached=1)
    assert next_alerts([opened()], verdict(13, said), 2, 6) == []


def test_after_resolution_the_next_alarm_is_a_new_alert_but_an_old_revision_is_not():
    alert = opened()
    (change,) = next_alerts([alert], verdict(13, fine()), 2, 6)
    assert next_alerts([change.alert], verdict(11, finding(), revision=2), 3, 7) == []
    (new,) = next_alerts([change.alert], verdict(20, finding()), 4, 8)
    assert new.change == "opened"
    assert new.alert.id != alert.id


def test_a_revision_that_clears_the_only_window_resolves_and_says_so():
    cleared = verdict(10, fine(), revision=2, flags=(True, False), changed="+40 rows")
    (change,) = next_alerts([opened()], cleared, 2, 6)
    assert change.alert.resolution == (
        "Revision 2 of its only window no longer meets the rule (+40 rows)."
    )


def test_a_rule_that_left_the_contract_ends_its_alert():
    (change,) = next_alerts([opened()], verdict(11), 2, 6)
    assert change.alert.resolution == "The rule is no longer in the contract (revision 3)."


@pytest.mark.parametrize(
    ("quality", "resolved"),
    [
        (Outcome.OK, True),
        (Outcome.ALARM, False),
        (Outcome.WARNING, False),
        (Outcome.CANNOT_TELL, False),
        (None, True),
    ],
)
def test_a_re_base_resolves_only_if_quality_is_ok_too(quality, resolved):
    findings = [fine()]
    if quality is not None:
        findings.append(finding(QUALITY, quality, kind=Kind.PERFORMANCE, of=1, value=0.95))
    changes = next_alerts([opened()], verdict(13, *findings, baseline=2), 2, 6)
    ended = [c for c in changes if c.alert.condition == RULE and c.change == "resolved"]
    assert bool(ended) is resolved


def test_a_detectors_alarm_has_a_condition_of_its_kind():
    said = Finding(
        kind=Kind.INPUT,
        outcome=Outcome.ALARM,
        reason=Reason.DETECTOR,
        figure="detector",
        detail="It moved.",
    )
    (change,) = next_alerts([], verdict(10, said), 1, 5)
    assert (change.alert.condition, change.alert.summary) == ("detector:input", "It moved.")
