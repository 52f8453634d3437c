"""What people ask of one feature or output of a model: how it is watched, how it is now, how it was."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct
from sqlalchemy import Connection, select

from trimtab.contracts.model import Contract, Feature
from trimtab.detect.budget import budget_of, parse_budget, sharing_of
from trimtab.detect.drift import Fitted
from trimtab.detect.plan import Floor, floors
from trimtab.detect.sources import feature_source
from trimtab.errors import NotFoundError
from trimtab.records import Verdict
from trimtab.stats.aggregate import FeatureState, FeatureSummary, describe_feature
from trimtab.stats.bars import Bar, bars
from trimtab.stats.cuts import Cuts
from trimtab.stats.tests import compare
from trimtab.store.baselines import BaselineRow, active_baseline, first_baseline
from trimtab.store.detector_view import RankedSource, active_detector, ranked
from trimtab.store.engine import Store
from trimtab.store.models import cuts_at, load_contracts
from trimtab.store.tables import verdicts
from trimtab.store.verdicts import latest_verdicts
from trimtab.store.window_state import window_state

OUTPUT = "output:"
"""What the name of an output begins with, here as among the detector's sources."""
NAME_MAX = 300
"""Characters of a name that are looked for at all; contracts allow fewer."""

_T = TypeVar("_T")
Side = Literal["feature", "output"]


