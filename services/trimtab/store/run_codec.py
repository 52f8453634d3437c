"""Columns of a run as bytes: what repeats costs next to nothing, hashes and floats stay as they are.

A constant column is one value. Integers are steps from their least value, in the narrowest unsigned type
that holds them, compressed together. Hashes, floats and single bytes compress little or not at all, so it
is not tried.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

FORMAT = 2
_LEVEL = 1
_UNSIGNED = ((8, "<u1"), (16, "<u2"), (32, "<u4"), (64, "<u8"))
_WORTH_A_STEP = 1 << 16
"""Beyond this span it is worth looking for a common step: pane starts have one."""

Array = npt.NDArray[Any]


def pack(columns: Mapping[str, Array], extra: Any) -> bytes:
    """Encode columns of shape (n,) of int, int8, uint64, float64 or bool, with `extra` beside them."""
    heads: dict[str, list[Any]] = {}
    plain: list[bytes] = []
    narrow: list[bytes] = []
    for name, column in columns.items():
        dtype, size = column.dtype.newbyteorder("<").str, column.size
        if size and column.dtype.kind in "fib" and _is_constant(column):
            heads[name] = ["constant", dtype, size, column[:1].astype(dtype).tobytes()]
        elif column.dtype.kind in "uf" or column.dtype == np.int8:
            heads[name] = ["plain", dtype, size]
            plain.append(np.ascontiguousarray(column, dtype).tobytes())
        else:
            head, data = _narrow(column)
            heads[name] = ["narrow", dtype, size, *head]
            narrow.append(data)
    rest = zlib.compress(b"".join(narrow), level=_LEVEL)
    return msgspec.msgpack.encode([FORMAT, heads, extra, b"".join(plain), rest])


def unpack(body: bytes) -> tuple[dict[str, Array], Any]:
    """Decode `pack`. Plain columns are read-only."""
    _, heads, extra, plain, rest = msgspec.msgpack.decode(body)
    data = zlib.decompress(rest)
    columns: dict[str, Array] = {}
    plain_at = narrow_at = 0
    for name, (how, dtype, size, *head) in heads.items():
        if how == "constant":
            columns[name] = np.full(size, np.frombuffer(head[0], dtype)[0])
        elif how == "plain":
            columns[name] = np.frombuffer(plain, dtype, size, plain_at)
            plain_at += columns[name].nbytes
        else:
            least, step, stored = head
            values = np.frombuffer(data, stored, size, narrow_at)
            narrow_at += values.nbytes
            # Modulo 2**64, as it was taken apart: no span is too wide.
            wide = values.astype(np.uint64) * np.uint64(step) + np.uint64(least)
            columns[name] = wide.view(np.int64).astype(dtype)
    return columns, extra


def _is_constant(column: Array) -> bool:
    if column.dtype.kind == "f":  # by their bits, so that NaN equals itself
        column = column.view(np.int64)
    return bool((column == column[0]).all())


def _narrow(column: Array) -> tuple[tuple[int, int, str], bytes]:
    """Return (least value modulo 2**64, step, stored type) and the bytes."""
    wide = column.astype(np.int64)
    if wide.size == 0:
        return (0, 1, "<u1"), b""
    least = int(wide.min())
    steps = wide.view(np.uint64) - np.int64(least).view(np.uint64)
    span, step = int(wide.max()) - least, 1
    if span >= _WORTH_A_STEP:
        step = int(np.gcd.reduce(steps))
        steps, span = steps // np.uint64(step), span // step
    stored = next(dtype for bits, dtype in _UNSIGNED if span < 1 << bits)
    return (least % (1 << 64), step, stored), steps.astype(stored).tobytes()
