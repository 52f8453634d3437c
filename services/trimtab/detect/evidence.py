"""The detector: evidence that something has moved, per window, under one alarm budget per model.

A mixture of Shiryaev-Roberts e-detectors over all contrasts and rates of a model (Shiryaev 1963, Roberts 1966;
e-detectors: Shin, Ramdas & Rinaldo 2023). Each factor exp(l) is an e-value: its mean, given the past, is at
most 1 for every change below the floor. So the mean of M grows by at most 1 per window, and with a reset at
each alarm the expected number of false alarms in T windows is at most T / A, whatever the dependence between
contrasts. Averages keep that; so does weight 0 (muting).

Notation
    A       windows per allowed false alarm: 720 hourly windows are 30 days
    e       r[t] - rho r[t-1], an innovation; d = floor (1 - rho), what it may be without a change
    l       g (± e - d - g/2) / v, the log-likelihood ratio of mean d + g against d, capped
    M       (1 + M) exp(l), per contrast, sign and gap g
    total   sum of weight x mean of M over signs and gaps; an alarm when it reaches A. Of a directed contrast the
            rise has the whole weight, and the fall none: still a mean of M fixed beforehand
    C       max(0, C) + l, restarted where it was at most 0: the windows since then are a change's own (onset)
Sources: statistics B3, B4.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from trimtab.detect.calibration import LAMBDAS, Calibration
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.orthonormal import Floats

SIGNS = np.array([1.0, -1.0])
RATE_STEPS = np.array([0.01, 0.03, 0.1, 0.3])
"""Rises of a rate that are looked for, as shares of what is not hit yet."""
MOST = 1e30
"""Evidence is kept below this: more says nothing, and stays finite."""
MOST_LOG = 60.0
WARNING_SHARE = 0.1
"""A warning from this share of an alarm's evidence on; sources that have it alone are named."""
RESOLVE_WINDOWS = (6, 12, 24)
"""An alarm is over by the last so many windows, whichever tells it first."""
RESOLVE_FLOORS = 1.5
MOST_RANKED = 10
MOST_SEGMENTS = 5
"""Sources and segments that every window ranks: a verdict keeps them, so they are bounded."""


class Recursion(Struct, frozen=True):
    """The arrays of one bank of recursions, all of one shape."""

    m: Floats
    """Evidence."""
    c: Floats
    """CUSUM of l, for the onset."""
    length: Floats
    """Windows since C was last at most 0."""
    sum: Floats
    """Sum of residuals over these."""

    @classmethod
    def empty(cls, *shape: int) -> "Recursion":
        """Return recursions that have seen nothing."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def after(self, log: Floats, residual: Floats, read: npt.NDArray[np.bool_]) -> "Recursion":
        """Return them after a window, where `read` holds; elsewhere they stay."""
        m = np.minimum((1 + self.m) * np.exp(np.minimum(log, MOST_LOG)), MOST)
        fresh = self.c <= 0
        c = np.where(fresh, 0, self.c) + log
        length = np.where(fresh, 0, self.length) + 1
        total = np.where(fresh, 0, self.sum) + residual
        old = (self.m, self.c, self.length, self.sum)
        return Recursion(
            *(np.where(read, a, b) for a, b in zip((m, c, length, total), old, strict=True))
        )

    def cleared(self, where: npt.NDArray[np.bool_]) -> "Recursion":
        """Return them without the evidence of some; onsets stay."""
        return replace(self, m=np.where(where, 0, self.m))


class Moved(Struct, frozen=True, kw_only=True):
    """One source that stands out."""

    source: str
    what: str
    """The contrast or rate with most evidence, such as `location`, `category web` or `missing`."""
    share: float
    """Its part of the whole evidence."""
    onset_ms: int
    """Start of the window since when it has moved, by its strongest recursion."""
    windows: int
    """Windows since the onset."""
    effect: float
    """Mean residual since the onset, in standard deviations of a row; of a rate its share since the onset."""
    error: float
    """Two standard errors of `effect`."""
    usual: float
    """What `effect` is without a change: 0; of a rate its share in the reference; of a pair of columns the z that
    `effect` is a change of."""
    beyond_level: bool = False
    """Whether `effect` is what is left after the part that goes with the source's level (`Calibration.bend`)."""


