"""What people ask of a model's detector: its budget, what it was fitted on, what it says now."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from trimtab.contracts.model import Contract
from trimtab.detect.budget import Budget, budget_of, parse_budget, sharing_of
from trimtab.detect.drift import Fitted
from trimtab.detect.plan import Planned, plan, support
from trimtab.detect.words import label_words
from trimtab.errors import NotFoundError
from trimtab.store.baselines import detector_baseline_id
from trimtab.store.detectors import DetectorRow, detector
from trimtab.store.engine import Store
from trimtab.store.models import load_contracts
from trimtab.store.tables import baselines, detectors, verdicts


class RankedSource(Struct, frozen=True, kw_only=True):
    """One source's part of the evidence of a window."""

    source: str
    what: str
    """The contrast or rate with most evidence, as the detector names it."""
    words: str
    """The same for people."""
    share: float
    """Of the whole evidence."""


class RankedSegment(Struct, frozen=True):
    """One segment's part of the evidence of a window."""

    segment: str
    share: float


class DetectorView(Struct, frozen=True, kw_only=True):
    """A model's detector at a glance. Times are ms since the epoch, UTC."""

    model: str
    false_alarms_per_30_days: float
    """What the model may raise when nothing has changed, on average."""
    budget: str
    """The same in words, with where it comes from."""
    windows_per_alarm: float
    fitted: bool
    reason: str | None = None
    """Why there is no detector; None when there is one."""
    baseline: int | None = None
    """Number of the baseline that it is fitted on."""
    reference_windows: int | None = None
    season: str | None = None
    doubts: list[str] = []
    skipped: list[str] = []
    """What it would look at and does not, and why, such as a segment of too few rows."""
    certificate: dict[str, float] | None = None
    """How often it alarmed on its own reference, shuffled in blocks of a day: alarms per budget."""
    window_start_ms: int | None = None
    """The latest judged window, which the following are of."""
    evidence: float | None = None
    """As a share of what makes an alarm."""
    moved: list[dict[str, Any]] = []
    open: dict[str, Any] = {}
    ranking: list[RankedSource] = []
    """The sources with most evidence in that window, most first; what has an open alarm brings none."""
    segments: list[RankedSegment] = []
    """The segments with most evidence, over all that is watched in each."""
    columns: dict[str, str] = {}
    """Of the sources named above: the feature that each is of, or the output as `output:NAME`. A latency, a gauge,
    a pair and the rows are of none."""


def fleet_budgets(store: Store, fleet: str) -> tuple[float, int]:
    """Return (false alarms per 30 days that all models together may raise, models)."""
    current = _contracts(store)
    whole, sharing = parse_budget(fleet), sharing_of(current.values())
    total = sum(budget_of(contract, whole, sharing).per_month for contract in current.values())
    return total, len(current)


def detector_view(store: Store, model: str, fleet: str) -> DetectorView:
    """Return a model's detector. Raises NotFoundError for a model that is not watched."""
    current = _contracts(store)
    if model not in current:
        raise NotFoundError(f"There is no model {model!r}. `trimtab model list` names them.")
    contract = current[model]
    budget = budget_of(contract, parse_budget(fleet), sharing_of(current.values()))
    with store.read() as connection:
        row = active_detector(connection, model)
        newest = connection.execute(
            select(verdicts.c.window_start_ms, verdicts.c.body)
            .where(verdicts.c.model == model, verdicts.c.latest)
            .order_by(verdicts.c.window_start_ms.desc())
            .limit(1)
        ).one_or_none()
        number = None
        if row is not None:
            number = connection.scalar(
                select(baselines.c.number).where(baselines.c.id == row.baseline_id)
            )
    view = DetectorView(
        model=model,
        false_alarms_per_30_days=budget.per_month,
        budget=said_of(budget, fleet),
        windows_per_alarm=budget.windows_per_alarm(contract.windows.length_ms),
        fitted=row is not None and row.fitted is not None,
        reason=_reason(row),
        baseline=number,
    )
    if row is not None and row.fitted is not None:
        fitted = row.fitted
        view = msgspec.structs.replace(
            view,
            reference_windows=fitted.calibration.windows,
            season=fitted.calibration.season,
            doubts=list(fitted.doubts),
            skipped=[f"{s.name}: {s.why}" for s in fitted.contrasts.skipped],
            certificate=None
            if fitted.certificate is None
            else msgspec.to_builtins(fitted.certificate),
        )
    if newest is None:
        return view
    tree = msgspec.json.decode(newest.body)["figures"].get("detector") or {}
    return msgspec.structs.replace(
        view,
        window_start_ms=newest.window_start_ms,
        evidence=tree.get("evidence"),
        moved=tree.get("moved", []),
        open=tree.get("open", {}),
        ranking=ranked(tree),
        columns=named_columns(tree, None if row is None else row.fitted),
        segments=msgspec.convert(tree.get("segments", []), list[RankedSegment]),
    )


