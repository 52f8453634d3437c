"""Settings that stored data depends on: what was used first is kept, and another value is refused."""

from sqlalchemy import Connection, exists, select, update

from trimtab.errors import ConflictError
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import fixed_settings, joiners, label_runs, partitions

SHARDS = "monitor.shards"
MONITOR_SEEN_MS = 15_000
"""A monitor that was seen this recently may still write by its own number."""


def fix_shards(store: Store, shards: int, now_ms: int) -> None:
    """Keep the number of the joiner's hash shards, or refuse another one.

    An id's shard is its hash modulo this number: after a change a prediction and its label would lie in
    two shards, and the label would wait for ever. It may change until rows have come. Raises
    ConflictError.
    """
    with store.write() as connection:
        connection.execute(
            insert_for(connection, fixed_settings)
            .values(name=SHARDS, value=str(shards))
            .on_conflict_do_nothing()
        )
        stored = connection.scalar(
            select(fixed_settings.c.value).where(fixed_settings.c.name == SHARDS).with_for_update()
        )
        if stored == str(shards):
            return
        if _depended_on(connection, now_ms):
            raise ConflictError(
                f"{SHARDS} is {shards} here, but this database was begun with {stored}, and labels find "
                f"their predictions by it. Set {SHARDS} to {stored} (`trimtab config show` says where it "
                "comes from), or point store.url to a new database."
            )
        connection.execute(
            update(fixed_settings).where(fixed_settings.c.name == SHARDS).values(value=str(shards))
        )


def _depended_on(connection: Connection, now_ms: int) -> bool:
    """Whether rows were sharded already, or a monitor with the stored number may be at work."""
    monitors = partitions.c.consumer == "monitor"
    seen = partitions.c.owner_seen_ms > now_ms - MONITOR_SEEN_MS
    found = connection.scalar(
        select(
            exists(select(label_runs.c.id))
            | exists(select(joiners.c.model))
            | exists(select(partitions.c.id).where(monitors, seen))
        )
    )
    return bool(found)
