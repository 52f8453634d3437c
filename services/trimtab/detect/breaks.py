"""Signs of broken data in counts alone: collapsed values, changed units, one group unlike the rest.

Pure functions of states under the same cuts; they compare one window with the baseline, or groups of one
window (versions, producers, partitions) with each other. None of them alarms by itself: they say what an
alarm is about.

Units: moments, not bins, tell a changed unit, because values in another unit mostly leave the bins that the
reference had. x -> a x + b takes the mean m to a m + b and the standard deviation s to a s; both must fit.
"""

import math
from collections.abc import Mapping
from functools import reduce

import numpy as np
from msgspec import Struct

from trimtab.detect.contrasts import Contrasts
from trimtab.detect.diagnosis import Code, Sign, Signs
from trimtab.detect.observed import Observed
from trimtab.detect.orthonormal import Floats
from trimtab.detect.sources import ordinary, rate_count
from trimtab.stats.aggregate import FeatureState, PaneState, mean_sd
from trimtab.stats.cuts import CategoryCuts, Cuts, ModelCuts, NumericCuts

LEAST_ROWS = 50
"""Rows with a value, on each side, below which nothing is said."""
COLLAPSED_SHARE = 0.9
USUAL_SHARE = 0.5
"""A bin that holds this much of the baseline cannot collapse: it is what is usual."""
NARROW = 0.05
"""Values in a bin of at most this many usual standard deviations are as good as one value; ... """
COLLAPSED_SPREAD = 0.01
"""... in a wider bin they may differ: collapsed are they below this share of the usual standard deviation."""
SPREAD_TOLERANCE = math.log(1.25)
PLACE_TOLERANCE = 0.25
"""How far the mean may be from where the unit puts it, in new standard deviations."""
HETEROGENEOUS = 6.0
"""|z| of one group against the rest (statistics, F: S2)."""
HETEROGENEOUS_EFFECT = 0.1
"""Smaller differences between groups, in standard deviations, are real at many rows and no sign of a break."""
HETEROGENEOUS_RATE = 0.02
"""The same for the share of missing, unseen or otherwise unusable values."""
MOST_GROUPS = 200


RATE_WORDS = {
    "missing": "missing",
    "type_error": "of the wrong type",
    "unseen": "of a category never seen before",
    "infinite": "infinite",
    "below_min": "below the allowed minimum",
    "above_max": "above the allowed maximum",
}
"""What a rate of `contrasts` counts, after a share: `12.0% missing`."""


class Unit(Struct, frozen=True):
    """A change of unit: new = factor x old + offset."""

    factor: float
    offset: float
    said: str


_UNITS = (
    *(Unit(f, 0.0, f"{f:g} times what it was") for f in (10.0, 100.0, 1000.0)),
    *(Unit(1 / f, 0.0, f"a {f:g}th of what it was") for f in (10.0, 100.0, 1000.0)),
    Unit(1.8, 32.0, "1.8 times what it was, plus 32: Fahrenheit for Celsius"),
    Unit(1 / 1.8, -32.0 / 1.8, "Celsius for Fahrenheit"),
)


def unit_change(cuts: Cuts, window: FeatureState, baseline: FeatureState) -> Unit | None:
    """Return the change of unit that a number went through; None for none that is known.

    None, too, for a constant, below `LEAST_ROWS`, and where values lie too far out for exact moments.
    """
    if not isinstance(cuts, NumericCuts) or _short(cuts, window, baseline):
        return None
    (mean, sd), (usual, spread) = mean_sd(cuts, window), mean_sd(cuts, baseline)
    if mean is None or usual is None or not sd or not spread:
        return None
    for unit in _UNITS:
        fits = abs(math.log(sd / spread / unit.factor)) < SPREAD_TOLERANCE
        if fits and abs(mean - unit.factor * usual - unit.offset) < PLACE_TOLERANCE * sd:
            return unit
    return None


def collapse(cuts: Cuts, window: FeatureState, baseline: FeatureState) -> float | None:
    """Return the share of values that one bin holds where nearly all fell into it; None where not.

    A category's bin is one value; a number's is where it is narrow, or where all values hardly vary.
    """
    if _short(cuts, window, baseline):
        return None
    counts, usual = ordinary(cuts, window), ordinary(cuts, baseline)
    place = int(counts.argmax())
    share = float(counts[place] / counts.sum())
    if share < COLLAPSED_SHARE or usual[place] / usual.sum() > USUAL_SHARE:
        return None
    if isinstance(cuts, CategoryCuts):
        return share if place < len(cuts.categories) else None  # `other` is many values
    sd, spread = mean_sd(cuts, window)[1], mean_sd(cuts, baseline)[1]
    if cuts.atoms[place]:
        return share
    if not spread:
        return None
    inside = 0 < place < counts.size - 1
    if inside and cuts.edges[place] - cuts.edges[place - 1] <= NARROW * spread:
        return share
    return share if sd is not None and sd <= COLLAPSED_SPREAD * spread else None


def risen_rate(
    cuts: Cuts, window: FeatureState, baseline: FeatureState
) -> tuple[str, float, float, float] | None:
    """Return (rate, share now, share in the baseline, z) of the unusable values that rose most; None of none.

    Of missing values, wrong types, unseen categories and infinities.
    """
    if min(window.rows, baseline.rows) < LEAST_ROWS:
        return None
    special = ("unseen",) if isinstance(cuts, CategoryCuts) else ("infinite",)
    names = ("missing", "type_error", *special)
    now = np.array([rate_count(cuts, window, name) for name in names], dtype=np.float64)
    usual = np.array([rate_count(cuts, baseline, name) for name in names], dtype=np.float64)
    n, m = np.full(now.size, float(window.rows)), np.full(now.size, float(baseline.rows))
    z, effect = _two_shares(now, n, usual, m)
    at = int(z.argmax())
    if z[at] <= HETEROGENEOUS or effect[at] <= HETEROGENEOUS_RATE:
        return None
    return names[at], float(now[at] / n[at]), float(usual[at] / m[at]), float(z[at])


