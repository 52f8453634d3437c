"""Which rows hold a combination of values that the contract declares impossible.

Measured for two conditions, a number and a category: 2 ns per row in batches of 10,000 rows, 9 in batches of 1,000.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.contracts.combinations import Combination, Condition, Named
from trimtab.stats.coded import Coded, Mask

Floats = npt.NDArray[np.float64]

_COMPARE: dict[str, Any] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "=": np.equal,
    "!=": np.not_equal,
}


def matches(
    combination: Combination,
    numbers: Mapping[str, Floats],
    categories: Mapping[str, Coded],
    rows: int,
) -> Mask:
    """Return which rows match all conditions, shape (rows,).

    `numbers` are columns with NaN where there is no number. A feature without a column is missing in every row.
    """
    found = np.ones(rows, np.bool_)
    for condition in combination.conditions:
        found &= _holds(condition, numbers, categories, rows)
        if not found.any():  # the common case: impossible rows are rare
            break
    return found


def _holds(
    condition: Condition,
    numbers: Mapping[str, Floats],
    categories: Mapping[str, Coded],
    rows: int,
) -> Mask:
    if isinstance(condition.value, str):
        column = categories.get(condition.feature)
        if column is None:
            return np.zeros(rows, np.bool_)
        if condition.op == "=":
            return column.mask(frozenset({condition.value}))
        others = (key for key in column.keys if isinstance(key, str) and key != condition.value)
        return column.mask(frozenset(others))
    left = numbers.get(condition.feature)
    right: Floats | float | None
    if isinstance(condition.value, Named):
        right = numbers.get(condition.value.feature)
    else:
        right = condition.value
    if left is None or right is None:
        return np.zeros(rows, np.bool_)
    held: Mask = _COMPARE[condition.op](left, right)
    if condition.op == "!=":  # the one comparison that NaN passes
        held = held & ~np.isnan(left) & ~np.isnan(right)
    return held
