"""Rules whose limit is the reference: what can be written, and what is said of the rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.contracts.parse import parse_contract
from trimtab.contracts.rules import COMPARED, FIGURES, parse_rule
from trimtab.errors import ContractError

RELATIVE = sorted(set(FIGURES) - COMPARED)


@pytest.mark.parametrize(
    ("text", "reference", "limit"),
    [
        ("accuracy < reference", 0.93, 0.93),
        ("accuracy < reference - 0.05 in 2 of 3", 0.93, 0.88),
        ("accuracy<reference-0.05", 0.93, 0.88),
        ("f1 < 0.95 * reference", 0.8, 0.76),
        ("f1 < 0.95*reference min_rows 50", 0.8, 0.76),
        ("warn log_loss > reference + 0.1", 0.4, 0.5),
        ("p95_latency_ms > 1.5 * reference", 40.0, 60.0),
        ("missing_rate(x) > reference + 0.02", 0.01, 0.03),
        ("rows < 0.5 * reference in 2 of 2", 3_000.0, 1_500.0),
        ("rows < 5", 3_000.0, 5.0),
    ],
)
def test_the_limit_follows_from_the_reference(text: str, reference: float, limit: float) -> None:
    rule = parse_rule(text)
    assert rule.limit(reference) == pytest.approx(limit)
    assert rule.relative is ("reference" in text)


@pytest.mark.parametrize("figure", sorted(COMPARED))
def test_a_figure_that_compares_already_says_so(figure: str) -> None:
    target = "(x)" if FIGURES[figure].target != "none" else ""
    with pytest.raises(ContractError, match=f"{figure} compares with the reference already"):
        parse_rule(f"{figure}{target} > reference")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy < reference * 0.9", "Write the factor first, as `0.95 \\* reference`"),
        ("accuracy < reference / 2", "Write the factor first"),
        ("accuracy < reference - -0.05", "has two signs"),
        ("accuracy < reference - 5", "5 more or less never decides anything"),
        ("cpu_percent > reference + 101", "never decides anything"),
        ("accuracy < 0 * reference", "is no limit"),
        ("accuracy < -1 * reference", "is no limit"),
        ("accuracy < 1e9 * reference", "is no limit"),
        ("accuracy < half * reference", "'half' is not a number"),
        ("accuracy < reference - much", "'much' is not a number"),
        ("accuracy < 2 * inf * reference", "is not a rule"),
        ("accuracy < 0.05 + reference", "is not a rule"),
        ("accuracy < reference -", "is not a rule"),
        ("accuracy < baseline - 0.05", "LIMIT is NUMBER, reference, reference \\+ NUMBER"),
    ],
)
def test_a_wrong_limit_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        parse_rule(text)


def test_a_contract_names_line_and_key_of_a_rule_that_makes_no_sense() -> None:
    text = """name = "m"
task = "binary"
[features.x]
kind = "number"
[labels]
arrive = "within 1 day"
[alarms]
rules = [
  "accuracy < reference - 0.05 in 2 of 3",
  "psi(x) > reference",
]
"""
    with pytest.raises(ContractError) as caught:
        parse_contract(text, "m.toml")
    assert str(caught.value).startswith("m.toml:10: alarms.rules[1]: psi compares with the ref")


@given(
    st.sampled_from(RELATIVE),
    st.sampled_from(["<", "<=", ">", ">="]),
    st.one_of(
        st.tuples(st.just(1.0), st.floats(-1, 1)),
        st.tuples(st.floats(0, 1_000, exclude_min=True), st.just(0.0)),
    ),
    st.integers(1, 100),
    st.integers(1, 100),
    st.sampled_from(["", " "]),
)
def test_every_relative_rule_can_be_written_and_read_back(
    figure: str, op: str, limit: tuple[float, float], m: int, n: int, space: str
) -> None:
    m, n = sorted((m, n))
    factor, number = limit
    target = "(x)" if FIGURES[figure].target != "none" else ""
    right = f"{factor!r}{space}*{space}reference"
    if factor == 1:
        sign = "-" if number < 0 else "+"
        right = f"reference{space}{sign}{space}{abs(number)!r}"
    rule = parse_rule(f"{figure}{target}{space}{op}{space}{right} in {m} of {n}")
    assert (rule.figure, rule.op, rule.factor, rule.threshold, rule.m, rule.n) == (
        *(figure, op, factor, number, m, n),
    )
    assert rule.relative
    assert parse_rule(rule.text) == rule
