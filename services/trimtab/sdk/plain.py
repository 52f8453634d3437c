"""Values of NumPy and the like as plain ones, without importing NumPy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.events.types import Scalar

_PLAIN = (float, int, bool, str, type(None))
_INT_MAX = 2**63


def scalar(value: Any) -> Scalar:
    """Return a plain scalar: NaN and infinities become None, whole numbers past 64 bits floats.

    Raises TypeError for anything else than one value.
    """
    if type(value) not in _PLAIN:
        item = getattr(value, "item", None)
        if item is not None and getattr(value, "size", 1) == 1:
            value = item()
        if isinstance(value, bytes) or not isinstance(value, _PLAIN):
            raise TypeError(f"{type(value).__name__} is no number, text or truth value")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int) and not -_INT_MAX <= value < _INT_MAX:
        return float(value)
    return value  # type: ignore[no-any-return]


def scalars(values: Any, part: slice) -> list[Scalar]:
    """Return a part of a list or array as plain scalars."""
    chosen = values[part]
    tolist = getattr(chosen, "tolist", None)
    return [scalar(value) for value in (tolist() if tolist is not None else chosen)]


def columns(table: Mapping[str, Sequence[Any]], part: slice) -> dict[str, list[Scalar]]:
    """Return a part of each column as plain scalars."""
    return {name: scalars(values, part) for name, values in table.items()}


def float_columns(table: Mapping[str, Sequence[Any]], part: slice) -> dict[str, list[float | None]]:
    """Return a part of each column as finite floats, None for others."""
    return {
        name: [
            float(value) if value is not None and math.isfinite(value) else None
            for value in values[part]
        ]
        for name, values in table.items()
    }


def floats(values: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Return the mapping's values as finite floats; others are left out."""
    if values is None:
        return None
    plain = {name: float(value) for name, value in values.items()}
    return {name: value for name, value in plain.items() if math.isfinite(value)}
