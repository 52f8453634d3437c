"""An example model in a store: windows that drift, an alert, a run, a canary and its promotion.

For tests of what reads the store (API, dashboard, CLI) and for looking at them without a stream.
"""

import math
import random
from typing import Any

import msgspec
from msgspec import structs

from trimtab.contracts.parse import parse_contract
from trimtab.detect.diagnosis import Code, Sign, Signals, diagnose
from trimtab.detect.label_free import NOT_OF_CLASSES
from trimtab.events.types import TrafficArm
from trimtab.records import (
    Alert,
    AlertState,
    Evidence,
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
from trimtab.store import agent, leases
from trimtab.store.alerts import save_alert
from trimtab.store.engine import Store
from trimtab.store.models import apply_contract
from trimtab.store.verdicts import add_verdict

MODEL = "digits"
WINDOW_MS = 2_000
RULE = "accuracy < 0.90 in 3 of 4"

_CONTRACT = """
name = "NAME"
team = "TEAM"
task = "multiclass"
[features]
brightness = { kind = "number", min = 0, max = 1 }
contrast = { kind = "number", min = 0 }
sharpness = { kind = "number", min = 0 }
[prediction]
classes = ["0", "1", "2", "3"]
[labels]
arrive = "within 10 s"
[windows]
length = "2s"
[alarms]
rules = ["accuracy < 0.90 in 3 of 4"]
"""


def apply_example(store: Store, now_ms: int, name: str = MODEL, team: str = "vision") -> None:
    """Apply an example's contract."""
    text = _CONTRACT.replace("NAME", name).replace("TEAM", team)
    apply_contract(store, parse_contract(text, f"{name}.toml"), text, "example", now_ms)


def fill(store: Store, now_ms: int, windows: int = 120) -> int:
    """Fill a store with the whole story of one model, ending at `now_ms`; return the last window's start.

    It degrades from a third on, is retrained, goes through a canary, and is promoted at nine tenths.
    """
    apply_example(store, now_ms)
    first = (now_ms // WINDOW_MS - windows) * WINDOW_MS
    chance = random.Random(7)  # noqa: S311 - an example, no secret
    onset, canary, promoted = windows // 3, windows * 2 // 3, windows * 9 // 10
    breached = 0
    verdict_id = 0
    for number in range(windows):
        start = first + number * WINDOW_MS
        harm = 0.0 if number < onset or number >= promoted else min(1.0, (number - onset) / 20)
        accuracy = {"1": min(1.0, 0.97 - 0.3 * harm + chance.gauss(0, 0.012))}
        if number >= canary:
            accuracy["2"] = min(1.0, 0.94 + chance.gauss(0, 0.012))
        judged = "2" if number >= promoted else "1"
        breached = breached + 1 if accuracy[judged] < 0.9 else 0
        verdict = _verdict(start, harm, accuracy, judged, breached, chance)
        with store.write() as connection:
            verdict_id = add_verdict(connection, verdict, start + WINDOW_MS) or verdict_id
            if number == onset + 12:
                save_alert(connection, _alert(start, verdict_id))
    _agent_story(store, [first + n * WINDOW_MS for n in (onset + 12, canary, promoted)])
    return first + (windows - 1) * WINDOW_MS


def _verdict(
    start: int,
    harm: float,
    accuracy: dict[str, float],
    judged: str,
    breached: int,
    chance: random.Random,
) -> Verdict:
    outcome = Outcome.ALARM if breached >= 3 else Outcome.WARNING if breached else Outcome.OK
    reasons = {
        Outcome.ALARM: Reason.RULE_BREACHED,
        Outcome.WARNING: Reason.RULE_BREACHED_ONCE,
        Outcome.OK: Reason.WITHIN_LIMITS,
    }
    value = accuracy[judged]
    said = {
        Outcome.ALARM: f"Accuracy is {value:.3f}, below 0.90 in {min(breached, 4)} of the last 4 windows.",
        Outcome.WARNING: f"Accuracy is {value:.3f}, below 0.90 for the first time.",
        Outcome.OK: "Every rule is within its limits.",
    }
    finding = Finding(
        kind=Kind.PERFORMANCE,
        outcome=outcome,
        reason=reasons[outcome],
        figure="accuracy",
        value=value,
        threshold=0.9,
        rule=RULE,
        breached=min(breached, 4),
        needed=3,
        of=4,
        rows=200,
    )
    return Verdict(
        model=MODEL,
        window_start_ms=start,
        window_end_ms=start + WINDOW_MS,
        revision=1,
        outcome=outcome,
        kind=None if outcome is Outcome.OK else Kind.PERFORMANCE,
        reason=reasons[outcome],
        summary=said[outcome],
        findings=[finding],
        figures=_figures(harm, accuracy, judged, chance),
        evidence=Evidence(
            input_digest=f"{start:064x}",
            contract_revision=1,
            code_version="example",
            offsets=[("trimtab.inference", 0, start % 10_000, start % 10_000 + 200)],
            panes=1,
        ),
    )


def _figures(
    harm: float, accuracy: dict[str, float], judged: str, chance: random.Random
) -> dict[str, Any]:
    def feature(moved: float) -> dict[str, Any]:
        psi = max(0.0, moved * harm + chance.gauss(0.01, 0.01))
        return {
            "kind": "number",
            "rows": 200,
            "missing_rate": 0.0,
            "mean": 0.4 - 0.2 * moved * harm,
            "p05": 0.1,
            "p50": 0.4 - 0.2 * moved * harm,
            "p95": 0.8,
            "ks": {"d": min(1.0, psi / 2), "p_value": math.exp(-60 * psi)},
            "psi": psi,
            "effect": {"superiority": 0.5, "sd": moved * harm},
            "drifted": psi > 0.1,
        }

    features = {"contrast": feature(1.4), "sharpness": feature(0.9), "brightness": feature(0.12)}
    largest = max(features, key=lambda name: float(features[name]["psi"]))
    rows = 190 + chance.randrange(20)
    median = 1.1 + chance.random() * 0.3
    return {
        "rows": rows,
        "rows_by_version": dict.fromkeys(accuracy, rows // len(accuracy)),
        "status": {"ok": rows},
        "error_rate": 0.0,
        "abnormal": {"request_rate": 0.0, "response_rate": 0.0, "outlier_rate": 0.0, "rules": {}},
        "latency_ms": {
            "rows": rows,
            "mean": median,
            "p50": median,
            "p95": median * 1.8,
            "p99": median * 2.5,
            "max": median * 4,
        },
        "resources": {
            "cpu_percent": {"samples": 4, "mean": 31 + chance.random() * 8, "p95": 44, "max": 47},
            "memory_percent": {"samples": 4, "mean": 52 + chance.random(), "p95": 53, "max": 53},
        },
        "features": features,
        "prediction": {},
        "drift": {
            "max_psi": features[largest]["psi"],
            "max_psi_feature": largest,
            "drifted_share": sum(bool(f["drifted"]) for f in features.values()) / 3,
            "drifted": [name for name, f in features.items() if f["drifted"]],
        },
        "performance": {
            version: {
                "labelled_rows": rows // len(accuracy),
                "predicted_rows": rows // len(accuracy),
                "labelled_share": 1.0,
                "figures": {
                    "accuracy": {
                        "value": value,
                        "n": 200,
                        "low": value - 0.04,
                        "high": min(1.0, value + 0.03),
                    },
                    "macro_f1": {"value": value - 0.02},
                },
            }
            for version, value in accuracy.items()
        },
        "estimated": _estimated(harm, accuracy[judged], chance),
        "judged_version": judged,
        "labels": "within 10 s",
        "baseline": {"id": 1, "windows": 168, "rows": 33_600},
    }


def _estimated(harm: float, accuracy: float, chance: random.Random) -> dict[str, Any]:
    """What the scores alone promise: right at first, then beyond the reference, then contradicted by labels."""
    if harm == 0 and chance.random() < 0.05:
        reason = "no row of the window came with a score between 0 and 1"
        return {"figures": {}, "status": "not_available", "reason": reason}
    status, reason = "ok", ""
    if harm > 0.4:
        status = "invalid"
        reason = (
            "labels of the last 12 labelled windows contradict it: the answer was right 8.1 points less often "
            "than the scores promised"
        )
    elif harm > 0.1:
        status = "extrapolating"
        reason = "9 % of the rows have scores that hardly any labelled row of the reference had"
    value = min(1.0, accuracy + 0.2 * harm + chance.gauss(0, 0.008))
    return {
        "figures": {
            "accuracy": {
                "value": value,
                "low": value - 1.96 * 0.014,
                "high": min(1.0, value + 1.96 * 0.014),
                "se": 0.014,
            }
        },
        "not_estimated": dict(NOT_OF_CLASSES),
        "status": status,
        "reason": reason,
        "assumes": "Assumes P(label | score) has not changed since 2026-11-20 00:00 UTC; cannot see concept drift. "
        "Last checked against 2400 labels: residual z=-0.4.",
        "scored_rows": 200,
        "scored_share": 1.0,
        "reference_labels": 4_000,
    }


def _alert(start: int, verdict_id: int) -> Alert:
    return Alert(
        id="a1",
        model=MODEL,
        condition=RULE,
        kind=Kind.PERFORMANCE,
        state=AlertState.OPEN,
        opened_ms=start,
        updated_ms=start,
        window_start_ms=start,
        last_window_ms=start,
        windows=3,
        verdict_id=verdict_id,
        summary="Accuracy is 0.871, below 0.90 in 3 of the last 4 windows.",
    )


def _decision(onset_ms: int) -> dict[str, Any]:
    """The agent's decision, with the diagnosis it rests on."""
    brightness = Sign(
        code=Code.FEATURE_DRIFT,
        subject="brightness",
        text="psi(brightness) is 0.31, which meets the rule `psi(brightness) > 0.2`.",
        value=0.31,
        limit=0.2,
        onset_ms=onset_ms,
    )
    accuracy = Sign(
        code=Code.QUALITY_DROP,
        subject="accuracy",
        text="accuracy is 0.871, which meets the rule `accuracy < 0.90 in 3 of 4`.",
        value=0.871,
        limit=0.9,
        onset_ms=onset_ms,
    )
    measured = Signals(
        features=(brightness,),
        quality=(accuracy,),
        calibration=(),
        calibration_shape=(),
        labelled_rows=700,
    )
    return {
        "action": "retrain",
        "reason_code": "performance_fell",
        "diagnosis": msgspec.to_builtins(diagnose(measured)),
    }


def _agent_story(store: Store, moments: list[int]) -> None:
    alarmed, canary, promoted = moments
    lease = leases.acquire(store, "agent", "example", alarmed, 1_000_000_000_000)
    assert lease is not None
    agent.set_champion(store, MODEL, "1", "file:///models/1", "1" * 64, "example", alarmed)
    incident = Incident(
        id="i1",
        model=MODEL,
        state=IncidentState.ACTING,
        reason="Accuracy fell while the inputs moved: retraining on the rows since the onset.",
        opened_ms=alarmed,
        updated_ms=alarmed,
        onset_ms=alarmed - 3 * WINDOW_MS,
        alerts=["a1"],
        run_id="r1",
        decision=_decision(alarmed - 3 * WINDOW_MS),
    )
    run = Run(
        id="r1",
        model=MODEL,
        incident_id="i1",
        state=RunState.BLESSED,
        reason="The gate found a gain of 0.241 (0.203 to 0.279) on 700 held-out rows.",
        created_ms=alarmed,
        updated_ms=canary,
        trainer="image-cnn",
        onset_ms=alarmed,
        champion_version="1",
        version="2",
    )
    rollout = _rollout(canary)
    stages: list[tuple[int, RolloutState, float, str]] = [
        (canary, RolloutState.STEP, 0.05, "The first step gives 5 % to the challenger."),
        (
            canary + (promoted - canary) // 3,
            RolloutState.STEP,
            0.25,
            "No harm was shown: on to 25 %.",
        ),
        (
            canary + (promoted - canary) * 2 // 3,
            RolloutState.STEP,
            0.5,
            "Non-inferior so far: on to 50 %.",
        ),
        (
            promoted,
            RolloutState.WATCHING,
            0.0,
            "Non-inferior: e = 48 against the 20 that are needed.",
        ),
    ]
    with store.write() as connection:
        agent.apply_transition(connection, None, incident, incident.reason, {}, lease)
        agent.apply_transition(connection, None, run, run.reason, incident.decision, lease)
        agent.apply_transition(connection, None, rollout, rollout.reason, {}, lease)
    traffic = agent.current_traffic(store, MODEL)
    assert traffic is not None
    for at_ms, state, share, reason in stages:
        moved = structs.replace(
            rollout,
            state=state,
            reason=reason,
            updated_ms=at_ms,
            steps=[*rollout.steps, {"share": share, "from_ms": at_ms}] if share else rollout.steps,
        )
        traffic = structs.replace(
            traffic, revision=traffic.revision + 1, arms=_arms(share), salt="example"
        )
        with store.write() as connection:
            agent.apply_transition(connection, rollout, moved, reason, {}, lease)
            agent.set_traffic(connection, traffic, at_ms)
        rollout = moved


def _rollout(at_ms: int) -> Rollout:
    def rail(name: str, kind: str, champion: int, challenger: int) -> dict[str, Any]:
        return {
            "name": name,
            "kind": kind,
            "state": "passed",
            "reason": "",
            "log_e_harm": -2.1,
            "log_e_non_inferior": 3.87 if kind == "must_be_non_inferior" else None,
            "log_e_ceiling": None if kind == "must_be_non_inferior" else 4.2,
            "log_e_sample_ratio": -0.4,
            "champion_events": champion,
            "challenger_events": challenger,
            "champion_units": 1_840,
            "challenger_units": 930,
        }

    return Rollout(
        id="o1",
        model=MODEL,
        run_id="r1",
        state=RolloutState.PENDING,
        reason="Version 2 passed the gate.",
        created_ms=at_ms,
        updated_ms=at_ms,
        champion_version="1",
        challenger_version="2",
        salt="example",
        assessment={
            "guardrails": {
                "failures": rail("failures", "must_not_harm", 2, 1),
                "wrong_answers": rail("wrong_answers", "must_be_non_inferior", 588, 57),
            }
        },
    )


def _arms(share: float) -> list[TrafficArm]:
    def arm(name: str, version: str, weight: float) -> TrafficArm:
        return TrafficArm(name, version, weight, f"file:///models/{version}", version * 64)

    if share:
        return [arm("champion", "1", 1 - share), arm("challenger", "2", share)]
    return [arm("champion", "2", 0.95), arm("holdback", "1", 0.05)]
