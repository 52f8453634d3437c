"""What variation is usual: the detector's parameters, fitted on the reference windows of a baseline.

Per contrast: a seasonal profile, how much windows vary beyond sampling, how they depend on the window before,
and the least change that so short a reference can tell from chance. Each step errs towards fewer alarms.

Notation
    m        reference windows; t one of them, k a contrast
    x, n     contrasts and rows of a window (`contrasts.Measured`), x straightened: what follows a source's leading
             contrast along a curve is taken off (`_bends`)
    mu[s]    mean of x in seasonal slot s, shrunk to the mean of all (empirical Bayes); r = x - mu(slot of t)
    tau2     variance of r beyond sampling: E[r²] = tau2 + 1/n
    rho      lag-1 autocorrelation of z = r / sqrt(tau2 + 1/n); E[t] = z[t] - rho z[t-1], vr = var(E) / var(z)
    f        how much longer-run variance exceeds that of independent E; of directed contrasts times `upper_tail`
    c        1 + 2 sqrt(2 / m_eff), for tau2 is an estimate, m_eff = m (1 - rho²) / (1 + rho²)
    s        vr f c: the variance of an innovation is v(n) s h
    h        by how much innovations vary more at some hours of the day than on the whole, at least 1 (`spread_by_hour`)
    floor    max(delta, 3 se): the change below which nothing is said (`se`: of mu); of directed contrasts at least
             sqrt(tau2), what windows usually differ by: less is no worse latency
Sources: statistics B2; whitening under autocorrelation: Johnson & Bagshaw 1974.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from trimtab.detect.contrasts import Contrasts, Measured

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

Season = Literal["none", "hour", "hour and weekend", "hour of week", "weekday"]
SLOTS: dict[Season, int] = {
    "none": 1,
    "hour": 24,
    "hour and weekend": 48,
    "hour of week": 168,
    "weekday": 7,
}
DAY_MS = 86_400_000
CYCLE_MS: dict[Season, int] = {
    "hour": DAY_MS,
    "hour and weekend": 7 * DAY_MS,
    "hour of week": 7 * DAY_MS,
    "weekday": 7 * DAY_MS,
}
LEAST_CYCLES = 2
"""A season is a candidate when the reference has at least so many of its cycles."""
BLOCKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
LEAST_BLOCKS = 12
RATE_ALLOWANCE = 0.005
"""The least rise of a rate that is spoken of, were the reference endless."""
MOST_RHO = 0.95
BEND_ERRORS = 4.0
HOURS_NEAR = 2
"""Hours on either side that tell how much windows vary at an hour of the day."""
MOST_EXPONENT = 500.0
LAMBDAS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
"""Sizes of change that are looked for, in standard deviations of a window."""
FLOOR_ERRORS = 3.0
INHERITED_FLOOR_ERRORS = 4.0
REFUSED_WINDOWS, DOUBTFUL_WINDOWS, FULL_WINDOWS = 48, 96, 168
"""Fewer windows than the first give no detector; fewer than the second warn; from the third on all is well."""
LEAST_REBASE_WINDOWS = 12


class Calibration(Struct, frozen=True, kw_only=True):
    """The fitted parameters of a model's contrasts and rates. Arrays are of shape (K,) where nothing is said."""

    season: Season
    time_zone: str
    windows: int
    """Reference windows, m."""
    leader: Ints
    """Place of the contrast that others of its source bend with, -1 where none does."""
    bend: Floats
    """What a contrast has for each unit of its leader's square."""
    mu: Floats
    """Shape (slots, K)."""
    tau2: Floats
    mean_rows: Floats
    rho: Floats
    innovation: Floats
    """s, the inflation of an innovation's variance: vr f c, times the certificate's multiplier."""
    marginal: Floats
    """The same of a residual whose predecessor is not known: f c."""
    spread: Floats
    """h by hour of the day, shape (24, K); of windows of a day or more (1, K)."""
    floor: Floats
    gap: Floats
    """The changes looked for, beyond the floor: lambda sqrt((tau2 + 1 / mean rows) s), shape (K, 5)."""
    rate: Floats
    """Share of each rate's rows in the reference, shape (R,)."""
    dispersion: Floats
    """Pearson dispersion of the rates over windows, of sums of these where they wander, at least 1, shape (R,)."""
    allowance: Floats
    """A rate may rise by this much: the floor of rates, shape (R,)."""
    least_rows: Floats
    """Rows that a contrast needs in a window to be read."""
    familiar: Bools
    """Which hours of the week (weekdays, of windows of a day or more) the reference has, shape (168,) or (7,)."""
    only_familiar: Bools
    """Contrasts that are read at such times only."""
    directed: Bools
    """Contrasts whose rise alone is evidence."""

    def readable(self, n: Floats, start_ms: int) -> Bools:
        """Return which contrasts can be read of a window, shape (K,)."""
        season: Season = "weekday" if self.familiar.size == SLOTS["weekday"] else "hour of week"
        slot = slots_of(season, [start_ms], self.time_zone)[0]
        enough: Bools = n >= self.least_rows
        return enough if self.familiar[slot] else enough & ~self.only_familiar

    def slot(self, start_ms: int) -> int:
        """The seasonal slot of a window."""
        return int(slots_of(self.season, [start_ms], self.time_zone)[0])

    def season_of(self, places: Bools) -> Season:
        """Return the coarsest season that the profiles of some contrasts have, which `places` marks."""
        profile = self.mu[:, places]
        for season in ("none", "hour", "hour and weekend"):
            if self.season == "weekday" or SLOTS[season] >= SLOTS[self.season]:
                break
            slots = coarser_slots(self.season, season)
            first = np.array([np.flatnonzero(slots == slot)[0] for slot in slots])
            if (profile == profile[first]).all():
                return season
        return "none" if (profile == profile[0]).all() else self.season

    def straightened(self, x: Floats) -> Floats:
        """Return contrasts without what is explained by the square of their leaders, shape of x (..., K)."""
        straight: Floats = x - self.bend * x[..., np.maximum(self.leader, 0)] ** 2
        return straight

    def spread_at(self, start_ms: int) -> Floats:
        """Return h of a window, shape (K,)."""
        hour = int(_hours([start_ms], self.time_zone, len(self.spread))[0])
        h: Floats = self.spread[hour]
        return h

    def variance(self, n: Floats) -> Floats:
        """Variance of a residual over n rows, before inflation, shape of n.

        Below the reference's mean it grows as 1/n whole: then it covers both variation between windows and
        rows that come in clusters.
        """
        usual = self.tau2 + 1 / self.mean_rows
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(n >= self.mean_rows, self.tau2 + 1 / n, usual * self.mean_rows / n)

    def inflated(self, factor: float) -> "Calibration":
        """All variances of innovations times `factor`."""
        return replace(
            self,
            innovation=self.innovation * factor,
            marginal=self.marginal * factor,
            gap=self.gap * np.sqrt(factor),
        )


