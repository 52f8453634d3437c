"""Cuts: the fixed bins in which a feature is counted. They say nothing about what is normal.

Counts under the same cuts add up across partitions, panes and versions, and a new baseline is a refit
of stored counts (cuts and baselines are separate). Only `ModelCuts.outliers` does: which rows are outliers is
counted with the rows, so it is fixed with the cuts.

Notation
    m      number of edges c[0] < c[1] < ... < c[m-1], all finite
    bins   m + 1 right-closed bins (c[k-1], c[k]], the first from -max, the last to +max
    atom   a bin that holds exactly one float64 value v: its edges are nextafter(v, -inf) and v
    B      target number of bins, 64: the binned KS statistic is then off by about .58/sqrt(B n_e)
           before, and a tenth of it after the correction in `tests` (measured on normal, n 200 to 50k)

Layout of a count vector: the ordinary bins or categories, then four special bins, the same first two
for both kinds:
    number    ... | missing | type_error | negative_infinity | positive_infinity
    category  ... | missing | type_error | unseen            | other
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from trimtab.errors import TrimtabError
from trimtab.stats.grid import Grid
from trimtab.stats.surprise import BEYOND, Outliers

BINS = 64
MOST_CATEGORIES = 50
OTHERS_KEPT = 1_000
MAX_CATEGORY_CHARS = 256
MAX_EDGES = 4 * 1_024

NUMERIC_SPECIAL = ("missing", "type_error", "negative_infinity", "positive_infinity")
CATEGORY_SPECIAL = ("missing", "type_error", "unseen", "other")
SPECIAL_BINS = 4

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_LARGEST = float(np.finfo(np.float64).max)
_REFERENCE_BITS = 18
_TAILS = (0.25, 0.05, 0.01, 0.001, 0.0)
_EXPONENT_LIMIT = 1_000


class CutsError(TrimtabError):
    """Cuts cannot be built or read; the text says what is wrong with them."""


def _digest(value: object, hex_digits: int) -> str:
    # json writes floats by repr, so equal floats give equal text on every platform.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:hex_digits]


class NumericCuts(msgspec.Struct, frozen=True, dict=True, tag_field="kind", tag="number"):
    """Bins of a numeric feature, and the scale of its exact sums.

    `origin` and `exponent` place a value on the integer grid of `fixedpoint`: the middle half of the reference
    is about 2**18 steps wide. `single` rounds values to float32 first, for a reference that came as
    float32, so that 0.1 from JSON meets the same atom.
    """

    edges: tuple[float, ...]
    origin: float = 0.0
    exponent: int = 0
    single: bool = False

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges, dtype=np.float64)
        if edges.size > MAX_EDGES:
            raise CutsError(f"{edges.size} edges; a feature has at most {MAX_EDGES}.")
        if not np.isfinite(edges).all() or not (edges[1:] > edges[:-1]).all():
            raise CutsError(
                "Edges must be finite and increasing; build them from a reference again."
            )
        if not np.isfinite(self.origin) or abs(self.exponent) > _EXPONENT_LIMIT:
            raise CutsError("Origin or exponent is out of range; build the cuts again.")

    @cached_property
    def cuts_id(self) -> str:
        """Content digest of this feature's cuts, 16 hex digits."""
        return _digest(msgspec.to_builtins(self), 16)

    @property
    def special(self) -> tuple[str, ...]:
        """Names of the last four bins, in order."""
        return NUMERIC_SPECIAL

    @property
    def size(self) -> int:
        """Length of a count vector: m + 1 + 4."""
        return len(self.edges) + 1 + SPECIAL_BINS

    @cached_property
    def edge_array(self) -> Floats:
        """Edges, shape (m,), read-only."""
        return _frozen(np.asarray(self.edges, dtype=np.float64))

    @cached_property
    def atoms(self) -> npt.NDArray[np.bool_]:
        """Which of the m + 1 bins can hold only one value, shape (m + 1,), read-only."""
        bounds = np.concatenate(([-np.inf], self.edge_array, [_LARGEST]))
        with np.errstate(over="ignore"):
            flags = np.nextafter(bounds[:-1], np.inf) >= bounds[1:]
        flags.flags.writeable = False
        return flags

    @cached_property
    def grid(self) -> Grid | None:
        """The table that finds the bins of many values; None where sorting is the way."""
        return Grid.of(self.edge_array)

    @cached_property
    def probe(self) -> Floats:
        """What is searched in a sorted column: -inf, the edges, the largest float, +inf."""
        return _frozen(np.concatenate(([-np.inf], self.edge_array, [_LARGEST, np.inf])))


