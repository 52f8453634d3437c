"""The study of one run: which parameters to try next, and what every trial gave.

A thin, exact layer over Optuna's ask/tell with its RDB storage (a SQLite file of its own). The
agent is the study's only client; calls are serialised by a lock, so worker threads may share one.

What survives a `kill -9` at any statement:

- Everything told is in the storage. A trial that was running when the process died is failed and
  its parameters are enqueued again on the next `open_study`, in this order: enqueue (marked
  `retry:<number>`), then fail. Dying in between leaves the mark, so nothing is enqueued twice.
- A trial's seed is a hash of the run id and the trial's place, which is its number without the
  retries before it (a retry has the place of what it repeats). So a resumed search with one worker
  draws what an uninterrupted one would have.
- A failed trial that is retried does not count against the budget; its retry does.

Values are higher-is-better. Times are milliseconds since the epoch, UTC.
"""

import hashlib
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from trimtab.errors import TrimtabError
from trimtab_agent.recipes.base import Params
from trimtab_agent.search.space import Flat, Space, grid, known_params

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "none"]
TrialState = Literal["waiting", "running", "complete", "pruned", "failed"]

# A trial that was running at this many deaths of the agent is likely their cause.
_MAX_ATTEMPTS = 3
_PRUNER_STARTUP_TRIALS = 3
# Optuna counts steps from 0, trimtab from 1: the first two steps judge nobody.
_PRUNER_WARMUP_STEPS = 3


class StudyError(TrimtabError):
    """The study cannot be opened or asked; the text says what differs."""


class SearchSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a search may do.

    Attributes:
        trials: how many trials in all.
        seconds: after this many seconds since the study was opened first, no trial starts.
        sampler: tpe (multivariate), random or grid.
        pruner: median, or none.
        warm_start: parameters of the champion and of earlier winners, tried first.

    """

    trials: int = 12
    seconds: float = 3600.0
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    warm_start: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.trials <= 10_000:
            raise ValueError("trials is 1 to 10000")
        if not self.seconds > 0:
            raise ValueError("seconds is above 0")


class TrialRecord(msgspec.Struct, frozen=True):
    """One trial as stored; `params` is empty until it was asked, `best_step` 0 until reported."""

    number: int
    state: TrialState
    params: dict[str, Any] = {}
    value: float | None = None
    best_step: int = 0
    reason: str = ""
    origin: str = ""


class AskedTrial(msgspec.Struct, frozen=True):
    """A trial to run: its number in the study and its parameters, seed included."""

    number: int
    params: dict[str, Any]


def seed_of(run_id: str, place: int) -> int:
    """Return the 31-bit seed of a trial: the same run and place give the same seed anywhere."""
    digest = hashlib.sha256(f"{run_id}\x00{place}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def sqlite_url(path: Path) -> str:
    """Return the storage address of a study file."""
    return f"sqlite:///{path}"


def open_study(url: str, run_id: str, spec: SearchSpec, space: Space, now_ms: int) -> "Study":
    """Open the run's study, or create it; take over trials that a dead process left running.

    Raises:
        StudyError: the run's study was begun with another specification.

    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url)
    study = optuna.create_study(
        study_name=run_id,
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        pruner=_pruner(spec),
    )
    pinned = _pinned(spec)
    stored = study.user_attrs.get("spec")
    if stored is None:
        study.set_user_attr("started_ms", now_ms)
        study.set_user_attr("spec", pinned)
    elif stored != pinned:
        raise StudyError(
            f"the search of run {run_id} was begun with another specification; "
            "let it end with that one, or cancel the run and plan a new one"
        )
    opened = Study(study, run_id, spec, space)
    opened.take_over()
    return opened


