"""Gauges of resources as stored: written by flushes, merged over instances and partitions when read."""

from sqlalchemy import Connection, func, or_, select

from trimtab.stats.aggregate import ResourceState
from trimtab.store.dialect import insert_for
from trimtab.store.tables import resource_panes, resource_rollups
from trimtab.store.window_state import inside
from trimtab.windows.rollup import Resolution


def write_resources(
    connection: Connection,
    partition_id: int,
    flush_seq: int,
    states: dict[tuple[str, int, str, str], ResourceState],
) -> None:
    """Merge gauges into the stored panes, by (model, pane start, version, instance); inside the flush.

    Each row is locked before it is read: a fold that takes it away must not leave it here as well.
    """
    table = resource_panes.c
    for (model, pane_ms, version, instance), state in sorted(states.items()):
        key = {
            "model": model,
            "pane_start_ms": pane_ms,
            "version": version,
            "instance": instance,
            "partition_id": partition_id,
            "generation": 0,
        }
        stored = connection.scalar(
            select(table.state)
            .where(*(table[name] == value for name, value in key.items()))
            .with_for_update()
        )
        whole = state if stored is None else ResourceState.from_bytes(stored).merge(state)
        statement = insert_for(connection, resource_panes).values(
            state=whole.to_bytes(), flush_seq=flush_seq, **key
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=list(key),
                set_={name: statement.excluded[name] for name in ("state", "flush_seq")},
            )
        )


def window_resources(
    connection: Connection, model: str, start_ms: int, end_ms: int
) -> dict[str, ResourceState]:
    """Return the gauges of a window by version, over instances and partitions."""
    folded = select(resource_rollups.c.version, resource_rollups.c.state).where(
        resource_rollups.c.model == model,
        or_(
            *(
                inside(resource_rollups, r, start_ms, end_ms)
                for r in (Resolution.HOUR, Resolution.DAY)
            )
        ),
    )
    unfolded = select(resource_panes.c.version, resource_panes.c.state).where(
        resource_panes.c.model == model,
        resource_panes.c.pane_start_ms >= start_ms,
        resource_panes.c.pane_start_ms < end_ms,
    )
    total: dict[str, ResourceState] = {}
    for query in (unfolded, folded):
        for row in connection.execute(query):
            state = ResourceState.from_bytes(row.state)
            total[row.version] = total[row.version].merge(state) if row.version in total else state
    return dict(sorted(total.items()))


def window_gauges(connection: Connection, model: str, start_ms: int, end_ms: int) -> ResourceState:
    """Return the gauges of a window, over versions, instances and partitions."""
    whole = ResourceState()
    for state in window_resources(connection, model, start_ms, end_ms).values():
        whole = whole.merge(state)
    return whole


def gauges_since(
    connection: Connection, partition_id: int, flush_seq: int
) -> list[tuple[str, int]]:
    """Return the models to whose gauges later flushes of a partition have added, each with its oldest such pane."""
    c = resource_panes.c
    found = connection.execute(
        select(c.model, func.min(c.pane_start_ms))
        .where(c.partition_id == partition_id, c.flush_seq > flush_seq)
        .group_by(c.model)
    )
    return [(model, start_ms) for model, start_ms in found]
