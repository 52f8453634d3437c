"""What all descriptors share: the error for an input that cannot be described, its checks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.errors import TrimtabError

Floats = npt.NDArray[np.float64]


class DescriptorError(TrimtabError, ValueError):
    """An input cannot be described; the text says what was expected."""


def finite_floats(values: Any, what: str) -> Floats:
    """Return numbers as float64 of the same shape. Raises DescriptorError for others, NaN or infinities."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise DescriptorError(f"{what}: values of type {array.dtype}; give numbers.")
    numbers: Floats = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise DescriptorError(f"{what}: NaN or an infinity among the values; leave it out.")
    return numbers


def named(prefix: str, described: Mapping[str, Any]) -> dict[str, float]:
    """Return plain floats under names that begin with `prefix`."""
    return {f"{prefix}{name}": float(value) for name, value in described.items()}


def as_columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return rows of the same names as columns."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
