import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.contracts.check import rule_problem
from trimtab.contracts.model import Contract, Feature, Labels
from trimtab.contracts.rules import FIGURES, Kind, Rule, parse_rule
from trimtab.errors import ContractError


def test_a_rule_with_everything_is_read() -> None:
    assert parse_rule(" psi( income )>0.2  in 2 of 3 min_rows 500 ") == Rule(
        figure="psi",
        feature="income",
        op=">",
        threshold=0.2,
        m=2,
        n=3,
        min_rows=500,
        text="psi( income )>0.2 in 2 of 3 min_rows 500",
        kind=Kind.INPUT,
    )


def test_a_short_rule_means_one_window_of_one() -> None:
    rule = parse_rule("accuracy<0.9")
    assert (rule.m, rule.n, rule.min_rows, rule.kind) == (1, 1, None, Kind.PERFORMANCE)


def test_a_rule_on_the_prediction_is_about_the_prediction() -> None:
    assert parse_rule("psi(prediction) > 0.2").kind is Kind.PREDICTION
    assert parse_rule("missing_rate(prediction) > 0.2").kind is Kind.DATA_QUALITY


def test_a_quoted_feature_may_hold_parentheses() -> None:
    assert parse_rule('ks("petal length (cm)") > 0.1').feature == "petal length (cm)"


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [
        ("rows < 5", 4, True),
        ("rows < 5", 5, False),
        ("rows <= 5", 5, True),
        ("rows > 5", 5, False),
        ("rows >= 5", 5, True),
    ],
)
def test_the_comparison_is_the_one_written(text: str, value: float, met: bool) -> None:
    rule = parse_rule(text)
    assert rule.met(value, rule.limit(0.0)) is met


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not a rule"),
        ("accuracy", "is not a rule"),
        ("accuracy = 0.9", "is not a rule"),
        ("accuracy < 0.9 in 3", "is not a rule"),
        ("accuracy < 90", "between 0 and 1"),
        ("accuracy < nan", "is not a number"),
        ("cpu_percent > 101", "between 0 and 100"),
        ("acuracy < 0.9", "Did you mean 'accuracy'"),
        ("psi > 0.2", "needs a feature"),
        ("rows(a) > 2", "takes no feature"),
        ("rows > 2 in 4 of 3", "cannot be"),
        ("rows > 2 in 0 of 3", "cannot be"),
        ("rows > 2 in 1 of 101", "cannot be"),
    ],
)
def test_a_wrong_rule_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ks(n) > 0.1", None),
        ("ks(c) > 0.1", "ks is for a number; 'c' is a category."),
        ("chi2_p(n) < 0.1", "chi2_p is for a category; 'n' is a number."),
        ("psi(m) > 0.1", "no declared feature"),
        ("mae > 3", "mae is for regression"),
        ("f1 < 0.3", None),
        ("chi2_p(prediction) < 0.01", None),
        ("ks(prediction) > 0.1", "is a category"),
    ],
)
def test_a_rule_has_to_fit_the_contract(text: str, expected: str | None) -> None:
    contract = Contract(
        name="a",
        task="binary",
        features={"n": Feature(kind="number"), "c": Feature(kind="category")},
        labels=Labels(arrive="within 1 day"),
    )
    problem = rule_problem(parse_rule(text), contract)
    assert problem == expected or (expected is not None and expected in (problem or ""))


@given(
    st.sampled_from(sorted(FIGURES)),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.floats(0, 1),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_every_figure_can_be_written_and_read_back(
    figure: str, op: str, threshold: float, m: int, n: int
) -> None:
    m, n = sorted((m, n))
    target = "(x)" if FIGURES[figure].target != "none" else ""
    rule = parse_rule(f"{figure}{target} {op} {threshold!r} in {m} of {n}")
    assert (rule.figure, rule.op, rule.threshold, rule.m, rule.n) == (figure, op, threshold, m, n)
    assert parse_rule(rule.text) == rule


@given(st.text(max_size=100))
def test_any_text_is_a_rule_or_a_contract_error(text: str) -> None:
    with contextlib.suppress(ContractError):
        assert parse_rule(text).figure in FIGURES
