"""The assessment of a rollout: advance, hold, promote, roll back or wait, from counts alone."""

from typing import Any

import pytest
from msgspec.structs import replace

from trimtab.contracts.model import Canary, Contract, Labels
from trimtab.records import Rollout, RolloutState
from trimtab_agent.rollout.assess import ArmTally, Move, Tally, Terms, assess, terms_of

NOW = 1_700_000_000_000
TERMS = Terms(
    steps=(0.05, 0.25, 0.5),
    step_ms=10_000,
    longest_ms=3_600_000,
    watch_ms=60_000,
    holdback=0.05,
    margin=0.25,
    alpha=0.05,
    maturity_ms=0,
    max_error_rate=0.02,
)


def rollout(**changes: Any) -> Rollout:
    base = Rollout(
        id="o-1",
        model="m",
        run_id="r-1",
        state=RolloutState.STEP,
        reason="",
        created_ms=NOW - 60_000,
        updated_ms=NOW - 20_000,
        champion_version="1",
        challenger_version="2",
        step=2,
        step_since_ms=NOW - 20_000,
        traffic_revision=4,
        promoted_ms=NOW - 90_000,
    )
    return replace(base, **changes)


def tally(
    share: float,
    rows: int,
    wrong: tuple[float, float] = (0.3, 0.05),
    failures: tuple[float, float] = (0.0, 0.0),
    coverage: tuple[float, float] = (1.0, 1.0),
    revision: int = 4,
    served: float | None = None,
) -> Tally:
    """Expected counts of `rows` requests; pairs are (control, treated)."""
    treated = round(rows * (share if served is None else served))

    def arm(n: int, i: int) -> ArmTally:
        labelled = round(n * coverage[i])
        return ArmTally(n, round(n * failures[i]), labelled, round(labelled * wrong[i]))

    return Tally(revision, share, arm(rows - treated, 0), arm(treated, 1))


def look(given: Rollout, *tallies: Tally, **more: Any) -> Move:
    options: dict[str, Any] = {"observed": True, **more}
    terms = options.pop("terms", TERMS)
    now = options.pop("now", NOW)
    return assess(given, tallies, terms, now, **options).move


GOOD = tally(0.5, 2000)

TABLE: list[tuple[str, Move, dict[str, Any]]] = [
    ("good at the last step", Move.PROMOTE, {"tallies": [GOOD]}),
    ("good at an earlier step", Move.ADVANCE, {"tallies": [GOOD], "step": 1}),
    ("least time not over", Move.WAIT, {"tallies": [GOOD], "step_since_ms": NOW - 9_999}),
    ("not seen in traffic", Move.WAIT, {"tallies": [GOOD], "observed": False}),
    ("not known whether seen", Move.WAIT, {"tallies": [GOOD], "observed": None}),
    ("silence never advances", Move.WAIT, {"tallies": [tally(0.5, 0)], "step": 1}),
    ("worse answers", Move.ROLL_BACK, {"tallies": [tally(0.5, 2000, (0.1, 0.3))]}),
    (
        "worse answers before the least time",
        Move.ROLL_BACK,
        {"tallies": [tally(0.5, 2000, (0.1, 0.3))], "step_since_ms": NOW},
    ),
    (
        "failures above the ceiling",
        Move.ROLL_BACK,
        {"tallies": [tally(0.5, 2000, failures=(0.1, 0.1))]},
    ),
    ("more failures", Move.ROLL_BACK, {"tallies": [tally(0.5, 4000, failures=(0.0, 0.015))]}),
    ("undecided at the last step", Move.WAIT, {"tallies": [tally(0.5, 60, (0.1, 0.1))]}),
    (
        "undecided for too long",
        Move.ROLL_BACK,
        {"tallies": [tally(0.5, 60, (0.1, 0.1))], "created_ms": NOW - 3_600_000},
    ),
    ("unequal shares", Move.HOLD, {"tallies": [tally(0.5, 4000, served=0.3)]}),
    ("unequal labels", Move.HOLD, {"tallies": [tally(0.5, 6000, coverage=(1.0, 0.6))]}),
    ("broken data", Move.HOLD, {"tallies": [GOOD], "blocked": "the data is broken"}),
    (
        "held while the data is broken",
        Move.WAIT,
        {"tallies": [GOOD], "blocked": "x", "state": RolloutState.HELD},
    ),
    ("held and well again", Move.RESUME, {"tallies": [GOOD], "state": RolloutState.HELD}),
    (
        "held for too long",
        Move.ROLL_BACK,
        {
            "tallies": [GOOD],
            "blocked": "x",
            "state": RolloutState.HELD,
            "created_ms": NOW - 3_600_000,
        },
    ),
    (
        "watching",
        Move.WAIT,
        {"tallies": [tally(0.95, 400)], "state": RolloutState.WATCHING},
    ),
    (
        "watched",
        Move.FINISH,
        {
            "tallies": [tally(0.95, 400)],
            "state": RolloutState.WATCHING,
            "step_since_ms": NOW - 60_000,
        },
    ),
    (
        "harm while watching",
        Move.ROLL_BACK,
        {"tallies": [tally(0.95, 8000, (0.1, 0.3))], "state": RolloutState.WATCHING},
    ),
]


