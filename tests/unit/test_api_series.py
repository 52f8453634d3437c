"""The columns that the charts draw."""

from trimtab.api.series import FEATURES_SHOWN, series
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
