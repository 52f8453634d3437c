"""What a detector is expected to see: in the user's units, and about when a simulation sees it."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources_traffic import BARE, CUTS, HOUR, START, detector_of, drawn, gauge, starts, whole

from trimtab.detect.calibration import calibrate
from trimtab.detect.evidence import Detector
from trimtab.detect.plan import plan, support, theta_of_sd
from trimtab.detect.words import sd_equivalents
from trimtab.records import Kind


@pytest.fixture(scope="module")
def reference():
    rng = np.random.default_rng(31)
    return [drawn(rng) for _ in range(336)]


@pytest.fixture(scope="module")
def detector(reference):
    return detector_of(CUTS, reference)


def planned(detector, source, what, **more):
    return next(p for p in plan(detector, **more) if (p.source, p.what) == (source, what))


# --- units --------------------------------------------------------------------------------------------


@given(st.floats(-6, 6))
def test_a_floor_in_sd_is_that_of_the_specification_and_its_inverse(shift):
    assert sd_equivalents(theta_of_sd(shift)) == pytest.approx(shift, abs=1e-4)
    assert sd_equivalents(0.05) == pytest.approx(0.0512, abs=1e-4)


def test_floors_are_in_the_units_of_their_figures(detector):
    assert planned(detector, "income", "location").floor == pytest.approx(0.0512, abs=1e-3)
    web = planned(detector, "channel", "category web")
    assert web.floor == pytest.approx(0.05 * np.sqrt(0.24), abs=1e-3)
    assert planned(detector, "volume", "fewer rows").floor == pytest.approx(1 / 3, abs=0.01)
    assert planned(detector, "income", "missing").floor == 0.005
    above = planned(detector, "latency_ms", "above p95")
    assert above.floor == pytest.approx(0.011, abs=0.002)
    assert {p.limit for p in plan(detector)} == {"contract"}


def test_every_figure_of_a_model_is_planned_with_its_kind(detector):
    found = {(p.source, p.what): p for p in plan(detector)}
    assert found["income", "location"].kind is Kind.INPUT
    assert found["income", "missing"].kind is Kind.DATA_QUALITY
    assert found["output:score", "location"].kind is Kind.PREDICTION
    assert found["volume", "fewer rows"].unit == "fall"
    assert found["channel", "category branch"].unit == "points"
    assert ("income", "spread") not in found


def test_changes_below_the_floor_are_never_found_and_larger_ones_sooner(detector):
    sizes = {"sd": (0.04, 0.1, 0.3, 2.0), "fall": (0.3, 0.8), "points": (0.004, 0.05)}
    income = planned(detector, "income", "location", sizes=sizes).windows
    assert income[0] == inf
    assert list(income) == sorted(income, reverse=True)
    assert income[-1] == 2
    assert planned(detector, "volume", "fewer rows", sizes=sizes).windows == (inf, 2)
    missing = planned(detector, "income", "missing", sizes=sizes).windows
    assert missing[0] == inf
    assert missing[1] == 1
    assert planned(detector, "latency_ms", "location", sizes=sizes).windows[-1] == 3


def test_more_rows_find_a_small_change_sooner_and_a_share_needs_room(detector):
    few = planned(detector, "income", "location", rows=300).windows[0]
    many = planned(detector, "income", "location", rows=20_000).windows[0]
    assert many < planned(detector, "income", "location").windows[0] < few
    web = planned(detector, "channel", "category web", sizes={"points": (0.5,)})
    assert web.windows == (inf,), "a share of 60 % cannot rise by 50 points"


@pytest.mark.parametrize("sizes", [{"sd": (0,)}, {"sd": (9,)}, {"points": (1.5,)}, {"fall": (-1,)}])
def test_a_change_that_cannot_be_is_refused(detector, sizes):
    with pytest.raises(ValueError, match="give more than 0"):
        plan(detector, sizes=sizes)


# --- what a reference supports ------------------------------------------------------------------------


def test_a_short_reference_says_what_it_cannot_support_and_how_long_would():
    rng = np.random.default_rng(32)
    level, windows = 0.0, []
    for _ in range(60):
        level = 0.8 * level + rng.normal() * 0.1
        windows.append(drawn(rng, shift=level))
    found = detector_of(CUTS, windows)
    said = support(found, 0.05)
    assert not said.sufficient
    assert said.source == "income"
    assert said.floor_sd > 0.08
    assert said.windows_wanted == pytest.approx(60 * (said.floor_sd / 0.0512) ** 2, rel=0.05)
    assert said.says == (
        f"A reference of 60 windows cannot support alarms below {said.floor_sd:.2f} sd (income); "
        f"{said.windows_wanted} would support 0.05."
    )
    assert planned(found, "income", "location").limit == "reference"


def test_a_long_reference_supports_what_the_contract_asks(detector):
    said = support(detector, 0.05)
    assert said.sufficient
    assert said.says == "The reference of 336 windows supports alarms from 0.05 sd on."


def test_the_floor_of_a_restless_gauge_is_set_by_its_variation():
    rng = np.random.default_rng(33)
    windows = [gauge(40 + 10 * rng.normal() + rng.normal(size=60)) for _ in range(336)]
    found = detector_of(BARE, windows)
    assert planned(found, "resources:cpu_percent", "location").limit == "variation"
    assert support(found, 0.05).sufficient


# --- against simulation -------------------------------------------------------------------------------

CASES = [
    ("income", "location", "sd", 0.1, {"shift": 0.1}),
    ("income", "location", "sd", 0.13, {"shift": 0.13}),
    ("channel", "category branch", "points", 0.02, {"branch": 0.02}),
    ("income", "missing", "points", 0.012, {"missing": 0.012}),
    ("latency_ms", "location", "sd", 0.15, {"slower": np.exp(0.075)}),
    ("volume", "fewer rows", "fall", 0.8, {"rows": 200}),
]


@pytest.mark.parametrize(("source", "what", "unit", "size", "change"), CASES)
def test_a_prediction_is_within_a_third_of_what_is_simulated(
    detector, source, what, unit, size, change
):
    (expected,) = planned(detector, source, what, sizes={unit: (size,)}).windows
    rng = np.random.default_rng(34)
    delays = []
    for _ in range(16):
        state, start_ms = detector.start(), START + 336 * HOUR
        for at in range(100):
            window = drawn(rng) if at < 4 else drawn(rng, **change)
            state, said = detector.update(
                state, detector.contrasts.measure(window, CUTS), start_ms + at * HOUR
            )
            if said.alarm:
                delays.append(at - 3)
                break
    assert len(delays) == 16
    assert expected / np.mean(delays) == pytest.approx(1, abs=0.3)


def test_dependence_between_windows_makes_plans_longer_not_shorter():
    rng = np.random.default_rng(35)
    level, windows = 0.0, []
    for _ in range(336):
        level = 0.8 * level + rng.normal() * 0.03
        windows.append(drawn(rng, shift=level))
    found = detector_of(CUTS, windows)
    (expected,) = planned(found, "income", "location", sizes={"sd": (0.2,)}).windows
    delays = []
    for _ in range(12):
        state, level = found.start(), 0.0
        for at in range(150):
            level = 0.8 * level + rng.normal() * 0.03
            window = drawn(rng, shift=level + (0.2 if at >= 4 else 0))
            state, said = found.update(
                state, found.contrasts.measure(window, CUTS), START + (336 + at) * HOUR
            )
            if said.alarm:
                delays.append(at - 3)
                break
    assert 0.7 < expected / np.mean(delays) < 2
    (independent,) = planned(
        detector_of(CUTS, [drawn(rng) for _ in range(336)]),
        "income",
        "location",
        sizes={"sd": (0.2,)},
    ).windows
    assert expected > independent


def test_a_plan_of_all_sources_needs_no_data_but_the_detector():
    rng = np.random.default_rng(36)
    windows = [whole(rng) for _ in range(60)]
    found = detector_of(CUTS, windows)
    names = {p.source for p in plan(found)}
    assert names == set(found.names)
    fitted = calibrate(
        found.contrasts,
        [found.contrasts.measure(w, CUTS) for w in windows],
        starts(60),
        HOUR,
        delta=0.05,
        time_zone="UTC",
        min_rows=200,
    )
    assert plan(Detector(found.contrasts, fitted, 720, HOUR)) == plan(found)
