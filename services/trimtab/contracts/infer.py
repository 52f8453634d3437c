"""A first contract from observed events: for `trimtab model init --from-topic`.

It is a draft for a person to read: what it guesses stands in comments beside it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from trimtab.contracts.check import CATEGORIES_MAX, FEATURES_MAX, feature_name_problem
from trimtab.errors import ContractError
from trimtab.events.types import Inference, Scalar

CLASSES_GUESS_MAX = 50
"""Whole-number predictions with more distinct values than this are taken for a regression."""
CATEGORIES_LISTED_MAX = 50
"""A category with more distinct values is declared without them."""
CATEGORY_SHARE_MAX = 0.5
"""A text column whose distinct values exceed this share of its rows looks like an id."""
_LATENCY_HEADROOM = 1.5
"""The latency rule's threshold above the observed 99th percentile (chosen; edit it)."""


def infer_contract(samples: Sequence[Inference], name: str) -> str:
    """Return TOML text of a contract that fits the samples of model `name`.

    Samples of other models are left out. The text parses with `parse_contract` if the
    model's name is one that a contract may have.
    Raises ContractError when no sample is of this model.
    """
    rows = [row for row in samples if row.model == name]
    if not rows:
        seen = ", ".join(sorted({row.model for row in samples})[:10]) or "none"
        raise ContractError(f"No event of model {name!r} was seen. Models seen: {seen}.")
    task, classes, task_note = _task(rows)
    lines = [
        f"# A draft from {len(rows)} events of {name}. Read it, correct it, then:",
        "#   trimtab model apply FILE",
        f"name = {_quoted(name)}",
        f'task = "{task}"  # {task_note}',
        "",
        "[features]",
        *_feature_lines(rows),
        "",
        *_prediction_lines(rows, task, classes),
        "[labels]",
        'arrive = "never"  # or "within 21 days": then performance rules are possible',
        "",
        "[windows]",
        'length = "1h"',
        "",
        "[reference]",
        'from = "traffic"  # or a Parquet or CSV file',
        "",
        "[alarms]",
        f"rules = [{', '.join(_quoted(rule) for rule in _rules(rows))}]",
        f"# With labels, add {_quoted(_performance_rule(task))}: against what the baseline reached.",
        "",
    ]
    return "\n".join(lines)


def _feature_lines(rows: Sequence[Inference]) -> list[str]:
    names = dict.fromkeys(feature for row in rows for feature in row.features)
    lines = []
    for name in list(names)[:FEATURES_MAX]:
        values = [row.features.get(name) for row in rows]
        present = [value for value in values if value is not None]
        required = len(present) == len(rows)
        lines.append(_feature_line(name, present, required=required))
    if len(names) > FEATURES_MAX:
        lines.append(f"# {len(names) - FEATURES_MAX} more features were left out.")
    return lines or ["# no features were seen"]


def _feature_line(name: str, present: Sequence[Scalar], *, required: bool) -> str:
    key = _key(name)
    extra = ", required = true" if required else ""
    problem = feature_name_problem(name)
    if problem:
        return f"# {_quoted(name)}: left out: {problem}"
    if not present:
        return f'# {key} = {{ kind = "number" }}  # always missing'
    numbers = [float(value) for value in present if _is_number(value)]
    if len(numbers) == len(present):
        low, high = min(numbers), max(numbers)
        bound = ", min = 0" if low >= 0 else ""
        note = f"seen {low:g} to {high:g}"
        if _looks_categorical(numbers):
            note += f", {len(set(numbers))} whole values: a category?"
        return f'{key} = {{ kind = "number"{bound}{extra} }}  # {note}'
    if numbers:
        return f'{key} = {{ kind = "category"{extra} }}  # mixed numbers and texts: check it'
    counts = Counter(str(value).lower() if isinstance(value, bool) else value for value in present)
    if len(counts) > max(CATEGORY_SHARE_MAX * len(present), 2) or len(counts) > CATEGORIES_MAX:
        return (
            f'{key} = {{ kind = "category"{extra} }}  '
            f"# {len(counts)} values in {len(present)} rows: an id? Then remove it"
        )
    if len(counts) > CATEGORIES_LISTED_MAX:
        return f'{key} = {{ kind = "category"{extra} }}  # {len(counts)} values'
    listed = ", ".join(_quoted(str(value)) for value in sorted(map(str, counts)))
    return f'{key} = {{ kind = "category", values = [{listed}]{extra} }}'