def slots_of(season: Season, starts_ms: Sequence[int], time_zone: str) -> Ints:
    """Return the seasonal slot of each window start, by the clock of `time_zone`."""
    if season == "none":
        return np.zeros(len(starts_ms), dtype=np.int64)
    zone = ZoneInfo(time_zone)
    times = [datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone) for ms in starts_ms]
    match season:
        case "hour":
            slots = [t.hour for t in times]
        case "hour and weekend":
            slots = [t.hour + 24 * (t.weekday() >= 5) for t in times]
        case "hour of week":
            slots = [t.hour + 24 * t.weekday() for t in times]
        case "weekday":
            slots = [t.weekday() for t in times]
    return np.array(slots, dtype=np.int64)


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def slot_name(season: Season, slot: int) -> str:
    """Return what people call a slot, such as `Saturday 14:00`."""
    match season:
        case "none":
            return "always"
        case "hour":
            return f"{slot:02d}:00"
        case "hour and weekend":
            return f"{'weekend' if slot >= 24 else 'weekday'} {slot % 24:02d}:00"
        case "hour of week":
            return f"{_WEEKDAYS[slot // 24]} {slot % 24:02d}:00"
        case "weekday":
            return _WEEKDAYS[slot]


class _Reference(Struct, frozen=True):
    """Reference windows as arrays: x and n of shape (m, K), whether each may be read, who follows whom."""

    x: Floats
    n: Floats
    valid: Bools
    follows: Bools
    """Shape (m - 1,): window t + 1 begins where t ends."""
    starts_ms: Sequence[int]
    days: Ints

    def of(self, places: Ints) -> "_Reference":
        """Return it of some contrasts."""
        return replace(self, x=self.x[:, places], n=self.n[:, places], valid=self.valid[:, places])


