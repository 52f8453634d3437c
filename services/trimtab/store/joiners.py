"""Joiners: who owns a (model, shard), how far it has merged, and the transaction of a merge.

A joiner merges new runs in sequence and writes signed deltas of performance and of the ledger's label
classes with its positions in one transaction, under its epoch.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, and_, func, select, update

from trimtab.errors import ConflictError
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.entries import BEGINNING_MS
from trimtab.store.performance import PerformanceDelta, PerformanceKey, add_performance
from trimtab.store.tables import joiners, label_classes

MODELS_PER_QUERY = 500


class JoinerClaim(Struct, frozen=True, kw_only=True):
    """A joiner's ownership of a (model, shard), and how far it had merged."""

    model: str
    shard: int
    epoch: int
    position: int
    positions: dict[int, int]
    expires_ms: int
    kept_positions: dict[int, int]
    """How far the kept runs go: a rebuild reads them, and the runs from there to `positions`."""
    expired_to_ms: int
    """What is older has been let go."""
    let_go: dict[int, int]
    """By partition id, the newest pane of the prediction runs that are deleted."""


def ask_expiry(connection: Connection, model: str, before_ms: int) -> None:
    """Ask a model's joiners to let go of what is older than `before_ms`; they do it at their ticks."""
    connection.execute(
        update(joiners)
        .where(joiners.c.model == model, joiners.c.expire_to_ms < before_ms)
        .values(expire_to_ms=before_ms)
    )


def merged_positions(
    connection: Connection, names: Sequence[str]
) -> dict[tuple[str, int], dict[int, int]]:
    """Return how far the joiners of these models have merged, whoever owns them, by (model, shard)."""
    found: dict[tuple[str, int], dict[int, int]] = {}
    for start in range(0, len(names), MODELS_PER_QUERY):
        rows = connection.execute(
            select(joiners.c.model, joiners.c.shard, joiners.c.positions).where(
                joiners.c.model.in_(names[start : start + MODELS_PER_QUERY])
            )
        )
        found |= {(row.model, row.shard): read_positions(row.positions) for row in rows}
    return found


def shards_to_expire(connection: Connection, limit: int) -> list[tuple[str, int]]:
    """Return (model, shard) of joiners that have been asked to let go of more than they have."""
    found = connection.execute(
        select(joiners.c.model, joiners.c.shard)
        .where(joiners.c.expire_to_ms > joiners.c.expired_to_ms)
        .order_by(joiners.c.updated_ms, joiners.c.model, joiners.c.shard)
        .limit(limit)
    )
    return [(row.model, row.shard) for row in found]


def claim_joiner(
    store: Store, model: str, shard: int, owner: str, now_ms: int, hold_ms: int
) -> JoinerClaim | None:
    """Take or keep a (model, shard); None while another owner holds it. Taking it raises the epoch."""
    mine_ = and_(joiners.c.model == model, joiners.c.shard == shard)
    with store.write() as connection:
        connection.execute(
            insert_for(connection, joiners)
            .values(
                model=model,
                shard=shard,
                epoch=0,
                expires_ms=0,
                position=0,
                positions="{}",
                kept_positions="{}",
                let_go="{}",
                expire_to_ms=BEGINNING_MS,
                expired_to_ms=BEGINNING_MS,
                updated_ms=now_ms,
            )
            .on_conflict_do_nothing()
        )
        row = connection.execute(select(joiners).where(mine_).with_for_update()).one()
        held = row.expires_ms > now_ms
        if held and row.owner != owner:
            return None
        epoch = row.epoch if held else row.epoch + 1
        connection.execute(
            update(joiners)
            .where(mine_)
            .values(epoch=epoch, owner=owner, expires_ms=now_ms + hold_ms, updated_ms=now_ms)
        )
    return JoinerClaim(
        model=model,
        shard=shard,
        epoch=epoch,
        position=row.position,
        positions=read_positions(row.positions),
        expires_ms=now_ms + hold_ms,
        kept_positions=read_positions(row.kept_positions),
        expired_to_ms=row.expired_to_ms,
        let_go=read_positions(row.let_go),
    )


def labels_expired_to(connection: Connection, model: str) -> int | None:
    """Return the time before which joiners have let go of predictions, labels and performance.

    None while none has; of several shards, the farthest.
    """
    found = connection.scalar(
        select(func.max(joiners.c.expired_to_ms)).where(joiners.c.model == model)
    )
    return None if found is None or found == BEGINNING_MS else int(found)


def joiner_positions(connection: Connection) -> dict[tuple[str, int], int]:
    """Return the position of every joiner by (model, shard): it changes with every merge."""
    found = connection.execute(select(joiners.c.model, joiners.c.shard, joiners.c.position))
    return {(model, shard): position for model, shard, position in found}


def release_joiner(store: Store, claim: JoinerClaim) -> None:
    """Give a (model, shard) back at a clean stop."""
    with store.write() as connection:
        connection.execute(
            update(joiners)
            .where(
                joiners.c.model == claim.model,
                joiners.c.shard == claim.shard,
                joiners.c.epoch == claim.epoch,
            )
            .values(expires_ms=0)
        )


def read_positions(text: str) -> dict[int, int]:
    """Read a vector by partition id, such as the flushes merged."""
    return msgspec.json.decode(text, type=dict[int, int])


def write_positions(vector: Mapping[int, int]) -> str:
    """Write what `read_positions` reads."""
    return msgspec.json.encode(dict(sorted(vector.items()))).decode()


def commit_merge(
    store: Store,
    claim: JoinerClaim,
    positions: Mapping[int, int],
    deltas: Mapping[PerformanceKey, PerformanceDelta],
    classes: Mapping[tuple[int, str], int],
    now_ms: int,
) -> JoinerClaim:
    """Write deltas, label classes (by partition id and class) and positions in one transaction.

    Raises ConflictError when another joiner has taken over; nothing is written then.
    """
    vector = dict(claim.positions) | dict(positions)
    with store.write() as connection:
        after = move_joiner(
            connection, claim, {"positions": write_positions(vector), "updated_ms": now_ms}
        )
        add_performance(connection, claim.model, claim.shard, deltas, after.position)
        add_label_classes(connection, claim, classes)
    return msgspec.structs.replace(after, positions=vector)


def move_joiner(
    connection: Connection, claim: JoinerClaim, values: Mapping[str, object]
) -> JoinerClaim:
    """Take the next position and set columns, inside the caller's transaction: its fence.

    Raises ConflictError when another joiner has taken over.
    """
    done = connection.execute(
        update(joiners)
        .where(
            joiners.c.model == claim.model,
            joiners.c.shard == claim.shard,
            joiners.c.epoch == claim.epoch,
            joiners.c.position == claim.position,
        )
        .values(position=claim.position + 1, **values)
    )
    if done.rowcount != 1:
        raise ConflictError(
            f"Another joiner owns {claim.model!r} shard {claim.shard}; its merge counts."
        )
    return msgspec.structs.replace(claim, position=claim.position + 1)


def add_label_classes(
    connection: Connection, claim: JoinerClaim, classes: Mapping[tuple[int, str], int]
) -> None:
    """Add signed counts to the label classes, by (partition id, class)."""
    for (partition_id, cls), count in sorted(classes.items()):
        if not count:
            continue
        statement = insert_for(connection, label_classes).values(
            {
                "partition_id": partition_id,
                "model": claim.model,
                "shard": claim.shard,
                "class": cls,
                "count": count,
            }
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["partition_id", "model", "shard", "class"],
                set_={"count": label_classes.c.count + count},
            )
        )
