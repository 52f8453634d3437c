"""What becomes of the labels of an id in the ledger: a function of which labels there are, and nothing else.

Of all labels that an id has had, the one that counts is `joined`, or waits and stands in no class; those
that say the same (revision, value, retracted or not) are `duplicate`, those that say anything else are
`superseded`. Neither the order in which they came nor what was merged together has a part in it. So a
correction makes superseded what was joined or duplicate before, wherever it had been read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.monitor.current import Mask
from trimtab.monitor.repeats import Repeats
from trimtab.monitor.winners import Pairs
from trimtab.store.entries import Records
from trimtab.store.label_runs import Ints
from trimtab.windows.ids import Hashes


def equal(a: Records, b: Records) -> Mask:
    """Which labels say the same."""
    same: Mask = (a["revision"] == b["revision"]) & (a["retracted"] == b["retracted"])
    value: Mask = (a["code"] == b["code"]) & (a["number"] == b["number"])
    return same & value


def classify(
    ids: Hashes,
    place: Ints,
    events: Records,
    winner: Ints,
    before: Pairs,
    after: Pairs,
    repeats: Repeats,
) -> dict[tuple[int, str], int]:
    """Return what a merge changes, as signed counts by (partition id, class); bring `repeats` up to date.

    `ids` are those that the merge touches, `events` its labels and `place` where among `ids` each belongs;
    `winner` is of each id the event that counts now, -1 where what stood before still does.
    """
    old, new = before.label, after.label
    counts: dict[tuple[int, str], int] = {}
    replaced = before.has_l & (winner >= 0)
    if replaced.any():
        again = equal(old, new)
        corrected, repeated = replaced & ~again, replaced & again
        count(counts, "joined", -1, old["partition"][replaced & before.has_p])
        count(counts, "superseded", 1, old["partition"][corrected])
        count(counts, "duplicate", 1, old["partition"][repeated])
        _, gone = repeats.take(ids[corrected])
        count(counts, "duplicate", -1, gone["partition"], gone["count"])
        count(counts, "superseded", 1, gone["partition"], gone["count"])
        repeats.add_each(ids[repeated], old["partition"][repeated])
    if events.size:
        wins = winner[place] == np.arange(events.size)
        count(counts, "joined", 1, events["partition"][wins & after.has_p[place]])
        lost = np.flatnonzero(~wins)
        where, losers = place[lost], events[lost]
        same = equal(losers, new[where])
        count(counts, "superseded", 1, losers["partition"][~same])
        count(counts, "duplicate", 1, losers["partition"][same])
        repeats.add_each(ids[where[same]], losers["partition"][same])
    stays = before.has_l & (winner < 0)
    count(counts, "joined", 1, old["partition"][stays & after.has_p & ~before.has_p])
    return {key: number for key, number in counts.items() if number}


def count(
    counts: dict[tuple[int, str], int],
    cls: str,
    sign: int,
    partitions: npt.NDArray[Any],
    labels: npt.NDArray[Any] | None = None,
) -> None:
    """Add to a class, of each partition, one for each place in `partitions`, or as many as `labels` has there."""
    if partitions.size == 0:
        return
    found, inverse = np.unique(partitions, return_inverse=True)
    numbers = np.bincount(inverse, weights=labels)
    for partition, number in zip(found.tolist(), numbers.tolist(), strict=True):
        key = (partition, cls)
        counts[key] = counts.get(key, 0) + sign * int(number)
