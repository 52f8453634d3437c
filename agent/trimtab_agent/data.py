"""Training data from the archive: a pinned snapshot, labels joined as of the run, split by time.

A snapshot names files by path and SHA-256 and fixes the bounds, so that the same snapshot gives the
same rows however often it is read and whatever arrives later. Times are event times in milliseconds
since the epoch, UTC; `received_ms` is Kafka's timestamp of a label.

    original training set ──┐
    rows since the onset ───┴─ search: fit | validate ── embargo ── gate (the newest)
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from msgspec import Struct

from trimtab.archive.tables import FEATURE_PREFIX
from trimtab.artifacts import FeatureSpec
from trimtab.contracts.model import Contract
from trimtab.serve.predictor import encode_column
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
_LABELS_LATER_MS = 400 * 86_400_000  # labels may be filed long after their inferences


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
        inferences = files_of(connection, contract.name, "inference", onset_ms, now_ms)
        labels = files_of(connection, contract.name, "label", onset_ms, now_ms + _LABELS_LATER_MS)
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
    table = _joined(snapshot, contract)
    new = _training_data(table, contract, champion, original=False)
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
    if snapshot.original:
        table = _read_original(snapshot)
        old = _training_data(table, contract, new.specs, original=True, classes=new.classes)
        older = concatenate(old, older)
    search = with_validation(older, VALIDATION_SHARE, embargo_ms)
    directory.mkdir(parents=True, exist_ok=True)
    return Prepared(
        search=save_data(search, directory / "search.npz"),
        gate=save_data(gate, directory / "gate.npz"),
        gate_from_ms=gate_from_ms,
        gate_to_ms=int(gate.event_time_ms.max()),
        labelled_rows=len(new),
    )


def _joined(snapshot: Snapshot, contract: Contract) -> pa.Table:
    """Inferences of the snapshot with a column `label`, each id once, labelled rows only."""
    rows = pa.concat_tables(
        [_read(file) for file in snapshot.inferences], promote_options="permissive"
    )
    times = rows["time_ms"].to_numpy()
    rows = rows.take(np.flatnonzero((times >= snapshot.from_ms) & (times < snapshot.to_ms)))
    truth = _current_labels(snapshot, contract)
    wanted: list[int] = []
    labels: list[str] = []
    seen: set[str] = set()
    for index, row_id in enumerate(rows["id"].to_pylist()):
        label = truth.get(row_id)
        if label is not None and row_id not in seen:
            seen.add(row_id)
            wanted.append(index)
            labels.append(label)
    return rows.take(wanted).append_column(LABEL_COLUMN, pa.array(labels, pa.string()))


def _current_labels(snapshot: Snapshot, contract: Contract) -> dict[str, str]:
    """Inference id → label as JSON text: highest revision, ties by value, retracted ones gone."""
    table = pa.concat_tables([_read(file) for file in snapshot.labels])
    received = table["received_ms"].to_numpy()
    table = table.take(np.flatnonzero(received <= snapshot.label_as_of_ms))
    best: dict[str, tuple[int, str, bool]] = {}
    for row_id, label, revision, retracted, source in zip(
        *(
            table[name].to_pylist()
            for name in ("inference_id", "label", "revision", "retracted", "source")
        ),
        strict=True,
    ):
        if source not in contract.labels.sources:
            continue
        candidate = (revision, label or "", retracted)
        if row_id not in best or candidate > best[row_id]:
            best[row_id] = candidate
    return {row_id: label for row_id, (_, label, gone) in best.items() if label and not gone}


def _training_data(
    table: pa.Table,
    contract: Contract,
    known: Sequence[FeatureSpec],
    *,
    original: bool,
    classes: Sequence[str] = (),
) -> TrainingData:
    prefix = "" if original else FEATURE_PREFIX
    known_values = {spec.name: spec.values for spec in known}
    specs, columns = [], []
    for name, feature in contract.features.items():
        if not feature.input:
            continue
        values = _column(table, prefix + name, original=original)
        levels: tuple[str, ...] = ()
        if feature.kind == "category":
            levels = feature.values or known_values.get(name, ())
            seen = {str(value) for value in values if value is not None}
            levels = (*levels, *sorted(seen - set(levels))) if not feature.values else levels
        spec = FeatureSpec(name=name, kind=feature.kind, values=levels)
        specs.append(spec)
        columns.append(encode_column(spec, values))
    labels = [_class_text(text) for text in table[LABEL_COLUMN].to_pylist()]
    times = table["time_ms"].to_numpy() if "time_ms" in table.column_names else None
    names: tuple[str, ...] = ()
    if contract.task == "regression":
        codes: Any = np.array([float(label) for label in labels])
        keep = np.isfinite(codes)
    else:
        names = tuple(contract.prediction.classes or classes or sorted(set(labels)))
        position = {text: code for code, text in enumerate(names)}
        codes = np.array([position.get(label, -1) for label in labels], dtype=np.int64)
        keep = codes >= 0
    return make_data(
        np.stack(columns, axis=1)[keep],
        codes[keep],
        specs=tuple(specs),
        classes=names,
        task=contract.task,
        event_time_ms=None if times is None else times[keep],
        original=original,
    )


def _column(table: pa.Table, name: str, *, original: bool) -> list[Any]:
    if name in table.column_names:
        return list(table[name].to_pylist())
    if original:
        raise DataError(
            f"the original training set has no column {name!r}; it needs one per feature "
            f"and {LABEL_COLUMN!r}"
        )
    return [None] * table.num_rows


def _class_text(text: Any) -> str:
    """A label as a class name: JSON text, or a value of the original set."""
    value = text
    if isinstance(text, str):
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            value = text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _read(file: ArchiveFile) -> pa.Table:
    path = Path(file.path)
    if _sha256(path) != file.sha256:
        raise DataError(
            f"{path} is not the file the archive's manifest names (its SHA-256 differs); "
            "restore it from a backup, or purge it from the archive"
        )
    return pyarrow.parquet.read_table(path)


def _read_original(snapshot: Snapshot) -> pa.Table:
    path = Path(str(snapshot.original))
    if _sha256(path) != snapshot.original_sha256:
        raise DataError(f"{path} has changed since the snapshot was pinned; start a new run")
    table = (
        pyarrow.csv.read_csv(path)
        if path.name.endswith((".csv", ".csv.gz"))
        else pyarrow.parquet.read_table(path)
    )
    if LABEL_COLUMN not in table.column_names:
        raise DataError(f"{path} has no column {LABEL_COLUMN!r}; name the label's column so")
    return table


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); is the archive's directory mounted here?"
        ) from error


def snapshot_from(record: Mapping[str, Any]) -> Snapshot:
    """The snapshot that a run's record holds."""
    return msgspec.convert(record, Snapshot)
