"""Performance: what joined labels say, as signed counts per pane; joiners write it, everybody reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, and_, select

from trimtab.stats.performance import PerformanceState, merge_all
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import performance

PANES_PER_QUERY = 500


class PerformanceKey(Struct, frozen=True, order=True):
    """Where a performance state belongs."""

    pane_start_ms: int
    version: str
    arm: str
    traffic_revision: int
    segment: str


class PerformanceDelta(Struct):
    """What a merge changes at one key."""

    state: PerformanceState
    labelled_rows: int = 0
    predicted_rows: int = 0


def add_performance(
    connection: Connection,
    model: str,
    shard: int,
    deltas: Mapping[PerformanceKey, PerformanceDelta],
    position: int,
) -> None:
    """Add deltas to what is stored, inside the merge that takes `position`."""
    columns = performance.c
    mine = and_(columns.model == model, columns.shard == shard)
    stored: dict[PerformanceKey, Any] = {}
    panes_ms = sorted({key.pane_start_ms for key in deltas})
    for start in range(0, len(panes_ms), PANES_PER_QUERY):
        some = panes_ms[start : start + PANES_PER_QUERY]
        for row in connection.execute(
            select(performance).where(mine, columns.pane_start_ms.in_(some))
        ):
            place = {name: getattr(row, name) for name in PerformanceKey.__struct_fields__}
            stored[PerformanceKey(**place)] = row
    rows = []
    for key, delta in sorted(deltas.items()):
        before = stored.get(key)
        state = delta.state
        if before is not None:
            state = PerformanceState.from_bytes(before.state).merge(state)
        rows.append(
            {
                "model": model,
                "shard": shard,
                **msgspec.structs.asdict(key),
                "labelled_rows": delta.labelled_rows + (before.labelled_rows if before else 0),
                "predicted_rows": delta.predicted_rows + (before.predicted_rows if before else 0),
                "state": state.to_bytes(),
                "position": position,
            }
        )
    if not rows:
        return
    statement = insert_for(connection, performance)
    changed = ("labelled_rows", "predicted_rows", "state", "position")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["model", "shard", *PerformanceKey.__struct_fields__],
            set_={name: statement.excluded[name] for name in changed},
        ),
        rows,
    )


# --- reading --------------------------------------------------------------------------------------


class VersionPerformance(Struct, frozen=True):
    """Joined labels of one version. `predicted_rows` could have a label, `labelled_rows` do."""

    state: PerformanceState
    labelled_rows: int
    predicted_rows: int


class ArmPerformance(Struct, frozen=True):
    """Joined labels of one arm of a traffic revision."""

    revision: int
    arm: str
    state: PerformanceState
    labelled_rows: int
    predicted_rows: int


def window_performance(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str = ""
) -> dict[str, VersionPerformance]:
    """Return the joined labels of rows with start_ms <= pane start < end_ms, by version."""
    found: dict[str, list[Any]] = {}
    for row in connection.execute(
        select(performance)
        .where(
            performance.c.model == model,
            performance.c.pane_start_ms >= start_ms,
            performance.c.pane_start_ms < end_ms,
            performance.c.segment == segment,
        )
        .order_by(performance.c.pane_start_ms)
    ):
        found.setdefault(row.version, []).append(row)
    return {
        version: VersionPerformance(
            merge_all(PerformanceState.from_bytes(row.state) for row in rows) or PerformanceState(),
            sum(row.labelled_rows for row in rows),
            sum(row.predicted_rows for row in rows),
        )
        for version, rows in sorted(found.items())
    }


def arm_performance(
    store: Store, model: str, revisions: Sequence[int], before_ms: int | None
) -> list[ArmPerformance]:
    """Return the joined labels of each (revision, arm) over panes that start before `before_ms` (None: all)."""
    query = select(performance).where(
        performance.c.model == model,
        performance.c.traffic_revision.in_(list(revisions)),
        performance.c.segment == "",
        performance.c.arm != "",
    )
    if before_ms is not None:
        query = query.where(performance.c.pane_start_ms < before_ms)
    total: dict[tuple[int, str], ArmPerformance] = {}
    with store.read() as connection:
        for row in connection.execute(query):
            key = (row.traffic_revision, row.arm)
            state = PerformanceState.from_bytes(row.state)
            before = total.get(key)
            if before is not None:
                state = before.state.merge(state)
            total[key] = ArmPerformance(
                *key,
                state,
                row.labelled_rows + (before.labelled_rows if before else 0),
                row.predicted_rows + (before.predicted_rows if before else 0),
            )
    return [total[key] for key in sorted(total)]
