"""Label runs: the predictions and labels of a flush, in columns, for joiners to merge.

Flushes only append them, numbered by the flush of their partition, and nobody changes one. A joiner that
has merged a run keeps what it needs of it in kept runs (`kept.py`) and lets it go. Times are
milliseconds since the epoch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from sqlalchemy import Connection, func, insert, select

from trimtab.contracts.model import Contract
from trimtab.stats.scorebins import Bins
from trimtab.store.run_codec import pack, unpack
from trimtab.store.tables import contracts, label_runs, partitions
from trimtab.windows.ids import Hashes

Ints = npt.NDArray[np.int64]

NO_VALUE = -1
"""Class code of a prediction that names no class."""
PREDICTION, LABEL = "prediction", "label"
"""Kinds of runs."""
DUPLICATES_SHARD = -1
"""Of predictions that the sample leaves out: they are kept for finding duplicates, and no joiner reads them."""


class Group(Struct, frozen=True, array_like=True):
    """What rows of a run share; `segments` are "column=value" beside the whole.

    `pane_ms` is how long the panes were that they were counted in: a contract may change it.
    """

    version: str
    arm: str
    traffic_revision: int
    segments: tuple[str, ...] = ()
    pane_ms: int = 0


class PredictionRun(Struct):
    """Predictions of one flush; arrays of shape (n,).

    `values` are codes into `classes` (NO_VALUE: none), or float64 numbers (NaN: none).
    """

    hashes: Hashes
    panes_ms: Ints
    group: npt.NDArray[np.int32]
    values: npt.NDArray[Any]
    groups: tuple[Group, ...]
    classes: tuple[str, ...] = ()
    """Empty for regression."""
    bins: Bins | None = None
    """Bins of the scores (`scorebins`); None when no row has one, as in runs from before they were kept."""


class LabelRun(Struct):
    """Labels of one flush; arrays of shape (n,). `values` as in PredictionRun."""

    hashes: Hashes
    times_ms: Ints
    revision: Ints
    retracted: npt.NDArray[np.bool_]
    values: npt.NDArray[Any]
    classes: tuple[str, ...] = ()


class StoredRun(Struct, frozen=True):
    """A run with its place in the order."""

    partition_id: int
    seq: int
    run: PredictionRun | LabelRun


# --- writing --------------------------------------------------------------------------------------


def encode_run(run: PredictionRun | LabelRun) -> bytes:
    """Encode a run; see `run_codec`."""
    columns: dict[str, npt.NDArray[Any]] = {}
    extra: dict[str, Any] = {}
    for name in run.__struct_fields__:
        value = getattr(run, name)
        if isinstance(value, np.ndarray):
            columns[name] = value
        elif value is not None:
            extra[name] = value
    return pack(columns, extra)


def decode_run(kind: str, body: bytes) -> PredictionRun | LabelRun:
    """Decode `encode_run`."""
    columns, extra = unpack(body)
    arrays: dict[str, Any] = {**columns, "classes": tuple(extra["classes"])}
    if kind == LABEL:
        return LabelRun(**arrays)
    return PredictionRun(**arrays, groups=msgspec.convert(extra["groups"], tuple[Group, ...]))


def write_run(
    connection: Connection,
    *,
    partition_id: int,
    model: str,
    shard: int,
    seq: int,
    next_offset: int,
    run: PredictionRun | LabelRun,
) -> None:
    """Append a run inside the flush numbered `seq`."""
    is_label = isinstance(run, LabelRun)
    times = run.times_ms if isinstance(run, LabelRun) else run.panes_ms
    connection.execute(
        insert(label_runs).values(
            kind=LABEL if is_label else PREDICTION,
            model=model,
            shard=shard,
            partition_id=partition_id,
            seq=seq,
            next_offset=next_offset,
            rows=int(run.hashes.size),
            min_pane_ms=int(times.min()),
            max_pane_ms=int(times.max()),
            body=encode_run(run),
        )
    )


# --- reading --------------------------------------------------------------------------------------


def runs_after(
    connection: Connection,
    model: str,
    shard: int,
    positions: Mapping[int, int],
    limit_rows: int,
) -> list[StoredRun]:
    """Return the runs beyond `positions` (partition id to seq), per partition in sequence.

    At most `limit_rows` rows and whole flushes, so that both runs of a flush come together.
    """
    waiting = [
        (row.id, positions.get(row.id, 0))
        for row in connection.execute(
            select(partitions.c.id, partitions.c.flush_seq)
            .where(partitions.c.consumer == "monitor")
            .order_by(partitions.c.id)
        )
        if row.flush_seq > positions.get(row.id, 0)
    ]
    runs: list[StoredRun] = []
    rows = 0
    for partition_id, seq in waiting:
        if rows >= limit_rows:
            break
        found = connection.execute(
            select(label_runs)
            .where(
                label_runs.c.partition_id == partition_id,
                label_runs.c.model == model,
                label_runs.c.shard == shard,
                label_runs.c.seq > seq,
            )
            .order_by(label_runs.c.seq)
        )
        last = None
        for row in found:
            if rows >= limit_rows and row.seq != last:
                break
            last = row.seq
            rows += row.rows
            runs.append(StoredRun(partition_id, row.seq, decode_run(row.kind, row.body)))
        found.close()
    return runs


def runs_between(
    connection: Connection,
    model: str,
    shard: int,
    after: Mapping[int, int],
    up_to: Mapping[int, int],
) -> Iterable[StoredRun]:
    """Yield every run beyond `after` and within `up_to` (partition id to seq), per partition in sequence."""
    for partition_id, seq in sorted(up_to.items()):
        for row in connection.execute(
            select(label_runs)
            .where(
                label_runs.c.partition_id == partition_id,
                label_runs.c.model == model,
                label_runs.c.shard == shard,
                label_runs.c.seq > after.get(partition_id, 0),
                label_runs.c.seq <= seq,
            )
            .order_by(label_runs.c.seq)
        ):
            yield StoredRun(row.partition_id, row.seq, decode_run(row.kind, row.body))


def longest_pane_ms(connection: Connection, model: str) -> int:
    """Return the longest pane of a model under any revision of its contract; 0 without one."""
    bodies = connection.scalars(select(contracts.c.body).where(contracts.c.model == model))
    lengths = (msgspec.json.decode(body, type=Contract).windows.pane_ms for body in bodies)
    return max(lengths, default=0)


def newest_run(connection: Connection) -> int:
    """Return the highest id of a run; 0 when there is none."""
    return int(connection.scalar(select(func.max(label_runs.c.id))) or 0)


def newest_runs(connection: Connection, after_id: int) -> dict[tuple[str, int], dict[int, int]]:
    """Return of every (model, shard) with runs of a higher id than `after_id` their newest sequence numbers.

    These are by partition id. `after_id` 0 takes all runs, from an index alone.
    """
    query = (
        select(
            label_runs.c.partition_id,
            label_runs.c.model,
            label_runs.c.shard,
            func.max(label_runs.c.seq),
        )
        .where(label_runs.c.shard != DUPLICATES_SHARD)
        .group_by(label_runs.c.partition_id, label_runs.c.model, label_runs.c.shard)
    )
    if after_id:
        query = query.where(label_runs.c.id > after_id)
    found: dict[tuple[str, int], dict[int, int]] = {}
    for partition_id, model, shard, seq in connection.execute(query):
        found.setdefault((model, shard), {})[partition_id] = seq
    return found
