"""The drift detector keeps its budget of false alarms, finds changes as soon as it says, and obeys its laws."""

from functools import cache

import numpy as np
import pytest
from drift_traffic import (
    HOUR_MS,
    NULLS,
    SHIFTS,
    START_MS,
    OneSample,
    Reference,
    Traffic,
    Watch,
    observe,
    without_whitening,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import special, stats

from trimtab.detect import certificate
from trimtab.detect.calibration import RATE_ALLOWANCE, Calibration, fit
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.drift import merged
from trimtab.detect.evidence import (
    Detector,
    Moved,
    Muted,
    cap,
    log_ratios,
    rate_log_ratios,
)
from trimtab.detect.observed import Observed
from trimtab.detect.sources import SourceContrasts, ordinary
from trimtab.stats.aggregate import Column, FeatureState, PaneState, observe_pane
from trimtab.stats.cuts import (
    SPECIAL_BINS,
    build_category_cuts,
    build_numeric_cuts,
    model_cuts,
)

BUDGET = 100
"""A: short, so that many budgets fit into a test."""


def allowed(windows, windows_per_alarm=BUDGET):
    """Most alarms that a detector within its budget shows, but for one run in a thousand."""
    budgets = windows / windows_per_alarm
    return budgets + 3 * np.sqrt(budgets)


@cache
def made(null, *, seed=0, windows=336, numbers=8, categories=2):
    """Traffic after its reference, and the reference."""
    traffic = Traffic(NULLS[null], [seed, 5], numbers=numbers, categories=categories)
    reference = Reference(traffic, windows)
    return traffic, reference


def alarms(watch, traffic, reference, windows):
    for _ in range(windows):
        rows = traffic.window()
        watch.see(reference.measure(rows), rows.start_ms)
    return watch.alarms


# --- each factor is an e-value ------------------------------------------------------------------------


def known(k, *, floor=0.0, rows=1_000, rates=0):
    """Parameters as they are for windows of independent rows, nothing fitted."""
    one = np.ones(k)
    return Calibration(
        season="none",
        time_zone="UTC",
        windows=336,
        leader=np.full(k, -1),
        bend=np.zeros(k),
        mu=np.zeros((1, k)),
        tau2=0 * one,
        mean_rows=rows * one,
        rho=0 * one,
        innovation=one,
        marginal=one,
        floor=floor * one,
        spread=np.ones((1, k)),
        gap=np.array([0.25, 0.5, 1, 2, 4]) / np.sqrt(rows) * one[:, None],
        rate=np.full(rates, 0.01),
        dispersion=np.ones(rates),
        allowance=np.full(rates, RATE_ALLOWANCE),
        directed=np.zeros(k, dtype=np.bool_),
        least_rows=one,
        familiar=np.ones(168, dtype=np.bool_),
        only_familiar=np.zeros(k, dtype=np.bool_),
    )


@settings(deadline=None)
@given(st.floats(0, 0.1), st.floats(-1, 1), st.integers(100, 10**6), st.floats(1, 60))
def test_a_factor_has_mean_one_at_most_for_every_change_below_the_floor(floor, part, rows, most):
    calibration = known(1, floor=floor, rows=rows)
    deviation = 1 / np.sqrt(rows)
    z, step = np.linspace(-12, 12, 4_001, retstep=True)
    e = (part * floor + z * deviation)[:, None]
    log = log_ratios(calibration, e, calibration.floor, np.array([deviation**2]), np.array([most]))
    mean = (np.exp(log) * stats.norm.pdf(z)[:, None, None, None]).sum(0) * step
    assert (mean <= 1 + 1e-9).all()
    if part == 1 and most == 60:
        assert np.allclose(mean[0, 0], 1)


@settings(deadline=None)
@given(st.integers(1, 3_000), st.floats(0, 1), st.floats(1, 30))
def test_a_rates_factor_has_mean_one_at_most_for_every_rate_below_the_allowed(
    rows, part, dispersion
):
    calibration = replace(known(1, rates=1), dispersion=np.array([dispersion]))
    hits = np.arange(rows + 1)
    p = part * (calibration.rate[0] + RATE_ALLOWANCE)
    log = rate_log_ratios(calibration, hits[:, None], np.full((rows + 1, 1), rows))
    probability = stats.binom.logpmf(hits, rows, p)[:, None]
    assert (
        np.exp(special.logsumexp(log.reshape(rows + 1, -1) + probability, axis=0)) <= 1 + 1e-9
    ).all()


def plain_contrasts(k, rates=()):
    return Contrasts(
        tuple(
            SourceContrasts(
                name=f"n{i}",
                matrix=np.zeros((2, 1)),
                labels=("location",),
                weights=(0.75,),
                rates=rates,
            )
            for i in range(k)
        )
    )


def test_with_known_parameters_the_mean_time_to_an_alarm_is_one_to_three_budgets():
    k, windows = 8, 200 * BUDGET
    detector = Detector(plain_contrasts(k), known(k), BUDGET, HOUR_MS)
    watch, rng = Watch(detector), np.random.default_rng(2)
    n, none = np.full(k, 1_000.0), np.zeros(0)
    for t, x in enumerate(rng.normal(0, 1 / np.sqrt(1_000), (windows, k))):
        watch.see(Measured(x, n, none, none), START_MS + t * HOUR_MS)
    assert BUDGET <= windows / watch.alarms <= 3 * BUDGET


# --- the budget is kept -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_without_a_change_alarms_stay_within_the_budget(null):
    traffic, reference = made(null)
    detector = reference.detector(BUDGET, 0.05)
    assert (detector.calibration.season == "none") == (not NULLS[null].diurnal)
    assert alarms(Watch(detector), traffic.branch(1), reference, 800) <= allowed(800)


def counted(reference, per_feature, start_ms):
    """A window of these counts of ordinary bins, read as every window is."""
    features = {
        name: FeatureState(cut.cuts_id, (*map(int, counts), *[0] * SPECIAL_BINS))
        for (name, cut), counts in zip(reference.cuts.feature.items(), per_feature, strict=True)
    }
    state = PaneState(reference.cuts.cuts_id, int(per_feature[0].sum()), features=features)
    return reference.contrasts.measure(Observed(state=state), reference.cuts), start_ms


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1_000, 10_000, 100_000])
def test_a_change_of_exactly_the_floor_in_every_feature_is_within_the_budget(rows):
    _, reference = made("iid", numbers=8, categories=0)
    rng = np.random.default_rng(rows)
    shares, tilted = [], []
    features = [s for s in reference.contrasts.sources if s.name in reference.cuts.feature]
    for source, (name, cut) in zip(features, reference.cuts.feature.items(), strict=True):
        counts = sum(
            ordinary(cut, observe(reference.cuts, r).state.features[name])
            for r in reference.rows[:24]
        )
        p = counts / counts.sum()
        shares.append(p)
        tilted.append(p)
        assert source.labels[0] == "location"
    known_windows = [
        counted(reference, [rng.multinomial(rows, p) for p in shares], START_MS + t * HOUR_MS)
        for t in range(336)
    ]
    fitted = fit(*map(list, zip(*known_windows, strict=True)), HOUR_MS, delta=0.05, season="none")
    # The shares for which the mean of each location contrast is its floor beyond what it is now.
    place = 0
    for j, source in enumerate(features):
        h = source.matrix[:, 0]
        spread = shares[j] @ h**2 - (shares[j] @ h) ** 2
        move = fitted.floor[place] + fitted.mu[0, place] - shares[j] @ h
        tilted[j] = shares[j] * (1 + move / spread * (h - shares[j] @ h))
        assert tilted[j] @ h - fitted.mu[0, place] == pytest.approx(fitted.floor[place])
        place += source.size
    watch = Watch(Detector(reference.contrasts, fitted, BUDGET, HOUR_MS))
    for t in range(500):
        watch.see(
            *counted(
                reference,
                [rng.multinomial(rows, p) for p in tilted],
                START_MS + (336 + t) * HOUR_MS,
            )
        )
    assert watch.alarms <= allowed(500)


