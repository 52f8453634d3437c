"""The detector: it agrees with plain formulas, keeps its budget on known nulls, and finds what has moved."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_detector import PlainContrast, plain_cap
from scipy import stats

from trimtab.detect import arrays
from trimtab.detect.calibration import Calibration, fit, rebased, slots_of, spread_by_hour
from trimtab.detect.certificate import certify, expected_delay
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.evidence import Detector, State, share_bounds
from trimtab.detect.orthonormal import category_contrasts, numeric_contrasts
from trimtab.detect.sources import SourceContrasts

HOUR = 3_600_000
START = 1_700_006_400_000
ORACLE = Path(__file__).parents[2].parent / "shared" / "oracle" / "detector_oracle.py"
SHARES = np.full(64, 1 / 64)
CATEGORIES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def contrasts_of(numbers=4, categories=1):
    matrix, labels, weights = numeric_contrasts(SHARES * 1e6)
    kinds = [
        SourceContrasts(
            name=f"n{i}", matrix=matrix, labels=labels, weights=weights, rates=("missing",)
        )
        for i in range(numbers)
    ]
    matrix, labels, weights = category_contrasts(CATEGORIES * 1e6, list("abcde"))
    kinds += [
        SourceContrasts(
            name=f"c{i}", matrix=matrix, labels=labels, weights=weights, rates=("missing",)
        )
        for i in range(categories)
    ]
    return Contrasts(tuple(kinds))


class Traffic:
    """Windows of independent rows; `tilt` moves the shares of a source's bins."""

    def __init__(self, contrasts, seed, rows=1_000):
        self.contrasts, self.rows = contrasts, rows
        self.rng = np.random.default_rng(seed)

    def window(self, tilt=0.0, source=0, missing=0.0, rows=None):
        n = self.rows if rows is None else rows
        x, hits = [], []
        for place, kind in enumerate(self.contrasts.sources):
            base = CATEGORIES if kind.name.startswith("c") else SHARES
            shares = base.copy()
            if place == source and tilt:
                u = np.cumsum(shares) - shares / 2
                shares *= 1 + tilt * np.sqrt(3) * (2 * u - 1)
            counts = self.rng.multinomial(n, shares)
            x.append(counts @ kind.matrix / n)
            hits.append(self.rng.binomial(n, missing if place == source else 0.0))
        k = sum(map(len, x))
        total = np.full(len(hits), float(n))
        return Measured(np.concatenate(x), np.full(k, float(n)), np.array(hits, float), total)

    def windows(self, count, **more):
        return [self.window(**more) for _ in range(count)]


def starts(count, first=START):
    return [first + i * HOUR for i in range(count)]


def detector_of(contrasts, reference, *, windows_per_alarm=720, delta=0.05, **more):
    fitted = fit(reference, starts(len(reference)), HOUR, delta=delta, season="none")
    return Detector(contrasts, fitted, windows_per_alarm, HOUR, **more)


def follow(detector, windows, state=None, first=START):
    state = detector.start() if state is None else state
    said = []
    for window, start_ms in zip(windows, starts(len(windows), first), strict=True):
        state, one = detector.update(state, window, start_ms)
        said.append(one)
    return state, said


# --- contrasts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[5, 0, 3, 9, 1], [1, 1], list(range(1, 65)), [10**9, 1, 1]])
def test_contrasts_of_a_number_are_standardised_and_its_smooth_ones_orthogonal(counts):
    counts = np.array(counts, float)
    matrix, labels, weights = numeric_contrasts(counts)
    p = counts / counts.sum()
    assert np.allclose(p @ matrix, 0, atol=1e-9)
    assert np.allclose(p @ matrix**2, 1, atol=1e-6)
    smooth = matrix[:, : sum(not label.startswith("octile") for label in labels)]
    assert np.allclose(smooth.T @ (p[:, None] * smooth), np.eye(smooth.shape[1]), atol=1e-6)
    assert sum(weights) == pytest.approx(0.75)


def test_contrasts_of_categories_are_standardised_and_the_rare_ones_count_together():
    counts = np.array([700.0, 299.0, 0.6, 0.6, 0.0])
    matrix, labels, weights = category_contrasts(counts, [*"abcd", "other"])
    assert labels == ("category a", "category b", "rare categories")
    p = counts / counts.sum()
    assert np.allclose(p @ matrix, 0)
    assert np.allclose(p @ matrix**2, 1)
    assert sum(weights) == pytest.approx(0.75)