class Ranked(Struct, frozen=True):
    """A source's part of the evidence, whether or not there is enough of it to speak of."""

    source: str
    what: str
    """The contrast or rate with most evidence."""
    share: float


class SegmentShare(Struct, frozen=True):
    """A segment's part of the evidence, over all its sources."""

    segment: str
    """`column=value`."""
    share: float


class Muted(Struct, frozen=True):
    """A source with an open alarm: it has no weight until it is as it was, or has a new baseline."""

    moved: Moved
    """How it stood out when it alarmed."""
    residuals: Floats
    """Residuals of its contrasts over the last windows, shape (up to 24, its contrasts)."""
    rates: Floats
    """Hits and rows of its rates over the same windows, shape (up to 24, 2, its rates)."""


class State(Struct, frozen=True):
    """All that the detector remembers of the windows so far."""

    contrasts: Recursion
    """Shape (K, 2 signs, 5 gaps)."""
    rates: Recursion
    """Shape (R, 4 steps)."""
    residual: Floats
    """r of the last window, shape (K,)."""
    known: npt.NDArray[np.bool_]
    """Where that window had rows to read."""
    start_ms: int | None = None
    """The last window's start."""
    muted: Mapping[str, Muted] = {}

    @classmethod
    def empty(cls, contrasts: Contrasts) -> "State":
        """Return the state before the first window."""
        k, r = len(contrasts.contrast_names), len(contrasts.rate_names)
        return cls(
            Recursion.empty(k, SIGNS.size, LAMBDAS.size),
            Recursion.empty(r, RATE_STEPS.size),
            np.zeros(k),
            np.zeros(k, dtype=np.bool_),
        )


def cap(by_sign: Floats, windows_per_alarm: float, min_windows: int) -> float:
    """Return the most that one window may add to a log-evidence, so that an alarm needs `min_windows` windows.

    `by_sign` are the weights of contrasts and signs, shape (K, 2).
    """
    if min_windows <= 1 or not by_sign.any():
        return MOST_LOG
    heaviest = float(by_sign.max()) / LAMBDAS.size
    return float(np.log(windows_per_alarm / heaviest)) / min_windows + 0.5


def log_ratios(
    calibration: Calibration, e: Floats, d: Floats, variance: Floats, most: Floats
) -> Floats:
    """Return l of every contrast, sign and gap for innovations e, shape (..., K): shape (..., K, 2, 5).

    `most` is the cap of each contrast, shape (K,).
    """
    gap = calibration.gap[:, None, :]
    signed = e[..., None, None] * SIGNS[:, None]
    log: Floats = gap * (signed - d[..., None, None] - gap / 2) / variance[..., None, None]
    return np.minimum(log, most[:, None, None])


def rate_log_ratios(calibration: Calibration, hits: Floats, rows: Floats) -> Floats:
    """Return l of every rate and step, shape (R, 4): exact Binomial, tempered by the dispersion."""
    p0 = np.minimum(calibration.rate + calibration.allowance, 1 - 1e-9)[:, None]
    q = p0 + RATE_STEPS * (1 - p0)
    hit, miss = hits[:, None], (rows - hits)[:, None]
    log: Floats = hit * np.log(q / p0) + miss * np.log((1 - q) / (1 - p0))
    tempered: Floats = log / calibration.dispersion[:, None]
    return tempered


def share_bounds(hits: Floats, rows: Floats, dispersion: Floats) -> tuple[Floats, Floats]:
    """Return the 95 % bounds of shares (Agresti & Coull 1998), of rows that count for fewer by their dispersion.

    No hit in few rows leaves room for a share of some per cent.
    """
    n = np.maximum(rows, 0) / dispersion + 4
    middle = (hits / dispersion + 2) / n
    reach = 2 * np.sqrt(middle * (1 - middle) / n)
    return middle - reach, middle + reach


