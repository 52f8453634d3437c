"""Canary evidence: e-values by exact enumeration, error rates under 400 looks, and its refusals."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from trimtab_agent.rollout.evidence import (
    RevisionCounts,
    log_e_above_ceiling,
    log_e_below_ceiling,
    log_e_harm,
    log_e_label_coverage,
    log_e_non_inferior,
    log_e_sample_ratio,
    log_weighted_mean,
    rejects,
    share_of_events,
    weigh_guardrail,
)

MARGIN = 0.25


def events(weight, challenger, champion, revision=1) -> RevisionCounts:
    return RevisionCounts(revision, weight, champion, challenger, champion, challenger)


def expected_e(log_e, weights, shares, m) -> float:
    """Exact E[E] after m events under each revision, each the challenger's with its share."""
    total = 0.0
    for outcome in product(range(m + 1), repeat=len(weights)):
        probability = math.prod(
            math.comb(m, x) * q**x * (1 - q) ** (m - x)
            for x, q in zip(outcome, shares, strict=True)
        )
        counts = [
            events(w, x, m - x, i) for i, (w, x) in enumerate(zip(weights, outcome, strict=True))
        ]
        total += probability * math.exp(log_e(counts))
    return total


def non_inferior(counts) -> float:
    return log_e_non_inferior(counts, MARGIN)


# --- the e-values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 2, 5, 12])
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8, 0.99, 1.0])
def test_harm_is_an_e_value_at_every_ratio_that_is_no_harm(m, weight, ratio):
    mean = expected_e(log_e_harm, [weight], [share_of_events(weight, ratio)], m)
    assert mean <= 1 + 1e-12
    if ratio == 1.0:
        assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("m", [1, 2, 5, 12])
@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("ratio", [1.25, 1.3, 2.0, 10.0])
def test_non_inferiority_is_an_e_value_at_every_ratio_that_is_inferior(m, weight, ratio):
    mean = expected_e(non_inferior, [weight], [share_of_events(weight, ratio)], m)
    assert mean <= 1 + 1e-12
    if ratio == 1 + MARGIN:
        assert mean == pytest.approx(1.0)


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=2),
    st.floats(0.0, 1.0),
    st.floats(1.0, 5.0),
    st.integers(1, 6),
    st.floats(1.0, 3.0),
)
def test_they_stay_e_values_over_revisions_with_different_shares(
    weights, harmless, times_worse, m, dispersion
):
    at_most = [share_of_events(w, harmless) for w in weights]
    inferior = [share_of_events(w, (1 + MARGIN) * times_worse) for w in weights]

    def tempered(counts) -> float:
        return log_e_harm(counts, dispersion=dispersion)

    assert expected_e(log_e_harm, weights, at_most, m) <= 1 + 1e-9
    assert expected_e(tempered, weights, at_most, m) <= 1 + 1e-9
    assert expected_e(non_inferior, weights, inferior, m) <= 1 + 1e-9


@pytest.mark.parametrize("weight", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("n", [1, 10, 40])
def test_the_sample_ratio_is_an_e_value(weight, n):
    mean = sum(
        binom.pmf(x, n, weight)
        * math.exp(log_e_sample_ratio([RevisionCounts(1, weight, 0, 0, n - x, x)]))
        for x in range(n + 1)
    )
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize("ceiling", [0.01, 0.1])
@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.parametrize("times", [1.0, 1.5, 5.0])
def test_both_ceiling_tests_are_e_values(ceiling, n, times):
    def mean(log_e, p) -> float:
        return sum(
            binom.pmf(x, n, p) * math.exp(log_e([RevisionCounts(1, 0.5, 0, x, n, n)], ceiling))
            for x in range(n + 1)
        )

    assert mean(log_e_below_ceiling, ceiling * times) <= 1 + 1e-12
    assert mean(log_e_above_ceiling, ceiling / times) <= 1 + 1e-12


def test_a_share_of_zero_or_one_carries_no_evidence():
    steps = [events(0.1, 8, 20, 1), events(0.5, 30, 20, 2)]
    padded = [*steps, events(1.0, 500, 0, 3), events(0.0, 0, 500, 4)]
    assert log_e_harm(padded) == log_e_harm(steps)
    assert non_inferior(padded) == non_inferior(steps)
    assert log_e_harm([]) == non_inferior([events(1.0, 9, 0)]) == 0.0


def test_no_events_in_either_arm_are_no_evidence():
    assert non_inferior([RevisionCounts(1, 0.25, 0, 0, 10_000, 3_000)]) == 0.0


def test_the_same_log_ratios_by_hand():
    # One r only: x_B ln(q_r/q_0) + x_A ln((1-q_r)/(1-q_0)), q_0 = .25, q_r = .5/1.25 = .4.
    expected = 6 * math.log(0.4 / 0.25) + 4 * math.log(0.6 / 0.75)
    assert log_e_harm([events(0.25, 6, 4)], ratios=[2.0]) == pytest.approx(expected)


def test_it_is_the_e_values_that_are_averaged_after_adding_up_over_revisions():
    steps = [events(0.1, 5, 5, 1), events(0.5, 2, 8, 2)]
    by_ratio = [log_e_harm(steps, ratios=[r]) for r in (1.5, 3.0)]
    expected = math.log(np.mean(np.exp(by_ratio)))
    assert log_e_harm(steps, ratios=[1.5, 3.0]) == pytest.approx(expected)


def test_very_much_evidence_stays_finite():
    assert 1e5 < log_e_harm([events(0.5, 10**6, 10)]) < math.inf


# --- error rates ----------------------------------------------------------------------------------

RUNS = 200
LOOKS = 400
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)


