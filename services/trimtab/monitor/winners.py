"""Which prediction and which label of an id stand, of those it had and those that come."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from trimtab.monitor.current import Mask
from trimtab.store.entries import Records
from trimtab.store.label_runs import NO_VALUE, Ints


class Pairs(Struct):
    """The current prediction and label of each id of a merge: which have one, and the records."""

    has_p: Mask
    p: Records
    has_l: Mask
    label: Records

    @property
    def joined(self) -> Mask:
        """Which ids have a prediction with a value and a label that stands."""
        stands: Mask = self.has_l & ~self.label["retracted"]
        return self.able & stands

    @property
    def able(self) -> Mask:
        """Which ids have a prediction that a label could join."""
        able: Mask = self.has_p & (self.p["code"] != NO_VALUE)
        return able


def earliest(place: Ints, p: Records) -> npt.NDArray[np.intp]:
    """Order predictions so that of each place the one of the lowest (pane, partition) comes last."""
    return np.lexsort((-np.arange(p.size), -p["partition"], -p["pane"], place))


def best(
    had: Mask, old: Records, place: Ints, events: Records, order: Any
) -> tuple[Mask, Records, Ints]:
    """Return (which ids have a record, the records, index of the winning event or -1 for the old one).

    `order(places, records)` sorts by place, and within it so that the winner comes last. Only ids with
    more than one candidate are compared.
    """
    candidates = np.bincount(place, minlength=had.size)
    has = had | (candidates > 0)
    contested = candidates + had > 1
    chosen, winner = old.copy(), np.full(had.size, -1, np.int64)
    if not contested.any():
        chosen[place], winner[place] = events, np.arange(place.size)
        return has, chosen, winner
    hard = contested[place]
    alone = np.flatnonzero(~hard)
    chosen[place[alone]] = events[alone]
    winner[place[alone]] = alone
    if hard.any():
        index = np.flatnonzero(hard)
        standing = np.flatnonzero(had & contested & (candidates > 0))
        places = np.concatenate((standing, place[index]))
        records = np.concatenate((old[standing], events[index]))
        ordered = order(places, records)
        ends = ordered[np.flatnonzero(np.diff(np.append(places[ordered], -1)))]
        chosen[places[ends]] = records[ends]
        origin = np.concatenate((np.full(standing.size, -1, np.int64), index))
        winner[places[ends]] = origin[ends]
    return has, chosen, winner


def latest(place: Ints, labels: Records, ranks: Ints) -> npt.NDArray[np.intp]:
    """Order labels so that of each place the winning one comes last; `ranks` order the class codes.

    Of equal labels that is the one of the lowest partition, so that an index rebuilt in another
    order gives the same answer; of the same partition the one that came first.
    """
    arrival = np.arange(labels.size)
    return np.lexsort(
        (
            *(-arrival, -labels["partition"], labels["number"], ranks[labels["code"]]),
            *(labels["retracted"], labels["revision"], place),
        )
    )
