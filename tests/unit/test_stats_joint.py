"""Rank correlations of a window's sample: lawful states, ranks of its own, canonical bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from trimtab.contracts.model import Feature
from trimtab.stats.aggregate import StateError
from trimtab.stats.cuts import CategoryCuts, build_numeric_cuts, model_cuts
from trimtab.stats.joint import (
    MOST_COLUMNS,
    STEPS,
    JointColumn,
    JointState,
    Related,
    joint_columns,
)

DRAWN, TIMES = 12, 6
"""Values that are drawn, and how often each stands: 72 rows."""
NAMES = ("a", "b", "c=x", "d")
related = st.builds(
    lambda n, z: Related(1, n, n * z), st.integers(8, 2_000), st.integers(-26_467, 26_467)
)
states = st.builds(
    JointState,
    st.dictionaries(st.sampled_from([(p, q) for p in NAMES for q in NAMES if p < q]), related).map(
        lambda pairs: dict(sorted(pairs.items()))
    ),
)
values = st.lists(
    st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, float("inf")])),
    min_size=DRAWN,
    max_size=DRAWN,
)
COLUMNS = [JointColumn("a"), JointColumn("b"), JointColumn("c", "x")]


@given(states, states, states)
def test_states_of_windows_are_a_commutative_monoid(a, b, c):
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(JointState()) == a == JointState().merge(a)
    assert a.merge(b).to_bytes() == b.merge(a).to_bytes()


@given(states, states)
def test_bytes_give_the_state_back(a, b):
    for state in (a, a.merge(b)):
        assert JointState.from_bytes(state.to_bytes()) == state


@pytest.mark.parametrize(
    "data", [b"x", b"\x93\x01\x90\x90", b"\x96\x01\x92\xa1a\xa1b\x90\x91\x01\x91\x01\x90"]
)
def test_other_bytes_are_refused(data):
    with pytest.raises(StateError, match="no correlations"):
        JointState.from_bytes(data)


@settings(max_examples=50)
@given(
    values,
    values,
    st.lists(st.sampled_from(["x", "y", None]), min_size=DRAWN, max_size=DRAWN),
    st.randoms(),
)
def test_the_order_of_rows_changes_no_byte(a, b, c, random):
    rows = {"a": a * TIMES, "b": b * TIMES, "c": c * TIMES}
    order = list(range(DRAWN * TIMES))
    random.shuffle(order)
    shuffled = {name: [column[i] for i in order] for name, column in rows.items()}
    assert (
        JointState.observe(COLUMNS, rows).to_bytes()
        == JointState.observe(COLUMNS, shuffled).to_bytes()
    )


def test_without_missing_values_it_is_spearmans_with_ties():
    rng = np.random.default_rng(1)
    a = rng.normal(size=300)
    b = np.round(0.6 * a + rng.normal(size=300))
    pair = JointState.observe(COLUMNS, {"a": a.tolist(), "b": b.tolist()}).pairs["a", "b"]
    assert pair.z == pytest.approx(np.arctanh(spearmanr(a, b).statistic), abs=1 / STEPS)
    assert (pair.windows, pair.rows) == (1, 300)


def test_an_increasing_change_of_one_column_changes_no_byte():
    rng = np.random.default_rng(2)
    a = rng.normal(size=300)
    b = 0.9 * a + 0.4 * rng.normal(size=300)
    before = JointState.observe(COLUMNS, {"a": a.tolist(), "b": b.tolist()})
    after = JointState.observe(COLUMNS, {"a": (a + 3).tolist(), "b": np.exp(b).tolist()})
    assert before == after
    assert before.pairs["a", "b"].z > 1


def test_rows_count_for_the_pairs_of_which_they_hold_both_values():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=100).tolist(), rng.normal(size=100).tolist()
    a[:10] = [None] * 10
    b[5:30] = ["text"] * 25
    kind = ["x" if v and v > 0 else "y" for v in a]
    state = JointState.observe(COLUMNS, {"a": a, "b": b, "c": kind})
    assert {pair: one.rows for pair, one in state.pairs.items()} == {
        ("a", "b"): 70,
        ("a", "c=x"): 90,
        ("b", "c=x"): 75,
    }


def test_constant_columns_and_few_rows_give_no_pair():
    assert JointState.observe(COLUMNS, {"a": [1.0] * 50, "b": list(range(50))}) == JointState()
    assert JointState.observe(COLUMNS, {"a": list(range(49)), "b": list(range(49))}) == JointState()
    assert JointState.observe(COLUMNS, {}).to_bytes() == b""


def test_columns_come_in_the_contracts_order_without_personal_ones():
    normal = build_numeric_cuts(np.random.default_rng(0).normal(size=1_000))
    kinds = CategoryCuts(("x", "y", "z", "w", "v"))
    named = [("age", normal), ("kind", kinds), ("binary", CategoryCuts(("no", "yes")))]
    named += [(f"f{i}", normal) for i in range(30)]
    features = {
        "kind": Feature("category"),
        "age": Feature("number", personal=True),
        "binary": Feature("category"),
        "uncounted": Feature("number"),
        **{f"f{i}": Feature("number") for i in range(30)},
    }
    found = [column.name for column in joint_columns(features, model_cuts(named))]
    assert found[:5] == ["kind=x", "kind=y", "kind=z", "binary=no", "f0"]
    assert len(found) == MOST_COLUMNS
