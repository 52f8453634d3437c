"""Every rule of the decision, as a table: the evidence, then what is decided and why."""

from typing import Any

import pytest
from msgspec.structs import replace

from trimtab.contracts.model import Contract, Retraining
from trimtab.detect.diagnosis import Advice, Cause, Code, Diagnosis, Sign
from trimtab.records import (
    Evidence as VerdictEvidence,
)
from trimtab.records import (
    Finding,
    Incident,
    IncidentState,
    Kind,
    Outcome,
    Reason,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Verdict,
)
from trimtab_agent.decide import (
    Action,
    Attempt,
    Concern,
    Decision,
    Evidence,
    Policy,
    Why,
    concerns,
    decide,
    next_incident,
    policy_of,
)
from trimtab_agent.decide.decision import is_clear
from trimtab_agent.decide.evidence import MEMORY_WINDOWS, Seen, gather, harm_onset_ms, last_attempt
from trimtab_agent.decide.incident import is_transition
from trimtab_agent.decide.policy import (
    cooldown_ms,
    month_start_ms,
    next_month_ms,
    quiet_until_ms,
)

NOW = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
DAY = 86_400_000
POLICY = Policy(
    mode="auto",
    trainer="tabular",
    min_labels=500,
    label_wait_ms=14 * DAY,
    cooldown_ms=DAY,
    budget_per_month=3,
    labels_promised=True,
)


def concern(kind: Kind, outcome: Outcome = Outcome.ALARM, figure: str = "f") -> Concern:
    return Concern(
        kind=kind,
        outcome=outcome,
        figure=figure,
        rule=None,
        value=0.5,
        threshold=0.9,
        window_start_ms=NOW - 1000,
        onset_ms=NOW - 5000,
    )


def evidence(*found: Concern, **changes: Any) -> Evidence:
    base = Evidence(
        model="m",
        concerns=list(found),
        watches_performance=True,
        judged_performance=any(c.kind is Kind.PERFORMANCE for c in found),
        newest_window_ms=NOW - 1000 if found else None,
        labelled_rows=600,
        labels_onset_ms=NOW - 5000,
    )
    return replace(base, **changes)


def incident(**changes: Any) -> Incident:
    base = Incident(
        id="i-1",
        model="m",
        state=IncidentState.WATCHING,
        reason="",
        opened_ms=NOW - 9000,
        updated_ms=NOW - 9000,
        onset_ms=NOW - 9000,
    )
    return replace(base, **changes)


def diagnosed(cause: Cause, advice: Advice, *codes: Code, **more: Any) -> Diagnosis:
    """A diagnosis as its rules make it; those are tested in test_diagnosis_rules."""
    reasons = tuple(Sign(code=code, subject="income", text="income changed.") for code in codes)
    return Diagnosis(
        cause=cause, advice=advice, summary=f"It is {cause.value}.", reasons=reasons, **more
    )


SHIFT = diagnosed(Cause.LABEL_SHIFT, Advice.RECALIBRATE, Code.LABEL_PRIOR, Code.CALIBRATION)
RELEASE = diagnosed(Cause.BAD_RELEASE, Advice.ROLL_BACK, Code.QUALITY_DROP, Code.DEPLOY)
MOVED_RELEASE = diagnosed(Cause.BAD_RELEASE, Advice.ROLL_BACK, Code.SCORE_DRIFT, Code.DEPLOY)
CONCEPT = diagnosed(Cause.CONCEPT_DRIFT, Advice.RETRAIN, Code.CALIBRATION, Code.QUALITY_DROP)
HARMFUL = diagnosed(Cause.COVARIATE_HARMFUL, Advice.RETRAIN, Code.FEATURE_DRIFT, Code.QUALITY_DROP)
UNCLEAR = diagnosed(Cause.UNDETERMINED, Advice.WAIT_FOR_LABELS, Code.CALIBRATION)
FED = diagnosed(Cause.DATA_QUALITY_BREAK, Advice.FIX_UPSTREAM, Code.HETEROGENEITY)
PIPELINE = diagnosed(Cause.LABEL_PIPELINE_BREAK, Advice.FIX_UPSTREAM, Code.LABEL_PIPELINE)
BAD = concern(Kind.PERFORMANCE, figure="accuracy")
FINE = concern(Kind.PERFORMANCE, Outcome.OK, figure="accuracy")
MOVED = concern(Kind.INPUT, figure="psi(x)")
BROKEN = concern(Kind.DATA_QUALITY, figure="missing(x)")

