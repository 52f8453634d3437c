"""Agreement with what other tools' own tests expect, where they are right and say the same thing.

WhyLabs' distances are of shares, ours of counts: shares are played as many rows. Evidently's chi-square takes the
reference for exact, ours for a sample: ours reaches theirs as the reference grows, and is never below it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from trimtab.stats.aggregate import observe_categories
from trimtab.stats.cuts import CategoryCuts
from trimtab.stats.energy import energy_test
from trimtab.stats.tests import PSI_BINS, compare

PAIRS = Path(__file__).parents[2].parent / "shared" / "data" / "peer_pairs"
pytestmark = pytest.mark.skipif(
    not PAIRS.is_dir(), reason="the expected outputs of other tools are not beside this repository"
)
ROWS = 10**7


def pairs_of(file, *methods):
    if not PAIRS.is_dir():
        return []
    found = json.loads((PAIRS / file).read_text())["pairs"]
    return [pair for pair in found if pair["method"] in methods]


def of_shares(pair):
    """Compare two distributions over the same bins, as rows of categories."""
    cuts = CategoryCuts(tuple(f"bin {k}" for k in range(len(pair["p"]))))
    empty = observe_categories(cuts, [])
    sides = []
    for shares in (pair["p"], pair["q"]):
        counts = list(empty.counts)
        for k, share in enumerate(shares):
            counts[cuts.index[f"bin {k}"]] = round(share * ROWS)
        sides.append(replace(empty, counts=tuple(counts)))
    return compare(cuts, *sides)


@pytest.mark.parametrize("pair", pairs_of("whylabs_distances.json", "jensen_shannon_distance_nats"))
def test_jensen_shannon_is_whylabs(pair):
    found = math.sqrt(of_shares(pair).jensen_shannon)
    if len(pair["p"]) <= PSI_BINS:
        assert found == pytest.approx(pair["expected"], abs=1e-4)
    else:  # rare values are counted together, which can only bring them nearer
        assert 0.9 * pair["expected"] < found <= pair["expected"] + 1e-5


@pytest.mark.parametrize("pair", pairs_of("whylabs_distances.json", "psi"))
def test_psi_is_whylabs(pair):
    found = of_shares(pair).psi
    assert found.raw == pytest.approx(pair["expected"], abs=1e-4)
    assert found.psi == pytest.approx(
        pair["expected"], abs=1e-4
    )  # nothing to debias in so many rows


@pytest.mark.parametrize("pair", pairs_of("evidently_stattests.json", "chi2_pvalue"))
def test_chi_square_is_evidentlys_where_the_reference_is_endless(pair):
    sides = [
        [None if v is None else str(v) for v in pair[name]] for name in ("current", "reference")
    ]
    cuts = CategoryCuts(tuple(sorted({v for side in sides for v in side if v is not None})))
    window, reference = (observe_categories(cuts, side) for side in sides)

    def p_value(times):
        counts = tuple(count * times for count in reference.counts)
        return compare(cuts, window, replace(reference, counts=counts)).chi_square.p_value

    assert p_value(10**6) == pytest.approx(pair["expected"], abs=1e-4)
    assert p_value(1) >= p_value(10) >= p_value(10**6) - 1e-12


@pytest.mark.parametrize("pair", pairs_of("evidently_stattests.json", "energy_distance"))
def test_the_energy_coefficient_is_evidentlys_distance_over_the_largest(pair):
    """Theirs is the root of E = 2 A - B - C (Székely & Rizzo 2013); H = E / (2 A)."""
    x, y = (np.array(pair[name], float)[:, None] for name in ("current", "reference"))
    between = np.abs(x - y.T).mean()
    found = math.sqrt(energy_test(x, y, seed=1).coefficient * 2 * between)
    assert found == pytest.approx(pair["evidently_0_7_23"], abs=1e-6)
