"""What has moved is said in words a person can check against the rows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sources_traffic import CUTS, NORMAL, detector_of, drawn

from trimtab.detect.evidence import Moved
from trimtab.detect.words import effect_words, label_words

RNG = np.random.default_rng(3)
DETECTOR = detector_of(CUTS, [drawn(RNG) for _ in range(60)])
SOURCE = {source.name: source for source in DETECTOR.contrasts.sources}


def said(name: str, what: str, values: np.ndarray) -> str:
    """The words for a contrast of a number whose values are these, beside a standard normal's."""
    source = SOURCE[name]
    counts = np.histogram(values, [-np.inf, *NORMAL.edges, np.inf])[0]
    effect = float((counts / counts.sum()) @ source.matrix[:, source.labels.index(what)])
    return words(name, what, effect)


def words(
    name: str, what: str, effect: float, usual: float = 0.0, *, beyond_level: bool = False
) -> str:
    moved = Moved(
        source=name,
        what=what,
        share=1,
        onset_ms=0,
        windows=3,
        effect=effect,
        error=0.1,
        usual=usual,
        beyond_level=beyond_level,
    )
    return effect_words(moved, SOURCE[name])


def test_an_octile_tells_the_share_of_its_values_now_and_usually() -> None:
    values = np.concatenate([RNG.normal(size=20_000), np.full(2_000, -3.0)])
    found = re.fullmatch(
        r"more values in the lowest eighth \((.+)% instead of (.+)%\)",
        said("income", "octile 1 of 8", values),
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * (np.mean(values < -1.15)), abs=1.5)
    assert float(found[2]) == pytest.approx(12.5, abs=1.5)
    assert said("income", "octile 8 of 8", values).startswith("fewer values in the highest eighth")


def test_smooth_contrasts_tell_where_there_are_more_values() -> None:
    wide, narrow = RNG.normal(size=50_000) * 1.5, RNG.normal(size=50_000) * 0.6
    assert "more values far from the usual middle" in said("income", "spread", wide)
    assert "more values near the usual middle" in said("income", "spread", narrow)
    skewed = RNG.exponential(size=50_000) - 1
    assert "toward high values" in said("income", "skew", skewed)
    assert "toward low values" in said("income", "skew", -skewed)
    ends = np.concatenate([RNG.normal(size=5_000) * 0.01, RNG.choice([-3.5, 3.5], 50_000)])
    assert said("income", "tails", ends).startswith("more in the tails (tails +")
    assert "the very middle" in said("income", "tails", RNG.normal(size=50_000) * 0.05)


def test_the_level_a_category_and_a_rate_are_said_as_they_were() -> None:
    assert words("income", "location", 0.4) == "shifted by +0.42 sd (± 0.10)"
    assert "category branch " in words("channel", "category branch", 0.1)
    assert words("income", "missing", 0.03, 0.001) == "missing 3.0% of rows, usually 0.1%"
    assert words("income", "type_error", 0.03, 0.0).startswith("type error 3.0%")


def test_what_is_left_after_the_level_is_said_as_such_and_never_as_a_share() -> None:
    said = words("income", "octile 8 of 8", 0.15, beyond_level=True)
    assert said.startswith("more values in the highest eighth than its level explains (+")
    assert "instead of" not in said
    assert words("income", "spread", -0.2, beyond_level=True).startswith(
        "more values near the usual middle beyond what its level explains (spread -0.20"
    )
    assert "of category branch than its level explains" in words(
        "channel", "category branch", 0.1, beyond_level=True
    )


@pytest.mark.parametrize(
    ("what", "plain"),
    [
        ("octile 1 of 8", "lowest eighth"),
        ("octile 8 of 8", "highest eighth"),
        ("octile 2 of 3", "second third"),
        ("octile 1 of 2", "lowest half"),
        ("location", "level"),
        ("above p95", "above the usual 95th percentile"),
        ("below_min", "below min"),
        ("category a_b", "category a_b"),
        ("request", "abnormal requests"),
    ],
)
def test_a_table_names_contrasts_without_jargon(what: str, plain: str) -> None:
    assert label_words(what) == plain


def test_where_one_value_fills_a_part_it_is_called_no_eighth() -> None:
    from trimtab.detect.orthonormal import numeric_contrasts
    from trimtab.detect.sources import SourceContrasts

    counts = np.array([60.0, *([40 / 15] * 15)])
    matrix, labels, weights = numeric_contrasts(counts)
    source = SourceContrasts(
        name="x", matrix=matrix, labels=labels, weights=weights, rates=(), usual=()
    )
    what = next(label for label in labels if label.startswith("octile"))
    moved = Moved(
        source="x", what=what, share=1, onset_ms=0, windows=1, effect=0.2, error=0.1, usual=0.0
    )
    assert "groups of values (" in effect_words(moved, source)
    assert "eighth" not in effect_words(moved, source)