TABLE: list[tuple[str, Evidence, Policy, Action, Why]] = [
    ("nothing judged", evidence(), POLICY, Action.NONE, Why.CANNOT_TELL),
    ("all fine", evidence(FINE), POLICY, Action.NONE, Why.NOTHING_WRONG),
    ("busy", evidence(BAD, busy="Run r"), POLICY, Action.NONE, Why.UNDER_WAY),
    ("broken data", evidence(BAD, MOVED, BROKEN), POLICY, Action.WATCH, Why.DATA_QUALITY),
    ("volume", evidence(concern(Kind.VOLUME), FINE), POLICY, Action.WATCH, Why.NOT_THE_MODEL),
    ("no harm", evidence(MOVED, FINE), POLICY, Action.WATCH, Why.INPUTS_MOVED_NO_HARM),
    (
        "harm unknown",
        evidence(MOVED),
        POLICY,
        Action.WAIT_FOR_LABELS,
        Why.INPUTS_MOVED_HARM_UNKNOWN,
    ),
    (
        "no labels promised",
        evidence(MOVED),
        replace(POLICY, labels_promised=False),
        Action.WATCH,
        Why.INPUTS_MOVED_NO_LABELS,
    ),
    ("fell", evidence(BAD), POLICY, Action.RETRAIN, Why.PERFORMANCE_FELL),
    ("fell and moved", evidence(BAD, MOVED), POLICY, Action.RETRAIN, Why.PERFORMANCE_FELL),
    (
        "too few labels",
        evidence(BAD, labelled_rows=499),
        POLICY,
        Action.WAIT_FOR_LABELS,
        Why.TOO_FEW_LABELS,
    ),
    (
        "just enough labels",
        evidence(BAD, labelled_rows=500),
        POLICY,
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
    ),
    (
        "waited in vain",
        evidence(BAD, labelled_rows=1, waiting_since_ms=NOW - 14 * DAY),
        POLICY,
        Action.ESCALATE,
        Why.LABELS_NEVER_CAME,
    ),
    ("off", evidence(BAD), replace(POLICY, mode="off"), Action.WATCH, Why.RETRAINING_OFF),
    ("no champion", evidence(BAD, champion=False), POLICY, Action.ESCALATE, Why.NO_CHAMPION),
    (
        "attempts spent",
        evidence(BAD, incident=incident(attempts=2)),
        POLICY,
        Action.ESCALATE,
        Why.ATTEMPTS_SPENT,
    ),
    (
        "cooling down",
        evidence(
            BAD, incident=incident(attempts=1), last_attempt=Attempt("r", "refused", NOW - 1, "i-1")
        ),
        POLICY,
        Action.HOLD,
        Why.COOLDOWN,
    ),
    (
        "cooled down",
        evidence(
            BAD,
            incident=incident(attempts=1),
            last_attempt=Attempt("r", "refused", NOW - DAY, "i-1"),
        ),
        POLICY,
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
    ),
    (
        "another incident's attempt cools down, too",
        evidence(BAD, last_attempt=Attempt("r", "done", NOW - 1, "i-0")),
        POLICY,
        Action.HOLD,
        Why.COOLDOWN,
    ),
    ("budget", evidence(BAD, runs_this_month=3), POLICY, Action.HOLD, Why.BUDGET_SPENT),
    (
        "quiet",
        evidence(BAD),
        replace(POLICY, quiet_hours=("22:00", "06:00")),
        Action.HOLD,
        Why.QUIET_HOURS,
    ),
    (
        "label shift is recalibrated, not learned",
        evidence(BAD, diagnosis=SHIFT),
        POLICY,
        Action.WATCH,
        Why.LABEL_SHIFT,
    ),
    ("broken labels", evidence(BAD, diagnosis=PIPELINE), POLICY, Action.WATCH, Why.LABEL_PIPELINE),
    (
        "a break that no rule watches",
        evidence(BAD, diagnosis=FED),
        POLICY,
        Action.WATCH,
        Why.DATA_QUALITY,
    ),
    ("bad release", evidence(BAD, diagnosis=RELEASE), POLICY, Action.WATCH, Why.BAD_RELEASE),
    (
        "bad release that is watched",
        evidence(BAD, diagnosis=RELEASE, busy="Rollout o (watching)", watching="o"),
        POLICY,
        Action.ROLL_BACK,
        Why.BAD_RELEASE,
    ),
    (
        "moved answers alone take no promotion back",
        evidence(MOVED, diagnosis=MOVED_RELEASE, busy="Rollout o (watching)", watching="o"),
        POLICY,
        Action.NONE,
        Why.UNDER_WAY,
    ),
    (
        "concept drift",
        evidence(BAD, diagnosis=CONCEPT),
        POLICY,
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
    ),
    (
        "harmful covariate shift",
        evidence(BAD, MOVED, diagnosis=HARMFUL),
        POLICY,
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
    ),
    (
        "harm that labelled rows show where no rule watches performance",
        evidence(MOVED, diagnosis=HARMFUL, watches_performance=False),
        POLICY,
        Action.RETRAIN,
        Why.PERFORMANCE_FELL,
    ),
    (
        "harm by labelled rows that the user's own rule does not see",
        evidence(MOVED, FINE, diagnosis=HARMFUL),
        POLICY,
        Action.WATCH,
        Why.INPUTS_MOVED_NO_HARM,
    ),
    (
        "not clear why",
        evidence(BAD, diagnosis=UNCLEAR),
        POLICY,
        Action.WAIT_FOR_LABELS,
        Why.CAUSE_UNCLEAR,
    ),
    (
        "still not clear why",
        evidence(BAD, diagnosis=UNCLEAR, waiting_since_ms=NOW - 14 * DAY),
        POLICY,
        Action.ESCALATE,
        Why.CAUSE_UNCLEAR,
    ),
    (
        "labelled rows are being read",
        evidence(BAD, pending=True),
        POLICY,
        Action.HOLD,
        Why.DIAGNOSING,
    ),
]


