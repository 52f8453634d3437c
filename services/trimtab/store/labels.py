"""Label runs, joiners and performance.

Flushes only append immutable runs: predictions and labels in columns, numbered by the flush of their
partition. A joiner owns a (model, shard) under an epoch, merges new runs in sequence and writes signed
deltas of performance with its positions in one transaction. Times are milliseconds since the epoch.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from trimtab.errors import ConflictError
from trimtab.stats.performance import PerformanceState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import joiners, label_classes, label_runs, partitions, performance
from trimtab.windows.ids import Hashes

Ints = npt.NDArray[np.int64]

NO_VALUE = -1
"""Class code of a prediction that names no class."""


class Group(Struct, frozen=True, array_like=True):
    """What rows of a run share; `segments` are "column=value" beside the whole."""

    version: str
    arm: str
    traffic_revision: int
    segments: tuple[str, ...] = ()


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


# --- runs -----------------------------------------------------------------------------------------


def encode_run(run: PredictionRun | LabelRun) -> bytes:
    """Encode a run: hashes plain (they do not compress), the rest with zlib."""
    columns: dict[str, list[Any]] = {}
    extra: dict[str, Any] = {}
    for name in run.__struct_fields__:
        value = getattr(run, name)
        if name == "hashes":
            continue
        if isinstance(value, np.ndarray):
            columns[name] = [value.dtype.str, value.tobytes()]
        else:
            extra[name] = value
    rest = zlib.compress(msgspec.msgpack.encode([columns, extra]), level=1)
    return msgspec.msgpack.encode([1, np.ascontiguousarray(run.hashes, "<u8").tobytes(), rest])


def decode_run(kind: str, body: bytes) -> PredictionRun | LabelRun:
    """Decode `encode_run`."""
    _, hashes, rest = msgspec.msgpack.decode(body)
    columns, extra = msgspec.msgpack.decode(zlib.decompress(rest))
    arrays: dict[str, Any] = {
        name: np.frombuffer(data, dtype=dtype) for name, (dtype, data) in columns.items()
    }
    arrays["hashes"] = np.frombuffer(hashes, dtype="<u8")
    arrays["classes"] = tuple(extra["classes"])
    if kind == "label":
        return LabelRun(**arrays)
    return PredictionRun(**arrays, groups=msgspec.convert(extra["groups"], tuple[Group, ...]))


def run_hashes(body: bytes) -> tuple[Hashes, Ints]:
    """Return (hashes, pane starts) of a prediction run."""
    run = decode_run("prediction", body)
    assert isinstance(run, PredictionRun)
    return run.hashes, run.panes_ms


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
            kind="label" if is_label else "prediction",
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


def predictions_since(
    connection: Connection, partition_id: int, model: str, pane_ms: int
) -> Iterable[tuple[Hashes, Ints]]:
    """Yield (hashes, pane starts) of a partition's predictions in panes that start at `pane_ms` or later."""
    bodies = connection.scalars(
        select(label_runs.c.body).where(
            label_runs.c.partition_id == partition_id,
            label_runs.c.model == model,
            label_runs.c.kind == "prediction",
            label_runs.c.max_pane_ms >= pane_ms,
        )
    )
    for body in bodies:
        hashes, starts = run_hashes(body)
        late = starts >= pane_ms
        yield hashes[late], starts[late]


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
            label_runs.c.kind == "prediction",
            label_runs.c.seq >= first,
            label_runs.c.seq <= last,
            label_runs.c.min_pane_ms <= pane_ms,
            label_runs.c.max_pane_ms >= pane_ms,
        )
    )
    for body in bodies:
        run = decode_run("prediction", body)
        assert isinstance(run, PredictionRun)
        yield run.hashes[run.panes_ms == pane_ms]


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


def runs_up_to(
    connection: Connection, model: str, shard: int, positions: Mapping[int, int]
) -> Iterable[StoredRun]:
    """Yield every run within `positions`: what a joiner that takes over rebuilds its index from."""
    if not positions:
        return
    within = or_(
        *(
            and_(label_runs.c.partition_id == partition_id, label_runs.c.seq <= seq)
            for partition_id, seq in positions.items()
        )
    )
    for row in connection.execute(
        select(label_runs)
        .where(label_runs.c.model == model, label_runs.c.shard == shard, within)
        .order_by(label_runs.c.partition_id, label_runs.c.seq)
    ):
        yield StoredRun(row.partition_id, row.seq, decode_run(row.kind, row.body))


