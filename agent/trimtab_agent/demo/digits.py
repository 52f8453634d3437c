"""The demo's data: scikit-learn's handwritten digits, split by identity.

Three pools of digits never mix, or accuracies would be inflated by 1 to 4 points: the first 700 train
the champion, the next 600 are streamed before the canary, the rest from the canary on.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from trimtab.artifacts import FeatureSpec
from trimtab.sdk.describe.image import GREY, grey_descriptors
from trimtab_agent.demo.camera import Lens, see
from trimtab_agent.recipes.data import TrainingData, make_data

Pool = Literal["train", "early", "late"]

TRAIN_DIGITS = 700
EARLY_DIGITS = 600
PIXELS = tuple(f"p{index:02d}" for index in range(64))
CLASSES = tuple(str(digit) for digit in range(10))
_VALUE_DECIMALS = 4


class Digits:
    """The digits by pool, in an order fixed by `seed`; images are float32 (n, 8, 8) in [0, 1]."""

    def __init__(self, seed: int = 1) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(seed).permutation(len(digits.target))
        self._images = (digits.images / 16.0).astype(np.float32)[order]
        self._labels = digits.target[order].astype(str)
        late = TRAIN_DIGITS + EARLY_DIGITS
        self._bounds: dict[Pool, tuple[int, int]] = {
            "train": (0, TRAIN_DIGITS),
            "early": (TRAIN_DIGITS, late),
            "late": (late, len(order)),
        }

    def pool(self, pool: Pool) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Images and labels of one pool."""
        first, last = self._bounds[pool]
        return self._images[first:last], self._labels[first:last]

    def stream(
        self, pool: Pool, lens: Lens, rng: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.float32], str]]:
        """Images of a pool as the camera sees them, with their labels, in random order, for ever."""
        images, labels = self.pool(pool)
        while True:
            for index in rng.permutation(len(images)):
                yield see(images[index : index + 1], lens, rng)[0], str(labels[index])


def champion_data(digits: Digits, lens: Lens, rng: np.random.Generator) -> TrainingData:
    """The original training set: the first pool, twice, through a clean camera."""
    images, labels = digits.pool("train")
    seen = np.concatenate([see(images, lens, rng) for _ in range(2)])
    return make_data(
        seen.reshape(len(seen), -1),
        np.tile(labels.astype(np.int64), 2),
        specs=tuple(FeatureSpec(name) for name in PIXELS),
        classes=CLASSES,
        original=True,
    )


def write_training_set(data: TrainingData, path: Path) -> None:
    """Write the original training set as the Parquet file that the contract names."""
    columns: dict[str, Any] = {
        name: data.features[:, index].astype(np.float64) for index, name in enumerate(PIXELS)
    }
    columns["label"] = [data.classes[code] for code in data.labels]
    pyarrow.parquet.write_table(pa.table(columns), path)


def write_baseline(
    path: Path,
    images: NDArray[np.float32],
    labels: list[str],
    predictions: list[str],
    times_ms: NDArray[np.int64],
) -> None:
    """Write scored traffic of the past: time, pixels, descriptors, prediction and label by row."""
    flat = images.reshape(len(images), -1).astype(np.float64)
    columns: dict[str, Any] = {"time": pa.array(times_ms, pa.timestamp("ms", tz="UTC"))}
    columns |= {name: flat[:, index] for index, name in enumerate(PIXELS)}
    columns |= grey_descriptors(images)
    columns |= {"prediction": predictions, "label": labels}
    pyarrow.parquet.write_table(pa.table(columns), path)


def pixels(image: NDArray[np.float32]) -> list[float]:
    """One image as the flat list that a request carries."""
    return [round(float(value), _VALUE_DECIMALS) for value in image.ravel()]


CONTRACT = """\
# The contract of the demo's model: 64 pixels and three descriptors that `serve` computes.
name = "digits"
team = "demo"
task = "multiclass"

[features]
{pixels}
{descriptors}

[prediction]
classes = {classes}

[labels]
arrive = "within 5s"
sources = ["outcome"]

[windows]
length = "2s"
pane = "2s"
lateness = "10s"
out_of_order = "500ms"
idle = "2s"
min_rows = 30

[reference]
windows = 168

[alarms]
rules = [
    "accuracy < 0.90 in 3 of 4 min_rows 60",
    "warn psi(contrast) > 0.25 in 3 of 4",
    "error_rate > 0.05 in 3 of 4",
    "p99_latency_ms > 250 in 4 of 4",
]

[retraining]
mode = "auto"
trainer = "image-cnn"
trials = {trials}
search_limit = "70s"
min_labels = 1600
label_wait = "5 min"
cooldown = "2 min"
metric = "accuracy"
floor = 0.75
original = "{original}"
old_mix = {old_mix}

[retraining.options]
shape = [8, 8, 1]
range = [0.0, 1.0]

[canary]
steps = [0.05, 0.25, 0.5]
step = "12s"
longest = "3 min"
watch = "10s"
maturity = "4s"
valid = "30s"
margin = 1.25
max_error_rate = 0.05
"""


def contract_text(original: Path, trials: int, old_mix: tuple[float, ...]) -> str:
    """The demo's contract as TOML."""
    return CONTRACT.format(
        pixels="\n".join(f'{name} = {{ kind = "number", min = 0, max = 1 }}' for name in PIXELS),
        descriptors="\n".join(f'{name} = {{ kind = "number", input = false }}' for name in GREY),
        classes=json.dumps(CLASSES),
        original=original.as_posix(),
        trials=trials,
        old_mix=list(old_mix),
    )
