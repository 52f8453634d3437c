"""What the detector looks at: contrasts of a window's counts, and rates of rows, of all its sources.

Both are linear in counts, so they are the same at every roll-up and for every split of the rows (but for the
volume, the logarithm of the rows). They are fixed with the baseline (its bin shares), as cuts are, and say
nothing about what variation is usual: that is `calibration`.

Notation
    x[k]    sum_b H[b,k] c[b] / n, c a window's counts and n their sum: what the detector follows
What each source counts: `sources`; its contrasts H: `orthonormal`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.detect.observed import Observed
from trimtab.detect.orthonormal import Floats
from trimtab.detect.sources import Skipped, SourceContrasts, read, sources_of
from trimtab.stats.cuts import ModelCuts

SHARES = {
    "output": 0.2,
    "segment": 0.2,
    "latency": 0.05,
    "resource": 0.05,
    "volume": 0.05,
    "rows": 0.05,
    "joint": 0.1,
}
"""Parts of the whole weight that kinds of sources have together, where there are any; features have the rest."""
_GROUPS = ("feature", "segment", "latency", "resource", "rows", "volume", "joint")


class Measured(Struct, frozen=True):
    """One window as the detector reads it."""

    x: Floats
    """Contrasts, shape (K,); 0 where no row holds a value."""
    n: Floats
    """Rows that hold a value, per contrast, shape (K,)."""
    hits: Floats
    """Rows that each rate counts, shape (R,)."""
    rows: Floats
    """Rows of each rate's source, shape (R,)."""


class Contrasts(Struct, frozen=True):
    """The contrasts of a model: features in the contract's order, outputs, latency, gauges, rows, pairs, segments."""

    sources: tuple[SourceContrasts, ...]
    skipped: tuple[Skipped, ...] = ()
    """What would be a source and is none, such as a segment of too few rows."""

    @classmethod
    def of(
        cls,
        cuts: ModelCuts,
        baseline: Observed,
        bounded: Mapping[str, Sequence[str]] = {},
        *,
        windows: int = 1,
        min_rows: int = 1,
    ) -> "Contrasts":
        """Build them from the baseline's counts, merged over `windows` windows.

        `bounded` names the bounds a feature has (`bounds_of`). Latencies and segments of fewer than `min_rows` in
        a usual window are skipped, and gauges of too few samples. A feature without a value in the baseline has
        rates only.
        """
        sources, skipped = sources_of(cuts, baseline, bounded, max(windows, 1), min_rows)
        return cls(tuple(sources), tuple(skipped))

    @property
    def contrast_names(self) -> list[tuple[str, str]]:
        """(source, label) of each contrast, in order."""
        return [(s.name, label) for s in self.sources for label in s.labels]

    @property
    def rate_names(self) -> list[tuple[str, str]]:
        """(source, rate) of each rate, in order."""
        return [(s.name, rate) for s in self.sources for rate in s.rates]

    @property
    def paired(self) -> frozenset[str]:
        """Columns whose relations are looked at, by `JointColumn.name`."""
        pairs = [(s.column, s.other) for s in self.sources if s.origin == "joint"]
        return frozenset(name for pair in pairs for name in pair)

    def weights(self) -> tuple[Floats, Floats]:
        """Return the weights of contrasts, shape (K,), and rates, shape (R,); together they sum to 1 or less.

        Each kind of source has its share (`SHARES`), the features the rest; sources of a kind share evenly.
        """
        kinds = [_share_kind(s) for s in self.sources]
        count = Counter(kinds)
        whole = {kind: SHARES[kind] for kind in count if kind in SHARES}
        if "feature" in count:
            whole["feature"] = 1 - sum(whole.values())
        scale = sum(whole.values()) or 1.0
        contrasts: list[float] = []
        rates: list[float] = []
        for source, kind in zip(self.sources, kinds, strict=True):
            share = whole[kind] / scale / count[kind]
            contrasts += [share * w for w in source.weights]
            rates += [share * source.rate_weight / max(len(source.rates), 1)] * len(source.rates)
        return np.array(contrasts), np.array(rates)

    def sign_weights(self) -> Floats:
        """Return the part of each contrast's weight that a rise and a fall have, shape (K, 2)."""
        parts = [(1.0, 0.0) if s.directed else (0.5, 0.5) for s in self.sources for _ in s.labels]
        return np.array(parts).reshape(-1, 2)

    def directed(self) -> npt.NDArray[np.bool_]:
        """Return which contrasts have evidence in their rise alone, shape (K,)."""
        return np.array([s.directed for s in self.sources for _ in s.labels], dtype=np.bool_)

    def families(self) -> npt.NDArray[np.int64]:
        """Return the source of each contrast that may bend with another of it, else -1, shape (K,)."""
        return np.array(
            [
                -1 if s.directed or s.size < 2 else place
                for place, s in enumerate(self.sources)
                for _ in s.labels
            ],
            dtype=np.int64,
        )

    def located(self) -> npt.NDArray[np.bool_]:
        """Return which contrasts are the location of a number, shape (K,)."""
        return np.array(
            [label == "location" for s in self.sources for label in s.labels], dtype=np.bool_
        )

    def more_windows(self) -> npt.NDArray[np.int64]:
        """Return how many windows more than others a contrast needs for an alarm, shape (K,).

        Latencies and gauges: a busy hour is two windows where it crosses their border.
        """
        more = {"latency": 1, "resource": 1}
        return np.array([more.get(s.origin, 0) for s in self.sources for _ in s.labels], np.int64)

    def least_rows(self, min_rows: int) -> Floats:
        """Return the values that each contrast needs in a window to be read, shape (K,)."""
        return np.array(
            [
                min_rows if s.least_rows is None else s.least_rows
                for s in self.sources
                for _ in s.labels
            ],
            dtype=np.float64,
        )

    def groups(self) -> npt.NDArray[np.int64]:
        """Return the group of each contrast, shape (K,): those of one group have one season.

        Traffic and latencies often follow the hour where features do not.
        """
        return np.array([_group(s) for s in self.sources for _ in s.labels], dtype=np.int64)

    def only_familiar(self) -> npt.NDArray[np.bool_]:
        """Return which contrasts are read only at hours of the week that the reference has, shape (K,).

        Nights of little traffic are often no reference windows; a night is no fall of the volume for that.
        """
        return np.array(
            [s.origin == "volume" for s in self.sources for _ in s.labels], dtype=np.bool_
        )

    def measure(self, window: Observed, cuts: ModelCuts) -> Measured:
        """Read a window's counts. A source that the window lacks has no rows."""
        x: list[Floats] = []
        n: list[float] = []
        hits: list[int] = []
        rows: list[int] = []
        for source in self.sources:
            one = read(source, window, cuts)
            x.append(one.x)
            n += [one.n] * source.size
            hits += one.hits
            rows += [one.rows] * len(source.rates)
        return Measured(
            np.concatenate(x) if x else np.zeros(0),
            np.array(n, dtype=np.float64),
            np.array(hits, dtype=np.float64),
            np.array(rows, dtype=np.float64),
        )


def _share_kind(source: SourceContrasts) -> str:
    return "segment" if source.segment is not None else source.origin


def _group(source: SourceContrasts) -> int:
    kind = _share_kind(source)
    return _GROUPS.index("feature" if kind == "output" else kind)
