"""One feature or output over time: the columns of its charts, and the API's routes to them.

A name may hold any character, a slash too, so the API takes it as a query's parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from litestar import Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter
from msgspec import Struct, field

from trimtab.api.series import Column as Values
from trimtab.api.series import column
from trimtab.errors import NotFoundError
from trimtab.records import Verdict
from trimtab.store import models, overview, verdicts
from trimtab.store.feature_view import (
    NAME_MAX,
    Column,
    FeatureView,
    FeatureWindow,
    baseline_figures,
    column_of,
    feature_view,
    feature_windows,
    summary_tree,
)

WINDOWS_MAX = 2_000
CATEGORIES_SHOWN = 6
"""Categories in the chart of shares: those with most rows over the windows asked for."""
FIGURES = {
    "psi": ("psi",),
    "ks": ("ks", "d"),
    "cramers_v": ("chi2", "cramers_v"),
    "mean": ("mean",),
    "p05": ("p05",),
    "p50": ("p50",),
    "p95": ("p95",),
    "missing_rate": ("missing_rate",),
    "type_error_rate": ("type_error_rate",),
    "unseen_rate": ("unseen_rate",),
    "out_of_range_rate": ("out_of_range_rate",),
    "superiority": ("effect", "superiority"),
    "sd_equivalents": ("effect", "sd"),
}
"""Where each figure of a column stands in its tree."""

Named = Annotated[
    str,
    QueryParameter(
        max_length=NAME_MAX,
        description="A feature, or an output as `output:NAME`, such as `income`.",
    ),
]


class FeatureSeries(Struct, frozen=True, kw_only=True):
    """Columns of equal length, oldest window first. A figure that could not be said is null."""

    model: str
    name: str
    t: list[float]
    """Window starts in seconds, the charting library's unit."""
    start_ms: list[int]
    end_ms: list[int]
    outcome: list[str]
    reason: list[str]
    figures: dict[str, Values] = field(default_factory=dict)
    """psi (debiased), ks or cramers_v, mean, p05, p50, p95, missing_rate, type_error_rate, unseen_rate,
    out_of_range_rate, superiority (P(new > reference)), sd_equivalents: those that any window has."""
    shares: dict[str, Values] = field(default_factory=dict)
    """Of a category: the share of rows of each of the most frequent."""
    evidence_share: Values = field(default_factory=list)
    """Its part of the detector's evidence; null beyond the sources that a window ranks."""
    alarm_open: list[bool] = field(default_factory=list)
    """Whether the detector's alarm on it stands: it brings no evidence then."""
    baseline: dict[str, float] = field(default_factory=dict)
    """The active baseline's value of a figure, over all its windows."""
    baseline_shares: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    """Of the latest verdict's rules on this column, by figure."""


def feature_series(
    model: str,
    of: Column,
    windows: Sequence[FeatureWindow],
    baseline: Mapping[str, Any],
    newest: Verdict | None,
) -> FeatureSeries:
    """Arrange one column's windows (oldest first); `baseline` is of `summary_tree`, `newest` has the rules' limits."""
    trees = [window.figures for window in windows]
    figures = {name: column(trees, *path) for name, path in FIGURES.items()}
    names = _categories(trees, baseline)
    return FeatureSeries(
        model=model,
        name=of.shown,
        t=[window.start_ms / 1000 for window in windows],
        start_ms=[window.start_ms for window in windows],
        end_ms=[window.end_ms for window in windows],
        outcome=[window.outcome for window in windows],
        reason=[window.reason for window in windows],
        figures={n: values for n, values in figures.items() if any(v is not None for v in values)},
        shares={name: [_share(tree, name) for tree in trees] for name in names},
        evidence_share=[window.evidence_share for window in windows],
        alarm_open=[window.alarm_open for window in windows],
        baseline={n: float(baseline[n]) for n in FIGURES if baseline.get(n) is not None},
        baseline_shares={name: (baseline.get("shares") or {}).get(name, 0.0) for name in names}
        if baseline
        else {},
        thresholds=_thresholds(newest, of),
    )


def _categories(trees: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[str]:
    total: dict[str, float] = dict.fromkeys(baseline.get("shares") or {}, 0.0)
    for tree in trees:
        for name, share in (tree.get("shares") or {}).items():
            total[name] = total.get(name, 0.0) + share
    return sorted(total, key=lambda name: (-total[name], name))[:CATEGORIES_SHOWN]


def _share(tree: Mapping[str, Any], name: str) -> float | None:
    shares = tree.get("shares")
    return None if shares is None else float(shares.get(name, 0.0))


def _thresholds(newest: Verdict | None, of: Column) -> dict[str, float]:
    if newest is None:
        return {}
    ending = f"({of.name})"
    return {
        finding.figure.removesuffix(ending): finding.threshold
        for finding in newest.findings
        if finding.rule and finding.threshold is not None and finding.figure.endswith(ending)
    }


@get("/models/{model:str}/feature", sync_to_thread=True)
def get_feature(state: State, model: FromPath[str], name: Named) -> FeatureView:
    """Get a feature or output: how it is watched, its newest figures beside the baseline's, its counts by bin."""
    overview.model_status(state.store, model)
    return feature_view(state.store, model, name, state.settings.alarms.false_alarms)


@get("/models/{model:str}/feature/series", sync_to_thread=True)
def get_feature_series(
    state: State,
    model: FromPath[str],
    name: Named,
    from_ms: Annotated[int | None, QueryParameter(name="from", required=False)] = None,
    to_ms: Annotated[int | None, QueryParameter(name="to", required=False)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=WINDOWS_MAX)] = 240,
) -> FeatureSeries:
    """Get one feature's or output's figures as columns, for charts: the newest `limit` windows of a range."""
    store = state.store
    overview.model_status(store, model)
    current = models.current_contract(store, model)
    if current is None:
        raise NotFoundError(f"{model!r} is not watched. `trimtab model list` names what is.")
    with store.read() as connection:
        rows = verdicts.latest_verdicts(connection, model, 1)
        newest = rows[0].verdict if rows else None
        of = column_of(current.contract, newest.figures if newest else {}, name)
        windows = feature_windows(connection, model, of, limit, from_ms=from_ms, before_ms=to_ms)
        was = baseline_figures(connection, model, of)
    return feature_series(model, of, windows, summary_tree(was), newest)


featuring = Router("/", route_handlers=[get_feature, get_feature_series])
