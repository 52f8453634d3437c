"""How old what is stored of a model is, found for many models in one query: what retention asks first."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, ColumnElement, Connection, ScalarSelect, Table, func, select

from trimtab.store.labels import DUPLICATES_SHARD
from trimtab.store.tables import (
    evaluations,
    joiners,
    label_runs,
    models,
    panes,
    resource_panes,
    resource_rollups,
    rollups,
    row_samples,
    verdicts,
)
from trimtab.windows.rollup import Kept, Resolution


class Oldest(Struct, frozen=True, kw_only=True):
    """Starts of the oldest stored states of one model, ms of event time; None where there is none."""

    sealed_pane_ms: int | None
    pane_ms: int | None
    rolled_pane_ms: int | None
    """A pane that was folded over partitions and generations."""
    hour_ms: int | None
    day_ms: int | None
    gauges_pane_ms: int | None
    gauges_hour_ms: int | None
    gauges_day_ms: int | None
    sample_ms: int | None
    superseded_ms: int | None
    """Window of a verdict that has a later revision."""
    judged_ms: int | None
    """Window of a latest verdict."""
    expire_to_ms: int | None
    """Up to where all joiners have been asked to let go."""
    left_out_run: int | None
    """Id of a run of predictions that the sample left out."""
    evaluated_to_ms: int | None
    """Up to where the model's windows have been judged; None before the first."""

    def may_seal(self, newest_ms: int, *, watched: bool) -> bool:
        """Whether any pane may have to be folded over partitions and generations."""
        before_ms = self.evaluated_to_ms if watched else newest_ms
        return _is_before(self.sealed_pane_ms, before_ms)

    def may_age(self, newest_ms: int, kept: Kept) -> bool:
        """Whether any count or gauge may be older than it is kept; `newest_ms` is the newest event time."""
        before_ms = newest_ms - min(kept.panes_ms, kept.hours_ms, kept.days_ms)
        hours_ms = newest_ms - min(kept.hours_ms, kept.days_ms)
        days_ms = newest_ms - kept.days_ms
        return (
            any(_is_before(at, days_ms) for at in (self.pane_ms, self.day_ms, self.gauges_day_ms))
            or any(_is_before(at, hours_ms) for at in (self.hour_ms, self.gauges_hour_ms))
            or any(
                _is_before(at, before_ms)
                for at in (self.sealed_pane_ms, self.rolled_pane_ms, self.gauges_pane_ms)
            )
        )


def _is_before(start_ms: int | None, before_ms: int | None) -> bool:
    return start_ms is not None and before_ms is not None and start_ms < before_ms


def oldest_of(connection: Connection, names: Sequence[str]) -> dict[str, Oldest]:
    """Return how old what is stored is of each model; index look-ups only."""

    def first(start: Column[Any], *where: ColumnElement[bool]) -> ScalarSelect[Any]:
        table: Table = start.table
        mine = table.c.model == models.c.name
        return select(func.min(start)).where(mine, *where).scalar_subquery()

    def rolled(table: Table, resolution: Resolution) -> ScalarSelect[Any]:
        return first(table.c.start_ms, table.c.resolution == resolution.value)

    found = connection.execute(
        select(
            models.c.name,
            first(panes.c.pane_start_ms, panes.c.sealed).label("sealed_pane_ms"),
            first(panes.c.pane_start_ms).label("pane_ms"),
            rolled(rollups, Resolution.PANE).label("rolled_pane_ms"),
            rolled(rollups, Resolution.HOUR).label("hour_ms"),
            rolled(rollups, Resolution.DAY).label("day_ms"),
            first(resource_panes.c.pane_start_ms).label("gauges_pane_ms"),
            rolled(resource_rollups, Resolution.HOUR).label("gauges_hour_ms"),
            rolled(resource_rollups, Resolution.DAY).label("gauges_day_ms"),
            first(row_samples.c.sample_start_ms).label("sample_ms"),
            first(verdicts.c.window_start_ms, verdicts.c.latest.is_(False)).label("superseded_ms"),
            first(verdicts.c.window_start_ms, verdicts.c.latest).label("judged_ms"),
            first(joiners.c.expire_to_ms).label("expire_to_ms"),
            first(label_runs.c.id, label_runs.c.shard == DUPLICATES_SHARD).label("left_out_run"),
            first(evaluations.c.evaluated_to_ms).label("evaluated_to_ms"),
        ).where(models.c.name.in_(names))
    ).mappings()
    return {row["name"]: Oldest(**{k: v for k, v in row.items() if k != "name"}) for row in found}
