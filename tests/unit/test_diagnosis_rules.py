"""Each rule of the diagnosis, and where signals come from: verdicts, counts, the way labels come."""

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from trimtab.detect.breaks import broken_values, heterogeneity, unit_change
from trimtab.detect.diagnosis import (
    Advice,
    Cause,
    Code,
    Deploy,
    Diagnosis,
    Sign,
    Signals,
    Signs,
    diagnose,
)
from trimtab.detect.label_signals import (
    Coming,
    LabelledRows,
    Source,
    label_pipeline,
    label_signals,
)
from trimtab.detect.signals import deploys_of, signals_of, with_labels
from trimtab.records import Evidence, Finding, Kind, Outcome, Reason, Verdict
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import (
    CategoryCuts,
    ModelCuts,
    build_category_cuts,
    build_numeric_cuts,
    model_cuts,
)

HOUR = 3_600_000
T0 = 1_700_000_000_000


def sign(code: Code, subject: str = "income", onset_ms: int = T0, **more: Any) -> Signs:
    return (
        Sign(code=code, subject=subject, text=f"{subject} changed.", onset_ms=onset_ms, **more),
    )


S1, S2, S3 = sign(Code.DATA_QUALITY), sign(Code.HETEROGENEITY), sign(Code.FEATURE_DRIFT)
S4, S5 = sign(Code.SCORE_DRIFT, "score"), sign(Code.ESTIMATED_DROP, "accuracy")
S6, S7 = sign(Code.LABEL_PRIOR, "yes"), sign(Code.CLASS_CONDITIONAL)
S8, SHAPE = sign(Code.CALIBRATION, "yes"), sign(Code.CALIBRATION)
S10, FELL = sign(Code.CANARY, "version 2"), sign(Code.QUALITY_DROP, "accuracy")
LABELS = sign(Code.LABEL_PIPELINE, "labels")
QUIET = Signals(
    data_quality=(),
    features=(),
    answers=(),
    label_prior=(),
    class_conditional=(),
    calibration=(),
    calibration_shape=(),
    score_of_labelled=(),
    quality=(),
    labelled_rows=2_000,
)
UNLABELLED = Signals(data_quality=(), features=(), answers=())
DEPLOYED = (Deploy("2", T0, "1"),)


def given(base: Signals = QUIET, **changes: Any) -> Signals:
    return replace(base, **changes)


