"""The figures of many windows as columns over one time axis: what the charts draw.

Times are seconds since the epoch in `t` (the charting library's unit) and ms elsewhere. A figure that
could not be said is null, so that a line has a gap and not a zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from trimtab.events.types import Traffic
from trimtab.records import Verdict

FEATURES_SHOWN = 5
"""Features in the drift chart, unless rules name more: those come first, all of them."""
_QUALITY = ("accuracy", "f1", "macro_f1", "precision", "recall", "mae", "rmse")
_PLAIN = {"macro_f1": "f1"}

Column = list[float | None]


class Mark(Struct, frozen=True):
    """Something that happened at a moment: a canary's step, a promotion, a return."""

    at_ms: int
    label: str
    kind: str
    """ "canary", "promotion" or "champion"."""


class Series(Struct, frozen=True, kw_only=True):
    """Columns of equal length, oldest window first."""

    model: str
    t: list[float]
    start_ms: list[int]
    end_ms: list[int]
    outcome: list[str]
    reason: list[str]
    rows: Column
    error_rate: Column
    performance: dict[str, dict[str, Column]] = field(default_factory=dict)
    """Figure, then version."""
    latency_ms: dict[str, Column] = field(default_factory=dict)
    drift: dict[str, Column] = field(default_factory=dict)
    """`max_psi`, `drifted_share`, and `psi(feature)`: of features that a rule names, then of those that
    moved most."""
    evidence: Column = field(default_factory=list)
    """Of the detector, as a share of what makes an alarm."""
    resources: dict[str, Column] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)
    """Of the rules in the latest verdict, by figure."""


def series(
    model: str, verdicts: Sequence[Verdict], traffic: Sequence[tuple[int, Traffic]] = ()
) -> Series:
    """Arrange verdicts (oldest first) as columns; `traffic` is (time in ms, split), any order."""
    trees = [verdict.figures for verdict in verdicts]
    return Series(
        model=model,
        t=[verdict.window_start_ms / 1000 for verdict in verdicts],
        start_ms=[verdict.window_start_ms for verdict in verdicts],
        end_ms=[verdict.window_end_ms for verdict in verdicts],
        outcome=[verdict.outcome.value for verdict in verdicts],
        reason=[verdict.reason.value for verdict in verdicts],
        rows=[tree.get("rows") for tree in trees],
        error_rate=[tree.get("error_rate") for tree in trees],
        performance=_performance(trees),
        latency_ms={name: _column(trees, "latency_ms", name) for name in ("p50", "p95", "p99")},
        drift=_drift(trees, _ruled(verdicts)),
        evidence=_column(trees, "detector", "evidence"),
        resources=_resources(trees),
        marks=marks(traffic),
        thresholds=_thresholds(verdicts),
    )


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def _column(trees: Sequence[Mapping[str, Any]], *path: str) -> Column:
    return [_number(_at(tree, *path)) for tree in trees]


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _performance(trees: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Column]]:
    versions = sorted({version for tree in trees for version in _at(tree, "performance") or {}})
    found: dict[str, dict[str, Column]] = {}
    for figure in _QUALITY:
        by_version = {
            version: _column(trees, "performance", version, "figures", figure, "value")
            for version in versions
        }
        known = {
            v: column for v, column in by_version.items() if any(x is not None for x in column)
        }
        if known:
            found.setdefault(_PLAIN.get(figure, figure), known)
    return found


def _ruled(verdicts: Sequence[Verdict]) -> list[str]:
    """Features that the latest verdict's rules name, in the rules' order."""
    figures = [f.figure for f in verdicts[-1].findings if f.rule is not None] if verdicts else []
    # A figure with a feature is written `psi(income)`.
    return list(dict.fromkeys(f.partition("(")[2][:-1] for f in figures if f.endswith(")")))


def _drift(trees: Sequence[Mapping[str, Any]], ruled: Sequence[str]) -> dict[str, Column]:
    columns = {
        "max_psi": _column(trees, "drift", "max_psi"),
        "drifted_share": _column(trees, "drift", "drifted_share"),
    }
    largest: dict[str, float] = {}
    for tree in trees:
        for name, feature in (_at(tree, "features") or {}).items():
            psi = _number(_at(feature, "psi"))
            if psi is not None:
                largest[name] = max(psi, largest.get(name, psi))
    named = [name for name in ruled if name in largest]
    moved = sorted(largest.keys() - set(named), key=lambda name: (-largest[name], name))
    shown = [*named, *moved[: max(0, FEATURES_SHOWN - len(named))]]
    return columns | {f"psi({name})": _column(trees, "features", name, "psi") for name in shown}


def _resources(trees: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    gauges = sorted({gauge for tree in trees for gauge in _at(tree, "resources") or {}})
    columns = {gauge: _column(trees, "resources", gauge, "mean") for gauge in gauges}
    return {
        gauge: column for gauge, column in columns.items() if any(x is not None for x in column)
    }


def marks(traffic: Sequence[tuple[int, Traffic]]) -> list[Mark]:
    """Turn traffic revisions into what a person calls them."""
    found: list[Mark] = []
    champion: str | None = None
    for at_ms, split in sorted(traffic, key=lambda entry: entry[1].revision):
        arms = {arm.name: arm for arm in split.arms}
        challenger, first = arms.get("challenger"), split.arms[0].version
        if challenger is not None:
            found.append(Mark(at_ms, f"canary {challenger.weight:.0%}", "canary"))
        elif champion is not None and first != champion:
            found.append(Mark(at_ms, f"promoted {first}", "promotion"))
        elif champion is not None and found and found[-1].kind == "canary":
            found.append(Mark(at_ms, "back to champion", "champion"))
        champion = first
    return found


def _thresholds(verdicts: Sequence[Verdict]) -> dict[str, float]:
    if not verdicts:
        return {}
    return {
        finding.figure: finding.threshold
        for finding in verdicts[-1].findings
        if finding.rule and finding.threshold is not None
    }
