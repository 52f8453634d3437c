"""How columns of a window's sampled rows go together: the rank correlation of each pair.

Counts of one column at a time (`aggregate`) do not see a change of the relation between two columns that
leaves each as it was. Of the row sample of a window this keeps, for each pair, one correlation.

Notation
    d     centred mid-rank of a value among the window's own of its column; a category's value against all
          others is 0 or 1
    r     correlation of d over the rows that hold both values: Spearman's (1904), with ties; of two values of
          categories, phi
    z     atanh(r), whose variance is about 1/n whatever r is (Fisher 1921), in steps of 1/10,000

Ranks are those within the window, so that a column that moves as a whole, by any increasing function, leaves r
as it is to the last digit, and a wide drift of one column is not blamed on its pairs. The price: the state of
two halves of a window does not give that of the window. States of different windows do add up: n of each and
the sum of n z, whose mean is the usual pooled correlation (Hedges & Olkin 1985). All are integers, so that any
order gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.contracts.model import Feature
from trimtab.stats.aggregate import StateError
from trimtab.stats.cuts import (
    CategoryCuts,
    Floats,
    ModelCuts,
    category_key,
    numeric_column,
)

FORMAT = 1
MOST_COLUMNS = 20
"""Columns that are paired, 190 pairs: each costs some 5 µs per window."""
MOST_LEVELS = 3
"""Values of a category that are columns of their own."""
MOST_ROWS = 2_000
"""Sampled rows of a window that are looked at, those of lowest hash."""
LEAST_ROWS = 50
"""Of fewer rows a window's correlation is too uncertain to be read."""
STEPS = 10_000
"""Steps of z in a unit."""
MOST_CORRELATION = 0.99
"""A stronger correlation counts as this: z of a perfect one is infinite."""

Pair = tuple[str, str]


class JointColumn(Struct, frozen=True):
    """What is paired: a number, or one value of a category against all others."""

    feature: str
    value: str | None = None

    @property
    def name(self) -> str:
        """The feature's name, or `feature=value`."""
        return self.feature if self.value is None else f"{self.feature}={self.value}"


def joint_columns(features: Mapping[str, Feature], cuts: ModelCuts) -> tuple[JointColumn, ...]:
    """Choose the columns to be paired, in the contract's order, at most 20.

    Each number is one. Of a category the first three values of its cuts are (of two values the first). Personal
    features are never sampled, so never paired.
    """
    found: list[JointColumn] = []
    for name, feature in features.items():
        cut = cuts.feature.get(name)
        if cut is None or feature.personal:
            continue
        if isinstance(cut, CategoryCuts):
            most = min(MOST_LEVELS, max(1, len(cut.categories) - 1))
            found += [JointColumn(name, value) for value in cut.categories[:most]]
        else:
            found.append(JointColumn(name))
    kept = {column.name: column for column in reversed(found[:MOST_COLUMNS])}
    return tuple(reversed(kept.values()))


class Related(Struct, frozen=True, array_like=True):
    """One pair over windows."""

    windows: int
    rows: int
    """Rows with both values, n; over all windows."""
    total: int
    """Sum over windows of n z, in steps of z."""

    @property
    def z(self) -> float:
        """Pooled z."""
        return self.total / (self.rows * STEPS)

    def merge(self, other: Self) -> Self:
        """Return the pair over both."""
        return type(self)(
            self.windows + other.windows, self.rows + other.rows, self.total + other.total
        )


