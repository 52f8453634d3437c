"""What `reference` means in a rule: the rule's own figure, of the active baseline.

    performance        the figure pooled over the labelled rows of the baseline's windows, or of its file, of
                       one version (`version_of`)
    rows               mean rows of a baseline's window
    gauges             over all samples of the baseline's windows: their mean, or the largest
    all others         of the baseline's merged counts; of those of the window's season, where the verdict
                       compares with these

A rule cannot be judged before its reference stands (`standing`): a baseline that is complete, and for
performance enough labelled rows of which the share has come that the contract waits for, or whose
time to come has run out. What was used is kept with the verdict: labels of a baseline come late and expire.
"""

from collections.abc import Mapping

from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.contracts.rules import FIGURES, Rule
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import (
    GAUGE_FIGURES,
    Figures,
    Labelled,
    figures,
    measure,
    performance_tree,
)
from trimtab.records import Kind, Reason
from trimtab.stats.aggregate import ResourceState
from trimtab.stats.cuts import ModelCuts

FILE = ""
"""The version that stands for the answers in a baseline's file."""


LEAST_GAUGE_SAMPLES = 1
"""Resources are sampled seldom; a rule on them needs one sample unless it says `min_rows`."""
_NOT_IN_FILES = frozenset(("error_rate", "abnormal_request_rate", "abnormal_response_rate"))


class ReferenceLabels(Struct, frozen=True):
    """Joined labels of a baseline's windows, or of its file."""

    by_version: Mapping[str, Labelled]
    due: bool
    """No more are waited for: their time has run out, or they are of a file."""
    is_file: bool = False


class ReferenceFigure(Struct, frozen=True, omit_defaults=True):
    """What one rule is compared with."""

    value: float | None
    """None where it cannot be said, and `reason` says why."""
    rows: int = 0
    """Rows behind it: labelled ones of performance, samples of a gauge."""
    low: float | None = None
    high: float | None = None
    """Its 95 % interval, where one is known."""
    version: str | None = None
    """Of performance: the version whose rows they are; "" of a file."""
    predicted_rows: int = 0
    """Of performance: its rows that could have a label."""
    due: bool = True
    """Of performance: whether no more labels are waited for."""
    reason: str = ""
    """What is missing, to follow "the baseline": "has no latencies"."""


def is_performance(rule: Rule) -> bool:
    """Whether a rule's figure comes from labels."""
    return FIGURES[rule.figure].kind.value == Kind.PERFORMANCE.value


def least_rows(rule: Rule, contract: Contract) -> int:
    """Return how many rows a rule needs, of a window and of the reference alike."""
    if rule.min_rows is not None:
        return rule.min_rows
    return LEAST_GAUGE_SAMPLES if rule.figure in GAUGE_FIGURES else contract.windows.min_rows


def shortage(rule: Rule, found: ReferenceFigure, contract: Contract) -> tuple[Reason, str] | None:
    """Return why a rule cannot be compared with its reference yet, or at all; None when it can."""
    if is_performance(rule):
        needed = least_rows(rule, contract)
        waits = Reason.TOO_FEW_ROWS if found.due else Reason.WAITING_FOR_LABELS
        if found.version is None:
            return waits, f"no reference: the baseline {found.reason}"
        if found.rows < needed:
            return waits, (
                f"no reference: the baseline has {found.rows:,} labelled rows, {needed:,} are wanted"
            )
        share = contract.labels.judge_share
        if not found.due and found.rows < share * found.predicted_rows:
            return waits, (
                f"no reference yet: {found.rows:,} of the baseline's {found.predicted_rows:,} rows are "
                f"labelled so far, {share:.0%} are waited for"
            )
    if found.value is None:
        return Reason.UNDEFINED, f"no reference: the baseline {found.reason}"
    return None


# --- what is counted --------------------------------------------------------------------------------


def baseline_tree(
    baseline: Baseline, cuts: ModelCuts | None, contract: Contract, resources: ResourceState
) -> Figures:
    """Return the figures of a baseline, as of one large window; without features under other cuts.

    `baseline.state` may be of one season's windows only; `resources` are those of all its windows.
    """
    known = cuts if cuts is not None and cuts.cuts_id == baseline.state.cuts_id else None
    return figures(
        baseline.state,
        known,
        None,
        contract,
        {},
        rows_by_version={},
        resources=resources,
        judged_version=None,
    )