def expire_runs(connection: Connection, model: str, before_ms: int) -> int:
    """Delete merged runs whose newest pane (or label) is before `before_ms`; return how many.

    Only runs that every shard's joiner has merged go, so no label is lost to retention unseen.
    """
    gone = 0
    for joiner in connection.execute(select(joiners).where(joiners.c.model == model)).all():
        for partition_id, seq in read_positions(joiner.positions).items():
            gone += connection.execute(
                delete(label_runs).where(
                    label_runs.c.model == model,
                    label_runs.c.shard == joiner.shard,
                    label_runs.c.partition_id == partition_id,
                    label_runs.c.seq <= seq,
                    label_runs.c.max_pane_ms < before_ms,
                )
            ).rowcount
    return gone


# --- joiners --------------------------------------------------------------------------------------


class JoinerClaim(Struct, frozen=True, kw_only=True):
    """A joiner's ownership of a (model, shard), and how far it had merged."""

    model: str
    shard: int
    epoch: int
    position: int
    positions: dict[int, int]
    expires_ms: int


def newest_run(connection: Connection) -> int:
    """Return the highest id of a run; 0 when there is none."""
    return int(connection.scalar(select(func.max(label_runs.c.id))) or 0)


def shards_with_runs(connection: Connection, after_id: int) -> list[tuple[str, int]]:
    """Return every (model, shard) with a run of a higher id than `after_id`."""
    found = connection.execute(
        select(label_runs.c.model, label_runs.c.shard)
        .where(label_runs.c.id > after_id)
        .distinct()
        .order_by(label_runs.c.model, label_runs.c.shard)
    )
    return [(row.model, row.shard) for row in found]


def rows_in_runs(connection: Connection, model: str, shard: int) -> int:
    """Return the rows of all stored runs of a (model, shard)."""
    total = select(func.coalesce(func.sum(label_runs.c.rows), 0))
    return int(
        connection.scalar(total.where(label_runs.c.model == model, label_runs.c.shard == shard))
        or 0
    )


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
    )


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
    """Read a position vector: partition id to the flush merged."""
    return msgspec.json.decode(text, type=dict[int, int])


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
    position = claim.position + 1
    with store.write() as connection:
        done = connection.execute(
            update(joiners)
            .where(
                joiners.c.model == claim.model,
                joiners.c.shard == claim.shard,
                joiners.c.epoch == claim.epoch,
                joiners.c.position == claim.position,
            )
            .values(
                position=position,
                positions=msgspec.json.encode(dict(sorted(vector.items()))).decode(),
                updated_ms=now_ms,
            )
        )
        if done.rowcount != 1:
            raise ConflictError(
                f"Another joiner owns {claim.model!r} shard {claim.shard}; its merge counts."
            )
        for key, delta in sorted(deltas.items()):
            _add_performance(connection, claim, key, delta, position)
        for (partition_id, cls), count in sorted(classes.items()):
            _add_label_class(connection, claim, partition_id, cls, count)
    return msgspec.structs.replace(claim, position=position, positions=vector)


def _add_performance(
    connection: Connection,
    claim: JoinerClaim,
    key: PerformanceKey,
    delta: PerformanceDelta,
    position: int,
) -> None:
    place = {
        "model": claim.model,
        "shard": claim.shard,
        **msgspec.structs.asdict(key),
    }
    row = connection.execute(
        select(performance).where(*(performance.c[name] == v for name, v in place.items()))
    ).one_or_none()
    state, labelled, predicted = delta.state, delta.labelled_rows, delta.predicted_rows
    if row is not None:
        state = PerformanceState.from_bytes(row.state).merge(state)
        labelled += row.labelled_rows
        predicted += row.predicted_rows
    statement = insert_for(connection, performance).values(
        **place,
        labelled_rows=labelled,
        predicted_rows=predicted,
        state=state.to_bytes(),
        position=position,
    )
    changed = ("labelled_rows", "predicted_rows", "state", "position")
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(place), set_={name: statement.excluded[name] for name in changed}
        )
    )


def _add_label_class(
    connection: Connection, claim: JoinerClaim, partition_id: int, cls: str, count: int
) -> None:
    if not count:
        return
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
    total: dict[str, VersionPerformance] = {}
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
        state = PerformanceState.from_bytes(row.state)
        before = total.get(row.version)
        if before is not None:
            state = before.state.merge(state)
        total[row.version] = VersionPerformance(
            state,
            row.labelled_rows + (before.labelled_rows if before else 0),
            row.predicted_rows + (before.predicted_rows if before else 0),
        )
    return dict(sorted(total.items()))


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
