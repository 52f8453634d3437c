"""What a detector can be expected to see, and when: in the user's units, before anything has moved.

Notation
    theta   mean of a contrast after a change; of the location of a number shifted by s standard deviations of a
            normal, sqrt(12) (Phi(s / sqrt(2)) - 1/2) (statistics B4: P(new > reference) = 1/2 + theta / sqrt(12))
    floor   the theta below which nothing is said
    gain    what one window adds to the log-evidence on average, after the change

Units of a size
    sd      a number's location, in standard deviations of its rows: all its contrasts move, as those of a normal of
            the same ranks would, and the first to find it counts
    points  a category's share, a rate, or the share above a quantile: 0.05 is five percentage points more
    fall    rows that stay away: 0.7 is a window with 30 % of its usual rows
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from scipy.special import ndtr

from trimtab.detect.calibration import RATE_ALLOWANCE
from trimtab.detect.certificate import expected_delay
from trimtab.detect.drift import kind_of
from trimtab.detect.evidence import Detector, rate_log_ratios
from trimtab.detect.orthonormal import Floats
from trimtab.detect.sources import VOLUME_UNIT, SourceContrasts, share_moved, shifted
from trimtab.detect.words import sd_equivalents
from trimtab.records import Kind

Unit = Literal["sd", "points", "fall"]
Limit = Literal["contract", "reference", "variation"]

SIZES: dict[Unit, tuple[float, ...]] = {
    "sd": (0.1, 0.25, 0.5, 1.0),
    "points": (0.01, 0.03, 0.05, 0.1),
    "fall": (0.4, 0.5, 0.7, 1.0),
}
MOST_SHIFT_SD = 8.0
"""Larger shifts are all the same: every row is beyond the reference."""


class Planned(Struct, frozen=True, kw_only=True):
    """What is expected of one figure of one source."""

    source: str
    what: str
    """`location`, `category web`, `missing`, `above p95`, `fewer rows`."""
    kind: Kind
    unit: Unit
    floor: float
    """The size of change below which nothing is said."""
    limit: Limit
    """What sets the floor: the contract's smallest shift; a reference too short for it; or how much windows differ
    from each other (latencies, gauges, volume)."""
    sizes: tuple[float, ...]
    windows: tuple[float, ...]
    """Windows until a lasting change of each size is found, on average; inf: it never is."""


class Support(Struct, frozen=True, kw_only=True):
    """What the length of the reference allows."""

    windows: int
    """Reference windows."""
    sufficient: bool
    source: str | None
    """The source whose floor the reference raises most; None where it raises none."""
    floor_sd: float
    """Its floor, in sd-equivalents."""
    wanted_sd: float
    """The contract's smallest shift, in sd-equivalents."""
    windows_wanted: int
    """Reference windows that would support this, if they vary as these do."""

    @property
    def says(self) -> str:
        """One plain sentence."""
        if self.sufficient:
            return f"The reference of {self.windows} windows supports alarms from {self.wanted_sd:.2f} sd on."
        return (
            f"A reference of {self.windows} windows cannot support alarms below {self.floor_sd:.2f} sd "
            f"({self.source}); {self.windows_wanted} would support {self.wanted_sd:.2f}."
        )


class Floor(Struct, frozen=True, kw_only=True):
    """The smallest change of one figure of a source that the detector speaks of."""

    what: str
    unit: Unit
    floor: float
    limit: Limit


def floors(detector: Detector, name: str) -> tuple[Floor, ...]:
    """Return the floors of a source's figures that have a unit; none for a source that is not watched."""
    found: list[Floor] = []
    place = rate_place = 0
    for source in detector.contrasts.sources:
        if source.name == name:
            for at, what in enumerate(source.labels, place):
                unit = _unit_of(source, what)
                if unit is not None:
                    floor = float(detector.calibration.floor[at])
                    size = _size(source, what, unit, floor)
                    limit = _contrast_limit(detector, source, at)
                    found.append(Floor(what=what, unit=unit, floor=size, limit=limit))
            for at, what in enumerate(source.rates, rate_place):
                allowance = float(detector.calibration.allowance[at])
                limit = _rate_limit(allowance)
                found.append(Floor(what=what, unit="points", floor=allowance, limit=limit))
        place += source.size
        rate_place += len(source.rates)
    return tuple(found)


