"""A search that the agent's tick can step, and the work that follows it.

`Search.advance(now_ms)` never waits: trials are driven by threads that sleep while a worker trains,
and the tick reads their progress. All that matters is in the study's storage, so a process that is
killed at any point goes on by making the same `Search` again.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trimtab_agent.recipes.base import Params, Trial, is_builtin, recipe
from trimtab_agent.recipes.data import DataRef
from trimtab_agent.search import protocol
from trimtab_agent.search.protocol import (
    ArtifactResult,
    EvaluateResult,
    FitResult,
    RecipeRef,
)
from trimtab_agent.search.space import DataSpace, with_data_part
from trimtab_agent.search.study import (
    AskedTrial,
    SearchSpec,
    Study,
    TrialRecord,
    open_study,
    seed_of,
)
from trimtab_agent.search.workers import WorkerError, WorkerPool, WorkerStoppedError

# After so many failures in a row, what fails is the recipe or the data, not the parameters.
_MAX_FAILURES_IN_A_ROW = 3

SearchState = Literal["searching", "done", "failed"]
T = TypeVar("T")


class SearchProgress(msgspec.Struct, frozen=True):
    """Where a search stands.

    Attributes:
        state: searching, done (see `best`) or failed (see `reason`).
        trials: finished trials: complete, pruned or failed for good.
        trials_budget: how many there may be.
        best: the complete trial with the highest value so far.
        running: the numbers of the trials that train now, with their last step and value.
        elapsed_s: since the study was opened first, also by a process now dead.
        reason: why it failed, or why it ended before its budget of trials.

    """

    state: SearchState
    trials: int
    trials_budget: int
    best: TrialRecord | None = None
    running: dict[int, tuple[int, float]] = {}
    elapsed_s: float = 0.0
    reason: str = ""


class SearchPlan(msgspec.Struct, frozen=True):
    """Everything that fixes a search; made again from the run's record after a restart.

    Attributes:
        run_id: names the study and seeds it.
        storage_url: Optuna's storage, a database of its own (`study.sqlite_url`).
        recipe: the recipe with its options.
        data: rows with a validation mask.
        data_space: trimtab's part of the space.
        spec: budget, sampler, pruner, warm start.
        trial_timeout_s: a trial that takes longer fails.

    """

    run_id: str
    storage_url: str
    recipe: RecipeRef
    data: DataRef
    data_space: DataSpace = DataSpace()
    spec: SearchSpec = SearchSpec()
    trial_timeout_s: float = 600.0


Fitter = Callable[[Params, Callable[[int, float], bool]], FitResult]


class Search:
    """A running search."""

    def __init__(self, plan: SearchPlan, pool: WorkerPool, *, fitter: Fitter | None = None) -> None:
        """Prepare, starting nothing; `fitter` replaces the workers in tests."""
        self.plan = plan
        self._pool = pool
        self._fitter = fitter
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._running: dict[int, tuple[int, float]] = {}
        self._records: list[TrialRecord] = []
        self._started_ms: int | None = None
        self._now_ms = 0
        self._tick_at_s = 0.0
        self._stopped = False
        self._ended = False
        self._reason = ""
        self._error = ""

    def advance(self, now_ms: int) -> SearchProgress:
        """Start at the first call, and return how far the search is; never waits for a trial."""
        with self._lock:
            self._now_ms, self._tick_at_s = now_ms, time.monotonic()
            if not self._threads:
                thread = threading.Thread(target=self._run, name="search", daemon=True)
                self._threads.append(thread)
                thread.start()
            return self._progress()

    def stop(self) -> None:
        """Start no further trial and end the running ones at their next report.

        They stay unfinished in the storage, so that whoever opens the study next repeats them.
        """
        with self._lock:
            self._stopped = True

    def wait(self, timeout_s: float) -> None:
        """Wait for the driving threads; for scripts and tests, not for the tick."""
        deadline = time.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _progress(self) -> SearchProgress:
        retried = {record.origin for record in self._records}
        finished = [
            r
            for r in self._records
            if r.state in ("complete", "pruned", "failed") and f"retry:{r.number}" not in retried
        ]
        best = max(
            (r for r in self._records if r.state == "complete"),
            key=lambda r: (r.value if r.value is not None else -np.inf, -r.number),
            default=None,
        )
        state: SearchState = "searching"
        reason = self._reason
        if self._ended:
            state = "done" if best is not None and not self._error else "failed"
            failures = [r.reason for r in finished if r.reason]
            if state == "failed":
                reason = self._error or (failures[-1] if failures else "no trial was completed")
        started = self._now_ms if self._started_ms is None else self._started_ms
        return SearchProgress(
            state=state,
            trials=len(finished),
            trials_budget=self.plan.spec.trials,
            best=best,
            running=dict(self._running),
            elapsed_s=max(0, self._now_ms - started) / 1000,
            reason=reason,
        )

    def _run(self) -> None:
        """Open the study and drive one trial per worker until the budget is used."""
        try:
            self._pool.warm()
            study = open_study(
                self.plan.storage_url, self.plan.run_id, self.plan.spec, self._space(), self._now()
            )
            with self._lock:
                self._started_ms = study.started_ms
                self._records = study.trials()
            helpers = [
                threading.Thread(target=self._drive_safely, args=(study,), daemon=True)
                for _ in range(self._pool.workers - 1)
            ]
            for helper in helpers:
                helper.start()
            self._drive_safely(study)
            for helper in helpers:
                helper.join()
        except Exception as error:  # noqa: BLE001 - the tick reads it from the progress
            self._fail(error)
        with self._lock:
            self._ended = not self._stopped

    def _drive_safely(self, study: Study) -> None:
        try:
            self._drive(study)
        except WorkerStoppedError:
            self.stop()
        except Exception as error:  # noqa: BLE001 - the tick reads it from the progress
            self._fail(error)

    def _drive(self, study: Study) -> None:
        failures = 0
        while not self._stopped and failures < _MAX_FAILURES_IN_A_ROW:
            asked = study.next_trial(self._now())
            if asked is None:
                break
            failures = 0 if self._try(study, asked) else failures + 1
        with self._lock:
            if failures >= _MAX_FAILURES_IN_A_ROW:
                self._reason = f"{failures} trials failed in a row"
            elif not self._stopped and study.used() < self.plan.spec.trials:
                self._reason = f"the budget of {self.plan.spec.seconds:g} s is used"

    def _try(self, study: Study, asked: AskedTrial) -> bool:
        """Run one trial and record it; False when it failed."""
        number = asked.number

        def on_report(step: int, value: float) -> bool:
            with self._lock:
                self._running[number] = (step, value)
            late = self._now() >= study.deadline_ms and study.best() is not None
            return study.report(number, step, value) or late or self._stopped

        with self._lock:
            self._running[number] = (0, 0.0)
        try:
            result = self._fit(asked.params, on_report)
        except WorkerStoppedError:
            raise
        except WorkerError as error:
            study.fail(number, str(error))
            return False
        else:
            if self._stopped and result.pruned:
                return True  # left running in the storage, so that the next owner tries it again
            if result.pruned:
                study.prune(number)
            else:
                study.complete(number, result.value, result.best_step)
            return True
        finally:
            with self._lock:
                self._running.pop(number, None)
                self._records = study.trials()

    def _fit(self, params: Params, on_report: Callable[[int, float], bool]) -> FitResult:
        if self._fitter is not None:
            return self._fitter(params, on_report)
        return self._pool.fit(
            self.plan.recipe,
            params,
            self.plan.data,
            timeout_s=self.plan.trial_timeout_s,
            on_report=on_report,
        )

    def _space(self) -> Callable[[Trial], Params]:
        """A built-in space runs here; a user's code runs in workers only."""
        ref = self.plan.recipe
        if is_builtin(ref.name):
            return with_data_part(recipe(ref.name, ref.options).space, self.plan.data_space)
        return with_data_part(lambda trial: self._pool.space(ref, trial), self.plan.data_space)

    def _now(self) -> int:
        """Return the last tick's time plus what passed since: the tick owns the clock."""
        with self._lock:
            return self._now_ms + round((time.monotonic() - self._tick_at_s) * 1000)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._error = f"{type(error).__name__}: {error}"


