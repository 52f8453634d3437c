"""Structured messages as columns: what lies beside them in a chunk, and what was met before, decides over none."""

import json
from types import SimpleNamespace

import pytest

from trimtab.contracts.model import Contract, Feature
from trimtab.events.cloudevents import BATCH_TYPE
from trimtab.monitor.decode import decode_records
from trimtab.monitor.views import ModelView


def record(offset, value):
    return SimpleNamespace(offset=offset, timestamp=1, headers=(), value=value, key=None)


def test_an_undeclared_feature_that_is_met_between_rows_breaks_nothing():
    """The decoder that reads the rows after it has one field more than the one before."""
    contract = {"task": "regression", "features": {"z": Feature("number")}}
    views = {name: ModelView(1, Contract(name=name, **contract)) for name in ("x", "r")}

    def single(model, at):
        row = {"id": at, "model": model, "version": "1", "time": 1, "features": {"z": 1.0}}
        return json.dumps(row).encode()

    columns = {"z": [1.0], "undeclared": [2]}
    data = {"id": "b", "model": "r", "version": "1", "time": 1, "rows": 1, "features": columns}
    batch = {"specversion": "1.0", "type": BATCH_TYPE, "id": "b", "source": "s", "data": data}
    values = [single("x", "0"), single("r", "1"), json.dumps(batch).encode(), single("r", "2")]
    records = [record(i, value) for i, value in enumerate(values)]
    read = decode_records(records, "inference", "in", views)
    assert {model: rows.size for model, rows in read.rows.items()} == {"x": 1, "r": 3}
    assert read.rejects == []


@pytest.mark.parametrize("columns", [{"a": [1, 2], "b": []}, {"a": [1, 2], "b": [1, 2], "c": []}])
def test_an_empty_column_is_an_unequal_one_whatever_was_met_before(columns):
    contract = Contract(
        name="m", task="regression", features={"a": Feature("number"), "b": Feature("category")}
    )
    view = ModelView(1, contract)
    data = {"id": "b", "model": "m", "version": "1", "time": 1, "rows": 2, "features": columns}
    batch = {"specversion": "1.0", "type": BATCH_TYPE, "id": "b", "source": "s", "data": data}
    for _ in range(2):
        one = record(0, json.dumps(batch).encode())
        read = decode_records([one], "inference", "in", {"m": view})
        assert [reject.reason for reject in read.rejects] == ["unequal_columns"]
        view.meet(["c"])
