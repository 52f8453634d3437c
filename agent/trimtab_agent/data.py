"""Training data from the archive: a pinned snapshot, labels joined as of the run, split by time.

A snapshot names files by path and SHA-256 and fixes the bounds, so that the same snapshot gives the
same rows however often it is read and whatever arrives later. Times are event times in milliseconds
since the epoch, UTC; `received_ms` is Kafka's timestamp of a label.

    original training set ──┐
    rows since the onset ───┴─ search: fit | validate ── embargo ── gate (the newest)

Values mean here what they mean to the monitor: a category is its `category_key`, a label its
`label_value`, and of several labels of a row the one wins that the joiner takes.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from msgspec import Struct

from trimtab.archive.tables import FEATURE_PREFIX
from trimtab.artifacts import FeatureSpec
from trimtab.contracts.model import Contract, Feature
from trimtab.monitor.label_columns import label_value
from trimtab.serve.predictor import encode_column
from trimtab.stats.cuts import category_key
from trimtab.store.archive import ArchiveFile, files_of
from trimtab.store.engine import Store
from trimtab_agent.recipes.data import (
    DataError,
    DataRef,
    TrainingData,
    concatenate,
    make_data,
    save_data,
    with_validation,
)

GATE_SHARE = 0.25
VALIDATION_SHARE = 0.25
LABEL_COLUMN = "label"
LABELS_LATER_MS = 400 * 86_400_000  # labels may be filed long after their inferences


class Snapshot(Struct, frozen=True, kw_only=True):
    """What a run may learn from and be judged on."""

    model: str
    run_id: str
    from_ms: int
    to_ms: int
    label_as_of_ms: int
    """Labels that reached Kafka later do not count."""
    gate_after_ms: int
    """Rows up to here were gated before, so they may not judge again."""
    inferences: list[ArchiveFile]
    labels: list[ArchiveFile]
    original: str | None
    original_sha256: str | None
    digest: str = ""


class _Rows(Struct, frozen=True):
    """Labelled rows before they are encoded: float64 columns, or lists of category texts."""

    columns: dict[str, Any]
    labels: npt.NDArray[np.object_]
    event_time_ms: npt.NDArray[np.int64] | None


class Prepared(Struct, frozen=True, kw_only=True):
    """The snapshot's rows as data files."""

    search: DataRef
    """The original training set and the older rows; the newest of them marked for validation."""
    gate: DataRef
    gate_from_ms: int
    gate_to_ms: int
    labelled_rows: int


def pin_snapshot(
    store: Store,
    contract: Contract,
    *,
    run_id: str,
    onset_ms: int,
    now_ms: int,
    gate_after_ms: int = 0,
) -> Snapshot:
    """Fix what the archive holds now of the model's rows since `onset_ms`.

    Raises:
        DataError: the archive holds no inference or no label of them, or the original training set
            cannot be read.

    """
    with store.read() as connection:
        # Other topics may claim this model; the monitor rejects what they bring.
        inferences = files_of(
            connection, contract.name, "inference", onset_ms, now_ms, contract.source.topics
        )
        labels = files_of(connection, contract.name, "label", onset_ms, now_ms + LABELS_LATER_MS)
    if not inferences or not labels:
        missing = "inferences" if not inferences else "labels"
        raise DataError(
            f"the archive holds no {missing} of {contract.name!r} since the onset; "
            "is `trimtab archive` running and caught up?"
        )
    original = contract.retraining.original
    snapshot = Snapshot(
        model=contract.name,
        run_id=run_id,
        from_ms=onset_ms,
        to_ms=now_ms,
        label_as_of_ms=now_ms,
        gate_after_ms=gate_after_ms,
        inferences=inferences,
        labels=labels,
        original=original,
        original_sha256=_sha256(Path(original)) if original else None,
    )
    content = msgspec.json.encode(snapshot, order="deterministic")
    return msgspec.structs.replace(snapshot, digest=hashlib.sha256(content).hexdigest())


