"""64-bit hashes of inference ids, and sets of them that stay sorted.

A hash is XXH3 (64 bits, Yann Collet's xxHash) of the id's UTF-8, as uint64. The rows of a batch
without ids of their own are named `{batch}#{row}`: theirs is the batch's hash mixed with the row, so that a
batch of thousands is hashed once. Two of a million ids of one pane share a hash with probability 3e-8.

Notation
    h      hash of the batch's id
    i      row, 0 <= i < BATCH_ROWS_MAX
    mix    the output function of SplitMix64 (Steele, Lea and Flood 2014, figure 17) of h + (i + 1) g
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

Hashes = npt.NDArray[np.uint64]

BATCH_MARK = "#"
BATCH_ROWS_MAX = 10_000
WHOLE = -1
"""Row of an id that names a row by itself."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


def id_hashes(ids: Iterable[str]) -> Hashes:
    """Return the hash of each id, shape (n,); `{batch}#{row}` gets what `row_hashes` gives it."""
    texts = list(ids)
    hashes = whole_hashes(texts)
    rows = [
        (at, row) for at, text in enumerate(texts) if BATCH_MARK in text and (row := _row(text))
    ]
    if rows:
        hashes = hashes.copy()
        places = [at for at, _ in rows]
        batches = whole_hashes([batch for _, (batch, _) in rows])
        hashes[places] = row_hashes(batches, np.array([within for _, (_, within) in rows]))
    return hashes


def row_hashes(batches: Hashes | np.uint64, rows: npt.NDArray[np.integer]) -> Hashes:
    """Return the hashes of rows of batches, shape (n,); `batches` are the batches' own hashes."""
    with np.errstate(over="ignore"):  # modulo 2**64 is meant
        z = np.asarray(batches + (rows.astype(np.uint64) + np.uint64(1)) * _GOLDEN, np.uint64)
        z = (z ^ (z >> _S30)) * _FIRST
        z = (z ^ (z >> _S27)) * _SECOND
    return z ^ (z >> _S31)


def whole_hashes(texts: Iterable[str]) -> Hashes:
    """Return the hash of each text as it stands, shape (n,): of a batch, whatever its id looks like."""
    try:
        digests = [xxh3_64_intdigest(text.encode()) for text in texts]
    except UnicodeEncodeError:
        # JSON may carry lone surrogates, which plain UTF-8 refuses.
        digests = [xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in texts]
    return np.array(digests, np.uint64)


def _row(text: str) -> tuple[str, int] | None:
    """Return (batch, row) of an id that names a row of a batch, in its one spelling; else None."""
    batch, _, row = text.rpartition(BATCH_MARK)
    if not batch or len(row) > 4 or not (row.isascii() and row.isdigit()):
        return None
    return None if row[0] == "0" and row != "0" else (batch, int(row))


class HashSet:
    """A growing set of hashes: a few sorted runs, merged when neighbours are of similar length.

    8 bytes per member; a batch of n is looked up in O(n log² size).
    """

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(run.size for run in self._runs)

    @property
    def nbytes(self) -> int:
        """Bytes of the members."""
        return 8 * len(self)

    def contains(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which of the hashes are members, shape (n,)."""
        found = np.zeros(hashes.size, dtype=np.bool_)
        for run in self._runs:
            place = np.minimum(run.searchsorted(hashes), run.size - 1)
            found |= run[place] == hashes
        return found

    def add(self, hashes: Hashes) -> None:
        """Add hashes that are no members yet, each once."""
        self._add(np.sort(hashes))

    def add_new(self, hashes: Hashes) -> npt.NDArray[np.bool_] | None:
        """Add what is no member yet; return which rows brought one (the first of equals), None for all.

        None is the usual answer and costs one sort: sorted hashes are looked up from left to right.
        """
        in_order = np.sort(hashes)
        repeated = bool((in_order[1:] == in_order[:-1]).any())
        if not repeated and not self.contains(in_order).any():
            self._add(in_order)
            return None
        first = self.first_seen(hashes)
        self.add(hashes[first])
        return first

    def first_seen(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which rows bring a hash for the first time: no member, and the first in the batch."""
        _, first = np.unique(hashes, return_index=True)
        fresh = np.zeros(hashes.size, dtype=np.bool_)
        fresh[first] = True
        return fresh & ~self.contains(hashes)

    def _add(self, run: Hashes) -> None:
        if run.size == 0:
            return
        while self._runs and self._runs[-1].size <= 2 * run.size:
            run = np.sort(np.concatenate((self._runs.pop(), run)), kind="stable")
        self._runs.append(run)