class CategoryCuts(msgspec.Struct, frozen=True, dict=True, tag_field="kind", tag="category"):
    """Categories of a feature, each with a bin of its own.

    `others` are values the reference had too seldom for a bin: they count as `other`. Any further
    value counts as `unseen`.
    """

    categories: tuple[str, ...]
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        both = self.categories + self.others
        if len(set(both)) != len(both):
            raise CutsError("A category is listed twice; list each once.")

    @cached_property
    def cuts_id(self) -> str:
        """Content digest of this feature's cuts, 16 hex digits."""
        return _digest(msgspec.to_builtins(self), 16)

    @property
    def special(self) -> tuple[str, ...]:
        """Names of the last four bins, in order."""
        return CATEGORY_SPECIAL

    @property
    def size(self) -> int:
        """Length of a count vector: categories + 4."""
        return len(self.categories) + SPECIAL_BINS

    @cached_property
    def index(self) -> dict[str, int]:
        """Bin of each known value; not to be changed."""
        other = len(self.categories) + CATEGORY_SPECIAL.index("other")
        return dict.fromkeys(self.others, other) | {v: i for i, v in enumerate(self.categories)}


Cuts = NumericCuts | CategoryCuts
SpecialBin = Literal[
    "missing", "type_error", "negative_infinity", "positive_infinity", "unseen", "other"
]


class NamedCuts(msgspec.Struct, frozen=True):
    """One feature's or output's name with its cuts."""

    name: str
    cuts: Cuts


class ModelCuts(msgspec.Struct, frozen=True, dict=True):
    """All cuts of a model: features in the contract's order, and outputs (`prediction`, `score`)."""

    features: tuple[NamedCuts, ...]
    outputs: tuple[NamedCuts, ...] = ()
    outliers: Outliers | None = None
    """None in cuts of a release that scored no rows."""

    def __post_init__(self) -> None:
        for named in (self.features, self.outputs):
            names = [n.name for n in named]
            if len(set(names)) != len(names):
                raise CutsError("A name is listed twice among the cuts; names are unique.")
        for scored in self.outliers.features if self.outliers else ():
            cuts = self.feature.get(scored.name)
            if cuts is None or len(scored.surprise) != cuts.size + BEYOND:
                raise CutsError(
                    f"The outlier scores of {scored.name!r} do not fit its cuts; fit the baseline again."
                )

    @cached_property
    def cuts_id(self) -> str:
        """Content digest of everything above, 32 hex digits: other outliers, other cuts."""
        return _digest(self._content(), 32)

    def _content(self) -> dict[str, object]:
        content: dict[str, object] = msgspec.to_builtins(self)
        if self.outliers is None:
            del content["outliers"]
        return content

    @cached_property
    def feature(self) -> dict[str, Cuts]:
        """Feature cuts by name; not to be changed."""
        return {n.name: n.cuts for n in self.features}

    @cached_property
    def output(self) -> dict[str, Cuts]:
        """Output cuts by name; not to be changed."""
        return {n.name: n.cuts for n in self.outputs}

    def to_json(self) -> str:
        """Return canonical JSON: equal cuts give equal text."""
        return json.dumps(
            {"version": 1, **self._content()},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str | bytes) -> "ModelCuts":
        """Read `to_json`. Raises CutsError when it is something else."""
        try:
            wire = msgspec.json.decode(text, type=_ModelCutsWire)
        except msgspec.MsgspecError as error:
            raise CutsError(f"These are no cuts: {error}. Fit the baseline again.") from error
        if wire.version != 1:
            raise CutsError(f"Cuts of version {wire.version}; this release reads version 1.")
        return ModelCuts(wire.features, wire.outputs, wire.outliers)


