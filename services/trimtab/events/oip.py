"""Open Inference Protocol v2 (REST) bodies: tensors to rows and back.

The batch axis is the first of every tensor's shape. A tensor of shape [n] or [n, 1] named like a
feature is that feature's column; one tensor of shape [n, k, …] holds all features, flattened in row
order, and takes the contract's order of features (or the order the caller gives).

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from trimtab.errors import TrimtabError
from trimtab.events.types import Scalar

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
VALUES_MAX = 4_000_000
"""Values of all tensors of one request."""
ROWS_MAX = 10_000


class OipError(TrimtabError):
    """The body is no valid inference request; the text is safe to send back."""


class Tensor(Struct, omit_defaults=True):
    """A named tensor. `data` is nested like `shape`, or flat in row-major order."""

    name: str
    shape: list[int]
    datatype: Datatype
    data: list[Any]
    parameters: dict[str, Any] = field(default_factory=dict)


class RequestedOutput(Struct, omit_defaults=True):
    """An output the caller asks for."""

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)


class InferRequest(Struct, omit_defaults=True):
    """Body of POST /v2/models/{model}/infer."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[RequestedOutput] = field(default_factory=list)


class InferResponse(Struct, omit_defaults=True, kw_only=True):
    """Body of a successful answer."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: list[Tensor]


class TensorMetadata(Struct):
    """Name, datatype and shape (-1 for a free axis) of a tensor in the model's metadata."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(Struct, omit_defaults=True):
    """Body of GET /v2/models/{model}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


_REQUEST = msgspec.json.Decoder(InferRequest)
_RESPONSE = msgspec.json.Decoder(InferResponse)
_ENCODER = msgspec.json.Encoder()
_NUMERIC = {"FP16", "FP32", "FP64"}


def decode_request(body: bytes) -> InferRequest:
    """Return the request of a body, its tensors checked. Raises OipError."""
    try:
        request = _REQUEST.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise OipError(f"The body is no inference request: {error}.") from error
    if not request.inputs:
        raise OipError("The request has no inputs. Send at least one tensor.")
    _check(request.inputs)
    return request


def decode_response(body: bytes) -> InferResponse:
    """Return the response of a body, its tensors checked. Raises OipError."""
    try:
        response = _RESPONSE.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise OipError(f"The body is no inference response: {error}.") from error
    _check(response.outputs)
    return response


def encode(body: InferRequest | InferResponse | ModelMetadata) -> bytes:
    """Return the JSON of a body."""
    return _ENCODER.encode(body)


def _check(tensors: Sequence[Tensor]) -> None:
    rows = tensors[0].shape[0] if tensors and tensors[0].shape else 0
    total = 0
    for tensor in tensors:
        if not tensor.shape or any(size < 1 for size in tensor.shape):
            raise OipError(
                f"Tensor {tensor.name!r} has the shape {tensor.shape}. Send sizes from 1."
            )
        if tensor.shape[0] != rows:
            raise OipError(
                f"Tensor {tensor.name!r} has {tensor.shape[0]} rows, another has {rows}. "
                "The first axis is the batch and the same for all."
            )
        if rows > ROWS_MAX:
            raise OipError(f"{rows} rows; the limit is {ROWS_MAX}. Send several requests.")
        size = math.prod(tensor.shape)
        total += size
        if total > VALUES_MAX:
            raise OipError(f"More than {VALUES_MAX} values. Send several requests.")
        tensor.data = list(_flat(tensor.data, len(tensor.shape)))
        if len(tensor.data) != size:
            raise OipError(
                f"Tensor {tensor.name!r} holds {len(tensor.data)} values; "
                f"its shape {tensor.shape} needs {size}."
            )
        _check_values(tensor)


def _flat(data: list[Any], depth: int) -> Iterator[Any]:
    """Yield the values of nested or flat data, at most `depth` lists deep."""
    for value in data:
        if isinstance(value, list):
            if depth <= 1:
                raise OipError("The data nests deeper than its shape. Match the shape.")
            yield from _flat(value, depth - 1)
        else:
            yield value


_WANTED: dict[str, tuple[type, ...]] = {"BOOL": (bool,), "BYTES": (str,)}


def _check_values(tensor: Tensor) -> None:
    wanted: tuple[type, ...] = _WANTED.get(
        tensor.datatype, (float, int) if tensor.datatype in _NUMERIC else (int,)
    )
    for value in tensor.data:
        # bool is an int to Python, not to the protocol; null is a missing value.
        fits = isinstance(value, wanted) and (wanted == (bool,) or not isinstance(value, bool))
        if value is not None and not fits:
            raise OipError(
                f"Tensor {tensor.name!r} is {tensor.datatype} and holds {str(value)[:60]!r}."
            )


def rows_of(tensors: Sequence[Tensor], names: Sequence[str] = ()) -> list[dict[str, Scalar]]:
    """Return the tensors' rows as features by name.

    `names`: the features' order for a tensor of more than one column; without them such a tensor
    gives NAME_0, NAME_1, …. The tensors must come from `decode_request` or `decode_response`.
    Raises OipError when the columns do not match `names`.
    """
    if not tensors:
        return []
    rows: list[dict[str, Scalar]] = [{} for _ in range(tensors[0].shape[0])]
    for tensor in tensors:
        width = math.prod(tensor.shape[1:])
        columns = _column_names(tensor, width, names, alone=len(tensors) == 1)
        for index, row in enumerate(rows):
            values = tensor.data[index * width : (index + 1) * width]
            row.update(zip(columns, values, strict=True))
    return rows


def _column_names(
    tensor: Tensor, width: int, names: Sequence[str], *, alone: bool
) -> Sequence[str]:
    if width == 1 and (not alone or not names or tensor.name in names):
        return [tensor.name]
    if alone and names:
        if len(names) != width:
            raise OipError(
                f"Tensor {tensor.name!r} has {width} columns; the model has {len(names)} features."
            )
        return names
    return [f"{tensor.name}_{column}" for column in range(width)]


def tensors_of(rows: Sequence[dict[str, Scalar]]) -> list[Tensor]:
    """Return one tensor of shape [n, 1] per feature; missing values are null.

    Numbers are FP64, truth values BOOL, texts BYTES; a column of mixed kinds is BYTES.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    tensors = []
    for name in names:
        column = [row.get(name) for row in rows]
        present = [value for value in column if value is not None]
        if present and all(isinstance(value, bool) for value in present):
            datatype: Datatype = "BOOL"
        elif all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in present
        ):
            datatype = "FP64"
            column = [None if value is None else float(value) for value in column]
        else:
            datatype = "BYTES"
            column = [None if value is None else str(value) for value in column]
        tensors.append(Tensor(name, [len(rows), 1], datatype, column))
    return tensors
