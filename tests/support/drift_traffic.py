"""Made-up traffic with known changes, counted as the service counts it: for the detector's tests and benchmarks.

A row has 16 numbers that are N(0, 1) and 4 categories of five levels, cut out of an N(0, 1) each; a window has
1,000 rows (statistics, section C). A `Null` is how windows vary while nothing has changed, a `Shift` is a change.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trimtab.contracts.model import Alarms, Contract, Feature, Windows
from trimtab.detect.calibration import Calibration, calibrate
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.drift import Fitted, Refused, fit_detector, merged
from trimtab.detect.evidence import Detector, Said, State
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import ModelCuts, build_category_cuts, build_numeric_cuts, model_cuts

Floats = npt.NDArray[np.float64]

HOUR_MS = 3_600_000
START_MS = 1_700_006_400_000
"""A midnight in UTC."""
NUMBERS, CATEGORIES = 16, 4
LEVELS = tuple("abcde")
LEVEL_EDGES = np.array([-0.25, 0.5, 1.0, 1.6])
"""Shares .40, .29, .15, .10 and .055."""
REFERENCE_WINDOWS = 336
LEAST_ROWS = 200
"""A window needs so many rows to be read."""
CUT_WINDOWS = 24
"""Cuts are made of the rows of so many windows."""


class Null(msgspec.Struct, frozen=True):
    """How windows vary while nothing has changed. Sizes are in standard deviations of a row."""

    wander: float = 0.0
    """Standard deviation of a feature's mean over windows, ..."""
    rho: float = 0.0
    """... its autocorrelation from window to window, ..."""
    tail: float = np.inf
    """... and the degrees of freedom of its shocks, which are Student's t."""
    diurnal: float = 0.0
    """A feature's mean goes up and down by this over 24 windows, each feature at hours of its own, ..."""
    volume: float = 1.0
    """... and the busiest hour has so many times the rows of the quietest."""
    cluster: int = 1
    """So many rows at a time are equal."""
    correlation: float = 0.0
    """Between any two features of a row."""


NULLS = {
    "iid": Null(),
    "ar": Null(wander=0.05, rho=0.8),
    "diurnal": Null(diurnal=0.3, volume=9),
    "prod": Null(wander=0.05, rho=0.7, tail=5, diurnal=0.3, volume=9),
    "heavy": Null(wander=0.05, tail=3),
    "clustered": Null(cluster=3, diurnal=0.3, volume=9),
    "correlated": Null(correlation=0.5),
    "wandering": Null(wander=0.2, rho=0.8),
}
STRESSES = {"heavy_ar": Null(wander=0.05, rho=0.7, tail=3)}
"""Outside what the budget is stated for: a mean jumps by half a deviation and takes hours to come back."""


class Shift(msgspec.Struct, frozen=True):
    """A lasting change: of one number (a different one each time), all numbers, or one category."""

    by: float = 0.0
    """Standard deviations that numbers go up by."""
    all: bool = False
    scale: float = 1.0
    """What one number's spread is multiplied by."""
    moved: float = 0.0
    """Share of the rows that go to a category's rarest level from the others."""
    over: int = 1
    """Windows until the whole of it is there."""


SHIFTS = {
    "1x.1": Shift(by=0.1),
    "1x.25": Shift(by=0.25),
    "1x.5": Shift(by=0.5),
    "1x1": Shift(by=1.0),
    "all.1": Shift(by=0.1, all=True),
    "all.25": Shift(by=0.25, all=True),
    "sd1.2": Shift(scale=1.2),
    "cat5%": Shift(moved=0.05),
    "ramp": Shift(by=0.5, over=200),
}


class Rows(msgspec.Struct, frozen=True):
    """The rows of one window, a column a row of these arrays."""

    numbers: Floats
    """Shape (numbers, n)."""
    codes: npt.NDArray[np.int32]
    """Places of levels, shape (categories, n)."""
    start_ms: int

    def take(self, index: Any) -> "Rows":
        """Return some of them, by a slice, a mask or places."""
        return Rows(self.numbers[:, index], self.codes[:, index], self.start_ms)