@pytest.mark.slow
@pytest.mark.parametrize("null", ["iid", "ar"])
def test_a_reference_of_168_windows_is_enough(null):
    total = 0
    for seed in range(3):
        traffic, reference = made(null, seed=seed + 10, windows=168, numbers=4, categories=1)
        detector = reference.detector(BUDGET, 0.05)
        total += alarms(Watch(detector), traffic.branch(1), reference, 400)
    assert total <= allowed(1_200)


@pytest.mark.slow
def test_without_whitening_dependent_windows_exceed_the_budget():
    """The tests above have the power to see a detector that is not valid."""
    traffic, reference = made("ar")
    budget, windows = 300, 1_500
    plain = Detector(
        reference.contrasts, without_whitening(reference.calibration(0.02)), budget, HOUR_MS
    )
    most = allowed(windows, budget)
    assert alarms(Watch(plain), traffic.branch(2), reference, windows) > most
    whitened = reference.detector(budget, 0.02)
    assert alarms(Watch(whitened), traffic.branch(2), reference, windows) <= most


@pytest.mark.slow
def test_a_reference_taken_for_exact_exceeds_the_budget():
    traffic, reference = made("ar")

    def counts(rows):
        state = observe(reference.cuts, rows).state
        return [ordinary(cut, state.features[f]) for f, cut in reference.cuts.feature.items()]

    detector = OneSample([counts(rows) for rows in reference.rows], BUDGET)
    branch = traffic.branch(3)
    assert sum(detector.see(counts(branch.window())) for _ in range(500)) > allowed(500)


