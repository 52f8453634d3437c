"""The search space in three named parts: hyperparameters, architecture, data.

A recipe gives the first two (and may add to the third); the `data` part here is trimtab's own, so
every recipe gets it. Parameters are JSON: {"hyperparameters": {…}, "architecture": {…}, "data":
{"window": f, "old_mix": m, "class_balance": b}, "seed": s}. Flat parameters are what Optuna
stores: leaf names, each occurring once.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab.errors import TrimtabError
from trimtab_agent.recipes.base import Params, Trial
from trimtab_agent.recipes.data import TrainingData

PARTS = ("hyperparameters", "architecture", "data")
Balance = Literal["none", "balanced"]
Flat = dict[str, Any]
Space = Callable[[Trial], Params]

# A class is drawn at most this many times as often as it occurs when classes are balanced.
_MAX_OVERSAMPLING = 4
# Below this ratio of the most to the least frequent class, balancing is not worth a dimension.
_BALANCED_RATIO = 1.5
_MAX_GRID_POINTS = 4096


class SpaceError(TrimtabError):
    """The space or its options cannot be used."""


class DataSpace(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The choices of the `data` part; one choice fixes the parameter.

    Attributes:
        window: fractions of the rows since the onset, newest first.
        old_mix: fractions of the original training set to mix in.
        class_balance: whether rare classes are drawn more often.

    """

    window: tuple[float, ...] = (0.5, 1.0)
    old_mix: tuple[float, ...] = (0.0, 0.5, 1.0)
    class_balance: tuple[Balance, ...] = ("none", "balanced")

    def __post_init__(self) -> None:
        if not self.window or not all(0 < value <= 1 for value in self.window):
            raise ValueError("window holds fractions above 0 and up to 1, such as [0.5, 1.0]")
        if not self.old_mix or not all(0 <= value <= 1 for value in self.old_mix):
            raise ValueError("old_mix holds fractions from 0 to 1, such as [0.0, 0.5, 1.0]")
        if not self.class_balance:
            raise ValueError('class_balance holds "none", "balanced" or both')


def data_space_for(data: TrainingData, space: DataSpace) -> DataSpace:
    """Leave out the choices that cannot matter for this data.

    Without original rows there is nothing to mix; a regression or balanced classes need no balance.
    """
    chosen = space
    if not data.original.any():
        chosen = msgspec.structs.replace(chosen, old_mix=(0.0,))
    if data.task == "regression" or not _imbalanced(data):
        chosen = msgspec.structs.replace(chosen, class_balance=("none",))
    return chosen


def with_data_part(recipe_space: Space, data: DataSpace) -> Space:
    """Return the recipe's space with trimtab's data part added."""

    def space(trial: Trial) -> Params:
        params = recipe_space(trial)
        unknown = sorted(params.keys() - set(PARTS))
        if unknown:
            raise SpaceError(
                f"the recipe's space has the parts {', '.join(unknown)}; "
                f"it may return {', '.join(PARTS)}"
            )
        chosen: dict[str, Any] = {}
        for name in ("window", "old_mix", "class_balance"):
            choices: tuple[Any, ...] = getattr(data, name)
            chosen[name] = (
                choices[0] if len(choices) == 1 else trial.suggest_categorical(name, list(choices))
            )
        return {
            "hyperparameters": dict(params.get("hyperparameters", {})),
            "architecture": dict(params.get("architecture", {})),
            "data": {**params.get("data", {}), **chosen},
        }

    return space


def apply_data_part(params: Params, data: TrainingData) -> TrainingData:
    """Return the rows a trial with these parameters learns from and is validated on.

    Validation rows are all kept, so that trials are compared on the same rows. The draw is seeded
    by `params["seed"]`; the argument is not changed.
    """
    part = params.get("data", {})
    rng = np.random.default_rng(int(params.get("seed", 0)))
    fit = ~data.validation
    new = np.flatnonzero(fit & ~data.original)
    newest = new[np.argsort(data.event_time_ms[new], kind="stable")]
    kept_new = newest[len(newest) - math.ceil(part.get("window", 1.0) * len(newest)) :]
    old = np.flatnonzero(fit & data.original)
    kept_old = np.sort(
        rng.choice(old, size=round(part.get("old_mix", 1.0) * len(old)), replace=False)
    )
    rows = np.concatenate([kept_old, kept_new])
    if part.get("class_balance", "none") == "balanced" and data.task != "regression":
        rows = _balanced(rows, data.labels, rng)
    return data.take(np.concatenate([rows, np.flatnonzero(data.validation)]))