def fit(
    windows: Sequence[Measured],
    starts_ms: Sequence[int],
    length_ms: int,
    *,
    delta: float,
    time_zone: str = "UTC",
    least_rows: int | Floats = 1,
    season: Season | None = None,
    groups: Ints | None = None,
    only_familiar: Bools | None = None,
    directed: Bools | None = None,
    families: Ints | None = None,
    located: Bools | None = None,
) -> Calibration:
    """Fit the parameters on reference windows, oldest first; the season is chosen unless it is given.

    `least_rows` (one for all, or by contrast), `groups` of contrasts that have one season, `only_familiar`,
    `directed`, `families` and `located` are of shape (K,), as `Contrasts` gives them. Raises ValueError for fewer than two windows.
    """
    if len(windows) < 2:
        raise ValueError(f"{len(windows)} reference windows; a detector needs {REFUSED_WINDOWS}.")
    x = np.stack([w.x for w in windows])
    n = np.stack([w.n for w in windows])
    starts = np.asarray(starts_ms, dtype=np.int64)
    reference = _Reference(
        x,
        n,
        n >= least_rows,
        np.diff(starts) == length_ms,
        list(starts_ms),
        slots_days(starts_ms, time_zone),
    )
    k = x.shape[1]
    if groups is None:
        groups = np.zeros(k, dtype=np.int64)
    seasons: list[Season] = ["none"] * k
    for group in np.unique(groups).tolist():
        mine = np.flatnonzero(groups == group)
        chosen = season or choose_season(reference.of(mine), length_ms, time_zone)
        for place in mine.tolist():
            seasons[place] = chosen
    rates = _fit_rates(np.stack([w.hits for w in windows]), np.stack([w.rows for w in windows]))
    finest: Season = max(seasons, key=lambda one: SLOTS[one], default="none")
    if directed is None:
        directed = np.zeros(k, dtype=np.bool_)
    hours = 1 if length_ms >= DAY_MS else SLOTS["hour"]
    leader, bend = np.full(k, -1, dtype=np.int64), np.zeros(k)
    if families is not None and located is not None:
        leader, bend = _bends(reference, seasons, time_zone, families, located)
    reference = replace(reference, x=x - bend * x[:, np.maximum(leader, 0)] ** 2)
    fitted = _fit_contrasts(reference, seasons, finest, time_zone, delta, directed, hours)
    week: Season = "weekday" if length_ms >= DAY_MS else "hour of week"
    familiar = np.zeros(SLOTS[week], dtype=np.bool_)
    familiar[slots_of(week, starts_ms, time_zone)] = True
    return Calibration(
        **fitted,
        season=finest,
        time_zone=time_zone,
        windows=len(windows),
        leader=leader,
        bend=bend,
        rate=rates.share,
        dispersion=rates.dispersion,
        allowance=np.maximum(RATE_ALLOWANCE, FLOOR_ERRORS * rates.error),
        least_rows=np.broadcast_to(np.asarray(least_rows, dtype=np.float64), (k,)).copy(),
        familiar=familiar,
        only_familiar=np.zeros(k, dtype=np.bool_) if only_familiar is None else only_familiar,
        directed=directed,
    )


def calibrate(
    contrasts: Contrasts,
    windows: Sequence[Measured],
    starts_ms: Sequence[int],
    length_ms: int,
    *,
    delta: float,
    time_zone: str,
    min_rows: int,
) -> Calibration:
    """Fit the parameters of a model's contrasts, each with the rows that it needs and its group's season."""
    return fit(
        windows,
        starts_ms,
        length_ms,
        delta=delta,
        time_zone=time_zone,
        least_rows=contrasts.least_rows(min_rows),
        groups=contrasts.groups(),
        only_familiar=contrasts.only_familiar(),
        directed=contrasts.directed(),
        families=contrasts.families(),
        located=contrasts.located(),
    )


