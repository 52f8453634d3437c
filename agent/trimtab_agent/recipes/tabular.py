"""The recipe `tabular`: a dense network for numbers and categories, classifier or regression.

Everything that prepares a row is part of the Keras model, as plain Keras operations, so that the
artifact loads in safe mode and serving needs no code of this module. Per row of float32 (d,):

- a number is standardised with the mean and deviation of the rows it was fitted on, missing ones
  become the mean, the result is cut at ±8, and each number that may be missing gets an indicator;
- a category's code becomes one of c indicators; an unseen code (−1) becomes none of them.

A regression's output is scaled back to the labels' units by the model's last layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.artifacts import FeatureSpec
from trimtab.serve.predictor import ScoreFunction, load_keras
from trimtab_agent.recipes.base import Params, RecipeError, Report, Trial
from trimtab_agent.recipes.data import TrainingData
from trimtab_agent.recipes.keras_training import Schedule, prepare, train_and_save

# Standard deviations from the mean past which a number carries no more information.
_CUT = 8.0


class Tabular:
    """Standardised numbers, one-hot categories, dense layers."""

    name = "tabular"
    framework = "keras"

    def __init__(self, options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - {"max_epochs"})
        if unknown:
            raise RecipeError(f"tabular has no option {', '.join(unknown)}; it takes max_epochs")
        epochs = options.get("max_epochs", 20)
        if not isinstance(epochs, int) or not 0 < epochs <= 1000:
            raise RecipeError(f"tabular's max_epochs is 1 to 1000, not {epochs!r}")
        self._schedule = Schedule(max_epochs=epochs)

    def space(self, trial: Trial) -> Params:
        """Return learning rate, batch size, dropout; layers and units."""
        return {
            "hyperparameters": {
                "learning_rate": trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
                "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
                "dropout": trial.suggest_float("dropout", 0.0, 0.3),
            },
            "architecture": {
                "layers": trial.suggest_int("layers", 1, 3),
                "units": trial.suggest_categorical("units", [32, 64, 128]),
            },
        }

    def fit(self, params: Params, data: TrainingData, out_dir: Path, report: Report) -> None:
        """Train with early stopping after 3 epochs without a better value.

        Raises:
            RecipeError: there are no rows to fit.

        """
        keras = prepare(params)
        model = self._build(keras, params, data)
        train_and_save(model, params, data, out_dir, report, self._schedule)

    def load(self, directory: Path, features: int) -> ScoreFunction:
        """Load `model.keras` in safe mode."""
        return load_keras(directory, features)

    def _build(self, keras: Any, params: Params, data: TrainingData) -> Any:
        rows = data.to_fit
        if not len(rows):
            raise RecipeError("there are no rows to fit; widen the training window")
        inputs = keras.Input((len(data.specs),), dtype="float32")
        hidden = _prepared(keras, inputs, data.specs, rows.features)
        chosen = params["architecture"]
        for _ in range(chosen["layers"]):
            hidden = keras.layers.Dense(chosen["units"], activation="relu")(hidden)
            hidden = keras.layers.Dropout(params["hyperparameters"]["dropout"])(hidden)
        if data.task == "regression":
            scale = float(np.std(rows.labels)) or 1.0
            value = keras.layers.Dense(1)(hidden)
            outputs = keras.layers.Rescaling(scale, offset=float(np.mean(rows.labels)))(value)
        else:
            outputs = keras.layers.Dense(len(data.classes), activation="softmax")(hidden)
        return keras.Model(inputs, outputs)


def _prepared(
    keras: Any, inputs: Any, specs: tuple[FeatureSpec, ...], features: NDArray[np.float32]
) -> Any:
    """Return the symbolic (n, p) tensor of prepared columns."""
    ops = keras.ops
    numbers = [index for index, spec in enumerate(specs) if spec.kind == "number"]
    parts = []
    if numbers:
        mean, variance = _moments(features[:, numbers])
        raw = ops.take(inputs, numbers, axis=1)
        missing = ops.isnan(raw)
        scaled = keras.layers.Normalization(mean=mean, variance=variance)(raw)
        filled = ops.where(missing, ops.zeros_like(raw), scaled)
        parts += [ops.clip(filled, -_CUT, _CUT), ops.cast(missing, "float32")]
    for index, spec in enumerate(specs):
        if spec.kind == "category" and spec.values:
            code = ops.cast(ops.take(inputs, [index], axis=1), "int32")
            parts.append(ops.reshape(ops.one_hot(code, len(spec.values)), (-1, len(spec.values))))
    if not parts:
        raise RecipeError("no feature is a number or a category with values; correct [features]")
    return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=1)


def _moments(columns: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Mean and variance (population) per column over what is present; 0 and 1 where nothing is.

    A column that is (nearly) constant gets variance 1, so that rounding is not blown up.
    """
    values = np.where(np.isfinite(columns), columns, np.nan).astype(np.float64)
    present = np.maximum(np.sum(~np.isnan(values), axis=0), 1)
    mean = np.nansum(values, axis=0) / present
    variance = np.nansum((values - mean) ** 2, axis=0) / present
    flat = np.sqrt(variance) <= 1e-6 * np.maximum(1.0, np.abs(mean))
    return mean.tolist(), np.where(flat, 1.0, variance).tolist()
