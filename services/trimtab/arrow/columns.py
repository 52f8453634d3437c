"""Arrow arrays as checked columns: what a column may hold, and what it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.events.cloudevents import MESSAGE_BYTES_MAX, DecodeError, Reason
from trimtab.events.types import ARM_LENGTH_MAX, ID_LENGTH_MAX, Status
from trimtab.stats.coded import Coded, join

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

TEXT_CHARS_MAX = 4 * MESSAGE_BYTES_MAX
"""Characters of all rows when each has its own copy of what a dictionary holds once."""


class Rule(Struct, frozen=True):
    """What a column, or each column of a group, may hold."""

    holds: Literal["text", "number", "whole", "time", "scalar"]
    """`scalar`: text, numbers or booleans."""
    null: bool = True
    """Whether a row may have no value."""
    group: bool = False
    """A struct column, or flat columns `NAME.KEY`."""
    chars: tuple[int, int] | None = None
    """Least and most characters of a text."""
    values: tuple[str, ...] = ()
    """The only texts, where there are any."""


_ARM = Rule("text", chars=(0, ARM_LENGTH_MAX))
COLUMNS: dict[str, Rule] = {
    "time": Rule("time", null=False),
    "ids": Rule("text", null=False, chars=(1, ID_LENGTH_MAX)),
    "features": Rule("scalar", group=True),
    "prediction": Rule("scalar"),
    "scores": Rule("number", group=True),
    "latency_ms": Rule("number"),
    "status": Rule("text", null=False, values=get_args(Status)),
    "error": Rule("text"),
    "attributes": Rule("text", null=False, group=True),
    "arm": _ARM,
    "served_by": _ARM,
    "traffic_revision": Rule("whole"),
    "attributions": Rule("number", group=True),
}


class Column(Struct, frozen=True):
    """Values of n rows. No value is NaN in floats, None in a text's keys, True in `missing` else."""

    values: Floats | Ints | Mask | Coded
    missing: Mask | None = None
    """Shape (n,), for whole numbers and booleans; None when every row has a value."""

    def tolist(self) -> list[Any]:
        """Return the values as the JSON batch has them, None for no value."""
        values = self.values
        if isinstance(values, Coded):
            return list(values)
        plain: list[Any] = values.tolist()
        if values.dtype.kind == "f":
            return [None if value != value else value for value in plain]  # noqa: PLR0124
        if self.missing is None:
            return plain
        return [None if gone else v for v, gone in zip(plain, self.missing.tolist(), strict=True)]

    @property
    def coded(self) -> Coded:
        """The texts of a text column, as they came."""
        return cast("Coded", self.values)

    @property
    def floats(self) -> Floats:
        """The numbers of a column of numbers as float64, shape (n,)."""
        values = cast("Floats | Ints", self.values)
        if values.dtype.kind == "f":
            return cast("Floats", values)
        numbers = values.astype(np.float64)
        if self.missing is not None:
            numbers[self.missing] = np.nan
        return numbers


# --- reading ---------------------------------------------------------------------------------------


def read_column(pa: Any, array: Any, path: str) -> Column:
    """Return a column of Arrow's scalars as numpy's; floats and integers without nulls are not copied."""
    types, kind = pa.types, array.type
    if types.is_floating(kind) or types.is_decimal(kind):
        if types.is_decimal(kind):
            array = array.cast(pa.float64())
        numbers: Floats = array.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
        # One sum tells almost always; NaN, infinity or overflow need the look at each.
        if not math.isfinite(numbers.sum()) and np.isinf(numbers).any():
            raise DecodeError(Reason.NOT_FINITE, f"{path} holds an infinity; send null.")
        return Column(numbers)
    if types.is_dictionary(kind):
        if not _is_text(types, kind.value_type):
            raise DecodeError(Reason.WRONG_TYPE, f"{path} is {kind}; dictionaries hold text.")
        return Column(_coded(pa, array, distinct=False))
    if _is_text(types, kind):
        return Column(_coded(pa, array.dictionary_encode(), distinct=True))
    if types.is_null(kind):
        return Column(Coded.constant(None, len(array)))
    boolean = types.is_boolean(kind)
    if not boolean and not types.is_integer(kind):
        raise DecodeError(
            Reason.WRONG_TYPE,
            f"{path} is {kind}; send number, text (string, large_string, dictionary) or bool.",
        )
    missing = None
    if array.null_count:
        missing = array.is_null().to_numpy(zero_copy_only=False)
        array = array.fill_null(False if boolean else 0)
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "u" and (values > np.uint64(2**63 - 1)).any():
        raise DecodeError(Reason.BAD_VALUE, f"{path} holds an integer above 2**63 - 1.")
    return Column(values if boolean else values.astype(np.int64, copy=False), missing)


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _coded(pa: Any, array: Any, *, distinct: bool) -> Coded:
    """Return a dictionary array's texts, None for null; `distinct` when the dictionary's are."""
    keys: list[str | None] = array.dictionary.to_pylist()
    indices = array.indices
    if indices.null_count:
        # int64 first: the place after the last key need not fit the producer's type.
        indices = indices.cast(pa.int64()).fill_null(len(keys))
        keys.append(None)
    codes = indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    if distinct or len(set(keys)) == len(keys):
        return Coded(codes, tuple(keys))
    unique = Coded.of_text(keys)
    return Coded(unique.codes[codes], unique.keys)


