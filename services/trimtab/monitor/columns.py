"""Inference rows of one model as columns. Built once per batch of messages; no Python loop per feature.

Notation
    n      rows of the batch
    k      numeric features, in the order of `number_names`
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.monitor.views import ModelView
from trimtab.stats.coded import Coded, join
from trimtab.windows.ids import BATCH_MARK, WHOLE, Hashes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int32]
Objects = npt.NDArray[np.object_]
Mask = npt.NDArray[np.bool_]
Index = npt.NDArray[Any] | slice

FORMAT = 1
_EXACT_BELOW = 2.0**53
"""Above it a float64 may stand for several integers."""


class Numbers(Struct):
    """A numeric column, shape (n,); `errors` is None when no value was of another kind."""

    values: Floats
    errors: Mask | None = None


class Rows(Struct):
    """Inference rows of one model.

    `ids` names the row, or its message where `batch_row` is not WHOLE: see `id_of`. `answers` are the
    predictions: keys of a classifier, numbers of a regression. Where a number is NaN, `number_errors`
    tells a value of another kind from a missing one; it is None when there is none of those.
    """

    record: Ints
    """Index of the row's message in its batch."""
    offset: Ints
    record_ms: Ints
    times_ms: Ints
    ids: Objects
    batch_row: Codes
    hashes: Hashes
    version: Coded
    arm: Coded
    """"" outside a rollout."""
    revision: Ints
    """Traffic revision, 0 outside a rollout."""
    status: Coded
    latency_ms: Floats
    score: Floats
    answers: Coded | Numbers
    numbers: Floats
    """Shape (k, n), so that a feature is contiguous."""
    number_errors: Mask | None
    number_names: tuple[str, ...]
    categories: dict[str, Coded]
    attributes: dict[str, Coded]

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.record.size)

    @property
    def numbers_by_name(self) -> dict[str, Floats]:
        """The columns of numbers by feature, each of shape (n,)."""
        return dict(zip(self.number_names, self.numbers, strict=True))

    def id_of(self, row: int) -> str:
        """Return the id of a row."""
        within = int(self.batch_row[row])
        text: str = self.ids[row]
        return text if within == WHOLE else f"{text}{BATCH_MARK}{within}"

    def take(self, index: Index) -> Rows:
        """Return the rows at `index` (integers, a mask or a slice), in that order."""
        answers = self.answers
        columns: dict[str, Any] = {name: getattr(self, name)[index] for name in _PLAIN}
        columns |= {name: getattr(self, name).take(index) for name in _CODED}
        return Rows(
            **columns,
            answers=answers.take(index) if isinstance(answers, Coded) else _taken(answers, index),
            numbers=self.numbers[:, index],
            number_errors=None if self.number_errors is None else self.number_errors[:, index],
            number_names=self.number_names,
            categories={name: column.take(index) for name, column in self.categories.items()},
            attributes={name: column.take(index) for name, column in self.attributes.items()},
        )

    def feature_values(self) -> dict[str, list[object]]:
        """Return the features' values by name, None where there is none (or none of its kind)."""
        values: dict[str, list[object]] = {
            name: number_list(column)
            for name, column in zip(self.number_names, self.numbers, strict=True)
        }
        return values | {name: key_list(column) for name, column in self.categories.items()}

    def prediction_values(self) -> list[object]:
        """Return the predictions, None where there is none (or none of its kind)."""
        answers = self.answers
        return key_list(answers) if isinstance(answers, Coded) else number_list(answers.values)

    def under(self, view: ModelView) -> Rows:
        """Return the same rows as another revision of their contract reads them.

        What it does not declare is left out. What the rows were not read for is missing: absent features
        and attributes, and values of another kind, but for numbers that are now categories.
        """
        if (
            (view.numbers, view.categories) == (self.number_names, tuple(self.categories))
            and view.attributes == tuple(self.attributes)
            and view.regression == isinstance(self.answers, Numbers)
        ):
            return self
        numbers = np.full((len(view.numbers), self.size), np.nan)
        errors = np.zeros(numbers.shape, np.bool_)
        for row, name in enumerate(view.numbers):
            column = self._number(name)
            if column is not None:
                numbers[row] = column.values
                if column.errors is not None:
                    errors[row] = column.errors
        missing = Coded.constant(None, self.size)
        return msgspec.structs.replace(
            self,
            answers=_answers_under(view, self.answers),
            numbers=numbers,
            number_errors=errors if errors.any() else None,
            number_names=view.numbers,
            categories={name: self._category(name, missing) for name in view.categories},
            attributes={name: self.attributes.get(name, missing) for name in view.attributes},
        )

    def _number(self, name: str) -> Numbers | None:
        if name not in self.number_names:
            return None
        row = self.number_names.index(name)
        errors = self.number_errors
        return Numbers(self.numbers[row], None if errors is None else errors[row])

    def _category(self, name: str, missing: Coded) -> Coded:
        number = self._number(name)
        return self.categories.get(name, missing) if number is None else _as_categories(number)

    def to_bytes(self) -> bytes:
        """Encode every column."""
        answers = self.answers
        return msgspec.msgpack.encode(
            [
                FORMAT,
                {name: _pack(getattr(self, name)) for name in _PLAIN},
                {name: _pack_coded(getattr(self, name)) for name in _CODED},
                ["coded", *_pack_coded(answers)]
                if isinstance(answers, Coded)
                else ["numbers", _pack(answers.values), _pack_mask(answers.errors)],
                [list(self.number_names), _pack(self.numbers), _pack_mask(self.number_errors)],
                {name: _pack_coded(column) for name, column in self.categories.items()},
                {name: _pack_coded(column) for name, column in self.attributes.items()},
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Rows:
        """Decode `to_bytes`."""
        _, plain, coded, answers, numbers, categories, attributes = msgspec.msgpack.decode(data)
        columns: dict[str, Any] = {name: _unpack(packed) for name, packed in plain.items()}
        columns |= {name: _unpack_coded(packed) for name, packed in coded.items()}
        size = columns["record"].size
        names, values, errors = numbers
        return cls(
            **columns,
            answers=_unpack_coded(answers[1:])
            if answers[0] == "coded"
            else Numbers(_unpack(answers[1]), _unpack_mask(answers[2])),
            numbers=_unpack(values).reshape(len(names), size),
            number_errors=None if errors is None else _unpack(errors).reshape(len(names), size),
            number_names=tuple(names),
            categories={name: _unpack_coded(packed) for name, packed in categories.items()},
            attributes={name: _unpack_coded(packed) for name, packed in attributes.items()},
        )


_PLAIN = (
    *("record", "offset", "record_ms", "times_ms", "ids", "batch_row", "hashes", "revision"),
    *("latency_ms", "score"),
)
_CODED = ("version", "arm", "status")


# --- building ---------------------------------------------------------------------------------------


def object_array(values: Any) -> Objects:
    """Return a one-dimensional array of any objects (lists stay elements)."""
    items = list(values)
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array


def floats(values: Sequence[float | None]) -> Floats:
    """Return a column of decoded numbers, None as NaN, shape (n,); read-only."""
    try:
        # A third of the time of numpy's own conversion, which looks at every value twice.
        return np.frombuffer(struct.pack(f"{len(values)}d", *values))
    except struct.error:
        return np.array(values, dtype=np.float64).reshape(len(values))


def concatenate(parts: list[Rows]) -> Rows:
    """Return the rows of several blocks, all read by one contract, in the order of their messages."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _PLAIN
    }
    columns |= {name: join([getattr(part, name) for part in parts]) for name in _CODED}
    whole = Rows(
        **columns,
        answers=_joined_answers([part.answers for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts], axis=1),
        number_errors=_joined_masks([(p.number_errors, p.numbers.shape) for p in parts]),
        number_names=first.number_names,
        categories={name: join([p.categories[name] for p in parts]) for name in first.categories},
        attributes={name: join([p.attributes[name] for p in parts]) for name in first.attributes},
    )
    if bool((whole.record[1:] >= whole.record[:-1]).all()):
        return whole
    return whole.take(np.argsort(whole.record, kind="stable"))


def number_list(values: Floats) -> list[object]:
    """Return the numbers, None for NaN."""
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124


def key_list(column: Coded) -> list[object]:
    """Return the keys of the rows; a value that names no category is an empty list, which is none either."""
    return [[] if key is False else key for key in column]


def _answers_under(view: ModelView, answers: Coded | Numbers) -> Coded | Numbers:
    if view.regression:
        # Whether a category `1` was the number or the text is not known any more.
        return answers if isinstance(answers, Numbers) else Numbers(np.full(len(answers), np.nan))
    return answers if isinstance(answers, Coded) else _as_categories(answers)


def _as_categories(numbers: Numbers) -> Coded:
    """Return the categories that numbers name; missing where the value that was read is not known exactly."""
    exact = np.where(np.abs(numbers.values) < _EXACT_BELOW, numbers.values, np.nan)
    return Coded.of_keys(number_list(exact))


def _taken(numbers: Numbers, index: Index) -> Numbers:
    return Numbers(numbers.values[index], None if numbers.errors is None else numbers.errors[index])


def _joined_answers(parts: Sequence[Coded | Numbers]) -> Coded | Numbers:
    coded = [part for part in parts if isinstance(part, Coded)]
    if coded:  # the task of the contract that read them is one or the other
        return join(coded)
    numbers = [part for part in parts if isinstance(part, Numbers)]
    return Numbers(
        np.concatenate([part.values for part in numbers]),
        _joined_masks([(part.errors, part.values.shape) for part in numbers]),
    )


def _joined_masks(parts: Sequence[tuple[Mask | None, tuple[int, ...]]]) -> Mask | None:
    if all(mask is None for mask, _ in parts):
        return None
    return np.concatenate(
        [np.zeros(shape, np.bool_) if mask is None else mask for mask, shape in parts], axis=-1
    )


# --- bytes ------------------------------------------------------------------------------------------


def _pack(column: npt.NDArray[Any]) -> Any:
    if column.dtype == np.object_:
        return column.tolist()
    return [column.dtype.str, column.tobytes()]


def _unpack(packed: Any) -> Any:
    if len(packed) == 2 and isinstance(packed[1], bytes):
        return np.frombuffer(packed[1], dtype=packed[0]).copy()
    return object_array(packed)


def _pack_mask(mask: Mask | None) -> Any:
    return None if mask is None else _pack(mask)


def _unpack_mask(packed: Any) -> Mask | None:
    return None if packed is None else _unpack(packed)


def _pack_coded(column: Coded) -> list[Any]:
    return [_pack(column.codes), list(column.keys)]


def _unpack_coded(packed: Sequence[Any]) -> Coded:
    codes, keys = packed
    return Coded(_unpack(codes), tuple(keys))
