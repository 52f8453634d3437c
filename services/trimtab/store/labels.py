"""Label runs, joiners and performance.

Flushes only append immutable runs: predictions and labels in columns, numbered by the flush of their
partition. A joiner owns a (model, shard) under an epoch, merges new runs in sequence and writes signed
deltas of performance with its positions in one transaction. What it has merged it keeps in kept runs
(`kept.py`) and lets the runs go. Times are milliseconds since the epoch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from sqlalchemy import Connection, and_, delete, func, insert, or_, select, update

from trimtab.contracts.model import Contract
from trimtab.errors import ConflictError
from trimtab.stats.performance import PerformanceState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.run_codec import pack, unpack
from trimtab.store.tables import (
    contracts,
    joiners,
    kept_runs,
    label_classes,
    label_runs,
    partitions,
    performance,
    watermarks,
)
from trimtab.windows.ids import Hashes

Ints = npt.NDArray[np.int64]

NO_VALUE = -1
"""Class code of a prediction that names no class."""
PREDICTION, LABEL = "prediction", "label"
"""Kinds of runs."""
DUPLICATES_SHARD = -1
"""Of predictions that the sample leaves out: they are kept for finding duplicates, and no joiner reads them."""
PANES_PER_QUERY = MODELS_PER_QUERY = 500
BEGINNING_MS = -(2**62)
"""Before every event time."""


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


PREDICTION_RECORD = np.dtype(
    [("pane", "<i8"), ("partition", "<i4"), ("group", "<i4"), ("code", "<i4"), ("number", "<f8")]
)
LABEL_RECORD = np.dtype(
    [
        *(("time", "<i8"), ("revision", "<i8"), ("partition", "<i4")),
        *(("code", "<i4"), ("number", "<f8"), ("retracted", "?")),
    ]
)
"""What the joiner's index keeps of an id; `code` and `group` are places in lists beside it."""
Records = npt.NDArray[Any]


class KeptRun(Struct):
    """Current entries of ids as the joiner's index had them; hashes ascending, each once.

    An entry is all that is known of an id: its prediction, its label or both. A later kept run's
    entry of an id replaces an earlier one's.
    """

    prediction_hashes: Hashes
    predictions: Records
    label_hashes: Hashes
    labels: Records
    groups: tuple[Group, ...]
    classes: tuple[str, ...]

    @property
    def hashes(self) -> Hashes:
        """The ids of the entries."""
        alone = self.label_hashes[self._alone()]
        return np.sort(np.concatenate((self.prediction_hashes, alone)))

    @property
    def rows(self) -> int:
        """How many entries there are."""
        return self.prediction_hashes.size + int(self._alone().sum())

    @property
    def until_ms(self) -> int:
        """The newest time that any entry is kept by: its prediction's pane, else its label's time."""
        times = np.concatenate((self.predictions["pane"], self.labels["time"][self._alone()]))
        return int(times.max()) if times.size else BEGINNING_MS

    def _alone(self) -> npt.NDArray[np.bool_]:
        """Which labels have no prediction."""
        keys = self.prediction_hashes
        if keys.size == 0:
            return np.ones(self.label_hashes.size, np.bool_)
        place = np.minimum(keys.searchsorted(self.label_hashes), keys.size - 1)
        alone: npt.NDArray[np.bool_] = keys[place] != self.label_hashes
        return alone


# --- runs -----------------------------------------------------------------------------------------


def encode_run(run: PredictionRun | LabelRun) -> bytes:
    """Encode a run; see `run_codec`."""
    columns: dict[str, npt.NDArray[Any]] = {}
    extra: dict[str, Any] = {}
    for name in run.__struct_fields__:
        value = getattr(run, name)
        if isinstance(value, np.ndarray):
            columns[name] = value
        else:
            extra[name] = value
    return pack(columns, extra)


def decode_run(kind: str, body: bytes) -> PredictionRun | LabelRun:
    """Decode `encode_run`."""
    columns, extra = unpack(body)
    arrays: dict[str, Any] = {**columns, "classes": tuple(extra["classes"])}
    if kind == LABEL:
        return LabelRun(**arrays)
    return PredictionRun(**arrays, groups=msgspec.convert(extra["groups"], tuple[Group, ...]))


def encode_kept(run: KeptRun) -> bytes:
    """Encode a kept run."""
    columns = {"p.hashes": run.prediction_hashes, "l.hashes": run.label_hashes}
    columns |= {f"p.{name}": run.predictions[name] for name in PREDICTION_RECORD.names or ()}
    columns |= {f"l.{name}": run.labels[name] for name in LABEL_RECORD.names or ()}
    return pack(columns, {"groups": run.groups, "classes": run.classes})


def decode_kept(body: bytes) -> KeptRun:
    """Decode `encode_kept`."""
    columns, extra = unpack(body)

    def records(prefix: str, dtype: np.dtype[Any]) -> Records:
        made = np.zeros(columns[f"{prefix}.hashes"].size, dtype)
        for name in dtype.names or ():
            made[name] = columns[f"{prefix}.{name}"]
        return made

    return KeptRun(
        columns["p.hashes"],
        records("p", PREDICTION_RECORD),
        columns["l.hashes"],
        records("l", LABEL_RECORD),
        msgspec.convert(extra["groups"], tuple[Group, ...]),
        tuple(extra["classes"]),
    )


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
    """Return a bound on the model's pane length under any revision: a pane divides its window."""
    bodies = connection.scalars(select(contracts.c.body).where(contracts.c.model == model))
    lengths = (msgspec.json.decode(body, type=Contract).windows.length_ms for body in bodies)
    return max(lengths, default=0)


def ask_expiry(connection: Connection, model: str, before_ms: int) -> None:
    """Ask a model's joiners to let go of what is older than `before_ms`; they do it at their ticks."""
    connection.execute(
        update(joiners)
        .where(joiners.c.model == model, joiners.c.expire_to_ms < before_ms)
        .values(expire_to_ms=before_ms)
    )


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


# --- joiners --------------------------------------------------------------------------------------


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
    with store.write() as connection:
        after = move_joiner(
            connection, claim, {"positions": write_positions(vector), "updated_ms": now_ms}
        )
        _add_performance(connection, claim, deltas, after.position)
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


def _add_performance(
    connection: Connection,
    claim: JoinerClaim,
    deltas: Mapping[PerformanceKey, PerformanceDelta],
    position: int,
) -> None:
    columns = performance.c
    mine = and_(columns.model == claim.model, columns.shard == claim.shard)
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
                "model": claim.model,
                "shard": claim.shard,
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