def slots_days(starts_ms: Sequence[int], time_zone: str) -> Ints:
    """Return the number of each start's calendar day in `time_zone`."""
    zone = ZoneInfo(time_zone)
    return np.array(
        [datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone).toordinal() for ms in starts_ms],
        dtype=np.int64,
    )


def _mean(values: Floats, where: Bools) -> Floats:
    """Mean over windows, of the valid ones; 0 where there are none."""
    mean: Floats = np.where(where, values, 0).sum(0) / np.maximum(where.sum(0), 1)
    return mean


def _inverse(n: Floats) -> Floats:
    inverse: Floats = 1 / np.maximum(n, 1)
    return inverse


def _bends(
    reference: _Reference,
    seasons: Sequence[Season],
    time_zone: str,
    families: Ints,
    located: Bools,
) -> tuple[Ints, Floats]:
    """Return leader and bend of each contrast, shape (K,): regression adjustment (Hawkins 1991), of squares only.

    A level that wanders takes the other contrasts of its feature along: the spread goes with the level's square,
    and comes in bursts that no variance of its own is large enough for (level .2 sd, AR(.8): 3 to 9 times the
    budget without this, .2 to .8 with it). Leader is the location, of categories the one that varies most
    beyond sampling. The regression is within seasonal slots, on the leader and its square; a bend counts from
    `BEND_ERRORS` standard errors on.
    """
    x, n, valid = reference.x, reference.n, reference.valid
    leader, bend = np.full(x.shape[1], -1, dtype=np.int64), np.zeros(x.shape[1])
    for season in dict.fromkeys(seasons):
        mine = np.array([one == season for one in seasons])
        slots = slots_of(season, reference.starts_ms, time_zone)
        beyond = _mean(_within(x, valid, slots) ** 2 - _inverse(n), valid)
        for family in np.unique(families[mine & (families >= 0)]).tolist():
            places = np.flatnonzero(mine & (families == family))
            leading = places[located[places]]
            if not leading.size:
                leading = places[[int(beyond[places].argmax())]]
            leader[places[places != leading[0]]] = leading[0]
        led = np.flatnonzero(mine & (leader >= 0))
        inside = valid[:, led] & valid[:, leader[led]]
        level = np.where(inside, x[:, leader[led]], 0)
        first, square, y = (
            _within(np.where(inside, one, 0), inside, slots) for one in (level, level**2, x[:, led])
        )
        square = square - first * _ratio((first * square).sum(0), (first**2).sum(0))
        y = y - first * _ratio((first * y).sum(0), (first**2).sum(0))
        slope = _ratio((square * y).sum(0), (square**2).sum(0))
        rest = ((y - slope * square) ** 2).sum(0)
        degrees = np.maximum(inside.sum(0) - len(np.unique(slots)) - 2, 1)
        error = np.sqrt(_ratio(rest / degrees, (square**2).sum(0)))
        bend[led] = np.where(np.abs(slope) > BEND_ERRORS * error, slope, 0)
    return np.where(bend != 0, leader, -1), bend


def _within(values: Floats, valid: Bools, slots: Ints) -> Floats:
    """Return values less the mean of their slot, 0 where not valid."""
    result = np.zeros_like(values)
    for slot in np.unique(slots):
        inside = slots == slot
        result[inside] = values[inside] - _mean(values[inside], valid[inside])
    return np.where(valid, result, 0)


def _ratio(over: Floats, under: Floats) -> Floats:
    ratio: Floats = np.divide(over, under, out=np.zeros_like(over), where=under > 1e-24)
    return ratio


