"""The columns that the charts draw."""

from typing import Any

import msgspec
import pytest

from trimtab.api.series import FEATURES_SHOWN, series
from trimtab.detect.label_free import LabelFree, estimated
from trimtab.detect.label_residuals import ResidualCheck
from trimtab.detect.score_calibration import LabelledScores
from trimtab.records import Evidence, Finding, Kind, Outcome, Reason, Verdict


def verdict(psi: dict[str, float], *figures: str) -> Verdict:
    findings = [
        Finding(
            kind=Kind.INPUT,
            outcome=Outcome.OK,
            reason=Reason.WITHIN_LIMITS,
            figure=name,
            rule=f"{name} > 1",
        )
        for name in figures
    ]
    return Verdict(
        model="m",
        window_start_ms=0,
        window_end_ms=1,
        revision=1,
        outcome=Outcome.OK,
        kind=None,
        reason=Reason.WITHIN_LIMITS,
        summary="",
        findings=findings,
        figures={"features": {name: {"psi": value} for name, value in psi.items()}},
        evidence=Evidence(input_digest="", contract_revision=1, code_version="0"),
    )


def judged(tree: dict[str, Any]) -> Verdict:
    return msgspec.structs.replace(verdict({}), figures=tree)


def shown(made: Verdict) -> list[str]:
    return [name for name in series("m", [made]).drift if name.startswith("psi(")]


def test_features_that_rules_name_come_first_and_then_those_that_moved_most() -> None:
    moved = {f"f{number}": number / 10 for number in range(9)}
    made = verdict(moved, "psi(f1)", "accuracy", "ks(f0)", "psi(f1)", "psi(prediction)")
    assert shown(made) == ["psi(f1)", "psi(f0)", "psi(f8)", "psi(f7)", "psi(f6)"]


def test_every_feature_of_a_rule_is_shown_however_many_there_are() -> None:
    moved = {f"f{number}": 0.0 for number in range(FEATURES_SHOWN + 4)}
    made = verdict(moved, *(f"psi({name})" for name in moved))
    assert len(shown(made)) == FEATURES_SHOWN + 4


# --- the estimate without labels ------------------------------------------------------------------

HITS = tuple(10 * place for place in range(100))
REFERENCE = LabelledScores(HITS, HITS[::-1])
ROWS = {"yes": [0] * 50 + [3] * 50, "no": [3] * 50 + [0] * 50}
HOLDS = ResidualCheck(900, 3, 0.0, 0.1, 1.0, invalid=False)
FAILS = ResidualCheck(900, 3, -0.08, -9.0, 5_000.0, invalid=True)


def tree(known: LabelFree, realised: float | None = None) -> dict[str, Any]:
    """The figures of a window as a verdict has them."""
    figures = {} if realised is None else {"accuracy": {"value": realised}}
    return {
        "judged_version": "7",
        "performance": {"7": {"figures": figures}},
        "estimated": estimated(known, ROWS, 300, "yes"),
    }


def test_the_estimate_is_a_column_of_its_own_beside_the_realised_figure() -> None:
    holds = LabelFree(REFERENCE, 0, HOLDS)
    told = series("m", [judged(tree(holds, 0.8)), judged(tree(holds))])
    assert told.performance["accuracy"] == {"7": [0.8, None]}
    assert told.estimated is not None
    assert list(told.estimated.figures) == ["accuracy", "f1", "precision", "recall", "auc"]
    accuracy = told.estimated.figures["accuracy"]
    for value, low, high, se in zip(
        accuracy.value, accuracy.low, accuracy.high, accuracy.se, strict=True
    ):
        assert value is not None
        assert se is not None
        assert (low, high) == pytest.approx((value - 1.96 * se, value + 1.96 * se), abs=1e-5)
    assert told.estimated.status == ["ok", "ok"]
    assert told.estimated.version == ["7", "7"]
    assert "Assumes P(label | score) has not changed" in told.estimated.assumes
    assert "residual z=+0.1" in told.estimated.assumes


def test_where_an_estimate_does_not_hold_the_column_says_why() -> None:
    none = LabelFree(reason="the contract names no score")
    told = series(
        "m",
        [
            judged({"judged_version": "7"}),
            judged(tree(LabelFree(REFERENCE, 0, HOLDS))),
            judged(tree(LabelFree(REFERENCE, 0, FAILS))),
            judged(tree(none)),
        ],
    )
    assert told.estimated is not None
    assert told.estimated.status == [None, "ok", "invalid", "not_available"]
    assert told.estimated.reason[:2] == ["", ""]
    assert "contradict it" in told.estimated.reason[2]
    assert told.estimated.reason[3] == "the contract names no score"
    values = told.estimated.figures["accuracy"].value
    assert [value is None for value in values] == [True, False, False, True]
    assert "residual z=-9.0" in told.estimated.assumes  # of the newest estimate there is


def test_where_nothing_is_estimated_there_is_no_column() -> None:
    assert series("m", [judged({"judged_version": "7"})]).estimated is None
    assert series("m", []).estimated is None
