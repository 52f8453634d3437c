"""Repeats: how many labels, beside the one that counts, say of an id what that one says; by partition.

The ledger calls them duplicates for as long as that label counts. When a correction takes its place, they
are superseded with it, so the index has to know them still. Few ids have any.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trimtab.store.entries import REPEAT_RECORD, Records
from trimtab.windows.ids import Hashes


class Repeats:
    """Counts by (hash, partition), in a few chunks sorted by it; those of all chunks add up."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Hashes, Records]] = []

    def get(self, hashes: Hashes) -> tuple[Hashes, Records]:
        """Return (hashes, records) of distinct hashes, sorted by (hash, partition), each pair once."""
        found = [(np.empty(0, np.uint64), np.empty(0, REPEAT_RECORD))]
        for keys, values in self._chunks:
            index = _places(keys, hashes)
            found.append((keys[index], values[index]))
        return _summed(found)

    def take(self, hashes: Hashes) -> tuple[Hashes, Records]:
        """Return what `get` returns, and forget it."""
        taken = self.get(hashes)
        if taken[0].size:
            for keys, values in self._chunks:
                values["count"][_places(keys, hashes)] = 0  # it goes when its chunk is merged
        return taken

    def add(self, hashes: Hashes, records: Records) -> None:
        """Add counts, in any order."""
        if hashes.size == 0:
            return
        chunk = _summed([(hashes, records)])
        while self._chunks and self._chunks[-1][0].size <= chunk[0].size:
            chunk = _summed([self._chunks.pop(), chunk])
        self._chunks.append(chunk)

    def add_each(self, hashes: Hashes, partitions: npt.NDArray[np.int32]) -> None:
        """Add one for each (hash, partition)."""
        records = np.ones(hashes.size, REPEAT_RECORD)
        records["partition"] = partitions
        self.add(hashes, records)


def _places(keys: Hashes, hashes: Hashes) -> npt.NDArray[np.int64]:
    """Return where any of distinct hashes stands among ascending keys."""
    first = keys.searchsorted(hashes, "left")
    length = keys.searchsorted(hashes, "right") - first
    some = length > 0
    first, length = first[some], length[some]
    before = np.cumsum(length) - length
    places: npt.NDArray[np.int64] = np.repeat(first - before, length) + np.arange(length.sum())
    return places


def _summed(parts: list[tuple[Hashes, Records]]) -> tuple[Hashes, Records]:
    """Add up the counts of equal (hash, partition); none stays without a count."""
    hashes = np.concatenate([keys for keys, _ in parts])
    records = np.concatenate([values for _, values in parts])
    some = records["count"] > 0
    hashes, records = hashes[some], records[some]
    if hashes.size == 0:
        return hashes, records
    order = np.lexsort((records["partition"], hashes))
    hashes, records = hashes[order], records[order]
    new = (hashes[1:] != hashes[:-1]) | (records["partition"][1:] != records["partition"][:-1])
    starts = np.flatnonzero(np.append(True, new))
    counts = np.add.reduceat(records["count"], starts)
    hashes, records = hashes[starts], records[starts]
    records["count"] = counts
    return hashes, records
