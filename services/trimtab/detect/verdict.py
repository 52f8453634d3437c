"""From the inputs of one closed window to its verdict. The same inputs always give the same bytes.

The overall outcome is the worst finding's (`Outcome.severity`), with one exception: a finding that only
waits (`waiting_for_labels`, `calibrating`) does not hide what another rule or the detector judged.
Volume alone is no such judgement: a model that nothing has judged is not green.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.detect.baseline import Baseline
from trimtab.detect.drift import Watched, Watching, is_detectors, watch
from trimtab.detect.figures import Figures, Labelled, figures
from trimtab.detect.label_free import LabelFree, estimated
from trimtab.detect.observed import Observed
from trimtab.detect.reference import ReferenceFigure
from trimtab.detect.rules import PriorWindow, flag_of, judge_rules, rules_of
from trimtab.records import Evidence, Finding, Kind, Outcome, Reason, Verdict
from trimtab.stats.aggregate import PaneState, ResourceState
from trimtab.stats.cuts import ModelCuts
from trimtab.stats.joint import JointState

Json = dict[str, Any]

_ENCODER = msgspec.json.Encoder(order="deterministic")
_WAITING = frozenset({Reason.WAITING_FOR_LABELS, Reason.CALIBRATING})
_KIND_ORDER = (
    Kind.DATA_QUALITY,
    Kind.PERFORMANCE,
    Kind.PREDICTION,
    Kind.INPUT,
    Kind.RESOURCES,
    Kind.VOLUME,
)
"""Which of two equally bad findings gives the verdict its kind: a broken feed explains the rest."""


class Carried(Struct, frozen=True, kw_only=True):
    """What the detector said in an earlier revision, where its state before the window is no longer there."""

    prior: Json
    tree: Figures
    findings: tuple[Finding, ...]


class WindowInputs(Struct, frozen=True, kw_only=True):
    """Everything a verdict depends on. Nothing else may."""

    contract: Contract
    contract_revision: int
    code_version: str
    window_start_ms: int
    window_end_ms: int
    revision: int
    state: PaneState | None
    """Merged over versions, arms and partitions; None without rows."""
    by_version: Mapping[str, PaneState] = {}
    performance: Mapping[str, Labelled] = {}
    resources: ResourceState = ResourceState()
    cuts: ModelCuts | None = None
    baseline: Baseline | None = None
    judged_version: str | None = None
    """The version whose quality and answers are judged: the champion."""
    labels_due: bool = False
    """The time to wait for this window's labels has run out (`labels.judge_after`)."""
    prior: Sequence[PriorWindow] = ()
    """Rule memory: the latest verdicts of earlier windows, oldest first."""
    detector: Watching | Carried | None = None
    no_detector: str = ""
    """Why there is none, where the baseline is complete."""
    segments: Mapping[str, PaneState] = {}
    """Counts of the segments that the detector looks at."""
    joint: JointState | None = None
    """How the columns that the detector pairs went together in the sampled rows, when the window was first judged;
    None where it was not read. Evidence keeps it, for samples grow, shrink and expire."""
    offsets: Sequence[tuple[str, int, int, int]] = ()
    panes: int = 0
    lost: int = 0
    """Messages known to be lost in the offset ranges above."""
    stalled: str | None = None
    """Why the window is judged although a partition holds its watermark."""
    changed: str | None = None
    label_free: LabelFree | None = None
    """What an estimate without labels rests on; None in verdicts from before there were any."""
    reference: Mapping[str, ReferenceFigure] = {}
    """What rules against the reference are compared with, by their text; empty without such rules, and while
    there is no complete baseline. Evidence keeps it, for labels of the baseline come late and expire."""


def observed(inputs: WindowInputs) -> Observed | None:
    """Return what the detector looks at of a window; None where it may not look.

    Of a window that lost messages, may get more rows, has another length or was counted under other cuts, it
    learns nothing. Of one without rows it learns the volume: that traffic has stopped is what people want to hear first.
    """
    watching = inputs.detector
    if not isinstance(watching, Watching) or inputs.stalled is not None or inputs.lost:
        return None
    state = inputs.state or PaneState(cuts_id=watching.cuts.cuts_id)
    if state.cuts_id != watching.cuts.cuts_id:
        return None
    if inputs.window_end_ms - inputs.window_start_ms != watching.detector.length_ms:
        return None
    answers = inputs.by_version.get(inputs.judged_version or "")
    return Observed(
        state=state,
        resources=inputs.resources,
        segments=inputs.segments,
        joint=inputs.joint or JointState(),
    ).with_answers({} if answers is None else answers.outputs)


