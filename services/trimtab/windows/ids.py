"""64-bit hashes of inference ids, and sets of them that stay sorted.

A hash is the first 8 bytes of BLAKE2b of the id's UTF-8, little-endian, as uint64. Two of a million ids
of one pane share a hash with probability 3e-8.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


def id_hashes(ids: Iterable[str]) -> Hashes:
    """Return the hash of each id, shape (n,)."""
    # surrogatepass: JSON may carry lone surrogates, which plain UTF-8 refuses.
    digests = [blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


class HashSet:
    """A growing set of hashes: a few sorted runs, merged when neighbours are of similar length.

    8 bytes per member; a batch of n is looked up in O(n log² size).
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(run.size for run in self._runs)

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which of the hashes are members, shape (n,)."""
        found = np.zeros(hashes.size, dtype=np.bool_)
        for run in self._runs:
            place = np.minimum(run.searchsorted(hashes), run.size - 1)
            found |= run[place] == hashes
        return found

    def add(self, hashes: Hashes) -> None:
        """Add hashes that are no members yet, each once."""
        if hashes.size == 0:
            return
        run = np.sort(hashes)
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.sort(np.concatenate((self._runs.pop(), run)), kind="stable")
        self._runs.append(run)

    def first_seen(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which rows bring a hash for the first time: no member, and the first in the batch."""
        _, first = np.unique(hashes, return_index=True)
        fresh = np.zeros(hashes.size, dtype=np.bool_)
        fresh[first] = True
        return fresh & ~self.contains(hashes)
