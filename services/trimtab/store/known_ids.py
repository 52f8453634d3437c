"""Which ids a partition's predictions have had: by them a reader that starts anew knows its duplicates."""

from collections.abc import Iterable

from sqlalchemy import Connection, delete, or_, select

from trimtab.store.entries import BEGINNING_MS, decode_kept
from trimtab.store.joiners import read_positions
from trimtab.store.label_runs import (
    DUPLICATES_SHARD,
    PREDICTION,
    Ints,
    PredictionRun,
    decode_run,
    longest_pane_ms,
)
from trimtab.store.tables import joiners, kept_runs, label_runs, watermarks
from trimtab.windows.ids import Hashes


def predictions_since(
    connection: Connection, partition_id: int, model: str, pane_ms: int
) -> Iterable[tuple[Hashes, Ints]]:
    """Yield (hashes, pane starts) of a partition's predictions in panes that start at `pane_ms` or later.

    A pair may come twice. Of panes whose runs have been let go (sealed ones, see `kept.py`) only an
    id's current prediction is known.
    """
    bodies = connection.scalars(
        select(label_runs.c.body).where(
            label_runs.c.partition_id == partition_id,
            label_runs.c.model == model,
            label_runs.c.kind == PREDICTION,
            label_runs.c.max_pane_ms >= pane_ms,
        )
    )
    for body in bodies:
        run = decode_run(PREDICTION, body)
        assert isinstance(run, PredictionRun)
        late = run.panes_ms >= pane_ms
        yield run.hashes[late], run.panes_ms[late]
    for joiner in connection.execute(select(joiners).where(joiners.c.model == model)).all():
        if read_positions(joiner.let_go).get(partition_id, BEGINNING_MS) < pane_ms:
            continue
        for body in connection.scalars(
            select(kept_runs.c.body).where(
                kept_runs.c.model == model,
                kept_runs.c.shard == joiner.shard,
                kept_runs.c.until_ms >= pane_ms,
            )
        ):
            kept = decode_kept(body)
            mine = (kept.predictions["partition"] == partition_id) & (
                kept.predictions["pane"] >= pane_ms
            )
            yield kept.prediction_hashes[mine], kept.predictions["pane"][mine]


def pane_predictions(
    connection: Connection, partition_id: int, model: str, pane_ms: int, flushes: tuple[int, int]
) -> Iterable[Hashes]:
    """Yield the hashes of a partition's predictions in the pane that starts at `pane_ms`.

    `flushes` are the first and the last flush that may have brought some. Only of a pane that is not
    sealed: its runs are all still there.
    """
    first, last = flushes
    bodies = connection.scalars(
        select(label_runs.c.body).where(
            label_runs.c.partition_id == partition_id,
            label_runs.c.model == model,
            label_runs.c.kind == PREDICTION,
            label_runs.c.seq >= first,
            label_runs.c.seq <= last,
            label_runs.c.min_pane_ms <= pane_ms,
            label_runs.c.max_pane_ms >= pane_ms,
        )
    )
    for body in bodies:
        run = decode_run(PREDICTION, body)
        assert isinstance(run, PredictionRun)
        yield run.hashes[run.panes_ms == pane_ms]


def forget_left_out(connection: Connection, model: str, before_ms: int, limit: int) -> int:
    """Delete runs of predictions that the sample left out, when their partition has sealed their panes.

    `before_ms` is an age beyond which they go in any case; return how many runs went.
    """
    sealed = (
        select(watermarks.c.sealed_ms)
        .where(watermarks.c.model == model, watermarks.c.partition_id == label_runs.c.partition_id)
        .scalar_subquery()
    )
    ids = connection.scalars(
        select(label_runs.c.id)
        .where(
            label_runs.c.model == model,
            label_runs.c.shard == DUPLICATES_SHARD,
            or_(
                label_runs.c.max_pane_ms < sealed - longest_pane_ms(connection, model),
                label_runs.c.max_pane_ms < before_ms,
            ),
        )
        .limit(limit)
    ).all()
    if ids:
        connection.execute(delete(label_runs).where(label_runs.c.id.in_(ids)))
    return len(ids)