TABLE: list[tuple[str, Signals, Cause, Advice]] = [
    ("quiet", QUIET, Cause.NONE, Advice.DO_NOTHING),
    ("nothing measured", Signals(), Cause.NONE, Advice.DO_NOTHING),
    ("S1", given(data_quality=S1), Cause.DATA_QUALITY_BREAK, Advice.FIX_UPSTREAM),
    (
        "S1 and all that follows from it",
        given(data_quality=S1, features=S3, answers=S4, calibration=S8, quality=FELL),
        Cause.DATA_QUALITY_BREAK,
        Advice.FIX_UPSTREAM,
    ),
    ("S2", given(heterogeneity=S2), Cause.DATA_QUALITY_BREAK, Advice.FIX_UPSTREAM),
    ("S10", given(canary=S10), Cause.BAD_RELEASE, Advice.ROLL_BACK),
    (
        "answers moved at a deploy",
        given(UNLABELLED, answers=S4, deploys=DEPLOYED),
        Cause.BAD_RELEASE,
        Advice.ROLL_BACK,
    ),
    (
        "quality fell at a deploy",
        given(quality=FELL, deploys=DEPLOYED),
        Cause.BAD_RELEASE,
        Advice.ROLL_BACK,
    ),
    (
        "inputs moved at a deploy that does no harm",
        given(features=S3, deploys=DEPLOYED),
        Cause.COVARIATE_BENIGN,
        Advice.DO_NOTHING,
    ),
    (
        "what was bad before the deploy is not its doing",
        given(
            quality=sign(Code.QUALITY_DROP, "accuracy", fresh=False),
            deploys=DEPLOYED,
            calibration_shape=SHAPE,
        ),
        Cause.CONCEPT_DRIFT,
        Advice.RETRAIN,
    ),
    (
        "a deploy long ago is no cause",
        given(quality=FELL, calibration_shape=SHAPE, deploys=(Deploy("2", T0 - 9 * HOUR),)),
        Cause.CONCEPT_DRIFT,
        Advice.RETRAIN,
    ),
    (
        "labels come another way",
        given(calibration=S8, label_prior=S6, label_pipeline=LABELS),
        Cause.LABEL_PIPELINE_BREAK,
        Advice.FIX_UPSTREAM,
    ),
    (
        "label shift",
        given(label_prior=S6, calibration=S8, score_of_labelled=S4, features=S3, quality=FELL),
        Cause.LABEL_SHIFT,
        Advice.RECALIBRATE,
    ),
    (
        "a shift of labels under inputs that stand still",
        given(label_prior=S6, calibration=S8),
        Cause.UNDETERMINED,
        Advice.WAIT_FOR_LABELS,
    ),
    (
        "concept, even",
        given(label_prior=S6, calibration=S8, class_conditional=S7),
        Cause.CONCEPT_DRIFT,
        Advice.RETRAIN,
    ),
    ("concept, uneven", given(calibration_shape=SHAPE), Cause.CONCEPT_DRIFT, Advice.RETRAIN),
    ("benign", given(features=S3), Cause.COVARIATE_BENIGN, Advice.DO_NOTHING),
    (
        "harmful",
        given(features=S3, answers=S4, quality=FELL),
        Cause.COVARIATE_HARMFUL,
        Advice.RETRAIN,
    ),
    (
        "quiet residuals of too few labels prove nothing",
        given(features=S3, quality=FELL, labelled_rows=499),
        Cause.UNDETERMINED,
        Advice.RETRAIN,
    ),
    (
        "answers alone",
        given(answers=S4, quality=None),
        Cause.JOINT_OR_SERVING_CHANGE,
        Advice.WAIT_FOR_LABELS,
    ),
    (
        "labels pending",
        given(UNLABELLED, features=S3, answers=S4, estimate=S5),
        Cause.SUSPECTED_HARM,
        Advice.WAIT_FOR_LABELS,
    ),
    (
        "labels pending, answers and estimate stand still",
        given(UNLABELLED, features=S3, estimate=()),
        Cause.COVARIATE_BENIGN,
        Advice.DO_NOTHING,
    ),
    (
        "no labels ever",
        given(UNLABELLED, features=S3, labels_promised=False),
        Cause.COVARIATE_OR_JOINT,
        Advice.DO_NOTHING,
    ),
    ("quality fell alone", given(quality=FELL), Cause.UNDETERMINED, Advice.RETRAIN),
    (
        "the service",
        given(service=sign(Code.SERVICE, "rows")),
        Cause.SERVICE,
        Advice.FIX_UPSTREAM,
    ),
]