def run_search(plan: SearchPlan, pool: WorkerPool) -> Search:
    """Return the search of this plan, ready to be stepped by `advance`."""
    return Search(plan, pool)


def refit(
    pool: WorkerPool,
    *,
    recipe_ref: RecipeRef,
    winner: TrialRecord,
    data: DataRef,
    out_dir: Path,
    created_ms: int,
    timeout_s: float = 1800.0,
) -> "Pending[ArtifactResult]":
    """Fit the winner's parameters on train and validation rows into an artifact.

    Repeating it with the same `out_dir` returns the artifact that is already there.
    """
    return fit_artifact(
        pool,
        recipe_ref=recipe_ref,
        params=winner.params,
        steps=max(1, winner.best_step),
        data=data,
        out_dir=out_dir,
        created_ms=created_ms,
        timeout_s=timeout_s,
    )


def fit_artifact(
    pool: WorkerPool,
    *,
    recipe_ref: RecipeRef,
    params: Mapping[str, Any],
    steps: int,
    data: DataRef,
    out_dir: Path,
    created_ms: int,
    timeout_s: float = 1800.0,
) -> "Pending[ArtifactResult]":
    """Fit given parameters for a number of steps into an artifact, such as a first champion."""
    task = protocol.FitFinal(
        recipe=recipe_ref,
        params={"seed": seed_of(str(out_dir.name), 0), **params},
        data=data,
        steps=steps,
        out_dir=str(out_dir.absolute()),
        created_ms=created_ms,
    )
    return Pending(pool.submit(task, timeout_s=timeout_s), ArtifactResult)