def counted_figure(
    rule: Rule, tree: Figures, windows: int, *, is_file: bool, dated: bool, same_length: bool = True
) -> ReferenceFigure:
    """Return the reference of a rule on what is counted, from `baseline_tree`.

    `windows` is how many windows the tree's rows are of; `dated` is false of a file without times, `same_length`
    of windows of another length than those that are judged.
    """
    if is_file and rule.figure in _NOT_IN_FILES:
        return ReferenceFigure(None, reason=f"is of a file, which says nothing of {rule.figure}")
    if rule.figure == "rows":
        if not dated:
            return ReferenceFigure(None, reason="is of a file without times, hence of no windows")
        if not same_length:
            return ReferenceFigure(None, reason="has windows of another length")
        return ReferenceFigure(tree["rows"] / windows, tree["rows"])
    found = measure(tree, rule.figure, rule.feature)
    if found.value is not None:
        return ReferenceFigure(found.value, found.rows)
    named = f"{rule.figure}({rule.feature})" if rule.feature else rule.figure
    return ReferenceFigure(None, reason=f"has no {named} ({found.reason or 'not measured'})")


# --- performance ------------------------------------------------------------------------------------


def version_of(labels: ReferenceLabels, judged: str | None, least: int) -> str | None:
    """Return whose labels are the reference: the judged version's, where it answered `least` rows there.

    Else those of the version with most rows there, ties by name; of a file those of the file.
    """
    rows = {version: found.predicted_rows for version, found in labels.by_version.items()}
    if judged is not None and rows.get(judged, 0) >= max(1, least):
        return judged
    return max(sorted(rows), key=lambda version: rows[version], default=None)


def labelled_figure(
    rule: Rule, labels: ReferenceLabels, judged: str | None, contract: Contract
) -> ReferenceFigure:
    """Return the reference of a rule on performance."""
    version = version_of(labels, judged, contract.windows.min_rows)
    if version is None:
        reason = (
            "is of a file without labels; fit it again with a label column"
            if labels.is_file
            else "has no labelled rows"
        )
        return ReferenceFigure(None, due=labels.due, reason=reason)
    found = labels.by_version[version]
    tree = {
        "rows": 0,
        "judged_version": version,
        "performance": {version: performance_tree(contract, found)},
    }
    measured = measure(tree, rule.figure)
    return ReferenceFigure(
        measured.value,
        found.labelled_rows,
        measured.low,
        measured.high,
        version,
        found.predicted_rows,
        labels.due,
        "" if measured.value is not None else f"has no {rule.figure} ({measured.reason})",
    )


# --- in words ---------------------------------------------------------------------------------------


def said_of(rule: Rule, value: float, found: ReferenceFigure, judged: str | None) -> str:
    """Return both numbers and the limit in words; the reference's own error with them, where it is known.

    Such as "accuracy 0.81, the reference has 0.93 (0.922 to 0.937, 4,210 labelled rows), the rule allows 0.88".
    """
    assert found.value is not None  # `shortage` has seen to it
    limit = rule.limit(found.value)
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    about = [" to ".join(f"{end:.4g}" for end in ends)] if ends else []
    what = "labelled rows" if is_performance(rule) else "rows"
    if rule.figure == "rows":
        about.append("mean of its windows")
    else:
        about.append(f"{found.rows:,} {'samples' if rule.figure in GAUGE_FIGURES else what}")
    if found.version is not None and found.version != judged:
        about.append(f"version {found.version}" if found.version != FILE else "its file")
    named = f"{rule.figure}({rule.feature})" if rule.feature else rule.figure
    text = (
        f"{named} {value:.4g}, the reference has {found.value:.4g} ({', '.join(about)}), "
        f"the rule allows {limit:.4g}"
    )
    if rule.met(value, limit) and not all(rule.met(value, rule.limit(end)) for end in ends):
        text += "; at one end of the reference's 95 % interval it is not met"
    return text
