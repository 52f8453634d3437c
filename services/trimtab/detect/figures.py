"""The figures of a window: a tree of plain values that people, rules and reports read.

None means "cannot be said"; a `reason` beside it says why. Rates are shares between 0 and 1, latencies
milliseconds, logarithms natural. The tree:

    rows, rows_by_version{v}
    status{ok, error, timeout, rejected}, error_rate
    abnormal{request_rate, response_rate, outlier_rate, rules{name: {rows, rate}}}
    latency_ms{rows, mean, p50, p95, p99, max}
    resources{gauge: {samples, mean, p95, max}}
    features{name: {kind, rows, missing_rate, type_error_rate, unseen_rate, out_of_range_rate, mean, sd,
        min, max, p05, p50, p95, shares, ks{d_low, d_high, d, p_value}, psi, psi_raw,
        chi2{statistic, dof, p_value, cramers_v, total_variation}, js, wasserstein_sd,
        effect{superiority, sd}, drifted, reason}}
    prediction{output: as a feature}
    drift{max_psi, max_psi_feature, drifted_share, drifted[], reason}
    performance{version: {labelled_rows, predicted_rows, labelled_share, sampled_share, figures{name:
        {value, n, low, high, interval, reason}}}}; `sampled_share` only when it is below 1: the others
        are then of the sample
    estimated{figures{name: {value, low, high, se, widened}}, not_estimated{name: why}, status, reason, assumes,
        scored_rows, scored_share, reference_labels, checked{labels, windows, residual, z, evidence}}: what the
        judged version's figures would be by its scores (`label_free`); added by `verdict.evaluate`. `widened`,
        only where it is not 0, is what low and high are further away than 1.96 `se` for an alarm on inputs
    judged_version, labels, baseline{id, windows, rows, season, reason}; `season` where the comparison is with the
        baseline's windows of that hour or day only

"Drifted" is descriptive: a Bonferroni-adjusted p value below DRIFT_ALPHA over all features of the window,
and a debiased PSI above DRIFT_PSI, so that a large window does not call a trifle drift.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.detect.baseline import Baseline
from trimtab.stats.aggregate import FeatureState, PaneState, ResourceState, describe_feature
from trimtab.stats.cuts import CategoryCuts, Cuts, ModelCuts
from trimtab.stats.loghistogram import LogHistogram
from trimtab.stats.outliers import finds_outliers
from trimtab.stats.performance import (
    PerformanceState,
    classification_figures,
    regression_figures,
)
from trimtab.stats.score_figures import NO_SCORES, score_figures
from trimtab.stats.tests import Comparison, Pair, compare_all
from trimtab.windows import abnormal

DRIFT_ALPHA = 0.05
DRIFT_PSI = 0.1
"""Folklore's "moderate change"; debiased, it means the same at every window size."""

Figures = dict[str, Any]

_LATENCY = {"p50_latency_ms": "p50", "p95_latency_ms": "p95", "p99_latency_ms": "p99"}
GAUGE_FIGURES = {"cpu_percent": "mean", "memory_bytes": "max", "disk_percent": "max"}
"""What a rule's figure is of the gauge of its name."""
_PERFORMANCE = {
    "accuracy": ("accuracy",),
    "precision": ("precision", "macro_precision"),
    "recall": ("recall", "macro_recall"),
    "f1": ("f1", "macro_f1"),
    "auc": ("auc",),
    "brier": ("brier",),
    "log_loss": ("log_loss",),
    "ece": ("ece",),
    "mae": ("mae",),
    "rmse": ("rmse",),
}
_OF_SCORES = frozenset(("auc", "brier", "log_loss", "ece"))
_RATES = ("error_rate",)
_FEATURE_PATHS: dict[str, tuple[str, ...]] = {
    "missing_rate": ("missing_rate",),
    "unseen_rate": ("unseen_rate",),
    "out_of_range_rate": ("out_of_range_rate",),
    "ks": ("ks", "d"),
    "ks_p": ("ks", "p_value"),
    "psi": ("psi",),
    "chi2_p": ("chi2", "p_value"),
}


class Labelled(Struct, frozen=True):
    """Joined labels of one version's rows in a window."""

    state: PerformanceState
    labelled_rows: int
    predicted_rows: int