def joined(parts: Sequence[Column]) -> Column:
    """Return the rows of the record batches' columns, which are of one type."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0].values, Coded):
        return Column(join([part.coded for part in parts]))
    arrays = [cast("Floats", part.values) for part in parts]
    missing = None
    if any(part.missing is not None for part in parts):
        missing = np.concatenate(
            [
                np.zeros(values.size, np.bool_) if part.missing is None else part.missing
                for part, values in zip(parts, arrays, strict=True)
            ]
        )
    return Column(np.concatenate(arrays), missing)


def checked(rule: Rule, path: str, column: Column) -> Column:
    """Return the column as its rule wants it. Raises DecodeError."""
    values = column.values
    if isinstance(values, Coded) and values.keys == (None,) and rule.holds in ("number", "whole"):
        values = np.full(len(values), np.nan)  # Arrow's null type, or text without any
        column = Column(values)
    if isinstance(values, Coded):
        if rule.holds not in ("text", "scalar"):
            raise DecodeError(Reason.WRONG_TYPE, f"{path} is text, not {rule.holds}.")
        # What a dictionary holds and no row names is no fault; to find the present ones costs more.
        if not _fits(rule, values.keys) and (
            problem := _text_problem(rule, path, values.present())
        ):
            raise problem
        return column
    if rule.holds == "text":
        raise DecodeError(Reason.WRONG_TYPE, f"{path} is {values.dtype}, not text.")
    if rule.holds in ("number", "whole") and values.dtype.kind == "b":
        raise DecodeError(Reason.WRONG_TYPE, f"{path} is bool, not {rule.holds}.")
    if rule.holds == "whole" and values.dtype.kind == "f":
        return _whole(path, cast("Floats", values))
    return column


def _whole(path: str, values: Floats) -> Column:
    """Return floats as integers: data frames turn integers with nulls into floats."""
    missing = np.isnan(values)
    numbers = np.where(missing, 0.0, values)
    if (numbers != np.rint(numbers)).any() or (np.abs(numbers) > 2**53).any():
        raise DecodeError(Reason.WRONG_TYPE, f"{path} holds a number that is not whole.")
    return Column(numbers.astype(np.int64), missing if missing.any() else None)


def _fits(rule: Rule, keys: Sequence[Any]) -> bool:
    """Tell whether no key is a problem, all at once: ids are as many as rows."""
    texts = [key for key in keys if key is not None]
    if len(texts) < len(keys) and not rule.null:
        return False
    if "\0" in "".join(texts) or (rule.values and not set(texts) <= set(rule.values)):
        return False
    if rule.chars is None or not texts:
        return True
    lengths = list(map(len, texts))
    return rule.chars[0] <= min(lengths) and max(lengths) <= rule.chars[1]


def _text_problem(rule: Rule, path: str, keys: Sequence[Any]) -> DecodeError | None:
    least, most = rule.chars or (0, math.inf)
    for key in keys:
        if key is None:
            if not rule.null:
                return DecodeError(Reason.WRONG_TYPE, f"{path} has a null.")
        elif not least <= len(key) <= most:
            text = f"{path} has a text of {len(key)} characters, not {least} to {most}."
            return DecodeError(Reason.BAD_VALUE, text)
        elif rule.values and key not in rule.values:
            text = f"{path} is {key[:80]!r}; it may be {', '.join(rule.values)}."
            return DecodeError(Reason.BAD_VALUE, text)
        elif "\0" in key:
            return DecodeError(Reason.NUL_CHARACTER, f"{path} holds U+0000; remove it.")
    return None


def check_text(columns: Sequence[Column]) -> None:
    """Refuse more text than TEXT_CHARS_MAX once each row has its own."""
    texts = [column.values for column in columns if isinstance(column.values, Coded)]
    lengths = [[len(key or "") for key in text.keys] for text in texts]
    most = sum(len(text) * max(each) for text, each in zip(texts, lengths, strict=True) if each)
    if most <= TEXT_CHARS_MAX:
        return
    chars = sum(
        int(text.counts() @ np.array(each)) for text, each in zip(texts, lengths, strict=True)
    )
    if chars > TEXT_CHARS_MAX:
        raise DecodeError(
            Reason.BAD_VALUE,
            f"The texts of all rows have {chars} characters; the limit is {TEXT_CHARS_MAX}.",
        )
