"""Laws of what the detector looks at: splits of rows make no difference, and a rise is a rise."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_traffic import BARE, CUTS, gauge, latency, merged, whole

from trimtab.detect.contrasts import Contrasts
from trimtab.detect.observed import Observed
from trimtab.detect.orthonormal import angle, rising_contrasts

BASELINE = [whole(np.random.default_rng(seed)) for seed in range(3)]
CONTRASTS = Contrasts.of(CUTS, merged(BASELINE), windows=3, min_rows=100)
LATENCIES = Contrasts.of(BARE, latency(np.exp(np.random.default_rng(0).normal(3, 0.5, 5_000))))
measurements = st.lists(
    st.floats(0, 1e9, allow_nan=False, allow_infinity=False), min_size=1, max_size=60
)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(3)))
def test_a_window_reads_the_same_however_its_rows_were_split(order):
    straight = CONTRASTS.measure(merged(BASELINE), CUTS)
    turned = CONTRASTS.measure(merged([BASELINE[i] for i in order]), CUTS)
    for field in ("x", "n", "hits", "rows"):
        assert (getattr(straight, field) == getattr(turned, field)).all()
    stored = merged(BASELINE)
    again = Observed.from_bytes(stored.state.to_bytes(), stored.beside_bytes())
    assert (CONTRASTS.measure(again, CUTS).x == straight.x).all()


@settings(max_examples=100, deadline=None)
@given(measurements, st.floats(1, 1e3))
def test_slower_latencies_never_read_lower(values, factor):
    before = LATENCIES.measure(latency(values), BARE).x
    after = LATENCIES.measure(latency(np.array(values) * factor), BARE).x
    names = [name for name, _ in LATENCIES.contrast_names]
    directed = np.array([name == "latency_ms" for name in names])
    assert (after[directed] >= before[directed] - 1e-12).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=64).filter(any))
def test_rising_contrasts_grow_with_the_value_and_weigh_three_quarters(counts):
    matrix, labels, weights = rising_contrasts(np.array(counts, float))
    assert (np.diff(matrix, axis=0) >= -1e-9).all()
    assert len(labels) == matrix.shape[1] == len(weights)
    assert not labels or abs(sum(weights) - 0.75) < 1e-9


@settings(max_examples=30, deadline=None)
@given(measurements)
def test_every_gauge_has_a_contrast_and_its_own_baseline_reads_as_finite(values):
    contrasts = Contrasts.of(BARE, gauge(np.repeat(values, 10)))
    read = contrasts.measure(gauge(values), BARE)
    assert contrasts.sources[0].name == "resources:cpu_percent"
    assert contrasts.sources[0].size >= 1
    assert np.isfinite(read.x).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 5_000), st.floats(0.02, 0.98))
def test_an_angle_has_the_variance_of_one_row_whatever_the_share(n, share):
    hits = np.random.default_rng(1).binomial(n, share, 4_000)
    if n * min(share, 1 - share) < 3:
        assert np.var(angle(hits / n, n)) * n < 1.3
    else:
        assert 0.8 < np.var(angle(hits / n, n)) * n < 1.25