def theta_of_sd(shift: float) -> float:
    """Return the mean of the location after a shift in standard deviations; `words.sd_equivalents` inverts it."""
    return math.sqrt(12) * (float(ndtr(shift / math.sqrt(2))) - 0.5)


def plan(
    detector: Detector, rows: float | None = None, sizes: dict[Unit, Sequence[float]] | None = None
) -> tuple[Planned, ...]:
    """Return what is expected of every figure, in the order of the sources.

    `rows` per window, where they differ from the reference's; gauges have the samples they had. `sizes` are the
    changes asked for, by unit. Raises ValueError for a size that cannot be.
    """
    wanted = {unit: tuple((sizes or {}).get(unit, usual)) for unit, usual in SIZES.items()}
    _check(wanted)
    n = _rows(detector, rows)
    found: list[Planned] = []
    place = rate_place = 0
    for source in detector.contrasts.sources:
        mine = np.arange(place, place + source.size)
        for at, what in zip(mine.tolist(), source.labels, strict=True):
            planned = _contrast(detector, source, what, at, n, wanted)
            if planned is not None:
                found.append(planned)
        source_rows = float(n[mine].max()) if source.size else _base_rows(detector, rows)
        for at, what in enumerate(source.rates, rate_place):
            found.append(_rate(detector, source, what, at, source_rows, wanted["points"]))
        place += source.size
        rate_place += len(source.rates)
    return tuple(found)


def support(detector: Detector, delta: float) -> Support:
    """Return what the reference allows, beside `delta`, the contract's smallest shift (as a theta).

    The standard error of a level falls as one over the root of the reference windows, and the floor is three of
    these (four where the variation is inherited).
    """
    c = detector.calibration
    least = np.maximum(delta, np.where(c.directed, np.sqrt(c.tau2), 0))
    ratio = np.where(c.floor > least * (1 + 1e-9), c.floor / least, 1)
    wanted_sd = sd_equivalents(delta)
    worst = int(ratio.argmax()) if ratio.size else 0
    if not ratio.size or ratio[worst] <= 1:
        return Support(
            windows=c.windows,
            sufficient=True,
            source=None,
            floor_sd=wanted_sd,
            wanted_sd=wanted_sd,
            windows_wanted=c.windows,
        )
    return Support(
        windows=c.windows,
        sufficient=False,
        source=detector.contrasts.contrast_names[worst][0],
        floor_sd=sd_equivalents(float(c.floor[worst])),
        wanted_sd=sd_equivalents(float(least[worst])),
        windows_wanted=math.ceil(c.windows * float(ratio[worst]) ** 2),
    )


def _check(wanted: dict[Unit, tuple[float, ...]]) -> None:
    for unit, sizes in wanted.items():
        most = MOST_SHIFT_SD if unit == "sd" else 1.0
        for size in sizes:
            if not 0 < size <= most:
                raise ValueError(
                    f"A change of {size:g} {unit}; give more than 0, at most {most:g}."
                )


def _rows(detector: Detector, rows: float | None) -> Floats:
    """Rows of each contrast in a window, shape (K,)."""
    usual = detector.calibration.mean_rows
    if rows is None:
        return usual
    scale = rows / _base_rows(detector, None)
    fixed = [
        s.origin in ("resource", "volume") for s in detector.contrasts.sources for _ in s.labels
    ]
    return np.where(np.array(fixed, dtype=np.bool_), usual, np.maximum(usual * scale, 1))


def _base_rows(detector: Detector, rows: float | None) -> float:
    """Rows of a window: as given, else the most that any column of the whole traffic holds."""
    if rows is not None:
        return rows
    usual = [
        float(n)
        for (s, n) in zip(_by_contrast(detector), detector.calibration.mean_rows, strict=True)
        if s.segment is None and s.origin in ("feature", "output", "latency")
    ]
    return max(usual, default=1.0)


def _by_contrast(detector: Detector) -> Iterable[SourceContrasts]:
    return (s for s in detector.contrasts.sources for _ in s.labels)


