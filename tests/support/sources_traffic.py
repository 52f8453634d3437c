"""Seeded windows of counts with every kind of source, for tests of the detector."""

import numpy as np
from msgspec.structs import replace
from scipy.special import ndtr

from trimtab.detect.calibration import calibrate
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.evidence import Detector
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, FeatureState, PaneState, ResourceState, observe_pane
from trimtab.stats.cuts import CategoryCuts, build_numeric_cuts, model_cuts
from trimtab.stats.loghistogram import LogHistogram
from trimtab.stats.outliers import fit, outlying

HOUR = 3_600_000
START = 1_700_006_400_000
NORMAL = build_numeric_cuts(np.random.default_rng(0).normal(size=20_000))
CHANNELS = ("web", "app", "branch")
CHANNEL_SHARES = (0.6, 0.37, 0.03)
CUTS = model_cuts([("income", NORMAL), ("channel", CategoryCuts(CHANNELS))], [("score", NORMAL)])
BARE = model_cuts([])


def starts(count, first=START):
    return [first + i * HOUR for i in range(count)]


def pane(rng, rows, shift=0.0, rules=None, shares=CHANNEL_SHARES, missing=0.0):
    income = rng.normal(size=rows) + shift
    income[rng.random(rows) < missing] = np.nan
    return observe_pane(
        CUTS,
        rows,
        numeric={"income": Column(income), "score": Column(rng.normal(size=rows))},
        categories={"channel": [CHANNELS[i] for i in rng.choice(3, rows, p=shares)]},
        statuses={"ok": rows},
        rules=rules or {},
        latency_ms=np.exp(3 + 0.5 * rng.normal(size=rows)),
    )


