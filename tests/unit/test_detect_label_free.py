"""Estimates without labels: laws, coverage where the assumption holds, and what happens where it does not."""

import math
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.detect.label_free import LabelFree, binary_estimates, estimated, multiclass_estimates
from trimtab.detect.label_gaps import LEAST_OF_SEGMENT, Gaps, expected_of, gaps_of
from trimtab.detect.label_residuals import LabelledWindow, residual_check
from trimtab.detect.score_calibration import LEAST_LABELS, LabelledScores, calibrator
from trimtab.stats.score_figures import auc
from trimtab.stats.scorebins import BINS, score_bins

COUNTS = st.lists(st.integers(0, 40), min_size=BINS, max_size=BINS)
FIGURES = ("accuracy", "precision", "recall", "f1", "auc")
NOON_MS = 1_769_860_800_000
CUT = 0.4
"""Rows with a higher score are answered positive."""


def by_bin(scores, chosen):
    return np.bincount(score_bins(scores)[chosen], minlength=BINS)


def labelled_scores(scores, hits):
    return LabelledScores(
        tuple(by_bin(scores, hits).tolist()), tuple(by_bin(scores, ~hits).tolist())
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def draw(random, rows, shift=0.0, drift=0.0):
    """Scores of a model whose probabilities are off by a factor in the log odds, and their labels."""
    logits = random.normal(-0.5 + shift, 1.5, rows)
    return sigmoid(0.8 * logits + 0.2), random.random(rows) < sigmoid(logits + drift)


def realised(scores, labels):
    said = scores > CUT
    tp, both = (said & labels).sum(), said.sum() + labels.sum()
    return {
        "accuracy": (said == labels).mean(),
        "precision": tp / said.sum(),
        "recall": tp / labels.sum(),
        "f1": 2 * tp / both,
        "auc": auc(by_bin(scores, labels), by_bin(scores, ~labels)),
    }


def estimate(fitted, scores):
    said = scores > CUT
    return binary_estimates(fitted, by_bin(scores, said), by_bin(scores, ~said))


def coverage(seed, draws=400, rows=2_000, reference_rows=20_000, **change):
    """Share of windows whose realised figures the intervals hold; a new reference every ten."""
    random, inside = np.random.default_rng(seed), dict.fromkeys(FIGURES, 0)
    for number in range(draws):
        if number % 10 == 0:
            fitted = calibrator(labelled_scores(*draw(random, reference_rows)))
        scores, labels = draw(random, rows, **change)
        found, truth = estimate(fitted, scores), realised(scores, labels)
        for name in FIGURES:
            inside[name] += found[name].low <= truth[name] <= found[name].high
    return {name: count / draws for name, count in inside.items()}


@pytest.mark.parametrize("change", [{}, {"shift": 0.7}])
def test_intervals_cover_while_the_score_means_what_it_meant(change):
    """2,000 windows: five standard errors are 0.024."""
    for name, share in coverage(11, 2_000, **change).items():
        assert 0.92 <= share <= 0.98, (name, share)


def test_a_small_reference_widens_the_intervals_enough():
    found = coverage(12, 1_000, reference_rows=1_000)
    assert min(found.values()) > 0.90, found


def test_under_concept_drift_they_fail_and_the_residuals_of_500_labels_say_so():
    """P(label | score) falls by 0.7 in the log odds: no estimate sees it, the check does."""
    covered = coverage(13, 400, drift=-0.7)
    assert covered["f1"] < 0.6
    assert covered["precision"] < 0.5
    random, found = np.random.default_rng(14), 0
    for _ in range(60):
        fitted = calibrator(labelled_scores(*draw(random, 20_000)))
        windows = labelled(random, [100] * 5, drift=-0.7)
        found += residual_check(fitted, windows).invalid
    assert found / 60 > 0.8  # 0.95 of 200


def labelled(random, sizes, **change):
    parts = [labelled_scores(*draw(random, size, **change)) for size in sizes]
    return [LabelledWindow(i, part.hits, part.misses) for i, part in enumerate(parts)]


@pytest.mark.parametrize(("rows", "reference_rows"), [(200, 20_000), (1_000, 20_000), (200, 2_000)])
def test_a_calibrator_that_holds_is_hardly_ever_called_invalid(rows, reference_rows):
    """200 times 50 windows, so 10,000 in all: ten alarms would be within the promise, a few are seen."""
    random, found = np.random.default_rng(15), 0
    for _ in range(200):
        fitted = calibrator(labelled_scores(*draw(random, reference_rows)))
        found += residual_check(fitted, labelled(random, [rows] * 50, shift=0.7)).invalid
    assert found <= 10


def test_the_evidence_of_each_window_is_an_e_value_at_the_edge_of_what_is_tolerated():
    """E exp(step) <= 1 when hits exceed the calibrator by just what is let pass, exactly enumerated."""
    reference = LabelledScores(
        tuple([0] * 50 + [600_000] + [0] * 49), tuple([0] * 50 + [400_000] + [0] * 49)
    )
    fitted = calibrator(reference)
    m, p = 40, 0.6 + 0.01
    mean = 0.0
    for hits in range(m + 1):
        window = LabelledWindow(0, *(tuple([0] * 50 + [c] + [0] * 49) for c in (hits, m - hits)))
        check = residual_check(fitted, [window])
        chance = math.comb(m, hits) * p**hits * (1 - p) ** (m - hits)
        mean += chance * check.evidence
    assert mean <= 1.0


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_estimates_are_the_figures_of_an_expected_confusion_matrix(hits, misses, said, not_said):
    fitted = calibrator(LabelledScores((*hits[:-1], hits[-1] + 1), tuple(misses)))
    positive, negative = np.array(said), np.array(not_said)
    found = binary_estimates(fitted, positive, negative)
    n = positive.sum() + negative.sum()
    if n == 0:
        assert found == {}
        return
    tp, fp = positive @ fitted.shares, positive @ (1 - fitted.shares)
    fn, tn = negative @ fitted.shares, negative @ (1 - fitted.shares)
    assert tp + fp + fn + tn == pytest.approx(n)
    assert found["accuracy"].value == pytest.approx((tp + tn) / n)
    assert found["recall"].value == pytest.approx(tp / (tp + fn))
    assert ("precision" in found) == (positive.sum() > 0)
    for one in found.values():
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert one.se > 0


@given(COUNTS, COUNTS, COUNTS)
def test_flipping_labels_and_scores_together_changes_neither_accuracy_nor_auc(hits, misses, rows):
    hits[0] += 1
    one = calibrator(LabelledScores(tuple(hits), tuple(misses)))
    other = calibrator(LabelledScores(tuple(misses[::-1]), tuple(hits[::-1])))
    upper, lower = np.array(rows), np.array(rows[::-1]) + 1
    a = binary_estimates(one, upper, lower)
    b = binary_estimates(other, lower[::-1], upper[::-1])
    for name in ("accuracy", "auc"):
        assert a[name].value == pytest.approx(b[name].value)
        assert a[name].se == pytest.approx(b[name].se)


@given(COUNTS, COUNTS, st.integers(0, 99), st.sampled_from(["positive", "negative"]))
def test_the_influences_are_the_figures_derivatives(said, not_said, place, answer):
    """The standard error of label noise alone, from numeric derivatives of the figures by g_b."""
    positive, negative = np.array(said), np.array(not_said) + 1
    (positive if answer == "positive" else negative)[place] += 5
    g = np.linspace(0.02, 0.97, BINS)
    reference = LabelledScores(
        tuple(np.round(g * 10**9).astype(int).tolist()),
        tuple(np.round((1 - g) * 10**9).astype(int).tolist()),
    )
    found = binary_estimates(calibrator(reference), positive, negative)

    def figures(positive_hits, negative_hits):
        tp, fn = positive_hits.sum(), negative_hits.sum()
        hits = positive_hits + negative_hits
        rows = positive + negative
        return {
            "recall": tp / (tp + fn),
            "f1": 2 * tp / (positive.sum() + tp + fn),
            "auc": auc(hits, rows - hits),
        }

    step, base = 1e-5, figures(positive * g, negative * g)
    total = dict.fromkeys(base, 0.0)
    for rows, which in ((positive, 0), (negative, 1)):
        for b in range(BINS):
            moved = [positive * g, negative * g]
            moved[which][b] += step
            for name, value in figures(*moved).items():
                total[name] += rows[b] * g[b] * (1 - g[b]) * ((value - base[name]) / step) ** 2
    for name, variance in total.items():
        assert found[name].se == pytest.approx(variance**0.5, rel=1e-2)


def test_shares_rise_with_the_score_and_empty_bins_lie_between_their_neighbours():
    hits, misses = [0] * BINS, [0] * BINS
    hits[10], misses[10] = 10, 90
    hits[20], misses[20] = 50, 50
    hits[21], misses[21] = 40, 60
    fitted = calibrator(LabelledScores(tuple(hits), tuple(misses)))
    assert fitted.shares[[0, 10, 15, 20, 21, 99]] == pytest.approx(
        [0.1, 0.1, 0.275, 0.45, 0.45, 0.45]
    )
    assert (np.diff(fitted.shares) >= -1e-12).all()
    assert fitted.weights.sum(axis=1) == pytest.approx(1.0)


def test_accuracy_of_several_classes_follows_the_likeliest_ones_score():
    random = np.random.default_rng(21)
    top = 0.4 + 0.6 * random.random(30_000)
    fitted = calibrator(labelled_scores(top, random.random(30_000) < top - 0.05))
    scores = 0.7 + 0.3 * random.random(4_000)
    found = multiclass_estimates(fitted, by_bin(scores, slice(None)))["accuracy"]
    assert found.value == pytest.approx(0.80, abs=0.01)
    assert found.low < 0.80 < found.high


# --- segments that the score treats unevenly ---------------------------------------------------------


def draw_uneven(random, rows, shift=0.0, cause=0.2):
    """Scores that know of one cause of the label and not of the other; a shift moves both."""
    known, unknown = random.normal(shift, 1.0, (2, rows))
    logits = 1.2 * known - 0.3
    hits = random.random(rows) < sigmoid(logits + cause * unknown)
    return sigmoid(logits), hits, np.digitize(unknown, (-0.43, 0.43))


def third_gaps(fitted, scores, hits, third):
    segments = {
        f"third={k}": labelled_scores(scores[third == k], hits[third == k]) for k in range(3)
    }
    return gaps_of(fitted, segments)


def uneven_coverage(seed, draws=400, cause=0.2, *, told=True):
    """Coverage under a shift of the inputs, plain and widened; the segments are told of, or drawn by lot."""
    random = np.random.default_rng(seed)
    inside = {name: np.zeros(2) for name in FIGURES}
    for number in range(draws):
        if number % 10 == 0:
            scores, hits, third = draw_uneven(random, 20_000, cause=cause)
            fitted = calibrator(labelled_scores(scores, hits))
            third = third if told else random.integers(0, 3, third.size)
            gaps = third_gaps(fitted, scores, hits, third)
        scores, hits, _ = draw_uneven(random, 2_000, 0.7, cause)
        said, truth = scores > CUT, realised(scores, hits)
        counts = by_bin(scores, said), by_bin(scores, ~said)
        for at, known in enumerate((Gaps(), gaps)):
            found = binary_estimates(fitted, *counts, known)
            for name in FIGURES:
                inside[name][at] += found[name].low <= truth[name] <= found[name].high
    return {name: count / draws for name, count in inside.items()}


@pytest.mark.parametrize(
    ("share", "rows", "rate"), [(0.05, 20_000, 0.15), (0.1, 20_000, 0.2), (0.05, 100_000, 0.15)]
)
def test_a_segment_of_many_times_its_scores_is_fitted_where_its_labels_are(share, rows, rate):
    """Newton's whole step goes astray there, and ended in shares of 0 and 1, or in no number."""
    random = np.random.default_rng(3)
    scores = random.beta(1, 20, rows)
    odd = random.random(rows) < share
    hits = random.random(rows) < np.where(odd, rate, scores)
    fitted = calibrator(labelled_scores(scores, hits))
    (one,) = expected_of(fitted, {"odd=1": labelled_scores(scores[odd], hits[odd])}).values()
    assert np.isfinite(one.shares).all()
    assert np.isfinite(one.uncertainty).all()
    counts = np.bincount(score_bins(scores[odd]), minlength=BINS)
    assert float(counts @ one.shares) / counts.sum() == pytest.approx(rate, abs=0.03)
    (gap,) = gaps_of(fitted, {"odd=1": labelled_scores(scores[odd], hits[odd])}).largest
    assert np.isfinite([*gap.theta, *gap.variance]).all()


def test_a_shift_that_the_score_does_not_know_of_is_covered_by_what_segments_showed():
    found = uneven_coverage(41)
    assert found["precision"][0] < 0.75
    assert found["f1"][0] < 0.92
    for name, (_, widened) in found.items():
        assert widened >= 0.93, (name, widened)


def test_windows_of_one_segment_alone_are_covered_about_as_well():
    """The worst there is: half of the reference is 0.8 above in the log odds, half below, the window all below."""
    random, draws = np.random.default_rng(47), 300
    inside = {name: np.zeros(2) for name in FIGURES}
    for number in range(draws):
        if number % 10 == 0:
            above, below = (draw(random, 6_000, drift=drift) for drift in (0.8, -0.8))
            whole = (np.concatenate(pair) for pair in zip(above, below, strict=True))
            fitted = calibrator(labelled_scores(*whole))
            segments = {"a=1": labelled_scores(*above), "a=2": labelled_scores(*below)}
            gaps = gaps_of(fitted, segments)
        scores, hits = draw(random, 2_000, drift=-0.8)
        said, truth = scores > CUT, realised(scores, hits)
        for at, known in enumerate((Gaps(), gaps)):
            found = binary_estimates(fitted, by_bin(scores, said), by_bin(scores, ~said), known)
            for name in FIGURES:
                inside[name][at] += found[name].low <= truth[name] <= found[name].high
    covered = {name: (count / draws).tolist() for name, count in inside.items()}
    assert covered["f1"][0] < 0.1
    assert covered["precision"][0] < 0.1
    for name, (_, widened) in covered.items():
        assert widened >= 0.85, (name, widened)


@pytest.mark.parametrize(("cause", "told"), [(0.0, True), (0.2, False)])
def test_segments_that_show_nothing_widen_nothing(cause, told):
    for name, (plain, widened) in uneven_coverage(42, 200, cause, told=told).items():
        assert widened - plain <= 0.02, name


def test_a_segment_of_few_labels_is_not_looked_at():
    random = np.random.default_rng(43)
    scores, hits, _ = draw_uneven(random, 20_000)
    fitted = calibrator(labelled_scores(scores, hits))
    none = np.zeros(LEAST_OF_SEGMENT - 1, np.bool_)
    few = gaps_of(fitted, {"a=1": labelled_scores(scores[: none.size], none)})
    assert few.segments == 0
    assert few.reason
    none = np.zeros(LEAST_OF_SEGMENT, np.bool_)
    enough = gaps_of(fitted, {"a=1": labelled_scores(scores[: none.size], none)})
    assert enough.segments == 1
    assert enough.largest[0].theta[0] < -1


def test_a_segment_whose_rows_all_have_one_score_is_looked_at_like_another():
    random = np.random.default_rng(44)
    scores, hits, _ = draw_uneven(random, 20_000)
    fitted = calibrator(labelled_scores(scores, hits))
    often = round(200 * fitted.shares[50])
    for count, wide in ((often, False), (often - 80, True)):
        sides = (tuple(c if b == 50 else 0 for b in range(BINS)) for c in (count, 200 - count))
        gaps = gaps_of(fitted, {"a=1": LabelledScores(*sides)})
        assert bool(gaps.largest) == wide
        said = by_bin(scores, scores > CUT), by_bin(scores, scores <= CUT)
        assert (binary_estimates(fitted, *said, gaps)["precision"].widened.by > 0.1) == wide


def labelled_by_third(random, sizes, drifts, cause=0.2):
    """Windows with their labels by third of the unknown cause; `drifts` by third, in the log odds."""
    windows = []
    for number, size in enumerate(sizes):
        scores, hits, third = draw_uneven(random, size, cause=cause)
        drift = np.array(drifts)[third]
        again = random.random(size) < sigmoid(np.log(scores / (1 - scores)) + drift)
        hits = np.where(drift == 0, hits, again)
        parts = {
            f"third={k}": labelled_scores(scores[third == k], hits[third == k]) for k in range(3)
        }
        whole = labelled_scores(scores, hits)
        windows.append(LabelledWindow(number, whole.hits, whole.misses, parts))
    return windows


def told_reference(random, rows=20_000, cause=0.2):
    scores, hits, third = draw_uneven(random, rows, cause=cause)
    segments = {
        f"third={k}": labelled_scores(scores[third == k], hits[third == k]) for k in range(3)
    }
    fitted = calibrator(labelled_scores(scores, hits))
    return fitted, expected_of(fitted, segments)


@pytest.mark.parametrize(("rows", "reference_rows"), [(300, 20_000), (1_000, 2_000)])
def test_segments_that_are_as_they_were_hardly_ever_make_it_invalid(rows, reference_rows):
    """However uneven the reference's segments are: 150 times 50 windows, so 7.5 alarms would be within the promise."""
    random, found = np.random.default_rng(45), 0
    for _ in range(150):
        fitted, expected = told_reference(random, reference_rows, cause=0.6)
        windows = labelled_by_third(random, [rows] * 50, [0, 0, 0], cause=0.6)
        found += residual_check(fitted, windows, expected).invalid
    assert found <= 7


def test_a_change_in_one_segment_is_found_there_and_named():
    """The shares of two segments move against each other: the whole shows nothing."""
    random, alone, told = np.random.default_rng(46), 0, 0
    for _ in range(20):
        fitted, expected = told_reference(random)
        windows = labelled_by_third(random, [300] * 10, [0.9, 0, -0.9])
        alone += residual_check(fitted, windows).invalid
        check = residual_check(fitted, windows, expected)
        told += check.invalid
        if check.invalid:
            assert check.segment.segment in ("third=0", "third=2")
            assert (check.segment.residual > 0) == (check.segment.segment == "third=0")
    assert told == 20
    assert alone <= 1
    _, reference, scored = world()
    tree = estimated(LabelFree(reference, 0, check), scored, 2_000, "y")
    assert tree["status"] == "invalid"
    assert re.search(
        r"in the segment third=\d 'y' was the label \d+\.\d points (more|less) often",
        tree["reason"],
    )


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_widening_never_narrows_and_the_worst_segment_decides(hits, misses, a, b):
    fitted = calibrator(LabelledScores((*hits[:-1], hits[-1] + 1), tuple(misses)))
    segments = {
        "s=1": LabelledScores(tuple(a), tuple(b)),
        "s=2": LabelledScores(tuple(b), tuple(a)),
    }
    gaps = gaps_of(fitted, segments)
    rows = np.array(hits) + 1, np.array(misses)
    whole = binary_estimates(fitted, *rows, gaps)
    for name, plain in binary_estimates(fitted, *rows).items():
        assert whole[name].value == plain.value
        assert whole[name].se == plain.se
        assert 0 <= whole[name].widened.by <= 1
        assert whole[name].low <= plain.low
        assert whole[name].high >= plain.high
    for gap in gaps.largest:
        part = msgspec.structs.replace(gaps, largest=(gap,))
        for name, one in binary_estimates(fitted, *rows, part).items():
            assert one.widened.by <= whole[name].widened.by


# --- what a window says -----------------------------------------------------------------------------


def world(rows=2_000, **change):
    random = np.random.default_rng(31)
    reference = labelled_scores(*draw(random, 20_000))
    scores, _ = draw(random, rows, **change)
    said = scores > CUT
    scored = {"y": tuple(by_bin(scores, said)), "n": tuple(by_bin(scores, ~said))}
    return random, reference, scored


def test_an_estimate_says_what_it_assumes_and_against_what_it_was_checked():
    random, reference, scored = world()
    unchecked = estimated(LabelFree(reference, NOON_MS), scored, 2_500, "y")
    assert unchecked["status"] == "ok"
    assert unchecked["assumes"] == (
        "Assumes P(label | score) has not changed since 2026-01-31 12:00 UTC; cannot see concept drift. "
        "Not checked against labels since."
    )
    assert unchecked["scored_share"] == 0.8
    check = residual_check(calibrator(reference), labelled(random, [100] * 4))
    tree = estimated(LabelFree(reference, 0, check), scored, 2_000, "y")
    assert f"Last checked against 400 labels: residual z={check.z:+.1f}." in tree["assumes"]
    assert tree["checked"]["labels"] == 400


def test_labels_that_contradict_it_make_it_invalid():
    random, reference, scored = world()
    check = residual_check(calibrator(reference), labelled(random, [100] * 6, drift=-0.7))
    tree = estimated(LabelFree(reference, 0, check), scored, 2_000, "y")
    assert tree["status"] == "invalid"
    assert re.search(r"'y' was the label \d+\.\d points less often", tree["reason"])
    assert tree["figures"].keys() == set(FIGURES)  # shown, with what is wrong with them


def test_scores_that_lost_their_meaning_without_a_shift_in_the_mean_are_found_by_the_slope():
    """Half of the labels are drawn anew: high scores promise too much, low ones too little."""
    random, reference, scored = world()
    windows = []
    for number in range(10):
        scores, labels = draw(random, 200)
        again = random.random(200) < 0.5
        labels[again] = random.random(again.sum()) < 0.413  # the share of all labels
        part = labelled_scores(scores, labels)
        windows.append(LabelledWindow(number, part.hits, part.misses))
    check = residual_check(calibrator(reference), windows)
    assert abs(check.z) < 2
    tree = estimated(LabelFree(reference, 0, check), scored, 2_000, "y")
    assert tree["status"] == "invalid"
    assert tree["reason"].endswith("high and low scores are wrong in opposite directions")


def test_an_alarm_on_inputs_is_said_with_what_it_widened():
    _, reference, scored = world()
    fitted = calibrator(reference)
    scores, hits = draw(np.random.default_rng(33), 5_000, drift=1.0)
    gaps = gaps_of(fitted, {"region=south": labelled_scores(scores, hits)})
    args = scored, 2_000, "y", None
    plain = estimated(LabelFree(reference, gaps=gaps), *args)
    wide = estimated(LabelFree(reference, gaps=gaps), *args, "x has shifted")
    assert plain["reason"] == ""
    assert wide["status"] == "ok"
    assert re.match(
        r"x has shifted, so the intervals are widened, by at most \d+\.\d points: .* segment region=south$",
        wide["reason"],
    )
    for name, figure in wide["figures"].items():
        before = plain["figures"][name]
        assert figure["value"] == before["value"]
        assert figure["low"] == pytest.approx(max(0, before["low"] - figure.get("widened", 0)))
    # Verdicts from before segments were looked at stay what they were.
    old = estimated(LabelFree(reference), *args, "x has shifted")
    assert old == estimated(LabelFree(reference), *args)
    assert "gaps" not in msgspec.to_builtins(LabelFree(reference))
    none = estimated(LabelFree(reference, gaps=Gaps(3)), *args, "x has shifted")
    assert "not widened, since none of the reference's 3 segments" in none["reason"]


def test_broken_inputs_make_it_invalid():
    _, reference, scored = world()
    tree = estimated(LabelFree(reference), scored, 2_000, "y", "missing_rate(x) is 0.9")
    assert tree["status"] == "invalid"
    assert tree["reason"].startswith("missing_rate(x) is 0.9")


def test_scores_where_the_reference_had_none_are_called_extrapolation():
    random = np.random.default_rng(32)
    scores = random.random(20_000) * 0.5
    reference = labelled_scores(scores, random.random(20_000) < scores)
    beyond = {"y": tuple(by_bin(0.5 + random.random(500) * 0.5, slice(None)))}
    tree = estimated(LabelFree(reference), beyond, 500, "y")
    assert tree["status"] == "extrapolating"
    assert re.search(r"^9\d % of the rows", tree["reason"])


@pytest.mark.parametrize(
    ("hits", "misses", "said"),
    [
        ([1] * BINS, [1] * BINS, f"200 labelled rows with a score, {LEAST_LABELS} are needed"),
        ([0] * BINS, [10] * BINS, "only 0 labelled rows"),
        (list(range(100, 0, -1)), list(range(1, 101)), "score is lower where"),
    ],
)
def test_a_reference_that_calibrates_nothing_gives_no_estimate(hits, misses, said):
    known = LabelFree(LabelledScores(tuple(hits), tuple(misses)))
    tree = estimated(known, {"y": (1,) * BINS}, 100, "y")
    assert tree["status"] == "not_available"
    assert said in tree["reason"]
    assert tree["figures"] == {}


def test_without_scores_or_a_reference_the_reason_is_given():
    _, reference, _ = world()
    tree = estimated(LabelFree(reference), {}, 100, "y")
    assert tree["status"] == "not_available"
    assert "no row" in tree["reason"]
    assert estimated(LabelFree(reason="why"), {}, 1, None)["reason"] == "why"
