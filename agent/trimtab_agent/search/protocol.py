"""What the agent and a worker say to each other: one JSON message per line, over two pipes.

The agent sends a task and reads until its `Done` or `Failed`. In between the worker may send
`Report` (answered by `Continue`) and `Suggest` (answered by `Suggested`). The agent's end of the
pipe closing ends the worker at once, in whatever it is doing.
"""

from typing import Any

import msgspec

from trimtab_agent.recipes.data import DataRef

MAX_LINE_BYTES = 16 * 2**20


class RecipeRef(msgspec.Struct, frozen=True):
    """A recipe by name, with the contract's options."""

    name: str
    options: dict[str, Any] = {}


class Warm(msgspec.Struct, frozen=True, tag=True):
    """Import the recipe's framework now, so that the first trial does not wait for it."""

    framework: str = "keras"


class AskSpace(msgspec.Struct, frozen=True, tag=True):
    """Run a user's `space`; the worker sends `Suggest` for each parameter."""

    recipe: RecipeRef


class Fit(msgspec.Struct, frozen=True, tag=True):
    """Run one trial and report its value after each step; nothing is kept."""

    recipe: RecipeRef
    params: dict[str, Any]
    data: DataRef


class FitFinal(msgspec.Struct, frozen=True, tag=True):
    """Fit on all rows, validation included, and leave an artifact at `out_dir`."""

    recipe: RecipeRef
    params: dict[str, Any]
    data: DataRef
    steps: int
    out_dir: str
    created_ms: int


class Evaluate(msgspec.Struct, frozen=True, tag=True):
    """Predict a data set's rows with an artifact and write the answers to `out_file` (.npz)."""

    recipe: RecipeRef
    artifact_dir: str
    sha256: str
    data: DataRef
    out_file: str


class Continue(msgspec.Struct, frozen=True, tag=True):
    """The answer to a report."""

    prune: bool


class Suggested(msgspec.Struct, frozen=True, tag=True):
    """The answer to a suggestion."""

    value: Any


class Report(msgspec.Struct, frozen=True, tag=True):
    """The value after a step."""

    step: int
    value: float


class Suggest(msgspec.Struct, frozen=True, tag=True):
    """A parameter that a user's space asks for; `method` is one of the trial's three."""

    method: str
    name: str
    args: list[Any]
    log: bool = False


class Done(msgspec.Struct, frozen=True, tag=True):
    """The task's result: the JSON of the result type that belongs to it."""

    result: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The task failed with an exception; the worker lives on."""

    reason: str


Task = Warm | AskSpace | Fit | FitFinal | Evaluate
ToWorker = Warm | AskSpace | Fit | FitFinal | Evaluate | Continue | Suggested
FromWorker = Report | Suggest | Done | Failed


class FitResult(msgspec.Struct, frozen=True):
    """What a trial gave: its best value and the step that gave it."""

    value: float
    best_step: int
    pruned: bool
    seconds: float
    rows: int


class ArtifactResult(msgspec.Struct, frozen=True):
    """A finished artifact: where it lies, its digest and size."""

    path: str
    sha256: str
    size_bytes: int
    seconds: float
    rows: int


class EvaluateResult(msgspec.Struct, frozen=True):
    """Where the answers lie, and how long a single row took.

    `value` is the accuracy, or the coefficient of determination.
    """

    path: str
    rows: int
    value: float
    one_row_median_ms: float
    artifact_bytes: int