class Said(Struct, frozen=True, kw_only=True):
    """What the detector says of one window."""

    evidence: float
    """Total evidence as a share of what makes an alarm: 1 or more is an alarm."""
    alarm: bool
    warning: bool
    moved: tuple[Moved, ...] = ()
    """On an alarm or warning: the sources that make it, most evidence first."""
    open: tuple[str, ...] = ()
    """Sources whose alarm stands after this window."""
    resolved: tuple[str, ...] = ()
    """Sources whose alarm ended with this window."""
    ranking: tuple[Ranked, ...] = ()
    """Of every window: the sources with most evidence, at most MOST_RANKED. What is muted has none."""
    segments: tuple[SegmentShare, ...] = ()
    """The segments with most evidence, at most MOST_SEGMENTS."""


class Detector:
    """The detector of one model: what it looks at, what is usual, and its budget."""

    def __init__(
        self,
        contrasts: Contrasts,
        calibration: Calibration,
        windows_per_alarm: float,
        length_ms: int,
        min_windows: int = 2,
    ) -> None:
        self.contrasts = contrasts
        self.calibration = calibration
        self.windows_per_alarm = windows_per_alarm
        self.length_ms = length_ms
        self.min_windows = min_windows
        self.weights, self.rate_weights = contrasts.weights()
        self.by_sign = self.weights[:, None] * contrasts.sign_weights()
        self.cap = self._caps()
        self.paired = contrasts.paired
        self.names = [source.name for source in contrasts.sources]
        place = {name: at for at, name in enumerate(self.names)}
        self.source = np.array([place[s] for s, _ in contrasts.contrast_names], dtype=np.int64)
        self.rate_source = np.array([place[s] for s, _ in contrasts.rate_names], dtype=np.int64)
        self.labels = [label for _, label in contrasts.contrast_names]
        self.rate_labels = [rate for _, rate in contrasts.rate_names]
        segments = [source.segment for source in contrasts.sources]
        self.segments = list(dict.fromkeys(s for s in segments if s is not None))
        self.in_segment = np.array(
            [-1 if s is None else self.segments.index(s) for s in segments], dtype=np.int64
        )

    def _caps(self) -> Floats:
        """The cap of each contrast, shape (K,), by the heaviest of its group.

        The volume is one contrast of much weight; its low cap would make all others slower.
        """
        groups = self.contrasts.groups()
        more = self.contrasts.more_windows()
        caps = np.zeros(groups.size)
        for group in np.unique(groups):
            mine = groups == group
            least = self.min_windows + int(more[mine][0])
            caps[mine] = cap(self.by_sign[mine], self.windows_per_alarm, least)
        return caps

    def start(self) -> State:
        """Return the state before the first window."""
        return State.empty(self.contrasts)

    def update(self, state: State, window: Measured, start_ms: int) -> tuple[State, Said]:
        """Return the state after a closed window, and what is said of it. Windows come in order."""
        calibration = self.calibration
        muted = np.array([name in state.muted for name in self.names], dtype=np.bool_)
        read = calibration.readable(window.n, start_ms)
        x = calibration.straightened(window.x)
        residual = np.where(read, x - calibration.mu[calibration.slot(start_ms)], 0)
        state = self._counted(state, window, residual, read, start_ms, muted)
        by_contrast = (self.by_sign * state.contrasts.m.mean(2)).sum(1) * ~muted[self.source]
        by_rate = self.rate_weights * state.rates.m.mean(1) * ~muted[self.rate_source]
        by_source = np.zeros(len(self.names))
        np.add.at(by_source, self.source, by_contrast)
        np.add.at(by_source, self.rate_source, by_rate)
        total = float(by_source.sum())
        alarm = total >= self.windows_per_alarm
        warning = not alarm and total >= WARNING_SHARE * self.windows_per_alarm
        moved: list[Moved] = []
        if alarm or warning:
            strong = by_source >= WARNING_SHARE * self.windows_per_alarm
            strong[int(by_source.argmax())] = True
            ranked = sorted(np.flatnonzero(strong), key=lambda at: (-by_source[at], at))
            moved = [
                self._moved(state, int(at), by_contrast, by_rate, total, start_ms) for at in ranked
            ]
        resolved = tuple(
            name for name in sorted(state.muted) if self._is_over(name, state.muted[name])
        )
        if alarm:
            state = self._after_alarm(state, moved)
        elif resolved:
            state = replace(
                state, muted={k: v for k, v in state.muted.items() if k not in resolved}
            )
        return state, Said(
            evidence=total / self.windows_per_alarm,
            alarm=alarm,
            warning=warning,
            moved=tuple(moved),
            open=tuple(sorted(state.muted)),
            resolved=() if alarm else resolved,
            ranking=self._ranking(by_source, by_contrast, by_rate),
            segments=self._segment_shares(by_source),
        )

    def _ranking(
        self, by_source: Floats, by_contrast: Floats, by_rate: Floats
    ) -> tuple[Ranked, ...]:
        total = float(by_source.sum())
        ranked = np.argsort(-by_source, kind="stable")[:MOST_RANKED].tolist()
        return tuple(
            Ranked(
                self.names[at], self._main(at, by_contrast, by_rate), float(by_source[at]) / total
            )
            for at in ranked
            if by_source[at] > 0
        )

    def _main(self, place: int, by_contrast: Floats, by_rate: Floats) -> str:
        """The contrast or rate of a source with most evidence."""
        mine, rates = (
            np.flatnonzero(self.source == place),
            np.flatnonzero(self.rate_source == place),
        )
        if by_contrast[mine].max(initial=-1) >= by_rate[rates].max(initial=-1):
            at = int(mine[int(by_contrast[mine].argmax())])
            return self.labels[at]
        return self.rate_labels[int(rates[int(by_rate[rates].argmax())])]

    def _segment_shares(self, by_source: Floats) -> tuple[SegmentShare, ...]:
        total, inside = float(by_source.sum()), self.in_segment >= 0
        if not total or not inside.any():
            return ()
        found = np.bincount(self.in_segment[inside], by_source[inside], len(self.segments))
        ranked = np.argsort(-found, kind="stable")[:MOST_SEGMENTS].tolist()
        return tuple(
            SegmentShare(self.segments[at], float(found[at]) / total)
            for at in ranked
            if found[at] > 0
        )

    def _counted(
        self,
        state: State,
        window: Measured,
        residual: Floats,
        read: npt.NDArray[np.bool_],
        start_ms: int,
        muted: npt.NDArray[np.bool_],
    ) -> State:
        calibration = self.calibration
        follows = state.start_ms is not None and start_ms - state.start_ms == self.length_ms
        paired = read & state.known & follows
        rho = np.where(paired, calibration.rho, 0)
        e = residual - rho * state.residual
        d = calibration.floor * (1 - rho)
        variance = calibration.variance(np.where(read, window.n, 1)) * np.where(
            paired, calibration.innovation, calibration.marginal
        )
        variance = variance * calibration.spread_at(start_ms)
        log = log_ratios(calibration, e, d, variance, self.cap)
        counts = (read & ~muted[self.source])[:, None, None]
        contrasts = state.contrasts.after(log, residual[:, None, None], counts)
        rate_log = rate_log_ratios(calibration, window.hits, window.rows)
        share = window.hits / np.maximum(window.rows, 1)
        rates = state.rates.after(
            rate_log, share[:, None], ((window.rows > 0) & ~muted[self.rate_source])[:, None]
        )
        return State(
            contrasts,
            rates,
            residual,
            read,
            start_ms,
            {
                name: self._followed(name, one, window, residual, read)
                for name, one in state.muted.items()
            },
        )

    def _followed(
        self,
        name: str,
        one: Muted,
        window: Measured,
        residual: Floats,
        read: npt.NDArray[np.bool_],
    ) -> Muted:
        """Add a window to what is known of a source with an open alarm."""
        place = self.names.index(name)
        mine, rates = self.source == place, self.rate_source == place
        if not read[mine].all() or not (window.rows[rates] > 0).all():
            return one
        counts = np.stack([window.hits[rates], window.rows[rates]])
        return replace(
            one,
            residuals=np.concatenate([one.residuals, residual[mine][None]])[-RESOLVE_WINDOWS[-1] :],
            rates=np.concatenate([one.rates, counts[None]])[-RESOLVE_WINDOWS[-1] :],
        )

    def _is_over(self, name: str, one: Muted) -> bool:
        """Whether a source is as it was, over the last 6, 12 or 24 windows.

        What alarmed must surely be near its baseline, and nothing else surely off. A rule of thumb, outside the
        budget's proof.
        """
        place = self.names.index(name)
        return any(
            self._is_near(place, one, windows)
            for windows in RESOLVE_WINDOWS
            if one.residuals.shape[0] >= windows
        )

    def _is_near(self, place: int, one: Muted, windows: int) -> bool:
        calibration, source = self.calibration, self.contrasts.sources[place]
        mine, rates = self.source == place, self.rate_source == place
        error = 2 * self._standard_error(windows)[mine]
        off = one.residuals[-windows:].mean(0)
        off = np.where(self.by_sign[mine, 1] > 0, np.abs(off), off)
        alarmed = np.array([label == one.moved.what for label in source.labels], dtype=np.bool_)
        near = off + np.where(alarmed, error, -error) < RESOLVE_FLOORS * calibration.floor[mine]
        hits, rows = one.rates[-windows:].sum(0)
        low, high = share_bounds(hits, rows, calibration.dispersion[rates])
        least = (calibration.rate + calibration.allowance)[rates] + RATE_STEPS[0]
        alarmed = np.array([rate == one.moved.what for rate in source.rates], dtype=np.bool_)
        fine = np.where(alarmed, high, low) < least
        return bool(near.all() and fine.all())

    def _standard_error(self, windows: Floats | int) -> Floats:
        """Standard error of the mean residual over so many windows, shape (K,)."""
        c = self.calibration
        variance = (c.tau2 + 1 / c.mean_rows) * c.innovation / (1 - c.rho) ** 2
        return np.sqrt(variance / windows)

    def _moved(
        self,
        state: State,
        place: int,
        by_contrast: Floats,
        by_rate: Floats,
        total: float,
        start_ms: int,
    ) -> Moved:
        mine = np.where(self.source == place, by_contrast, -1)
        rates = np.where(self.rate_source == place, by_rate, -1)
        share = float(mine[mine > 0].sum() + rates[rates > 0].sum()) / total
        best, best_rate = mine.max(initial=-1), rates.max(initial=-1)
        if best >= best_rate:
            at = int(mine.argmax())
            bank, (label, usual) = state.contrasts, (self.contrasts.contrast_names[at][1], 0.0)
            if self.contrasts.sources[place].origin == "joint":
                usual = float(self.calibration.mu[self.calibration.slot(start_ms)][at])
        else:
            at = int(rates.argmax())
            label = self.contrasts.rate_names[at][1]
            bank, usual = state.rates, float(self.calibration.rate[at])
        evidence = bank.m[at]
        if best >= best_rate:
            evidence = np.where(self.by_sign[at][:, None] > 0, evidence, -1)
        top = np.unravel_index(int(evidence.argmax()), evidence.shape)
        windows = max(int(bank.length[at][top]), 1)
        effect = float(bank.sum[at][top]) / windows
        error = 0.0
        if best >= best_rate:
            error = 2 * float(self._standard_error(windows)[at])
        return Moved(
            source=self.names[place],
            what=label,
            share=share,
            onset_ms=start_ms - (windows - 1) * self.length_ms,
            windows=windows,
            effect=effect,
            error=error,
            usual=usual,
            beyond_level=bool(best >= best_rate and self.calibration.bend[at]),
        )

    def _after_alarm(self, state: State, moved: list[Moved]) -> State:
        """Begin anew: no evidence anywhere, and no weight for what has moved until that is over."""
        muted = dict(state.muted)
        for one in moved:
            place = self.names.index(one.source)
            muted[one.source] = Muted(
                one,
                np.zeros((0, int((self.source == place).sum()))),
                np.zeros((0, 2, int((self.rate_source == place).sum()))),
            )
        empty = self.start()
        return replace(
            state, contrasts=empty.contrasts, rates=empty.rates, muted=dict(sorted(muted.items()))
        )
