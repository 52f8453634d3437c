"""The seams of training: who gives the data, and who searches, fits and compares.

Each question is asked again at every tick and answered at once: still working, done, or failed. An
implementation finds what an earlier process has finished, so that asking after a crash goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, field

from trimtab.artifacts import FeatureSpec
from trimtab.contracts.model import Contract
from trimtab.events.types import TrafficArm
from trimtab.records import Run
from trimtab_agent.data import Prepared
from trimtab_agent.gate.gate import HeldOut


class Working(Struct, frozen=True):
    """Not done yet; `numbers` say how far."""

    numbers: dict[str, Any] = field(default_factory=dict)


class WorkFailed(Struct, frozen=True):
    """It will not be done; why."""

    reason: str


class Searched(Struct, frozen=True):
    """The search is over: the winner's parameters and the search's numbers."""

    params: dict[str, Any]
    numbers: dict[str, Any] = field(default_factory=dict)


class Fitted(Struct, frozen=True):
    """The winner is fitted: the artifact's folder and digest."""

    directory: str
    sha256: str


class Compared(Struct, frozen=True):
    """Both models have answered the held-out rows."""

    rows: HeldOut


class DataSource(Protocol):
    """Where training data comes from."""

    def pin(
        self, contract: Contract, run_id: str, onset_ms: int, now_ms: int, gate_after_ms: int
    ) -> dict[str, Any]:
        """Fix what a run may learn from, as JSON with `from_ms` and `to_ms`. Raises DataError."""
        ...

    def prepare(
        self,
        snapshot: dict[str, Any],
        contract: Contract,
        directory: Path,
        champion: Sequence[FeatureSpec],
    ) -> Prepared:
        """Read a pinned snapshot into data files; may take long. Raises DataError."""
        ...


class Trainer(Protocol):
    """Who trains. Five methods: three questions of a run's life, and two ends of it."""

    def search(
        self, run: Run, contract: Contract, champion: TrafficArm, now_ms: int
    ) -> Working | Searched | WorkFailed:
        """Search for the best parameters."""
        ...

    def fit(
        self, run: Run, contract: Contract, champion: TrafficArm
    ) -> Working | Fitted | WorkFailed:
        """Fit the winner (`run.params`) on training and validation rows."""
        ...

    def compare(
        self, run: Run, contract: Contract, champion: TrafficArm
    ) -> Working | Compared | WorkFailed:
        """Let champion and challenger answer the held-out rows."""
        ...

    def stop(self, run_id: str) -> None:
        """Drop what runs for this run; it is over."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...