def test_a_constant_feature_has_no_contrast():
    assert numeric_contrasts(np.array([0.0, 50.0, 0.0]))[1] == ()


def test_weights_sum_to_one_and_answers_have_a_fifth():
    features = contrasts_of(4, 1).sources
    score = contrasts_of(1, 0).sources[0]
    renamed = SourceContrasts(
        name="output:score",
        matrix=score.matrix,
        labels=score.labels,
        weights=score.weights,
        rates=score.rates,
        kind="prediction",
        origin="output",
    )
    both = Contrasts((*features, renamed))
    weights, rates = both.weights()
    assert weights.sum() + rates.sum() == pytest.approx(1)
    assert weights[-12:].sum() + rates[-1] == pytest.approx(0.2)


# --- agreement ----------------------------------------------------------------------------------------


def wandering(contrasts, count, rho, seed):
    traffic = Traffic(contrasts, seed)
    rng = np.random.default_rng(seed + 1)
    windows, last = [], 0.0
    for _ in range(count):
        last = rho * last + rng.normal() * 0.03
        rows = int(rng.integers(600, 1_400))
        windows.append(traffic.window(tilt=0.0, rows=rows))
        windows[-1].x[:12] += last
    return windows


def test_the_recursion_is_that_of_the_plain_formulas():
    contrasts = contrasts_of(2, 1)
    windows = wandering(contrasts, 400, 0.7, 3)
    detector = detector_of(contrasts, windows[:300])
    c = detector.calibration
    assert (c.rho > 0.3).any()
    most = plain_cap(detector.weights.max(), 720, 2)
    plain = [
        PlainContrast(
            *(float(a[k]) for a in (c.mu[0], c.tau2, c.mean_rows, c.rho)),
            *(float(a[k]) for a in (c.innovation, c.marginal, c.floor)),
            most,
        )
        for k in range(c.rho.size)
    ]
    state = detector.start()
    for window, start_ms in zip(windows[300:], starts(100, START + 300 * HOUR), strict=True):
        state, _ = detector.update(state, window, start_ms)
        spread = c.spread_at(start_ms)
        expected = [
            one.see(float(x), float(n), float(h))
            for one, x, n, h in zip(plain, window.x, window.n, spread, strict=True)
        ]
        assert np.allclose(state.contrasts.m.mean((1, 2)), expected, rtol=1e-9)


@pytest.mark.skipif(
    not ORACLE.exists(), reason="the oracle of the specification is not beside this repository"
)
@pytest.mark.parametrize("season", ["none", "hour"])
def test_the_fit_is_that_of_the_oracle(monkeypatch, season):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(ORACLE.parent))
    import detector_oracle

    contrasts = contrasts_of(2, 1)
    windows = wandering(contrasts, 336, 0.6, 5)
    x, n = np.stack([w.x for w in windows]), np.array([w.n[0] for w in windows])
    slots = slots_of(season, starts(336), "UTC")
    oracle = detector_oracle.Detector(contrasts.weights()[0], 720)
    oracle.fit(x, n, slots, {"none": 1, "hour": 24}[season])
    ours = fit(windows, starts(336), HOUR, delta=0.05, season=season)
    assert np.allclose(ours.mu, oracle.MU, atol=1e-12)
    assert np.allclose(ours.tau2, oracle.tau2, atol=1e-12)
    assert np.allclose(ours.rho, oracle.rho)
    assert np.allclose(ours.innovation, oracle.infl)
    assert np.allclose(ours.floor, oracle.floor)
    assert np.allclose(ours.gap, oracle.gap)