class Traffic:
    """Windows, one after the other, from a seed."""

    def __init__(
        self,
        null: Null,
        seed: Sequence[int],
        *,
        numbers: int = NUMBERS,
        categories: int = CATEGORIES,
        rows: int = 1_000,
    ) -> None:
        self.null, self.seed, self.rows = null, list(seed), rows
        self.numbers, self.categories = numbers, categories
        self.rng = np.random.default_rng(self.seed)
        self.hour = 0
        self.phase = self.rng.uniform(0, 2 * np.pi, numbers + categories)
        self.level = np.zeros(numbers + categories)
        for _ in range(50 if null.rho else 1):
            self._wander()

    def branch(self, place: int) -> "Traffic":
        """Return traffic that goes on from here with chances of its own; `place` tells branches apart."""
        other = object.__new__(Traffic)
        other.__dict__.update(self.__dict__)
        other.rng = np.random.default_rng([*self.seed, self.hour, place])
        return other

    def _wander(self) -> None:
        null = self.null
        shocks = self.rng.standard_normal(self.level.size)
        if np.isfinite(null.tail):
            shocks = self.rng.standard_t(null.tail, self.level.size)
            shocks *= np.sqrt((null.tail - 2) / null.tail)
        self.level = null.rho * self.level + null.wander * np.sqrt(1 - null.rho**2) * shocks

    def window(self, shift: Shift | None = None, *, age: int = 0, place: int = 0) -> Rows:
        """Return the next window; `age` windows of `shift` went before, which concerns number or category `place`."""
        null, size = self.null, self.level.size
        angle = 2 * np.pi * self.hour / 24
        busy = null.volume ** (np.sin(angle) / 2)
        n = max(1, round(self.rows * busy / np.i0(np.log(null.volume) / 2)))
        self._wander()
        noise = self.rng.standard_normal((size, -(-n // null.cluster)))
        if null.correlation:
            noise *= np.sqrt(1 - null.correlation)
            noise += np.sqrt(null.correlation) * self.rng.standard_normal(noise.shape[1])
        noise = np.repeat(noise, null.cluster, axis=1)[:, :n]
        mean = self.level + null.diurnal * np.sin(angle + self.phase)
        if shift is not None:
            moved = slice(0, self.numbers) if shift.all else place % self.numbers
            mean[moved] += shift.by * min(1.0, (age + 1) / shift.over)
            noise[moved] *= shift.scale
        values = noise + mean[:, None]
        codes = np.searchsorted(LEVEL_EDGES, values[self.numbers :]).astype(np.int32)
        if shift is not None and shift.moved:
            codes[place % self.categories, self.rng.random(n) < shift.moved] = len(LEVELS) - 1
        rows = Rows(values[: self.numbers], codes, START_MS + self.hour * HOUR_MS)
        self.hour += 1
        return rows


def cuts_of(windows: Sequence[Rows]) -> ModelCuts:
    """Build cuts of the rows of some windows."""
    numbers = np.concatenate([w.numbers for w in windows], axis=1)
    declared = build_category_cuts((), declared=LEVELS)
    return model_cuts(
        [(f"n{j}", build_numeric_cuts(column)) for j, column in enumerate(numbers)]
        + [(f"c{j}", declared) for j in range(windows[0].codes.shape[0])]
    )


def observe(cuts: ModelCuts, rows: Rows) -> Observed:
    """Count a window's rows as the monitor does."""
    n = rows.numbers.shape[1]
    state = observe_pane(
        cuts,
        n,
        numeric={f"n{j}": Column(column) for j, column in enumerate(rows.numbers)},
        categories={f"c{j}": Coded(codes, LEVELS) for j, codes in enumerate(rows.codes)},
        statuses={"ok": n},
        rules={},
    )
    return Observed(state=state)


def contract_of(cuts: ModelCuts, delta: float) -> Contract:
    """Return a contract of these features, with windows of an hour."""
    kinds = {
        name: Feature(kind="category" if name.startswith("c") else "number")
        for name in cuts.feature
    }
    return Contract(
        name="m",
        task="binary",
        features=kinds,
        windows=Windows(length="1h", min_rows=LEAST_ROWS),
        alarms=Alarms(smallest_shift=delta),
    )


class Reference:
    """Reference windows of some traffic, counted."""

    def __init__(self, traffic: Traffic, windows: int = REFERENCE_WINDOWS) -> None:
        self.rows = [traffic.window() for _ in range(windows)]
        self.cuts = cuts_of(self.rows[:CUT_WINDOWS])
        self.windows = [(one.start_ms, observe(self.cuts, one)) for one in self.rows]
        self.starts_ms = [one.start_ms for one in self.rows]
        self.contrasts = Contrasts.of(
            self.cuts,
            merged(one for _, one in self.windows),
            windows=windows,
            min_rows=LEAST_ROWS,
        )
        self.measured = [self.contrasts.measure(one, self.cuts) for _, one in self.windows]

    def measure(self, rows: Rows) -> Measured:
        """Read a window's rows, through their counts."""
        return self.contrasts.measure(observe(self.cuts, rows), self.cuts)

    def fitted(self, windows_per_alarm: float, delta: float) -> Fitted:
        """Fit and certify a detector, as the monitor does."""
        contract = contract_of(self.cuts, delta)
        made = fit_detector(
            self.cuts, self.windows, contract, windows_per_alarm, bounded={}, seed=1
        )
        if isinstance(made, Refused):
            raise TypeError(made.reason)
        return made

    def detector(self, windows_per_alarm: float, delta: float) -> Detector:
        """Return such a detector."""
        return self.fitted(windows_per_alarm, delta).detector(windows_per_alarm, HOUR_MS)

    def calibration(self, delta: float) -> Calibration:
        """Return what is fitted, without the certificate."""
        return calibrate(
            self.contrasts,
            self.measured,
            self.starts_ms,
            HOUR_MS,
            delta=delta,
            time_zone="UTC",
            min_rows=LEAST_ROWS,
        )


class Watch:
    """A detector with its state. An alarm is accepted at once: it hides none that would come after it."""

    def __init__(self, detector: Detector, state: State | None = None) -> None:
        self.detector = detector
        self.state = detector.start() if state is None else state
        self.alarms = 0

    def see(self, window: Measured, start_ms: int) -> Said:
        """Update with a window; return what is said of it."""
        self.state, said = self.detector.update(self.state, window, start_ms)
        if said.alarm:
            self.alarms += 1
            self.state = msgspec.structs.replace(self.state, muted={})
        return said


def without_whitening(calibration: Calibration) -> Calibration:
    """Return a calibration that takes windows for independent of each other: rho 0, f 1. A thing not to do."""
    m = calibration.windows
    variance = calibration.tau2 + 1 / calibration.mean_rows
    spread = np.full_like(variance, 1 + 2 * np.sqrt(2 / m))
    delta = float(calibration.floor.min())
    return msgspec.structs.replace(
        calibration,
        rho=np.zeros_like(variance),
        innovation=spread,
        marginal=spread,
        floor=np.maximum(delta, 3 * np.sqrt(variance / m)),
        gap=calibration.gap / np.sqrt(calibration.innovation)[:, None] * np.sqrt(spread)[:, None],
    )


class OneSample:
    """A betting e-detector per feature against reference shares taken for exact. A thing not to do.

    M = (1 + M) prod (q[b] / p[b])^c[b], q the shares of the windows since the last alarm and those of the reference
    as one window more; the mean of M over features is compared with A. It knows no variation between windows
    and no chance in the reference.
    """

    def __init__(self, reference: Sequence[Sequence[Floats]], windows_per_alarm: float) -> None:
        """`reference` holds the counts of every feature in every reference window, each of shape (bins,)."""
        totals = [np.sum(counts, axis=0) + 0.5 for counts in zip(*reference, strict=True)]
        self.shares = [total / total.sum() for total in totals]
        self.rows = [float(np.sum(total)) / len(reference) for total in totals]
        self.windows_per_alarm = windows_per_alarm
        self._reset()

    def _reset(self) -> None:
        self.log = np.full(len(self.shares), -np.inf)
        self.seen = [p * n for p, n in zip(self.shares, self.rows, strict=True)]

    def see(self, counts: Sequence[Floats]) -> bool:
        """Update with the counts of a window's features; return whether it alarms."""
        for j, (c, p) in enumerate(zip(counts, self.shares, strict=True)):
            q = self.seen[j] / self.seen[j].sum()
            self.log[j] = np.logaddexp(0, self.log[j]) + float((c * np.log(q / p)).sum())
            self.seen[j] = self.seen[j] + c
        highest = float(self.log.max())
        total = highest + np.log(np.exp(self.log - highest).mean())
        if total < np.log(self.windows_per_alarm):
            return False
        self._reset()
        return True