def ranked(tree: Mapping[str, Any]) -> list[RankedSource]:
    """Return the ranking in a window's tree of the detector, with words. Verdicts from before have none."""
    return [RankedSource(**one, words=label_words(one["what"])) for one in tree.get("ranking", [])]


def named_columns(tree: Mapping[str, Any], fitted: Fitted | None) -> dict[str, str]:
    """Return the column of each source that a window's tree names, where it is of one."""
    if fitted is None:
        return {}
    named = {one["source"] for part in ("moved", "ranking") for one in tree.get(part, [])}
    named |= set(tree.get("open", {}))
    return {
        source.name: source.column if source.origin == "feature" else f"output:{source.column}"
        for source in fitted.contrasts.sources
        if source.origin in ("feature", "output") and source.name in named
    }


def detector_columns(store: Store, model: str, tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the column of each source that a window's tree of the detector names, by the detector of now."""
    with store.read() as connection:
        row = active_detector(connection, model)
    return named_columns(tree, None if row is None else row.fitted)


def _reason(row: DetectorRow | None) -> str | None:
    if row is None:
        return "no baseline is complete yet, or its detector is being fitted"
    return row.refused


def said_of(budget: Budget, fleet: str) -> str:
    """Return a budget in words."""
    if not budget.share_of:
        return f"{budget.per_month:.3g} per 30 days, from its contract"
    return f"{budget.per_month:.3g} per 30 days, one of {budget.share_of} shares of the fleet's {fleet}"


class PlanView(Struct, frozen=True, kw_only=True):
    """What a model's detector can be expected to see, and when."""

    model: str
    budget: str
    windows_per_alarm: float
    window_length: str
    reference: str
    """What the length of the reference allows, in one sentence."""
    planned: list[Planned]


def plan_view(
    store: Store, model: str, fleet: str, *, budget: str | None = None, rows: float | None = None
) -> PlanView:
    """Return the plan of a model's detector, with its own budget or another, such as "1 per 90 days".

    Raises NotFoundError for a model without a detector, saying why there is none.
    """
    current = _contracts(store)
    if model not in current:
        raise NotFoundError(f"There is no model {model!r}. `trimtab model list` names them.")
    contract = current[model]
    with store.read() as connection:
        row = active_detector(connection, model)
    if row is None or row.fitted is None:
        raise NotFoundError(f"{model} has no detector: {_reason(row)}.")
    mine = budget_of(contract, parse_budget(fleet), sharing_of(current.values()))
    if budget is not None:
        mine = parse_budget(budget)
    length_ms = contract.windows.length_ms
    detector = row.fitted.detector(mine.windows_per_alarm(length_ms), length_ms)
    return PlanView(
        model=model,
        budget=said_of(mine, fleet) if budget is None else budget,
        windows_per_alarm=detector.windows_per_alarm,
        window_length=contract.windows.length,
        reference=support(detector, contract.alarms.smallest_shift).says,
        planned=list(plan(detector, rows)),
    )


def active_detector(connection: Connection, model: str) -> DetectorRow | None:
    """Return the detector that a model has now, or why its baseline gives none; None while none is made."""
    baseline_id = detector_baseline_id(connection, model)
    detector_id = connection.scalar(
        select(detectors.c.id)
        .where(detectors.c.model == model, detectors.c.baseline_id == baseline_id)
        .order_by(detectors.c.id.desc())
        .limit(1)
    )
    return None if detector_id is None else detector(connection, int(detector_id))


def _contracts(store: Store) -> dict[str, Contract]:
    return {name: row.contract for name, row in load_contracts(store).items()}
