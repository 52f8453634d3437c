"""Which ids a partition's predictions have had: by them a reader that starts anew knows its duplicates."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, delete, or_, select

from trimtab.store.entries import BEGINNING_MS, decode_kept
from trimtab.store.joiners import read_positions
from trimtab.store.label_runs import (
    DUPLICATES_SHARD,
    PREDICTION,
    Group,
    Ints,
    PredictionRun,
    decode_run,
    longest_pane_ms,
)
from trimtab.store.tables import joiners, kept_runs, label_runs, watermarks
from trimtab.windows.ids import Hashes


def predictions_since(
    connection: Connection, partition_id: int, model: str, pane_ms: int
) -> Iterable[tuple[int, Hashes, Ints]]:
    """Yield (pane length, hashes, pane starts) of a partition's predictions, from `pane_ms` on.

    Panes count that start at `pane_ms` or later. An id may come twice. Of panes whose runs have been
    let go (sealed ones, see `kept.py`) only an id's current prediction is known.
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
        yield from _by_length(run.groups, run.group[late], run.hashes[late], run.panes_ms[late])
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
            found = kept.predictions[mine]
            yield from _by_length(
                kept.groups, found["group"], kept.prediction_hashes[mine], found["pane"]
            )


def _by_length(
    groups: tuple[Group, ...], group: npt.NDArray[np.int32], hashes: Hashes, starts: Ints
) -> Iterator[tuple[int, Hashes, Ints]]:
    lengths = np.array([one.pane_ms for one in groups], np.int64)
    for length in np.unique(lengths).tolist():
        if length == lengths.max() == lengths.min():
            yield length, hashes, starts
        else:
            mine = lengths[group] == length
            yield length, hashes[mine], starts[mine]


def pane_predictions(
    connection: Connection,
    partition_id: int,
    model: str,
    pane: tuple[int, int],
    flushes: tuple[int, int],
) -> Iterable[Hashes]:
    """Yield the hashes of a partition's predictions in a pane, given as (start, length).

    `flushes` are the first and the last flush that may have brought some. Only of a pane that is not
    sealed: its runs are all still there.
    """
    pane_ms, length_ms = pane
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
        for length, hashes, starts in _by_length(run.groups, run.group, run.hashes, run.panes_ms):
            if length == length_ms:
                yield hashes[starts == pane_ms]


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