def bursts(rng, windows, rates):
    """Hits of rates that are .02 on average, in bursts: each window's own rate is Gamma distributed."""
    share = np.minimum(rng.gamma(0.5, 0.04, (windows, rates)), 1)
    return rng.binomial(1_000, share).astype(float)


def test_rates_that_come_in_bursts_are_tempered():
    rates, rng = 20, np.random.default_rng(4)
    contrasts = plain_contrasts(rates, ("missing",))
    n, x = np.full(rates, 1_000.0), np.zeros(rates)

    def windows(count):
        return [Measured(x, n, hits, n) for hits in bursts(rng, count, rates)]

    reference, usual = windows(336), windows(1_500)
    starts = [START_MS + t * HOUR_MS for t in range(1_836)]
    fitted = fit(reference, starts[:336], HOUR_MS, delta=0.05, season="none")
    untempered = replace(fitted, dispersion=np.ones(rates))
    tempered, sharp = (Watch(Detector(contrasts, c, BUDGET, HOUR_MS)) for c in (fitted, untempered))
    for window, start_ms in zip(usual, starts[336:], strict=True):
        tempered.see(window, start_ms)
        sharp.see(window, start_ms)
    assert tempered.alarms <= allowed(1_500)
    assert sharp.alarms > 10 * allowed(1_500)


@pytest.mark.slow
@pytest.mark.parametrize("null", ["iid", "ar"])
def test_what_the_certificate_says_is_about_what_a_fresh_run_shows(null, monkeypatch):
    monkeypatch.setattr(certificate, "BUDGETS", 400)  # so that it counts alarms by the hundred
    windows_per_alarm, windows, said, seen = 20, 1_500, [], []
    for seed in (3, 4):
        traffic, reference = made(null, seed=seed, windows=720, numbers=4, categories=1)
        fitted = reference.calibration(0.0)
        kept, found = certificate.certify(
            reference.contrasts,
            fitted.inflated(0.5),  # too small by far: as fitted, there would be no alarm to count
            reference.measured,
            reference.starts_ms,
            windows_per_alarm,
            HOUR_MS,
            1,
        )
        assert found.factor > 1
        said.append(found.alarms_per_budget)
        watch = Watch(Detector(reference.contrasts, kept, windows_per_alarm, HOUR_MS))
        count = alarms(watch, traffic.branch(4), reference, windows)
        seen.append(count * windows_per_alarm / windows)
    assert np.mean(said) / 2 <= np.mean(seen) <= np.mean(said) * 2