def test_what_bends_with_the_level_is_straightened_and_what_does_not_is_left():
    """A spread that goes with the square of a wandering location says nothing of its own."""
    contrasts = contrasts_of(2, 1)
    families, located = contrasts.families(), contrasts.located()
    assert located.sum() == 2
    rng = np.random.default_rng(9)
    windows = wandering(contrasts, 336, 0.6, 5)
    plain = fit(windows, starts(336), HOUR, delta=0.05, families=families, located=located)
    assert (plain.bend == 0).all()
    level = rng.normal(size=336) * 0.2
    for window, by in zip(windows, level, strict=True):
        window.x[0] = by
        window.x[1] = 0.8 * by**2 + rng.normal() * 0.01
        window.x[13] = 0.1 * rng.normal()  # of the other number
    bent = fit(windows, starts(336), HOUR, delta=0.05, families=families, located=located)
    assert bent.bend[1] == pytest.approx(0.8, abs=0.1)
    assert bent.leader[1] == 0
    assert np.flatnonzero(bent.bend).tolist() == [1]
    assert bent.tau2[1] < 1e-4
    moved = np.zeros((3, len(located)))
    moved[:, 0] = 0.5
    assert np.allclose(bent.straightened(moved)[:, 1], -0.25 * bent.bend[1])
    assert np.array_equal(bent.straightened(moved)[:, 2:], moved[:, 2:])


def test_hours_that_vary_more_have_a_variance_of_their_own():
    rng = np.random.default_rng(4)
    hours = np.arange(1, 337) % 24
    busy = (hours >= 9) & (hours < 17)
    even, uneven = rng.normal(size=(336, 30)), rng.normal(size=(336, 30))
    uneven[busy] *= 2
    for e, rises in ((even, False), (uneven, True)):
        h = spread_by_hour(e, (e**2).mean(0), np.ones(e.shape, bool), hours, 24)
        assert h.shape == (24, 30)
        assert (h >= 1).all()
        if rises:  # 4 over a mean of 2; at night, 1 over 2, it stays at the usual
            assert h[11:15].mean() == pytest.approx(2, abs=0.3)
            assert (h[[22, 23, 0, 1, 2, 3]] == 1).all()
        else:
            assert h.mean() < 1.05
    assert (spread_by_hour(uneven, (uneven**2).mean(0), uneven > -9, hours * 0, 1) == 1).all()


def test_no_hit_in_few_rows_is_no_proof_of_a_share_near_nothing():
    for rows, dispersion in ((180, 1.0), (720, 4.0)):
        low, high = share_bounds(np.zeros(1), np.array([rows]), np.array([dispersion]))
        assert low[0] <= 0 < 0.02 < high[0]
    low, high = share_bounds(np.array([20.0]), np.array([1_000.0]), np.ones(1))
    exact = stats.binomtest(20, 1_000).proportion_ci(method="wilson")
    assert (low[0], high[0]) == (
        pytest.approx(exact.low, abs=2e-3),
        pytest.approx(exact.high, abs=2e-3),
    )


# --- laws ---------------------------------------------------------------------------------------------


def test_a_snapshot_goes_on_where_the_straight_run_goes_bit_for_bit():
    contrasts = contrasts_of(2, 1)
    traffic = Traffic(contrasts, 8)
    detector = detector_of(contrasts, traffic.windows(200))
    windows = traffic.windows(30) + traffic.windows(30, tilt=0.3) + traffic.windows(20)
    straight, said = follow(detector, windows)
    assert any(one.alarm for one in said)
    for stop in (1, 25, 40, 70):
        halfway, _ = follow(detector, windows[:stop])
        stored = arrays.to_bytes(halfway)
        again, rest = follow(
            detector, windows[stop:], arrays.from_bytes(stored, State), START + stop * HOUR
        )
        assert arrays.to_bytes(again) == arrays.to_bytes(straight)
        assert rest == said[stop:]


def test_what_is_stored_of_a_calibration_comes_back_as_it_was():
    contrasts = contrasts_of(2, 1)
    fitted = fit(Traffic(contrasts, 1).windows(60), starts(60), HOUR, delta=0.05)
    for value, kind in ((fitted, Calibration), (contrasts, Contrasts)):
        data = arrays.to_bytes(value)
        assert arrays.to_bytes(arrays.from_bytes(data, kind)) == data
    with pytest.raises(arrays.ArraysError):
        arrays.from_bytes(b"no", Calibration)
    with pytest.raises(arrays.ArraysError):
        arrays.from_bytes(arrays.to_bytes(contrasts), Calibration)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.4), st.floats(1.1, 20))
