"""Sources: what the detector looks at of a window, each with its contrasts and rates, and how it is read.

| source | counted | contrasts | alarms on |
|---|---|---|---|
| FEATURE, `output:NAME` | bins of the cuts | smooth and octiles; categories | any change |
| `latency_ms`, `resources:GAUGE` | log buckets, merged to at most 64 bins | `rising_contrasts` | a rise |
| `volume` | rows | UNIT log2(rows + 20), turned round | a fall |
| `rows` | rows that broke a rule, failed or timed out | rates only | a rise |
| `outliers` | rows unlike the reference (`stats.outliers`) | a rate only | a rise |
| `segment COLUMN=VALUE:FEATURE`, `...:output:NAME` | as of FEATURE, of the segment's rows | location and spread; \
categories above 5 % | any change |
| `joint:COLUMN x COLUMN` | the row sample: `stats.joint` | rank correlation, as Fisher's z | any change |

A feature that is called like another source has `feature:` before its name.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from scipy.special import ndtr, ndtri

from trimtab.contracts.model import Contract
from trimtab.detect.observed import Observed
from trimtab.detect.orthonormal import (
    RATE_WEIGHT,
    SMOOTH_LABELS,
    Floats,
    angle,
    category_contrasts,
    numeric_contrasts,
    rising_contrasts,
    smooth_contrasts,
)
from trimtab.records import Kind
from trimtab.stats.aggregate import FeatureState, PaneState
from trimtab.stats.cuts import SPECIAL_BINS, CategoryCuts, Cuts, ModelCuts, special_index
from trimtab.stats.joint import LEAST_ROWS, MOST_COLUMNS, JointColumn
from trimtab.stats.loghistogram import LogHistogram
from trimtab.stats.outliers import LEAST_FEATURES, LEAST_HELD_ROWS, finds_outliers
from trimtab.windows import abnormal

Origin = Literal["feature", "output", "latency", "resource", "rows", "volume", "joint"]

RISING_BINS = 64
"""Most bins that log buckets are merged to."""
LEAST_SAMPLES = 10
"""Samples of a gauge that a window needs, and a usual window of the baseline."""
VOLUME_UNIT = 0.085
"""A halving of the rows moves the contrast of the volume by this: a floor of .05 is a fall by a third."""
VOLUME_OFFSET = 20
"""Added to the rows: of fewer than this many, no window tells that there are too few."""
VOLUME_ROWS = 1e6
"""What stands for the `n` of the volume: all its variation is one between windows."""
ROW_RATES = (abnormal.REQUEST, *abnormal.RESPONSE_RULES)
"""Rates of `rows`: requests that broke a rule of the contract; responses by the rule that they broke."""

JOINT_LABEL = "rank correlation"
JOINT_LEAST_WINDOWS = 48
"""Windows of the baseline with enough sampled rows."""
JOINT_LEAST_CORNER = 5
"""n v w of a pair, v and w the variances of its scores: of two values of categories about the rows that hold both
where both are rare. Of fewer, a correlation is too skewed to be followed (Cochran 1954)."""

SEGMENT_SMOOTH = 2
SEGMENT_LEAST_SHARE = 0.05
SEGMENT_CONTRASTS_MOST = 400
"""Segments are taken by their rows until they have so many contrasts: each costs some 10 µs per window."""


class SourceContrasts(Struct, frozen=True, kw_only=True):
    """The contrasts and rates of one source."""

    name: str
    """A feature's name; `output:score`, `latency_ms`, `resources:cpu_percent`, `volume`, `rows`, `outliers`, \
`segment channel=web:income`."""
    matrix: Floats
    """H, shape (bins, contrasts)."""
    labels: tuple[str, ...]
    """What each contrast means, such as `location` or `category web`."""
    weights: tuple[float, ...]
    """Of each contrast; with the rates' weights they sum to 1, or less where a source has fewer kinds."""
    rates: tuple[str, ...]
    """Names of its rates: `missing`, `type_error`, `unseen`, `infinite`, `below_min`, `above_max`, `new_values`,
    `invalid`; of `rows` those of `windows.abnormal`."""
    kind: Kind = Kind.INPUT
    """What a finding on its contrasts is about."""
    usual: tuple[float, ...] = ()
    """Share of each bin in the baseline."""
    origin: Origin = "feature"
    column: str = ""
    """Name of the feature, output or gauge; of a pair its first column."""
    other: str = ""
    """Of a pair its second column."""
    segment: str | None = None
    """`column=value` of the segment whose rows are counted; None: all rows."""
    ends: tuple[int, ...] = ()
    """Of log buckets: the last bucket of each bin but the last, whose end is open."""
    shares: tuple[float, ...] = ()
    """The last contrasts, so many as these, are shares of rows, read as angles (`orthonormal.angle`); what each is
    in the baseline."""
    new_bins: tuple[int, ...] = ()
    """Ordinary bins in which the baseline has no row. Contrasts hardly weigh them, and a constant has no contrast:
    the rate `new_values` counts their rows."""
    directed: bool = False
    """Only a rise of its contrasts is evidence."""
    least_rows: int | None = None
    """Values a window needs to be read; None: the model's `min_rows`."""
    rate_weight: float = RATE_WEIGHT

    @property
    def size(self) -> int:
        """How many contrasts."""
        return int(self.matrix.shape[1])


