"""What the detector looks at: orthonormal contrasts of a window's bin counts, and rates of special bins.

Both are linear in counts, so they are the same at every roll-up and for every split of the rows. They are
fixed with the baseline (its bin shares), as cuts are, and say nothing about what variation is usual: that is
`calibration`.

Notation
    p[b]    share of bin b in the baseline, over a source's ordinary bins
    u[b]    cumsum(p)[b] - p[b] / 2, the middle of bin b on the scale of ranks
    H[b,k]  contrast k: E_p[h] = 0, Var_p[h] = 1
    x[k]    sum_b H[b,k] c[b] / n, c a window's counts and n their sum: what the detector follows
A numeric source has up to 4 smooth contrasts, the orthogonal polynomials of 2u - 1 under p (Neyman 1937:
location, spread, skew, tails; |x[1]| = .05 is about .051 standard deviations of a shifted Gaussian), and 8
standardised indicators of the octiles (local spikes, default values). A category source has the standardised
indicator of each category with p > .001, and one of the others together.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import FeatureState
from trimtab.stats.cuts import SPECIAL_BINS, CategoryCuts, Cuts, ModelCuts, special_index

Floats = npt.NDArray[np.float64]

SMOOTH = 4
OCTILES = 8
LEAST_SHARE = 0.001
"""A category below this share of the baseline has no contrast of its own."""
SMOOTH_WEIGHT, LOCAL_WEIGHT, RATE_WEIGHT = 0.5, 0.25, 0.25
CATEGORY_WEIGHT = 0.75
SCORE_WEIGHT = 0.2
"""Share of the whole weight that the model's answers (score, prediction) have together."""


class SourceContrasts(Struct, frozen=True, kw_only=True):
    """The contrasts and rates of one feature or output."""

    name: str
    """A feature's name; an output's as `output:score`."""
    matrix: Floats
    """H, shape (ordinary bins, contrasts)."""
    labels: tuple[str, ...]
    """What each contrast means, such as `location` or `category web`."""
    weights: tuple[float, ...]
    """Of each contrast; with the rates' weights they sum to 1, or less where a source has fewer kinds."""
    rates: tuple[str, ...]
    """Names of its rates: `missing`, `type_error`, `unseen`, `infinite`, `below_min`, `above_max`."""

    @property
    def size(self) -> int:
        """How many contrasts."""
        return int(self.matrix.shape[1])


class Measured(Struct, frozen=True):
    """One window as the detector reads it."""

    x: Floats
    """Contrasts, shape (K,); 0 where no row holds a value."""
    n: Floats
    """Rows that hold a value, per contrast, shape (K,)."""
    hits: Floats
    """Rows of each rate's special bin, shape (R,)."""
    rows: Floats
    """Rows of each rate's source, shape (R,)."""


class Contrasts(Struct, frozen=True):
    """The contrasts of a model: its features in the contract's order, then its outputs."""

    sources: tuple[SourceContrasts, ...]

    @classmethod
    def of(
        cls, cuts: ModelCuts, baseline: Observed, bounded: Mapping[str, Sequence[str]] = {}
    ) -> "Contrasts":
        """Build them from the baseline's counts. `bounded` names the bounds a feature has: below_min, above_max.

        A source without a value in the baseline has rates only.
        """
        named = [
            (name, feature, baseline.state.features.get(name))
            for name, feature in cuts.feature.items()
        ]
        named += [
            (f"output:{name}", output, baseline.state.outputs.get(name))
            for name, output in cuts.output.items()
        ]
        return cls(
            tuple(
                _source(name, cut, state, bounded.get(name, ()))
                for name, cut, state in named
                if state is not None
            )
        )

    @property
    def contrast_names(self) -> list[tuple[str, str]]:
        """(source, label) of each contrast, in order."""
        return [(s.name, label) for s in self.sources for label in s.labels]

    @property
    def rate_names(self) -> list[tuple[str, str]]:
        """(source, rate) of each rate, in order."""
        return [(s.name, rate) for s in self.sources for rate in s.rates]

    def weights(self) -> tuple[Floats, Floats]:
        """Return the weights of contrasts, shape (K,), and rates, shape (R,); together they sum to 1 or less.

        The model's answers have a fifth, the features share the rest evenly.
        """
        outputs = sum(s.name.startswith("output:") for s in self.sources)
        features = len(self.sources) - outputs
        whole = 1 - SCORE_WEIGHT if outputs and features else 1.0
        each = {
            True: (1 - whole if features else 1.0) / max(outputs, 1),
            False: whole / max(features, 1),
        }
        contrasts: list[float] = []
        rates: list[float] = []
        for source in self.sources:
            share = each[source.name.startswith("output:")]
            contrasts += [share * w for w in source.weights]
            rates += [share * RATE_WEIGHT / max(len(source.rates), 1)] * len(source.rates)
        return np.array(contrasts), np.array(rates)

    def measure(self, window: Observed, cuts: ModelCuts) -> Measured:
        """Read a window's counts. A source that the window lacks has no rows."""
        x: list[Floats] = []
        n: list[float] = []
        hits: list[int] = []
        rows: list[int] = []
        for source in self.sources:
            is_output = source.name.startswith("output:")
            name = source.name.removeprefix("output:")
            found = (window.state.outputs if is_output else window.state.features).get(name)
            cut = (cuts.output if is_output else cuts.feature)[name]
            counts = np.zeros(source.matrix.shape[0])
            if found is not None:
                counts = ordinary(cut, found)
            total = float(counts.sum())
            # Bin after bin: the same sum on every machine, which a matrix product is not.
            summed = np.add.reduce(counts[:, None] * source.matrix, axis=0)
            x.append(summed / total if total else np.zeros(source.size))
            n += [total] * source.size
            hits += [0 if found is None else rate_count(cut, found, rate) for rate in source.rates]
            rows += [0 if found is None else found.rows] * len(source.rates)
        return Measured(
            np.concatenate(x) if x else np.zeros(0),
            np.array(n),
            np.array(hits, dtype=np.float64),
            np.array(rows, dtype=np.float64),
        )


