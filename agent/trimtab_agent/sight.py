"""What the agent sees of the world, read from what the monitor has written into the store."""

from collections.abc import Sequence

from trimtab.contracts.model import Contract
from trimtab.detect.breaks import broken_values, heterogeneity
from trimtab.detect.diagnosis import Signs
from trimtab.detect.label_signals import LabelSignals
from trimtab.records import Verdict
from trimtab.stats.performance import PerformanceState
from trimtab.store.arm_counts import ArmCounts, arm_counts
from trimtab.store.baselines import active_baseline
from trimtab.store.engine import Store
from trimtab.store.models import cuts_at
from trimtab.store.performance import arm_performance, window_performance
from trimtab.store.verdicts import latest_verdicts
from trimtab.store.window_state import window_state
from trimtab_agent.decide.evidence import MEMORY_WINDOWS
from trimtab_agent.labelled import read_label_signals
from trimtab_agent.rollout.assess import ArmTally

FOREVER_MS = 7_258_118_400_000
"""2200-01-01: later than any event time that is accepted."""


class StoreSight:
    """The world as the monitor has written it into the store (`context.Sight`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def verdicts(self, model: str) -> list[Verdict]:
        """See `context.Sight`."""
        return [row.verdict for row in latest_verdicts(self._store, model, limit=MEMORY_WINDOWS)]

    def labelled_rows(self, model: str, version: str, from_ms: int) -> int:
        """See `context.Sight`."""
        with self._store.read() as connection:
            found = window_performance(connection, model, from_ms, FOREVER_MS)
        return found[version].labelled_rows if version in found else 0

    def label_signals(
        self, contract: Contract, version: str, since_ms: int, onset_ms: int, now_ms: int
    ) -> LabelSignals | None:
        """See `context.Sight`."""
        return read_label_signals(
            self._store, contract, version, since_ms=since_ms, onset_ms=onset_ms, now_ms=now_ms
        )

    def value_signs(
        self, model: str, start_ms: int, end_ms: int, onset_ms: int
    ) -> tuple[Signs, Signs] | None:
        """See `context.Sight`."""
        with self._store.read() as connection:
            found = window_state(connection, model, start_ms, end_ms)
            baseline = active_baseline(connection, model)
            if found.state is None or found.cuts_id is None or baseline is None:
                return None
            cuts = cuts_at(connection, model, found.cuts_id)
        if cuts is None or baseline.state.cuts_id != found.cuts_id:
            return None
        return (
            broken_values(cuts, found.state, baseline.state, onset_ms),
            heterogeneity(cuts, found.by_version, onset_ms),
        )

    def arms(
        self, contract: Contract, revisions: Sequence[int], now_ms: int, maturity_ms: int
    ) -> dict[tuple[int, str], ArmTally]:
        """See `context.Sight`."""
        wanted = list(revisions)
        # A pane is mature when its end, not its start, is older than the maturity.
        before_ms = now_ms - maturity_ms - contract.windows.pane_ms + 1
        counts = {
            (c.revision, c.arm): c for c in arm_counts(self._store, contract.name, wanted, None)
        }
        mature = {
            (p.revision, p.arm): p
            for p in arm_performance(self._store, contract.name, wanted, before_ms)
        }
        tallies = {}
        for key in counts.keys() | mature.keys():
            labelled, wrong = (0, 0)
            if key in mature:
                labelled, wrong = answers_of(mature[key].state)
            rows, failures = _served(counts.get(key))
            tallies[key] = ArmTally(rows, failures, min(labelled, rows), min(wrong, labelled, rows))
        return tallies


def answers_of(state: PerformanceState) -> tuple[int, int]:
    """(labelled, wrong) answers of a classifier's state, summed over classes."""
    labelled = sum(state.confusion.values())
    right = sum(count for (label, answer), count in state.confusion.items() if label == answer)
    return labelled, labelled - right


def _served(counts: ArmCounts | None) -> tuple[int, int]:
    return (0, 0) if counts is None else (counts.rows, counts.errors + counts.timeouts)