# --- how soon -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("null", "shift", "most"), [("iid", "1x.25", 3), ("iid", "1x.1", 20), ("prod", "1x.5", 3)]
)
def test_a_change_is_found_within_windows_that_are_stated(null, shift, most):
    traffic, reference = made(null, seed=1, numbers=16, categories=4)
    detector = reference.detector(720, 0.05)
    delays = []
    for place in range(10):
        branch = traffic.branch(place)
        watch = Watch(detector)
        alarms(watch, branch, reference, 5)
        for age in range(100):
            rows = branch.window(SHIFTS[shift], age=age, place=place)
            if watch.see(reference.measure(rows), rows.start_ms).alarm:
                break
        delays.append(age + 1)
    assert np.mean(delays) <= most


def constant_then(values, kind):
    """Counts of 60 windows of one value, then of `values`; and the sources of the former."""
    known = [np.full(500, 3.0)] * 60 if kind == "number" else [["a"] * 500] * 60
    if kind == "number":
        cuts = model_cuts([("x", build_numeric_cuts(np.concatenate(known)))])
    else:
        cuts = model_cuts([("x", build_category_cuts((), declared=("a", "b")))])

    def count(column):
        columns = {"numeric": {}, "categories": {}}
        columns["numeric" if kind == "number" else "categories"] = {
            "x": Column(column) if kind == "number" else column
        }
        return Observed(state=observe_pane(cuts, 500, **columns, statuses={"ok": 500}, rules={}))

    windows = [count(column) for column in known]
    contrasts = Contrasts.of(cuts, merged(windows), windows=60)
    starts = [START_MS + t * HOUR_MS for t in range(62)]
    fitted = fit([contrasts.measure(w, cuts) for w in windows], starts[:60], HOUR_MS, delta=0.05)
    watch = Watch(Detector(contrasts, fitted, 720, HOUR_MS))
    same = watch.see(contrasts.measure(windows[0], cuts), starts[60])
    return same, watch.see(contrasts.measure(count(values), cuts), starts[61])


@pytest.mark.parametrize(
    ("kind", "values"),
    [("number", np.array([3.0, 4.0] * 250)), ("category", ["a"] * 400 + ["b"] * 100)],
)
def test_a_constant_that_begins_to_vary_is_found_at_once(kind, values):
    same, varies = constant_then(values, kind)
    assert not same.alarm
    assert varies.alarm
    assert [(one.source, one.what) for one in varies.moved] == [("x", "new_values")]


def test_what_the_baseline_has_everywhere_has_no_rate_of_new_values():
    _, reference = made("iid", numbers=4, categories=1)
    assert not any(rate == "new_values" for _, rate in reference.contrasts.rate_names)


# --- laws ---------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 1_000), max_size=4))
def test_how_rows_are_split_over_partitions_changes_no_bit(seed, bounds):
    traffic, reference = made("iid", numbers=4, categories=1)
    rng = np.random.default_rng(seed)
    rows = traffic.branch(seed).window()
    order = rng.permutation(rows.numbers.shape[1])
    parts = np.split(order, sorted(bounds))
    whole = Observed(state=PaneState.identity(reference.cuts))
    for part in parts:
        whole = whole.merge(observe(reference.cuts, rows.take(part)))
    together = reference.measure(rows)
    apart = reference.contrasts.measure(whole, reference.cuts)
    for field in ("x", "n", "hits", "rows"):
        assert getattr(apart, field).tobytes() == getattr(together, field).tobytes()


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(["1x.25", "all.25", "cat5%"]), st.integers(0, 3))
def test_a_muted_source_never_raises_the_evidence(shift, source):
    traffic, reference = made("iid", numbers=4, categories=1)
    detector = Detector(reference.contrasts, reference.calibration(0.05), 10**9, HOUR_MS)
    loud = Watch(detector)
    moved = Moved(
        source=f"n{source}",
        what="location",
        share=1.0,
        onset_ms=START_MS,
        windows=2,
        effect=0.3,
        error=0.1,
        usual=0.0,
    )
    empty = Muted(moved, np.zeros((0, 12)), np.zeros((0, 2, 3)))
    quiet = Watch(detector, replace(detector.start(), muted={f"n{source}": empty}))
    branch = traffic.branch(source)
    for age in range(5):
        rows = branch.window(SHIFTS[shift], age=age, place=source)
        window = reference.measure(rows)
        assert quiet.see(window, rows.start_ms).evidence <= loud.see(window, rows.start_ms).evidence