class _ModelCutsWire(msgspec.Struct, frozen=True):
    version: int
    features: tuple[NamedCuts, ...]
    outputs: tuple[NamedCuts, ...] = ()
    outliers: Outliers | None = None


def model_cuts(
    features: Iterable[tuple[str, Cuts]],
    outputs: Iterable[tuple[str, Cuts]] = (),
    outliers: Outliers | None = None,
) -> ModelCuts:
    """Build ModelCuts from (name, cuts) pairs in order."""
    return ModelCuts(
        tuple(NamedCuts(n, c) for n, c in features),
        tuple(NamedCuts(n, c) for n, c in outputs),
        outliers,
    )


def special_index(cuts: Cuts, name: SpecialBin) -> int:
    """Return the position of a special bin in the count vector of `cuts`.

    Raises CutsError when this kind of feature has no such bin.
    """
    if name not in cuts.special:
        raise CutsError(f"These cuts have no bin {name!r}; they have {', '.join(cuts.special)}.")
    return cuts.size - SPECIAL_BINS + cuts.special.index(name)


def _frozen(array: Floats) -> Floats:
    array = array.copy()
    array.flags.writeable = False
    return array


# --- building -----------------------------------------------------------------------------------


def build_numeric_cuts(values: npt.ArrayLike, bins: int = BINS) -> NumericCuts:
    """Choose the edges from reference values, shape (n,); NaN and ±inf are left out.

    Few distinct values (<= bins): every value is an atom. Else atoms are values with at least
    1/(2 bins) of the mass, beside the inverted-CDF quantiles k/bins (statistics, A1). Cuts of an empty
    reference have one bin. Raises CutsError when bins < 2.
    """
    if bins < 2:
        raise CutsError(f"{bins} bins cannot show a difference; give 2 or more.")
    column = np.asarray(values)
    single = column.dtype in (np.float32, np.float16)
    column = column.astype(np.float64)
    column = np.sort(column[np.isfinite(column)]) + 0.0  # + 0.0 makes -0.0 into 0.0
    if column.size == 0:
        return NumericCuts((), single=single)
    distinct, repeats = np.unique(column, return_counts=True)
    if distinct.size <= bins:
        atoms, quantiles = distinct, distinct[:0]
    else:
        # A value seen once is no atom, however small the reference (deviation from A1, which would
        # make every value of a reference below 2 * bins rows an atom).
        atoms = distinct[(repeats * 2 * bins >= column.size) & (repeats > 1)]
        quantiles = column[_inverted_cdf(np.arange(1, bins) / bins, column.size)]
    with np.errstate(over="ignore"):  # below the least float is -inf, which is no edge
        edges = np.unique(np.concatenate((np.nextafter(atoms, -np.inf), atoms, quantiles)))
    edges = edges[np.isfinite(edges)] + 0.0
    origin, exponent = _grid(column)
    return NumericCuts(tuple(np.unique(edges).tolist()), origin, exponent, single)


def _inverted_cdf(level: Floats, n: int) -> npt.NDArray[np.intp]:
    """Index of the smallest value whose cumulative fraction reaches `level`, in a sorted column."""
    return np.clip(np.ceil(level * n).astype(np.intp) - 1, 0, n - 1)


def _grid(column: Floats) -> tuple[float, int]:
    """Origin (the median) and exponent that spread the middle half over some 2**18 steps.

    Where the middle half is one value, a wider middle. Values far out must not make the steps coarse for the
    others: with one sentinel of 1e12 in a hundred, all that is ordinary would be one step.
    """
    origin = float(column[_inverted_cdf(np.array([0.5]), column.size)[0]])
    reach = 0.0
    with np.errstate(over="ignore"):
        for tail in _TAILS:
            ends = column[_inverted_cdf(np.array([tail, 1 - tail]), column.size)].tolist()
            reach = max(ends[1] - origin, origin - ends[0])
            if reach:
                break
    reach = reach or abs(origin)
    if not np.isfinite(reach):
        reach = _LARGEST
    binary_exponent = int(np.frexp(reach or 1.0)[1])
    exponent = _REFERENCE_BITS - binary_exponent
    return origin, max(-_EXPONENT_LIMIT, min(_EXPONENT_LIMIT, exponent))