def _fit_contrasts(
    reference: _Reference,
    seasons: Sequence[Season],
    finest: Season,
    time_zone: str,
    delta: float,
    directed: Bools,
    hours: int,
) -> dict[str, Floats]:
    x, n, valid = reference.x, reference.n, reference.valid
    m = np.maximum(valid.sum(0), 1).astype(np.float64)
    mu, used = np.zeros((SLOTS[finest], x.shape[1])), np.ones(x.shape[1])
    for season in dict.fromkeys(seasons):
        mine = np.array([one == season for one in seasons])
        slots = slots_of(season, reference.starts_ms, time_zone)
        means = seasonal_means(x[:, mine], n[:, mine], valid[:, mine], slots, SLOTS[season])
        mu[:, mine] = means[coarser_slots(finest, season)]
        used[mine] = len(np.unique(slots))
    r = np.where(valid, x - mu[slots_of(finest, reference.starts_ms, time_zone)], 0)
    tau2 = np.maximum(0, _mean(r**2 * (m / np.maximum(m - used, 1)) - _inverse(n), valid))
    z = r / np.sqrt(tau2 + _inverse(n))
    z0 = _mean(z**2, valid) + 1e-12
    pairs = valid[1:] & valid[:-1] & reference.follows[:, None]
    rho = np.clip(_mean(z[1:] * z[:-1], pairs) / z0, 0, MOST_RHO)
    rho = np.where(rho > 2 / np.sqrt(m), rho, 0)
    e = np.where(pairs, z[1:] - rho * z[:-1], 0)
    e0 = _mean(e**2, pairs) + 1e-12
    f = long_run(e, e0)
    vr = np.clip(e0 / z0, 0.05, 1.2)
    m_eff = np.maximum(m * (1 - rho**2) / (1 + rho**2), 4)
    c = 1 + 2 * np.sqrt(2 / m_eff)
    mean_rows = np.maximum(_mean(n, valid), 1)
    window_variance = tau2 + 1 / mean_rows
    se = np.sqrt(f * vr / (1 - rho) ** 2 * window_variance / m)
    f = f * np.where(directed, upper_tail(e, e0, pairs), 1)
    innovation = vr * f * c
    return {
        "mu": mu,
        "tau2": tau2,
        "mean_rows": mean_rows,
        "rho": rho,
        "innovation": innovation,
        "marginal": f * c,
        "spread": spread_by_hour(
            e, e0, pairs, _hours(reference.starts_ms[1:], time_zone, hours), hours
        ),
        "floor": _floor(delta, FLOOR_ERRORS * se, tau2, directed),
        "gap": LAMBDAS * np.sqrt(window_variance * innovation)[:, None],
    }


def _floor(delta: float, errors: Floats, tau2: Floats, directed: Bools) -> Floats:
    least: Floats = np.where(directed, np.sqrt(tau2), 0)
    return np.maximum(np.maximum(delta, errors), least)


def coarser_slots(finest: Season, season: Season) -> Ints:
    """Return the slot of `season` that each slot of a finer one lies in, shape (slots of the finer,)."""
    slots = np.arange(SLOTS[finest])
    if finest == season:
        return slots
    hour, weekend = slots % 24, slots // 24 >= (5 if finest == "hour of week" else 1)
    match season:
        case "hour":
            return hour
        case "hour and weekend":
            return hour + 24 * weekend
    return np.zeros_like(slots)


def seasonal_means(x: Floats, n: Floats, valid: Bools, slots: Ints, count: int) -> Floats:
    """Return the mean of each slot, shape (count, K), shrunk to the mean of all by how much slots differ.

    A slot without windows has the mean of all.
    """
    weight = np.where(valid, n, 0.0)
    total = np.maximum(weight.sum(0), 1)
    overall: Floats = (weight * x).sum(0) / total
    if count == 1:
        return overall.reshape(1, -1)
    mean_rows = np.maximum(_mean(n, valid), 1)
    means, rows = np.tile(overall, (count, 1)), np.zeros((count, x.shape[1]))
    spread = np.zeros(x.shape[1])
    present = np.unique(slots)
    for slot in present:
        inside = slots == slot
        rows[slot] = weight[inside].sum(0)
        filled = rows[slot] > 0
        mean = (weight[inside] * x[inside]).sum(0) / np.maximum(rows[slot], 1)
        means[slot] = np.where(filled, mean, overall)
        spread += ((x[inside] - means[slot]) ** 2 * (weight[inside] / mean_rows)).sum(0)
    degrees = np.maximum(valid.sum(0) - present.size, 1)
    noise = spread / degrees * (mean_rows / np.maximum(rows, 1))
    noise[rows == 0] = 0
    between = np.maximum(0, ((means - overall) ** 2 - noise)[present].mean(0))
    shrunk = overall + (means - overall) * between / np.maximum(between + noise, 1e-12)
    return np.where(rows > 0, shrunk, overall)


