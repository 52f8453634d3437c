"""Rules against the reference as pure functions: what the reference of each figure is, and what is judged."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from trimtab.contracts.model import Alarms, Contract, Feature, Labels, Windows
from trimtab.contracts.rules import parse_rule
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import Labelled
from trimtab.detect.reference import (
    ReferenceFigure,
    ReferenceLabels,
    baseline_tree,
    counted_figure,
    labelled_figure,
)
from trimtab.detect.rules import PriorWindow, flag_of
from trimtab.detect.verdict import WindowInputs, encode, evaluate, reference_of
from trimtab.records import Finding, Outcome, Reason, Verdict
from trimtab.stats.aggregate import Column, LatencyState, PaneState, ResourceState, observe_pane
from trimtab.stats.cuts import build_numeric_cuts, model_cuts
from trimtab.stats.intervals import wilson
from trimtab.stats.performance import PerformanceState

LENGTH = 2_000
CUTS = model_cuts([("x", build_numeric_cuts(np.linspace(0, 1, 1_000)))], [])


def state_of(rows: int, missing: int = 0, errors: int = 0, latency=()) -> PaneState:
    x = np.full(rows, 0.5)
    x[:missing] = np.nan
    pane = observe_pane(
        CUTS,
        rows,
        numeric={"x": Column(x)},
        categories={},
        statuses={"ok": rows - errors, "error": errors},
        rules={},
    )
    return msgspec.structs.replace(pane, latency_ms=LatencyState.observe(latency))


def labelled(right: int, wrong: int, predicted: int | None = None) -> Labelled:
    state = PerformanceState.of_classes(["a"] * (right + wrong), ["a"] * right + ["b"] * wrong)
    return Labelled(state, right + wrong, predicted or right + wrong)


def contract(*rules: str, **labels) -> Contract:
    return Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        labels=Labels("within 1 day", **labels),
        windows=Windows(length="2s", pane="2s", min_rows=100),
        alarms=Alarms(rules=rules),
    )


BASELINE = Baseline(state_of(4_000, missing=40, errors=80, latency=[40.0] * 4_000), 10, 10, 1)


def judged(rule: str, against: ReferenceFigure | None, **more) -> Verdict:
    """The verdict of a window of 500 rows, of which 400 of 500 were answered right."""
    state = state_of(500, missing=50, latency=[100.0] * 500)
    given = {
        "contract": contract(rule),
        "contract_revision": 1,
        "code_version": "t",
        "window_start_ms": 10 * LENGTH,
        "window_end_ms": 11 * LENGTH,
        "revision": 1,
        "state": state,
        "by_version": {"1": state},
        "performance": {"1": labelled(400, 100)},
        "cuts": CUTS,
        "baseline": BASELINE,
        "judged_version": "1",
        "reference": {} if against is None else {parse_rule(rule).text: against},
        **more,
    }
    return evaluate(WindowInputs(**given))


def finding(verdict: Verdict) -> Finding:
    return next(f for f in verdict.findings if f.rule is not None)


RULE = "accuracy < reference - 0.05 in 2 of 3"
STANDS = ReferenceFigure(0.93, 4_210, 0.922, 0.937, "1", 4_210)


# --- what the reference is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("missing_rate(x) > reference", 0.01),
        ("error_rate > reference", 0.02),
        ("rows < 0.5 * reference", 400.0),
        ("cpu_percent > reference", 30.0),
        ("memory_bytes > reference", 9.0),
    ],
)
def test_the_reference_is_the_same_figure_of_the_baseline(rule: str, value: float) -> None:
    gauges = ResourceState.observe({"cpu_percent": [20.0, 40.0], "memory_bytes": [1.0, 9.0]})
    tree = baseline_tree(BASELINE, CUTS, contract(), gauges)
    found = counted_figure(parse_rule(rule), tree, 10, is_file=False, dated=True)
    assert found.value == pytest.approx(value, rel=0.02)


def test_rows_of_windows_of_another_length_are_no_reference() -> None:
    tree = baseline_tree(BASELINE, CUTS, contract(), ResourceState())
    rule = parse_rule("rows < 0.5 * reference")
    found = counted_figure(rule, tree, 10, is_file=False, dated=True, same_length=False)
    assert (found.value, found.reason) == (None, "has windows of another length")
    other = parse_rule("missing_rate(x) > reference")
    kept = counted_figure(other, tree, 10, is_file=False, dated=True, same_length=False)
    assert kept.value is not None


def test_latency_of_the_reference_is_its_quantile() -> None:
    tree = baseline_tree(BASELINE, CUTS, contract(), ResourceState())
    rule = parse_rule("p95_latency_ms > 1.5 * reference")
    found = counted_figure(rule, tree, 10, is_file=False, dated=True)
    assert found.value == pytest.approx(40.0, rel=0.02)
    assert found.rows == 4_000


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("cpu_percent > reference", "has no cpu_percent (no samples of cpu_percent)"),
        ("error_rate > reference", "is of a file, which says nothing of error_rate"),
        ("abnormal_request_rate > reference", "is of a file, which says nothing of"),
        ("rows < reference", "is of a file without times, hence of no windows"),
        ("missing_rate(y) > reference", "has no missing_rate(y) (no such feature counted)"),
    ],
)
def test_what_a_baseline_cannot_say_is_named(rule: str, said: str) -> None:
    tree = baseline_tree(BASELINE, CUTS, contract(), ResourceState())
    found = counted_figure(parse_rule(rule), tree, 1, is_file=True, dated=False)
    assert found.value is None
    assert said in found.reason
    verdict = judged(rule, found, resources=ResourceState.observe({"cpu_percent": [1.0]}))
    if "(y)" not in rule:  # such a feature the window has none of, either
        assert (finding(verdict).outcome, finding(verdict).reason) == (
            *(Outcome.CANNOT_TELL, Reason.UNDEFINED),
        )
        assert finding(verdict).detail == f"no reference: the baseline {found.reason}"


def test_performance_of_the_reference_is_pooled_and_carries_its_interval() -> None:
    labels = ReferenceLabels({"1": labelled(930, 70)}, due=True)
    found = labelled_figure(parse_rule(RULE), labels, "1", contract())
    assert (found.value, found.rows, found.version) == (0.93, 1_000, "1")
    assert (found.low, found.high) == pytest.approx(wilson(930, 1_000))


@pytest.mark.parametrize(
    ("rows", "judged_version", "chosen"),
    [
        ({"1": 900, "2": 150}, "2", "2"),
        ({"1": 900, "2": 50}, "2", "1"),
        ({"1": 900, "2": 800}, "3", "1"),
        ({"1": 500, "2": 500}, None, "1"),
        ({"": 900}, "2", ""),
    ],
)
def test_the_judged_versions_answers_count_where_it_gave_enough_there(
    rows: dict[str, int], judged_version: str | None, chosen: str
) -> None:
    labels = ReferenceLabels({v: labelled(n, 0) for v, n in rows.items()}, due=True)
    found = labelled_figure(parse_rule(RULE), labels, judged_version, contract())
    assert (found.version, found.rows) == (chosen, rows[chosen])


# --- what is judged ---------------------------------------------------------------------------------


def test_an_alarm_names_both_numbers_the_references_error_and_the_limit() -> None:
    before = [PriorWindow(9 * LENGTH, {RULE: True})]
    verdict = judged(RULE, STANDS, prior=before)
    found = finding(verdict)
    assert (found.outcome, found.value, found.reference) == (Outcome.ALARM, 0.8, 0.93)
    assert found.threshold == pytest.approx(0.88)
    assert found.detail == (
        "accuracy 0.8, the reference has 0.93 (0.922 to 0.937, 4,210 labelled rows), "
        "the rule allows 0.88"
    )
    assert verdict.summary.startswith("Alarm: accuracy is 0.8, the reference 0.93; `accuracy <")
    assert flag_of(found) is True


@pytest.mark.parametrize(
    ("against", "outcome"),
    [(0.84, Outcome.OK), (0.86, Outcome.WARNING), (0.93, Outcome.WARNING)],
)
def test_the_limit_moves_with_the_reference(against: float, outcome: Outcome) -> None:
    found = finding(judged(RULE, msgspec.structs.replace(STANDS, value=against)))
    assert found.outcome is outcome
    assert flag_of(found) is (outcome is Outcome.WARNING)


def test_a_reference_so_uncertain_that_it_decides_is_said_to_be() -> None:
    wide = ReferenceFigure(0.86, 120, 0.79, 0.91, "1", 120)
    found = finding(judged(RULE, wide))
    assert found.outcome is Outcome.WARNING
    assert "; at one end of the reference's 95 % interval it is not met" in found.detail
    narrow = finding(judged(RULE, STANDS))
    assert "at one end" not in narrow.detail


def test_another_versions_or_a_files_reference_is_named() -> None:
    other = finding(judged(RULE, msgspec.structs.replace(STANDS, version="7")))
    assert "4,210 labelled rows, version 7)" in other.detail
    file = finding(judged(RULE, msgspec.structs.replace(STANDS, version="")))
    assert "4,210 labelled rows, its file)" in file.detail


@pytest.mark.parametrize(
    ("against", "reason", "said"),
    [
        (
            ReferenceFigure(0.9, 60, version="1", predicted_rows=4_000, due=False),
            Reason.WAITING_FOR_LABELS,
            "no reference: the baseline has 60 labelled rows, 100 are wanted",
        ),
        (
            ReferenceFigure(0.9, 60, version="1", predicted_rows=4_000),
            Reason.TOO_FEW_ROWS,
            "no reference: the baseline has 60 labelled rows, 100 are wanted",
        ),
        (
            ReferenceFigure(0.9, 150, version="1", predicted_rows=4_000, due=False),
            Reason.WAITING_FOR_LABELS,
            "no reference yet: 150 of the baseline's 4,000 rows are labelled so far, 10% are waited",
        ),
        (
            labelled_figure(
                parse_rule(RULE), ReferenceLabels({}, due=True, is_file=True), "1", contract()
            ),
            Reason.TOO_FEW_ROWS,
            "the baseline is of a file without labels; fit it again with a label column",
        ),
        (None, Reason.UNDEFINED, "no reference: there is no baseline"),
    ],
)
def test_without_a_reference_that_stands_nothing_can_be_told(
    against: ReferenceFigure | None, reason: Reason, said: str
) -> None:
    found = finding(judged(RULE, against))
    assert (found.outcome, found.reason) == (Outcome.CANNOT_TELL, reason)
    assert said in found.detail
    assert (found.threshold, found.reference) == (None, None)
    assert flag_of(found) is None


def test_enough_labels_stand_once_no_more_are_waited_for() -> None:
    due = ReferenceFigure(0.9, 150, 0.84, 0.94, "1", 4_000, due=True)
    assert finding(judged(RULE, due)).outcome is Outcome.WARNING


def test_while_the_baseline_is_gathered_the_rule_waits_and_a_number_does_not() -> None:
    gathering = Baseline(BASELINE.state, 3, 10)
    found = finding(judged(RULE, None, baseline=gathering))
    assert (found.outcome, found.reason) == (Outcome.CANNOT_TELL, Reason.CALIBRATING)
    assert found.detail == "no reference yet: calibrating: 3 of 10 windows"
    absolute = finding(judged("accuracy < 0.9", None, baseline=gathering))
    assert absolute.outcome is Outcome.ALARM


def test_a_window_without_labels_waits_for_its_own_first() -> None:
    found = finding(judged(RULE, STANDS, performance={}))
    assert found.reason is Reason.WAITING_FOR_LABELS
    assert found.detail == "0 of 100 labelled rows so far"
    assert found.threshold == pytest.approx(0.88)


def test_a_limit_beyond_numbers_is_no_limit() -> None:
    huge = ReferenceFigure(1e308, 4_000)
    found = finding(judged("p95_latency_ms > 1000 * reference", huge))
    assert (found.outcome, found.reason) == (Outcome.CANNOT_TELL, Reason.UNDEFINED)


def test_evidence_keeps_what_was_compared_with_and_the_digest_tells_it() -> None:
    first = judged(RULE, STANDS)
    kept = reference_of(msgspec.json.decode(encode(first), type=Verdict).evidence.prior)
    assert kept == {RULE: STANDS}
    other = judged(RULE, msgspec.structs.replace(STANDS, value=0.92))
    assert first.evidence.input_digest != other.evidence.input_digest
    plain = judged("accuracy < 0.9", None)
    assert "reference" not in plain.evidence.prior
