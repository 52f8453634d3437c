"""Training data as recipes see it, and its file.

Notation: n rows, d features in the contract's order. Times are event times in milliseconds since
the epoch, UTC. The file is an uncompressed `.npz` of plain arrays (never pickled), identified by
its SHA-256; it passes between processes by path.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import FeatureSpec, Signature, Task, make_signature
from trimtab.errors import TrimtabError

MAX_DATA_BYTES = 16 * 2**30


class DataError(TrimtabError):
    """Training data is malformed, or a file is not the one its record names."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Labelled rows.

    Attributes:
        features: float32 (n, d); a category as its code in the feature's `values` (−1 unseen),
            a missing number as NaN.
        labels: (n,), int64 codes into `classes`, or float64 values of a regression.
        event_time_ms: int64 (n,).
        original: bool (n,); True for the original training set, False for rows since the onset.
        validation: bool (n,); rows a fit must not learn from, but reports its value on.
        specs: the d features.
        classes: the labels' names in code order; empty for a regression.
        task: binary, multiclass or regression.

    """

    features: NDArray[np.float32]
    labels: NDArray[Any]
    event_time_ms: NDArray[np.int64]
    original: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    specs: tuple[FeatureSpec, ...]
    classes: tuple[str, ...]
    task: Task

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            DataError: shapes, types or codes do not fit.

        """
        n = len(self.features)
        if self.features.ndim != 2 or self.features.shape[1] != len(self.specs):
            raise DataError(
                f"features have shape {self.features.shape}, expected (n, {len(self.specs)}); "
                "give one column per feature of the contract"
            )
        for name in ("labels", "event_time_ms", "original", "validation"):
            shape = getattr(self, name).shape
            if shape != (n,):
                raise DataError(f"{name} has shape {shape}, expected ({n},); give one per row")
        if self.task != "regression" and n:
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"label codes run from {low} to {high}, there are {len(self.classes)} classes; "
                    "leave out rows whose label is not a class"
                )
        if self.task == "regression" and not bool(np.isfinite(self.labels).all()):
            raise DataError("labels hold NaN or infinity; leave out rows without a finite label")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def signature(self) -> Signature:
        """The signature of a model fitted on this."""
        return make_signature(self.task, self.specs, self.classes)

    def take(self, rows: NDArray[Any]) -> "TrainingData":
        """Return the rows of an index or mask, in its order."""
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            event_time_ms=self.event_time_ms[rows],
            original=self.original[rows],
            validation=self.validation[rows],
        )

    @property
    def to_fit(self) -> "TrainingData":
        """The rows a fit learns from."""
        return self.take(~self.validation)

    @property
    def to_validate(self) -> "TrainingData":
        """The rows a fit reports its value on."""
        return self.take(self.validation)


class DataRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a data file lies, what it must hash to, and how many rows it has."""

    path: str
    sha256: str
    rows: int


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    specs: tuple[FeatureSpec, ...]
    classes: tuple[str, ...]
    task: Task


def make_data(
    features: NDArray[Any],
    labels: NDArray[Any],
    *,
    specs: tuple[FeatureSpec, ...],
    classes: tuple[str, ...] = (),
    task: Task = "multiclass",
    event_time_ms: NDArray[np.int64] | None = None,
    original: bool | NDArray[np.bool_] = False,
) -> TrainingData:
    """Build training data without validation rows; without times, rows keep their order.

    Raises:
        DataError: the arrays do not belong together.

    """
    n = len(features)
    times = np.arange(n, dtype=np.int64) if event_time_ms is None else event_time_ms
    return TrainingData(
        features=np.ascontiguousarray(features, dtype=np.float32),
        labels=np.asarray(labels, dtype=np.float64 if task == "regression" else np.int64),
        event_time_ms=np.asarray(times, dtype=np.int64),
        original=np.broadcast_to(np.asarray(original, dtype=np.bool_), (n,)).copy(),
        validation=np.zeros(n, dtype=np.bool_),
        specs=specs,
        classes=classes,
        task=task,
    )


def concatenate(first: TrainingData, second: TrainingData) -> TrainingData:
    """Return the rows of both, first before second.

    Raises:
        DataError: features, classes or tasks differ.

    """
    if (first.specs, first.classes, first.task) != (second.specs, second.classes, second.task):
        raise DataError("two data sets differ in features, classes or task; use one contract")
    return replace(
        first,
        features=np.concatenate([first.features, second.features]),
        labels=np.concatenate([first.labels, second.labels]),
        event_time_ms=np.concatenate([first.event_time_ms, second.event_time_ms]),
        original=np.concatenate([first.original, second.original]),
        validation=np.concatenate([first.validation, second.validation]),
    )


def with_validation(data: TrainingData, fraction: float, embargo_ms: int = 0) -> TrainingData:
    """Mark the newest `fraction` of the new rows for validation.

    Rows less than `embargo_ms` older than the first validation row are left out, because their
    labels or features may overlap with it. Original rows always stay to fit.

    Raises:
        DataError: no row is left to fit or to validate.

    """
    new = np.flatnonzero(~data.original)
    wanted = round(fraction * len(new))
    if not 0 < wanted < len(data):
        raise DataError(
            f"{fraction} of {len(new)} new rows leaves nothing to fit or to validate; "
            "collect more labelled rows"
        )
    by_time = new[np.argsort(data.event_time_ms[new], kind="stable")]
    validation = np.zeros(len(data), dtype=np.bool_)
    validation[by_time[-wanted:]] = True
    start_ms = int(data.event_time_ms[validation].min())
    clear = data.original | validation | (data.event_time_ms <= start_ms - embargo_ms)
    return replace(data, validation=validation).take(clear)


def save_data(data: TrainingData, path: Path) -> DataRef:
    """Write the data atomically and return its reference."""
    meta = msgspec.json.encode(_Meta(data.specs, data.classes, data.task))
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        np.savez(
            file,
            features=data.features,
            labels=data.labels,
            event_time_ms=data.event_time_ms,
            original=data.original,
            validation=data.validation,
            meta=np.frombuffer(meta, dtype=np.uint8),
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return DataRef(path=str(path), sha256=_sha256(path), rows=len(data))


def load_data(ref: DataRef) -> TrainingData:
    """Read a data file after checking its hash.

    Raises:
        DataError: the file is missing, too large, altered, or not of this format.

    """
    path = Path(ref.path)
    try:
        size = path.stat().st_size
        actual = _sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); pin the snapshot anew") from (
            error
        )
    if size > MAX_DATA_BYTES or actual != ref.sha256:
        raise DataError(
            f"{path} ({size} bytes) has SHA-256 {actual}, the record says {ref.sha256}; "
            "pin the snapshot anew"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = msgspec.json.decode(arrays["meta"].tobytes(), type=_Meta)
            return TrainingData(
                features=arrays["features"],
                labels=arrays["labels"],
                event_time_ms=arrays["event_time_ms"],
                original=arrays["original"],
                validation=arrays["validation"],
                specs=meta.specs,
                classes=meta.classes,
                task=meta.task,
            )
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(f"{path} is no training data file ({error}); pin it anew") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
