"""States of features, latencies, resources and panes: figures, bytes, and refusals."""

import math

import msgspec
import numpy as np
import pytest

from trimtab.stats.aggregate import (
    Column,
    FeatureState,
    IncompatibleCuts,
    PaneState,
    ResourceState,
    StateError,
    describe_feature,
    feature_identity,
    mean_sd,
    observe_categories,
    observe_numeric,
    observe_pane,
    quantile,
)
from trimtab.stats.cuts import CategoryCuts, build_numeric_cuts, model_cuts
from trimtab.stats.loghistogram import LogHistogram

RANDOM = np.random.default_rng(11)
REFERENCE = RANDOM.normal(1_700_000_000.0, 10.0, 5_000)  # like a time stamp: far from 0, narrow
CUTS = build_numeric_cuts(REFERENCE)


def test_mean_and_sd_are_numpys_even_far_from_zero():
    mean, sd = mean_sd(CUTS, observe_numeric(CUTS, REFERENCE))
    assert mean == pytest.approx(REFERENCE.mean(), abs=1e-4)
    assert sd == pytest.approx(REFERENCE.std(ddof=1), rel=1e-5)


def test_quantiles_are_close_and_exact_for_atoms():
    state = observe_numeric(CUTS, REFERENCE)
    assert quantile(CUTS, state, 0.5) == pytest.approx(np.quantile(REFERENCE, 0.5), abs=0.3)
    atoms = build_numeric_cuts([1.0, 2.0, 3.0])
    counted = observe_numeric(atoms, [1.0, 2.0, 2.0, 2.0, 3.0])
    assert [quantile(atoms, counted, q) for q in (0.1, 0.5, 0.99)] == pytest.approx([1, 2, 3])


def test_values_outside_the_contract_are_counted_with_infinities_and_without_missing():
    cuts = build_numeric_cuts([0.0, 1.0, 2.0])
    column = [-1.0, 0.0, 2.0, 2.5, math.inf, -math.inf, math.nan]
    state = observe_numeric(cuts, column, bounds=(0.0, 2.0))
    assert (state.below_min, state.above_max) == (2, 2)
    assert (state.minimum, state.maximum) == (-1.0, 2.5)


def test_negative_zero_is_zero_in_the_extremes():
    state = observe_numeric(build_numeric_cuts([0.0]), [-0.0])
    assert math.copysign(1.0, state.minimum) == 1.0
    assert math.copysign(1.0, state.maximum) == 1.0


def test_a_value_too_far_out_is_counted_and_leaves_no_false_mean():
    state = observe_numeric(CUTS, [1e300, 1_700_000_000.0])
    assert state.clamped == 1
    assert mean_sd(CUTS, state) == (None, None)
    assert state.maximum == 1e300


def test_an_empty_feature_has_no_figures_but_no_errors_either():
    summary = describe_feature(CUTS, feature_identity(CUTS))
    assert summary.rows == 0
    assert summary.mean is None
    assert summary.p50 is None
    assert summary.missing_rate is None
    only_missing = describe_feature(CUTS, observe_numeric(CUTS, [math.nan, math.nan]))
    assert only_missing.missing_rate == 1.0
    assert only_missing.sd is None


def test_a_category_summary_has_shares_by_name():
    cuts = CategoryCuts(("web", "app"))
    summary = describe_feature(cuts, observe_categories(cuts, ["web", "web", "fax", None]))
    assert summary.shares == {"web": 0.5, "unseen": 0.25, "missing": 0.25}
    assert summary.unseen_rate == 0.25


def test_states_under_different_cuts_are_refused_by_name():
    other = build_numeric_cuts([1.0])
    with pytest.raises(IncompatibleCuts) as caught:
        feature_identity(CUTS).merge(feature_identity(other))
    assert (caught.value.left, caught.value.right) == (CUTS.cuts_id, other.cuts_id)
    with pytest.raises(IncompatibleCuts):
        PaneState("a").merge(PaneState("b"))
    with pytest.raises(IncompatibleCuts):
        describe_feature(other, feature_identity(CUTS))


def test_a_feature_without_a_column_is_missing_and_an_output_without_one_is_not_given():
    cuts = model_cuts([("x", CUTS), ("c", CategoryCuts(("a",)))], [("score", CUTS)])
    state = observe_pane(
        cuts, 3, numeric={}, categories={"c": ["a", "a", None]}, statuses={"ok": 3}, rules={}
    )
    assert state.features["x"].missing == 3
    assert state.features["c"].missing == 1
    assert "score" not in state.outputs
    assert state.rules == {}


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ValueError, match="'x' has 1 values for 2 rows"):
        observe_pane(
            model_cuts([("x", CUTS)]),
            2,
            numeric={"x": Column(np.array([1.0]))},
            categories={},
            statuses={},
            rules={},
        )


def test_the_format_of_a_pane_does_not_change_unnoticed():
    state = PaneState(
        "id",
        2,
        {"ok": 2},
        {},
        {"x": FeatureState("c", (2, 0, 0, 0, 0), -3, 300, -1.0, 2.0)},
        {},
        LogHistogram.observe([1.0, 3.5]),
    )
    written = state.to_bytes().hex()
    assert written == (
        "9801a26964" + "02" + "81a26f6b02" + "80"
        "81a1789" + "9a163950200000000" + "c401fd" + "c402012c"
        "cbbff0000000000000" + "cb4000000000000000" + "000000" + "80"
        "9702c402120000" + "00" + "cb3ff0000000000000" + "cb400c000000000000" + "94cd0140011d01"
    ).replace(" ", "")
    assert PaneState.from_bytes(bytes.fromhex(written)) == state


@pytest.mark.parametrize("data", [b"", b"\x90", b"{}", b"\x91\x01", msgspec.msgpack.encode([2])])
def test_bytes_of_something_else_are_refused(data):
    with pytest.raises(StateError):
        PaneState.from_bytes(data)


# --- latency and gauges ---------------------------------------------------------------------------


def test_latency_quantiles_are_within_the_stated_error():
    latencies = np.random.default_rng(5).lognormal(3.0, 1.0, 20_000)
    state = LogHistogram.observe(latencies)
    for level in (0.01, 0.5, 0.95, 0.99):
        exact = np.quantile(latencies, level, method="inverted_cdf")
        assert state.quantile(level) == pytest.approx(exact, rel=0.0222)
    assert state.mean == pytest.approx(latencies.mean(), abs=2**-11)
    assert state.quantile(1.0) == pytest.approx(latencies.max(), rel=0.0222)


def test_measurements_that_cannot_be_are_counted_apart():
    state = LogHistogram.observe([-1.0, math.inf, math.nan, 0.0, 2.0])
    assert (state.count, state.invalid) == (2, 2)
    assert (state.minimum, state.maximum) == (0.0, 2.0)
    assert state.quantile(0.1) == 0.0


def test_gauges_reach_from_shares_to_bytes():
    state = ResourceState.observe({"cpu": [0.25, 0.75], "memory": [8e9, 16e9], "gpu": [math.nan]})
    assert sorted(state.gauges) == ["cpu", "memory"]
    assert state.gauges["cpu"].mean == 0.5
    assert state.gauges["memory"].quantile(0.5) == pytest.approx(8e9, rel=0.0222)
    assert state.gauges["memory"].maximum == 16e9
    assert state.gauges["memory"].mean == pytest.approx(12e9, rel=0.0222)


def test_nothing_measured_has_no_quantile():
    assert LogHistogram().quantile(0.5) is None
    assert LogHistogram().mean is None