def watched(inputs: WindowInputs) -> Watched | None:
    """Ask the detector; None where it has nothing to say of this window."""
    window = observed(inputs)
    if window is None or not isinstance(inputs.detector, Watching):
        return None
    return watch(inputs.detector, window, inputs.window_start_ms)


def evaluate(
    inputs: WindowInputs, compared: Figures | None = None, said: Watched | None = None
) -> Verdict:
    """Return the verdict of a window.

    `compared` may bring known `figures.comparisons` of its state, `said` what `watched` gave.
    Raises ContractError for a rule that cannot be read, IncompatibleCuts for states under other cuts.
    """
    contract = inputs.contract
    tree = figures(
        inputs.state,
        inputs.cuts,
        inputs.baseline,
        contract,
        inputs.performance,
        rows_by_version={v: s.rows for v, s in inputs.by_version.items()},
        resources=inputs.resources,
        judged_version=inputs.judged_version,
        answers=inputs.by_version.get(inputs.judged_version or ""),
        compared=compared,
    )
    findings = [*_volume(inputs), *_calibration(inputs)]
    if inputs.stalled is None and not inputs.lost:
        findings += judge_rules(
            rules_of(contract),
            tree,
            inputs.prior,
            contract,
            inputs.window_start_ms,
            labels_due=inputs.labels_due,
            has_rows=tree["rows"] > 0,
            calibrating=_calibrating(inputs),
            reference=inputs.reference,
        )
    else:
        findings += [_unjudged(rule.text, rule, inputs) for rule in rules_of(contract)]
    said = said or watched(inputs)
    if isinstance(inputs.detector, Carried):
        findings += inputs.detector.findings
        tree["detector"] = inputs.detector.tree
    elif said is not None:
        # Of no rows nothing is known but that there are none.
        findings += [f for f in said.findings if tree["rows"] or _is_of_volume(f)]
        tree["detector"] = said.tree
    else:
        tree["detector"] = {"id": None, "reason": _no_detector(inputs)}
    if inputs.label_free is not None:
        tree["estimated"] = _estimated(inputs, inputs.label_free, findings)
    worst = overall(findings, inputs)
    return Verdict(
        model=contract.name,
        window_start_ms=inputs.window_start_ms,
        window_end_ms=inputs.window_end_ms,
        revision=inputs.revision,
        outcome=worst.outcome,
        kind=None if worst.outcome is Outcome.OK else worst.kind,
        reason=worst.reason,
        summary=summary(worst, findings, tree["rows"]),
        findings=findings,
        figures=tree,
        evidence=Evidence(
            input_digest=input_digest(inputs),
            cuts_id=inputs.cuts.cuts_id if inputs.cuts else None,
            baseline_id=inputs.baseline.id if inputs.baseline else None,
            contract_revision=inputs.contract_revision,
            code_version=inputs.code_version,
            offsets=list(inputs.offsets),
            panes=inputs.panes,
            prior=_prior(inputs),
        ),
        changed=inputs.changed,
    )


def _is_of_volume(finding: Finding) -> bool:
    return finding.kind is Kind.VOLUME and finding.outcome is not Outcome.OK


def encode(verdict: Verdict) -> bytes:
    """Return a verdict as canonical JSON: equal verdicts, equal bytes."""
    return _ENCODER.encode(verdict)


def verify(stored: Verdict, recomputed: Verdict) -> list[str]:
    """Compare a stored verdict with one recomputed from the same inputs; name the parts that differ.

    An empty list means equal bytes.
    """
    if encode(stored) == encode(recomputed):
        return []
    before, after = msgspec.to_builtins(stored), msgspec.to_builtins(recomputed)
    return sorted(
        key
        for key in {**before, **after}
        if _ENCODER.encode(before.get(key)) != _ENCODER.encode(after.get(key))
    )


# --- digest -----------------------------------------------------------------------------------------


