"""Current: what an index holds of each hash, in a few sorted chunks; and the columns that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.store.entries import Records
from trimtab.windows.ids import Hashes

Mask = npt.NDArray[np.bool_]


class Current:
    """A map from hash to a record, in a few sorted chunks; each hash stands once."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._chunks: list[tuple[Hashes, Records]] = []

    def __len__(self) -> int:
        return sum(hashes.size for hashes, _ in self._chunks)

    def get(self, hashes: Hashes) -> tuple[Mask, Records]:
        """Return (which are known, their records), each shape (n,)."""
        found = np.zeros(hashes.size, np.bool_)
        records = np.zeros(hashes.size, self._dtype)
        for keys, values in self._chunks:
            place = np.minimum(keys.searchsorted(hashes), keys.size - 1)
            here = keys[place] == hashes
            if here.any():
                records[here] = values[place[here]]
                found |= here
        return found, records

    def put(self, hashes: Hashes, records: Records, known: Mask) -> None:
        """Set the records of distinct, ascending hashes; `known` says which `get` has found."""
        if known.any():
            old_hashes, old_records = hashes[known], records[known]
            for keys, values in self._chunks:
                place = np.minimum(keys.searchsorted(old_hashes), keys.size - 1)
                here = keys[place] == old_hashes
                values[place[here]] = old_records[here]
        new = ~known
        keys, values = hashes[new], records[new]
        if keys.size == 0:
            return
        while self._chunks and self._chunks[-1][0].size <= keys.size:
            keys, values = interleave(*self._chunks.pop(), keys, values)
        self._chunks.append((keys, values))

    def remove(self, hashes: Hashes) -> None:
        """Forget hashes; those that are not known change nothing."""
        if hashes.size == 0:
            return
        chunks = []
        for keys, values in self._chunks:
            place = np.minimum(keys.searchsorted(hashes), keys.size - 1)
            gone = place[keys[place] == hashes]
            if gone.size:
                stays = np.ones(keys.size, np.bool_)
                stays[gone] = False
                keys, values = keys[stays], values[stays]  # noqa: PLW2901 - what is left of the chunk
            if keys.size:
                chunks.append((keys, values))
        self._chunks = chunks

    def before(self, name: str, limit: int) -> tuple[Hashes, Records]:
        """Return (hashes, records) whose field `name` is below `limit`, hashes ascending."""
        found, records = [np.empty(0, np.uint64)], [np.empty(0, self._dtype)]
        for keys, values in self._chunks:
            low = values[name] < limit
            found.append(keys[low])
            records.append(values[low])
        hashes = np.concatenate(found)
        order = hashes.argsort()
        return hashes[order], np.concatenate(records)[order]


# --- sorted columns -------------------------------------------------------------------------------


def distinct(hashes: Hashes) -> Hashes:
    """Return each hash once, ascending."""
    ordered = np.sort(hashes)
    if ordered.size < 2:
        return ordered
    once: Hashes = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return once


def among(hashes: Hashes, ordered: Hashes) -> Mask:
    """Which of the hashes are among ascending ones."""
    if ordered.size == 0:
        return np.zeros(hashes.size, np.bool_)
    place = np.minimum(ordered.searchsorted(hashes), ordered.size - 1)
    found: Mask = ordered[place] == hashes
    return found


def interleave(
    old_keys: Hashes, old_values: Records, keys: Hashes, values: Records
) -> tuple[Hashes, Records]:
    """Merge two sorted chunks that share no key."""
    total = old_keys.size + keys.size
    place = old_keys.searchsorted(keys) + np.arange(keys.size)
    is_old = np.ones(total, np.bool_)
    is_old[place] = False
    all_keys, all_values = np.empty(total, np.uint64), np.empty(total, values.dtype)
    all_keys[place], all_values[place] = keys, values
    all_keys[is_old], all_values[is_old] = old_keys, old_values
    return all_keys, all_values
