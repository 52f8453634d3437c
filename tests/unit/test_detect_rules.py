"""Rules, verdicts and figures as pure functions of a window's inputs."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Reference, Windows
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import Labelled, figure_value
from trimtab.detect.rules import PriorWindow
from trimtab.detect.series import EMPTY_WINDOWS, close_windows
from trimtab.detect.verdict import WindowInputs, encode, evaluate, input_digest, verify
from trimtab.records import Finding, Outcome, Reason
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import build_category_cuts, build_numeric_cuts, model_cuts
from trimtab.stats.performance import PerformanceState

LENGTH = 2_000
RNG = np.random.default_rng(11)
REFERENCE = RNG.normal(size=20_000)
CHANNELS = RNG.choice(["web", "app", "branch"], p=[0.6, 0.3, 0.1], size=20_000)
CUTS = model_cuts(
    [("x", build_numeric_cuts(REFERENCE)), ("c", build_category_cuts(CHANNELS.tolist()))],
    [("prediction", build_category_cuts(["a", "b"]))],
)


def state_of(x, c, latency=(), errors=0, rules=None) -> PaneState:
    n = len(x)
    return observe_pane(
        CUTS,
        n,
        numeric={"x": Column(np.asarray(x))},
        categories={"c": list(c), "prediction": ["a"] * n},
        statuses={"ok": n - errors, "error": errors},
        rules=rules or {},
        latency_ms=latency,
    )


BASELINE = Baseline(state_of(REFERENCE, CHANNELS), 168, 168, 1)


def inputs(*rules: str, shift=0.0, rows=500, labelled=None, **more) -> WindowInputs:
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number", min=-3), "c": Feature("category")},
        labels=Labels(more.pop("labels", "within 1 day"), **more.pop("wait", {})),
        windows=Windows(length="2s", pane="2s", min_rows=100),
        alarms=Alarms(rules=rules),
        reference=Reference(),
    )
    rng = np.random.default_rng(3)
    state = None
    if rows:
        state = state_of(rng.normal(size=rows) + shift, rng.choice(["web", "app"], size=rows))
    performance = {}
    if labelled is not None:
        right, wrong = labelled
        pairs = PerformanceState.of_classes(["a"] * (right + wrong), ["a"] * right + ["b"] * wrong)
        performance = {"1": Labelled(pairs, right + wrong, rows)}
    given = {
        "contract": contract,
        "contract_revision": 1,
        "code_version": "t",
        "window_start_ms": 10 * LENGTH,
        "window_end_ms": 11 * LENGTH,
        "revision": 1,
        "state": state,
        "by_version": {"1": state} if state else {},
        "performance": performance,
        "cuts": CUTS,
        "baseline": BASELINE,
        "judged_version": "1",
        **more,
    }
    return WindowInputs(**given)


def prior(rule: str, *flags: bool | None, onset: int | None = None) -> list[PriorWindow]:
    """Flags of the windows just before, oldest first."""
    first = 10 - len(flags)
    return [
        PriorWindow((first + i) * LENGTH, {rule: flag}, {rule: onset} if onset and flag else {})
        for i, flag in enumerate(flags)
    ]


def rule_finding(verdict) -> Finding:
    return next(f for f in verdict.findings if f.rule is not None)


RULE = "accuracy < 0.9 in 3 of 4"


@pytest.mark.parametrize(
    ("flags", "labelled", "outcome", "breached", "onset"),
    [
        ((False, False, False), (195, 5), Outcome.OK, 0, None),
        ((False, False, False), (150, 50), Outcome.WARNING, 1, 10),
        ((False, True, False), (150, 50), Outcome.WARNING, 2, 8),
        ((True, False, True), (150, 50), Outcome.ALARM, 3, 7),
        ((True, True, True), (195, 5), Outcome.ALARM, 3, 7),
        ((None, True, None), (150, 50), Outcome.WARNING, 2, 8),
        ((True, True, False), (195, 5), Outcome.OK, 2, None),
    ],
)
def test_a_rule_alarms_when_it_is_met_in_m_of_the_last_n_windows(
    flags, labelled, outcome, breached, onset
):
    found = rule_finding(evaluate(inputs(RULE, labelled=labelled, prior=prior(RULE, *flags))))
    assert (found.outcome, found.breached) == (outcome, breached)
    assert found.onset_ms == (None if onset is None else onset * LENGTH)


def test_windows_further_back_than_n_are_forgotten_but_an_alarm_keeps_its_onset():
    old = prior(RULE, True, True, True, False, False, False)
    assert rule_finding(evaluate(inputs(RULE, labelled=(150, 50), prior=old))).breached == 1
    going_on = prior(RULE, True, True, True, onset=2 * LENGTH)
    found = rule_finding(evaluate(inputs(RULE, labelled=(150, 50), prior=going_on)))
    assert found.onset_ms == 2 * LENGTH


@pytest.mark.parametrize(
    ("more", "reason", "outcome"),
    [
        ({"labelled": (50, 0)}, Reason.WAITING_FOR_LABELS, Outcome.CANNOT_TELL),
        ({"labelled": (50, 0), "labels_due": True}, Reason.TOO_FEW_ROWS, Outcome.CANNOT_TELL),
        ({"labels": "never"}, Reason.NOT_APPLICABLE, Outcome.OK),
        ({"rows": 0}, Reason.NO_DATA, Outcome.CANNOT_TELL),
        ({"lost": 3}, Reason.LOST_MESSAGES, Outcome.CANNOT_TELL),
        ({"stalled": "partition 1 stands still"}, Reason.STALLED, Outcome.CANNOT_TELL),
    ],
)
def test_what_cannot_be_judged_says_why(more, reason, outcome):
    found = rule_finding(evaluate(inputs("accuracy < 0.9", **more)))
    assert (found.reason, found.outcome) == (reason, outcome)


@pytest.mark.parametrize(
    ("right", "wrong", "wait", "labels_due", "reason", "outcome"),
    [
        # 200 of 500 rows are labelled, and 100 would be enough to count.
        (100, 100, {"judge_share": 0.41}, False, Reason.WAITING_FOR_LABELS, Outcome.CANNOT_TELL),
        (200, 0, {"judge_share": 0.41}, False, Reason.WAITING_FOR_LABELS, Outcome.CANNOT_TELL),
        (100, 100, {"judge_share": 0.40}, False, Reason.RULE_BREACHED, Outcome.ALARM),
        (200, 0, {"judge_share": 0.40}, False, Reason.WITHIN_LIMITS, Outcome.OK),
        (100, 100, {"judge_share": 0.41}, True, Reason.RULE_BREACHED, Outcome.ALARM),
        (100, 100, {"judge_share": 1.0}, False, Reason.WAITING_FOR_LABELS, Outcome.CANNOT_TELL),
        (0, 500, {"judge_share": 1.0}, False, Reason.RULE_BREACHED, Outcome.ALARM),
        (100, 100, {"judge_share": 0.0}, False, Reason.RULE_BREACHED, Outcome.ALARM),
    ],
)
def test_a_performance_rule_waits_for_a_share_of_labels_or_a_time(
    right, wrong, wait, labels_due, reason, outcome
):
    given = inputs("accuracy < 0.9", labelled=(right, wrong), wait=wait, labels_due=labels_due)
    found = rule_finding(evaluate(given))
    assert (found.reason, found.outcome) == (reason, outcome)


def test_a_rule_that_waits_says_for_what():
    wait = {"judge_share": 0.5, "judge_after": "2h"}
    found = rule_finding(evaluate(inputs("accuracy < 0.9", labelled=(200, 0), wait=wait)))
    assert found.detail == (
        "200 of 500 rows labelled so far; it is judged when 50% are, or after 2h"
    )


def test_figures_of_a_sample_say_so_and_others_do_not():
    sample = evaluate(inputs(labelled=(200, 0), wait={"sample_share": 0.25}))
    assert sample.figures["performance"]["1"]["sampled_share"] == 0.25
    assert "sampled_share" not in evaluate(inputs(labelled=(200, 0))).figures["performance"]["1"]


@pytest.mark.parametrize(
    ("given", "outcome", "reason"),
    [
        (inputs(), Outcome.OK, Reason.NOT_APPLICABLE),
        (inputs(baseline=None), Outcome.CANNOT_TELL, Reason.CALIBRATING),
        (inputs("psi(x) > 0.2"), Outcome.OK, Reason.WITHIN_LIMITS),
        (inputs("psi(x) > 0.2", baseline=None), Outcome.CANNOT_TELL, Reason.CALIBRATING),
        (inputs("psi(x) > 0.2", shift=1.0), Outcome.ALARM, Reason.RULE_BREACHED),
        (inputs("psi(x) > 0.2 in 2 of 3", shift=1), Outcome.WARNING, Reason.RULE_BREACHED_ONCE),
        (inputs("psi(x) > 0.2", "accuracy < 0.9"), Outcome.OK, Reason.WITHIN_LIMITS),
        (inputs("accuracy < 0.9"), Outcome.CANNOT_TELL, Reason.WAITING_FOR_LABELS),
        (inputs("error_rate > 0.1", baseline=None), Outcome.OK, Reason.WITHIN_LIMITS),
        (
            inputs("accuracy < 0.9", "psi(x) > 0.2", labels_due=True),
            Outcome.CANNOT_TELL,
            Reason.TOO_FEW_ROWS,
        ),
        (inputs("psi(x) > 0.2", rows=0), Outcome.CANNOT_TELL, Reason.NO_DATA),
        (inputs("rows < 10", rows=0), Outcome.ALARM, Reason.RULE_BREACHED),
        (inputs("psi(x) > 0.2", rows=50), Outcome.CANNOT_TELL, Reason.TOO_FEW_ROWS),
        (inputs("psi(x) > 0.2", shift=1, lost=2), Outcome.CANNOT_TELL, Reason.LOST_MESSAGES),
    ],
)
def test_the_worst_finding_speaks_for_the_window_and_silence_is_never_green(given, outcome, reason):
    verdict = evaluate(given)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)
    assert verdict.summary.endswith(".")


def test_the_same_inputs_give_the_same_bytes_and_verify_names_what_differs():
    one, two = inputs("psi(x) > 0.2"), inputs("psi(x) > 0.2")
    stored = evaluate(one)
    assert encode(stored) == encode(evaluate(two))
    assert verify(stored, evaluate(two)) == []
    forged = msgspec.structs.replace(stored, summary="All is well.")
    assert verify(forged, evaluate(two)) == ["summary"]
    assert "findings" in verify(stored, evaluate(inputs("psi(x) > 0.2", shift=0.5)))


@pytest.mark.parametrize(
    "change",
    [
        {"shift": 0.01},
        {"labelled": (100, 0)},
        {"lost": 1},
        {"labels_due": True},
        {"baseline": None},
        {"contract_revision": 2},
        {"code_version": "u"},
        {"judged_version": "2"},
        {"prior": prior("psi(x) > 0.2", True)},
        {"stalled": "partition 1"},
    ],
)
def test_every_input_is_in_the_digest(change):
    assert input_digest(inputs("psi(x) > 0.2", **change)) != input_digest(inputs("psi(x) > 0.2"))


def test_figures_agree_with_scipy_and_scikit_learn_on_the_raw_rows():
    rng = np.random.default_rng(5)
    x = rng.normal(size=2_000) + 0.15
    c = rng.choice(["web", "app", "branch"], p=[0.5, 0.35, 0.15], size=2_000)
    latency = rng.gamma(2.0, 20.0, size=2_000)
    labels = rng.choice(["a", "b"], size=2_000)
    answers = np.where(rng.random(2_000) < 0.8, labels, np.where(labels == "a", "b", "a"))
    given = inputs()
    given = msgspec.structs.replace(
        given,
        contract=msgspec.structs.replace(
            given.contract,
            prediction=msgspec.structs.replace(given.contract.prediction, positive="a"),
        ),
        state=state_of(x, c, latency, errors=40, rules={"request": 10, "request:type_error": 10}),
        by_version={},
        performance={
            "1": Labelled(
                PerformanceState.of_classes(labels.tolist(), answers.tolist()), 2000, 2000
            )
        },
    )
    tree = evaluate(given).figures

    exact = stats.ks_2samp(x, REFERENCE, method="asymp")
    ks = tree["features"]["x"]["ks"]
    assert ks["d_low"] <= exact.statistic <= ks["d_high"]
    assert ks["d"] == pytest.approx(exact.statistic, abs=0.004)
    assert abs(np.log10(ks["p_value"]) - np.log10(exact.pvalue)) < 1.0
    assert figure_value(tree, "ks_p", "x") == ks["p_value"]

    names = ["web", "app", "branch"]
    table = [[(c == k).sum() for k in names], [(k == CHANNELS).sum() for k in names]]
    expected = stats.chi2_contingency(table, correction=False)
    chi2 = tree["features"]["c"]["chi2"]
    assert chi2["statistic"] == pytest.approx(expected.statistic)
    assert chi2["p_value"] == pytest.approx(expected.pvalue)

    superiority = stats.mannwhitneyu(x, REFERENCE).statistic / (x.size * REFERENCE.size)
    assert tree["features"]["x"]["effect"]["superiority"] == pytest.approx(superiority, abs=0.002)
    distance = stats.wasserstein_distance(x, REFERENCE) / REFERENCE.std(ddof=1)
    assert tree["features"]["x"]["wasserstein_sd"] == pytest.approx(distance, abs=0.02)
    assert tree["features"]["x"]["mean"] == pytest.approx(x.mean(), abs=1e-5)
    assert tree["latency_ms"]["p99"] == pytest.approx(np.quantile(latency, 0.99), rel=0.03)
    assert figure_value(tree, "error_rate") == pytest.approx(0.02)
    assert figure_value(tree, "abnormal_request_rate") == pytest.approx(0.005)

    for name, score in (
        ("accuracy", accuracy_score(labels, answers)),
        ("precision", precision_score(labels, answers, pos_label="a")),
        ("recall", recall_score(labels, answers, pos_label="a")),
        ("f1", f1_score(labels, answers, pos_label="a")),
    ):
        assert figure_value(tree, name) == pytest.approx(score)
    figure = tree["performance"]["1"]["figures"]["accuracy"]
    assert figure["low"] < figure["value"] < figure["high"]


def test_a_gap_is_closed_in_bounded_steps_whatever_the_limit():
    rows = {0, 5 * LENGTH, 100 * LENGTH}
    for limit in (1, 3, 64):
        at, empty, chosen = 0, 0, []
        while True:
            step = close_windows(at, 101 * LENGTH, LENGTH, rows, empty, limit)
            assert len(step.window_starts_ms) <= limit
            if step.evaluated_to_ms == at:
                break
            chosen += step.window_starts_ms
            at, empty = step.evaluated_to_ms, step.empty_windows
        expected = [*range(6 + EMPTY_WINDOWS), 100]
        assert [s // LENGTH for s in chosen] == expected
