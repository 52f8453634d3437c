"""Performance from joined labels: a group of signed counts, and the figures people read from it.

Labels are corrected and withdrawn, so this state can be taken back: `a.merge(a.negate())` is empty, and
nothing like a minimum is in it. A pane's state is the sum of all deltas ever written, in any order.

Notation
    (l, p)  label and prediction; confusion[l, p] = signed number of rows
    b       bin of the prediction's score (`scorebins`); scored[l, p, b] = signed number of rows with one
    tp, fp, fn  for a class: correct, predicted but not labelled, labelled but not predicted
    e       prediction - label, the difference in float64; its sums are exact (`exactsum`): in whole units
            u = 2**-1074, and those of e² in u²
Conventions: macro figures are unweighted means over the classes seen as label or prediction, an
undefined one counting 0 (as scikit-learn with zero_division=0); accuracy, precision
and recall carry Wilson intervals; F1 = 2J/(1+J) with J = tp/(tp+fp+fn), so it carries J's Wilson interval
through that map; MAE and bias carry normal intervals (ddof 1). 0/0 is undefined: no value, a reason.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from trimtab.errors import TrimtabError
from trimtab.stats.exactsum import UNIT_BITS, exact_moments, root_of_quotient
from trimtab.stats.fixedpoint import int_from_bytes, int_to_bytes
from trimtab.stats.intervals import ALPHA, normal_quantile, wilson
from trimtab.stats.scorebins import BINS, NO_SCORE

FORMAT = 1
_SHIFT_MAX = 8_191

Place = TypeVar("Place", tuple[str, str], tuple[str, str, int])


class PerformanceState(msgspec.Struct, frozen=True):
    """An abelian group: `merge`, `negate`, and the empty state as identity.

    `confusion` maps (label, prediction) to a signed count, zero entries left out, sorted; `scored` does
    the same for (label, prediction, score bin) of rows whose prediction came with a score. The other
    fields are for regression: sums of e and |e| in units of 2**-1074, of e² in units of 2**-2148;
    `unusable` counts pairs whose difference is not finite.
    """

    confusion: Mapping[tuple[str, str], int] = {}
    rows: int = 0
    sum_e: int = 0
    sum_abs_e: int = 0
    sum_e2: int = 0
    unusable: int = 0
    scored: Mapping[tuple[str, str, int], int] = {}

    @classmethod
    def of_classes(
        cls, labels: Sequence[str], predictions: Sequence[str], bins: Sequence[int] = ()
    ) -> Self:
        """Prepare the state of joined rows; classes are text (`cuts.category_key`).

        `bins` are the bins of their scores, NO_SCORE where there is none; left out, no row has one.
        """
        pairs = Counter(zip(labels, predictions, strict=True))
        scored: Counter[tuple[str, str, int]] = Counter()
        if len(bins):
            triples = zip(labels, predictions, map(int, bins), strict=True)
            scored.update(triple for triple in triples if triple[2] != NO_SCORE)
        return cls(confusion=_canonical(pairs), rows=len(labels), scored=_canonical(scored))

    @classmethod
    def of_numbers(cls, labels: npt.ArrayLike, predictions: npt.ArrayLike) -> Self:
        """Prepare the state of joined rows with numeric targets, each shape (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            e = np.asarray(predictions, dtype=np.float64) - np.asarray(labels, dtype=np.float64)
        finite = e[np.isfinite(e)]
        sum_e, sum_abs_e, sum_e2 = exact_moments(finite)
        return cls(
            rows=finite.size,
            sum_e=sum_e,
            sum_abs_e=sum_abs_e,
            sum_e2=sum_e2,
            unusable=e.size - finite.size,
        )

    def merge(self, other: Self) -> Self:
        """Return the sum."""
        return type(self)(
            _sum(self.confusion, other.confusion),
            self.rows + other.rows,
            self.sum_e + other.sum_e,
            self.sum_abs_e + other.sum_abs_e,
            self.sum_e2 + other.sum_e2,
            self.unusable + other.unusable,
            _sum(self.scored, other.scored),
        )

    def negate(self) -> Self:
        """Return the inverse: merging it takes this state back."""
        return type(self)(
            {pair: -count for pair, count in self.confusion.items()},
            -self.rows,
            -self.sum_e,
            -self.sum_abs_e,
            -self.sum_e2,
            -self.unusable,
            {triple: -count for triple, count in self.scored.items()},
        )

    @property
    def is_empty(self) -> bool:
        """Whether this is the identity."""
        return self == type(self)()

    def to_bytes(self) -> bytes:
        """Encode canonically: equal states, equal bytes."""
        first = (
            FORMAT,
            tuple((*pair, count) for pair, count in sorted(self.confusion.items())),
            self.rows,
            _packed(self.sum_e),
            _packed(self.sum_abs_e),
            _packed(self.sum_e2),
            self.unusable,
        )
        if not self.scored:  # the bytes that states had before there were scores
            return msgspec.msgpack.encode(_Wire(*first))
        by_pair: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for (label, prediction, place), count in sorted(self.scored.items()):
            by_pair.setdefault((label, prediction), []).append((place, count))
        scored = tuple((*pair, tuple(counts)) for pair, counts in by_pair.items())
        return msgspec.msgpack.encode(_ScoredWire(*first, scored))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode `to_bytes`. Raises PerformanceStateError."""
        try:
            wire = msgspec.msgpack.decode(data, type=_ScoredWire)
        except msgspec.MsgspecError as error:
            raise PerformanceStateError(
                f"These bytes are no performance state ({error}); recount it from the labels."
            ) from error
        if wire.version != FORMAT:
            raise PerformanceStateError(
                f"A performance state of format {wire.version}; this release reads {FORMAT}."
            )
        return cls(
            {(label, prediction): count for label, prediction, count in wire.confusion},
            wire.rows,
            _unpacked(wire.sum_e),
            _unpacked(wire.sum_abs_e),
            _unpacked(wire.sum_e2),
            wire.unusable,
            {
                (label, prediction, place): count
                for label, prediction, counts in wire.scored
                for place, count in counts
            },
        )


class PerformanceStateError(TrimtabError):
    """Bytes of a performance state cannot be read."""


_Packed = tuple[bytes, Annotated[int, msgspec.Meta(ge=0, le=_SHIFT_MAX)]]
"""A sum as an odd integer and the power of two that it is to be multiplied with; 0 is (b"", 0)."""


def _packed(value: int) -> _Packed:
    shift = max(0, (value & -value).bit_length() - 1)
    return int_to_bytes(value >> shift), shift


def _unpacked(packed: _Packed) -> int:
    odd, shift = packed
    return int_from_bytes(odd) << shift


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    version: int
    confusion: tuple[tuple[str, str, int], ...]
    rows: int
    sum_e: _Packed
    sum_abs_e: _Packed
    sum_e2: _Packed
    unusable: int


_Bin = Annotated[int, msgspec.Meta(ge=0, lt=BINS)]


class _ScoredWire(_Wire, array_like=True, frozen=True):
    scored: tuple[tuple[str, str, tuple[tuple[_Bin, int], ...]], ...] = ()
    """(label, prediction, ((bin, count) …))."""


def _canonical(counts: Mapping[Place, int]) -> dict[Place, int]:
    return {place: count for place, count in sorted(counts.items()) if count}


def _sum(a: Mapping[Place, int], b: Mapping[Place, int]) -> Mapping[Place, int]:
    if not (a and b):
        return a or b
    total = dict(a)
    for place, count in b.items():
        total[place] = total.get(place, 0) + count
    return _canonical(total)


def merge_all(states: Iterable[PerformanceState]) -> PerformanceState | None:
    """Return the sum of states, None of none. Of many it takes less time than merging one by one."""
    found = list(states)
    if not found:
        return None
    confusion: dict[tuple[str, str], int] = {}
    scored: dict[tuple[str, str, int], int] = {}
    for state in found:
        for pair, count in state.confusion.items():
            confusion[pair] = confusion.get(pair, 0) + count
        for triple, count in state.scored.items():
            scored[triple] = scored.get(triple, 0) + count
    return PerformanceState(
        _canonical(confusion),
        sum(state.rows for state in found),
        sum(state.sum_e for state in found),
        sum(state.sum_abs_e for state in found),
        sum(state.sum_e2 for state in found),
        sum(state.unusable for state in found),
        _canonical(scored),
    )


# --- figures ------------------------------------------------------------------------------------


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure with its interval. `value` is None where it is undefined, and `reason` says why.

    `n` is the number of rows in the denominator; `interval` names the method of `low` and `high`.
    """

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    reason: str | None = None


def _undefined(reason: str, n: int = 0) -> Figure:
    return Figure(None, n, reason=reason)


def _proportion(k: int, n: int, nothing: str, alpha: float) -> Figure:
    if n == 0:
        return _undefined(nothing)
    low, high = wilson(k, n, alpha)
    return Figure(k / n, n, low, high, "wilson")


def _f1(tp: int, union: int, nothing: str, alpha: float) -> Figure:
    if union == 0:
        return _undefined(nothing)
    low, high = wilson(tp, union, alpha)
    j = tp / union
    return Figure(
        2 * j / (1 + j),
        union,
        2 * low / (1 + low),
        2 * high / (1 + high),
        "wilson of tp/(tp+fp+fn)",
    )


def classification_figures(
    state: PerformanceState, positive: str | None = None, alpha: float = ALPHA
) -> dict[str, Figure]:
    """Return accuracy, precision, recall, f1 of joined rows; intervals of coverage 1 - alpha.

    With a `positive` class the last three are that class's. Without, they are `macro_precision`,
    `macro_recall`, `macro_f1`, and per class `precision(c)`, `recall(c)`, `f1(c)`.
    """
    names = ("precision", "recall", "f1")
    if any(count < 0 for count in state.confusion.values()):
        reason = "a label was taken back before the row it belongs to arrived"
        wanted = names if positive is not None else tuple(f"macro_{name}" for name in names)
        return {name: _undefined(reason) for name in ("accuracy", *wanted)}
    total = sum(state.confusion.values())
    correct = sum(count for (label, p), count in state.confusion.items() if label == p)
    figures = {"accuracy": _proportion(correct, total, "no labelled rows", alpha)}
    if positive is not None:
        by_name = _class_figures(state, positive, alpha)
        return figures | dict(zip(names, by_name, strict=True))
    classes = sorted({name for pair in state.confusion for name in pair})
    per_class = {name: _class_figures(state, name, alpha) for name in classes}
    for place, name in enumerate(names):
        values = [per_class[c][place].value or 0.0 for c in classes]
        figures[f"macro_{name}"] = (
            Figure(sum(values) / len(values), total) if values else _undefined("no labelled rows")
        )
    for c, of_class in per_class.items():
        figures |= {f"{n}({c})": f for n, f in zip(names, of_class, strict=True)}
    return figures


def _class_figures(state: PerformanceState, c: str, alpha: float) -> tuple[Figure, Figure, Figure]:
    tp = state.confusion.get((c, c), 0)
    predicted = sum(count for (_, p), count in state.confusion.items() if p == c)
    labelled = sum(count for (label, _), count in state.confusion.items() if label == c)
    return (
        _proportion(tp, predicted, f"{c!r} was never predicted", alpha),
        _proportion(tp, labelled, f"{c!r} was never the label", alpha),
        _f1(tp, predicted + labelled - tp, f"{c!r} was neither predicted nor the label", alpha),
    )


def regression_figures(state: PerformanceState, alpha: float = ALPHA) -> dict[str, Figure]:
    """Return mae, rmse and bias (mean of prediction - label) in the target's unit."""
    n = state.rows
    if n <= 0 or min(state.sum_abs_e, state.sum_e2) < 0:
        reason = (
            "no labelled rows" if n == 0 else "labels were taken back before their rows arrived"
        )
        return {name: _undefined(reason) for name in ("mae", "rmse", "bias")}
    return {
        "mae": _mean_figure(n, state.sum_abs_e, state.sum_e2, alpha),
        "rmse": Figure(root_of_quotient(state.sum_e2, n << 2 * UNIT_BITS), n),
        "bias": _mean_figure(n, state.sum_e, state.sum_e2, alpha),
    }


def _mean_figure(n: int, total: int, squares: int, alpha: float) -> Figure:
    """Return a mean, rounded once from the exact quotient, with mean ± z sd / sqrt(n); sd with ddof 1."""
    mean = total / (n << UNIT_BITS)
    # Below 0 only while a label is taken back whose row is not here yet.
    spread = max(0, n * squares - total * total)
    if n == 1:
        return Figure(mean, n)
    half = normal_quantile(alpha) * root_of_quotient(spread, n * n * (n - 1) << 2 * UNIT_BITS)
    ends = mean - half, mean + half
    if not all(map(math.isfinite, ends)):
        return Figure(mean, n)
    return Figure(mean, n, *ends, "normal")
