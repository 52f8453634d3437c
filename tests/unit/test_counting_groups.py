"""Rows fall into groups by version, arm, traffic revision and segments, however many there are; the odd ones are told."""

import numpy as np
import pytest

from trimtab.contracts.model import Contract, Feature, Source, Windows
from trimtab.events.types import Inference
from trimtab.monitor.blocks import single_block
from trimtab.monitor.counting import Segments, group_rows, rule_masks
from trimtab.monitor.views import ModelView
from trimtab.store.baselines import build_cuts
from trimtab.windows import abnormal


@pytest.mark.parametrize("columns", [1, 15, 16, 18, 40])
def test_no_row_falls_into_the_group_of_another(columns):
    """16 values in each of 18 columns are 2**72 groups: more than a code has room for."""
    names = tuple(f"s{i}" for i in range(columns))
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(segments=names),
    )
    draw = np.random.default_rng(columns)
    events = []
    for i in range(400):
        values = {name: f"v{draw.integers(16)}" for name in names}
        for version in "01":  # pairs that differ in the version and the first segment only
            values = values | {"s0": f"v{draw.integers(16)}"}
            events.append(
                Inference(
                    id=f"{i}.{version}",
                    model="m",
                    version=version,
                    time=0,
                    features={"x": 1.0},
                    attributes=values,
                    traffic_revision=i % 3,
                )
            )
    view = ModelView(1, contract)
    rows = single_block(view, np.arange(len(events)), events, typed=False)
    grouping = group_rows(view, rows, Segments())
    wanted = [
        (event.version, event.traffic_revision, *(f"{k}={v}" for k, v in event.attributes.items()))
        for event in events
    ]
    found = []
    for code in grouping.codes.tolist():
        group = grouping.groups[code]
        found.append((group.version, group.traffic_revision, *group.segments))
    assert [sorted(map(str, one)) for one in found] == [sorted(map(str, one)) for one in wanted]
    assert len(grouping.groups) == len(set(wanted))


def test_rows_that_the_contract_calls_impossible_are_abnormal():
    contract = Contract(
        name="m",
        task="binary",
        source=Source(impossible=("age < 18 and channel = 'branch'", "refund > amount")),
        features={
            "age": Feature("number"),
            "amount": Feature("number"),
            "refund": Feature("number"),
            "channel": Feature("category"),
        },
    )
    given = [
        {"age": 17, "channel": "branch", "amount": 5.0, "refund": 1.0},
        {"age": 17, "channel": "web", "amount": 5.0, "refund": 5.0},
        {"age": 40, "channel": "branch", "amount": 5.0, "refund": 5.5},
        {"channel": "branch", "amount": 5.0},
    ]
    events = [
        Inference(id=str(i), model="m", version="1", time=0, features=features, prediction="a")
        for i, features in enumerate(given)
    ]
    view = ModelView(1, contract)
    masks = rule_masks(view, None, single_block(view, np.arange(4), events, typed=False))
    assert masks[abnormal.IMPOSSIBLE].tolist() == [True, False, True, False]
    assert masks[abnormal.REQUEST].tolist() == [True, False, True, False]


def test_rows_unlike_the_reference_are_counted_as_outliers_and_break_no_rule():
    contract = Contract(
        name="m",
        task="binary",
        features={
            "age": Feature("number"),
            "amount": Feature("number"),
            "channel": Feature("category"),
        },
    )
    draw = np.random.default_rng(1)
    reference = {
        "age": draw.normal(40, 10, 2_000).tolist(),
        "amount": draw.normal(size=2_000).tolist(),
        "channel": ["web", "app"] * 1_000,
    }
    cuts = build_cuts(contract, reference)
    given = [
        {"age": 41, "amount": 0.1, "channel": "web"},
        {"age": 95, "amount": 9.0, "channel": "web"},
        {"age": 95, "amount": 0.1, "channel": "web"},  # odd in one way only
        {"age": "old", "amount": -9.0, "channel": "fax", "more": 1},  # and rates of their own
        {"age": -30, "amount": -9.0, "channel": "fax"},
    ]
    events = [
        Inference(id=str(i), model="m", version="1", time=0, features=features, prediction="a")
        for i, features in enumerate(given)
    ]
    view = ModelView(1, contract)
    rows = single_block(view, np.arange(5), events, typed=False)
    masks = rule_masks(view, cuts, rows)
    assert masks[abnormal.OUTLIER].tolist() == [False, True, False, False, True]
    assert masks[abnormal.REQUEST].tolist() == [False, False, False, True, True]
    # However rows are batched, each is told by itself.
    for i, row in enumerate(masks[abnormal.OUTLIER].tolist()):
        one = rows.take(np.array([i]))
        assert (abnormal.OUTLIER in rule_masks(view, cuts, one)) == row
    assert abnormal.OUTLIER not in rule_masks(view, None, rows)
    few = build_cuts(contract, {name: values[:999] for name, values in reference.items()})
    assert abnormal.OUTLIER not in rule_masks(view, few, rows)


def test_a_feature_that_the_contract_drops_makes_no_outliers():
    features = {f"n{i}": Feature("number") for i in range(5)}
    draw = np.random.default_rng(2)
    reference = {name: draw.normal(size=2_000).tolist() for name in features}
    cuts = build_cuts(Contract(name="m", task="binary", features=features), reference)
    view = ModelView(2, Contract(name="m", task="binary", features={"n0": features["n0"]}))
    events = [
        Inference(id=str(i), model="m", version="1", time=0, features={"n0": 0.0}, prediction="a")
        for i in range(3)
    ]
    rows = single_block(view, np.arange(3), events, typed=False)
    assert abnormal.OUTLIER not in rule_masks(view, cuts, rows)