def bounds_of(contract: Contract) -> dict[str, tuple[str, ...]]:
    """Return the bounds that a contract declares, by feature: whose breaches are rates."""
    found: dict[str, tuple[str, ...]] = {}
    for name, feature in contract.features.items():
        sides = (("below_min", feature.min), ("above_max", feature.max))
        named = tuple(side for side, limit in sides if limit is not None)
        if named:
            found[name] = named
    return found


def ordinary(cut: Cuts, state: FeatureState) -> Floats:
    """Return the counts that contrasts are made of: of all numbers' bins; of categories and `other`."""
    counts = state.counts[:-SPECIAL_BINS]
    if isinstance(cut, CategoryCuts):
        counts = (*counts, state.counts[special_index(cut, "other")])
    return np.array(counts, dtype=np.float64)


def rate_count(cut: Cuts, state: FeatureState, rate: str) -> int:
    """Return the rows that a rate counts."""
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


def _source(name: str, cut: Cuts, state: FeatureState, bounds: Sequence[str]) -> SourceContrasts:
    counts = ordinary(cut, state)
    if isinstance(cut, CategoryCuts):
        matrix, labels, weights = category_contrasts(counts, (*cut.categories, "other"))
        rates: tuple[str, ...] = ("missing", "type_error", "unseen")
    else:
        matrix, labels, weights = numeric_contrasts(counts)
        rates = ("missing", "type_error", "infinite", *bounds)
    return SourceContrasts(name=name, matrix=matrix, labels=labels, weights=weights, rates=rates)


def numeric_contrasts(counts: Floats) -> tuple[Floats, tuple[str, ...], tuple[float, ...]]:
    """Return H, labels and weights for the bin counts of a number in the baseline, shape (B,)."""
    total = counts.sum()
    filled = int(np.count_nonzero(counts))
    if filled < 2:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / total
    u = np.cumsum(p) - p / 2
    smooth = _polynomials(p, 2 * u - 1, min(SMOOTH, filled - 1))
    groups = min(OCTILES, filled)
    group = np.minimum((u * groups).astype(np.int64), groups - 1)
    local = [_indicator(p, group == g) for g in range(groups)]
    labels = [f"octile {g + 1} of {groups}" for g in range(groups) if local[g] is not None]
    columns = [column for column in local if column is not None]
    names = ("location", "spread", "skew", "tails")[: smooth.shape[1]]
    weights = [SMOOTH_WEIGHT / len(names)] * len(names)
    weights += [LOCAL_WEIGHT / max(len(columns), 1)] * len(columns)
    return np.column_stack([smooth, *columns]), (*names, *labels), tuple(weights)


def category_contrasts(
    counts: Floats, categories: Sequence[str]
) -> tuple[Floats, tuple[str, ...], tuple[float, ...]]:
    """Return H, labels and weights for the counts of categories in the baseline, shape (B,)."""
    total = counts.sum()
    if not total:
        return np.zeros((counts.size, 0)), (), ()
    p = counts / total
    common = p > LEAST_SHARE
    columns = [
        (f"category {categories[b]}", _indicator(p, np.arange(p.size) == b))
        for b in np.flatnonzero(common).tolist()
    ]
    if np.count_nonzero(~common):
        rest = _indicator(p, ~common) if p[~common].sum() > LEAST_SHARE else None
        columns.append(("rare categories", rest))
    kept = [(label, column) for label, column in columns if column is not None]
    matrix = np.column_stack([c for _, c in kept]) if kept else np.zeros((counts.size, 0))
    weight = CATEGORY_WEIGHT / max(len(kept), 1)
    return matrix, tuple(label for label, _ in kept), (weight,) * len(kept)


def _polynomials(p: Floats, at: Floats, degree: int) -> Floats:
    """Orthonormal polynomials 1 .. degree of `at` under the weights p (Gram-Schmidt, done twice)."""
    basis = [np.ones_like(p)]
    for power in range(1, degree + 1):
        column = at**power
        for _ in range(2):
            for known in basis:
                column = column - (p * column * known).sum() * known
        basis.append(column / np.sqrt((p * column * column).sum()))
    return np.column_stack(basis[1:]) if degree else np.zeros((p.size, 0))


def _indicator(p: Floats, inside: npt.NDArray[np.bool_]) -> Floats | None:
    """The standardised indicator of some bins; None where it is constant under p."""
    share = float(p[inside].sum())
    if not 0 < share < 1:
        return None
    return np.asarray((inside - share) / math.sqrt(share * (1 - share)), dtype=np.float64)