def test_a_larger_floor_or_budget_never_alarms_earlier(seed, tilt, more):
    contrasts = contrasts_of(1, 1)
    traffic = Traffic(contrasts, seed)
    reference = traffic.windows(120)
    windows = traffic.windows(25, tilt=tilt)

    def first_alarm(**changes):
        _, said = follow(detector_of(contrasts, reference, **changes), windows)
        return next((at for at, one in enumerate(said) if one.alarm), 1_000)

    plain = first_alarm()
    assert first_alarm(windows_per_alarm=720 * more) >= plain
    assert first_alarm(delta=0.05 * more) >= plain


def test_windows_without_rows_and_with_absurd_ones_are_safe():
    contrasts = contrasts_of(1, 1)
    traffic = Traffic(contrasts, 4)
    detector = detector_of(contrasts, traffic.windows(100))
    state, _ = follow(detector, traffic.windows(5))
    nothing = Measured(np.zeros(17), np.zeros(17), np.zeros(2), np.zeros(2))
    after, said = detector.update(state, nothing, START + 5 * HOUR)
    assert (after.contrasts.m == state.contrasts.m).all()
    assert (after.rates.m == state.rates.m).all()
    assert not said.alarm
    absurd = Measured(np.full(17, 1e6), np.full(17, 1e6), np.full(2, 1e6), np.full(2, 1e6))
    for step in range(6):
        after, said = detector.update(after, absurd, START + (6 + step) * HOUR)
        assert np.isfinite(after.contrasts.m).all()
        assert np.isfinite(said.evidence)


def test_the_order_of_sources_makes_no_difference():
    contrasts = contrasts_of(3, 1)
    traffic = Traffic(contrasts, 6)
    reference, windows = traffic.windows(150), traffic.windows(20, tilt=0.15)
    order = [2, 0, 3, 1]
    sizes = np.cumsum([0, *(s.size for s in contrasts.sources)])
    columns = np.concatenate([np.arange(sizes[i], sizes[i + 1]) for i in order])

    def turned(window):
        return Measured(
            window.x[columns], window.n[columns], window.hits[order], window.rows[order]
        )

    other = Contrasts(tuple(contrasts.sources[i] for i in order))
    _, said = follow(detector_of(contrasts, reference), windows)
    _, same = follow(detector_of(other, list(map(turned, reference))), list(map(turned, windows)))
    assert [one.alarm for one in same] == [one.alarm for one in said]
    assert np.allclose([one.evidence for one in same], [one.evidence for one in said])


# --- what it finds ------------------------------------------------------------------------------------


