"""Descriptors as lines of a contract."""

import math
import re
from collections.abc import Mapping, Sequence

from trimtab.contracts.check import feature_name_problem
from trimtab.sdk.describe.inputs import DescriptorError

CONSTANT_FROM = 20
"""From so many described inputs on, a descriptor with one value is taken for a constant."""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def feature_lines(described: Mapping[str, float] | Sequence[Mapping[str, float]]) -> str:
    r"""Return the lines for a contract's `[features]` that declare descriptors.

    `described` is what a `describe_` function returned for one input, or a list of that for reference inputs.
    They are numbers and no inputs of the model: watched, not trained on. A descriptor that has one value
    in all of at least CONSTANT_FROM reference inputs (such as `width`) gets it as `min` and `max`: another
    value then counts as out of range, which no bin of a constant can tell.

    >>> print(feature_lines({"brightness": 0.4}))
    brightness = { kind = "number", input = false }

    Raises DescriptorError where there is nothing to declare, or a name that no contract can declare.
    """
    rows = [described] if isinstance(described, Mapping) else list(described)
    names = dict.fromkeys(name for row in rows for name in row)
    if not names:
        raise DescriptorError("Nothing is described; give what a describe_ function returned.")
    for name in names:
        if problem := feature_name_problem(name):
            raise DescriptorError(f"{name!r} cannot be declared: {problem}")
    lines = []
    for name in names:
        values = {row.get(name, math.nan) for row in rows}
        bounds = ""
        if len(rows) >= CONSTANT_FROM and len(values) == 1:
            (value,) = values
            if math.isfinite(value):
                bounds = f", min = {float(value)!r}, max = {float(value)!r}"
        lines.append(f'{_key(name)} = {{ kind = "number"{bounds}, input = false }}')
    return "\n".join(lines)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else '"' + name.replace("\\", "\\\\") + '"'