def _contrast(
    detector: Detector,
    source: SourceContrasts,
    what: str,
    at: int,
    n: Floats,
    wanted: dict[Unit, tuple[float, ...]],
) -> Planned | None:
    c = detector.calibration
    floor = float(c.floor[at])
    in_units = _unit_of(source, what)
    if in_units is None:
        return None
    sizes = wanted[in_units]
    windows = []
    for size in sizes:
        if in_units == "sd" and source.usual:
            thetas = np.zeros(n.size)
            mine = slice(at, at + source.size)  # the location is a source's first contrast
            moved = shifted(source, size)
            thetas[mine] = moved if source.directed else np.abs(moved)
            windows.append(float(expected_delay(detector, thetas, n)[mine].min()))
        else:
            theta = _theta(source, what, in_units, size)
            delay = math.inf if theta is None else float(expected_delay(detector, theta, n)[at])
            windows.append(delay)
    return Planned(
        source=source.name,
        what=what,
        kind=source.kind,
        unit=in_units,
        floor=_size(source, what, in_units, floor),
        limit=_contrast_limit(detector, source, at),
        sizes=sizes,
        windows=tuple(windows),
    )


def _contrast_limit(detector: Detector, source: SourceContrasts, at: int) -> Limit:
    floor = float(detector.calibration.floor[at])
    usual = math.sqrt(float(detector.calibration.tau2[at])) if source.directed else 0.0
    if 0 < usual >= floor * (1 - 1e-9):
        return "variation"
    least = float(detector.calibration.floor.min())
    return "contract" if floor <= least * (1 + 1e-9) else "reference"


def _unit_of(source: SourceContrasts, what: str) -> Unit | None:
    if source.origin == "volume":
        return "fall"
    if what == "location":
        return "sd"
    is_share = what.startswith(("category ", "above ")) or what == "rare categories"
    return "points" if is_share else None


def _theta(source: SourceContrasts, what: str, unit: Unit, size: float) -> float | None:
    """The mean of a contrast after a change of a size; None where a share has no room for it."""
    match unit:
        case "sd":
            return theta_of_sd(size)
        case "fall":
            return -VOLUME_UNIT * math.log2(max(1 - size, 1e-3))
        case "points":
            usual, _ = share_moved(source, what, 0.0) or (0.0, 0.0)
            if usual + size > 1:
                return None
            if what.startswith("above "):
                return 2 * math.asin(math.sqrt(usual + size)) - 2 * math.asin(math.sqrt(usual))
            return size / math.sqrt(usual * (1 - usual))


def _size(source: SourceContrasts, what: str, unit: Unit, theta: float) -> float:
    """The size of a change that moves a contrast by theta: inverts `_theta`."""
    match unit:
        case "sd":
            return sd_equivalents(theta)
        case "fall":
            return 1 - 2 ** (-theta / VOLUME_UNIT)
        case "points":
            usual, moved = share_moved(source, what, theta) or (0.0, 0.0)
            return moved - usual


def _rate(
    detector: Detector,
    source: SourceContrasts,
    what: str,
    at: int,
    rows: float,
    sizes: tuple[float, ...],
) -> Planned:
    usual = float(detector.calibration.rate[at])
    weight = float(detector.rate_weights[at])
    all_rows = np.full(detector.rate_weights.size, rows)
    windows = []
    for size in sizes:
        share = min(usual + size, 1.0)
        log = rate_log_ratios(detector.calibration, all_rows * share, all_rows)[at]
        gain = float(log.max())
        needed = math.log(detector.windows_per_alarm * log.size / weight)
        # Half a window more: windows are whole.
        windows.append(
            max(1.0, 0.5 + needed / gain) if gain > 0 and usual + size <= 1 else math.inf
        )
    return Planned(
        source=source.name,
        what=what,
        kind=kind_of(source, what),
        unit="points",
        floor=float(detector.calibration.allowance[at]),
        limit=_rate_limit(float(detector.calibration.allowance[at])),
        sizes=sizes,
        windows=tuple(windows),
    )


def _rate_limit(allowance: float) -> Limit:
    return "reference" if allowance > RATE_ALLOWANCE else "contract"