class Measured(Struct, frozen=True):
    """One figure as a rule reads it: its value, the rows behind it, and why there is none."""

    value: float | None
    rows: int
    reason: str = ""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of performance, where one is known."""


def figures(
    state: PaneState | None,
    cuts: ModelCuts | None,
    baseline: Baseline | None,
    contract: Contract,
    performance: Mapping[str, Labelled],
    *,
    rows_by_version: Mapping[str, int],
    resources: ResourceState,
    judged_version: str | None,
    answers: PaneState | None = None,
    compared: Figures | None = None,
) -> Figures:
    """Return the tree of a window (see the module's text). `state` is None when it has no rows.

    `compared` is what `comparisons` gave for the same state, cuts and baseline, if already known.
    Raises IncompatibleCuts when state and baseline were counted under different cuts.
    """
    rows = state.rows if state else 0
    if compared is None:
        compared = comparisons(state, cuts, baseline, answers)
    statuses = dict(state.statuses) if state else {}
    return {
        "rows": rows,
        "rows_by_version": dict(sorted(rows_by_version.items())),
        "status": statuses,
        "error_rate": 1 - statuses.get("ok", 0) / rows if rows else None,
        "abnormal": _abnormal(state, cuts),
        "latency_ms": _latency(state.latency_ms if state else LogHistogram()),
        "resources": {name: _gauge(g) for name, g in sorted(resources.gauges.items())},
        **compared,
        "performance": {
            version: performance_tree(contract, labelled)
            for version, labelled in sorted(performance.items())
        },
        "judged_version": judged_version,
        "labels": contract.labels.arrive,
        "baseline": _baseline(baseline),
    }


def comparisons(
    state: PaneState | None,
    cuts: ModelCuts | None,
    baseline: Baseline | None,
    answers: PaneState | None = None,
) -> Figures:
    """Return the `features`, `prediction` and `drift` parts of the tree: the costly ones.

    Inputs are compared over all versions, outputs are those of `answers`, the judged version's rows
    (default: `state`), so that a canary's answers do not pass for drift of the champion's.
    """
    if state is None or cuts is None:
        nothing = "no rows" if state is None else "no cuts yet"
        return {"features": {}, "prediction": {}, "drift": _no_drift(nothing)}
    answers = answers or state
    reference = baseline.state if baseline else None
    inputs = _Side(cuts.feature, state.features, reference.features if reference else None)
    said = _Side(
        {name: c for name, c in cuts.output.items() if name in answers.outputs},
        answers.outputs,
        reference.outputs if reference else None,
    )
    # Of features and outputs together: one call costs much the same for one feature as for many.
    compared = iter(compare_all([*inputs.pairs(), *said.pairs()]))
    features, outputs = inputs.trees(compared), said.trees(compared)
    _mark_drifted({**features, **{f"prediction:{k}": v for k, v in outputs.items()}})
    return {"features": features, "prediction": outputs, "drift": _drift(features)}


def _abnormal(state: PaneState | None, cuts: ModelCuts | None) -> Figures:
    rows = state.rows if state else 0
    counts = dict(state.rules) if state else {}
    totals = (abnormal.REQUEST, abnormal.RESPONSE)
    told = rows > 0 and cuts is not None and finds_outliers(cuts)
    return {
        "request_rate": counts.get(abnormal.REQUEST, 0) / rows if rows else None,
        "response_rate": counts.get(abnormal.RESPONSE, 0) / rows if rows else None,
        "outlier_rate": counts.get(abnormal.OUTLIER, 0) / rows if told else None,
        "rules": {
            rule: {"rows": count, "rate": count / rows}
            for rule, count in sorted(counts.items())
            if rule not in totals and rows
        },
    }


def _latency(state: LogHistogram) -> Figures:
    return {
        "rows": state.count,
        "mean": state.mean,
        "p50": state.quantile(0.50),
        "p95": state.quantile(0.95),
        "p99": state.quantile(0.99),
        "max": state.maximum,
    }


def _gauge(state: LogHistogram) -> Figures:
    return {
        "samples": state.count,
        "mean": state.mean,
        "p95": state.quantile(0.95),
        "max": state.maximum,
    }


class _Side(Struct, frozen=True):
    """Features, or outputs, of a window beside those of the baseline."""

    cuts: Mapping[str, Cuts]
    window: Mapping[str, FeatureState]
    reference: Mapping[str, FeatureState] | None

    def pairs(self) -> list[Pair]:
        """Return what can be compared, in the order of `cuts`."""
        reference = self.reference or {}
        return [
            Pair(cuts, self.window[name], reference[name])
            for name, cuts in self.cuts.items()
            if name in self.window and name in reference
        ]

    def trees(self, compared: Iterator[Comparison]) -> dict[str, Figures]:
        """Return the tree of each feature; `compared` gives the comparison of each of `pairs`."""
        return {name: self._tree(name, cuts, compared) for name, cuts in self.cuts.items()}

    def _tree(self, name: str, cuts: Cuts, compared: Iterator[Comparison]) -> Figures:
        state = self.window.get(name)
        if state is None:
            kind = "category" if isinstance(cuts, CategoryCuts) else "number"
            return {"kind": kind, "rows": 0, "reason": "not counted in this window"}
        tree = _described(cuts, state)
        if self.reference is None:
            return {**tree, "reason": "no baseline yet"}
        if name not in self.reference:
            return {**tree, "reason": "not in the baseline"}
        return tree | _compared(cuts, next(compared))


def _described(cuts: Cuts, state: FeatureState) -> Figures:
    said = describe_feature(cuts, state)
    tree: Figures = {
        "kind": "category" if isinstance(cuts, CategoryCuts) else "number",
        "rows": said.rows,
        "missing_rate": said.missing_rate,
        "type_error_rate": said.type_error_rate,
    }
    if isinstance(cuts, CategoryCuts):
        return tree | {"unseen_rate": said.unseen_rate, "shares": said.shares}
    outside = state.below_min + state.above_max
    return tree | {
        "out_of_range_rate": outside / said.rows if said.rows else None,
        "mean": said.mean,
        "sd": said.sd,
        "min": said.minimum,
        "max": said.maximum,
        "p05": said.p05,
        "p50": said.p50,
        "p95": said.p95,
    }


def _compared(cuts: Cuts, found: Comparison) -> Figures:
    tree: Figures = {}
    if found.ks:
        tree["ks"] = {
            "d_low": found.ks.d_low,
            "d_high": found.ks.d_high,
            "d": found.ks.d,
            "p_value": found.ks.p_value,
        }
    if found.psi:
        tree |= {"psi": found.psi.psi, "psi_raw": found.psi.raw}
    if found.chi_square:
        tree["chi2"] = {
            "statistic": found.chi_square.statistic,
            "dof": found.chi_square.degrees_of_freedom,
            "p_value": found.chi_square.p_value,
            "cramers_v": found.chi_square.cramers_v,
            "total_variation": found.chi_square.total_variation,
        }
    tree |= {"js": found.jensen_shannon}
    if not isinstance(cuts, CategoryCuts):
        tree["wasserstein_sd"] = found.wasserstein
    if found.effect:
        tree["effect"] = {
            "superiority": found.effect.p_greater,
            "sd": found.effect.sd_equivalents,
        }
    if found.psi is None:
        tree["reason"] = "a side has no values"
    return tree


def _mark_drifted(trees: Mapping[str, Figures]) -> None:
    """Set `drifted` on every tree that was compared; the trees were made here, just before."""
    tested = [tree for tree in trees.values() if "psi" in tree]
    for tree in tested:
        test = tree.get("ks") or tree["chi2"]
        adjusted = min(1.0, test["p_value"] * len(tested))
        tree["drifted"] = adjusted < DRIFT_ALPHA and tree["psi"] > DRIFT_PSI


def _drift(features: Mapping[str, Figures]) -> Figures:
    tested = {name: tree for name, tree in features.items() if "psi" in tree}
    if not tested:
        return _no_drift("no baseline yet" if features else "no features")
    largest = max(tested, key=lambda name: tested[name]["psi"])
    drifted = [name for name, tree in tested.items() if tree["drifted"]]
    return {
        "max_psi": tested[largest]["psi"],
        "max_psi_feature": largest,
        "drifted_share": len(drifted) / len(tested),
        "drifted": drifted,
    }


def _no_drift(reason: str) -> Figures:
    return {"max_psi": None, "drifted_share": None, "drifted": [], "reason": reason}


def performance_tree(contract: Contract, labelled: Labelled) -> Figures:
    """Return the `performance` part of the tree for one version."""
    if contract.task == "regression":
        found = regression_figures(labelled.state)
    else:
        positive = contract.prediction.positive
        found = classification_figures(labelled.state, positive)
        found |= score_figures(labelled.state.scored, contract.task, positive)
    predicted = labelled.predicted_rows
    return {
        "labelled_rows": labelled.labelled_rows,
        "predicted_rows": predicted,
        "labelled_share": labelled.labelled_rows / predicted if predicted else None,
        **({"sampled_share": sampled} if (sampled := contract.labels.sample_share) < 1 else {}),
        "figures": {name: msgspec.to_builtins(figure) for name, figure in found.items()},
    }


def _baseline(baseline: Baseline | None) -> Figures:
    if baseline is None:
        return {"id": None, "windows": 0, "rows": 0, "reason": "no baseline yet"}
    said: Figures = {
        "id": baseline.id,
        "windows": baseline.windows,
        "rows": baseline.state.rows,
    }
    if baseline.season is not None:
        said["season"] = baseline.season
    return said if baseline.complete else {**said, "reason": baseline.progress}


# --- one figure, as a rule reads it -----------------------------------------------------------------


def figure_value(tree: Figures, name: str, feature: str | None = None) -> float | None:
    """Return the figure that a rule names; None where it cannot be said (see `measure`)."""
    return measure(tree, name, feature).value


def measure(tree: Figures, name: str, feature: str | None = None) -> Measured:
    """Return a figure with the rows behind it. `name` is one of `contracts.rules.FIGURES`.

    Effect: of a number, the absolute shift in sd-equivalents; of a category, the total variation.
    """
    rows = tree["rows"]
    if name == "rows":
        return Measured(float(rows), rows)
    if name in _RATES:
        return _measured(tree[name], rows, "no rows")
    if name in ("abnormal_request_rate", "abnormal_response_rate"):
        return _measured(tree["abnormal"][name.removeprefix("abnormal_")], rows, "no rows")
    if name == "outlier_rate":
        reason = "the cuts come from too few rows or features to tell" if rows else "no rows"
        return _measured(tree["abnormal"][name], rows, reason)
    if name in _LATENCY:
        latency = tree["latency_ms"]
        return _measured(latency[_LATENCY[name]], latency["rows"], "no latencies")
    if name in GAUGE_FIGURES:
        found = tree["resources"].get(name, {})
        value = found.get(GAUGE_FIGURES[name])
        return _measured(value, found.get("samples", 0), f"no samples of {name}")
    if name in _PERFORMANCE:
        return _measure_performance(tree, name)
    if name in ("max_psi", "drifted_share"):
        drift = tree["drift"]
        return _measured(drift[name], rows, drift.get("reason", ""))
    return _measure_feature(tree, name, feature or "")


def _measure_performance(tree: Figures, name: str) -> Measured:
    version = tree["judged_version"]
    found = tree["performance"].get(version)
    if found is None:
        return Measured(None, 0, "no labelled rows")
    for key in _PERFORMANCE[name]:
        if key in found["figures"]:
            figure = found["figures"][key]
            reason = figure.get("reason", "")
            ends = figure.get("low"), figure.get("high")
            return Measured(figure["value"], found["labelled_rows"], reason or "", *ends)
    reason = NO_SCORES if name in _OF_SCORES else f"{name} is not defined for this task"
    return Measured(None, found["labelled_rows"], reason)


def _measure_feature(tree: Figures, name: str, feature: str) -> Measured:
    found = tree["features"].get(feature)
    if found is None:
        found = tree["prediction"].get(feature, {"rows": 0, "reason": "no such feature counted"})
    if name == "effect":
        if found.get("kind") == "category":
            value = found.get("chi2", {}).get("total_variation")
        else:
            value = found.get("effect", {}).get("sd")
        value = None if value is None else abs(value)
    else:
        value = found
        for key in _FEATURE_PATHS[name]:
            value = value.get(key) if isinstance(value, dict) else None
    return _measured(value, found["rows"], found.get("reason", "not measured"))


def _measured(value: float | None, rows: int, reason: str) -> Measured:
    return Measured(value, rows, "" if value is not None else reason)