def ever_rejected(log_e, weight, base_rate, ratio, seed) -> float:
    """Share of runs that reject at .05 at any of 400 looks; the base rate swings by half each day."""
    random = np.random.default_rng(seed)
    rate = base_rate * (1 + 0.5 * np.sin(2 * np.pi * np.arange(LOOKS) / 50))
    challenger_units = random.binomial(1_000, weight, size=(RUNS, LOOKS))
    champion = random.binomial(1_000 - challenger_units, rate).cumsum(axis=1)
    challenger = random.binomial(challenger_units, np.minimum(1, rate * ratio)).cumsum(axis=1)
    return float(
        np.mean(
            [
                any(
                    rejects(log_e([events(weight, int(b), int(a))]), 0.05)
                    for a, b in zip(champion[run], challenger[run], strict=True)
                )
                for run in range(RUNS)
            ]
        )
    )


@pytest.mark.parametrize(("base_rate", "weight"), [(0.002, 0.1), (0.02, 0.5), (0.2, 0.1)])
def test_an_equal_challenger_is_rarely_rolled_back_in_400_looks(base_rate, weight):
    assert ever_rejected(log_e_harm, weight, base_rate, 1.0, seed=31) <= ALLOWED


@pytest.mark.parametrize(("base_rate", "weight"), [(0.002, 0.5), (0.02, 0.1), (0.2, 0.1)])
def test_an_inferior_challenger_is_rarely_promoted_in_400_looks(base_rate, weight):
    assert ever_rejected(non_inferior, weight, base_rate, 1 + MARGIN, seed=32) <= ALLOWED


def test_a_harmful_challenger_is_found():
    assert ever_rejected(log_e_harm, 0.1, 0.02, 1.5, seed=33) == 1.0


def test_an_equal_challenger_is_promoted():
    assert ever_rejected(non_inferior, 0.1, 0.02, 1.0, seed=34) >= 0.95


def test_pooling_counts_over_steps_would_promote_a_worse_challenger():
    """1.5 times worse, margin 1.25: per-revision shares never pass, the current share always does."""
    random = np.random.default_rng(35)
    passed_pooled = passed = 0
    for _ in range(200):
        steps = []
        for revision, weight in enumerate((0.01, 0.05, 0.25, 0.5)):
            champion = random.binomial(round(20_000 * (1 - weight)), 0.02)
            challenger = random.binomial(round(20_000 * weight), 0.03)
            steps.append(events(weight, int(challenger), int(champion), revision))
        pooled = events(
            0.5, sum(s.challenger_events for s in steps), sum(s.champion_events for s in steps)
        )
        passed_pooled += rejects(non_inferior([pooled]), 0.05)
        passed += rejects(non_inferior(steps), 0.05)
    assert passed_pooled == 200
    assert passed == 0


# --- routing and labels ---------------------------------------------------------------------------


def test_a_share_that_was_not_served_is_found():
    served = RevisionCounts(1, 0.25, 0, 0, 8_000, 2_000)
    assert rejects(log_e_sample_ratio([served]), 0.001)
    as_stated = RevisionCounts(1, 0.25, 0, 0, 7_450, 2_550)
    assert not rejects(log_e_sample_ratio([as_stated]), 0.001)


