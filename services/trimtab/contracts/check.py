"""What a contract's types allow but its meaning does not: (path, message) for each mistake."""

import itertools
import math
from collections.abc import Iterator
from zoneinfo import ZoneInfo

from msgspec import Struct

from trimtab.contracts.combinations import (
    COMBINATIONS_MAX,
    combination_problem,
    parse_combination,
)
from trimtab.contracts.lines import Path
from trimtab.contracts.model import ATTRIBUTION, Contract, duration_ms
from trimtab.contracts.rules import FIGURES, PREDICTION, Rule, did_you_mean, parse_rule
from trimtab.errors import ContractError

FEATURES_MAX = 2_000
SEGMENTS_MAX = 50
LEAST_SHIFT = 0.005
"""Of `alarms.smallest_shift`: less is what any two weeks differ by."""
RULES_MAX = 200
CATEGORIES_MAX = 10_000
CLASSES_MAX = 10_000
NAME_LENGTH_MAX = 200
PANES_PER_WINDOW_MAX = 10_000
FORMATS_READ = ("trimtab",)
"""A contract that names another format would watch nothing, so it is refused."""


class Known(Struct, frozen=True):
    """Which parts were read well enough to judge others by them."""

    task: bool = True
    features: bool = True


def check(contract: Contract, known: Known = Known()) -> Iterator[tuple[Path, str]]:  # noqa: B008 - frozen
    """Yield what is wrong with a contract that its types allow: (path, message)."""
    yield from _check_names(contract)
    yield from _check_durations(contract)
    yield from _check_features(contract)
    if known.task:
        yield from _check_prediction(contract)
    yield from _check_windows(contract)
    if known.features:
        yield from _check_impossible(contract)
    yield from _check_rules(contract, judge=known.task and known.features)
    yield from _check_agent(contract)


def _check_names(contract: Contract) -> Iterator[tuple[Path, str]]:
    for key in ("name", "team"):
        value = getattr(contract, key)
        allowed = value.replace("-", "").replace("_", "").replace(".", "")
        if not (allowed.isalnum() and allowed.isascii() and len(value) <= NAME_LENGTH_MAX):
            yield (
                (key,),
                f"expected 1 to {NAME_LENGTH_MAX} letters, digits, '-', '_' or '.', got {value!r}.",
            )
    if contract.source.format not in FORMATS_READ:
        yield (
            ("source", "format"),
            f'"{contract.source.format}" events cannot be read yet. Send them as "trimtab".',
        )
    for index, topic in enumerate(contract.source.topics):
        allowed = topic.replace("-", "").replace("_", "").replace(".", "")
        if not (allowed.isalnum() and allowed.isascii() and len(topic) <= 249):
            yield (("source", "topics", index), f"{topic!r} is no Kafka topic name.")


_DURATIONS: dict[str, tuple[str, ...]] = {
    "labels": ("judge_after",),
    "windows": ("length", "pane", "lateness", "out_of_order", "future", "idle"),
    "canary": ("step", "longest", "watch", "maturity", "valid"),
    "retraining": ("search_limit", "label_wait", "cooldown"),
}
_MAY_BE_ZERO = {
    "lateness",
    "out_of_order",
    "future",
    "maturity",
    "cooldown",
    "watch",
    "label_wait",
    "judge_after",
}


def _duration(text: str | None) -> int | None:
    try:
        return duration_ms(text) if text is not None else None
    except ContractError:
        return None


