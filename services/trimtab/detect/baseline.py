"""What a window is compared with: the merged counts of reference windows, and how complete they are."""

from collections.abc import Iterable
from functools import reduce

from msgspec import Struct

from trimtab.stats.aggregate import PaneState


class Baseline(Struct, frozen=True):
    """Merged reference windows under one set of cuts.

    `id` is None while windows are still being gathered from traffic. `wanted` is how many windows the
    contract wants; with fewer the baseline is `calibrating`, and figures compare with what there is.
    """

    state: PaneState
    windows: int
    wanted: int
    id: int | None = None
    season: str | None = None
    """Where `state` is of the windows of one season only, such as `14:00`; `windows` counts all."""
    season_windows: int = 0
    """How many windows `state` is of, where it is of one season's."""

    @property
    def complete(self) -> bool:
        """Whether it is a numbered baseline: gathered to its end, fitted from a file, or re-based."""
        return self.id is not None

    @property
    def progress(self) -> str:
        """Such as `calibrating: 61 of 168 windows`."""
        return f"calibrating: {self.windows} of {self.wanted} windows"


def merge_states(states: Iterable[PaneState]) -> PaneState | None:
    """Return the state of all; None of none. Raises IncompatibleCuts."""
    found = list(states)
    return reduce(PaneState.merge, found) if found else None


def usable(state: PaneState | None, min_rows: int) -> bool:
    """Whether a closed window may enter a baseline from traffic: it holds at least `min_rows` rows."""
    return state is not None and state.rows >= max(1, min_rows)