class Skipped(Struct, frozen=True):
    """What would be a source, and why it is none."""

    name: str
    """A source, or `segment COLUMN=VALUE` for all that are of it."""
    why: str


class Reading(Struct, frozen=True):
    """A window as one source reads it."""

    x: Floats
    """Shape (contrasts,)."""
    n: float
    hits: list[int]
    rows: int


def bounds_of(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Return which bounds each number of the contract has: `below_min`, `above_max`."""
    return {
        name: tuple(
            rate
            for rate, bound in (("below_min", feature.min), ("above_max", feature.max))
            if bound is not None
        )
        for name, feature in contract.features.items()
        if feature.kind == "number"
    }


# --- building -----------------------------------------------------------------------------------


def sources_of(
    cuts: ModelCuts,
    baseline: Observed,
    bounded: Mapping[str, Sequence[str]],
    windows: int,
    min_rows: int,
) -> tuple[list[SourceContrasts], list[Skipped]]:
    """Return the sources of a model in order, and what is none: see `Contrasts.of`."""
    sources: list[SourceContrasts] = []
    skipped: list[Skipped] = []
    for name, cut in cuts.feature.items():
        state = baseline.state.features.get(name)
        if state is not None:
            sources.append(_column(name, "feature", cut, state, bounded.get(name, ())))
    for name, cut in cuts.output.items():
        state = baseline.state.outputs.get(name)
        if state is not None:
            sources.append(_column(name, "output", cut, state, ()))
    measured: list[tuple[Origin, str, LogHistogram]] = [
        ("latency", "latency_ms", baseline.state.latency_ms)
    ]
    measured += [("resource", name, g) for name, g in sorted(baseline.resources.gauges.items())]
    for origin, column, histogram in measured:
        if not histogram.count:
            continue
        least = None if origin == "latency" else LEAST_SAMPLES
        wanted = min_rows if least is None else least
        usual = histogram.count / windows
        name = column if origin == "latency" else f"resources:{column}"
        if usual < wanted:
            skipped.append(
                Skipped(name, f"{usual:.3g} values in a usual window; it needs {wanted}")
            )
        else:
            sources.append(_rising(name, origin, column, histogram, least))
    if baseline.state.rows:
        sources.append(_volume())
        sources.append(_rates("rows", ROW_RATES, Kind.DATA_QUALITY))
        if finds_outliers(cuts):
            # Whether a change of the world or broken data made them, they do not tell.
            sources.append(_rates("outliers", (abnormal.OUTLIER,), Kind.INPUT))
        elif cuts.outliers is not None:
            rows = cuts.outliers.held_rows
            why = f"the cuts come from {rows} rows; to score rows takes {LEAST_HELD_ROWS}"
            if rows >= LEAST_HELD_ROWS:
                why = f"an outlier is unusual in several features; that takes {LEAST_FEATURES} at least"
            skipped.append(Skipped("outliers", why))
    pairs, unpaired = _joint(cuts, baseline, {source.name for source in sources})
    sources += pairs
    skipped += unpaired
    found, left_out = _segments(cuts, baseline, windows, min_rows)
    return [*sources, *found], [*skipped, *left_out]


def feature_source(name: str) -> str:
    """Return the name of a feature's source: its own, unless another source has that."""
    taken = name in ("latency_ms", "outliers", "rows", "volume")
    if taken or name.startswith(("feature:", "output:", "resources:", "joint:", "segment ")):
        return f"feature:{name}"
    return name


def _column(
    column: str, origin: Origin, cut: Cuts, state: FeatureState, bounds: Sequence[str]
) -> SourceContrasts:
    counts = ordinary(cut, state)
    if isinstance(cut, CategoryCuts):
        matrix, labels, weights = category_contrasts(counts, (*cut.categories, "other"))
        rates: tuple[str, ...] = ("missing", "type_error", "unseen")
    else:
        matrix, labels, weights = numeric_contrasts(counts)
        rates = ("missing", "type_error", "infinite", *bounds)
    new_bins = _new_bins(cut, counts)
    if new_bins:
        rates = (*rates, "new_values")
    return SourceContrasts(
        name=feature_source(column) if origin == "feature" else f"output:{column}",
        matrix=matrix,
        labels=labels,
        weights=weights,
        rates=rates,
        usual=_shares(counts),
        kind=Kind.INPUT if origin == "feature" else Kind.PREDICTION,
        origin=origin,
        column=column,
        new_bins=new_bins,
    )


def _new_bins(cut: Cuts, counts: Floats) -> tuple[int, ...]:
    """Return the ordinary bins that the baseline left empty, where it has rows at all.

    Without `others` nothing is ever counted as `other`.
    """
    empty = counts == 0
    if isinstance(cut, CategoryCuts) and not cut.others:
        empty[-1] = False
    return tuple(np.flatnonzero(empty).tolist()) if counts.any() else ()


def _rising(
    name: str,
    origin: Origin,
    column: str,
    state: LogHistogram,
    least_rows: int | None,
) -> SourceContrasts:
    ends = bucket_ends(state)
    counts = bucket_counts(ends, state)
    matrix, labels, weights = rising_contrasts(counts)
    means = _means(matrix, counts)[0].tolist()
    return SourceContrasts(
        name=name,
        matrix=matrix,
        labels=labels,
        weights=weights,
        rates=("invalid",),
        usual=_shares(counts),
        kind=Kind.RESOURCES,
        origin=origin,
        column=column,
        ends=ends,
        shares=tuple(
            share for label, share in zip(labels, means, strict=True) if label != "location"
        ),
        directed=True,
        least_rows=least_rows,
    )


def _volume() -> SourceContrasts:
    return SourceContrasts(
        name="volume",
        matrix=np.zeros((1, 1)),
        labels=("fewer rows",),
        weights=(1.0,),
        rates=(),
        kind=Kind.VOLUME,
        origin="volume",
        directed=True,
        least_rows=0,
        rate_weight=0.0,
    )


def _rates(name: str, rates: tuple[str, ...], kind: Kind) -> SourceContrasts:
    """Return a source of rates of all rows."""
    return SourceContrasts(
        name=name,
        matrix=np.zeros((1, 0)),
        labels=(),
        weights=(),
        rates=rates,
        kind=kind,
        origin="rows",
        rate_weight=1.0,
    )


def bucket_ends(state: LogHistogram) -> tuple[int, ...]:
    """Return where log buckets are merged: at quantiles of the baseline, at most 64 bins of about equal mass.

    The last bin begins beyond all that the baseline holds.
    """
    indices = np.array([index for index, _ in state.buckets])
    reached = np.cumsum([count for _, count in state.buckets]) / state.count
    levels = np.append(np.arange(1, RISING_BINS - 2) / (RISING_BINS - 2), 0.99)
    places = np.minimum(reached.searchsorted(levels - 1e-12), indices.size - 1)
    return tuple(sorted({*indices[places].tolist(), int(indices[-1])}))


def bucket_counts(ends: Sequence[int], state: LogHistogram) -> Floats:
    """Return the values in each bin of merged log buckets, shape (len(ends) + 1,)."""
    counts = np.zeros(len(ends) + 1)
    for index, count in state.buckets:
        counts[bisect_left(ends, index)] += count
    return counts


def _joint(
    cuts: ModelCuts, baseline: Observed, taken: set[str]
) -> tuple[list[SourceContrasts], list[Skipped]]:
    """The pairs of columns that the baseline's samples tell enough of."""
    spread = _score_variances(cuts, baseline.state)
    sources: list[SourceContrasts] = []
    poor: list[str] = []
    why = ""
    for (a, b), pair in baseline.joint.pairs.items():
        usual = pair.rows / pair.windows
        corner = usual * spread.get(a, 0.0) * spread.get(b, 0.0)
        name = f"joint:{a} x {b}"
        if pair.windows < JOINT_LEAST_WINDOWS:
            lacks = f"{pair.windows} windows with {LEAST_ROWS} sampled rows; a pair needs {JOINT_LEAST_WINDOWS}"
        elif corner < JOINT_LEAST_CORNER:
            lacks = f"too few of {usual:.3g} sampled rows hold rare values of both"
        elif name in taken:
            lacks = "another source has this name"
        else:
            taken.add(name)
            sources.append(_pair(name, a, b))
            continue
        poor.append(name)
        why = why or lacks
    if len(poor) > 1:
        why = f"{why} (and {len(poor) - 1} more pairs for the like)"
    skipped = [Skipped(poor[0], why)] if poor else []
    paired = {name.partition("=")[0] for pair in baseline.joint.pairs for name in pair}
    single = [name for name in cuts.feature if name not in paired]
    if paired and single:
        why = f"{len(single)} features are in no pair: personal, constant, or after the first {MOST_COLUMNS}"
        skipped.append(Skipped("joint", f"{why} columns"))
    return sources, skipped


def _pair(name: str, a: str, b: str) -> SourceContrasts:
    return SourceContrasts(
        name=name,
        matrix=np.zeros((1, 1)),
        labels=(JOINT_LABEL,),
        weights=(1.0,),
        rates=(),
        origin="joint",
        column=a,
        other=b,
        least_rows=LEAST_ROWS,
        rate_weight=0.0,
    )


def _score_variances(cuts: ModelCuts, baseline: PaneState) -> dict[str, float]:
    """Variance of the scores of each column that may be paired, by its name: 1/3 of a number without ties.

    (1 - sum p^3) / 3 of mid-ranks from -1 to 1; p (1 - p) of one value against all others.
    """
    found: dict[str, float] = {}
    for name, cut in cuts.feature.items():
        state = baseline.features.get(name)
        counts = None if state is None else ordinary(cut, state)
        if counts is None or not counts.sum():
            continue
        p = counts / counts.sum()
        if isinstance(cut, CategoryCuts):
            shares = zip(cut.categories, p.tolist(), strict=False)
            found |= {JointColumn(name, value).name: q * (1 - q) for value, q in shares}
        else:
            found[name] = float(1 - (p**3).sum()) / 3
    return found


def _segments(
    cuts: ModelCuts, baseline: Observed, windows: int, min_rows: int
) -> tuple[list[SourceContrasts], list[Skipped]]:
    sources: list[SourceContrasts] = []
    skipped: list[Skipped] = []
    contrasts = 0
    ranked = sorted(baseline.segments.items(), key=lambda item: (-item[1].rows, item[0]))
    for segment, state in ranked:
        name = f"segment {segment}"
        usual = state.rows / windows
        if usual < min_rows:
            why = f"{usual:.3g} rows in a usual window; a segment needs {min_rows}"
            skipped.append(Skipped(name, why))
            continue
        found = _segment(cuts, segment, state)
        size = sum(source.size for source in found)
        if contrasts + size > SEGMENT_CONTRASTS_MOST:
            left = SEGMENT_CONTRASTS_MOST - contrasts
            why = f"its {size} contrasts exceed the {left} left of {SEGMENT_CONTRASTS_MOST}"
            skipped.append(Skipped(name, f"{why}, which larger segments have taken"))
            continue
        contrasts += size
        sources += found
    order = {name: place for place, name in enumerate(baseline.segments)}
    return sorted(sources, key=lambda s: order[s.segment or ""]), skipped


def _segment(cuts: ModelCuts, segment: str, state: PaneState) -> list[SourceContrasts]:
    own = segment.partition("=")[0]
    found: list[SourceContrasts] = []
    for origin, cut_of, states in (
        ("feature", cuts.feature, state.features),
        ("output", cuts.output, state.outputs),
    ):
        for column, cut in cut_of.items():
            counted = states.get(column)
            if counted is None or (origin == "feature" and column == own):
                continue
            counts = ordinary(cut, counted)
            if isinstance(cut, CategoryCuts):
                matrix, labels, weights = category_contrasts(
                    counts, (*cut.categories, "other"), SEGMENT_LEAST_SHARE, with_rare=False
                )
            else:
                degree = SEGMENT_SMOOTH if origin == "feature" else 1
                matrix, labels, weights = smooth_contrasts(counts, degree)
            prefix = "output:" if origin == "output" else ""
            found.append(
                SourceContrasts(
                    name=f"segment {segment}:{prefix}{column}",
                    matrix=matrix,
                    labels=labels,
                    weights=weights,
                    rates=("missing",) if origin == "feature" else (),
                    usual=_shares(counts),
                    kind=Kind.INPUT if origin == "feature" else Kind.PREDICTION,
                    origin="feature" if origin == "feature" else "output",
                    column=column,
                    segment=segment,
                )
            )
    return [source for source in found if source.size or source.rates]


# --- reading ------------------------------------------------------------------------------------


def read(source: SourceContrasts, window: Observed, cuts: ModelCuts) -> Reading:
    """Read a window's counts. Where it lacks the source, it has no rows."""
    match source.origin:
        case "feature" | "output":
            return _read_column(source, window, cuts)
        case "latency":
            return _read_buckets(source, window.state.latency_ms)
        case "resource":
            gauge = window.resources.gauges.get(source.column, LogHistogram())
            return _read_buckets(source, gauge)
        case "rows":
            hits = [window.state.rules.get(rate, 0) for rate in source.rates]
            return Reading(np.zeros(0), 0.0, hits, window.state.rows)
        case "volume":
            fewer = -VOLUME_UNIT * math.log2(window.state.rows + VOLUME_OFFSET)
            return Reading(np.array([fewer]), VOLUME_ROWS, [], 0)
        case "joint":
            pair = window.joint.pairs.get((source.column, source.other))
            if pair is None:
                return Reading(np.zeros(1), 0.0, [], 0)
            return Reading(np.array([pair.z]), pair.rows / pair.windows, [], 0)


def _read_column(source: SourceContrasts, window: Observed, cuts: ModelCuts) -> Reading:
    state = window.state if source.segment is None else window.segments.get(source.segment)
    found: FeatureState | None = None
    if state is not None:
        columns = state.outputs if source.origin == "output" else state.features
        found = columns.get(source.column)
    if found is None:
        return Reading(np.zeros(source.size), 0.0, [0] * len(source.rates), 0)
    cut = (cuts.output if source.origin == "output" else cuts.feature)[source.column]
    counts = ordinary(cut, found)
    x, n = _means(source.matrix, counts)
    hits = [
        int(counts[list(source.new_bins)].sum())
        if rate == "new_values"
        else rate_count(cut, found, rate)
        for rate in source.rates
    ]
    return Reading(x, n, hits, found.rows)


def _read_buckets(source: SourceContrasts, state: LogHistogram) -> Reading:
    x, n = _means(source.matrix, bucket_counts(source.ends, state))
    linear = source.size - len(source.shares)
    if n:
        x[linear:] = angle(x[linear:], n)
    hits = [state.invalid] * len(source.rates)
    return Reading(x, n, hits, state.count + state.invalid)


def share_moved(source: SourceContrasts, what: str, effect: float) -> tuple[float, float] | None:
    """Return the share of rows that an indicator counts, in the baseline and moved by `effect`.

    None for contrasts that count no share: smooth ones, the volume, correlations.
    """
    counts_share = source.origin not in ("volume", "joint")
    if what not in source.labels or what in SMOOTH_LABELS or not counts_share:
        return None
    place = source.labels.index(what)
    angles = place - (source.size - len(source.shares))
    if angles >= 0:
        usual = source.shares[angles]
        moved = 2 * math.asin(math.sqrt(usual)) + effect
        return usual, math.sin(min(max(moved, 0.0), math.pi) / 2) ** 2
    # An indicator is (1 - p) / s inside its bins and -p / s outside.
    column = source.matrix[:, place]
    scale = float(column.max() - column.min())
    if not scale:
        return None
    p = float(-column.min()) / scale
    return p, min(max(p + effect / scale, 0.0), 1.0)


def shifted(source: SourceContrasts, shift_sd: float) -> Floats:
    """Return what each contrast of a number moves by when its values shift by so many sd, shape (contrasts,).

    As if it were a normal of the same ranks: bin b then holds Phi(z[b + 1] - shift) - Phi(z[b] - shift), z the
    normal quantiles of the baseline's cumulative shares.
    """
    usual = np.array(source.usual)
    z = ndtri(np.clip(np.concatenate([[0.0], np.cumsum(usual)]), 0, 1))
    z[-1] = np.inf
    moved, was = (np.array(source.matrix.T @ p) for p in (np.diff(ndtr(z - shift_sd)), usual))
    linear = source.size - len(source.shares)
    for means in (moved, was):
        means[linear:] = 2 * np.arcsin(np.sqrt(np.clip(means[linear:], 0, 1)))
    by: Floats = moved - was
    return by


def _shares(counts: Floats) -> tuple[float, ...]:
    return tuple((counts / max(float(counts.sum()), 1.0)).tolist())


def _means(matrix: Floats, counts: Floats) -> tuple[Floats, float]:
    """Mean of each contrast over the rows counted, and how many these are."""
    total = float(counts.sum())
    if not total:
        return np.zeros(matrix.shape[1]), 0.0
    # Bin after bin: the same sum on every machine, which a matrix product is not.
    return np.add.reduce(counts[:, None] * matrix, axis=0) / total, total


def ordinary(cut: Cuts, state: FeatureState) -> Floats:
    """Return the counts that contrasts are made of: of all numbers' bins; of categories and `other`."""
    counts = state.counts[:-SPECIAL_BINS]
    if isinstance(cut, CategoryCuts):
        counts = (*counts, state.counts[special_index(cut, "other")])
    return np.array(counts, dtype=np.float64)


def rate_count(cut: Cuts, state: FeatureState, rate: str) -> int:
    """Return the rows of a feature or output that a rate counts. Raises ValueError for no such rate."""
    match rate:
        case "below_min":
            return state.below_min
        case "above_max":
            return state.above_max
        case "infinite":
            infinite = (
                special_index(cut, "negative_infinity"),
                special_index(cut, "positive_infinity"),
            )
            return sum(state.counts[place] for place in infinite)
        case "missing":
            return state.missing
        case "type_error":
            return state.type_errors
        case "unseen":
            return state.counts[special_index(cut, "unseen")]
    raise ValueError(f"There is no rate {rate!r}.")