def prepare(
    snapshot: Snapshot,
    contract: Contract,
    directory: Path,
    *,
    champion: Sequence[FeatureSpec] = (),
    gate_share: float = GATE_SHARE,
    embargo_ms: int = 0,
) -> Prepared:
    """Read the snapshot, join, split by event time and write both data files into `directory`.

    `champion` gives category values in the order the champion learnt, so that both models read the
    same codes.

    Raises:
        DataError: a file is missing or altered, or there are too few labelled rows to split.

    """
    recent = _joined(snapshot, contract)
    first = _original(snapshot, contract) if snapshot.original else None
    both = [recent] if first is None else [recent, first]
    specs = _specs(contract, champion, both)
    classes = _classes(contract, both)
    new = _training_data(recent, contract, specs, classes, original=False)
    by_time = np.argsort(new.event_time_ms, kind="stable")
    new = new.take(by_time)
    usable = np.flatnonzero(new.event_time_ms > snapshot.gate_after_ms)
    gate_rows = min(round(gate_share * len(new)), len(usable))
    if gate_rows < 1 or gate_rows >= len(new):
        raise DataError(
            f"{len(new)} labelled rows since the onset, {len(usable)} of them never gated: too few "
            "to search on some and judge on others; wait for more labels"
        )
    gate = new.take(np.arange(len(new) - gate_rows, len(new)))
    gate_from_ms = int(gate.event_time_ms.min())
    older = new.take(new.event_time_ms < gate_from_ms - embargo_ms)
    if first is not None:
        older = concatenate(_training_data(first, contract, specs, classes, original=True), older)
    search = with_validation(older, VALIDATION_SHARE, embargo_ms)
    directory.mkdir(parents=True, exist_ok=True)
    return Prepared(
        search=save_data(search, directory / "search.npz"),
        gate=save_data(gate, directory / "gate.npz"),
        gate_from_ms=gate_from_ms,
        gate_to_ms=int(gate.event_time_ms.max()),
        labelled_rows=len(new),
    )


def _joined(snapshot: Snapshot, contract: Contract) -> _Rows:
    """The snapshot's inferences that have a label, each id once, in the order of the manifest."""
    tables = (read_archived(file) for file in snapshot.labels)
    truth = current_labels(tables, contract, snapshot.label_as_of_ms)
    parts: list[_Rows] = []
    taken: set[str] = set()
    for file in snapshot.inferences:
        table = read_archived(file)
        times = table["time_ms"].to_numpy()
        wanted: list[int] = []
        for index, row_id in enumerate(table["id"].to_pylist()):
            inside = snapshot.from_ms <= times[index] < snapshot.to_ms
            if inside and row_id in truth and row_id not in taken:
                taken.add(row_id)
                wanted.append(index)
        if wanted:
            table = table.take(wanted)
            labels = [truth[row_id] for row_id in table["id"].to_pylist()]
            parts.append(_rows(table, contract, labels, FEATURE_PREFIX))
    return _Rows(
        {
            name: np.concatenate([part.columns[name] for part in parts]) if parts else np.empty(0)
            for name in _inputs(contract)
        },
        np.concatenate([part.labels for part in parts]) if parts else np.empty(0, np.object_),
        np.concatenate([np.asarray(part.event_time_ms) for part in parts])
        if parts
        else np.empty(0, np.int64),
    )


def current_labels(
    tables: Iterable[pa.Table],
    contract: Contract,
    as_of_ms: int,
    wanted: Collection[str] | None = None,
) -> dict[str, str | float]:
    """Inference id → its label as of a time, in the joiner's order; withdrawn ones are gone.

    `tables` are label files; `wanted` leaves out all other ids.
    """
    regression = contract.task == "regression"
    best: dict[str, tuple[int, bool, str | float]] = {}
    names = ("inference_id", "label", "revision", "retracted", "source", "received_ms")
    for table in tables:
        for row_id, text, revision, retracted, source, received_ms in zip(
            *(table[name].to_pylist() for name in names), strict=True
        ):
            if wanted is not None and row_id not in wanted:
                continue
            if received_ms > as_of_ms or source not in contract.labels.sources:
                continue
            decoded = None if text is None else msgspec.json.decode(text)
            value = label_value(decoded, regression=regression)
            if value is None:
                if not retracted:
                    continue
                value = 0.0 if regression else ""
            candidate = (revision, retracted, value)
            if row_id not in best or candidate > best[row_id]:
                best[row_id] = candidate
    return {row_id: value for row_id, (_, withdrawn, value) in best.items() if not withdrawn}


def _original(snapshot: Snapshot, contract: Contract) -> _Rows:
    """The original training set, rows with a label."""
    table = _read_original(snapshot)
    labels = [
        label_value(value, regression=contract.task == "regression")
        for value in table[LABEL_COLUMN].to_pylist()
    ]
    labelled = [index for index, label in enumerate(labels) if label is not None]
    return _rows(table.take(labelled), contract, [labels[index] for index in labelled], "")