@pytest.mark.parametrize(("move", "given"), [r[1:] for r in TABLE], ids=[r[0] for r in TABLE])
def test_the_assessment_is_as_the_table_says(move: Move, given: dict[str, Any]) -> None:
    names = ("step", "step_since_ms", "created_ms", "state")
    record = rollout(**{name: given[name] for name in names if name in given})
    options = {name: given[name] for name in ("observed", "blocked") if name in given}
    assert look(record, *given["tallies"], **options) is move


def test_every_move_has_a_row_in_the_table() -> None:
    assert {row[1] for row in TABLE} == set(Move)


def test_each_revision_counts_with_its_own_share() -> None:
    early = tally(0.05, 4000, (0.2, 0.3), revision=2)
    late = tally(0.5, 400, (0.2, 0.3), revision=4)
    assert look(rollout(), early, late) is not Move.PROMOTE
    found = assess(rollout(), [early, late], TERMS, NOW, observed=True)
    assert [each["share"] for each in found.numbers["counts"]] == [0.05, 0.5]
    assert found.numbers["guardrails"]["wrong_answers"]["log_e_harm"] > 0


def test_a_model_without_labels_is_promoted_on_its_failures_alone() -> None:
    terms = replace(TERMS, judges_answers="no_labels")
    clean = tally(0.5, 2000, coverage=(0.0, 0.0))
    assert look(rollout(), clean, terms=terms) is Move.PROMOTE
    few = tally(0.5, 60, coverage=(0.0, 0.0))
    assert look(rollout(), few, terms=terms) is Move.WAIT


def test_promised_labels_that_do_not_come_never_promote() -> None:
    assert look(rollout(), tally(0.5, 5000, coverage=(0.0, 0.0))) is Move.WAIT


def test_a_regression_says_what_is_missing() -> None:
    terms = replace(TERMS, judges_answers="regression")
    found = assess(rollout(), [tally(0.5, 5000)], terms, NOW, observed=True)
    assert found.move is Move.WAIT
    assert "regression" in found.reason


def test_an_assessment_says_why_and_when_to_look_again() -> None:
    found = assess(rollout(step_since_ms=NOW), [GOOD], TERMS, NOW, observed=True)
    assert found.next_wake_ms == NOW + 10_000
    assert found.reason


def test_the_contract_gives_the_terms() -> None:
    contract = Contract(
        name="m",
        task="binary",
        labels=Labels(arrive="within 1 h"),
        canary=Canary(step="12s", margin=1.1, steps=(0.1,)),
    )
    found = terms_of(contract)
    assert (found.step_ms, found.steps, found.judges_answers) == (12_000, (0.1,), None)
    assert found.margin == pytest.approx(0.1)
    assert terms_of(replace(contract, labels=Labels())).judges_answers == "no_labels"
    assert terms_of(replace(contract, task="regression")).judges_answers == "regression"