class Study:
    """The open study of one run."""

    def __init__(self, study: "optuna.Study", run_id: str, spec: SearchSpec, space: Space) -> None:
        self.run_id = run_id
        self.spec = spec
        self._study = study
        self._space = space
        self._lock = threading.RLock()
        self._asked: dict[int, optuna.Trial] = {}

    @property
    def started_ms(self) -> int:
        """When the study was opened first."""
        return int(self._study.user_attrs["started_ms"])

    def take_over(self) -> None:
        """Enqueue what must be tried first, and again what was running when a process died."""
        import optuna

        with self._lock:
            origins = {record.origin for record in self.trials()}
            for origin, flat in self._first_points():
                if origin not in origins:
                    self._enqueue(flat, origin, attempt=1)
            stored = self._study.get_trials(deepcopy=False)
            for trial in stored:
                if trial.state != optuna.trial.TrialState.RUNNING or trial.number in self._asked:
                    continue
                attempt = int(trial.user_attrs.get("attempt", 1))
                origin = f"retry:{trial.number}"
                if attempt < _MAX_ATTEMPTS and origin not in origins:
                    fixed = trial.system_attrs.get("fixed_params", {})
                    self._enqueue(
                        {**fixed, **trial.params},
                        origin,
                        attempt=attempt + 1,
                        place=_place(trial.number, stored),
                    )
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def next_trial(self, now_ms: int) -> AskedTrial | None:
        """Ask for the next trial; None when the budget of trials or seconds is used."""
        import optuna

        with self._lock:
            if self.used() >= self.spec.trials or now_ms >= self.deadline_ms:
                return None
            stored = self._study.get_trials(deepcopy=False)
            waiting = [t for t in stored if t.state == optuna.trial.TrialState.WAITING]
            number = waiting[0].number if waiting else len(stored)
            seed = seed_of(self.run_id, _place(number, stored))
            self._study.sampler = _sampler(self.spec, seed)
            trial = self._study.ask()
            params: Params = {**self._space(trial), "seed": seed}
            trial.set_user_attr("params", params)
            self._asked[trial.number] = trial
            return AskedTrial(number=trial.number, params=params)

    def report(self, number: int, step: int, value: float) -> bool:
        """Record an intermediate value; True when the pruner gives the trial up."""
        with self._lock:
            trial = self._asked[number]
            trial.report(value, step)
            # The median pruner answers with NumPy's own boolean.
            return bool(trial.should_prune())

    def complete(self, number: int, value: float, best_step: int) -> None:
        """Record the trial's value; a value that is not finite fails it."""
        import optuna

        if not math.isfinite(value):
            self.fail(number, f"the recipe reported {value}, not a finite value")
            return
        with self._lock:
            self._asked[number].set_user_attr("best_step", best_step)
            self._study.tell(number, value, state=optuna.trial.TrialState.COMPLETE)
            del self._asked[number]

    def prune(self, number: int) -> None:
        """Record that the trial was given up."""
        import optuna

        with self._lock:
            self._study.tell(number, state=optuna.trial.TrialState.PRUNED)
            del self._asked[number]

    def fail(self, number: int, reason: str) -> None:
        """Record that the trial failed and why; the study goes on."""
        import optuna

        with self._lock:
            self._asked[number].set_user_attr("reason", reason[:2000])
            self._study.tell(number, state=optuna.trial.TrialState.FAIL)
            del self._asked[number]

    @property
    def deadline_ms(self) -> int:
        """After this, no trial starts."""
        return self.started_ms + round(self.spec.seconds * 1000)

    def used(self) -> int:
        """How many trials of the budget are finished or running; what is retried counts once."""
        records = self.trials()
        retried = {record.origin for record in records}
        return sum(
            record.state != "waiting" and f"retry:{record.number}" not in retried
            for record in records
        )

    def trials(self) -> list[TrialRecord]:
        """Return every trial in the order of its number."""
        with self._lock:
            return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def best(self) -> TrialRecord | None:
        """Return the complete trial with the highest value; the earliest among equals."""
        complete = [
            record
            for record in self.trials()
            if record.state == "complete" and record.value is not None
        ]
        return max(complete, key=lambda r: (r.value, -r.number), default=None)

    def _first_points(self) -> list[tuple[str, Flat]]:
        points: list[tuple[str, Flat]] = []
        for index, params in enumerate(self.spec.warm_start):
            flat = known_params(self._space, params)
            if flat:
                points.append((f"warm:{index}", flat))
        if self.spec.sampler == "grid":
            left = self.spec.trials - len(points)
            for index, flat in enumerate(grid(self._space, seed_of(self.run_id, 0))[:left]):
                points.append((f"grid:{index}", flat))
        return points

    def _enqueue(self, flat: Flat, origin: str, *, attempt: int, place: int | None = None) -> None:
        marks: dict[str, Any] = {"origin": origin, "attempt": attempt}
        if place is not None:
            marks["place"] = place
        self._study.enqueue_trial(flat, user_attrs=marks)


def _pinned(spec: SearchSpec) -> str:
    """Return the specification as text that is equal for equal meaning (5 and 5.0 s are)."""
    read_back = msgspec.convert(msgspec.to_builtins(spec), SearchSpec)
    return msgspec.json.encode(read_back, order="deterministic").decode()


def _place(number: int, stored: "Sequence[optuna.trial.FrozenTrial]") -> int:
    """Return the place of the stored or next trial with this number: see the module's text."""
    if number < len(stored) and "place" in stored[number].user_attrs:
        return int(stored[number].user_attrs["place"])
    return number - sum("place" in trial.user_attrs for trial in stored[:number])


def _record(trial: "optuna.trial.FrozenTrial") -> TrialRecord:
    import optuna

    states: Mapping[optuna.trial.TrialState, TrialState] = {
        optuna.trial.TrialState.WAITING: "waiting",
        optuna.trial.TrialState.RUNNING: "running",
        optuna.trial.TrialState.COMPLETE: "complete",
        optuna.trial.TrialState.PRUNED: "pruned",
        optuna.trial.TrialState.FAIL: "failed",
    }
    reported = trial.intermediate_values
    value = trial.value
    if value is None and reported:
        value = max(reported.values())
    best = max(reported, key=lambda step: (reported[step], -step), default=0)
    return TrialRecord(
        number=trial.number,
        state=states[trial.state],
        params=trial.user_attrs.get("params", {}),
        value=value,
        best_step=int(trial.user_attrs.get("best_step", best)),
        reason=trial.user_attrs.get("reason", ""),
        origin=trial.user_attrs.get("origin", ""),
    )


def _sampler(spec: SearchSpec, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if spec.sampler != "tpe":
        # A grid's points are enqueued; only what they leave open is drawn.
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # Optuna marks `multivariate` as experimental; it is chosen with that known.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            multivariate=True,
            # Optuna's default of 10 would make most of a small budget random.
            n_startup_trials=min(10, max(3, spec.trials // 3)),
            constant_liar=True,
            seed=seed,
        )


def _pruner(spec: SearchSpec) -> "optuna.pruners.BasePruner":
    import optuna

    if spec.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=_PRUNER_STARTUP_TRIALS, n_warmup_steps=_PRUNER_WARMUP_STEPS
    )