def test_windows_of_a_million_rows_in_one_bin_stay_finite():
    _, reference = made("iid", numbers=4, categories=1)
    detector = reference.detector(720, 0.05)
    watch = Watch(detector)
    last = [np.zeros(cut.size - SPECIAL_BINS) for cut in reference.cuts.feature.values()]
    last[-1] = np.zeros(len(reference.cuts.feature["c0"].categories))
    for counts in last:
        counts[-1] = 10**6
    for t in range(50):
        said = watch.see(*counted(reference, last, START_MS + t * HOUR_MS))
        assert np.isfinite(said.evidence)
        assert said.alarm == (t % 2 == 1), "a window alone never alarms, two do"
        assert all(np.isfinite(one.effect) for one in said.moved)


def test_windows_without_rows_leave_the_evidence_on_values_as_it_was():
    traffic, reference = made("iid", numbers=4, categories=1)
    watch = Watch(reference.detector(720, 0.05))
    branch = traffic.branch(9)
    alarms(watch, branch, reference, 5)
    before = watch.state
    nothing = Observed(state=PaneState.identity(reference.cuts))
    said = watch.see(reference.contrasts.measure(nothing, reference.cuts), branch.window().start_ms)
    assert not said.alarm
    of_values = np.array([source != "volume" for source, _ in reference.contrasts.contrast_names])
    after = watch.state
    assert (after.contrasts.m[of_values] == before.contrasts.m[of_values]).all()
    assert (after.rates.m == before.rates.m).all()


def test_windows_without_values_alarm_on_what_is_missing_alone():
    traffic, reference = made("iid", numbers=4, categories=1)
    watch = Watch(reference.detector(720, 0.05))
    branch = traffic.branch(9)
    alarms(watch, branch, reference, 5)
    missing = observe_pane(
        reference.cuts,
        1_000,
        numeric={f"n{j}": Column(np.full(1_000, np.nan)) for j in range(4)},
        categories={"c0": [None] * 1_000},
        statuses={},
        rules={},
    )
    measured = reference.contrasts.measure(Observed(state=missing), reference.cuts)
    said = watch.see(measured, branch.window().start_ms)
    assert said.alarm
    assert {one.what for one in said.moved} == {"missing"}
    assert {one.source for one in said.moved} == {"n0", "n1", "n2", "n3", "c0"}


@pytest.mark.parametrize(
    "transform",
    [lambda x: 8 * x, lambda x: x * x * x, np.exp],
    ids=["eight times", "cubed", "exponential"],
)
def test_a_monotone_transform_of_a_number_changes_nothing(transform):
    rng = np.random.default_rng(6)
    values = rng.normal(size=(130, 400))
    values[110:] += 0.6

    def judged(columns):
        cuts = model_cuts([("x", build_numeric_cuts(columns[:50].ravel()))])

        def count(column):
            numeric = {"x": Column(column)}
            return Observed(
                state=observe_pane(
                    cuts, column.size, numeric=numeric, categories={}, statuses={}, rules={}
                )
            )

        panes = [count(column) for column in columns]
        contrasts = Contrasts.of(cuts, merged(panes[:100]))
        windows = [contrasts.measure(pane, cuts) for pane in panes]
        starts = [START_MS + t * HOUR_MS for t in range(len(windows))]
        fitted = fit(windows[:100], starts[:100], HOUR_MS, delta=0.05)
        watch = Watch(Detector(contrasts, fitted, 720, HOUR_MS))
        said = [watch.see(w, at) for w, at in zip(windows[100:], starts[100:], strict=True)]
        return [pane.state.features["x"].counts for pane in panes], said

    counts, said = judged(values)
    assert any(one.alarm for one in said)
    assert judged(transform(values)) == (counts, said)


def test_the_cap_lets_no_window_alarm_alone():
    by_sign = np.array([[0.25, 0.25], [0.15, 0.15], [0.3, 0.0]])
    for windows_per_alarm in (100, 720, 43_200):
        most = cap(by_sign, windows_per_alarm, 2)
        assert 0.3 * np.exp(most) / 5 < windows_per_alarm
        assert 0.3 * np.exp(2 * most) / 5 > windows_per_alarm