def input_digest(inputs: WindowInputs) -> str:
    """Return the SHA-256 over everything the verdict depends on, but its revision number."""
    parts: dict[str, Any] = {
        "window": [inputs.contract.name, inputs.window_start_ms, inputs.window_end_ms],
        "contract": inputs.contract_revision,
        "code": inputs.code_version,
        "state": _sha(inputs.state.to_bytes()) if inputs.state else None,
        "versions": {v: _sha(s.to_bytes()) for v, s in sorted(inputs.by_version.items())},
        "performance": {
            version: [_sha(joined.state.to_bytes()), joined.labelled_rows, joined.predicted_rows]
            for version, joined in sorted(inputs.performance.items())
        },
        "resources": _sha(inputs.resources.to_bytes()),
        "cuts": inputs.cuts.cuts_id if inputs.cuts else None,
        "prior": _prior(inputs),
        "segments": {name: _sha(s.to_bytes()) for name, s in sorted(inputs.segments.items())},
        "lost": inputs.lost,
        "stalled": inputs.stalled,
    }
    return hashlib.sha256(_ENCODER.encode(parts)).hexdigest()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _prior(inputs: WindowInputs) -> Json:
    baseline = inputs.baseline
    said: Json = {
        "judged_version": inputs.judged_version,
        "labels_due": inputs.labels_due,
        "baseline": [baseline.id, baseline.windows, baseline.wanted] if baseline else None,
        "windows": msgspec.to_builtins(list(inputs.prior)),
    }
    if inputs.label_free is not None:
        said["label_free"] = msgspec.to_builtins(inputs.label_free)
    if inputs.reference:
        said["reference"] = msgspec.to_builtins(dict(inputs.reference))
    if inputs.joint is not None:
        said["joint"] = base64.b64encode(inputs.joint.to_bytes()).decode()
    detector = inputs.detector
    if isinstance(detector, Carried):
        return {**said, "detector": detector.prior}
    if detector is not None:
        return {**said, "detector": detector_prior(detector)}
    return {**said, "no_detector": inputs.no_detector} if inputs.no_detector else said


def joint_of(prior: Mapping[str, Any]) -> JointState | None:
    """Return the relations of columns that evidence keeps; None where none were read. Raises StateError."""
    kept = prior.get("joint")
    return None if kept is None else JointState.from_bytes(base64.b64decode(kept))


def reference_of(prior: Mapping[str, Any]) -> dict[str, ReferenceFigure]:
    """Return what evidence keeps of the reference, by the rules' text."""
    return msgspec.convert(prior.get("reference", {}), dict[str, ReferenceFigure])


def detector_prior(watching: Watching) -> Json:
    """Return what evidence keeps of a detector: enough to ask it again while its state is kept."""
    return {
        "id": watching.id,
        "windows_per_alarm": watching.detector.windows_per_alarm,
        "before": watching.before,
    }


def _estimated(inputs: WindowInputs, known: LabelFree, findings: Sequence[Finding]) -> Figures:
    """Return what the judged version's figures would be by its scores."""
    judged = inputs.by_version.get(inputs.judged_version or "")
    contract = inputs.contract

    def alarm(what: str, *kinds: Kind) -> str | None:
        alarms = (f for f in findings if f.outcome is Outcome.ALARM and f.kind in kinds)
        return next(
            (
                f"an alarm on {what} stands ({f'`{f.rule}`' if f.rule else f.figure})"
                for f in alarms
            ),
            None,
        )

    return estimated(
        known,
        judged.scored if judged else {},
        judged.rows if judged else 0,
        contract.prediction.positive if contract.task == "binary" else None,
        alarm("data quality", Kind.DATA_QUALITY),
        # Answers of one version move only with its inputs.
        alarm("inputs or answers", Kind.INPUT, Kind.PREDICTION),
    )


# --- findings that need no rule ---------------------------------------------------------------------


def _volume(inputs: WindowInputs) -> list[Finding]:
    rows = inputs.state.rows if inputs.state else 0
    least = inputs.contract.windows.min_rows

    def said(kind: Kind, outcome: Outcome, reason: Reason, detail: str) -> list[Finding]:
        return [
            Finding(
                kind=kind,
                outcome=outcome,
                reason=reason,
                figure="rows",
                value=float(rows),
                threshold=float(least),
                rows=rows,
                detail=detail,
            )
        ]

    cannot = Outcome.CANNOT_TELL
    if inputs.stalled is not None:
        return said(Kind.VOLUME, cannot, Reason.STALLED, inputs.stalled)
    if inputs.lost:
        detail = f"{inputs.lost} messages of this window were lost before they were read"
        return said(Kind.DATA_QUALITY, cannot, Reason.LOST_MESSAGES, detail)
    if rows == 0:
        return said(Kind.VOLUME, cannot, Reason.NO_DATA, "no row came for this window")
    if rows < least:
        detail = f"{rows} rows, the contract asks for {least}"
        return said(Kind.VOLUME, cannot, Reason.TOO_FEW_ROWS, detail)
    return said(Kind.VOLUME, Outcome.OK, Reason.WITHIN_LIMITS, "")