def test_one_alarm_names_the_source_its_onset_and_its_size_and_resolves_when_it_is_over():
    contrasts = contrasts_of(5, 1)
    traffic = Traffic(contrasts, 11)
    detector = detector_of(contrasts, traffic.windows(336))
    windows = traffic.windows(40) + traffic.windows(60, tilt=0.2, source=2) + traffic.windows(60)
    _, said = follow(detector, windows)
    alarms = [at for at, one in enumerate(said) if one.alarm]
    assert len(alarms) == 1, "a persistent drift is one alarm"
    assert 40 <= alarms[0] <= 45
    (moved,) = said[alarms[0]].moved
    assert (moved.source, moved.what) == ("n2", "location")
    assert abs((moved.onset_ms - START) // HOUR - 40) <= 1
    assert abs(moved.effect - 0.2) <= 2 * moved.error
    assert [one.open for one in said[alarms[0] : 100]] == [("n2",)] * (100 - alarms[0])
    over = [at for at, one in enumerate(said) if one.resolved]
    assert len(over) == 1
    assert 100 < over[0] <= 130
    assert said[-1].open == ()


def test_a_feed_that_loses_values_is_found_at_once_and_named():
    contrasts = contrasts_of(3, 1)
    traffic = Traffic(contrasts, 12)
    detector = detector_of(contrasts, traffic.windows(200))
    _, said = follow(detector, traffic.windows(10) + traffic.windows(3, missing=0.05, source=1))
    assert next(at for at, one in enumerate(said) if one.alarm) in (10, 11)
    (moved,) = next(one.moved for one in said if one.alarm)
    assert (moved.source, moved.what, moved.usual) == ("n1", "missing", 0)
    assert moved.effect == pytest.approx(0.05, abs=0.02)


def test_one_freak_window_does_not_alarm_by_itself():
    contrasts = contrasts_of(3, 0)
    traffic = Traffic(contrasts, 13)
    detector = detector_of(contrasts, traffic.windows(200))
    _, said = follow(
        detector, [*traffic.windows(10), traffic.window(tilt=0.5), *traffic.windows(20)]
    )
    assert not any(one.alarm for one in said)
    eager = detector_of(contrasts, Traffic(contrasts, 13).windows(200), min_windows=1)
    _, said = follow(eager, [*traffic.windows(10), traffic.window(tilt=0.5)])
    assert said[-1].alarm


def test_a_season_is_learned_and_not_chased():
    contrasts = contrasts_of(2, 0)
    traffic = Traffic(contrasts, 14)

    def day(count, first=0):
        return [
            traffic.window(tilt=0.3 * np.sin(2 * np.pi * (first + t) / 24)) for t in range(count)
        ]

    reference = day(24 * 14)
    fitted = fit(reference, starts(336), HOUR, delta=0.05)
    assert fitted.season == "hour"
    detector = Detector(contrasts, fitted, 720, HOUR)
    _, said = follow(detector, day(24 * 10), first=START + 336 * HOUR)
    assert not any(one.alarm for one in said)
    plain = fit(Traffic(contrasts, 15).windows(336), starts(336), HOUR, delta=0.05)
    assert plain.season == "none"


def test_slots_follow_the_clock_of_the_time_zone():
    summer = [1_719_835_200_000]  # 2024-07-01 12:00 UTC, a Monday
    assert slots_of("hour", summer, "UTC").tolist() == [12]
    assert slots_of("hour", summer, "Europe/Berlin").tolist() == [14]
    assert slots_of("hour and weekend", [1_719_662_400_000], "UTC").tolist() == [36]
    assert slots_of("hour of week", summer, "UTC").tolist() == [12]
    assert slots_of("weekday", [1_719_662_400_000], "UTC").tolist() == [5]


def test_a_new_baseline_of_a_few_windows_keeps_the_old_variance_and_a_wider_floor():
    contrasts = contrasts_of(3, 1)
    traffic = Traffic(contrasts, 16)
    old = fit(traffic.windows(336), starts(336), HOUR, delta=0.05, season="none")
    few = traffic.windows(12, tilt=0.4)
    new = rebased(old, few, starts(12), delta=0.05)
    assert (new.floor >= old.floor).all()
    assert np.allclose(new.tau2, old.tau2)
    detector = Detector(contrasts, new, 720, HOUR)
    _, said = follow(detector, traffic.windows(200, tilt=0.4))
    assert not any(one.alarm for one in said)
    _, said = follow(detector, traffic.windows(12))
    assert any(one.alarm for one in said), "going back is a change, too"
    with pytest.raises(ValueError, match="12"):
        rebased(old, few[:11], starts(11), delta=0.05)


def test_the_certificate_widens_what_its_own_reference_would_alarm_on():
    contrasts = contrasts_of(1, 0)
    windows = Traffic(contrasts, 17).windows(240)
    fitted = fit(windows, starts(240), HOUR, delta=0.05, season="none")
    kept, seen = certify(contrasts, fitted, windows, starts(240), 100, HOUR, 1)
    assert (seen.factor, seen.alarms_per_budget <= 0.5) == (1.0, True)
    assert np.allclose(kept.innovation, fitted.innovation)
    sharp = fit(windows, starts(240), HOUR, delta=0.0, season="none")
    narrow = sharp.inflated(1 / 30)
    wider, seen = certify(contrasts, narrow, windows, starts(240), 100, HOUR, 1)
    assert seen.factor > 1
    assert (wider.innovation > narrow.innovation).all()


def test_the_expected_delay_is_about_what_is_seen():
    contrasts = contrasts_of(8, 0)
    traffic = Traffic(contrasts, 18)
    detector = detector_of(contrasts, traffic.windows(336))
    expected = expected_delay(detector, 0.13, 1_000)[0]
    assert expected_delay(detector, 0.04, 1_000)[0] == np.inf
    delays = []
    for _ in range(8):
        _, said = follow(detector, traffic.windows(40, tilt=0.13))
        delays.append(next(at + 1 for at, one in enumerate(said) if one.alarm))
    assert expected / 2 <= np.mean(delays) <= expected * 2
