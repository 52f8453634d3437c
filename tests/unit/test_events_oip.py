from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.events.oip import (
    InferRequest,
    OipError,
    decode_request,
    encode,
    rows_of,
    tensors_of,
)


def body(*inputs: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"inputs": inputs})


def tensor(name: str, shape: list[int], datatype: str, data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_one_tensor_holds_all_features_in_the_given_order() -> None:
    flat = decode_request(body(tensor("in", [2, 2], "FP32", [1, 2, 3, 4])))
    nested = decode_request(body(tensor("in", [2, 2], "FP32", [[1, 2], [3, 4]])))
    assert rows_of(flat.inputs, ["a", "b"]) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert rows_of(nested.inputs) == [{"in_0": 1, "in_1": 2}, {"in_0": 3, "in_1": 4}]


def test_named_tensors_are_columns() -> None:
    request = decode_request(
        body(tensor("a", [2], "INT64", [1, None]), tensor("b", [2, 1], "BYTES", [["x"], ["y"]]))
    )
    assert rows_of(request.inputs) == [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]


def test_an_image_of_several_axes_is_flattened_in_row_order() -> None:
    request = decode_request(
        body(tensor("image", [1, 2, 2, 1], "FP32", [[[[1], [2]], [[3], [4]]]]))
    )
    assert rows_of(request.inputs, ["p0", "p1", "p2", "p3"]) == [
        {"p0": 1, "p1": 2, "p2": 3, "p3": 4}
    ]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b"{}", "no inference request"),
        (b'{"inputs":[]}', "no inputs"),
        (body(tensor("a", [], "FP32", [])), "shape"),
        (body(tensor("a", [0], "FP32", [])), "shape"),
        (body(tensor("a", [2], "FP32", [1])), "holds 1 values"),
        (body(tensor("a", [1], "FP32", [[[1]]])), "nests deeper"),
        (body(tensor("a", [1], "INT32", [1.5])), "INT32"),
        (body(tensor("a", [1], "FP32", [True])), "FP32"),
        (body(tensor("a", [1], "BOOL", [1])), "BOOL"),
        (body(tensor("a", [1], "BYTES", [1])), "BYTES"),
        (body(tensor("a", [1], "FP8", [1])), "no inference request"),
        (body(tensor("a", [1], "FP32", [1]), tensor("b", [2], "FP32", [1, 2])), "rows"),
        (body(tensor("a", [10_001], "FP32", [1])), "the limit is 10000"),
        (body(tensor("a", [1, 5_000_000], "FP32", [1])), "More than"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(bad: bytes, expected: str) -> None:
    with pytest.raises(OipError, match=expected):
        decode_request(bad)


def test_a_wrong_number_of_columns_is_refused() -> None:
    request = decode_request(body(tensor("in", [1, 2], "FP32", [1, 2])))
    with pytest.raises(OipError, match="2 columns; the model has 3"):
        rows_of(request.inputs, ["a", "b", "c"])


cells = {
    "FP64": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    "BOOL": st.booleans() | st.none(),
    "BYTES": st.text() | st.none(),
}


@given(st.data())
def test_rows_survive_the_way_through_tensors(data: Any) -> None:
    kinds = data.draw(
        st.dictionaries(st.text(min_size=1), st.sampled_from(sorted(cells)), min_size=1, max_size=4)
    )
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries({name: cells[kind] for name, kind in kinds.items()}),
            min_size=1,
            max_size=5,
        )
    )
    sent = encode(InferRequest(tensors_of(rows)))
    assert rows_of(decode_request(sent).inputs) == rows
