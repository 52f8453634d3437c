"""What each bin of a feature adds to a row's score: a part of the cuts. `outliers` fits it and scores with it.

Whole numbers, thousandths of a nat: a sum of them is the same on every machine and in any order, so that every
replica finds the same outliers.
"""

from functools import cached_property

import msgspec
import numpy as np
import numpy.typing as npt

UNIT_NATS = 0.001
BEYOND = 2
"""Places after a feature's bins: below and above all that its reference holds."""


class FeatureSurprise(msgspec.Struct, frozen=True, dict=True):
    """What each bin of a feature adds to a row's score."""

    name: str
    surprise: tuple[int, ...]
    """Of each bin, and below and above all of the reference; of length `cuts.size + 2`, in `UNIT_NATS`."""
    minimum: float | None = None
    """Least finite value of the reference; None of a category, and where it holds none."""
    maximum: float | None = None

    @cached_property
    def table(self) -> npt.NDArray[np.int64]:
        """`surprise` as an array, read-only."""
        table = np.array(self.surprise, dtype=np.int64)
        table.flags.writeable = False
        return table


class Outliers(msgspec.Struct, frozen=True):
    """How rows are scored, and above which score a row is an outlier."""

    features: tuple[FeatureSurprise, ...] = ()
    threshold: int | None = None
    """In `UNIT_NATS`. None: no row is an outlier, for the reference has too few rows or features; `features` is empty."""
    held_rows: int = 0
    """Rows of the reference that this comes from."""
