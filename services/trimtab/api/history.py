"""A model's figures by hour and by day: from panes while they are there, else from what they became.

The tree of figures is that of a verdict (`detect.figures`), over all versions, compared with the active
baseline where hour or day was counted under its cuts. It judges nothing. An hour that has become part of a
day is not told: ask for days. Times are ms since the epoch, UTC.
"""

from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import Labelled, figures
from trimtab.errors import NotFoundError
from trimtab.stats.aggregate import ResourceState
from trimtab.store.baselines import active_baseline
from trimtab.store.engine import Store
from trimtab.store.models import current_contract, cuts_at
from trimtab.store.overview import model_status
from trimtab.store.performance import window_performance
from trimtab.store.resources import window_resources
from trimtab.store.rollups import newest_starts
from trimtab.store.watermarks import watermark
from trimtab.store.window_state import WindowState, window_state
from trimtab.windows.rollup import Resolution

PERIODS_MAX = 200
"""Hours or days in one answer: each compares every feature with the baseline."""
EVER_MS = (-(2**62), 2**62)
"""A range without bounds."""


class Period(Struct, frozen=True, kw_only=True):
    """One hour or day with rows."""

    start_ms: int
    end_ms: int
    complete: bool
    """Whether the model's watermark has passed it; later rows may still add to it."""
    cuts_id: str | None
    rows: int
    other_cuts_rows: int
    """Those of `rows` that were counted under other cuts: figures of features and answers leave them out."""
    lost: int
    """Messages lost whose rows may have belonged here."""
    figures: dict[str, Any]
    """As in a verdict. Labels are joined for as long as `retention.labels_days` says."""


class History(Struct, frozen=True, kw_only=True):
    """Hours or days of a model, newest first."""

    model: str
    resolution: Resolution
    items: list[Period]
    next: int | None
    """`to` of the next page; null at the end."""


def history(
    store: Store,
    model: str,
    resolution: Resolution,
    *,
    from_ms: int,
    to_ms: int,
    limit: int,
    now_ms: int,
) -> History:
    """Return the newest `limit` (at most PERIODS_MAX) hours or days with rows that start in [from_ms, to_ms).

    Raises NotFoundError for an unknown model, or one that is watched no more.
    """
    status = model_status(store, model)
    row = current_contract(store, model)
    if row is None:
        raise NotFoundError(
            f"{model!r} is watched no more: `trimtab model apply FILE` brings it back."
        )
    limit = min(limit, PERIODS_MAX)
    with store.read() as connection:
        starts = newest_starts(connection, model, resolution, from_ms, to_ms, limit)
        reference = active_baseline(connection, model)
        baseline = None
        if reference is not None:
            wanted = row.contract.reference.windows
            baseline = Baseline(reference.state, reference.windows, wanted, reference.id)
        mark_ms = watermark(connection, model, now_ms).ms
        items = [
            _period(connection, row.contract, found, baseline, status.champion, mark_ms)
            for start_ms in starts
            for found in (
                window_state(connection, model, start_ms, start_ms + resolution.length_ms),
            )
            if found.coarser is None
        ]
    return History(
        model=model,
        resolution=resolution,
        items=items,
        next=starts[-1] if len(starts) == limit else None,
    )


def _period(
    connection: Connection,
    contract: Contract,
    found: WindowState,
    baseline: Baseline | None,
    champion: str | None,
    mark_ms: int | None,
) -> Period:
    model, start_ms, end_ms = contract.name, found.start_ms, found.end_ms
    state = found.state
    cuts = None if found.cuts_id is None else cuts_at(connection, model, found.cuts_id)
    same_cuts = baseline is not None and baseline.state.cuts_id == found.cuts_id
    resources = ResourceState()
    for gauges in window_resources(connection, model, start_ms, end_ms).values():
        resources = resources.merge(gauges)
    rows_by_version = {version: s.rows for version, s in found.by_version.items()}
    # As the evaluator chooses: the champion where it has rows, else whoever has most.
    judged = champion
    if judged not in rows_by_version:
        judged = max(sorted(rows_by_version), key=lambda v: rows_by_version[v], default=None)
    return Period(
        start_ms=start_ms,
        end_ms=end_ms,
        complete=mark_ms is not None and end_ms <= mark_ms,
        cuts_id=found.cuts_id,
        rows=state.rows if state else 0,
        other_cuts_rows=found.other_cuts_rows,
        lost=found.lost,
        figures=figures(
            state,
            cuts,
            baseline if same_cuts else None,
            contract,
            {
                version: Labelled(p.state, p.labelled_rows, p.predicted_rows)
                for version, p in window_performance(connection, model, start_ms, end_ms).items()
            },
            rows_by_version=rows_by_version,
            resources=resources,
            judged_version=judged,
            answers=found.by_version.get(judged or ""),
        ),
    )