class JointState(Struct, frozen=True):
    """Pairs by the names of their columns, sorted; a commutative monoid over windows."""

    pairs: Mapping[Pair, Related] = {}

    @classmethod
    def observe(
        cls,
        columns: Sequence[JointColumn],
        rows: Mapping[str, Sequence[object]],
    ) -> Self:
        """Return the state of one window's sampled rows: decoded values by feature, each of n rows.

        A row without a value of a pair does not count for it. A pair of fewer than 50 rows is not there, nor one
        of which a column is constant.
        """
        given = [column for column in columns if column.feature in rows]
        ordered = sorted(given, key=lambda column: column.name)
        if len(ordered) < 2:
            return cls()
        d = np.column_stack([column_scores(column, rows[column.feature]) for column in ordered])
        n, r = rank_correlations(d)
        pairs: dict[Pair, Related] = {}
        for i, j in combinations(range(len(ordered)), 2):
            a, b = ordered[i], ordered[j]
            if a.feature == b.feature or n[i, j] < LEAST_ROWS or math.isnan(r[i, j]):
                continue
            z = math.atanh(min(max(float(r[i, j]), -MOST_CORRELATION), MOST_CORRELATION))
            count = int(n[i, j])
            pairs[a.name, b.name] = Related(1, count, count * round(z * STEPS))
        return cls(pairs)

    def merge(self, other: Self) -> Self:
        """Return the pairs over the windows of both."""
        pairs = dict(self.pairs)
        for key, pair in other.pairs.items():
            pairs[key] = pairs[key].merge(pair) if key in pairs else pair
        return type(self)(dict(sorted(pairs.items())))

    def to_bytes(self) -> bytes:
        """Encode canonically: equal states, equal bytes; none for no pairs."""
        if not self.pairs:
            return b""
        names = sorted({name for pair in self.pairs for name in pair})
        held, absent = [], []
        for at, key in enumerate(combinations(names, 2)):
            pair = self.pairs.get(key)
            held.append(pair) if pair is not None else absent.append(at)
        wire = _Wire(
            FORMAT,
            names,
            absent,
            _packed([pair.windows for pair in held]),
            _packed([pair.rows for pair in held]),
            # Of one window z itself, which is shorter: a verdict's evidence keeps it.
            [p.total // p.rows if p.windows == 1 else p.total for p in held],
        )
        return msgspec.msgpack.encode(wire)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode `to_bytes`. Raises StateError."""
        if not data:
            return cls()
        try:
            wire = msgspec.msgpack.decode(data, type=_Wire)
            absent = set(wire.absent)
            keys = [k for at, k in enumerate(combinations(wire.names, 2)) if at not in absent]
            counts = zip(
                keys,
                _unpacked(wire.windows, len(keys)),
                _unpacked(wire.rows, len(keys)),
                wire.totals,
                strict=True,
            )
            return cls(
                {k: Related(w, n, t * n if w == 1 else t) for k, w, n, t in counts if w and n}
            )
        except (msgspec.MsgspecError, ValueError) as error:
            raise StateError(f"These bytes are no correlations of a window ({error}).") from error


class _Wire(Struct, frozen=True, array_like=True):
    """Lists by pair of `names` in order, without those at `absent`; one number stands for equal ones."""

    format: int
    names: list[str]
    absent: list[int]
    windows: list[int]
    rows: list[int]
    totals: list[int]


def _packed(counts: list[int]) -> list[int]:
    return counts[:1] if len(set(counts)) == 1 else counts


def _unpacked(counts: list[int], size: int) -> list[int]:
    return counts * size if len(counts) == 1 else counts


def column_scores(column: JointColumn, values: Sequence[object]) -> Floats:
    """Return the scores d of a column's decoded values, shape (n,): whole numbers, NaN where there is none."""
    if column.value is None:
        return mid_ranks(numeric_column(values)[0])
    keys = [category_key(value) for value in values]
    scores = [np.nan if not isinstance(key, str) else float(key == column.value) for key in keys]
    return np.array(scores, dtype=np.float64)


def mid_ranks(values: Floats) -> Floats:
    """Return the centred mid-ranks of values among themselves, shape (n,): whole numbers; NaN where there is none."""
    known = ~np.isnan(values)
    held = values[known]
    inside = np.sort(held)
    ranks = np.full(values.size, np.nan)
    ranks[known] = (
        inside.searchsorted(held, "left") + inside.searchsorted(held, "right") - held.size
    )
    return ranks


def rank_correlations(d: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return (rows with both values, their correlation) of whole-number scores, shape (q, q) each.

    `d` has shape (n, q), NaN where a row has no value. Sums are exact, so that the order of rows changes nothing;
    a constant column's correlation is NaN.
    """
    known = ~np.isnan(d)
    v = known.astype(np.float64)
    x = np.where(known, d, 0.0)
    n = v.T @ v
    a = x.T @ v  # sum of column i over rows that hold j
    aa = (x * x).T @ v
    spread = n * aa - a * a
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (n * (x.T @ x) - a * a.T) / np.sqrt(spread * spread.T)
    return n.astype(np.int64), np.where((spread > 0) & (spread.T > 0), r, np.nan)