@pytest.mark.parametrize(
    ("signals", "cause", "advice"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_diagnosis_is_as_the_table_says(signals: Signals, cause: Cause, advice: Advice) -> None:
    found = diagnose(signals)
    assert (found.cause, found.advice) == (cause, advice)
    assert found.summary.endswith(".")
    assert set(signals.firing) <= set(found.reasons), "every firing sign is reported"


def test_every_cause_has_a_row_in_the_table() -> None:
    assert {row[2] for row in TABLE} == set(Cause)


def test_of_several_causes_the_safest_action_is_advised_and_the_others_are_named() -> None:
    found = diagnose(given(data_quality=S1, canary=S10, calibration=S8, label_pipeline=LABELS))
    assert found.advice is Advice.FIX_UPSTREAM
    assert found.also == (Cause.BAD_RELEASE, Cause.LABEL_PIPELINE_BREAK)


@pytest.mark.parametrize("features", [None, (), S3])
@pytest.mark.parametrize("answers", [None, (), S4])
@pytest.mark.parametrize("estimate", [None, (), S5])
@pytest.mark.parametrize("promised", [True, False])
def test_without_labels_neither_concept_nor_label_shift_is_claimed(
    features: Signs | None, answers: Signs | None, estimate: Signs | None, promised: bool
) -> None:
    signals = Signals(
        features=features, answers=answers, estimate=estimate, labels_promised=promised
    )
    found = diagnose(signals)
    claimed = {
        Cause.CONCEPT_DRIFT,
        Cause.LABEL_SHIFT,
        Cause.COVARIATE_HARMFUL,
        Cause.LABEL_PIPELINE_BREAK,
    }
    assert found.cause not in claimed
    assert found.advice not in (Advice.RETRAIN, Advice.RECALIBRATE)


def test_the_onset_is_that_of_what_the_diagnosis_rests_on() -> None:
    early = sign(Code.FEATURE_DRIFT, "age", T0 - 5 * HOUR)
    found = diagnose(given(data_quality=S1, features=early))
    assert found.onset_ms == T0


def test_a_diagnosis_survives_its_record() -> None:
    found = diagnose(given(features=S3, quality=FELL, deploys=DEPLOYED))
    assert found.cause is Cause.BAD_RELEASE
    assert msgspec.convert(msgspec.to_builtins(found), Diagnosis) == found


# --- from verdicts ----------------------------------------------------------------------------------


def verdict(window: int, *findings: Finding, **figures: Any) -> Verdict:
    return Verdict(
        model="m",
        window_start_ms=T0 + window * HOUR,
        window_end_ms=T0 + (window + 1) * HOUR,
        revision=1,
        outcome=Outcome.OK,
        kind=None,
        reason=Reason.WITHIN_LIMITS,
        summary="",
        findings=list(findings),
        figures=figures,
        evidence=Evidence(input_digest="", contract_revision=1, code_version=""),
    )


def by_rule(kind: Kind, rule: str, outcome: Outcome, **more: Any) -> Finding:
    reason = Reason.WITHIN_LIMITS if outcome is Outcome.OK else Reason.RULE_BREACHED
    return Finding(
        kind=kind,
        outcome=outcome,
        reason=reason,
        figure=rule.split(" ", maxsplit=1)[0],
        rule=rule,
        **more,
    )


PSI = "psi(income) > 0.2"
ACCURACY = "accuracy < 0.9"


def test_a_broken_rule_is_a_sign_of_its_kind() -> None:
    rules = [
        (Kind.INPUT, PSI, "features", "S3"),
        (Kind.PREDICTION, "psi(prediction) > 0.2", "answers", "S4"),
        (Kind.DATA_QUALITY, "missing_rate(income) > 0.1", "data_quality", "S1"),
        (Kind.PERFORMANCE, ACCURACY, "quality", "quality"),
        (Kind.RESOURCES, "cpu_percent > 90", "service", "service"),
    ]
    for kind, rule, field, code in rules:
        broken = verdict(0, by_rule(kind, rule, Outcome.ALARM, value=0.5, threshold=0.2))
        found = getattr(signals_of([broken], labels_promised=True), field)
        assert [(s.code.value, s.onset_ms) for s in found] == [(code, T0)]
        assert rule in found[0].text
        held = verdict(0, by_rule(kind, rule, Outcome.OK, value=0.1))
        assert getattr(signals_of([held], labels_promised=True), field) == ()


def test_what_no_finding_judged_is_not_measured() -> None:
    waiting = Finding(
        kind=Kind.PERFORMANCE,
        outcome=Outcome.CANNOT_TELL,
        reason=Reason.WAITING_FOR_LABELS,
        figure="accuracy",
        rule=ACCURACY,
    )
    rows = Finding(kind=Kind.VOLUME, outcome=Outcome.OK, reason=Reason.WITHIN_LIMITS, figure="rows")
    found = signals_of([verdict(0, waiting, rows)], labels_promised=True)
    assert (found.quality, found.features, found.service) == (None, None, None)


def test_the_detector_gives_a_sign_per_moved_source() -> None:
    said = Finding(
        kind=Kind.INPUT,
        outcome=Outcome.ALARM,
        reason=Reason.DETECTOR,
        figure="detector",
        detail="income: shifted; age has not been as before",
        onset_ms=T0 - HOUR,
    )
    quality = replace(said, kind=Kind.DATA_QUALITY, outcome=Outcome.OK, reason=Reason.WITHIN_LIMITS)
    tree = {
        "moved": [
            {"source": "income", "kind": "input", "onset_ms": T0, "says": "income: shifted +0.3 sd"}
        ],
        "open": {
            "income": {"kind": "input", "what": "location", "onset_ms": T0},
            "age": {"kind": "input", "what": "spread", "onset_ms": T0 - HOUR},
            "output:score": {"kind": "prediction", "what": "location", "onset_ms": T0},
        },
    }
    found = signals_of([verdict(0, said, quality, detector=tree)], labels_promised=True)
    assert found.features is not None
    assert [(s.subject, s.onset_ms) for s in found.features] == [("income", T0), ("age", T0 - HOUR)]
    assert found.data_quality == ()
    one = replace(said, figure="detector(output:score)", kind=Kind.PREDICTION)
    alone = signals_of([verdict(0, one)], labels_promised=True)
    assert alone.answers is not None
    assert [s.subject for s in alone.answers] == ["score"]


@pytest.mark.parametrize(
    ("status", "now", "expected"),
    [
        ("ok", 0.80, True),
        ("ok", 0.89, False),
        ("invalid", 0.80, None),
        ("not_available", 0.80, None),
    ],
)
def test_estimated_quality_since_the_onset_is_compared_with_before(
    status: str, now: float, expected: bool | None
) -> None:
    def estimated(window: int, value: float, outcome: Outcome) -> Verdict:
        figures = {"accuracy": {"value": value, "low": 0.0, "high": 1.0, "se": 0.01}}
        onset = T0 + 2 * HOUR if outcome is Outcome.ALARM else None
        return verdict(
            window,
            by_rule(Kind.INPUT, PSI, outcome, value=0.3, onset_ms=onset),
            estimated={"figures": figures, "status": status},
        )

    seen = [
        estimated(3, now, Outcome.ALARM),
        estimated(2, now, Outcome.ALARM),
        estimated(1, 0.90, Outcome.OK),
        estimated(0, 0.91, Outcome.OK),
    ]
    found = signals_of(seen, labels_promised=True)
    assert found.estimate is None if expected is None else bool(found.estimate) == expected
    assert diagnose(found).cause is Cause.SUSPECTED_HARM


def history(*rows: tuple[dict[str, int], str, Outcome]) -> list[Verdict]:
    """Windows 0, 1, …, returned newest first: rows by version, the judged version, accuracy's outcome."""
    onset: int | None = None
    made = []
    for window, (versions, judged, outcome) in enumerate(rows):
        bad = outcome is Outcome.ALARM
        onset = (T0 + window * HOUR if onset is None else onset) if bad else None
        finding = by_rule(Kind.PERFORMANCE, ACCURACY, outcome, value=0.8, onset_ms=onset)
        made.append(verdict(window, finding, rows_by_version=versions, judged_version=judged))
    return made[::-1]


def test_a_deploy_after_which_quality_falls_is_a_bad_release() -> None:
    seen = history(
        ({"1": 900}, "1", Outcome.OK),
        ({"1": 900}, "1", Outcome.OK),
        ({"1": 100, "2": 800}, "2", Outcome.ALARM),
        ({"2": 900}, "2", Outcome.ALARM),
    )
    assert deploys_of(seen) == (Deploy("2", T0 + 2 * HOUR, "1"),)
    found = diagnose(signals_of(seen, labels_promised=True))
    assert found.cause is Cause.BAD_RELEASE
    assert found.summary == "Accuracy changed when version 2 came: roll back to 1."
    assert found.reasons[0].code is Code.DEPLOY


def test_a_deploy_into_trouble_is_no_bad_release() -> None:
    seen = history(
        ({"1": 900}, "1", Outcome.OK),
        ({"1": 900}, "1", Outcome.ALARM),
        ({"2": 900}, "2", Outcome.ALARM),
    )
    late = [replace(v, findings=[replace(v.findings[0], onset_ms=None)]) for v in seen]
    for found in (seen, late):
        assert diagnose(signals_of(found, labels_promised=True)).cause is Cause.UNDETERMINED


def test_a_canarys_first_percent_is_no_deploy() -> None:
    seen = history(({"1": 900}, "1", Outcome.OK), ({"1": 990, "2": 10}, "1", Outcome.OK))
    assert deploys_of(seen) == ()


# --- from counts ------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
TEMPERATURE = RNG.normal(20, 5, 4_000)
CHANNEL = RNG.choice(["web", "app", "branch"], 4_000).tolist()
CUTS: ModelCuts = model_cuts(
    [
        ("temperature", build_numeric_cuts(TEMPERATURE)),
        ("channel", build_category_cuts(CHANNEL)),
    ]
)


def state(temperature: Any, channel: list[Any] | None = None) -> PaneState:
    values = np.asarray(temperature, dtype=np.float64)
    words = CHANNEL[: values.size] if channel is None else channel
    return observe_pane(
        CUTS,
        values.size,
        numeric={"temperature": Column(values)},
        categories={"channel": words},
        statuses={},
        rules={},
    )


BASE = state(TEMPERATURE)
WINDOW = np.random.default_rng(6).normal(20, 5, 800)


@pytest.mark.parametrize("factor", [10, 100, 1000, 0.1, 0.01, 0.001])
def test_a_changed_unit_is_named(factor: float) -> None:
    (found,) = broken_values(CUTS, state(WINDOW * factor), BASE, T0)
    assert found.value == pytest.approx(factor)
    assert "unit changed" in found.text


def test_fahrenheit_for_celsius_and_back() -> None:
    assert "Fahrenheit" in broken_values(CUTS, state(WINDOW * 1.8 + 32), BASE, T0)[0].text
    fahrenheit = build_numeric_cuts(TEMPERATURE * 1.8 + 32)
    cuts = model_cuts([("temperature", fahrenheit)])

    def counted(values: Any) -> PaneState:
        return observe_pane(
            cuts,
            len(values),
            numeric={"temperature": Column(values)},
            categories={},
            statuses={},
            rules={},
        )

    (found,) = broken_values(cuts, counted(WINDOW), counted(TEMPERATURE * 1.8 + 32), T0)
    assert "Celsius for Fahrenheit" in found.text


@pytest.mark.parametrize("shift", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 1.8, 3.0])
def test_drift_is_no_change_of_unit(shift: float, scale: float) -> None:
    moved = 20 + (WINDOW - 20) * scale + shift
    assert broken_values(CUTS, state(moved), BASE, T0) == ()


def test_values_that_became_one_value_are_named() -> None:
    for constant in (20.0, 99.0, -5.0):
        (found,) = broken_values(CUTS, state(np.full(800, constant)), BASE, T0)
        assert "nearly constant" in found.text
    (found,) = broken_values(CUTS, state(WINDOW, ["web"] * 800), BASE, T0)
    assert (found.subject, found.value) == ("channel", 1.0)


def test_missing_and_unseen_values_are_named_with_both_shares() -> None:
    lost = WINDOW.copy()
    lost[:80] = np.nan
    (found,) = broken_values(CUTS, state(lost), BASE, T0)
    assert found.text.startswith("temperature: 10.0% missing, it was 0.0%")
    strange = ["kiosk"] * 100 + CHANNEL[:700]
    (found,) = broken_values(CUTS, state(WINDOW, strange), BASE, T0)
    assert "never seen before" in found.text


def test_a_constant_or_short_feature_gives_no_sign() -> None:
    few = state(WINDOW[:20] * 100)
    assert broken_values(CUTS, few, BASE, T0) == ()
    constant = model_cuts([("temperature", build_numeric_cuts(np.ones(100)))])
    cut = constant.feature["temperature"]
    one = observe_pane(
        constant,
        100,
        numeric={"temperature": Column(np.ones(100))},
        categories={},
        statuses={},
        rules={},
    )
    assert unit_change(cut, one.features["temperature"], one.features["temperature"]) is None
    assert isinstance(CUTS.feature["channel"], CategoryCuts)


def test_a_version_that_is_fed_otherwise_is_named() -> None:
    rng = np.random.default_rng(7)
    like = {v: state(rng.normal(20, 5, 500)) for v in ("1", "2", "3")}
    assert heterogeneity(CUTS, like, T0) == ()
    (found,) = heterogeneity(CUTS, {**like, "3": state(rng.normal(24, 5, 500))}, T0)
    assert found.subject == "temperature of version 3"
    assert abs(found.value or 0) > 6
    pair = {"1": like["1"], "2": state(np.full(100, np.nan))}
    (found,) = heterogeneity(CUTS, pair, T0, "producer")
    assert "temperature of producer 2 is not like the rest: missing" in found.text
    assert heterogeneity(CUTS, {"1": like["1"]}, T0) == ()


# --- from labelled rows -----------------------------------------------------------------------------


def labelled(n: int, seed: int, classes: int = 2) -> LabelledRows:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, n)
    label = np.minimum((x * classes + rng.integers(0, 16, n)) // 8 % classes, classes - 1)
    return LabelledRows(bins=x[:, None], score=x, label=label)


FEATURE, SCORE = Source("x", 8), Source("score", 8)


def test_too_few_labelled_rows_say_nothing() -> None:
    assert label_signals(labelled(99, 1), labelled(900, 2), [FEATURE], SCORE, ("a", "b")) is None


def test_rows_that_do_not_fit_are_refused() -> None:
    rows = labelled(200, 1)
    with pytest.raises(ValueError, match="one row each"):
        label_signals(rows, rows, [FEATURE, FEATURE], SCORE, ("a", "b"))


def test_several_classes_are_compared_in_pairs() -> None:
    old, new = labelled(4_000, 1, 3), labelled(3_000, 2, 3)
    classes = ("a", "b", "c")
    quiet = label_signals(old, new, [FEATURE], SCORE, classes)
    assert quiet is not None
    assert quiet.label_prior + quiet.calibration + quiet.calibration_shape == ()
    swapped = replace(new, label=np.where(new.label == 2, 1, np.where(new.label == 1, 2, 0)))
    moved = label_signals(old, swapped, [FEATURE], SCORE, classes, T0)
    assert moved is not None
    found = diagnose(with_labels(Signals(), moved))
    assert (found.cause, found.onset_ms) == (Cause.CONCEPT_DRIFT, T0)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_is_no_error(label: int) -> None:
    rows = replace(labelled(300, 1), label=np.full(300, label))
    found = label_signals(rows, rows, [FEATURE], SCORE, ("a", "b"))
    assert found is not None
    assert found.label_prior + found.calibration + found.calibration_shape == ()


def test_separable_classes_and_missing_values_are_no_error() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, 500)  # 8 is a missing value
    rows = LabelledRows(bins=x[:, None], score=x, label=(x > 3).astype(np.int64))
    found = label_signals(rows, rows, [FEATURE], SCORE, ("a", "b"))
    assert found is not None
    assert found.calibration + found.calibration_shape == ()


def coming(n: int, delay_ms: float, share: float, seed: int) -> Coming:
    rng = np.random.default_rng(seed)
    delay = np.where(rng.random(n) < share, rng.exponential(delay_ms, n), np.nan)
    return Coming(delay, rng.uniform(0, 30 * delay_ms, n))


def test_labels_that_come_less_often_or_later_are_a_sign() -> None:
    usual = coming(4_000, 1_000, 0.8, 1)
    assert label_pipeline(usual, coming(3_000, 1_000, 0.8, 2)) == ()
    assert label_pipeline(usual, coming(3_000, 1_000, 0.4, 3))
    assert label_pipeline(usual, coming(3_000, 4_000, 0.8, 4))
    young = Coming(np.full(900, np.nan), np.full(900, 10.0))
    assert label_pipeline(usual, young) is None, "rows that are too young for a label say nothing"
