"""A rule that begins with `warn` warns and never alarms; the agent weighs it all the same."""

from trimtab.contracts.model import Contract
from trimtab.contracts.rules import parse_rule
from trimtab.detect.rules import PriorWindow, judge_rules
from trimtab.records import Finding, Kind, Outcome, Reason
from trimtab_agent.decide.evidence import Concern, Evidence

TREE = {"rows": 500, "features": {"x": {"rows": 500, "psi": 0.4}}}
CONTRACT = Contract(name="m", task="binary")


def judge(text: str, breached_before: int) -> Finding:
    hour_ms = CONTRACT.windows.length_ms
    rule = parse_rule(text)
    prior = [
        PriorWindow(window_start_ms=(index + 1) * hour_ms, flags={rule.text: True})
        for index in range(breached_before)
    ]
    return judge_rules(
        [rule],
        TREE,
        prior,
        CONTRACT,
        (breached_before + 1) * hour_ms,
        labels_due=False,
        has_rows=True,
        calibrating=None,
    )[0]


def test_a_warn_rule_that_is_met_often_enough_is_an_established_warning():
    finding = judge("warn psi(x) > 0.2 in 2 of 3", breached_before=1)

    assert (finding.outcome, finding.reason) == (Outcome.WARNING, Reason.RULE_BREACHED)


def test_the_same_rule_without_warn_is_an_alarm():
    assert judge("psi(x) > 0.2 in 2 of 3", breached_before=1).outcome is Outcome.ALARM


def test_met_once_of_two_it_is_not_established():
    finding = judge("warn psi(x) > 0.2 in 2 of 3", breached_before=0)

    assert finding.reason is Reason.RULE_BREACHED_ONCE


def test_an_established_warning_counts_as_moved_inputs_and_a_single_breach_does_not():
    def concern(reason: Reason) -> Concern:
        return Concern(
            kind=Kind.INPUT,
            outcome=Outcome.WARNING,
            reason=reason,
            figure="psi(x)",
            rule=None,
            value=0.4,
            threshold=0.2,
            window_start_ms=0,
            onset_ms=0,
        )

    assert Evidence(model="m", concerns=[concern(Reason.RULE_BREACHED)]).moved()
    assert not Evidence(model="m", concerns=[concern(Reason.RULE_BREACHED_ONCE)]).moved()
