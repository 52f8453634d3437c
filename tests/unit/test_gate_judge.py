"""The gate: what blesses, what refuses, and what it cannot tell."""

from typing import Any

import numpy as np
import pytest

from trimtab.contracts.model import Contract, Retraining
from trimtab_agent.gate.gate import Footprint, GateOutcome, HeldOut, Terms, judge, terms_of

N = 600
RNG = np.random.default_rng(7)
LABELS = RNG.integers(0, 3, N)


def answers(wrong: float, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(N) < wrong, (LABELS + 1) % 3, LABELS)


def rows(champion: float = 0.4, challenger: float = 0.05, **more: Any) -> HeldOut:
    given: dict[str, Any] = {
        "labels": LABELS,
        "champion": answers(champion, 1),
        "challenger": answers(challenger, 2),
        "from_ms": 1000,
        "to_ms": 2000,
        **more,
    }
    return HeldOut(**given)


ACCURACY = Terms(metric="accuracy")


def test_a_clear_gain_is_blessed_with_its_numbers() -> None:
    found = judge(rows(), ACCURACY, [], seed=1)
    assert found.outcome is GateOutcome.BLESSED
    assert found.gain is not None
    assert found.gain.low > 0.25
    assert found.rows == N
    assert {check.name for check in found.checks} == {"gain"}


def test_no_better_is_refused() -> None:
    assert judge(rows(0.2, 0.2), ACCURACY, [], seed=1).outcome is GateOutcome.REFUSED


def test_the_lower_bound_must_exceed_the_least_gain() -> None:
    assert judge(rows(), Terms(metric="accuracy", min_gain=0.2), [], seed=1).outcome == "blessed"
    assert judge(rows(), Terms(metric="accuracy", min_gain=0.4), [], seed=1).outcome == "refused"


def test_better_but_below_the_floor_is_refused() -> None:
    found = judge(rows(0.6, 0.3), Terms(metric="accuracy", floor=0.9), [], seed=1)
    assert found.outcome is GateOutcome.REFUSED
    assert "floor" in found.reason


@pytest.mark.parametrize(
    ("spent", "outcome"), [((1500, 1600), "cannot_tell"), ((0, 1000), "blessed")]
)
def test_rows_gated_once_are_spent(spent: tuple[int, int], outcome: str) -> None:
    assert judge(rows(), ACCURACY, [spent], seed=1).outcome == outcome


def test_few_rows_cannot_tell() -> None:
    few = HeldOut(
        labels=LABELS[:99],
        champion=answers(0.4)[:99],
        challenger=answers(0)[:99],
        from_ms=0,
        to_ms=1,
    )
    assert judge(few, ACCURACY, [], seed=1).outcome is GateOutcome.CANNOT_TELL


@pytest.mark.parametrize(
    ("size", "outcome", "passed"), [(60, "refused", False), (49, "blessed", None)]
)
def test_a_large_segment_that_got_worse_blocks_and_a_small_one_never_does(
    size: int, outcome: str, passed: bool | None
) -> None:
    segment = np.arange(N) < size
    challenger = np.where(np.arange(N) < 60, (LABELS + 1) % 3, LABELS)
    given = HeldOut(
        labels=LABELS,
        champion=answers(0.4),
        challenger=challenger,
        from_ms=0,
        to_ms=1,
        segments={"c=a": segment},
    )
    found = judge(given, ACCURACY, [], seed=1)
    assert found.outcome == outcome
    assert [check.passed for check in found.checks if check.name == "segment:c=a"] == [passed]


@pytest.mark.parametrize(
    ("size", "latency", "outcome"),
    [
        (1000, 1.0, "blessed"),
        (20_001, 1.0, "refused"),
        (1000, 5.1, "refused"),
        (1000, 4.9, "blessed"),
    ],
)
def test_a_challenger_that_costs_too_much_is_refused(
    size: int, latency: float, outcome: str
) -> None:
    given = rows(champion_costs=Footprint(1000, 0.5), challenger_costs=Footprint(size, latency))
    assert judge(given, ACCURACY, [], seed=1).outcome == outcome


def test_a_regression_is_judged_by_its_error() -> None:
    y = np.random.default_rng(3).normal(size=400)
    given = HeldOut(labels=y, champion=y + 1.0, challenger=y + 0.2, from_ms=0, to_ms=1)
    terms = Terms(metric="neg_mae", floor=0.3)
    assert judge(given, terms, [], seed=1).outcome is GateOutcome.BLESSED
    assert judge(given, Terms(metric="neg_mae", floor=0.1), [], seed=1).outcome == "refused"


def test_the_contract_names_the_metric() -> None:
    of = lambda task, **rules: terms_of(  # noqa: E731
        Contract(name="m", task=task, retraining=Retraining(**rules))
    )
    assert of("binary").metric == "accuracy"
    assert of("regression").metric == "neg_mae"
    assert of("multiclass", metric="f1", min_gain=0.01, floor=0.8) == Terms(
        metric="macro_f1", min_gain=0.01, floor=0.8
    )
