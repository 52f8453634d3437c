"""The seam for training code: what a recipe is, and how one is found by name.

A recipe is three methods. `space` asks a trial for parameters and returns them as JSON; it imports
no framework. `fit` trains and saves into an empty directory, preprocessing included. `load` gives
back something that scores a batch. trimtab adds the `data` part of the space (`search.space`), the
manifest and the signature, so a recipe does not deal with them.

A package offers its own recipe by an entry point of the group `trimtab.recipes` whose object is
called with the options of the contract's `[retraining.options]`. User code runs in workers only.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from trimtab.errors import TrimtabError
from trimtab.serve.predictor import ScoreFunction
from trimtab_agent.recipes.data import DataRef, TrainingData

ENTRY_POINT_GROUP = "trimtab.recipes"

__all__ = [
    "DataRef",
    "Params",
    "Recipe",
    "RecipeError",
    "Report",
    "TrainingData",
    "Trial",
    "is_builtin",
    "recipe",
]

# JSON, in parts: {"hyperparameters": {…}, "architecture": {…}, "data": {…}, "seed": …}
Params = dict[str, Any]
# report(step, value) → True when the trial is pruned and `fit` should return at once.
# Steps count from 1, higher values are better.
Report = Callable[[int, float], bool]


class RecipeError(TrimtabError):
    """A recipe is unknown, or its options or the data do not fit it."""


class Trial(Protocol):
    """What a space may ask; Optuna's `Trial` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Choose an integer in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Choose one of `choices` (strings, numbers, booleans)."""
        ...


class Recipe(Protocol):
    """Training code for one kind of model."""

    name: str
    # The artifact's format, "keras" for what `trimtab serve` can load.
    framework: str

    def space(self, trial: Trial) -> Params:
        """Return parameters as JSON in the parts `hyperparameters` and `architecture`.

        Leaf names are those given to the trial and occur once, so that an earlier winner's
        parameters can be tried again.
        """
        ...

    def fit(self, params: Params, data: TrainingData, out_dir: Path, report: Report) -> None:
        """Learn from `data.to_fit` and save into `out_dir`, which exists and is empty.

        With validation rows, report the value on them after each step and stop early. Without,
        take `params["steps"]` steps (a refit; the number that gave the winner its value).
        `params["seed"]` seeds all that is random.
        """
        ...

    def load(self, directory: Path, features: int) -> ScoreFunction:
        """Load what `fit` saved: float32 (n, features) → float32 (n, k)."""
        ...


RecipeFactory = Callable[[Mapping[str, Any]], Recipe]


def is_builtin(name: str) -> bool:
    """Tell whether the recipe comes with trimtab, so that its `space` may run in the agent."""
    return name in _builtin()


def recipe(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """Make the recipe of this name with the contract's options.

    Raises:
        RecipeError: there is no such recipe, or an option is wrong.

    """
    factory = _builtin().get(name)
    if factory is None:
        found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if name not in found:
            known = ", ".join(sorted([*_builtin(), *found]))
            raise RecipeError(
                f"there is no recipe {name!r}; write one of {known} into the contract's "
                f"[retraining] trainer, or install a package with the entry point "
                f"{ENTRY_POINT_GROUP}"
            )
        factory = found[name].load()
    return factory(dict(options or {}))


def _builtin() -> dict[str, RecipeFactory]:
    # Imported here because the recipes import this module.
    from trimtab_agent.recipes.image_cnn import ImageCnn
    from trimtab_agent.recipes.tabular import Tabular

    return {ImageCnn.name: ImageCnn, Tabular.name: Tabular}
