"""How soon a change of the relation between two features is found that leaves each feature as it was.

    python bench/joint.py [--quick] [--json]

Ten normal features; the detector, as the monitor fits it, learns from 168 hourly windows of independent ones. Then
the first two correlate, by 0.1 to 0.8, until the alarm or for 48 windows. By the sampled rows of a window,
`delays`: the median windows until the alarm (none: fewer than half were found), and `found` of `runs`.

`unchanged`: false alarms of all that the detector watches over windows whose relations stay, and what the budget
allows in as many: independent features; features that correlate by 0.5; the same while their levels wander
(autoregressive, 0.8); the same, where the reference's hours of day have other levels.
"""

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import rig

from trimtab.contracts.model import Contract, Feature, Windows
from trimtab.detect.budget import FLEET, budget_of, parse_budget
from trimtab.detect.drift import Refused, fit_detector
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.joint import JointState, joint_columns
from trimtab.store.baselines import build_cuts

FEATURES, REFERENCE, MOST = 10, 168, 48
SIZES, CORRELATIONS = (50, 100, 200, 500), (0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
NAMES = [f"f{i}" for i in range(FEATURES)]
KINDS = ("independent", "correlated", "levels wander", "levels by hour")
Floats = npt.NDArray[np.float64]


class World:
    """A detector fitted on windows of `rows` rows, all of them sampled."""

    def __init__(self, rows: int, seed: int, kind: str = "independent") -> None:
        self.rows, self.rng, self.kind = rows, np.random.default_rng(seed), kind
        self.level = np.zeros(FEATURES)
        self.contract = Contract(
            name="m",
            task="binary",
            features={name: Feature("number") for name in NAMES},
            windows=Windows(length="1h", min_rows=50),
        )
        first = {name: self.rng.normal(size=5_000).tolist() for name in NAMES}
        self.cuts = build_cuts(self.contract, first)
        self.columns = joint_columns(self.contract.features, self.cuts)
        self.length_ms = self.contract.windows.length_ms
        budget = budget_of(self.contract, parse_budget(FLEET), 1)
        self.windows_per_alarm = budget.windows_per_alarm(self.length_ms)
        fitted = fit_detector(
            self.cuts,
            [(self.start_ms(at), self.window(at)) for at in range(REFERENCE)],
            self.contract,
            self.windows_per_alarm,
            bounded={},
        )
        if isinstance(fitted, Refused):
            raise SystemExit(fitted.reason)
        self.detector = fitted.detector(self.windows_per_alarm, self.length_ms)

    def start_ms(self, at: int) -> int:
        """Start of a window by its number."""
        return rig.START_MS // self.length_ms * self.length_ms + at * self.length_ms

    def values(self, at: int, pair: float) -> Floats:
        """Rows of a window, shape (rows, features)."""
        common = 0.0 if self.kind == "independent" else 0.5
        own = self.rng.normal(size=(self.rows, FEATURES))
        x = np.sqrt(common) * self.rng.normal(size=(self.rows, 1)) + np.sqrt(1 - common) * own
        if pair:
            x[:, 1] = pair * x[:, 0] + np.sqrt(1 - pair**2) * x[:, 1]
        if self.kind == "levels wander":
            self.level = 0.8 * self.level + 0.6 * 0.2 * self.rng.normal(size=FEATURES)
            x = x + self.level
        if self.kind == "levels by hour":
            x = x + 0.5 * np.sin(2 * np.pi * (at % 24) / 24)
        return x

    def window(self, at: int, pair: float = 0.0) -> Observed:
        """Count a window."""
        x = self.values(at, pair)
        numeric = {name: Column(x[:, i]) for i, name in enumerate(NAMES)}
        state = observe_pane(
            self.cuts, self.rows, numeric=numeric, categories={}, statuses={}, rules={}
        )
        sampled = {name: x[:, i].tolist() for i, name in enumerate(NAMES)}
        return Observed(state=state, joint=JointState.observe(self.columns, sampled))

    def alarms(self, windows: int, pair: float = 0.0) -> Iterator[tuple[int, str]]:
        """Yield (place, what is named first) of alarms; each counts anew, as the budget does."""
        state = self.detector.start()
        for place in range(windows):
            at = REFERENCE + place
            measured = self.detector.contrasts.measure(self.window(at, pair), self.cuts)
            state, said = self.detector.update(state, measured, self.start_ms(at))
            if said.alarm:
                yield place, said.moved[0].source
                state = self.detector.start()


def delays(rows: int, fits: int, runs: int) -> dict[str, Any]:
    """Return the median delay by correlation."""
    found: dict[float, list[int]] = {correlation: [] for correlation in CORRELATIONS}
    for seed in range(fits):
        world = World(rows, seed)
        for correlation in CORRELATIONS:
            for _ in range(runs):
                place, named = next(world.alarms(MOST, correlation), (MOST, ""))
                found[correlation].append(place + 1 if named == "joint:f0 x f1" else MOST + 1)
    return {
        str(correlation): {
            "windows": None if (middle := statistics.median(all_of)) > MOST else middle,
            "found": sum(one <= MOST for one in all_of),
            "runs": len(all_of),
        }
        for correlation, all_of in found.items()
    }


def unchanged(kind: str, fits: int, windows: int) -> dict[str, Any]:
    """Return the false alarms of windows whose relations stay."""
    count, of_pairs, allowed = 0, 0, 0.0
    for seed in range(fits):
        world = World(500, 100 + seed, kind)
        named = [name for _, name in world.alarms(windows)]
        count += len(named)
        of_pairs += sum(name.startswith("joint:") for name in named)
        allowed += windows / world.windows_per_alarm
    return {"alarms": count, "of_pairs": of_pairs, "allowed": round(allowed, 2)}


def main() -> None:
    """Measure and print."""
    options = rig.options(__doc__, "two sizes, few runs").parse_args()
    sizes = SIZES[2:] if options.quick else SIZES
    fits, runs, windows = (1, 3, 240) if options.quick else (4, 5, 1_440)
    figures = {
        "delays": {str(rows): delays(rows, fits, runs) for rows in sizes},
        "unchanged": {kind: unchanged(kind, fits // 2 or 1, windows) for kind in KINDS},
    }
    rig.show(figures, as_json=options.json)


if __name__ == "__main__":
    main()
