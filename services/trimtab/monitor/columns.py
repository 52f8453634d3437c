"""Rows of one model as columns: made once per batch, cut by index, kept as bytes while they are held.

All arrays have one entry per row, in the order of the partition. NaN stands for a missing number;
`errors` marks those NaN that were present but no number.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]
Mask = npt.NDArray[np.bool_]


class Numbers(Struct):
    """A numeric column; `errors` is None when no value was of another kind."""

    values: Floats
    errors: Mask | None = None


class Rows(Struct):
    """Inference rows of one model."""

    record: Ints
    """Index of the row's message in its batch."""
    offset: Ints
    record_ms: Ints
    times_ms: Ints
    ids: Objects
    version: Objects
    arm: Objects
    """"" outside a rollout."""
    revision: Ints
    """Traffic revision, 0 outside a rollout."""
    status: Objects
    latency_ms: Floats
    prediction: Objects
    score: Floats
    numeric: dict[str, Numbers]
    categories: dict[str, Objects]
    attributes: dict[str, Objects]
    hashes: npt.NDArray[np.uint64]

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.record.size)

    def take(self, index: npt.NDArray[Any]) -> Rows:
        """Return the rows at `index` (integers or a mask), in that order."""
        return Rows(
            **{name: getattr(self, name)[index] for name in _PLAIN},
            numeric={
                name: Numbers(c.values[index], None if c.errors is None else c.errors[index])
                for name, c in self.numeric.items()
            },
            categories={name: column[index] for name, column in self.categories.items()},
            attributes={name: column[index] for name, column in self.attributes.items()},
        )

    def feature_values(self) -> dict[str, list[object]]:
        """Return the features' values by name, None where there is none (or none of its kind)."""
        values: dict[str, list[object]] = {n: _listed(c.values) for n, c in self.numeric.items()}
        return values | {name: column.tolist() for name, column in self.categories.items()}

    def score_values(self) -> list[object]:
        """Return the scores, None where there is none."""
        return _listed(self.score)

    def to_bytes(self) -> bytes:
        """Encode every column."""
        plain = {name: _pack(getattr(self, name)) for name in _PLAIN}
        return msgspec.msgpack.encode(
            [
                1,
                plain,
                {name: [_pack(c.values), _pack(_mask(c))] for name, c in self.numeric.items()},
                {name: _pack(column) for name, column in self.categories.items()},
                {name: _pack(column) for name, column in self.attributes.items()},
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Rows:
        """Decode `to_bytes`."""
        _, plain, numeric, categories, attributes = msgspec.msgpack.decode(data)
        return cls(
            **{name: _unpack(packed) for name, packed in plain.items()},
            numeric={
                n: Numbers(_unpack(values), _some(_unpack(errors)))
                for n, (values, errors) in numeric.items()
            },
            categories={name: _unpack(packed) for name, packed in categories.items()},
            attributes={name: _unpack(packed) for name, packed in attributes.items()},
        )


_PLAIN = (
    *("record", "offset", "record_ms", "times_ms", "ids", "version", "arm", "revision"),
    *("status", "latency_ms", "prediction", "score", "hashes"),
)


def object_array(values: Any) -> Objects:
    """Return a one-dimensional array of any objects (lists stay elements)."""
    items = list(values)
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array


def concatenate(parts: list[Rows]) -> Rows:
    """Return the rows of several blocks, in the order of their messages."""
    if len(parts) == 1:
        return parts[0]
    whole = Rows(
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _PLAIN},
        numeric={name: _joined([p.numeric[name] for p in parts]) for name in parts[0].numeric},
        categories={
            name: np.concatenate([p.categories[name] for p in parts])
            for name in parts[0].categories
        },
        attributes={
            name: np.concatenate([p.attributes[name] for p in parts])
            for name in parts[0].attributes
        },
    )
    order = np.argsort(whole.record, kind="stable")
    return whole if bool((order[1:] > order[:-1]).all()) else whole.take(order)


def _joined(parts: list[Numbers]) -> Numbers:
    values = np.concatenate([p.values for p in parts])
    if all(p.errors is None for p in parts):
        return Numbers(values)
    return Numbers(values, np.concatenate([_mask(p) for p in parts]))


def _listed(values: Floats) -> list[object]:
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124


def _some(mask: Mask) -> Mask | None:
    return mask if bool(mask.any()) else None


def _mask(column: Numbers) -> Mask:
    return np.zeros(column.values.size, np.bool_) if column.errors is None else column.errors


def _pack(array: npt.NDArray[Any]) -> Any:
    if array.dtype == np.object_:
        return array.tolist()
    return [array.dtype.str, array.tobytes()]


def _unpack(packed: Any) -> Any:
    if len(packed) == 2 and isinstance(packed[1], bytes):
        return np.frombuffer(packed[1], dtype=packed[0]).copy()
    return object_array(packed)
