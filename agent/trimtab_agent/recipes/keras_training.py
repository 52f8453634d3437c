"""What the Keras recipes share: the training loop, its value, early stopping and saving.

The value is higher-is-better: accuracy for a classifier, 1 − MSE/Var (the coefficient of
determination on the validation rows) for a regression. Keras is imported inside the functions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.serve.predictor import KERAS_FILE, limit_threads
from trimtab_agent.recipes.base import Params, RecipeError, Report
from trimtab_agent.recipes.data import TrainingData

MAX_EPOCHS = 12
PATIENCE_EPOCHS = 3


@dataclass(frozen=True)
class Schedule:
    """How long to train: at most `max_epochs`, until `patience` epochs brought no better value."""

    max_epochs: int = MAX_EPOCHS
    patience: int = PATIENCE_EPOCHS


def prepare(params: Params) -> Any:
    """Import Keras, forget the previous trial's graphs, seed everything; return the module."""
    limit_threads()
    import keras

    keras.backend.clear_session()
    keras.utils.set_random_seed(int(params.get("seed", 0)) % 2**31)
    return keras


def train_and_save(
    model: Any,
    params: Params,
    data: TrainingData,
    out_dir: Path,
    report: Report,
    schedule: Schedule,
) -> None:
    """Train the model and save it as `model.keras`, with the weights of its best step.

    Raises:
        RecipeError: there are no rows to fit.

    """
    import keras

    fit_rows, check_rows = data.to_fit, data.to_validate
    if not len(fit_rows):
        raise RecipeError("there are no rows to fit; widen the training window")
    chosen = params["hyperparameters"]
    regression = data.task == "regression"
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=chosen["learning_rate"]),
        loss="mean_squared_error" if regression else "sparse_categorical_crossentropy",
    )
    x, y = fit_rows.features, fit_rows.labels
    targets = y.astype(np.float32) if regression else y
    best_value, best_weights, best_step = -np.inf, None, 0
    epochs = schedule.max_epochs if len(check_rows) else int(params.get("steps", MAX_EPOCHS))
    for step in range(1, epochs + 1):
        model.fit(x, targets, batch_size=chosen["batch_size"], epochs=1, verbose=0)
        if not len(check_rows):
            continue
        value = value_of(model, check_rows)
        if value > best_value:
            best_value, best_weights, best_step = value, model.get_weights(), step
        if report(step, value):
            return
        if step - best_step >= schedule.patience:
            break
    if best_weights is not None:
        model.set_weights(best_weights)
    model.save(out_dir / KERAS_FILE)


def value_of(model: Any, data: TrainingData) -> float:
    """Return accuracy, or the coefficient of determination, on the rows."""
    scores = _scores(model, data.features)
    if data.task == "regression":
        spread = float(np.var(data.labels))
        error = float(np.mean((scores[:, 0] - data.labels) ** 2))
        return 1.0 - error / spread if spread > 0 else -error
    return float(np.mean(scores.argmax(axis=1) == data.labels))


def _scores(model: Any, features: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = model.predict(features, batch_size=512, verbose=0)
    return scores
