"""Combinations of values that a contract declares impossible, such as `age < 18 and channel = 'branch'`.

Grammar (spaces are free between words):

    CONDITION [and CONDITION ...]
    CONDITION   FEATURE OP VALUE
    VALUE       NUMBER | 'CATEGORY' | FEATURE

OP is <, <=, >, >=, = or !=; a category knows = and != only. A feature's name that holds spaces, quotes or signs, or
reads as a number or as `and`, needs double quotes; a category is in single quotes, and a single quote in it is
written twice. Two numbers may be compared: `refund > amount`.

A row matches when every condition holds (`stats.combinations`). A value that is missing or of the wrong kind never
holds, not even for !=: what is missing is counted as missing.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from trimtab.contracts.model import Feature
from trimtab.contracts.rules import did_you_mean
from trimtab.errors import ContractError

COMBINATIONS_MAX = 20
CONDITIONS_MAX = 8
TEXT_MAX = 500

Op = Literal["<", "<=", ">", ">=", "=", "!="]


class Named(Struct, frozen=True):
    """Another feature, as what a feature is compared with."""

    feature: str


class Condition(Struct, frozen=True):
    """One comparison of a row's value."""

    feature: str
    op: Op
    value: float | str | Named
    """A number, a category, or another feature."""


class Combination(Struct, frozen=True):
    """Conditions that hold together in no true row."""

    conditions: tuple[Condition, ...]
    text: str
    """As the user wrote it, with single spaces between words."""


_TOKEN = re.compile(
    r"""
    \s*(?:
        (?P<op><=|>=|!=|<|>|=)
      | '(?P<category>(?:[^']|'')*)'
      | "(?P<quoted>[^"]*)"
      | (?P<word>[^\s<>=!'"]+)
    )\s*
    """,
    re.VERBOSE,
)
_FORM = "Write FEATURE OP VALUE [and …], as \"age < 18 and channel = 'branch'\"."
_Token = tuple[str, str]
"""(kind, text): kind is op, category, quoted or word."""


def parse_combination(text: str) -> Combination:
    """Return the combination that `text` says. Raises ContractError with what was expected."""
    if len(text) > TEXT_MAX:
        raise ContractError(
            f"A combination of {len(text)} characters; the limit is {TEXT_MAX}. Write several, or fewer conditions."
        )
    tokens = _tokens(text)
    conditions: list[Condition] = []
    for start in range(0, max(len(tokens), 1), 4):
        part = tokens[start : start + 4]
        if len(part) < 3 or (len(part) == 4 and part[3] != ("word", "and")):
            raise ContractError(f"{text!r} is no combination of conditions. {_FORM}")
        conditions.append(_condition(part[:3], text))
        if len(part) == 4 and start + 4 >= len(tokens):
            raise ContractError(f"{text!r} ends with `and`. {_FORM}")
    if len(conditions) > CONDITIONS_MAX:
        raise ContractError(
            f"{text!r} has {len(conditions)} conditions; the limit is {CONDITIONS_MAX}."
        )
    return Combination(tuple(conditions), _written(tokens))


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            if not text[at:].strip():
                break
            raise ContractError(f"{text!r} cannot be read from {text[at : at + 20]!r} on. {_FORM}")
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind]))
        at = match.end()
    return tokens


def _written(tokens: Sequence[_Token]) -> str:
    marks = {"category": "'", "quoted": '"'}
    return " ".join(f"{marks.get(kind, '')}{text}{marks.get(kind, '')}" for kind, text in tokens)


def _condition(tokens: Sequence[_Token], text: str) -> Condition:
    (left, feature), (middle, op), (right, value) = tokens
    if left not in ("word", "quoted") or middle != "op" or right == "op":
        raise ContractError(f"{text!r} is no combination of conditions. {_FORM}")
    if left == "word" and (feature == "and" or _number(feature) is not None):
        raise ContractError(
            f"{text!r}: {feature!r} stands where a feature's name belongs; put a name like this in double quotes."
        )
    return Condition(feature, op, _value(right, value, text))  # type: ignore[arg-type]  # a token "op" is one


def _value(kind: str, value: str, text: str) -> float | str | Named:
    if kind == "category":
        return value.replace("''", "'")
    if kind == "quoted":
        return Named(value)
    number = _number(value)
    if number is None:
        if value == "and":
            raise ContractError(f"{text!r} is no combination of conditions. {_FORM}")
        return Named(value)
    if not math.isfinite(number):
        raise ContractError(f"{text!r}: {value!r} is not a number to compare with.")
    return number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def combination_problem(combination: Combination, features: Mapping[str, Feature]) -> str | None:
    """Return why the combination cannot work with the declared features, or None when it can."""
    for condition in combination.conditions:
        problem = _condition_problem(condition, features)
        if problem:
            return problem
    return None


def _condition_problem(condition: Condition, features: Mapping[str, Feature]) -> str | None:
    name, op, value = condition.feature, condition.op, condition.value
    feature = features.get(name)
    if feature is None:
        return (
            f"{name!r} is no declared feature.{did_you_mean(name, features)} "
            "Declare it in [features]."
        )
    if isinstance(value, Named):
        other = features.get(value.feature)
        if other is None:
            return (
                f"{value.feature!r} is no number and no declared feature."
                f"{did_you_mean(value.feature, features)} A category stands in single quotes."
            )
        if (feature.kind, other.kind) != ("number", "number"):
            return f"{name!r} and {value.feature!r} are not both numbers; only these compare."
        return None
    if isinstance(value, str):
        if feature.kind == "number":
            return f"{name!r} is a number; {value!r} is text. Compare it with a number."
        if op not in ("=", "!="):
            return f"{name!r} is a category; it knows = and !=, not {op}."
        if feature.values and value not in feature.values:
            hint = did_you_mean(value, feature.values)
            return f"{value!r} is no declared value of {name!r}.{hint}"
        return None
    if feature.kind == "category":
        return f"{name!r} is a category; put its value in single quotes, as {name} = '{value:g}'."
    return None
