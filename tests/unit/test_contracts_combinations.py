"""Impossible combinations: read from text, checked against the contract, matched row by row."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.contracts.combinations import (
    CONDITIONS_MAX,
    TEXT_MAX,
    Combination,
    Condition,
    Named,
    combination_problem,
    parse_combination,
)
from trimtab.contracts.model import Feature
from trimtab.errors import ContractError
from trimtab.stats.coded import Coded
from trimtab.stats.combinations import matches

FEATURES = {
    "age": Feature(kind="number"),
    "limit": Feature(kind="number"),
    "house number": Feature(kind="number"),
    "channel": Feature(kind="category", values=("web", "app", "branch")),
    "city": Feature(kind="category"),
}


def test_a_combination_is_read_with_numbers_categories_and_other_features():
    read = parse_combination("""age<18 and  channel = 'branch' and "house number" != limit""")
    assert read.conditions == (
        Condition("age", "<", 18.0),
        Condition("channel", "=", "branch"),
        Condition("house number", "!=", Named("limit")),
    )
    assert read.text == """age < 18 and channel = 'branch' and "house number" != limit"""
    assert combination_problem(read, FEATURES) is None


def test_quotes_in_categories_and_odd_names_can_be_written():
    read = parse_combination("""city = 'L''Aquila' and "and" >= -1.5e3 and "7" < 2""")
    assert [c.feature for c in read.conditions] == ["city", "and", "7"]
    assert read.conditions[0].value == "L'Aquila"
    assert read.conditions[1].value == -1500.0
    assert parse_combination(read.text) == read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no combination"),
        ("age", "no combination"),
        ("age < 18 and", "ends with `and`"),
        ("age < 18 or age > 9", "no combination"),
        ("age < < 18", "no combination"),
        ("age ~ 18", "no combination"),
        ("'age' < 18", "no combination"),
        ("and < 18", "double quotes"),
        ("18 < age", "double quotes"),
        ("age < and", "no combination"),
        ("age < inf", "not a number"),
        ("age < nan", "not a number"),
        ("channel = 'web", "cannot be read"),
        ("age < 18 age > 2", "no combination"),
        ("age < 1 and " * 60, "the limit is 500"),
        (" and ".join(["a < 1"] * (CONDITIONS_MAX + 1)), "the limit is 8"),
    ],
)
def test_what_is_no_combination_is_refused_with_what_to_write(text, says):
    with pytest.raises(ContractError, match=says):
        parse_combination(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agee < 18", "Did you mean 'age'"),
        ("age < limitt", "Did you mean 'limit'"),
        ("channel = branch", "A category stands in single quotes"),
        ("channel = 'brunch'", "Did you mean 'branch'"),
        ("channel < 'web'", "knows = and !="),
        ("channel = 3", "single quotes, as channel = '3'"),
        ("age = 'old'", "is a number"),
        ("age < channel", "not both numbers"),
        ("city = channel", "not both numbers"),
    ],
)
def test_what_cannot_work_with_the_features_is_told(text, says):
    assert says in combination_problem(parse_combination(text), FEATURES)


def test_any_value_of_a_category_without_declared_ones_will_do():
    assert combination_problem(parse_combination("city != 'Rome'"), FEATURES) is None


def test_rows_match_when_all_conditions_hold_and_what_is_missing_never_does():
    age = np.array([10.0, 10.0, 40.0, np.nan, 10.0, -np.inf])
    channel = Coded.of_keys(["branch", "web", "branch", "branch", None, "branch"])
    young = parse_combination("age < 18 and channel = 'branch'")
    found = matches(young, {"age": age}, {"channel": channel}, 6)
    assert found.tolist() == [True, False, False, False, False, True]
    other = parse_combination("channel != 'branch'")
    found = matches(other, {}, {"channel": channel}, 6)
    assert found.tolist() == [False, True, False, False, False, False]
    unequal = parse_combination("age != 10")
    found = matches(unequal, {"age": age}, {}, 6)
    assert found.tolist() == [False, False, True, False, False, True]


def test_a_value_of_the_wrong_kind_never_matches():
    column = Coded.of_keys([["a list"], "web"])
    found = matches(parse_combination("channel != 'app'"), {}, {"channel": column}, 2)
    assert found.tolist() == [False, True]


def test_a_feature_that_no_row_carries_never_matches():
    for text in ("age < 1", "age != 1", "limit > age", "channel != 'web'"):
        found = matches(parse_combination(text), {"limit": np.ones(3)}, {}, 3)
        assert found.tolist() == [False] * 3
    assert matches(parse_combination("age < 1"), {"age": np.zeros(0)}, {}, 0).shape == (0,)


OPS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}
VALUES = st.sampled_from([math.nan, -1.0, 0.0, -0.0, 1.0, 2.0, math.inf])
KEYS = st.sampled_from([None, "a", "b", "it's"])
NUMBERS = st.builds(
    Condition,
    st.sampled_from(["x", "y z"]),
    st.sampled_from(sorted(OPS)),
    st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.builds(Named, st.sampled_from(["x", "y z"]))),
)
TEXTS = st.builds(
    Condition, st.just("k"), st.sampled_from(["=", "!="]), st.sampled_from(["a", "b", "it's"])
)


def written(condition):
    match condition.value:
        case Named(feature):
            value = f'"{feature}"'
        case str(text):
            value = "'" + text.replace("'", "''") + "'"
        case number:
            value = repr(number)
    return f'"{condition.feature}" {condition.op} {value}'


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(NUMBERS, TEXTS), min_size=1, max_size=CONDITIONS_MAX),
    st.lists(st.tuples(VALUES, VALUES, KEYS), max_size=12),
)
def test_matching_columns_is_matching_each_row(conditions, rows):
    text = " and ".join(map(written, conditions))
    read = parse_combination(text)
    assert read == Combination(tuple(conditions), text)
    assert parse_combination(read.text) == read

    def holds(row, condition):
        value = row[condition.feature]
        wanted = condition.value
        other = row[wanted.feature] if isinstance(wanted, Named) else wanted
        if value is None or any(isinstance(v, float) and math.isnan(v) for v in (value, other)):
            return False
        return OPS[condition.op](value, other)

    expected = [all(holds({"x": x, "y z": y, "k": k}, c) for c in conditions) for x, y, k in rows]
    found = matches(
        read,
        {
            "x": np.array([x for x, _, _ in rows]),
            "y z": np.array([y for _, y, _ in rows]),
        },
        {"k": Coded.of_keys([k for _, _, k in rows])},
        len(rows),
    )
    assert found.tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=TEXT_MAX + 20))
def test_any_text_is_read_or_refused(text):
    try:
        read = parse_combination(text)
    except ContractError:
        return
    assert 1 <= len(read.conditions) <= CONDITIONS_MAX