def _calibrating(inputs: WindowInputs) -> str | None:
    """Progress of the baseline while it is gathered; None when it is complete."""
    if inputs.baseline is None:
        return f"calibrating: 0 of {inputs.contract.reference.windows} windows"
    return None if inputs.baseline.complete else inputs.baseline.progress


def _no_detector(inputs: WindowInputs) -> str:
    if inputs.detector is not None:
        return "it learns nothing of this window"
    return inputs.no_detector or _calibrating(inputs) or "none is fitted"


def _calibration(inputs: WindowInputs) -> list[Finding]:
    progress = _calibrating(inputs)
    if progress is None and inputs.no_detector.startswith("calibrating"):
        progress = inputs.no_detector
    if progress is None:
        return []
    return [
        Finding(
            kind=Kind.INPUT,
            outcome=Outcome.CANNOT_TELL,
            reason=Reason.CALIBRATING,
            figure="baseline",
            value=float(inputs.baseline.windows) if inputs.baseline else 0.0,
            threshold=float(inputs.contract.reference.windows),
            detail=progress,
        )
    ]


def _unjudged(text: str, rule: Any, inputs: WindowInputs) -> Finding:
    reason = Reason.STALLED if inputs.stalled is not None else Reason.LOST_MESSAGES
    return Finding(
        kind=Kind(rule.kind.value),
        outcome=Outcome.CANNOT_TELL,
        reason=reason,
        figure=f"{rule.figure}({rule.feature})" if rule.feature else rule.figure,
        threshold=None if rule.relative else rule.threshold,
        rule=text,
        needed=rule.m,
        of=rule.n,
    )


# --- overall ----------------------------------------------------------------------------------------


def overall(findings: Sequence[Finding], inputs: WindowInputs) -> Finding:
    """Return the finding that speaks for the window (see the module's text)."""
    judged_ok = [
        f
        for f in findings
        if f.outcome is Outcome.OK
        and f.reason is not Reason.NOT_APPLICABLE
        and f.figure != "rows"  # volume alone judges nothing
    ]
    warned = any(f.outcome in (Outcome.WARNING, Outcome.ALARM) for f in findings)
    counted = [f for f in findings if not ((judged_ok or warned) and f.reason in _WAITING)]
    worst = max(counted, key=lambda f: (f.outcome.severity, -_KIND_ORDER.index(f.kind)))
    if worst.outcome is not Outcome.OK:
        return worst
    if judged_ok:
        return judged_ok[0]
    return Finding(
        kind=Kind.VOLUME,
        outcome=Outcome.OK,
        reason=Reason.NOT_APPLICABLE,
        figure="rows",
        rows=inputs.state.rows if inputs.state else 0,
    )


def summary(worst: Finding, findings: Sequence[Finding], rows: int) -> str:
    """Return one plain sentence about the window."""
    if worst.outcome is Outcome.OK:
        if worst.reason is Reason.NOT_APPLICABLE:
            return f"{rows} rows came; no rule is set and no detector is fitted to judge them."
        judged = sum(f.rule is not None and flag_of(f) is not None for f in findings)
        rules = "the rule is" if judged == 1 else f"all {judged} rules are"
        parts = [f"{rules} within limits"] if judged else []
        if any(is_detectors(f) for f in findings):
            parts.append("the detector sees no change")
        waiting = sum(f.reason in _WAITING for f in findings)
        rest = f"; {waiting} more cannot be told yet" if waiting else ""
        return f"Over {rows} rows {' and '.join(parts)}{rest}."
    if worst.outcome is Outcome.CANNOT_TELL:
        return f"Cannot tell ({worst.reason}): {worst.detail or worst.figure}."
    others = sum(f.outcome is worst.outcome for f in findings) - 1
    more = f" (and {others} more)" if others else ""
    value = "?" if worst.value is None else f"{worst.value:.4g}"
    if worst.rule is None:
        return f"{worst.outcome.capitalize()}: {worst.detail or worst.figure}{more}."
    if worst.reference is not None:
        value += f", the reference {worst.reference:.4g}"
    return (
        f"{worst.outcome.capitalize()}: {worst.figure} is {value}; `{worst.rule}` was met in "
        f"{worst.breached} of the last {worst.of} windows{more}."
    )