def long_run(e: Floats, e0: Floats) -> Floats:
    """Return f: L var(mean of L innovations) / var(one), the largest over block lengths L that is no chance.

    `e` has shape (m - 1, K). Block means, as Johnson & Bagshaw do for CUSUM; at least 12 blocks.
    """
    f: Floats = np.ones_like(e0)
    m = e.shape[0] + 1
    for length in BLOCKS:
        if m // length < LEAST_BLOCKS:
            break
        blocks = (m - 1) // length
        means = e[: blocks * length].reshape(blocks, length, -1).mean(1)
        ratio = length * (means**2).mean(0) / e0
        f = np.maximum(f, np.where(ratio > 1 + 2 * np.sqrt(2 / blocks), ratio, 1))
    return f


def spread_by_hour(e: Floats, e0: Floats, pairs: Bools, hours: Ints, count: int) -> Floats:
    """Return h: the variance of innovations at each hour over that of all, at least 1, shape (count, K).

    Where a level that goes up and down with the day meets the edge of a bin, the bin's share varies most: one
    variance for all hours is too small for the hours that matter, and those come one after the other. The
    ratio of an hour is smoothed over its neighbours, shrunk to 1 by what is chance (empirical Bayes, as
    the profile of means), and raised by its standard error after that: where hours do not differ, h is 1.
    `e` has shape (m - 1, K), `hours` (m - 1,).
    """
    if count == 1:
        return np.ones((1, e0.size))
    steps = np.arange(-HOURS_NEAR, HOURS_NEAR + 1)
    near = (np.arange(count) + steps[:, None]) % count
    weight = (HOURS_NEAR + 1.0) - np.abs(steps)
    seen, squares = np.zeros((count, e0.size)), np.zeros((count, e0.size))
    np.add.at(seen, hours, pairs)
    np.add.at(squares, hours, np.where(pairs, e**2, 0))
    total = np.einsum("w,whk->hk", weight, seen[near])
    windows = total**2 / np.maximum(np.einsum("w,whk->hk", weight**2, seen[near]), 1)
    ratio = np.einsum("w,whk->hk", weight, squares[near]) / np.maximum(total, 1) / e0
    ratio = np.where(total > 0, ratio, 1)
    noise = np.maximum(_mean(e**4, pairs) / e0**2 - 1, 0) / np.maximum(windows, 1)
    between = np.maximum(0, ((ratio - 1) ** 2 - noise).mean(0))
    kept = between / (between + noise + 1e-12)
    h: Floats = np.maximum(1, 1 + (ratio - 1) * kept + np.sqrt(noise * kept))
    return h


def _hours(starts_ms: Sequence[int], time_zone: str, count: int) -> Ints:
    season: Season = "none" if count == 1 else "hour"
    return slots_of(season, starts_ms, time_zone)


def upper_tail(e: Floats, e0: Floats, pairs: Bools) -> Floats:
    """Return how much larger a variance of e must be called for its upper tail to be that of a normal, shape (K,).

    The least s >= 1 with mean exp(lambda e / sqrt(e0)) <= exp(lambda² s / 2) at each lambda: the sub-Gaussian
    variance proxy (Kahane 1960) of the reference itself. Latencies and gauges come in bursts, and one window of
    these is many standard deviations out; contrasts of features are means of many rows and need none.
    """
    u = e / np.sqrt(e0)
    proxy: Floats = np.ones_like(e0)
    for size in LAMBDAS.tolist():
        mean = _mean(np.exp(np.minimum(size * u, MOST_EXPONENT)), pairs)
        proxy = np.maximum(proxy, 2 * np.log(np.maximum(mean, 1)) / size**2)
    return proxy


def choose_season(reference: _Reference, length_ms: int, time_zone: str) -> Season:
    """Return the season that predicts the windows of a day best from those of the other days.

    The loss is the mean squared residual of all contrasts, each by its variance without a season.
    """
    span_ms = reference.starts_ms[-1] + length_ms - reference.starts_ms[0]
    wanted: tuple[Season, ...] = (
        ("hour", "hour and weekend", "hour of week") if length_ms < DAY_MS else ("weekday",)
    )
    candidates = [s for s in wanted if span_ms >= LEAST_CYCLES * CYCLE_MS[s]]
    best: Season = "none"
    least = _loss(reference, np.zeros(len(reference.starts_ms), dtype=np.int64), 1)
    for season in candidates:
        slots = slots_of(season, reference.starts_ms, time_zone)
        loss = _loss(reference, slots, SLOTS[season])
        if loss < least:
            best, least = season, loss
    return best


