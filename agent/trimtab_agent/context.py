"""What one tick works with: the seams, wired once in `app.py`, and the model under hand."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.detect.diagnosis import Signs
from trimtab.detect.label_signals import LabelSignals
from trimtab.records import Verdict
from trimtab.store import agent as records
from trimtab.store.engine import Store
from trimtab.store.leases import Lease
from trimtab_agent.jobs import Jobs
from trimtab_agent.registry import Registry
from trimtab_agent.rollout.assess import ArmTally
from trimtab_agent.rollout.router import TrafficRouter
from trimtab_agent.training import DataSource, Trainer


class Sight(Protocol):
    """What decisions are made from."""

    def verdicts(self, model: str) -> list[Verdict]:
        """The latest verdict of each of the last windows."""
        ...

    def labelled_rows(self, model: str, version: str, from_ms: int) -> int:
        """Labelled rows of a version in windows from `from_ms` on, event time."""
        ...

    def label_signals(
        self, contract: Contract, version: str, since_ms: int, onset_ms: int, now_ms: int
    ) -> LabelSignals | None:
        """What a version's archived labelled rows since the onset say, against those from `since_ms` on.

        Slow: it reads files. None where there are too few. Raises DataError.
        """
        ...

    def value_signs(
        self, model: str, start_ms: int, end_ms: int, onset_ms: int
    ) -> tuple[Signs, Signs] | None:
        """Broken values of a window, and versions that are fed otherwise; None without a baseline."""
        ...

    def arms(
        self, contract: Contract, revisions: Sequence[int], now_ms: int, maturity_ms: int
    ) -> dict[tuple[int, str], ArmTally]:
        """Counts per (traffic revision, arm); labels only of panes older than `maturity_ms`."""
        ...


class Baselines(Protocol):
    """The detector's reference, moved at promotion and moved back at a rollback."""

    def rebase(
        self,
        model: str,
        from_ms: int,
        to_ms: int,
        version: str,
        source: str,
        now_ms: int,
        fence: Callable[[Connection], object],
    ) -> int:
        """Make the stored windows in [from_ms, to_ms) the baseline, with the answers of `version` alone.

        One per `source`; returns its id.

        `fence` is called in the transaction that writes and raises where the baseline is no longer
        wanted. Raises TrimtabError while too few windows are there.
        """
        ...

    def active(self, model: str) -> int | None:
        """The id of the active baseline."""
        ...

    def restore(self, connection: Connection, model: str, baseline_id: int) -> None:
        """Make an earlier baseline the active one again."""
        ...


@dataclass
class Reading:
    """What the archive's labelled rows said, and what is being asked of them."""

    about: str = ""
    """Version and onset of the answer."""
    asked: str = ""
    """About what, and after how many rows, the answer is."""
    answer: LabelSignals | None = None
    running: str = ""
    """What is being read aside; "" for nothing."""


@dataclass(frozen=True)
class Deps:
    """The seams."""

    trainer: Trainer
    source: DataSource
    registry: Registry
    router: TrafficRouter
    sight: Sight
    baselines: Baselines
    jobs: Jobs
    artifacts: Path
    """Root of the artifact store."""
    errors: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(first in ms, count) of errors in a row per record and state; forgotten at a restart."""
    labelled: dict[str, "Reading"] = field(default_factory=dict)
    """The last reading of labelled rows per model; forgotten at a restart."""
    aliases: dict[str, tuple[int, dict[str, str | None]]] = field(default_factory=dict)
    """(checked at ms, aliases) last confirmed in the registry per model; forgotten at a restart."""


@dataclass(frozen=True)
class Context:
    """One model at one tick."""

    store: Store
    lease: Lease
    deps: Deps
    contract: Contract
    now_ms: int

    @property
    def model(self) -> str:
        """The model's name."""
        return self.contract.name

    def transition(
        self,
        old: records.Record | None,
        new: records.Record,
        reason: str,
        inputs: Mapping[str, Any] | None = None,
        *also: Callable[[Connection], object],
    ) -> None:
        """Write a transition and all that belongs to it in one transaction."""
        with self.store.write() as connection:
            records.apply_transition(connection, old, new, reason, inputs or {}, self.lease)
            for step in also:
                step(connection)

    def progress(self, old: records.Record, new: records.Record) -> None:
        """Store new numbers in the same state; nothing is written when nothing changed."""
        if new != old:
            with self.store.write() as connection:
                records.save_progress(connection, old, new, self.lease)


def short_id(prefix: str, *parts: object) -> str:
    """A deterministic id: the same parts, the same id."""
    text = "\x1f".join(str(part) for part in parts)
    return f"{prefix}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