def _rows(table: pa.Table, contract: Contract, labels: Sequence[Any], prefix: str) -> _Rows:
    columns = {}
    for name, feature in _inputs(contract).items():
        column = prefix + name
        if column in table.column_names:
            columns[name] = feature_values(table[column], feature)
        elif prefix:
            columns[name] = feature_values(pa.nulls(table.num_rows), feature)  # nobody sent it
        else:
            raise DataError(
                f"the original training set has no column {name!r}; it needs one per feature "
                f"and {LABEL_COLUMN!r}"
            )
    times = table["time_ms"].to_numpy() if "time_ms" in table.column_names else None
    return _Rows(columns, _objects(labels), times)


def _inputs(contract: Contract) -> dict[str, Feature]:
    return {name: feature for name, feature in contract.features.items() if feature.input}


def feature_values(column: Any, feature: Feature) -> Any:
    """float64 with NaN for what is no number, or objects: category texts, None for what is none."""
    if feature.kind == "category":
        return _objects(category_key(value) or None for value in column.to_pylist())
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        values = np.array([_number(value) for value in column.to_pylist()], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _number(value: Any) -> float:
    """A cell of a text column as the model server reads it: true is 1, "2.5" is 2.5."""
    if value in ("true", "false"):
        return float(value == "true")
    try:
        return np.nan if value is None else float(value)
    except (TypeError, ValueError):
        return np.nan


def _objects(values: Iterable[Any]) -> npt.NDArray[np.object_]:
    items = list(values)
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array


def _specs(
    contract: Contract, champion: Sequence[FeatureSpec], parts: Sequence[_Rows]
) -> tuple[FeatureSpec, ...]:
    """The model's features. Categories: the champion's in its order, then declared, then seen ones."""
    learnt = {spec.name: spec.values for spec in champion}
    specs = []
    for name, feature in _inputs(contract).items():
        values: tuple[str, ...] = ()
        if feature.kind == "category":
            seen = {value for part in parts for value in part.columns[name] if value is not None}
            more = feature.values or sorted(seen)
            values = tuple(dict.fromkeys((*learnt.get(name, ()), *more)))
        specs.append(FeatureSpec(name=name, kind=feature.kind, values=values))
    return tuple(specs)


def _classes(contract: Contract, parts: Sequence[_Rows]) -> tuple[str, ...]:
    if contract.task == "regression":
        return ()
    seen = {label for part in parts for label in part.labels}
    return contract.prediction.classes or tuple(sorted(seen))


def _training_data(
    rows: _Rows,
    contract: Contract,
    specs: tuple[FeatureSpec, ...],
    classes: tuple[str, ...],
    *,
    original: bool,
) -> TrainingData:
    """Encode rows; those whose label is none of the classes are left out."""
    columns = [encode_column(spec, rows.columns[spec.name]) for spec in specs]
    if contract.task == "regression":
        codes = rows.labels.astype(np.float64)
        keep = np.ones(len(codes), np.bool_)
    else:
        position = {text: code for code, text in enumerate(classes)}
        codes = np.array([position.get(label, -1) for label in rows.labels], dtype=np.int64)
        keep = codes >= 0
    times = rows.event_time_ms
    return make_data(
        np.stack(columns, axis=1)[keep],
        codes[keep],
        specs=specs,
        classes=classes,
        task=contract.task,
        event_time_ms=None if times is None else times[keep],
        original=original,
    )


def read_archived(file: ArchiveFile) -> pa.Table:
    """A file of the archive. Raises DataError where it is missing or altered."""
    path = Path(file.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise DataError(
            f"{path} is not the file the archive's manifest names (its SHA-256 differs); "
            "restore it from a backup, or purge it from the archive"
        )
    return pyarrow.parquet.read_table(pa.BufferReader(content))


def _read_original(snapshot: Snapshot) -> pa.Table:
    path = Path(str(snapshot.original))
    if _sha256(path) != snapshot.original_sha256:
        raise DataError(f"{path} has changed since the snapshot was pinned; start a new run")
    csv = path.name.endswith((".csv", ".csv.gz"))
    try:
        table = pyarrow.csv.read_csv(path) if csv else pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        raise DataError(
            f"{path} cannot be read ({error}); the original training set is CSV or Parquet"
        ) from error
    if LABEL_COLUMN not in table.column_names:
        raise DataError(f"{path} has no column {LABEL_COLUMN!r}; name the label's column so")
    return table


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read ({error.strerror}); is its directory mounted here?")


def snapshot_from(record: Mapping[str, Any]) -> Snapshot:
    """The snapshot that a run's record holds."""
    return msgspec.convert(record, Snapshot)
