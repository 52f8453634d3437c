"""What each arm of a traffic revision has answered, over panes, hours and days."""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, Select, select

from trimtab.stats.aggregate import LatencyState, PaneState
from trimtab.store.engine import Store
from trimtab.store.tables import panes, rollups


class ArmCounts(Struct, frozen=True):
    """What an arm of a traffic revision has answered so far."""

    revision: int
    arm: str
    rows: int
    errors: int
    timeouts: int
    latency: LatencyState


def arm_counts(
    store: Store, model: str, revisions: Sequence[int], before_ms: int | None
) -> list[ArmCounts]:
    """Return the counts of each (revision, arm) over panes that start before `before_ms` (None: all).

    What was folded into hours or days counts with the start of its hour or day.
    """
    total: dict[tuple[int, str], ArmCounts] = {}
    with store.read() as connection:
        for row in _of_arms(connection, model, revisions, before_ms):
            state = PaneState.from_bytes(row.state)
            key = (row.traffic_revision, row.arm)
            before = total.get(key, ArmCounts(*key, 0, 0, 0, LatencyState()))
            total[key] = ArmCounts(
                *key,
                before.rows + state.rows,
                before.errors + state.statuses.get("error", 0),
                before.timeouts + state.statuses.get("timeout", 0),
                before.latency.merge(state.latency_ms),
            )
    return [total[key] for key in sorted(total)]


def _of_arms(
    connection: Connection, model: str, revisions: Sequence[int], before_ms: int | None
) -> Iterator[Any]:
    for table, start in ((panes, panes.c.pane_start_ms), (rollups, rollups.c.start_ms)):
        query: Select[Any] = select(table.c.traffic_revision, table.c.arm, table.c.state).where(
            table.c.model == model,
            table.c.traffic_revision.in_(list(revisions)),
            table.c.segment == "",
            table.c.arm != "",
        )
        if before_ms is not None:
            query = query.where(start < before_ms)
        yield from connection.execute(query)