def _check_durations(contract: Contract) -> Iterator[tuple[Path, str]]:
    for table, keys in _DURATIONS.items():
        for key in keys:
            text = getattr(getattr(contract, table), key)
            if text is None:
                continue
            try:
                length_ms = duration_ms(text)
            except ContractError as error:
                yield (table, key), str(error)
                continue
            if length_ms == 0 and key not in _MAY_BE_ZERO:
                yield (table, key), f"expected more than nothing, got {text!r}."
            if length_ms > duration_ms("3650 days"):
                yield (table, key), f"expected at most 3650 days, got {text!r}."
    arrive = contract.labels.arrive.strip()
    horizon = _duration(arrive.removeprefix("within "))
    if arrive != "never" and not (arrive.startswith("within ") and horizon):
        yield (
            ("labels", "arrive"),
            f'expected "never" or "within" and a duration such as "within 21 days", got {arrive!r}.',
        )
    after = _duration(contract.labels.judge_after)
    if after is not None and horizon is not None and after > horizon:
        yield (
            ("labels", "judge_after"),
            f"expected no more than labels.arrive, {arrive!r}: later nothing is waited for.",
        )
    for key, least in (("judge_share", 0.0), ("sample_share", 0.0001)):
        share = getattr(contract.labels, key)
        if not least <= share <= 1:
            yield ("labels", key), f"expected {least:g} to 1, got {share:g}."


def _check_features(contract: Contract) -> Iterator[tuple[Path, str]]:
    if len(contract.features) > FEATURES_MAX:
        yield (
            ("features",),
            f"expected at most {FEATURES_MAX} features, got {len(contract.features)}.",
        )
    elif len(contract.features) + len(contract.attributed) > FEATURES_MAX:
        columns = len(contract.features) + len(contract.attributed)
        yield (
            ("prediction", "attributions"),
            f"with an attribution each the features are {columns} columns; the limit is {FEATURES_MAX}.",
        )
    for name, feature in contract.features.items():
        path: Path = ("features", name)
        problem = feature_name_problem(name)
        if problem:
            yield path, problem
        if feature.min is not None and feature.max is not None and feature.min > feature.max:
            yield (*path, "min"), f"expected min ≤ max, got {feature.min:g} > {feature.max:g}."
        if feature.kind == "number" and feature.values:
            yield (*path, "values"), 'only a category has values. Remove it, or kind = "category".'
        if feature.kind == "category":
            for key in ("min", "max"):
                if getattr(feature, key) is not None:
                    yield (*path, key), 'only a number has a range. Remove it, or kind = "number".'
            if len(feature.values) > CATEGORIES_MAX:
                yield (*path, "values"), f"expected at most {CATEGORIES_MAX} values."
            yield from _check_unique((*path, "values"), feature.values)


def feature_name_problem(name: str) -> str | None:
    """Return why a contract cannot declare a feature of this name, or None when it can."""
    if name == PREDICTION:
        return "this name stands for the model's answer in rules. Choose another."
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable() or '"' in name:
        return f"expected a printable name of 1 to {NAME_LENGTH_MAX} characters without quotes."
    if name.startswith(ATTRIBUTION):
        return "this is how the attributions of features are named. Set prediction.attributions = true."
    return None