def whole(rng, rows=500, segment_shift=0.0, **more):
    """A window of all rows, of two segments, and 60 samples of a gauge."""
    return Observed(
        state=pane(rng, rows, **more),
        resources=ResourceState.observe({"cpu_percent": rng.normal(40, 5, 60)}),
        segments={
            "region=north": pane(rng, rows // 2, shift=segment_shift),
            "region=south": pane(rng, rows // 25),
        },
    )


def drawn(rng, rows=1_000, shift=0.0, branch=0.0, missing=0.0, slower=1.0):
    """A window as `whole`, its counts drawn at once: many windows in little time."""
    cumulative = np.concatenate([[0.0], ndtr(np.array(NORMAL.edges) - shift), [1.0]])
    plain = np.concatenate([[0.0], ndtr(np.array(NORMAL.edges)), [1.0]])
    absent = int(rng.binomial(rows, missing))
    shares = np.array(CHANNEL_SHARES) * (1 - branch / (1 - CHANNEL_SHARES[2]))
    shares[2] = CHANNEL_SHARES[2] + branch

    def counted(cuts, counts, absent=0):
        return FeatureState(cuts.cuts_id, (*counts.tolist(), absent, 0, 0, 0))

    return Observed(
        state=PaneState(
            CUTS.cuts_id,
            rows,
            features={
                "income": counted(
                    NORMAL, rng.multinomial(rows - absent, np.diff(cumulative)), absent
                ),
                "channel": counted(CUTS.feature["channel"], rng.multinomial(rows, shares)),
            },
            outputs={"score": counted(NORMAL, rng.multinomial(rows, np.diff(plain)))},
            latency_ms=LogHistogram.observe(slower * np.exp(3 + 0.5 * rng.normal(size=rows))),
        )
    )


def gauge(values, name="cpu_percent"):
    return Observed(state=PaneState(BARE.cuts_id), resources=ResourceState.observe({name: values}))


def latency(values):
    return Observed(state=PaneState(BARE.cuts_id, latency_ms=LogHistogram.observe(values)))


def volume(rows, rules=None):
    return Observed(state=PaneState(BARE.cuts_id, int(rows), rules=rules or {}))


def merged(windows):
    total = windows[0]
    for window in windows[1:]:
        total = total.merge(window)
    return total


def detector_of(cuts, reference, *, windows_per_alarm=720, min_rows=200, bounded=None):
    contrasts = Contrasts.of(
        cuts, merged(reference), bounded or {}, windows=len(reference), min_rows=min_rows
    )
    fitted = calibrate(
        contrasts,
        [contrasts.measure(w, cuts) for w in reference],
        starts(len(reference)),
        HOUR,
        delta=0.05,
        time_zone="UTC",
        min_rows=min_rows,
    )
    return Detector(contrasts, fitted, windows_per_alarm, HOUR)


def follow(detector, cuts, windows, first, unmute=False):
    """Return what is said of each window; `unmute` counts each alarm anew, as the budget does."""
    state, said = detector.start(), []
    for window, start_ms in zip(windows, starts(len(windows), first), strict=True):
        state, one = detector.update(state, detector.contrasts.measure(window, cuts), start_ms)
        said.append(one)
        if unmute and one.alarm:
            state = replace(state, muted={})
    return said


def autoregressive(rng, count, rho, sd=1.0):
    shocks = rng.normal(size=count) * np.sqrt(1 - rho**2) * sd
    values, last = np.empty(count), rng.normal() * sd
    for place in range(count):
        last = rho * last + shocks[place]
        values[place] = last
    return values


# --- traffic without a change -------------------------------------------------------------------------


def gauges(rng, count, within, between=0.0, daily=0.0):
    """60 dependent samples per window, 10 s apart; the level wanders and follows the hour."""
    samples = autoregressive(rng, count * 60, within, 8).reshape(count, 60)
    level = autoregressive(rng, count, 0.8, between)
    level += daily * np.sin(2 * np.pi * np.arange(count) / 24)
    return [gauge(row) for row in np.clip(40 + samples + level[:, None], 0.01, 100)]


def bursts(rng, count, every, length):
    """A queue that is empty but for bursts of about `length` samples."""
    samples = count * 60
    busy, at = np.zeros(samples, bool), 0
    while at < samples:
        at += int(rng.geometric(1 / every))
        end = at + int(rng.geometric(1 / length))
        busy[at:end] = True
        at = end
    depth = np.where(busy, rng.poisson(8, samples), 0)
    return [gauge(row, "queue_depth") for row in depth.reshape(-1, 60)]


def latencies(rng, count, wander=0.0, daily=0.0, incidents=0.0):
    level = autoregressive(rng, count, 0.8, wander) + daily * np.sin(
        2 * np.pi * np.arange(count) / 24
    )
    rows = rng.poisson(400, count)
    windows = []
    for t in range(count):
        values = np.exp(3 + level[t] + 0.5 * rng.normal(size=rows[t]))
        if rng.random() < incidents:
            values[rng.random(rows[t]) < rng.beta(1, 8)] *= 5
        windows.append(latency(values))
    return windows


def volumes(rng, count, mean, daily=1.0, bursty=0.0):
    lam = mean * daily ** (np.sin(2 * np.pi * np.arange(count) / 24) / 2)
    return [volume(v) for v in rng.poisson(lam * np.exp(autoregressive(rng, count, 0.8, bursty)))]


def timeouts(rng, count, share, spread):
    """Rows that time out, more in some windows than in others: a beta of this mean and concentration."""
    shares = rng.beta(share * spread, (1 - share) * spread, count)
    rows = rng.poisson(1_000, count)
    return [
        volume(n, {"response:timeout": int(rng.binomial(n, p))})
        for n, p in zip(rows, shares, strict=True)
    ]


def wandering_timeouts(rng, count, share, wander):
    """Rows that time out, of a share whose logarithm wanders."""
    shares = share * np.exp(autoregressive(rng, count, 0.8, wander))
    rows = rng.poisson(1_000, count)
    return [
        volume(n, {"response:timeout": int(rng.binomial(n, min(p, 1.0)))})
        for n, p in zip(rows, shares, strict=True)
    ]


def scored_cuts(rng, features=10, rows=2_000):
    """Cuts of normal numbers, with what makes a row an outlier."""
    numbers = {f"n{i}": rng.normal(size=rows) for i in range(features)}
    cuts = {name: build_numeric_cuts(values) for name, values in numbers.items()}
    return model_cuts(cuts.items(), outliers=fit(cuts, numbers, {}, rows))


def odd_rows(cuts, rng, count, far=0.0, rows=1_000):
    """Windows of normal rows, a share of them 3 to 5 sd out in three features; no column but the outliers is counted."""
    windows = []
    for _ in range(count):
        numbers = {name: rng.normal(size=rows) for name in cuts.feature}
        odd = np.flatnonzero(rng.random(rows) < far)
        for name in ("n1", "n4", "n7"):
            numbers[name][odd] = rng.choice([-1, 1], odd.size) * rng.uniform(3, 5, odd.size)
        found = int(outlying(cuts, numbers, {}, rows).sum())
        state = PaneState(cuts.cuts_id, rows, rules={"request:outlier": found})
        windows.append(Observed(state=state))
    return windows


NULLS = {
    "independent samples": (gauges, {"within": 0.0}),
    "dependent samples": (gauges, {"within": 0.95}),
    "dependent samples, a wandering level, a day": (
        gauges,
        {"within": 0.95, "between": 6.0, "daily": 10.0},
    ),
    "bursts of minutes": (bursts, {"every": 2_000, "length": 15}),
    "independent latencies": (latencies, {}),
    "wandering latencies": (latencies, {"wander": 0.05, "daily": 0.3}),
    "incidents": (latencies, {"wander": 0.05, "incidents": 0.03}),
    "poisson volume": (volumes, {"mean": 1_000}),
    "few rows": (volumes, {"mean": 5}),
    "diurnal volume": (volumes, {"mean": 1_000, "daily": 9.0}),
    "bursty volume": (volumes, {"mean": 1_000, "daily": 9.0, "bursty": 0.7}),
    "steady timeouts": (timeouts, {"share": 0.01, "spread": 1e6}),
    "bursty timeouts": (timeouts, {"share": 0.01, "spread": 100}),
    "wandering timeouts": (wandering_timeouts, {"share": 0.02, "wander": 0.5}),
}


def null(name, rng, count):
    """Return windows of one source that nothing happens to."""
    make, how = NULLS[name]
    return make(rng, count, **how)
