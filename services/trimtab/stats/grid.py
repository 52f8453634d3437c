"""Finding the bins of many values without searching: a table over equal cells, exact for every float.

Notation
    e[j]   edges, m of them, finite and increasing; bin of x = number of edges below x (right-closed)
    f(x)   cell of x: (x - e[0]) * scale, clipped to 0 .. CELLS, cut to an integer
    K      most edges that share a cell

f does not decrease, since rounding does not: f(e) < f(x) means e < x, and f(e) > f(x) means e > x. So the
bin of x is the number of edges in earlier cells plus those of its own cell that are below it, and only
those K are compared.

Measured for 64 quantile edges on one core, per value: 6 ns at 20,000 values and 10 at 2,000, where sorting
and searching the edges takes 30 and 17; below some 1,500 values the calls themselves cost more.
"""

from typing import Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.float64]

CELLS = 4_096
MOST_SHARED = 8
"""More edges in one cell than this, and sorting is as fast."""
WORTH_ROWS = 1_500


class Grid(Struct, frozen=True):
    """The table of one feature's edges. Build it with `of`."""

    origin: float
    scale: float
    before: npt.NDArray[np.int64]
    """Edges in earlier cells, by cell, shape (CELLS + 1,)."""
    edges: Floats
    """The edges and K times +inf, so that the comparison never runs out."""
    shared: int
    """K."""

    @classmethod
    def of(cls, edges: Floats) -> Self | None:
        """Return the grid of edges, shape (m,); None where it would not be exact or not be fast."""
        if edges.size < 2:
            return None
        origin = float(edges[0])
        with np.errstate(over="ignore", divide="ignore"):
            scale = float(CELLS / (edges[-1] - edges[0]))
        if not 0 < scale < np.inf:
            return None
        cells = _cells(edges, origin, scale)
        shared = int(np.bincount(cells).max())
        if shared > MOST_SHARED:
            return None
        before = cells.searchsorted(np.arange(CELLS + 1), side="left")
        return cls(origin, scale, before, np.append(edges, [np.inf] * shared), shared)

    def bins(self, values: Floats) -> npt.NDArray[np.int64]:
        """Return the bin of each finite value, shape (n,)."""
        first = self.before.take(_cells(values, self.origin, self.scale))
        bins = first.copy()
        for place in range(self.shared):
            bins += self.edges.take(first + place) < values
        return bins

    def count(self, values: Floats) -> npt.NDArray[np.int64]:
        """Count finite values, shape (n,), in the m + 1 bins."""
        return np.bincount(self.bins(values), minlength=self.edges.size - self.shared + 1)


def _cells(values: Floats, origin: float, scale: float) -> npt.NDArray[np.int64]:
    with np.errstate(over="ignore"):  # far out is the last cell all the same
        places = values - origin
        places *= scale
    np.clip(places, 0, CELLS, out=places)
    return places.astype(np.int64)