@pytest.mark.parametrize(
    ("given", "policy", "action", "why"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_rules_decide_as_the_table_says(
    given: Evidence, policy: Policy, action: Action, why: Why
) -> None:
    found = decide(given, policy, NOW)
    assert (found.action, found.reason_code) == (action, why)
    assert found.reason.endswith(".")


def test_every_reason_but_none_has_a_row_in_the_table() -> None:
    assert {row[4] for row in TABLE} == set(Why)


@pytest.mark.parametrize("given", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_broken_feed_is_never_learned(given: Evidence) -> None:
    by_rule = replace(given, concerns=[*given.concerns, BROKEN], newest_window_ms=NOW - 1000)
    by_counts = replace(given, diagnosis=FED)
    for broken in (by_rule, by_counts):
        assert decide(broken, POLICY, NOW).action in (Action.WATCH, Action.NONE, Action.ROLL_BACK)


def test_every_decision_keeps_the_diagnosis_with_its_reasons() -> None:
    for diagnosis in (SHIFT, RELEASE, CONCEPT, UNCLEAR):
        decision = decide(evidence(BAD, diagnosis=diagnosis), POLICY, NOW)
        said = decision.numbers["diagnosis"]
        assert (said["cause"], said["advice"]) == (diagnosis.cause, diagnosis.advice)
        assert [each["code"] for each in said["reasons"]] == [s.code for s in diagnosis.reasons]
        moved = next_incident(None, decision, evidence(BAD), "i", NOW)
        assert moved is not None
        assert moved.decision["diagnosis"] == said
    assert "diagnosis" not in decide(evidence(BAD), POLICY, NOW).numbers


def test_of_very_many_signs_the_record_keeps_those_it_rests_on() -> None:
    many = tuple(
        Sign(code=Code.FEATURE_DRIFT, subject=f"x{n}", text=f"x{n} moved.") for n in range(2_000)
    )
    found = decide(evidence(BAD, diagnosis=replace(HARMFUL, reasons=many)), POLICY, NOW)
    said = found.numbers["diagnosis"]
    assert said["reasons"][0]["subject"] == "x0"
    assert len(said["reasons"]) + said["more_reasons"] == 2_000
    assert len(said["reasons"]) <= 40
    assert len(found.reason) < 300


def test_an_approval_is_named_when_a_person_must_give_it() -> None:
    found = decide(evidence(BAD), replace(POLICY, mode="approve"), NOW)
    assert found.action is Action.RETRAIN
    assert "approve" in found.reason


def test_a_no_keeps_its_numbers_like_a_yes() -> None:
    found = decide(evidence(BAD, labelled_rows=12), POLICY, NOW)
    assert found.numbers["labelled_rows"] == 12
    assert found.numbers["min_labels"] == 500
    assert found.numbers["waiting_since_ms"] == NOW
    assert found.next_wake_ms == NOW + 14 * DAY


def test_each_further_attempt_waits_twice_as_long() -> None:
    assert [cooldown_ms(POLICY, attempts) for attempts in (0, 1, 2, 3)] == [
        0,
        DAY,
        2 * DAY,
        4 * DAY,
    ]


@pytest.mark.parametrize(
    ("hours", "zone", "until_utc"),
    [
        (("22:00", "06:00"), "UTC", NOW + (46 * 60 + 40 + 7 * 3600) * 1000),
        (("20:00", "22:00"), "UTC", None),
        (("23:00", "23:30"), "Europe/Berlin", NOW + (16 * 60 + 40) * 1000),
        (("22:00", "22:00"), "UTC", None),
    ],
)
def test_quiet_hours_are_local_and_may_cross_midnight(
    hours: tuple[str, str], zone: str, until_utc: int | None
) -> None:
    policy = replace(POLICY, quiet_hours=hours, time_zone=zone)
    assert quiet_until_ms(policy, NOW) == until_utc


def test_the_budget_counts_from_the_first_of_the_month() -> None:
    assert month_start_ms(POLICY, NOW) == 1_698_796_800_000  # 2023-11-01
    assert next_month_ms(POLICY, NOW) == 1_701_388_800_000  # 2023-12-01


def test_a_contract_gives_its_policy() -> None:
    contract = Contract(name="m", task="binary", retraining=Retraining(mode="approve"))
    found = policy_of(contract)
    assert (found.mode, found.min_labels, found.cooldown_ms) == ("approve", 500, DAY)
    assert not found.labels_promised


# --- evidence -------------------------------------------------------------------------------------


def verdict(window: int, revision: int, *findings: Finding) -> Verdict:
    return Verdict(
        model="m",
        window_start_ms=window,
        window_end_ms=window + 1,
        revision=revision,
        outcome=Outcome.OK,
        kind=None,
        reason=Reason.WITHIN_LIMITS,
        summary="",
        findings=list(findings),
        figures={},
        evidence=VerdictEvidence(input_digest="", contract_revision=1, code_version=""),
    )


def finding(outcome: Outcome, reason: Reason = Reason.RULE_BREACHED, **more: Any) -> Finding:
    return Finding(kind=Kind.PERFORMANCE, outcome=outcome, reason=reason, figure="accuracy", **more)


def test_a_rule_speaks_from_the_newest_window_that_judged_it() -> None:
    waiting = finding(Outcome.CANNOT_TELL, Reason.WAITING_FOR_LABELS)
    found = concerns(
        [
            verdict(3, 1, waiting),
            verdict(2, 1, waiting),
            verdict(2, 2, finding(Outcome.ALARM, onset_ms=1)),
            verdict(1, 2, finding(Outcome.OK)),
        ]
    )
    assert [(c.outcome, c.window_start_ms, c.onset_ms) for c in found] == [(Outcome.ALARM, 2, 1)]


def test_windows_of_an_earlier_champion_are_left_out() -> None:
    assert concerns([verdict(5, 1, finding(Outcome.ALARM))], since_ms=6) == []


def test_findings_older_than_the_memory_are_forgotten() -> None:
    old = [verdict(0, 1, finding(Outcome.ALARM))]
    newer = [verdict(n, 1) for n in range(1, MEMORY_WINDOWS + 1)]
    assert concerns(old + newer) == []
    assert len(concerns(old + newer[:-1])) == 1


def test_the_onset_of_harm_is_the_first_breached_window_of_performance() -> None:
    assert harm_onset_ms([replace(BAD, onset_ms=7), replace(MOVED, onset_ms=3)], None) == 7
    assert harm_onset_ms([replace(MOVED, onset_ms=3)], incident(onset_ms=2)) == 2
    assert harm_onset_ms([replace(MOVED, onset_ms=3)], None) == 3
    assert harm_onset_ms([FINE], None) is None


def run(state: RunState, run_id: str = "r", finished_ms: int | None = NOW) -> Run:
    return Run(
        id=run_id,
        model="m",
        incident_id="i-1",
        state=state,
        reason="",
        created_ms=NOW - 10,
        updated_ms=NOW,
        trainer="t",
        onset_ms=0,
        champion_version="1",
        finished_ms=finished_ms,
    )


def test_refunded_runs_are_no_attempts_and_cost_no_budget() -> None:
    runs = [run(RunState.SUPERSEDED), run(RunState.CANCELLED), run(RunState.FAILED)]
    assert last_attempt(runs[:2], {}) is None
    assert last_attempt(runs, {}) == Attempt("r", "failed", NOW, "i-1")
    gathered = gather(
        model="m",
        verdicts=[],
        since_ms=0,
        labelled_rows=0,
        labels_onset_ms=None,
        incident=None,
        runs=runs,
        month_start_ms=0,
        last_attempt=None,
        busy=None,
        champion=True,
    )
    assert gathered.runs_this_month == 1


def test_a_blessed_run_ends_with_its_rollout() -> None:
    ends = {"r": ("rolled_back", NOW + 5)}
    assert last_attempt([run(RunState.BLESSED)], ends) == Attempt(
        "r", "rolled_back", NOW + 5, "i-1"
    )


# --- incidents ------------------------------------------------------------------------------------


def after(given: Evidence, before: Incident | None = None) -> tuple[Decision, Incident | None]:
    decision = decide(given, POLICY, NOW)
    return decision, next_incident(before, decision, given, "i-new", NOW)


def test_no_trouble_opens_no_incident() -> None:
    assert after(evidence(FINE))[1] is None
    assert after(evidence())[1] is None


def test_a_worsening_drift_stays_one_incident() -> None:
    _, first = after(evidence(MOVED, FINE))
    assert first is not None
    assert (first.id, first.state, first.onset_ms) == ("i-new", IncidentState.WATCHING, NOW - 5000)
    _, second = after(evidence(BAD, labelled_rows=3, incident=first), first)
    assert second is not None
    assert (second.id, second.state) == ("i-new", IncidentState.WAITING_FOR_LABELS)
    assert is_transition(first, second)
    decision, third = after(evidence(BAD, incident=second), second)
    assert decision.action is Action.RETRAIN
    assert third is not None
    assert third.state is IncidentState.ACTING


def test_the_same_decision_again_changes_nothing() -> None:
    _, first = after(evidence(MOVED, FINE))
    _, again = after(evidence(MOVED, FINE, incident=first), first)
    assert again is first


def test_only_judged_health_resolves_an_incident() -> None:
    open_one = incident()
    _, silent = after(evidence(incident=open_one), open_one)
    assert silent is open_one
    inputs_only = evidence(concern(Kind.INPUT, Outcome.OK), incident=open_one)
    assert not is_clear(inputs_only)
    _, unjudged = after(inputs_only, open_one)
    assert unjudged is open_one
    _, resolved = after(evidence(FINE, incident=open_one), open_one)
    assert resolved is not None
    assert resolved.state is IncidentState.RESOLVED
    assert resolved.resolved_ms == NOW


def test_broken_data_is_a_diagnosis() -> None:
    _, found = after(evidence(BROKEN))
    assert found is not None
    assert found.state is IncidentState.DIAGNOSING


# --- the diagnosis of what is gathered ---------------------------------------------------------------

HOUR = 3_600_000
ACCURACY = "accuracy < 0.9"


def window(n: int, version: str, *findings: Finding) -> Verdict:
    return replace(
        verdict(n * HOUR, 1, *findings),
        window_end_ms=(n + 1) * HOUR,
        figures={"rows_by_version": {version: 500}, "judged_version": version},
    )


def judged(outcome: Outcome, **more: Any) -> Finding:
    reason = Reason.WITHIN_LIMITS if outcome is Outcome.OK else Reason.RULE_BREACHED
    return finding(outcome, reason, rule=ACCURACY, value=0.8, threshold=0.9, **more)


def gathered(verdicts: list[Verdict], **more: Any) -> Evidence:
    given: dict[str, Any] = {
        "since_ms": 0,
        "labelled_rows": 900,
        "labels_onset_ms": None,
        "incident": None,
        "runs": [],
        "month_start_ms": 0,
        "last_attempt": None,
        "busy": None,
        "champion": True,
    }
    return gather(model="m", verdicts=verdicts, **{**given, **more})


RELEASED = [
    window(0, "1", judged(Outcome.OK)),
    window(1, "1", judged(Outcome.OK)),
    window(2, "2", judged(Outcome.ALARM, onset_ms=2 * HOUR)),
]


def test_a_drop_that_comes_with_a_version_is_its_doing() -> None:
    found = gathered(RELEASED)
    decision = decide(found, POLICY, NOW)
    assert (decision.action, decision.reason_code) == (Action.WATCH, Why.BAD_RELEASE)
    assert decision.reason == "Accuracy changed when version 2 came: roll back to 1."


def test_a_bad_release_stays_one_when_the_windows_that_showed_it_are_forgotten() -> None:
    first = next_incident(
        None, decide(gathered(RELEASED), POLICY, NOW), gathered(RELEASED), "i", NOW
    )
    assert first is not None
    later = [
        window(n, "2", judged(Outcome.ALARM, onset_ms=2 * HOUR))
        for n in range(30, 30 + MEMORY_WINDOWS)
    ]
    assert gathered(later).diagnosis.cause is Cause.UNDETERMINED
    assert gathered(later, incident=first).diagnosis.cause is Cause.BAD_RELEASE
    rolled_back = [replace(v, figures={"judged_version": "1"}) for v in later]
    assert gathered(rolled_back, incident=first).diagnosis.cause is Cause.UNDETERMINED
    broken = finding(Outcome.ALARM, onset_ms=30 * HOUR)
    broken = replace(broken, kind=Kind.DATA_QUALITY, figure="missing_rate(x)")
    worse = [replace(later[0], findings=[*later[0].findings, broken]), *later[1:]]
    found = gathered(worse, incident=first).diagnosis
    assert found.cause is Cause.DATA_QUALITY_BREAK


def test_a_watched_promotion_that_brought_the_drop_is_taken_back() -> None:
    rollout = Rollout(
        id="o-1",
        model="m",
        run_id="r",
        state=RolloutState.WATCHING,
        reason="",
        created_ms=0,
        updated_ms=0,
        champion_version="1",
        challenger_version="2",
    )
    found = gathered(RELEASED, rollout=rollout, busy="Rollout o-1 (watching)", since_ms=2 * HOUR)
    assert decide(found, POLICY, NOW).action is Action.ROLL_BACK
    into_trouble = [
        window(0, "1", judged(Outcome.OK)),
        window(1, "1", judged(Outcome.ALARM, onset_ms=HOUR)),
        window(2, "2", judged(Outcome.ALARM, onset_ms=2 * HOUR)),
    ]
    found = gathered(
        into_trouble, rollout=rollout, busy="Rollout o-1 (watching)", since_ms=2 * HOUR
    )
    assert decide(found, POLICY, NOW).action is Action.NONE, "it was as bad before the promotion"


def test_labelled_rows_and_values_are_weighed_only_where_something_stands() -> None:
    unit = (Sign(code=Code.DATA_QUALITY, subject="x", text="x is 100 times what it was."),)
    calm = [window(0, "1", judged(Outcome.OK))]
    assert gathered(calm, seen=Seen(broken_values=unit)).diagnosis.cause is Cause.NONE
    bad = [window(0, "1", judged(Outcome.ALARM, onset_ms=0))]
    found = gathered(bad, seen=Seen(broken_values=unit))
    assert decide(found, POLICY, NOW).reason_code is Why.DATA_QUALITY