def _loss(reference: _Reference, slots: Ints, count: int) -> float:
    x, n, valid = reference.x, reference.n, reference.valid
    overall = seasonal_means(x, n, valid, np.zeros_like(slots), 1)[0]
    scale = _mean((x - overall) ** 2, valid) + 1e-12
    lost = np.zeros(x.shape[1])
    for day in np.unique(reference.days):
        left_out = reference.days == day
        kept = ~left_out
        if not kept.any():
            return float("inf")
        mu = seasonal_means(x[kept], n[kept], valid[kept], slots[kept], count)
        error = (x[left_out] - mu[slots[left_out]]) ** 2
        lost += np.where(valid[left_out], error, 0).sum(0)
    return float((lost / scale).sum())


class _Rates(Struct, frozen=True):
    """The reference's rates, their dispersion, and the standard error of each, shape (R,)."""

    share: Floats
    dispersion: Floats
    error: Floats


def _fit_rates(hits: Floats, rows: Floats) -> _Rates:
    """Fit the rates on hits and rows of the reference windows, (m, R).

    The Pearson dispersion is that of sums of windows where rates wander (`long_run`): tempering by that of single
    windows took a bad afternoon for many bad hours.
    """
    share = hits.sum(0) / np.maximum(rows.sum(0), 1)
    variance = rows * share * (1 - share)
    seen = variance > 0
    u = np.where(seen, (hits - rows * share) / np.sqrt(np.where(seen, variance, 1)), 0)
    windows = np.maximum(seen.sum(0), 1)
    pearson = (u**2).sum(0) / windows
    f = long_run(u[1:], pearson + 1e-12)
    dispersion = np.maximum(1.0, pearson * f * (1 + 2 * np.sqrt(2 / windows)))
    error = np.sqrt(dispersion * share * (1 - share) / np.maximum(rows.sum(0), 1))
    return _Rates(share, dispersion, error)


def rebased(
    old: Calibration,
    windows: Sequence[Measured],
    starts_ms: Sequence[int],
    *,
    delta: float,
) -> Calibration:
    """Return a calibration with the location of a few new windows, and variance and season of the old one.

    The profile keeps its shape and moves by the mean residual of the new windows (statistics B2b); the floor
    is at least 4 standard errors of that. Raises ValueError below 12 windows.
    """
    m = len(windows)
    if m < LEAST_REBASE_WINDOWS:
        raise ValueError(f"{m} windows; a new baseline needs {LEAST_REBASE_WINDOWS}.")
    x, n = np.stack([old.straightened(w.x) for w in windows]), np.stack([w.n for w in windows])
    valid = n >= old.least_rows
    slots = slots_of(old.season, starts_ms, old.time_zone)
    weight = np.where(valid, n, 0.0)
    shift = (weight * (x - old.mu[slots])).sum(0) / np.maximum(weight.sum(0), 1)
    window_variance = old.tau2 + 1 / old.mean_rows
    se = np.sqrt(
        old.innovation / (1 - old.rho) ** 2 * window_variance / np.maximum(valid.sum(0), 1)
    )
    rows = np.stack([w.rows for w in windows])
    rates = _fit_rates(np.stack([w.hits for w in windows]), rows)
    dispersion = np.maximum(old.dispersion, rates.dispersion)
    error = np.sqrt(dispersion * rates.share * (1 - rates.share) / np.maximum(rows.sum(0), 1))
    return replace(
        old,
        windows=m,
        mu=old.mu + shift,
        floor=_floor(delta, INHERITED_FLOOR_ERRORS * se, old.tau2, old.directed),
        rate=rates.share,
        dispersion=dispersion,
        allowance=np.maximum(RATE_ALLOWANCE, INHERITED_FLOOR_ERRORS * error),
    )
