"""What becomes of each label in the ledger: joined, superseded, duplicate; waiting ones count nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.monitor.current import Mask
from trimtab.monitor.winners import Pairs
from trimtab.store.entries import Records
from trimtab.store.label_runs import Ints


def equal(a: Records, b: Records) -> Mask:
    """Which labels say the same."""
    same: Mask = (a["revision"] == b["revision"]) & (a["retracted"] == b["retracted"])
    value: Mask = (a["code"] == b["code"]) & (a["number"] == b["number"])
    return same & value


def classify(
    place: Ints, events: Records, winner: Ints, before: Pairs, after: Pairs
) -> dict[tuple[int, str], int]:
    """Return what a merge changes, as signed counts by (partition id, class)."""
    old, new = before.label, after.label
    counts: dict[tuple[int, str], int] = {}
    if events.size:
        wins = winner[place] == np.arange(events.size)
        same = equal(events, new[place])
        count(counts, "joined", 1, events["partition"][wins & after.has_p[place]])
        count(counts, "duplicate", 1, events["partition"][~wins & same])
        count(counts, "superseded", 1, events["partition"][~wins & ~same])
    replaced = before.has_l & (winner >= 0)
    if replaced.any():
        again = equal(old, new)
        count(counts, "superseded", 1, old["partition"][replaced & ~again])
        count(counts, "duplicate", 1, old["partition"][replaced & again])
        count(counts, "joined", -1, old["partition"][replaced & before.has_p])
    stays = before.has_l & (winner < 0)
    count(counts, "joined", 1, old["partition"][stays & after.has_p & ~before.has_p])
    return {key: number for key, number in counts.items() if number}


def count(
    counts: dict[tuple[int, str], int], cls: str, sign: int, partitions: npt.NDArray[Any]
) -> None:
    """Add the rows of each partition to its class."""
    found, numbers = np.unique(partitions, return_counts=True)
    for partition, number in zip(found.tolist(), numbers.tolist(), strict=True):
        key = (partition, cls)
        counts[key] = counts.get(key, 0) + sign * number
