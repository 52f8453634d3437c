"""Counts of a feature in two times side by side, in few enough bars for a person to read.

A number's bins are merged with their neighbours until each bar holds about the same share of the reference; so
a bar that stands out is a change, whatever the shape of the distribution. What holds no number, or no known
category, has bars of its own at the end.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct

from trimtab.stats.aggregate import FeatureState, IncompatibleCuts
from trimtab.stats.cuts import SPECIAL_BINS, CategoryCuts, Cuts, NumericCuts

MOST_BARS = 16
"""Bars of numbers or categories; those of special bins come on top."""


class Bar(Struct, frozen=True):
    """One bar: the rows of a window and those of the baseline that it stands for."""

    label: str
    window: int
    baseline: int


def bars(
    cuts: Cuts, window: FeatureState | None, baseline: FeatureState | None, most: int = MOST_BARS
) -> list[Bar]:
    """Return the bars of a feature; a side that is None has no rows.

    Raises IncompatibleCuts for counts under other cuts, ValueError for fewer than 2 bars.
    """
    if most < 2:
        raise ValueError(f"{most} bars show nothing; ask for 2 or more.")
    for state in (window, baseline):
        if state is not None and state.cuts_id != cuts.cuts_id:
            raise IncompatibleCuts(state.cuts_id, cuts.cuts_id)
    empty = (0,) * cuts.size
    now = empty if window is None else window.counts
    was = empty if baseline is None else baseline.counts
    ordinary = cuts.size - SPECIAL_BINS
    if isinstance(cuts, CategoryCuts):
        found = _category_bars(cuts, now[:ordinary], was[:ordinary], most)
    else:
        found = _number_bars(cuts, now[:ordinary], was[:ordinary], most)
    special = zip(cuts.special, now[ordinary:], was[ordinary:], strict=True)
    return [*found, *(Bar(name.replace("_", " "), n, w) for name, n, w in special if n or w)]


def _category_bars(
    cuts: CategoryCuts, now: Sequence[int], was: Sequence[int], most: int
) -> list[Bar]:
    """The most frequent categories of the baseline, then of the window; all others as one bar."""
    ranked = sorted(range(len(now)), key=lambda b: (-was[b], -now[b], cuts.categories[b]))
    shown, rest = ranked, []
    if len(ranked) > most:
        shown, rest = ranked[: most - 1], ranked[most - 1 :]
    found = [Bar(cuts.categories[b], now[b], was[b]) for b in shown]
    if rest:
        label = f"{len(rest)} more categories"
        found.append(Bar(label, sum(now[b] for b in rest), sum(was[b] for b in rest)))
    return found


def _number_bars(cuts: NumericCuts, now: Sequence[int], was: Sequence[int], most: int) -> list[Bar]:
    reference = np.array(was if sum(was) else now, dtype=np.float64)
    total = reference.sum()
    if not total:
        return []
    if np.count_nonzero(np.add(now, was)) <= most:
        return _few_values(cuts, now, was)
    middle = (np.cumsum(reference) - reference / 2) / total
    group = np.minimum((middle * most).astype(np.int64), most - 1)
    starts = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(now)]
    return [
        Bar(_range(cuts, first, end), sum(now[first:end]), sum(was[first:end]))
        for first, end in pairwise(starts)
    ]


def _few_values(cuts: NumericCuts, now: Sequence[int], was: Sequence[int]) -> list[Bar]:
    """A bar for each bin that holds anything: few values, each its own."""
    return [
        Bar(_range(cuts, b, b + 1), n, w)
        for b, (n, w) in enumerate(zip(now, was, strict=True))
        if n or w
    ]


def _range(cuts: NumericCuts, first: int, end: int) -> str:
    """Say which values the bins first .. end - 1 hold; each is right-closed."""
    edges = cuts.edges
    if end - first == 1 and cuts.atoms[first] and first < len(edges):
        return f"{edges[first]:.4g}"
    if first == 0 and end > len(edges):
        return "all values"
    if first == 0:
        return f"up to {edges[end - 1]:.4g}"
    if end > len(edges):
        return f"above {edges[first - 1]:.4g}"
    return f"{edges[first - 1]:.4g} to {edges[end - 1]:.4g}"
