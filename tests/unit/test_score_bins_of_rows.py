"""Rows carry the hundredth of their score into panes and into the runs that labels are joined to."""

import math

import numpy as np
import pytest

from trimtab.contracts.model import Contract, Feature, Prediction
from trimtab.events.types import Inference
from trimtab.monitor.blocks import single_block
from trimtab.monitor.counting import Segments, count_rows, group_rows
from trimtab.monitor.joining import Joining
from trimtab.monitor.queued import prediction_runs
from trimtab.monitor.views import ModelView
from trimtab.store.baselines import build_cuts
from trimtab.store.label_runs import LabelRun, StoredRun
from trimtab.windows.ids import id_hashes

BINARY = Contract(
    name="m",
    task="binary",
    features={"x": Feature("number")},
    prediction=Prediction(score="p", positive="yes", classes=("no", "yes")),
)
SEVERAL = Contract(name="m", task="multiclass", features={"x": Feature("number")})
NUMBERS = Contract(name="m", task="regression", features={"x": Feature("number")})


def rows_of(contract, answers):
    """Rows of (prediction, scores), each with the id of its place."""
    events = [
        Inference(
            id=f"{place}",
            model="m",
            version="1",
            time=1_000,
            features={"x": 1.0},
            prediction=prediction,
            scores=scores,
        )
        for place, (prediction, scores) in enumerate(answers)
    ]
    view = ModelView(1, contract)
    return view, single_block(view, np.arange(len(events)), events, typed=False)


def run_of(contract, answers):
    view, rows = rows_of(contract, answers)
    grouping = group_rows(view, rows, Segments())
    ((_, run),) = prediction_runs(view, rows, np.zeros(rows.size, np.int64), grouping, 1)
    return run


def test_of_a_binary_model_it_is_the_positive_classs_score():
    answers = [("yes", {"p": 0.29}), ("no", {"p": 1.0}), ("no", {"p": 1.5}), ("no", None)]
    assert run_of(BINARY, answers).bins.tolist() == [29, 99, -1, -1]


def test_of_several_classes_it_is_the_likeliest_ones():
    answers = [("a", {"a": 0.5, "b": 0.3}), ("c", {"a": 0.1, "c": 0.85})]
    assert run_of(SEVERAL, answers).bins.tolist() == [50, 85]


@pytest.mark.parametrize(
    ("contract", "answers"),
    [(NUMBERS, [(1.5, {"p": 0.5})]), (BINARY, [("yes", None)]), (BINARY, [("yes", {"p": 7.0})])],
)
def test_without_a_probability_a_run_has_no_bins(contract, answers):
    assert run_of(contract, answers).bins is None


def test_a_pane_counts_them_by_what_was_answered():
    answers = [("yes", {"p": 0.7}), ("yes", {"p": 0.7}), ("no", {"p": 0.2}), ("maybe", {"p": 0.2})]
    view, rows = rows_of(BINARY, answers)
    cuts = build_cuts(BINARY, {"x": [1.0, 2.0]}, ["yes", "no"], [0.1, 0.9])
    grouping = group_rows(view, rows, Segments())
    (counted,) = count_rows(view, cuts, rows, np.zeros(rows.size, np.int64), grouping)
    scored = {
        name: {place: n for place, n in enumerate(counts) if n}
        for name, counts in counted.state.scored.items()
    }
    assert scored == {"yes": {70: 2}, "no": {20: 1}}


def test_a_label_that_comes_later_is_counted_at_the_score_of_its_prediction():
    index = Joining()
    run = run_of(BINARY, [("yes", {"p": 0.7}), ("no", {"p": math.nan})])
    assert index.merge([StoredRun(1, 1, run)]).deltas
    labels = LabelRun(
        *(id_hashes(["0", "1"]), np.array([5_000, 5_000]), np.zeros(2, np.int64)),
        *(np.zeros(2, np.bool_), np.array([1, 1], np.int32), ("no", "yes")),
    )
    (delta,) = index.merge([StoredRun(2, 1, labels)]).deltas.values()
    assert delta.state.scored == {("yes", "yes", 70): 1}
    assert delta.state.confusion == {("yes", "no"): 1, ("yes", "yes"): 1}