def build_category_cuts(
    values: Iterable[object], declared: Sequence[str] | None = None, most: int = MOST_CATEGORIES
) -> CategoryCuts:
    """Choose the categories: the declared ones, else those of the reference.

    At most `most` get a bin, the most frequent first (ties by name); the next 1,000 count as `other`.
    With `declared`, a value that is not declared is `unseen` even if the reference had it.
    """
    keys: Counter[str] = Counter()
    for value in values:
        key = category_key(value)
        if isinstance(key, str):
            keys[key] += 1
    if declared is None:
        wanted = keys.items()
    else:
        wanted = {value: keys[value] for value in declared}.items()
    ranked = [value for value, _ in sorted(wanted, key=lambda item: (-item[1], item[0]))]
    kept, rest = ranked[:most], ranked[most : most + OTHERS_KEPT]
    if declared is not None:
        kept = [value for value in declared if value in set(kept)]
    return CategoryCuts(tuple(kept), tuple(rest))


# --- reading columns ----------------------------------------------------------------------------


Key = str | Literal[False] | None
"""What `category_key` gives: a category, False where a value can be none, None where it is missing."""


def category_key(value: object) -> Key:
    """Return the category a value names; None when missing, False when it can be none.

    Text is itself, booleans are `true` and `false`, whole numbers their digits (3.0 is `3`).
    """
    match value:
        case None:
            return None
        case str():
            return value if len(value) <= MAX_CATEGORY_CHARS else False
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if value.bit_length() <= 64 else False
        case float():
            if math.isnan(value):
                return None
            whole = value.is_integer() and abs(value) < 2**53
            return str(int(value)) if whole else repr(value)
        case _:
            return False


def numeric_column(values: Sequence[object]) -> tuple[Floats, int]:
    """Turn decoded JSON values into (float64 column with NaN, number of type errors).

    None and NaN are missing. Text, booleans, lists and integers beyond float64 are type errors: NaN in
    the column, and counted.
    """
    if set(map(type, values)) <= {float, int, type(None)}:
        try:
            return np.array(values, dtype=np.float64).reshape(len(values)), 0
        except OverflowError:
            pass  # an integer beyond float64: look at each value below
    column = np.full(len(values), np.nan)
    errors = 0
    for row, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            errors += 1
            continue
        try:
            column[row] = float(value)
        except OverflowError:
            errors += 1
    return column, errors


# --- counting -----------------------------------------------------------------------------------


def at_precision(cuts: NumericCuts, values: Floats) -> Floats:
    """Return the column at the precision of its reference, float32 or float64."""
    if not cuts.single:
        return values
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64)


def count_sorted(cuts: NumericCuts, column: Floats, type_errors: int = 0) -> Counts:
    """`count_numeric` for a column `at_precision` and sorted: -inf first, +inf and then NaN last."""
    at_most = column.searchsorted(cuts.probe, side="right")  # rows <= each probe; NaN is beyond
    counts = np.empty(cuts.size, dtype=np.int64)
    ordinary = cuts.size - SPECIAL_BINS
    np.subtract(at_most[1:-1], at_most[:-2], out=counts[:ordinary])
    absent = column.size - int(at_most[-1])
    if not 0 <= type_errors <= absent:
        raise ValueError(f"{type_errors} type errors among {absent} rows without a number.")
    counts[ordinary:] = absent - type_errors, type_errors, at_most[0], at_most[-1] - at_most[-2]
    return counts


def count_numeric(cuts: NumericCuts, values: npt.ArrayLike, type_errors: int = 0) -> Counts:
    """Count a column, shape (n,), in the bins of `cuts`; return int64 counts, shape (size,).

    A row without a number is NaN; `type_errors` of these were present but no number, the rest are
    missing. -0.0 equals 0.0. The column is sorted and the edges are searched in it, which is several
    times faster than searching each value. Raises ValueError when type_errors exceeds the NaN rows.
    """
    column = np.sort(at_precision(cuts, np.asarray(values, dtype=np.float64)))
    return count_sorted(cuts, column, type_errors)