class Column(Struct, frozen=True):
    """A feature or an output of a model."""

    name: str
    side: Side

    @property
    def shown(self) -> str:
        """What it is called in links and findings: `income`, `output:score`."""
        return self.name if self.side == "feature" else f"{OUTPUT}{self.name}"

    @property
    def source(self) -> str:
        """The detector's source of it."""
        return feature_source(self.name) if self.side == "feature" else self.shown

    def tree(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Return its figures in a verdict's; empty where there are none."""
        part = figures.get("features" if self.side == "feature" else "prediction") or {}
        found: dict[str, Any] = part.get(self.name) or {}
        return found


class FeatureWindow(Struct, frozen=True, kw_only=True):
    """What the latest verdict of a window says of one column."""

    start_ms: int
    end_ms: int
    outcome: str
    reason: str
    figures: dict[str, Any]
    """Its own, as in a verdict's tree; empty where it was not counted."""
    evidence_share: float | None
    """Its part of the detector's evidence; None beyond the sources that a window ranks."""
    alarm_open: bool


class _Detector(Struct, frozen=True):
    ranking: list[dict[str, Any]] = []
    open: dict[str, Any] = {}


class _Trees(Struct, frozen=True):
    """A verdict's figures, of which only one column's are read: others may be hundreds."""

    features: dict[str, Raw] = {}
    prediction: dict[str, Raw] = {}
    detector: _Detector = _Detector()


class _Body(Struct, frozen=True):
    window_start_ms: int
    window_end_ms: int
    outcome: str
    reason: str
    figures: _Trees


_BODY = msgspec.json.Decoder(_Body)


def feature_windows(
    connection: Connection,
    model: str,
    column: Column,
    limit: int,
    *,
    from_ms: int | None = None,
    before_ms: int | None = None,
) -> list[FeatureWindow]:
    """Return one column in the newest `limit` windows that start before `before_ms`, oldest first.

    Of these only windows that start at `from_ms` or later.
    """
    c = verdicts.c
    query = select(c.body).where(c.model == model, c.latest)
    if before_ms is not None:
        query = query.where(c.window_start_ms < before_ms)
    if from_ms is not None:
        query = query.where(c.window_start_ms >= from_ms)
    query = query.order_by(c.window_start_ms.desc()).limit(limit)
    found = connection.execute(query.execution_options(yield_per=50)).scalars()
    return [_window(_BODY.decode(body), column) for body in found][::-1]


def _window(body: _Body, column: Column) -> FeatureWindow:
    part = body.figures.features if column.side == "feature" else body.figures.prediction
    raw = part.get(column.name)
    ranking = body.figures.detector.ranking
    return FeatureWindow(
        start_ms=body.window_start_ms,
        end_ms=body.window_end_ms,
        outcome=body.outcome,
        reason=body.reason,
        figures={} if raw is None else msgspec.json.decode(raw),
        evidence_share=next((r["share"] for r in ranking if r["source"] == column.source), None),
        alarm_open=column.source in body.figures.detector.open,
    )


class BaselineFigures(Struct, frozen=True, kw_only=True):
    """How a feature was in the active baseline, over all its windows."""

    number: int
    windows: int
    rows: int
    summary: FeatureSummary


class FirstDistance(Struct, frozen=True, kw_only=True):
    """How far the newest window is from the model's first baseline, whatever was accepted since. Nothing alarms on it."""

    number: int
    to_ms: int | None
    """End of its last window; None of a file without times."""
    psi: float
    """Debiased."""
    sd_equivalents: float | None
    """None of a category."""


class FeatureView(Struct, frozen=True, kw_only=True):
    """One feature or output at a glance. Times are ms since the epoch, UTC."""

    model: str
    name: str
    """As in links: an output as `output:NAME`."""
    side: Side
    kind: str | None
    """number or category; None while it was never counted."""
    declared: Feature | None
    """As the contract declares it; None of outputs and attributions."""
    window_start_ms: int | None = None
    """The newest judged window, which the following are of."""
    figures: dict[str, Any] = {}
    bars: list[Bar] = []
    """Its rows beside the baseline's; empty where its counts are gone."""
    why_no_bars: str | None = None
    baseline: BaselineFigures | None = None
    first: FirstDistance | None = None
    """None while the first baseline is the active one, or counted otherwise."""
    rank: int | None = None
    """Its place among the detector's sources by evidence, from 1; None beyond those that a window ranks."""
    ranked: RankedSource | None = None
    open: dict[str, Any] | None = None
    """Its open alarm: what, onset_ms, says."""
    watched: bool = False
    why_not: str | None = None
    floors: list[Floor] = []


def column_of(contract: Contract, figures: dict[str, Any], name: str) -> Column:
    """Return the feature or output of a name. Raises NotFoundError, which says what there is."""
    features = {**dict.fromkeys(contract.watched), **dict.fromkeys(figures.get("features") or {})}
    outputs = figures.get("prediction") or {}
    if name in features:
        return Column(name, "feature")
    if name.startswith(OUTPUT) and name.removeprefix(OUTPUT) in outputs:
        return Column(name.removeprefix(OUTPUT), "output")
    known = [*features, *(f"{OUTPUT}{output}" for output in outputs)]
    near = difflib.get_close_matches(name[:NAME_MAX], known, n=3)
    hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
    said = f"{name[:60]!r} is no feature or output" if name else "No feature is named"
    raise NotFoundError(
        f"{said} of {contract.name}.{hint} The page of the model and `trimtab model show "
        f"{contract.name}` list its features."
    )


def feature_view(store: Store, model: str, name: str, fleet: str) -> FeatureView:
    """Return one feature or output. Raises NotFoundError for a model or name that is not watched."""
    current = {known: row.contract for known, row in load_contracts(store).items()}
    if model not in current:
        raise NotFoundError(f"{model!r} is not watched. `trimtab model list` names what is.")
    contract = current[model]
    budget = budget_of(contract, parse_budget(fleet), sharing_of(current.values()))
    with store.read() as connection:
        newest = latest_verdicts(connection, model, 1)
        verdict = newest[0].verdict if newest else None
        column = column_of(contract, verdict.figures if verdict else {}, name)
        row = active_detector(connection, model)
        fitted = None if row is None else row.fitted
        reference = active_baseline(connection, model)
        was = _of_baseline(connection, reference, column)
        counted = _counted(connection, verdict, was, column)
        first = _first(connection, reference, counted, column)
    tree = column.tree(verdict.figures) if verdict else {}
    detector_tree = (verdict.figures.get("detector") or {}) if verdict else {}
    ranking = ranked(detector_tree)
    rank = next((n for n, one in enumerate(ranking, 1) if one.source == column.source), None)
    length_ms = contract.windows.length_ms
    return FeatureView(
        model=model,
        name=column.shown,
        side=column.side,
        kind=tree.get("kind"),
        declared=contract.features.get(column.name) if column.side == "feature" else None,
        window_start_ms=verdict.window_start_ms if verdict else None,
        figures=tree,
        bars=counted.bars,
        why_no_bars=counted.why,
        baseline=was.figures if was else None,
        first=first,
        rank=rank,
        ranked=None if rank is None else ranking[rank - 1],
        open=(detector_tree.get("open") or {}).get(column.source),
        watched=fitted is not None and column.source in _names(fitted),
        why_not=_why_not(fitted, None if row is None else row.refused, column),
        floors=[]
        if fitted is None
        else list(
            floors(fitted.detector(budget.windows_per_alarm(length_ms), length_ms), column.source)
        ),
    )


def _names(fitted: Fitted) -> set[str]:
    return {source.name for source in fitted.contrasts.sources}


def _why_not(fitted: Fitted | None, refused: str | None, column: Column) -> str | None:
    if fitted is None:
        return refused or "no baseline is complete yet, or its detector is being fitted"
    if column.source in _names(fitted):
        return None
    skipped = {one.name: one.why for one in fitted.contrasts.skipped}
    return skipped.get(column.source, "the detector's baseline did not count it")


def baseline_figures(connection: Connection, model: str, column: Column) -> BaselineFigures | None:
    """Return how a column was in the active baseline; None where that did not count it."""
    found = _of_baseline(connection, active_baseline(connection, model), column)
    return None if found is None else found.figures


class _Was(Struct, frozen=True):
    """A column in a baseline."""

    cuts_id: str
    state: FeatureState
    figures: BaselineFigures


def _of_baseline(
    connection: Connection, reference: BaselineRow | None, column: Column
) -> _Was | None:
    if reference is None:
        return None
    known = cuts_at(connection, reference.model, reference.cuts_id)
    cuts = None if known is None else _part(column, known.feature, known.output).get(column.name)
    state = _part(column, reference.state.features, reference.state.outputs).get(column.name)
    if cuts is None or state is None:
        return None
    told = BaselineFigures(
        number=reference.number,
        windows=reference.windows,
        rows=state.rows,
        summary=describe_feature(cuts, state),
    )
    return _Was(reference.cuts_id, state, told)


def _part(
    column: Column, features: Mapping[str, _T], outputs: Mapping[str, _T]
) -> Mapping[str, _T]:
    return features if column.side == "feature" else outputs


class _Counted(Struct, frozen=True):
    """The newest window's counts of a column beside the baseline's, or why there are none."""

    bars: list[Bar] = []
    why: str | None = None
    cuts: Cuts | None = None
    cuts_id: str = ""
    now: FeatureState | None = None


def _first(
    connection: Connection, active: BaselineRow | None, counted: _Counted, column: Column
) -> FirstDistance | None:
    if active is None or counted.cuts is None or counted.now is None:
        return None
    row = first_baseline(connection, active.model)
    if row is None or row.id == active.id or row.cuts_id != counted.cuts_id:
        return None
    was = _part(column, row.state.features, row.state.outputs).get(column.name)
    if was is None:
        return None
    found = compare(counted.cuts, counted.now, was)
    if found.psi is None:
        return None
    return FirstDistance(
        number=row.number,
        to_ms=row.to_ms,
        psi=found.psi.psi,
        sd_equivalents=None if found.effect is None else found.effect.sd_equivalents,
    )


def _counted(
    connection: Connection, verdict: Verdict | None, was: _Was | None, column: Column
) -> _Counted:
    if verdict is None:
        return _Counted(why="no window has closed yet")
    model, cuts_id = verdict.model, verdict.evidence.cuts_id
    known = None if cuts_id is None else cuts_at(connection, model, cuts_id)
    cuts = None if known is None else _part(column, known.feature, known.output).get(column.name)
    if cuts is None:
        return _Counted(why="it was not counted in the newest window")
    found = window_state(connection, model, verdict.window_start_ms, verdict.window_end_ms)
    if found.coarser is not None or found.state is None or found.cuts_id != cuts_id:
        return _Counted(why="the counts of the newest window are gone")
    judged = found.by_version.get(verdict.figures.get("judged_version") or "")
    answers = judged.outputs if judged else {}
    now = _part(column, found.state.features, answers).get(column.name)
    if now is None:
        return _Counted(why="it was not counted in the newest window")
    same_cuts = was is not None and was.cuts_id == cuts_id
    drawn = bars(cuts, now, was.state if was is not None and same_cuts else None)
    return _Counted(drawn, cuts=cuts, cuts_id=found.cuts_id or "", now=now)


def summary_tree(found: BaselineFigures | None) -> dict[str, Any]:
    """Return a baseline's figures by the names they have in a window's; empty without one."""
    if found is None:
        return {}
    told: dict[str, Any] = msgspec.to_builtins(found.summary)
    below, above = told.pop("below_min_rate"), told.pop("above_max_rate")
    outside = None if below is None or above is None else below + above
    return {**told, "out_of_range_rate": outside}
