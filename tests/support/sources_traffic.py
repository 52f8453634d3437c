"""Seeded windows of counts with every kind of source, for tests of the detector."""

import numpy as np
from msgspec.structs import replace

from trimtab.detect.calibration import calibrate
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.evidence import Detector
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, PaneState, ResourceState, observe_pane
from trimtab.stats.cuts import CategoryCuts, build_numeric_cuts, model_cuts
from trimtab.stats.loghistogram import LogHistogram

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


def gauge(values, name="cpu_percent"):
    return Observed(state=PaneState(BARE.cuts_id), resources=ResourceState.observe({name: values}))


def latency(values):
    return Observed(state=PaneState(BARE.cuts_id, latency_ms=LogHistogram.observe(values)))


def volume(rows):
    return Observed(state=PaneState(BARE.cuts_id, int(rows)))


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
