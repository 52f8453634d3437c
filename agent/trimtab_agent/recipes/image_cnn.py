"""The recipe `image-cnn`: a small convolutional network for images sent as rows of pixels.

Options (the contract's `[retraining.options]`): `shape = [height, width, channels]`, whose product
is the number of features, and `range = [low, high]` of the pixel values (default 0 to 1 where the
training data lie in it, else 0 to 255). Reshaping and scaling to 0…1 are layers of the model.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.serve.predictor import ScoreFunction, load_keras
from trimtab_agent.recipes.base import Params, RecipeError, Report, Trial
from trimtab_agent.recipes.data import TrainingData
from trimtab_agent.recipes.keras_training import Schedule, prepare, train_and_save

# Noise may push a pixel of a 0…1 image somewhat past 1.
_UNIT_RANGE_LIMIT = 1.5
# Larger maps are halved after every convolution, this size only after the last one.
_SMALL_SIDE = 8


class ImageCnn:
    """Convolutions, one dense layer, softmax."""

    name = "image-cnn"
    framework = "keras"

    def __init__(self, options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - {"shape", "range"})
        if unknown:
            raise RecipeError(
                f"image-cnn has no option {', '.join(unknown)}; it takes shape and range"
            )
        shape = options.get("shape")
        if (
            not isinstance(shape, list | tuple)
            or len(shape) != 3
            or not all(isinstance(side, int) and 0 < side <= 1024 for side in shape)
        ):
            raise RecipeError(
                f"image-cnn needs the option shape = [height, width, channels], not {shape!r}"
            )
        self._shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self._range = _checked_range(options.get("range"))

    def space(self, trial: Trial) -> Params:
        """Return learning rate, batch size, dropout; filters, depth, dense units."""
        return {
            "hyperparameters": {
                "learning_rate": trial.suggest_float("learning_rate", 5e-4, 1e-2, log=True),
                "batch_size": trial.suggest_categorical("batch_size", [32, 64]),
                "dropout": trial.suggest_float("dropout", 0.0, 0.4),
            },
            "architecture": {
                "filters": trial.suggest_categorical("filters", [8, 16]),
                "depth": trial.suggest_int("depth", 1, 2),
                "dense": trial.suggest_categorical("dense", [32, 64, 128]),
            },
        }

    def fit(self, params: Params, data: TrainingData, out_dir: Path, report: Report) -> None:
        """Train at most 12 epochs, stop after 3 without a better accuracy.

        Raises:
            RecipeError: the shape does not fit the features, or the task is a regression.

        """
        pixels = math.prod(self._shape)
        if data.features.shape[1] != pixels:
            raise RecipeError(
                f"shape {list(self._shape)} has {pixels} pixels, the data "
                f"{data.features.shape[1]} features; correct [retraining.options] shape"
            )
        if data.task == "regression":
            raise RecipeError("image-cnn classifies; use the recipe tabular for a regression")
        keras = prepare(params)
        low, high = self._range or _range_of(data)
        model = self._build(keras, params, len(data.classes), low, high)
        train_and_save(model, params, data, out_dir, report, Schedule())

    def load(self, directory: Path, features: int) -> ScoreFunction:
        """Load `model.keras` in safe mode."""
        return load_keras(directory, features)

    def _build(self, keras: Any, params: Params, classes: int, low: float, high: float) -> Any:
        layers, chosen = keras.layers, params["architecture"]
        scale = 1.0 / (high - low)
        stack = [
            keras.Input((math.prod(self._shape),), dtype="float32"),
            layers.Rescaling(scale, offset=-low * scale),
            layers.Reshape(self._shape),
        ]
        side = min(self._shape[:2])
        for level in range(chosen["depth"]):
            stack.append(
                layers.Conv2D(chosen["filters"] * 2**level, 3, padding="same", activation="relu")
            )
            last = level == chosen["depth"] - 1
            if side >= 2 and (last or side > _SMALL_SIDE):
                stack.append(layers.MaxPooling2D(2))
                side //= 2
        stack += [
            layers.Flatten(),
            layers.Dense(chosen["dense"], activation="relu"),
            layers.Dropout(params["hyperparameters"]["dropout"]),
            layers.Dense(classes, activation="softmax"),
        ]
        return keras.Sequential(stack)


def _checked_range(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in value)
        or value[0] >= value[1]
    ):
        raise RecipeError(f"image-cnn's option range is [low, high] with low < high, not {value!r}")
    return float(value[0]), float(value[1])


def _range_of(data: TrainingData) -> tuple[float, float]:
    return (0.0, 1.0) if np.nanmax(data.features) <= _UNIT_RANGE_LIMIT else (0.0, 255.0)
