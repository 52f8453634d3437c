"""Counts in fixed logarithmic buckets: latencies and gauges, mergeable, with quantiles.

Notation
    e[i]   bucket edges 2**(i/16), i = -320 .. 640 (1e-6 to 1e12), right-closed buckets (e[i-1], e[i]]
    index  0 holds values <= e[-320] (zero too), LAST values beyond the last edge
    q      exact sums: a value in steps of 2**-10, clamped at 2**26 (see `fixedpoint`)

Guarantee: a quantile inside the range is within 2.2 % of the value an exact inverted CDF gives,
since a bucket is 4.4 % wide and its geometric middle is reported.
"""

import math
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from trimtab.stats.fixedpoint import int_from_bytes, int_to_bytes, moments

PER_OCTAVE = 16
FIRST_OCTAVE, LAST_OCTAVE = -20, 40
_EXPONENT = 10

# Rounded mantissas times exact powers of two: the same edges whatever the platform's pow().
_MANTISSAS = np.array([round(2.0 ** (i / PER_OCTAVE), 12) for i in range(PER_OCTAVE)])
EDGES: npt.NDArray[np.float64] = np.concatenate(
    [np.ldexp(_MANTISSAS, octave) for octave in range(FIRST_OCTAVE, LAST_OCTAVE)]
    + [np.array([2.0**LAST_OCTAVE])]
)
EDGES.flags.writeable = False
LAST = EDGES.size


class LogHistogram(msgspec.Struct, frozen=True):
    """A commutative monoid of non-negative measurements. Empty is the identity.

    `buckets` holds (index, count) with count > 0, by index. `invalid` counts negative and infinite
    values, which enter nothing else. NaN is "not measured" and is not counted at all.
    """

    count: int = 0
    sum_q: int = 0
    clamped: int = 0
    invalid: int = 0
    minimum: float | None = None
    maximum: float | None = None
    buckets: tuple[tuple[int, int], ...] = ()

    @classmethod
    def observe(cls, values: npt.ArrayLike) -> Self:
        """Prepare the state of a column, shape (n,)."""
        column = np.sort(np.asarray(values, dtype=np.float64))  # NaN last
        below, beyond, measured = column.searchsorted((0.0, np.inf, np.nan)).tolist()
        valid = column[below:beyond]
        invalid = measured - valid.size
        if valid.size == 0:
            return cls(invalid=invalid)
        # As for cuts: the edges are searched in the sorted column, those that it spans.
        first, last = EDGES.searchsorted(valid[[0, -1]], side="left").tolist()
        at_most = valid.searchsorted(EDGES[first:last], side="right").tolist()
        buckets, before = [], 0
        for index, seen in enumerate((*at_most, valid.size), first):
            if seen > before:
                buckets.append((index, seen - before))
                before = seen
        low, high = float(valid[0]), float(valid[-1])
        sum_q, _, clamped = moments(valid, low, high, 0.0, _EXPONENT)
        return cls(
            count=valid.size,
            sum_q=sum_q,
            clamped=clamped,
            invalid=invalid,
            minimum=low + 0.0,
            maximum=high + 0.0,
            buckets=tuple(buckets),
        )

    def merge(self, other: Self) -> Self:
        """Return the state of both columns together."""
        buckets = dict(self.buckets)
        for index, count in other.buckets:
            buckets[index] = buckets.get(index, 0) + count
        return type(self)(
            count=self.count + other.count,
            sum_q=self.sum_q + other.sum_q,
            clamped=self.clamped + other.clamped,
            invalid=self.invalid + other.invalid,
            minimum=least(self.minimum, other.minimum),
            maximum=greatest(self.maximum, other.maximum),
            buckets=tuple(sorted(buckets.items())),
        )

    @property
    def mean(self) -> float | None:
        """Mean, off by at most 2**-11 per value; None when empty.

        Where values were too far out for the exact sum (memory in bytes is), it comes from the buckets and is
        within 2.2 %.
        """
        if self.count == 0:
            return None
        if self.clamped:
            return math.fsum(self._middle(i) * n for i, n in self.buckets) / self.count
        return self.sum_q / self.count * 2.0**-_EXPONENT

    def quantile(self, level: float) -> float | None:
        """Return the inverted-CDF quantile at 0 <= level <= 1; None when empty."""
        if self.count == 0 or self.minimum is None or self.maximum is None:
            return None
        rank = max(1, math.ceil(level * self.count))
        seen = 0
        for index, count in self.buckets:
            seen += count
            if seen >= rank:
                return self._middle(index)
        return self.maximum

    def _middle(self, index: int) -> float:
        """What stands for the values of a bucket: its geometric middle, between the extremes."""
        low, high = self.minimum or 0.0, math.inf if self.maximum is None else self.maximum
        if index == 0:
            return low
        if index >= LAST:
            return high
        return min(max(math.sqrt(float(EDGES[index - 1]) * float(EDGES[index])), low), high)


def least(a: float | None, b: float | None) -> float | None:
    """Return the smaller of two minima, either of which may be of nothing."""
    return b if a is None else a if b is None else min(a, b)


def greatest(a: float | None, b: float | None) -> float | None:
    """Return the greater of two maxima, either of which may be of nothing."""
    return b if a is None else a if b is None else max(a, b)


class HistogramWire(msgspec.Struct, array_like=True, frozen=True):
    """What is stored: field order is the format. `flat` alternates index gap and count."""

    count: int
    sum_q: bytes
    clamped: int
    invalid: int
    minimum: float | None
    maximum: float | None
    flat: tuple[int, ...]


def to_wire(state: LogHistogram) -> HistogramWire:
    """Pack a state; index gaps keep the integers small."""
    flat: list[int] = []
    before = 0
    for index, count in state.buckets:
        flat += (index - before, count)
        before = index
    return HistogramWire(
        state.count,
        int_to_bytes(state.sum_q),
        state.clamped,
        state.invalid,
        state.minimum,
        state.maximum,
        tuple(flat),
    )


def from_wire(wire: HistogramWire) -> LogHistogram:
    """Unpack `to_wire`."""
    indices = np.cumsum(wire.flat[::2], dtype=np.int64).tolist()
    return LogHistogram(
        wire.count,
        int_from_bytes(wire.sum_q),
        wire.clamped,
        wire.invalid,
        wire.minimum,
        wire.maximum,
        tuple(zip(indices, wire.flat[1::2], strict=True)),
    )