def _check_unique(path: Path, values: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            yield (*path, index), f"{value!r} stands here twice."
        seen.add(value)


def _check_prediction(contract: Contract) -> Iterator[tuple[Path, str]]:
    prediction = contract.prediction
    classes = prediction.classes
    if contract.task == "regression":
        for key in ("score", "positive", "classes"):
            if getattr(prediction, key):
                yield ("prediction", key), "a regression has none. Remove it, or change `task`."
        return
    yield from _check_unique(("prediction", "classes"), classes)
    if classes and not 2 <= len(classes) <= CLASSES_MAX:
        yield (
            ("prediction", "classes"),
            f"expected 2 to {CLASSES_MAX} classes, got {len(classes)}.",
        )
    if contract.task == "binary":
        if len(classes) > 2:
            yield (
                ("prediction", "classes"),
                f'a binary model has 2 classes, got {len(classes)}. Or set task = "multiclass".',
            )
        if prediction.positive is not None and classes and prediction.positive not in classes:
            yield (
                ("prediction", "positive"),
                f"{prediction.positive!r} is none of the classes ({', '.join(classes)}).",
            )
        if prediction.score is not None and prediction.positive is None:
            yield (
                ("prediction", "score"),
                "needs `positive`, the class that this score is for.",
            )
    else:
        for key in ("score", "positive"):
            if getattr(prediction, key) is not None:
                yield (
                    ("prediction", key),
                    'only a binary model has one. Remove it, or task = "binary".',
                )


def _check_windows(contract: Contract) -> Iterator[tuple[Path, str]]:
    windows = contract.windows
    length_ms = _duration(windows.length)
    pane_ms = _duration(windows.pane) if windows.pane is not None else None
    if length_ms and windows.pane is None:
        pane_ms = min(60_000, length_ms)
    if length_ms and pane_ms:
        key = "pane" if windows.pane is not None else "length"
        if length_ms % pane_ms:
            yield (
                ("windows", key),
                f"expected panes of {pane_ms} ms to divide the window of {length_ms} ms evenly.",
            )
        elif length_ms // pane_ms > PANES_PER_WINDOW_MAX:
            yield (
                ("windows", key),
                f"a window has {length_ms // pane_ms} panes; the limit is {PANES_PER_WINDOW_MAX}.",
            )
    try:
        if windows.time_zone != "UTC":  # known even where the system has no time zone files
            ZoneInfo(windows.time_zone)
    except (KeyError, OSError, ValueError):  # what ZoneInfo raises on odd names, by version
        yield (
            ("windows", "time_zone"),
            f"{windows.time_zone!r} is no time zone. Expected one such as Europe/Berlin.",
        )
    if len(windows.segments) > SEGMENTS_MAX:
        yield ("windows", "segments"), f"expected at most {SEGMENTS_MAX} segments."
    yield from _check_unique(("windows", "segments"), windows.segments)
    for index, name in enumerate(windows.segments):
        feature = contract.features.get(name)
        if feature is not None and feature.kind == "number":
            yield (
                ("windows", "segments", index),
                f"{name!r} is a number. Expected a category or an attribute.",
            )
        if "=" in name or len(name) > NAME_LENGTH_MAX:  # a segment is named `column=value`
            yield (
                ("windows", "segments", index),
                f"{name[:60]!r} cannot name segments. Expected at most {NAME_LENGTH_MAX} characters and no `=`.",
            )
    for table, key, least in (
        ("windows", "min_rows", 1),
        ("reference", "rows", 100),
        ("reference", "windows", 2),
        ("retraining", "trials", 1),
        ("retraining", "min_labels", 1),
        ("retraining", "budget_per_month", 0),
    ):
        value = getattr(getattr(contract, table), key)
        if not least <= value <= 10_000_000:
            yield (table, key), f"expected {least} to 10000000, got {value}."


def _check_impossible(contract: Contract) -> Iterator[tuple[Path, str]]:
    texts = contract.source.impossible
    if len(texts) > COMBINATIONS_MAX:
        yield ("source", "impossible"), f"expected at most {COMBINATIONS_MAX}, got {len(texts)}."
    for index, text in enumerate(texts):
        path: Path = ("source", "impossible", index)
        try:
            problem = combination_problem(parse_combination(text), contract.features)
        except ContractError as error:
            problem = str(error)
        if problem is not None:
            yield path, problem


def _check_rules(contract: Contract, *, judge: bool) -> Iterator[tuple[Path, str]]:
    rules = contract.alarms.rules
    if len(rules) > RULES_MAX:
        yield ("alarms", "rules"), f"expected at most {RULES_MAX} rules, got {len(rules)}."
    for index, text in enumerate(rules):
        path: Path = ("alarms", "rules", index)
        try:
            rule = parse_rule(text)
        except ContractError as error:
            yield path, str(error)
            continue
        message = rule_problem(rule, contract)
        if message and judge:
            yield path, message
    shift = contract.alarms.smallest_shift
    if not LEAST_SHIFT <= shift <= 1:
        yield (
            ("alarms", "smallest_shift"),
            f"expected {LEAST_SHIFT} to 1 (standard deviations of a row), got {shift}.",
        )
    budget = contract.alarms.false_alarms
    if budget is not None and false_alarm_rate(budget) is None:
        yield (
            ("alarms", "false_alarms"),
            f'expected a count and a duration such as "1 per 90 days", got {budget!r}.',
        )


def false_alarm_rate(text: str) -> tuple[float, int] | None:
    """Return (count, milliseconds) of "1 per 90 days", or None when the text is no such budget."""
    count_text, per, duration = (part.strip() for part in text.partition(" per "))
    length_ms = _duration(duration)
    try:
        count = float(count_text)
    except ValueError:
        return None
    if not per or not length_ms or not 0 < count < math.inf:
        return None
    return count, length_ms


def rule_problem(rule: Rule, contract: Contract) -> str | None:
    """Return why the rule cannot work under the contract, or None when it can."""
    spec = FIGURES[rule.figure]
    if spec.kind == "performance" and contract.labels.arrive.strip() == "never":
        return (
            f'{rule.figure} needs labels, and `labels.arrive` is "never". '
            'Say when they arrive, such as "within 21 days".'
        )
    if spec.task == "regression" and contract.task != "regression":
        return f"{rule.figure} is for regression; this model is {contract.task}."
    if spec.task == "classification" and contract.task == "regression":
        return f"{rule.figure} is for classification; this model is a regression."
    if spec.task == "binary" and contract.task != "binary":
        return f"{rule.figure} is for binary models; this model is {contract.task}."
    if spec.task == "binary" and contract.prediction.positive is None:
        return (
            f"{rule.figure} needs the class that the score is for. Set `positive` in [prediction]."
        )
    if rule.feature is None:
        return None
    if rule.feature == PREDICTION:
        kind = "number" if contract.task == "regression" else "category"
    elif rule.feature in (watched := contract.watched):
        kind = watched[rule.feature].kind
    elif rule.feature.startswith(ATTRIBUTION) and not contract.prediction.attributions:
        return f"{rule.feature!r} is not watched. Set prediction.attributions = true."
    else:
        hint = did_you_mean(rule.feature, watched)
        return f"{rule.feature!r} is no declared feature.{hint} Declare it in [features]."
    if spec.target not in ("any", kind):
        return f"{rule.figure} is for a {spec.target}; {rule.feature!r} is a {kind}."
    return None


def _check_agent(contract: Contract) -> Iterator[tuple[Path, str]]:
    canary, retraining = contract.canary, contract.retraining
    steps = canary.steps
    if not steps or len(steps) > 20 or any(not 0 < step < 1 for step in steps):
        yield ("canary", "steps"), "expected 1 to 20 shares above 0 and below 1."
    elif any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        yield ("canary", "steps"), f"expected growing shares, got {list(steps)}."
    for key, least, below in (
        ("holdback", 0.0, 1.0),
        ("alpha", 1e-6, 0.5),
        ("margin", 1.0, 100.0),
        ("max_error_rate", 0.0, 1.0),
    ):
        value = getattr(canary, key)
        if not least <= value <= below:
            yield ("canary", key), f"expected {least:g} to {below:g}, got {value:g}."
    for index, share in enumerate(retraining.old_mix):
        if not 0 <= share <= 1:
            yield ("retraining", "old_mix", index), f"expected a share of 0 to 1, got {share:g}."
    if not retraining.old_mix:
        yield ("retraining", "old_mix"), "expected at least one share."
    regression = contract.task == "regression"
    if retraining.metric is not None and (retraining.metric == "mae") != regression:
        expected = '"mae"' if regression else '"accuracy" or "f1"'
        yield ("retraining", "metric"), f"expected {expected} for {contract.task}."
    if (
        retraining.mode != "off"
        and retraining.trainer != "external"
        and (contract.labels.arrive.strip() == "never")
    ):
        yield (
            ("retraining", "mode"),
            'a recipe learns from labels, and `labels.arrive` is "never".',
        )
    if not retraining.trainer:
        yield ("retraining", "trainer"), 'expected "external" or the name of a recipe.'
    for index, text in enumerate(retraining.quiet_hours or ()):
        hour, colon, minute = text.partition(":")
        valid = colon and hour.isdigit() and minute.isdigit() and len(minute) == 2
        if not (valid and int(hour) < 24 and int(minute) < 60):
            yield ("retraining", "quiet_hours", index), f'expected a time "22:00", got {text!r}.'