def test_units_of_an_arm_without_a_share_are_a_contradiction():
    assert log_e_sample_ratio([RevisionCounts(1, 0.0, 0, 0, 100, 1)]) == math.inf
    assert log_e_sample_ratio([RevisionCounts(1, 0.0, 0, 0, 100, 0)]) == 0.0
    assert log_e_sample_ratio([RevisionCounts(1, 1.0, 0, 0, 0, 100)]) == 0.0


def test_labels_that_come_less_often_for_one_arm_are_found():
    unequal = RevisionCounts(1, 0.5, 2_000, 1_600, 2_000, 2_000)
    assert rejects(log_e_label_coverage([unequal]), 0.001)
    equal = RevisionCounts(1, 0.5, 1_400, 1_400, 2_000, 2_000)
    assert not rejects(log_e_label_coverage([equal]), 0.001)


def test_fair_routing_is_rarely_called_unfair_in_400_looks():
    random = np.random.default_rng(36)
    challenger = random.binomial(50, 0.05, size=(RUNS, LOOKS)).cumsum(axis=1)
    found = [
        any(
            rejects(
                log_e_sample_ratio(
                    [RevisionCounts(1, 0.05, 0, 0, 50 * (look + 1) - int(x), int(x))]
                ),
                0.05,
            )
            for look, x in enumerate(row)
        )
        for row in challenger
    ]
    assert np.mean(found) <= ALLOWED


# --- a guardrail ----------------------------------------------------------------------------------


def test_a_clean_challenger_passes_what_it_must_not_harm_only_below_its_ceiling():
    few = [RevisionCounts(1, 0.25, 0, 0, 300, 100)]
    many = [RevisionCounts(1, 0.25, 0, 0, 1_080, 360)]

    def judge(counts):
        return weigh_guardrail("errors", "must_not_harm", counts, ceiling=0.01).state

    assert (judge(few), judge(many)) == ("undecided", "passed")


def test_a_better_challenger_is_non_inferior_and_a_worse_one_harms():
    better = [RevisionCounts(1, 0.25, 246, 12, 600, 200)]
    worse = [RevisionCounts(1, 0.5, 18, 72, 600, 600)]
    wrong = ("wrong_answers", "must_be_non_inferior")
    assert weigh_guardrail(*wrong, better, margin=MARGIN).state == "passed"
    assert weigh_guardrail(*wrong, worse, margin=MARGIN).state == "harm"


def test_wrong_shares_invalidate_even_good_news():
    counts = [RevisionCounts(1, 0.5, 400, 10, 1_000, 600)]
    evidence = weigh_guardrail("wrong_answers", "must_be_non_inferior", counts)
    assert rejects(evidence.log_e_non_inferior, 0.05)
    assert evidence.state == "invalid"


def test_a_rate_above_the_ceiling_harms_even_where_the_champion_is_as_bad():
    counts = [RevisionCounts(1, 0.5, 150, 150, 1_000, 1_000)]
    evidence = weigh_guardrail("errors", "must_not_harm", counts, ceiling=0.05)
    assert not rejects(evidence.log_e_harm, 0.05)
    assert evidence.state == "harm"


@pytest.mark.parametrize("kind", ["must_not_harm", "must_be_non_inferior"])
def test_silence_never_passes(kind):
    assert weigh_guardrail("errors", kind, []).state == "undecided"
    assert (
        weigh_guardrail("errors", kind, [RevisionCounts(1, 0.5, 0, 0, 0, 0)]).state == "undecided"
    )


def test_harm_over_all_guardrails_is_the_weighted_mean_of_e_values():
    assert log_weighted_mean([math.log(4), math.log(2)]) == pytest.approx(math.log(3))
    assert log_weighted_mean([math.log(4), 0.0], [3, 1]) == pytest.approx(math.log(13 / 4))
    assert log_weighted_mean([800.0, 0.0]) == pytest.approx(800 - math.log(2))
    assert log_weighted_mean([]) == -math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: RevisionCounts(1, 1.5, 0, 0, 0, 0),
        lambda: RevisionCounts(1, 0.5, 3, 0, 2, 0),
        lambda: log_e_harm([], ratios=[0.9]),
        lambda: log_e_harm([], dispersion=0.5),
        lambda: log_e_non_inferior([], 0.0),
        lambda: log_e_below_ceiling([], 0.0),
        lambda: log_weighted_mean([1.0], [0.0]),
        lambda: rejects(0.0, 0.0),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError, match=r"[Gg]ive|count one"):
        call()
