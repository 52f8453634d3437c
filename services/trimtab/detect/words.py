"""What the detector's contrasts and rates are called for people, and how far they have moved.

A contrast is a number on a scale of its own; a person asks which values there are more of. Where it is a share
of rows, its words are that share, now and in the baseline; the smooth contrasts of a number say in which
direction its distribution has changed, and by how much of a row's standard deviation.
"""

import math
import re

import numpy as np
from scipy.special import ndtri

from trimtab.detect.evidence import Moved
from trimtab.detect.sources import VOLUME_UNIT, SourceContrasts, share_moved

_OCTILE = re.compile(r"octile (\d+) of (\d+)")
_PARTS = ("", "", "half", "third", "quarter", "fifth", "sixth", "seventh", "eighth")
_ORDINALS = ("", "lowest", "second", "third", "fourth", "fifth", "sixth", "seventh")
_EVEN_PART = 0.02
"""A part whose share is farther from 1/parts than this is no eighth: many rows have one value."""
_PLAIN = {
    "location": "level",
    "spread": "spread",
    "skew": "skew",
    "tails": "tails",
    "request": "abnormal requests",
}


def label_words(what: str) -> str:
    """Return what a contrast or rate is called in a table: `octile 1 of 8` is `lowest eighth`."""
    found = _OCTILE.fullmatch(what)
    if found:
        return _part(int(found[1]), int(found[2]))
    if what.startswith("above p"):
        return f"above the usual {what.removeprefix('above p')}th percentile"
    return _PLAIN.get(what, what.replace("_", " ") if " " not in what else what)


def effect_words(moved: Moved, source: SourceContrasts) -> str:
    """Return how far a contrast or rate of a source has moved, as a part of a sentence."""
    what, effect = moved.what, moved.effect
    if what in source.rates:
        return f"{label_words(what)} {effect:.1%} of rows, usually {moved.usual:.1%}"
    if what == "location":
        return f"shifted by {sd_equivalents(effect):+.2f} sd (± {moved.error:.2f})"
    if source.origin == "joint":
        now = math.tanh(moved.usual + effect)
        return f"{what} {now:+.2f}, usually {math.tanh(moved.usual):+.2f}"
    if source.origin == "volume":
        return f"{2 ** (-effect / VOLUME_UNIT):.0%} of the usual rows"
    share = share_moved(source, what, effect)
    beyond = " than its level explains" if moved.beyond_level else ""
    if share is None:
        said = f"{_smooth(source, what, effect)}{beyond.replace('than', 'beyond what')}"
        return f"{said} ({what} {effect:+.2f} ± {moved.error:.2f})"
    was, now = share
    octile = _OCTILE.fullmatch(what)
    more = "more" if now >= was else "fewer"
    if beyond and octile is None and not what.startswith("above p"):
        return f"{more} of {what}{beyond} ({now - was:+.1%} of rows, usually {was:.1%})"
    if octile is None and not what.startswith("above p"):
        return f"{what} {now:.1%} of rows, usually {was:.1%}"
    where = label_words(what)
    if octile is not None:
        place, parts = int(octile[1]), int(octile[2])
        even = abs(was - 1 / parts) <= _EVEN_PART
        where = f"in the {where if even else _plain_part(place, parts)}"
    if beyond:
        return f"{more} values {where}{beyond} ({now - was:+.1%} of rows)"
    return f"{more} values {where} ({now:.1%} instead of {was:.1%})"


def _part(place: int, parts: int) -> str:
    if parts < 2 or parts >= len(_PARTS):
        return _plain_part(place, parts)
    ordinal = "highest" if place == parts else _ORDINALS[place]
    return f"{ordinal} {_PARTS[parts]}"


def _plain_part(place: int, parts: int) -> str:
    return f"{'highest' if place == parts else _ORDINALS[place]} of {parts} groups of values"


def _smooth(source: SourceContrasts, what: str, effect: float) -> str:
    """Say what a smooth contrast of a number means by its sign (on the scale of the baseline's ranks)."""
    more = effect >= 0
    match what:
        case "spread":
            return f"more values {'far from' if more else 'near'} the usual middle"
        case "skew":
            return f"lopsided toward {'high' if more else 'low'} values"
        case "tails" if more:
            # The contrast is also high at the very middle, but less: beyond that only the tails reach.
            column = source.matrix[:, source.labels.index(what)]
            middle = slice(*_inner(source))
            peak = float(np.max(column[middle], initial=0.0))
            return "more in the tails" if effect > peak else "more in the tails or the very middle"
        case "tails":
            return "fewer in the tails and the very middle"
    return f"{what} has moved"


def _inner(source: SourceContrasts) -> tuple[int, int]:
    """First and last + 1 of the bins in the middle half of the baseline's ranks."""
    usual = np.array(source.usual)
    u = np.cumsum(usual) - usual / 2
    return int(np.searchsorted(u, 0.25)), int(np.searchsorted(u, 0.75, side="right"))


def sd_equivalents(theta: float) -> float:
    """Return the shift of a normal that moves the first contrast by `theta`.

    P(new > reference) = 0.5 + theta / sqrt(12), and a normal shifted by s has Phi(s / sqrt(2)) (statistics B4).
    """
    p = min(max(0.5 + theta / math.sqrt(12), 1e-6), 1 - 1e-6)
    return float(math.sqrt(2) * ndtri(p))
