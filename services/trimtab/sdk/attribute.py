"""Attributions of a Keras model's answers: each input's share in one answer, by integrated gradients.

Notation: f the model's output that is explained, x a row of d numbers, x' the baseline (a row that stands for
"nothing known", such as the training means). Input i has (x[i] - x'[i]) times the mean of df/dx[i] along the straight
line from x' to x (Sundararajan, Taly & Yan 2017, eq. 1). The shares add up to f(x) - f(x'), but for what the
line's `steps` points miss (their "completeness"); `Attributor.gap` says how much.

TensorFlow is imported when an Attributor is made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import TrimtabError

FEATURES_MAX = 2_000
STEPS = 32
"""Misses a millionth of the answer's change in a smooth network, 2 % in one with ReLU (measured)."""
STEPS_MAX = 1_024
POINTS_MAX = 65_536
"""Points of all lines that go through the model at a time."""


class Attributor:
    """Explains the answers of one Keras model that takes rows of shape (n, d) of numbers.

    `names` are the features' in the order of the model's columns; `baseline` has shape (d,). `output` is the
    column of the model's answer to explain, such as the positive class's; None where it has one. `steps`:
    points of the line, the nodes of Gauss and Legendre; what they cost is `steps` forward and backward
    passes a row. A column that the model uses as a code (of a category) has no gradient, and none of this
    meaning.

    Raises TrimtabError for an argument that cannot be used, or where TensorFlow is missing.
    """

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        baseline: Any,
        *,
        output: int | None = None,
        steps: int = STEPS,
    ) -> None:
        self.names = tuple(names)
        self.baseline = np.asarray(baseline, dtype=np.float32)
        if not 1 <= len(self.names) <= FEATURES_MAX:
            raise TrimtabError(f"{len(self.names)} names; give 1 to {FEATURES_MAX}.")
        if self.baseline.shape != (len(self.names),) or not np.isfinite(self.baseline).all():
            raise TrimtabError(
                f"The baseline has shape {self.baseline.shape}; give one finite number per name, "
                f"({len(self.names)},)."
            )
        if not 1 <= steps <= STEPS_MAX:
            raise TrimtabError(f"steps {steps}; give 1 to {STEPS_MAX}.")
        try:
            import tensorflow as tf
        except ImportError as error:
            raise TrimtabError(
                "Attributions of Keras models need TensorFlow. Install trimtab[serve]."
            ) from error
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        self._places = ((nodes + 1) / 2).astype(np.float32)
        self._weights = (weights / 2).astype(np.float32)
        self._output = output
        self._model = model
        self._gradients = tf.function(self._gradients_of, reduce_retracing=True)
        self._tf = tf
        shape = tuple(model(self.baseline[None], training=False).shape)
        columns = shape[1] if len(shape) == 2 else 1
        if len(shape) > 2:
            raise TrimtabError(
                f"The model answers with shape {shape}; only (n,) and (n, k) are read."
            )
        if output is None and columns != 1:
            raise TrimtabError(f"The model has {columns} outputs; say which to explain: output=0.")
        if output is not None and not 0 <= output < columns:
            raise TrimtabError(f"output {output}; the model has {columns}, counted from 0.")

    def attribute(self, row: Sequence[float]) -> dict[str, float]:
        """Return the attributions of one row's answer by name, for `log(attributions=...)`."""
        return {name: column[0] for name, column in self.attribute_batch([row]).items()}

    def attribute_batch(self, rows: Any) -> dict[str, list[float]]:
        """Return the attributions of rows, shape (n, d), as columns for `log_batch(attributions=...)`.

        Raises TrimtabError for rows of another shape, NaN, or a model without a gradient.
        """
        shares = self._shares(self._checked(rows))
        return {name: shares[:, place].tolist() for place, name in enumerate(self.names)}

    def gap(self, rows: Any) -> list[float]:
        """Return f(x) - f(x') minus the sum of the attributions, for each row: 0 is exact.

        Raise `steps` where it is large beside f(x) - f(x').
        """
        x = self._checked(rows)
        change = self._answers(x) - self._answers(self.baseline[None])
        gaps: list[float] = (change - self._shares(x).sum(axis=1)).tolist()
        return gaps

    def _checked(self, rows: Any) -> npt.NDArray[np.float32]:
        x = np.asarray(rows, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise TrimtabError(f"The rows have shape {x.shape}; give (n, {len(self.names)}).")
        if not np.isfinite(x).all():
            raise TrimtabError("A row holds NaN or an infinity; fill it in as for the model.")
        return x

    def _shares(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Return the attributions, shape (n, d)."""
        size = max(1, POINTS_MAX // self._places.size)
        parts: list[npt.NDArray[Any]] = [np.zeros((0, len(self.names)))]
        for start in range(0, len(x), size):
            change = x[start : start + size] - self.baseline
            points = self.baseline + self._places[:, None, None] * change
            gradients = self._gradients(self._tf.constant(points.reshape(-1, change.shape[1])))
            slopes = gradients.numpy().astype(np.float64).reshape(points.shape)
            parts.append(change * np.tensordot(self._weights, slopes, axes=1))
        return np.concatenate(parts)

    def _answers(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        answers = self._model(x, training=False).numpy().astype(np.float64)
        chosen: npt.NDArray[np.float64] = answers.reshape(len(x), -1)[:, self._output or 0]
        return chosen

    def _gradients_of(self, points: Any) -> Any:
        with self._tf.GradientTape() as tape:
            tape.watch(points)
            answers = self._model(points, training=False)
            if len(answers.shape) == 2:
                answers = answers[:, self._output or 0]
        gradients = tape.gradient(answers, points)
        if gradients is None:
            raise TrimtabError(
                "The model's answer has no gradient by its input; integrated gradients cannot explain it."
            )
        return gradients