def _is_number(value: Scalar) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _looks_categorical(numbers: Iterable[float]) -> bool:
    distinct = set(numbers)
    return 1 < len(distinct) <= 12 and all(value.is_integer() for value in distinct)


def _task(rows: Sequence[Inference]) -> tuple[str, list[str], str]:
    """Return (task, classes, why)."""
    predictions = [row.prediction for row in rows if row.prediction is not None]
    scored = dict.fromkeys(name for row in rows for name in row.scores or {})
    if not predictions and not scored:
        return "regression", [], "a guess: no prediction was seen"
    numbers = [value for value in predictions if isinstance(value, float)]
    if any(value != int(value) for value in numbers if math.isfinite(value)):
        return "regression", [], "predictions are fractions"
    labels = {_label(value) for value in predictions}
    if len(labels) > CLASSES_GUESS_MAX and not scored:
        return "regression", [], f"a guess: {len(labels)} distinct predictions"
    classes = sorted(labels | (set(scored) if len(scored) > 1 else set()))
    if len(classes) <= 2:
        return "binary", classes, f"a guess: {len(classes)} distinct predictions"
    return "multiclass", classes, f"a guess: {len(classes)} classes seen"


def _label(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def _prediction_lines(rows: Sequence[Inference], task: str, classes: list[str]) -> list[str]:
    features = {name for row in rows for name in row.features}
    attributed = any(row.attributions for row in rows) and 2 * len(features) <= FEATURES_MAX
    known = bool(classes) and task != "regression"
    if not known and not attributed:
        return []
    lines = ["[prediction]"]
    if attributed:
        lines.append("attributions = true  # events carry them: they are watched beside the inputs")
    if not known:
        return [*lines, ""]
    if len(classes) >= 2:
        lines.append(f"classes = [{', '.join(map(_quoted, classes))}]")
    if task == "binary" and len(classes) == 2:
        scored = {name for row in rows for name in row.scores or {}}
        # A lone score that bears the name of a class is the positive class's.
        score = scored.pop() if len(scored) == 1 else None
        positive = score if score in classes else classes[1]
        lines.append(f"positive = {_quoted(positive)}  # a guess: precision and recall are of it")
        if score is not None:
            lines.append(f"score = {_quoted(score)}")
    return [*lines, ""]


def _rules(rows: Sequence[Inference]) -> list[str]:
    rules = ["error_rate > 0.05 in 3 of 4"]
    latencies = sorted(row.latency_ms for row in rows if row.latency_ms is not None)
    if latencies:
        p99 = latencies[math.ceil(0.99 * len(latencies)) - 1]
        limit = _round_up(p99 * _LATENCY_HEADROOM)
        rules.append(f"p99_latency_ms > {limit:g} in 3 of 4")
    return rules


def _performance_rule(task: str) -> str:
    if task == "regression":
        return "mae > 1.2 * reference in 3 of 4"
    return "accuracy < reference - 0.05 in 3 of 4"


def _round_up(value: float) -> float:
    """Round up to two significant digits."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else _quoted(name)


def _quoted(text: str) -> str:
    """Return the text as a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    plain = "".join(
        character
        if character.isprintable() or character == " "
        else f"\\u{ord(character):04x}"
        if ord(character) < 0x10000
        else f"\\U{ord(character):08x}"
        for character in escaped
    )
    return f'"{plain}"'
