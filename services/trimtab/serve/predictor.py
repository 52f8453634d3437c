"""Load an artifact and predict with it: what `trimtab serve` and the agent's workers share.

Preprocessing lies inside the artifact, so nothing here knows the recipe. The checksum is verified
before a byte of the model is parsed, and Keras loads in safe mode (no code from the file runs).
TensorFlow is imported inside the functions only.

Shapes: `n` rows, `d` features in the signature's order, `k` scores per row. A category travels as
its code, the position in its feature's `values`; −1 is an unseen value, NaN a missing number.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import (
    ArtifactError,
    FeatureSpec,
    Manifest,
    Signature,
    verify_artifact,
)
from trimtab.errors import TrimtabError
from trimtab.stats.cuts import category_key

KERAS_FILE = "model.keras"
UNSEEN = -1.0
MAX_BATCH_ROWS = 4096

Rows = NDArray[np.float32]
Row = Mapping[str, Any] | Sequence[Any]


class InputError(TrimtabError):
    """Rows do not fit the model's signature; the text names the row and the feature."""


@dataclass(frozen=True)
class Prediction:
    """The answer to a batch.

    Attributes:
        labels: n class names, or n floats for a regression.
        scores: float32 (n, k); class probabilities, or the value itself (k = 1).

    """

    labels: list[str] | list[float]
    scores: Rows


class ScoreFunction(Protocol):
    """A loaded model: float32 (n, d) in, float32 (n, k) out."""

    def __call__(self, batch: Rows, /) -> Rows:
        """Score a batch."""
        ...


class Predictor:
    """A verified, loaded artifact; safe to call from several threads."""

    def __init__(self, manifest: Manifest, sha256: str, score: ScoreFunction) -> None:
        self.manifest = manifest
        self.sha256 = sha256
        self._score = score

    @property
    def signature(self) -> Signature:
        """What goes in and what comes out."""
        return self.manifest.signature

    def predict(self, rows: Rows | Sequence[Row]) -> Prediction:
        """Predict a batch.

        Args:
            rows: float32 (n, d), categories as codes, taken as it is; or n rows as mappings by
                feature name or sequences in the signature's order, categories as strings.

        Raises:
            InputError: the rows do not fit the signature.

        """
        batch = (
            _checked(rows, self.signature)
            if isinstance(rows, np.ndarray)
            else encode_rows(self.signature, rows)
        )
        parts = [
            self._score(batch[start : start + MAX_BATCH_ROWS])
            for start in range(0, len(batch), MAX_BATCH_ROWS)
        ]
        width = self.signature.outputs[0].shape[-1]
        scores = np.concatenate(parts) if parts else np.empty((0, width), dtype=np.float32)
        return Prediction(labels=_labels(self.signature, scores), scores=scores)

    def warm_up(self) -> None:
        """Trace the one-row and the batch path, so that the first request is as fast as any."""
        for n in (1, 2):
            self._score(np.zeros((n, len(self.signature.features)), dtype=np.float32))


def load_predictor(artifact_dir: Path, sha256: str) -> Predictor:
    """Verify the artifact against its digest and load it.

    Raises:
        ArtifactError: the verification failed, or the framework is not one trimtab can load.

    """
    manifest = verify_artifact(artifact_dir, sha256)
    if manifest.framework != "keras":
        raise ArtifactError(
            f"the artifact in {artifact_dir} is a {manifest.framework!r} model; "
            "trimtab serves 'keras' artifacts: export the model to Keras"
        )
    score = load_keras(artifact_dir, len(manifest.signature.features))
    return Predictor(manifest, sha256, score)


def load_keras(artifact_dir: Path, features: int) -> ScoreFunction:
    """Load `model.keras` in safe mode behind two traced functions: one row, and any batch.

    `model.predict` takes 73 ms for one row, a traced function with a fixed signature 0.7 ms.

    Raises:
        ArtifactError: the file cannot be loaded, or takes another number of features.

    """
    limit_threads()
    import keras
    import tensorflow as tf

    try:
        model = keras.models.load_model(artifact_dir / KERAS_FILE, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ArtifactError(
            f"{artifact_dir / KERAS_FILE} cannot be loaded by Keras {keras.__version__} in safe "
            f"mode ({error}); save it with this version and without Lambda layers"
        ) from error
    if tuple(model.input_shape) != (None, features):
        raise ArtifactError(
            f"the model in {artifact_dir} takes {model.input_shape}, its signature (None, "
            f"{features}); the first layer must take the features in the contract's order"
        )

    def traced(rows: int | None) -> Any:
        spec = [tf.TensorSpec([rows, features], tf.float32)]
        return tf.function(lambda batch: model(batch, training=False), input_signature=spec)

    one, many = traced(1), traced(None)

    def score(batch: Rows, /) -> Rows:
        function = one if len(batch) == 1 else many
        result: Rows = function(tf.constant(batch, dtype=tf.float32)).numpy()
        return result.reshape(len(batch), -1)

    return score


def limit_threads(threads: int = 1) -> None:
    """Give TensorFlow and BLAS this many threads, if TensorFlow has not been imported yet.

    One row costs less than waking a second thread, and several servers or workers share a machine.
    A value already in the environment stands.
    """
    for name in (
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    ):
        os.environ.setdefault(name, str(threads))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def encode_rows(signature: Signature, rows: Sequence[Row]) -> Rows:
    """Encode rows of values to float32 (n, d), columns in the signature's order.

    A missing or null number is NaN; a missing, null or unseen category is −1.

    Raises:
        InputError: a row has another number of values, or a number is not one.

    """
    features = signature.features
    columns = []
    for index, feature in enumerate(features):
        try:
            values = [
                row.get(feature.name) if isinstance(row, Mapping) else row[index] for row in rows
            ]
        except IndexError as error:
            raise InputError(
                f"a row has no value at position {index} ({feature.name}); "
                f"send {len(features)} values per row in the signature's order"
            ) from error
        columns.append(encode_column(feature, values))
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) and len(row) != len(features):
            raise InputError(
                f"row {number} has {len(row)} values, the model takes {len(features)}; "
                "send them in the signature's order"
            )
    return np.stack(columns, axis=1) if rows else np.empty((0, len(features)), dtype=np.float32)


def encode_column(feature: FeatureSpec, values: Sequence[Any]) -> Rows:
    """Encode one column to float32 (n,); see `encode_rows`.

    Raises:
        InputError: a number is not one.

    """
    if feature.kind == "category":
        codes: dict[object, float] = {
            value: float(code) for code, value in enumerate(feature.values)
        }
        keys = (category_key(value) for value in values)
        return np.array([codes.get(key, UNSEEN) for key in keys], dtype=np.float32)
    encoded = np.empty(len(values), dtype=np.float32)
    for number, value in enumerate(values):
        try:
            encoded[number] = np.nan if value is None else value
        except (TypeError, ValueError) as error:
            raise InputError(
                f"row {number}: {feature.name} is {value!r}, not a number; "
                "send a number, or null where it is missing"
            ) from error
    return encoded


def _checked(batch: NDArray[Any], signature: Signature) -> Rows:
    if batch.ndim != 2 or batch.shape[1] != len(signature.features):
        raise InputError(
            f"the batch has shape {batch.shape}, the model takes (n, {len(signature.features)}); "
            "send the features in the signature's order"
        )
    return np.ascontiguousarray(batch, dtype=np.float32)


def _labels(signature: Signature, scores: Rows) -> list[str] | list[float]:
    if signature.task == "regression":
        return [float(value) for value in scores[:, 0]]
    return [signature.classes[index] for index in scores.argmax(axis=1)]
