"""Checks a calibration against its own reference, and says what a detector can be expected to see.

The certificate: innovations of the reference, in blocks of 24 windows so that what depends stays together, are
played to the detector many times over; where it alarms more than half as often as allowed, all variances grow
until it does not. It seldom binds; it catches heavy tails (statistics B2, step 8).

The plan: after how many windows a lasting change of a given size is found (statistics B4).
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from trimtab.detect.calibration import LAMBDAS, Calibration
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.evidence import MOST, SIGNS, Detector, log_ratios
from trimtab.detect.orthonormal import Floats

BLOCK_WINDOWS = 24
CHAINS = 32
BUDGETS = 40
"""The innovations are played for so many times A windows, over all chains."""
MOST_WINDOWS_PER_ALARM = 2_000
"""A longer A is checked with this one: the walk to it would take minutes."""
ALLOWED = 0.5
"""Alarms per A that a reference may show before variances grow."""
FACTORS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)


class Certificate(Struct, frozen=True):
    """How often a detector alarmed on innovations of its own reference."""

    factor: float
    """What all variances were multiplied by."""
    alarms_per_budget: float
    """Alarms per A windows, then."""
    windows: int
    """Windows played."""
    windows_per_alarm: float
    """The A that they were played with."""


def certify(
    contrasts: Contrasts,
    calibration: Calibration,
    windows: Sequence[Measured],
    starts_ms: Sequence[int],
    windows_per_alarm: float,
    length_ms: int,
    seed: int,
    min_windows: int = 2,
) -> tuple[Calibration, Certificate]:
    """Return a calibration that keeps the budget on its own reference, and what showed it."""
    played = min(windows_per_alarm, MOST_WINDOWS_PER_ALARM)
    innovations = reference_innovations(calibration, windows, starts_ms, length_ms)
    for factor in FACTORS:
        wider = calibration.inflated(factor)
        detector = Detector(contrasts, wider, played, length_ms, min_windows)
        alarms, count = _play(detector, innovations, seed)
        rate = alarms * played / count
        if rate <= ALLOWED:
            break
    return wider, Certificate(factor, rate, count, played)


def reference_innovations(
    calibration: Calibration,
    windows: Sequence[Measured],
    starts_ms: Sequence[int],
    length_ms: int,
) -> Floats:
    """Return the innovations of reference windows as of windows of the mean size and usual spread, (m - 1, K)."""
    x = np.stack([calibration.straightened(w.x) for w in windows])
    n = np.stack([w.n for w in windows])
    valid = np.stack([calibration.readable(row, at) for row, at in zip(n, starts_ms, strict=True)])
    slots = np.array([calibration.slot(start_ms) for start_ms in starts_ms])
    r = np.where(valid, x - calibration.mu[slots], 0)
    usual = np.sqrt(calibration.tau2 + 1 / calibration.mean_rows)
    z = r / np.sqrt(np.where(valid, calibration.variance(np.maximum(n, 1)), 1)) * usual
    follows = (np.diff(np.asarray(starts_ms)) == length_ms)[:, None] & valid[1:] & valid[:-1]
    spread = np.stack([calibration.spread_at(start_ms) for start_ms in starts_ms[1:]])
    return np.where(follows, (z[1:] - calibration.rho * z[:-1]) / np.sqrt(spread), 0)


def _play(detector: Detector, innovations: Floats, seed: int) -> tuple[int, int]:
    """Play blocks of innovations to chains of the detector; return (alarms, windows)."""
    rng = np.random.default_rng(seed)
    calibration = detector.calibration
    block = min(BLOCK_WINDOWS, innovations.shape[0])
    steps = -(-int(BUDGETS * detector.windows_per_alarm) // CHAINS)
    d = calibration.floor * (1 - calibration.rho)
    variance = (calibration.tau2 + 1 / calibration.mean_rows) * calibration.innovation
    m = np.zeros((CHAINS, d.size, SIGNS.size, LAMBDAS.size))
    weights = detector.by_sign / LAMBDAS.size
    begin = np.zeros(CHAINS, dtype=np.int64)
    alarms = 0
    for step in range(steps):
        at = step % block
        if at == 0:
            begin = rng.integers(0, innovations.shape[0] - block + 1, CHAINS)
        log = log_ratios(calibration, innovations[begin + at], d, variance, detector.cap)
        m = np.minimum((1 + m) * np.exp(log), MOST)
        over = (m.sum(3) * weights).sum((1, 2)) >= detector.windows_per_alarm
        alarms += int(over.sum())
        m[over] = 0
    return alarms, steps * CHAINS


def expected_delay(detector: Detector, theta: Floats | float, rows: Floats | float) -> Floats:
    """Return the windows until a lasting shift `theta` of each contrast is found, shape (K,); inf below the floor.

    `theta` is in standard deviations of a row, as residuals are; `rows` per window; both one for all, or by
    contrast. Evidence of one contrast alone: others that move with it make it sooner.
    """
    c = detector.calibration
    n = np.broadcast_to(np.asarray(rows, dtype=np.float64), c.rho.shape)
    deviation = np.sqrt(c.variance(n) * c.innovation)
    z = (theta - c.floor) * (1 - c.rho) / deviation
    # The first window moves against one that has not: its innovation is the whole theta.
    first = (theta - c.floor * (1 - c.rho)) / deviation
    # The gaps were set for the reference's mean size: in deviations of such windows.
    steps = c.gap / deviation[:, None]
    # A window adds no more than the cap, which is why an alarm needs so many windows.
    most = detector.cap[:, None]
    gain = np.minimum(steps * z[:, None] - steps**2 / 2, most)
    jump = np.minimum(steps * first[:, None] - steps**2 / 2, most)
    weight = detector.by_sign.max(1) / LAMBDAS.size
    least = detector.min_windows + detector.contrasts.more_windows()
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.log(detector.windows_per_alarm / weight)[:, None]
        windows = np.where(gain > 0, 1 + np.maximum(needed - jump, 0) / gain, np.inf).min(1)
    found: Floats = np.maximum(least, windows)
    return found
