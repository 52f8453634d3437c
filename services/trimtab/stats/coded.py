"""Columns of few distinct values as codes: what is repeated is looked at once, not once a row.

Notation
    n      rows
    codes  int32 (n,), the place of each row's key in `keys`
    keys   what `category_key` gives: text, None (missing) or False (a value that names no category)
"""

from collections.abc import Collection, Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from trimtab.stats.cuts import (
    MAX_CATEGORY_CHARS,
    CategoryCuts,
    Counts,
    Key,
    category_key,
    special_index,
)

Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class Coded(msgspec.Struct, frozen=True):
    """A column of keys. Keys are distinct; some may occur in no row (`present` names those that do)."""

    codes: Codes
    keys: tuple[Key, ...]

    @classmethod
    def constant(cls, key: Key, n: int) -> "Coded":
        """Return a column of n equal keys."""
        return cls(np.zeros(n, np.int32), (key,))

    @classmethod
    def of_text(cls, values: Sequence[str | None]) -> "Coded":
        """Return the column of texts, shape (n,); None is missing."""
        n = len(values)
        if n and values.count(values[0]) == n:  # a version, an arm, a status: the common case
            return cls.constant(values[0], n)
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        return cls(np.fromiter(map(places.__getitem__, values), np.int32, n), tuple(places))

    @classmethod
    def of_keys(cls, values: Sequence[object]) -> "Coded":
        """Return the column of the category keys of decoded JSON values, shape (n,)."""
        kinds = set(map(type, values)) - {type(None)}
        if kinds <= {str}:
            raw = cls.of_text(values)  # type: ignore[arg-type]
            if all(key is None or len(key) <= MAX_CATEGORY_CHARS for key in raw.keys):  # type: ignore[arg-type]
                return raw
        elif len(kinds) == 1 and kinds <= {int, bool, float}:
            # One kind, so equal values are one category: 1, 1.0 and True would meet otherwise.
            raw = cls.of_text(values)  # type: ignore[arg-type]
        else:
            return cls.of_text([category_key(value) for value in values])  # type: ignore[misc]
        keys = cls.of_text([category_key(key) for key in raw.keys])  # type: ignore[misc]
        return cls(keys.codes[raw.codes], keys.keys)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.codes.size)

    def __iter__(self) -> Iterator[Key]:
        """Yield the key of each row."""
        return map(self.keys.__getitem__, self.codes.tolist())

    def take(self, index: npt.NDArray[np.generic] | slice) -> "Coded":
        """Return the rows at `index` (integers, a mask or a slice), in that order."""
        return Coded(self.codes[index], self.keys)

    def mask(self, keys: Collection[Key]) -> Mask:
        """Return which rows hold one of `keys`, shape (n,)."""
        # `in` alone would take 0 for False; keys are text, None or False.
        hit = np.fromiter((key in keys for key in self.keys), np.bool_, len(self.keys))
        return hit[self.codes] if len(self.keys) else np.zeros(0, np.bool_)

    def counts(self) -> npt.NDArray[np.int64]:
        """Return the rows of each key, shape (len(keys),)."""
        return np.bincount(self.codes, minlength=len(self.keys))

    def present(self) -> list[Key]:
        """Return the keys that occur, each once, in the order of their first row."""
        if len(self.keys) == 1:
            return list(self.keys) if len(self) else []
        found, first = np.unique(self.codes, return_index=True)
        return [self.keys[code] for code in found[np.argsort(first)].tolist()]

    def map(self, keys: Sequence[Key]) -> "Coded":
        """Return the column with each key replaced by the one at its place; equal ones become one."""
        new = Coded.of_text(list(keys))  # type: ignore[arg-type]
        return Coded(new.codes[self.codes], new.keys)


def join(parts: Sequence[Coded]) -> Coded:
    """Return the rows of several columns, one after the other."""
    if len(parts) == 1:
        return parts[0]
    keys = tuple(dict.fromkeys(key for part in parts for key in part.keys))
    if all(part.keys == keys for part in parts):
        return Coded(np.concatenate([part.codes for part in parts]), keys)
    place = {key: code for code, key in enumerate(keys)}
    moved = [
        np.array([place[key] for key in part.keys], np.int32)[part.codes]
        if len(part)
        else part.codes
        for part in parts
    ]
    return Coded(np.concatenate(moved), keys)


def count_categories(cuts: CategoryCuts, values: Coded | Sequence[object]) -> Counts:
    """Count a column in the categories of `cuts`; return int64 counts, shape (size,).

    `values` is coded, or decoded JSON values.
    """
    column = values if isinstance(values, Coded) else Coded.of_keys(values)
    counts = np.zeros(cuts.size, dtype=np.int64)
    unseen = special_index(cuts, "unseen")
    for key, rows in zip(column.keys, column.counts().tolist(), strict=True):
        if key is None:
            place = special_index(cuts, "missing")
        elif key is False:
            place = special_index(cuts, "type_error")
        else:
            place = cuts.index.get(key, unseen)
        counts[place] += rows
    return counts
