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
_QUALITY = (
    "accuracy",
    "f1",
    "macro_f1",
    "precision",
    "recall",
    "auc",
    "brier",
    "log_loss",
    "ece",
    "mae",
    "rmse",
)
_PLAIN = {"macro_f1": "f1"}

Column = list[float | None]


class Mark(Struct, frozen=True):
    """Something that happened at a moment: a canary's step, a promotion, a return."""

    at_ms: int
    label: str
    kind: str
    """ "canary", "promotion" or "champion"."""


class EstimatedColumns(Struct, frozen=True):
    """A figure as estimated without labels, of the judged version.

    `low` and `high` are 1.96 `se` away, and further while inputs alarm.
    """

    value: Column
    low: Column
    high: Column
    se: Column


class Estimated(Struct, frozen=True, kw_only=True):
    """What performance would be if P(label | score) had not changed, window by window."""

    figures: dict[str, EstimatedColumns]
    """By figure. A window without an estimate has nulls."""
    version: list[str | None]
    """The version that was judged."""
    status: list[str | None]
    """ok, extrapolating, invalid or not_available; null in verdicts from before there were estimates."""
    reason: list[str]
    """Why the status is not ok, and whether an alarm on inputs has widened the intervals; else empty."""
    not_estimated: dict[str, str] = field(default_factory=dict)
    """Figures that have no estimate, and why, by the newest window with one."""
    assumes: str
    """What the newest estimate assumes: never shown without it. Empty where there is none."""


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
    estimated: Estimated | None = None
    """The same figures without labels; None where no window says anything about them."""
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
        estimated=_estimated(trees),
        latency_ms={name: column(trees, "latency_ms", name) for name in ("p50", "p95", "p99")},
        drift=_drift(trees, _ruled(verdicts)),
        evidence=column(trees, "detector", "evidence"),
        resources=_resources(trees),
        marks=marks(traffic),
        thresholds=_thresholds(verdicts),
    )


def at(tree: Any, *path: str) -> Any:
    """Return what stands at a path of a tree; None where there is no such thing."""
    for name in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def column(trees: Sequence[Mapping[str, Any]], *path: str) -> Column:
    """Return the number at a path of each tree; None where there is none."""
    return [_number(at(tree, *path)) for tree in trees]


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _performance(trees: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Column]]:
    versions = sorted({version for tree in trees for version in at(tree, "performance") or {}})
    found: dict[str, dict[str, Column]] = {}
    for figure in _QUALITY:
        by_version = {
            version: column(trees, "performance", version, "figures", figure, "value")
            for version in versions
        }
        known = {
            v: values for v, values in by_version.items() if any(x is not None for x in values)
        }
        if known:
            found.setdefault(_PLAIN.get(figure, figure), known)
    return found


def _estimated(trees: Sequence[Mapping[str, Any]]) -> Estimated | None:
    status = [at(tree, "estimated", "status") for tree in trees]
    if not any(status):
        return None
    names = dict.fromkeys(n for tree in trees for n in at(tree, "estimated", "figures") or {})
    said = [at(tree, "estimated", "assumes") for tree in trees]
    return Estimated(
        figures={
            name: EstimatedColumns(
                *(
                    column(trees, "estimated", "figures", name, part)
                    for part in ("value", "low", "high", "se")
                )
            )
            for name in sorted(names, key=_place)
        },
        version=[
            at(tree, "judged_version") if s else None for tree, s in zip(trees, status, strict=True)
        ],
        status=status,
        reason=[at(tree, "estimated", "reason") or "" for tree in trees],
        not_estimated=next(
            filter(None, (at(t, "estimated", "not_estimated") for t in trees[::-1])), {}
        ),
        assumes=next((text for text in reversed(said) if text), ""),
    )


def _place(figure: str) -> int:
    """A figure's place in charts."""
    return _QUALITY.index(figure) if figure in _QUALITY else len(_QUALITY)


def _ruled(verdicts: Sequence[Verdict]) -> list[str]:
    """Features that the latest verdict's rules name, in the rules' order."""
    figures = [f.figure for f in verdicts[-1].findings if f.rule is not None] if verdicts else []
    # A figure with a feature is written `psi(income)`.
    return list(dict.fromkeys(f.partition("(")[2][:-1] for f in figures if f.endswith(")")))


def _drift(trees: Sequence[Mapping[str, Any]], ruled: Sequence[str]) -> dict[str, Column]:
    columns = {
        "max_psi": column(trees, "drift", "max_psi"),
        "drifted_share": column(trees, "drift", "drifted_share"),
    }
    largest: dict[str, float] = {}
    for tree in trees:
        for name, feature in (at(tree, "features") or {}).items():
            psi = _number(at(feature, "psi"))
            if psi is not None:
                largest[name] = max(psi, largest.get(name, psi))
    named = [name for name in ruled if name in largest]
    moved = sorted(largest.keys() - set(named), key=lambda name: (-largest[name], name))
    shown = [*named, *moved[: max(0, FEATURES_SHOWN - len(named))]]
    return columns | {f"psi({name})": column(trees, "features", name, "psi") for name in shown}


def _resources(trees: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    gauges = sorted({gauge for tree in trees for gauge in at(tree, "resources") or {}})
    columns = {gauge: column(trees, "resources", gauge, "mean") for gauge in gauges}
    return {
        gauge: values for gauge, values in columns.items() if any(x is not None for x in values)
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