def flatten(params: Mapping[str, Any]) -> Flat:
    """Return the leaves of the three parts by name."""
    return {name: value for part in PARTS for name, value in params.get(part, {}).items()}


@dataclass(frozen=True)
class _Dimension:
    levels: tuple[Any, ...]
    contains: Callable[[Any], bool]


class _Probe:
    """A trial that answers with wanted values where they are allowed, and notes what was asked."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self.wanted = wanted
        self.dimensions: dict[str, _Dimension] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        levels = _levels(low, high, log)
        return float(
            self._note(name, levels, lambda value: _number(value) and low <= value <= high)
        )

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        levels = sorted({round(level) for level in _levels(low, high, log)})
        return int(
            self._note(
                name,
                levels,
                lambda value: _number(value) and int(value) == value and low <= value <= high,
            )
        )

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._note(name, list(choices), lambda value: value in choices)

    def _note(self, name: str, levels: Sequence[Any], contains: Callable[[Any], bool]) -> Any:
        self.dimensions[name] = _Dimension(tuple(levels), contains)
        wanted = self.wanted.get(name)
        return wanted if name in self.wanted and contains(wanted) else levels[0]


def known_params(space: Space, params: Mapping[str, Any]) -> Flat:
    """Return those of a champion's or winner's parameters that this space can try again.

    Names the space does not ask for and values outside it are left out; the sampler fills them.
    """
    wanted = flatten(params) or dict(params)
    probe = _Probe(wanted)
    space(probe)
    return {
        name: wanted[name]
        for name, dimension in probe.dimensions.items()
        if name in wanted and dimension.contains(wanted[name])
    }


def grid(space: Space, seed: int) -> list[Flat]:
    """Return the grid's points in an order shuffled by the seed, at most 4,096 of them.

    A range has three levels (its ends and its middle, on a log scale where it asks for one), a
    choice all of its values. Dimensions asked only under some choices take the sampler's values.
    """
    probe = _Probe({})
    space(probe)
    names = list(probe.dimensions)
    count = math.prod(len(probe.dimensions[name].levels) for name in names)
    if count > _MAX_GRID_POINTS:
        raise SpaceError(
            f"a grid over this space has {count} points, the limit is {_MAX_GRID_POINTS}; "
            "search with tpe, or fix some of its parameters"
        )
    points = [
        dict(zip(names, values, strict=True))
        for values in itertools.product(*(probe.dimensions[name].levels for name in names))
    ]
    random.Random(seed).shuffle(points)  # noqa: S311 - an order, not a secret
    return points


def _levels(low: float, high: float, log: bool) -> tuple[float, float, float]:
    """Return the ends exactly (a rounding could leave the range) and the middle."""
    return low, math.sqrt(low * high) if log else (low + high) / 2, high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _imbalanced(data: TrainingData) -> bool:
    counts = np.bincount(data.labels, minlength=len(data.classes))
    present = counts[counts > 0]
    return len(present) > 1 and bool(present.max() > _BALANCED_RATIO * present.min())


def _balanced(
    rows: NDArray[np.int64], labels: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw rare classes again, up to the most frequent one's count and four times their own."""
    codes, counts = np.unique(labels[rows], return_counts=True)
    drawn = [rows]
    for code, count in zip(codes, counts, strict=True):
        extra = min(int(counts.max()), _MAX_OVERSAMPLING * int(count)) - int(count)
        drawn.append(rng.choice(rows[labels[rows] == code], size=extra, replace=True))
    return np.concatenate(drawn)
