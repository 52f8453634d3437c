"""Fitting detectors beside the evaluator: seconds of work that must not hold up other models' verdicts.

A model whose baseline has no detector yet waits with its new windows, so that which window is first judged by
it does not depend on how busy the machine was. The same baseline and recipe give the same detector wherever
it is fitted.
"""

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor, wait

import msgspec
from msgspec import Struct

from trimtab import logs
from trimtab.contracts.model import Contract
from trimtab.detect.budget import Budget
from trimtab.detect.drift import Fitted, Refused, fit_detector
from trimtab.detect.sources import bounds_of
from trimtab.store import baselines
from trimtab.store.detectors import newest_detector
from trimtab.store.engine import Store
from trimtab.store.models import cuts_at

FORMAT = 2
"""Changes with what a fit gives: stored detectors of another format are made anew."""

log = logs.get("detectors")


def recipe_of(contract: Contract) -> str:
    """Return the digest of all that a fit depends on beside its baseline.

    Not the budget: a detector is asked with whatever budget its model has.
    """
    windows = contract.windows
    parts = [
        FORMAT,
        contract.alarms.smallest_shift,
        windows.length_ms,
        windows.time_zone,
        windows.min_rows,
        bounds_of(contract),
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


class Wanted(Struct, frozen=True):
    """A detector that is to be made."""

    model: str
    baseline_id: int
    recipe: str


class Fits:
    """Fits one detector at a time in a thread of its own. Called from the evaluator's thread only."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[Wanted, Future[Fitted | Refused]] = {}

    def ask(
        self, wanted: Wanted, contract: Contract, budget: Budget, wait_s: float
    ) -> Fitted | Refused | None:
        """Return what the fit gave; None while it runs. Waits for it at most `wait_s`.

        Raises SQLAlchemyError where the store was away: the next call fits again.
        """
        future = self._running.get(wanted)
        if future is None:
            self._drop(wanted.model)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="trimtab-fit")
            future = self._pool.submit(self._fit, wanted, contract, budget)
            self._running[wanted] = future
        if not wait([future], wait_s).done:
            return None
        del self._running[wanted]
        return future.result()

    def _drop(self, model: str) -> None:
        """Forget fits of a baseline or contract that has been replaced."""
        for other in [wanted for wanted in self._running if wanted.model == model]:
            self._running.pop(other).cancel()

    def close(self) -> None:
        """Let go of what has not begun; what runs ends in its own time and is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._running.clear()

    def _fit(self, wanted: Wanted, contract: Contract, budget: Budget) -> Fitted | Refused:
        with self._store.read() as connection:
            row = baselines.baseline(connection, wanted.baseline_id)
            cuts = cuts_at(connection, wanted.model, row.cuts_id)
            windows = baselines.observed_windows(connection, wanted.baseline_id)
            inherit = newest_detector(connection, wanted.model, row.cuts_id, wanted.baseline_id)
        if row.from_ms is None:
            return Refused(
                "the baseline is a file without a time column: its rows tell nothing of how windows vary"
            )
        length_ms = contract.windows.length_ms
        if row.to_ms is not None and windows and row.to_ms - windows[-1][0] != length_ms:
            return Refused(
                f"the baseline's windows are not of {contract.windows.length}; it needs a new baseline"
            )
        if cuts is None:
            return Refused("the cuts of the baseline are gone")
        seed = int.from_bytes(hashlib.sha256(row.state.to_bytes()).digest()[:8], "big")
        try:
            made = fit_detector(
                cuts,
                windows,
                contract,
                budget.windows_per_alarm(length_ms),
                bounded=bounds_of(contract),
                inherit=inherit,
                seed=seed,
            )
        except Exception as error:
            # A model that cannot have a detector must not stop having verdicts.
            log.exception("fit_failed", action="detector_fit_failed", model=wanted.model)
            return Refused(
                f"it could not be fitted ({type(error).__name__}: {str(error)[:200]}); the monitor's log says where. "
                "A new baseline tries again"
            )
        log.info(
            "fitted a detector",
            action="detector_fitted",
            model=wanted.model,
            baseline=row.number,
            windows=len(windows),
            refused=made.reason if isinstance(made, Refused) else None,
        )
        return made