def evaluate(
    pool: WorkerPool,
    *,
    recipe_ref: RecipeRef,
    artifact_dir: Path,
    sha256: str,
    data: DataRef,
    out_file: Path,
    timeout_s: float = 600.0,
) -> "Pending[EvaluateResult]":
    """Predict a data set with an artifact; `read_answers` gives the gate its arrays."""
    task = protocol.Evaluate(
        recipe=recipe_ref,
        artifact_dir=str(artifact_dir.absolute()),
        sha256=sha256,
        data=data,
        out_file=str(out_file.absolute()),
    )
    return Pending(pool.submit(task, timeout_s=timeout_s), EvaluateResult)


class Answers(msgspec.Struct, frozen=True):
    """An evaluation's arrays, all of n rows in the data's order.

    Attributes:
        predicted: int64 codes into the data's classes (−1 for a class it lacks), or floats.
        scores: float32 (n, k), k in the order of the model's own classes.
        labels: as in the data.
        event_time_ms: int64.

    """

    predicted: NDArray[Any]
    scores: NDArray[np.float32]
    labels: NDArray[Any]
    event_time_ms: NDArray[np.int64]


def read_answers(result: EvaluateResult) -> Answers:
    """Read the arrays that `evaluate` wrote."""
    with np.load(result.path, allow_pickle=False) as arrays:
        return Answers(
            predicted=arrays["predicted"],
            scores=arrays["scores"],
            labels=arrays["labels"],
            event_time_ms=arrays["event_time_ms"],
        )


class Pending(Generic[T]):
    """A worker's task under way; the tick asks `done` and never waits."""

    def __init__(self, future: Future[dict[str, Any]], result_type: type[T]) -> None:
        self._future = future
        self._result_type = result_type

    @property
    def done(self) -> bool:
        """Tell whether `result` returns or raises at once."""
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> T:
        """Return the result, waiting for it at most `timeout_s`.

        Raises:
            WorkerError: the task failed; its kinds say how.
            TimeoutError: it is not done yet.

        """
        return msgspec.convert(self._future.result(timeout_s), self._result_type)