def broken_values(cuts: ModelCuts, window: PaneState, baseline: PaneState, onset_ms: int) -> Signs:
    """Return S1 of counts: features whose unit changed, whose values collapsed or cannot be used any more.

    Raises IncompatibleCuts when the states were counted under other cuts.
    """
    signs = []
    for name, cut in cuts.feature.items():
        now, usual = window.features.get(name), baseline.features.get(name)
        if now is None or usual is None:
            continue
        unit = unit_change(cut, now, usual)
        share = None if unit is not None else collapse(cut, now, usual)
        if unit is not None:
            text = f"{name} is {unit.said}: its unit changed."
            signs.append(_sign(name, text, onset_ms, unit.factor))
        elif share is not None:
            text = f"{name} is nearly constant: {share:.0%} of its values are in one bin."
            signs.append(_sign(name, text, onset_ms, share, COLLAPSED_SHARE))
        risen = risen_rate(cut, now, usual)
        if risen is not None:
            rate, at, before, z = risen
            text = f"{name}: {at:.1%} {RATE_WORDS[rate]}, it was {before:.1%} (z = {z:.1f})."
            signs.append(_sign(name, text, onset_ms, at, before))
    return tuple(signs)


def _sign(name: str, text: str, onset_ms: int, value: float, limit: float | None = None) -> Sign:
    return Sign(
        code=Code.DATA_QUALITY, subject=name, text=text, value=value, limit=limit, onset_ms=onset_ms
    )


def _short(cuts: Cuts, window: FeatureState, baseline: FeatureState) -> bool:
    rows = min(float(ordinary(cuts, state).sum()) for state in (window, baseline))
    return rows < LEAST_ROWS


# --- groups -------------------------------------------------------------------------------------------


def heterogeneity(
    cuts: ModelCuts, groups: Mapping[str, PaneState], onset_ms: int, what: str = "version"
) -> Signs:
    """Return the features in which one group differs from the rest, with the group that differs most.

    One group only: the others differ from a rest that holds it. `groups` are states of the same window by version, producer or partition (`what`); outputs are left out,
    because versions are made to answer differently. z is that of two means of independent rows. Groups of
    fewer than `LEAST_ROWS` rows with a value say nothing, and of more than 200 groups the largest count.

    Raises IncompatibleCuts when the states were counted under other cuts.
    """
    largest = sorted(groups, key=lambda name: (-groups[name].rows, name))[:MOST_GROUPS]
    if len(largest) < 2:
        return ()
    whole = reduce(PaneState.merge, (groups[name] for name in largest))
    inputs = Contrasts(
        tuple(
            source
            for source in Contrasts.of(cuts, Observed(state=whole)).sources
            if source.origin == "feature" and source.segment is None
        )
    )
    total = inputs.measure(Observed(state=whole), cuts)
    sum_x, sum_n = total.x * total.n, total.n
    differing: list[tuple[float, str, str, str, float]] = []
    # Of two, each differs from the other by as much: only the smaller is named.
    for name in sorted(largest[1:] if len(largest) == 2 else largest):
        mine = inputs.measure(Observed(state=groups[name]), cuts)
        others = sum_n - mine.n
        rest = (sum_x - mine.x * mine.n) / np.maximum(others, 1)
        z, effect = _two_means(mine.x, mine.n, rest, others)
        rate_z, rate_effect = _two_shares(
            mine.hits, mine.rows, total.hits - mine.hits, total.rows - mine.rows
        )
        for names, scores, effects, least in (
            (inputs.contrast_names, z, effect, HETEROGENEOUS_EFFECT),
            (inputs.rate_names, rate_z, rate_effect, HETEROGENEOUS_RATE),
        ):
            for (source, label), one, size in zip(names, scores.tolist(), effects, strict=True):
                if abs(one) > HETEROGENEOUS and abs(size) > least:
                    differing.append((abs(one), source, label, name, one))
    strongest: dict[str, tuple[float, str, str, str, float]] = {}
    for each in sorted(differing, key=lambda each: (-each[0], each[1:4])):
        strongest.setdefault(each[1], each)
    return tuple(
        Sign(
            code=Code.HETEROGENEITY,
            subject=f"{source} of {what} {name}",
            text=f"{source} of {what} {name} is not like the rest: {label} differs, z = {one:.1f}.",
            value=one,
            limit=HETEROGENEOUS,
            onset_ms=onset_ms,
        )
        for _, source, label, name, one in strongest.values()
    )


def _two_means(a: Floats, n: Floats, b: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Return z and difference of two means of standardised contrasts; 0 where a side is short."""
    enough = (n >= LEAST_ROWS) & (m >= LEAST_ROWS)
    effect = np.where(enough, a - b, 0)
    return effect / np.sqrt(1 / np.maximum(n, 1) + 1 / np.maximum(m, 1)), effect


def _two_shares(k: Floats, n: Floats, j: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Return pooled z and difference of two shares; 0 where a side is short."""
    enough = (n >= LEAST_ROWS) & (m >= LEAST_ROWS)
    effect = np.where(enough, k / np.maximum(n, 1) - j / np.maximum(m, 1), 0)
    p = (k + j) / np.maximum(n + m, 1)
    spread = np.sqrt(p * (1 - p) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1)))
    return effect / np.maximum(spread, 1e-12), effect
