"""The user's rules over figures: M of the last N windows, with minimum samples.

A rule is *met* in a window when its comparison holds there, and *alarms* when it is met in M of the
last N windows, this one included (a rule that begins with `warn` only warns). A window in which the figure could not be judged (too few rows, no
labels, undefined, no reference) counts as not met, and gives `cannot_tell` for itself. `warning` is a rule met now,
but not M times yet. Flags of a window: True met, False judged and not met, None not judged.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.contracts.rules import Rule, parse_rule
from trimtab.detect.figures import Figures, Measured, measure
from trimtab.detect.reference import (
    ReferenceFigure,
    is_performance,
    least_rows,
    said_of,
    shortage,
)
from trimtab.errors import ContractError
from trimtab.records import Finding, Kind, Outcome, Reason


class PriorWindow(Struct, frozen=True):
    """What an earlier window's latest verdict remembers, by the rule's text."""

    window_start_ms: int
    flags: dict[str, bool | None] = {}
    onsets: dict[str, int] = {}
    """Onset of each rule that was in alarm there."""


def rules_of(contract: Contract) -> list[Rule]:
    """Return the parsed rules of a contract. Raises ContractError."""
    return [parse_rule(text) for text in contract.alarms.rules]


def longest_memory(rules: Sequence[Rule]) -> int:
    """Return how many windows before this one any rule looks at: the largest N, less one."""
    return max((rule.n for rule in rules), default=1) - 1


def flag_of(finding: Finding) -> bool | None:
    """Return whether a rule was met in its own window, from the finding; None when it was not judged."""
    if finding.rule is None or finding.value is None or finding.threshold is None:
        return None
    if finding.outcome is Outcome.CANNOT_TELL or finding.reason is Reason.NOT_APPLICABLE:
        return None
    try:
        return parse_rule(finding.rule).met(finding.value, finding.threshold)
    except ContractError:  # a rule of a release that knew more figures
        return None


def judge_rules(
    rules: Sequence[Rule],
    tree: Figures,
    prior: Sequence[PriorWindow],
    contract: Contract,
    window_start_ms: int,
    *,
    labels_due: bool,
    has_rows: bool,
    calibrating: str | None,
    reference: Mapping[str, ReferenceFigure] | None = None,
) -> list[Finding]:
    """Return one finding per rule, in the rules' order.

    `prior` are earlier windows, oldest first; only those within the rule's N count. `labels_due` says
    that the time to wait for this window's labels has run out; `calibrating` is the progress of
    a baseline that has not begun to compare; `reference` has what rules are compared with, by their text.
    """
    context = _Context(
        tree, contract, window_start_ms, labels_due, has_rows, calibrating, reference or {}
    )
    return [_judge(rule, prior, context) for rule in rules]


class _Context(Struct, frozen=True):
    tree: Figures
    contract: Contract
    window_start_ms: int
    labels_due: bool
    has_rows: bool
    calibrating: str | None
    reference: Mapping[str, ReferenceFigure]


def _judge(rule: Rule, prior: Sequence[PriorWindow], context: _Context) -> Finding:
    found = measure(context.tree, rule.figure, rule.feature)
    length_ms = context.contract.windows.length_ms
    first_ms = context.window_start_ms - (rule.n - 1) * length_ms
    window = [p for p in prior if first_ms <= p.window_start_ms < context.window_start_ms]
    met_at = [p.window_start_ms for p in window if p.flags.get(rule.text)]
    said: dict[str, Any] = {
        "kind": Kind(rule.kind.value),
        "figure": f"{rule.figure}({rule.feature})" if rule.feature else rule.figure,
        "value": found.value,
        "threshold": None if rule.relative else rule.threshold,
        "rule": rule.text,
        "needed": rule.m,
        "of": rule.n,
        "rows": found.rows,
    }
    unjudged, explained = _why_not(rule, found, context), ""
    if rule.relative:
        missing = _no_reference(rule, context)
        unjudged = unjudged or missing
        if missing is None:
            against = context.reference[rule.text]
            assert against.value is not None  # `_no_reference` has seen to it
            said |= {"threshold": rule.limit(against.value), "reference": against.value}
            if unjudged is None and found.value is not None:
                judged = context.tree["judged_version"]
                explained = said_of(rule, found.value, against, judged)
    if unjudged is not None:
        outcome, reason, detail = unjudged
        return Finding(outcome=outcome, reason=reason, detail=detail, breached=len(met_at), **said)
    assert found.value is not None  # `_why_not` has seen to it
    now = rule.met(found.value, said["threshold"])
    if now:
        met_at.append(context.window_start_ms)
    said["breached"] = len(met_at)
    if len(met_at) >= rule.m:
        onsets = [p.onsets[rule.text] for p in window if rule.text in p.onsets]
        onset_ms = min([*onsets, *met_at])
        outcome = Outcome.WARNING if rule.warns else Outcome.ALARM
        return Finding(
            outcome=outcome,
            reason=Reason.RULE_BREACHED,
            onset_ms=onset_ms,
            detail=explained,
            **said,
        )
    if now:
        times = f"met in {len(met_at)} of the last {rule.n} windows, {rule.m} are needed"
        return Finding(
            outcome=Outcome.WARNING,
            reason=Reason.RULE_BREACHED_ONCE,
            onset_ms=met_at[0],
            detail=f"{explained}; {times}" if explained else times,
            **said,
        )
    return Finding(outcome=Outcome.OK, reason=Reason.WITHIN_LIMITS, detail=explained, **said)


def _no_reference(rule: Rule, context: _Context) -> tuple[Outcome, Reason, str] | None:
    """Why a rule has nothing to be compared with; None when it has."""
    if context.calibrating is not None:
        return Outcome.CANNOT_TELL, Reason.CALIBRATING, f"no reference yet: {context.calibrating}"
    found = context.reference.get(rule.text)
    if found is None:
        return Outcome.CANNOT_TELL, Reason.UNDEFINED, "no reference: there is no baseline"
    short = shortage(rule, found, context.contract)
    if short is not None:
        return Outcome.CANNOT_TELL, *short
    assert found.value is not None  # `shortage` has seen to it
    if not math.isfinite(rule.limit(found.value)):
        return Outcome.CANNOT_TELL, Reason.UNDEFINED, "the rule's limit is beyond all numbers"
    return None


def _why_not(rule: Rule, found: Measured, context: _Context) -> tuple[Outcome, Reason, str] | None:
    """Why this window cannot be judged by the rule; None when it can."""
    if rule.figure == "rows":
        return None  # no row at all is a number of rows, too
    if not context.has_rows:
        return Outcome.CANNOT_TELL, Reason.NO_DATA, "no rows in this window"
    performance = is_performance(rule)
    if performance and context.contract.labels.horizon_ms is None and found.rows == 0:
        return Outcome.OK, Reason.NOT_APPLICABLE, "the contract promises no labels"
    needed = least_rows(rule, context.contract)
    if found.rows < needed:
        if performance and not context.labels_due:
            detail = f"{found.rows} of {needed} labelled rows so far"
            return Outcome.CANNOT_TELL, Reason.WAITING_FOR_LABELS, detail
        reason = Reason.TOO_FEW_ROWS
        if performance:
            detail = (
                f"{found.rows} of {needed} labelled rows came, "
                f"promised {context.contract.labels.arrive}"
            )
        else:
            detail = f"{found.rows} rows, {needed} are needed"
        return Outcome.CANNOT_TELL, reason, detail
    if performance and not context.labels_due:
        waits = _waits(context)
        if waits is not None:
            return Outcome.CANNOT_TELL, Reason.WAITING_FOR_LABELS, waits
    if found.value is None:
        compared = rule.kind.value in (Kind.INPUT.value, Kind.PREDICTION.value)
        if compared and context.calibrating is not None:
            return Outcome.CANNOT_TELL, Reason.CALIBRATING, context.calibrating
        return Outcome.CANNOT_TELL, Reason.UNDEFINED, found.reason
    return None


def enough_labelled(contract: Contract, labelled_rows: int, predicted_rows: int) -> bool:
    """Whether so many labels of a window's rows are the share that rules on performance wait for."""
    if contract.labels.horizon_ms is None:
        return True
    return labelled_rows >= contract.labels.judge_share * predicted_rows


def _waits(context: _Context) -> str | None:
    """Say what share of labels is waited for; None when it is there."""
    found = context.tree["performance"].get(context.tree["judged_version"], {})
    labelled, predicted = found.get("labelled_rows", 0), found.get("predicted_rows", 0)
    labels = context.contract.labels
    if enough_labelled(context.contract, labelled, predicted):
        return None
    after = labels.judge_after or labels.arrive.removeprefix("within ")
    return (
        f"{labelled} of {predicted} rows labelled so far; it is judged when {labels.judge_share:.0%} "
        f"are, or after {after}"
    )
