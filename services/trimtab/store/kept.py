"""Kept runs: the joiner's index in SQL, as of its checkpoints.

A joiner that takes over reads the kept runs, newest entry of an id first, drops what has expired, and
merges the runs beyond `kept_positions`: that is exactly the index that wrote the stored deltas. Hence
the rules of a checkpoint, all in one transaction under the joiner's fence:

- it writes the entries that changed since the checkpoint before, also those that expire with it, so that
  no older entry of the same id comes back;
- what expires leaves index, performance and ledger together (a label that still waits becomes `expired`);
- the runs that it covers go, but predictions only when their partition has sealed their panes: until
  then a restart reads them to know its duplicates;
- a kept run goes when all in it has expired and no older one is left.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, delete, func, insert, or_, select, update

from trimtab.store.engine import Store
from trimtab.store.entries import KeptRun, decode_kept, encode_kept
from trimtab.store.joiners import JoinerClaim, add_label_classes, move_joiner, write_positions
from trimtab.store.label_runs import LABEL, PREDICTION, longest_pane_ms
from trimtab.store.settled import judged_to_ms
from trimtab.store.tables import joiners, kept_runs, label_runs, models, performance, watermarks

PANES_PER_CHECKPOINT = 10_000
"""Rows of performance deleted at once, about: a long list goes over several checkpoints."""


class KeptHead(Struct, frozen=True):
    """A kept run without its entries."""

    number: int
    rows: int
    until_ms: int


class Checkpoint(Struct, frozen=True, kw_only=True):
    """What a checkpoint stores."""

    positions: Mapping[int, int]
    """Partition id to seq: the runs that the kept runs now cover."""
    expired_to_ms: int
    classes: Mapping[tuple[int, str], int]
    """Labels that expired, by (partition id, class)."""
    run: KeptRun | None = None
    """The entries to keep; None when nothing is left of those it replaces."""
    replaces: tuple[int, ...] = ()
    """Numbers of kept runs, the newest ones, that `run` has been merged with."""


def kept_heads(connection: Connection, model: str, shard: int) -> list[KeptHead]:
    """Return the kept runs, oldest first."""
    rows = connection.execute(
        select(kept_runs.c.number, kept_runs.c.rows, kept_runs.c.until_ms)
        .where(kept_runs.c.model == model, kept_runs.c.shard == shard)
        .order_by(kept_runs.c.number)
    )
    return [KeptHead(row.number, row.rows, row.until_ms) for row in rows]


def kept_run(connection: Connection, model: str, shard: int, number: int) -> KeptRun:
    """Return one kept run."""
    return decode_kept(
        connection.execute(
            select(kept_runs.c.body).where(
                kept_runs.c.model == model,
                kept_runs.c.shard == shard,
                kept_runs.c.number == number,
            )
        ).scalar_one()
    )


def next_expiry(connection: Connection, claim: JoinerClaim) -> int | None:
    """Return up to where the next checkpoint should let go; None when nothing more has been asked.

    What has joined since it was asked is kept until a verdict has counted it: where labels lag far behind in
    event time, as in a fast replay, a day would have its verdict without them.
    """
    asked: int = connection.execute(
        select(joiners.c.expire_to_ms).where(
            joiners.c.model == claim.model, joiners.c.shard == claim.shard
        )
    ).scalar_one()
    if asked > claim.expired_to_ms and _is_watched(connection, claim.model):
        judged_ms = judged_to_ms(connection, claim.model)
        asked = asked if judged_ms is None else min(asked, judged_ms)
    if asked <= claim.expired_to_ms:
        return None
    times = connection.scalars(
        select(performance.c.pane_start_ms)
        .where(
            performance.c.model == claim.model,
            performance.c.shard == claim.shard,
            performance.c.pane_start_ms < asked,
        )
        .order_by(performance.c.pane_start_ms)
        .limit(PANES_PER_CHECKPOINT)
    ).all()
    if len(times) < PANES_PER_CHECKPOINT:
        return asked
    return max(claim.expired_to_ms, min(asked, int(times[-1]) + 1))


def _is_watched(connection: Connection, model: str) -> bool:
    query = select(models.c.name).where(models.c.name == model, models.c.retired_ms.is_(None))
    return connection.scalar(query) is not None


def commit_checkpoint(
    store: Store, claim: JoinerClaim, checkpoint: Checkpoint, now_ms: int
) -> JoinerClaim:
    """Store a checkpoint and let go of what it covers, in one transaction.

    Raises ConflictError when another joiner has taken over; nothing is written then.
    """
    run = checkpoint.run
    body = None if run is None else encode_kept(run)  # long, so before the transaction
    with store.write() as connection:
        mine = (kept_runs.c.model == claim.model) & (kept_runs.c.shard == claim.shard)
        after = move_joiner(
            connection,
            claim,
            {
                "kept_positions": write_positions(checkpoint.positions),
                "expired_to_ms": checkpoint.expired_to_ms,
                "updated_ms": now_ms,
            },
        )
        let_go = dict(claim.let_go)
        for partition_id, newest_ms in _let_go(connection, claim, checkpoint).items():
            let_go[partition_id] = max(newest_ms, let_go.get(partition_id, newest_ms))
        connection.execute(
            update(joiners)
            .where(joiners.c.model == claim.model, joiners.c.shard == claim.shard)
            .values(let_go=write_positions(let_go))
        )
        if checkpoint.replaces:
            connection.execute(
                delete(kept_runs).where(mine, kept_runs.c.number.in_(checkpoint.replaces))
            )
        if run is not None:
            connection.execute(
                insert(kept_runs).values(
                    model=claim.model,
                    shard=claim.shard,
                    number=after.position,
                    rows=run.rows,
                    until_ms=run.until_ms,
                    body=body,
                )
            )
        live = connection.scalar(
            select(func.min(kept_runs.c.number)).where(
                mine, kept_runs.c.until_ms >= checkpoint.expired_to_ms
            )
        )
        older = mine if live is None else mine & (kept_runs.c.number < live)
        connection.execute(delete(kept_runs).where(older))
        connection.execute(
            delete(performance).where(
                performance.c.model == claim.model,
                performance.c.shard == claim.shard,
                performance.c.pane_start_ms < checkpoint.expired_to_ms,
            )
        )
        add_label_classes(connection, claim, checkpoint.classes)
    return msgspec.structs.replace(
        after,
        kept_positions=dict(checkpoint.positions),
        expired_to_ms=checkpoint.expired_to_ms,
        let_go=let_go,
    )


def _let_go(connection: Connection, claim: JoinerClaim, checkpoint: Checkpoint) -> dict[int, int]:
    """Delete the runs that are not needed any more; return the newest pane of each partition's predictions."""
    sealed = {
        row.partition_id: row.sealed_ms
        for row in connection.execute(
            select(watermarks.c.partition_id, watermarks.c.sealed_ms).where(
                watermarks.c.model == claim.model
            )
        )
    }
    pane_ms = longest_pane_ms(connection, claim.model)
    newest: dict[int, int] = {}
    for partition_id, seq in checkpoint.positions.items():
        covered = (
            (label_runs.c.partition_id == partition_id)
            & (label_runs.c.model == claim.model)
            & (label_runs.c.shard == claim.shard)
            & (label_runs.c.seq <= seq)
        )
        connection.execute(delete(label_runs).where(covered, label_runs.c.kind == LABEL))
        old = label_runs.c.max_pane_ms < checkpoint.expired_to_ms
        if partition_id in sealed:
            old = or_(old, label_runs.c.max_pane_ms < sealed[partition_id] - pane_ms)
        done = covered & (label_runs.c.kind == PREDICTION) & old
        newest_ms = connection.scalar(select(func.max(label_runs.c.max_pane_ms)).where(done))
        if newest_ms is not None:
            connection.execute(delete(label_runs).where(done))
            newest[partition_id] = newest_ms
    return newest
