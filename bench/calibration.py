"""How often the drift detector raises a false alarm, and how soon it finds a change, beside other tools' rules.

    python bench/calibration.py [--quick] [--json] [--seed N]

16 normal and 4 categorical features, windows of 1,000 rows on average, a reference of 336 windows, one false
alarm allowed per A = 720 windows. Every row is made, counted under cuts of the reference (`observe_pane`), read
(`Contrasts.measure`) and judged (`fit_detector`, `Detector.update`): the code of a monitor, volume and all. An alarm is
accepted at once, so that it hides none that would follow.

`false_alarms_per_budget`: alarms per A windows without a change, by the kind of variation (`NULLS` of
tests/support/drift_traffic.py says what each is); with `low` and `high`, the exact 95 % Poisson interval, and
`worst`, the reference draw with most. The budget is 1. `stress` is outside what the budget is stated for.
`delay_windows`: windows from a change to its alarm, mean, at most 300; under independent windows, and by kind in
`delay_windows_by_null`. `sensitive` is the same with a floor of .02 instead of .05 deviations.
`ablations`: what the budget needs: without whitening, or against reference shares taken for exact.
`peers`: rules of other tools on the same windows, alarms per 720 windows and delays of at most `peer_cap`
windows; where a rule alarms all the time without a change, its delay means nothing.
"""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import rig
from scipy import stats

sys.path.append(str(rig.ROOT / "tests" / "support"))

from drift_peers import FAR_TOOLS, QUIET, Runs
from drift_traffic import (
    HOUR_MS,
    NULLS,
    SHIFTS,
    STRESSES,
    OneSample,
    Reference,
    Shift,
    Traffic,
    Watch,
    observe,
    without_whitening,
)

from trimtab.detect.evidence import Detector
from trimtab.detect.sources import ordinary

WINDOWS_PER_ALARM = 720
DELTAS = {"default": 0.05, "sensitive": 0.02}
MOST_DELAY = 300
DELAY_NULLS = ("iid", "ar", "diurnal", "prod", "heavy")
ALL_NULLS = {**NULLS, **STRESSES}


class Size(msgspec.Struct, frozen=True):
    """How much is measured."""

    draws: int
    """References, each with windows of its own."""
    windows: int
    """Windows without a change, per draw."""
    changes: int
    """Changes of each kind, per draw."""
    delay_nulls: tuple[str, ...]
    deltas: tuple[str, ...]
    peer_nulls: tuple[str, ...]
    """Of the tools that run here."""
    far_peer_nulls: tuple[str, ...]
    """Of the tools with an environment of their own."""
    peer_windows: int
    peer_changes: int
    peer_cap: int
    ablation_windows: int


FULL = Size(
    draws=4,
    windows=2_000,
    changes=6,
    delay_nulls=DELAY_NULLS,
    deltas=("default", "sensitive"),
    peer_nulls=tuple(ALL_NULLS),
    far_peer_nulls=("iid", "ar", "diurnal", "prod"),
    peer_windows=60,
    peer_changes=1,
    peer_cap=20,
    ablation_windows=1_000,
)
QUICK = Size(
    draws=1,
    windows=720,
    changes=2,
    delay_nulls=("iid",),
    deltas=("default",),
    peer_nulls=("iid",),
    far_peer_nulls=(),
    peer_windows=8,
    peer_changes=1,
    peer_cap=2,
    ablation_windows=150,
)


class Tally(msgspec.Struct):
    """Alarms of every draw, and delays of every shift, of one detector under one null."""

    alarms: list[int] = []
    windows: int = 0
    delays: dict[str, list[int]] = {}
    factors: list[float] = []
    """What certificates multiplied variances by."""
    seasons: list[str] = []

    def summary(self) -> dict[str, Any]:
        """Alarms per budget with their interval."""
        count, draws = sum(self.alarms), len(self.alarms)
        budgets = self.windows / WINDOWS_PER_ALARM
        low, high = interval(count)
        return {
            "alarms": count,
            "windows": self.windows,
            "per_budget": round(count / budgets, 2),
            "low": round(low / budgets, 2),
            "high": round(high / budgets, 2),
            "worst": round(max(self.alarms) / budgets * draws, 2),
            "certificate_factor_max": max(self.factors),
            "seasons": sorted(set(self.seasons)),
        }


def interval(count: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a Poisson mean."""
    low = float(stats.chi2.ppf(0.025, 2 * count)) / 2 if count else 0.0
    return low, float(stats.chi2.ppf(0.975, 2 * count + 2)) / 2


def measured(name: str, seed: int, draw: int, size: Size, tallies: Mapping[str, Tally]) -> None:
    """Run every detector over one draw of one null, with changes that branch off on the way."""
    traffic = Traffic(ALL_NULLS[name], [seed, draw, list(ALL_NULLS).index(name)])
    reference = Reference(traffic)
    watches = {}
    for which, tally in tallies.items():
        fitted = reference.fitted(WINDOWS_PER_ALARM, DELTAS[which])
        assert fitted.certificate is not None
        watches[which] = Watch(fitted.detector(WINDOWS_PER_ALARM, HOUR_MS))
        tally.factors.append(fitted.certificate.factor)
        tally.seasons.append(fitted.calibration.season)
    every = size.windows // size.changes
    for t in range(size.windows):
        rows = traffic.window()
        window = reference.measure(rows)
        for watch in watches.values():
            watch.see(window, rows.start_ms)
        if name in size.delay_nulls and t % every == every - 1:
            for place, (shift, change) in enumerate(SHIFTS.items()):
                branch = traffic.branch(place)
                found = delays(branch, reference, watches, change, draw * size.changes + t // every)
                for which, delay in found.items():
                    tallies[which].delays.setdefault(shift, []).append(delay)
    for which, tally in tallies.items():
        tally.alarms.append(watches[which].alarms)
        tally.windows += size.windows


def delays(
    traffic: Traffic,
    reference: Reference,
    watches: Mapping[str, Watch],
    change: Shift,
    place: int,
) -> dict[str, int]:
    """Return the windows until each detector's first alarm after a change."""
    going = {which: Watch(w.detector, w.state) for which, w in watches.items()}
    found = dict.fromkeys(going, MOST_DELAY)
    for age in range(MOST_DELAY):
        rows = traffic.window(change, age=age, place=place)
        window = reference.measure(rows)
        for which in list(going):
            if going[which].see(window, rows.start_ms).alarm:
                found[which] = age + 1
                del going[which]
        if not going:
            break
    return found


def ablations(seed: int, windows: int) -> dict[str, float]:
    """Return alarms per budget of two detectors that leave out what the budget needs."""
    result = {}
    for name in ("iid", "ar"):
        traffic = Traffic(NULLS[name], [seed, 99, 1])
        reference = Reference(traffic)
        plain = without_whitening(reference.calibration(DELTAS["sensitive"]))
        watch = Watch(Detector(reference.contrasts, plain, WINDOWS_PER_ALARM, HOUR_MS))

        def counts(rows: Any, known: Reference = reference) -> list[Any]:
            state = observe(known.cuts, rows).state
            return [ordinary(cut, state.features[f]) for f, cut in known.cuts.feature.items()]

        exact = OneSample([counts(rows) for rows in reference.rows], WINDOWS_PER_ALARM)
        exact_alarms = 0
        for _ in range(windows):
            rows = traffic.window()
            watch.see(reference.measure(rows), rows.start_ms)
            exact_alarms += exact.see(counts(rows))
        budgets = windows / WINDOWS_PER_ALARM
        result[f"no_whitening_{name}"] = round(watch.alarms / budgets, 1)
        result[f"one_sample_{name}"] = round(exact_alarms / budgets, 1)
    return result


def peers(seed: int, size: Size) -> dict[str, dict[str, Any]]:
    """Return what the other tools say, by tool and null, of the first windows of the first draw."""
    result: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*size.peer_nulls, *size.far_peer_nulls)):
        traffic = Traffic(ALL_NULLS[name], [seed, 0, list(ALL_NULLS).index(name)])
        reference = [traffic.window() for _ in range(336)]
        runs = Runs(reference, [traffic.window() for _ in range(size.peer_windows)], seed)
        if name == "iid":
            for place, (shift, change) in enumerate(SHIFTS.items()):
                for again in range(size.peer_changes):
                    branch = traffic.branch(place + 100 * again)
                    windows = [
                        branch.window(change, age=age, place=again) for age in range(size.peer_cap)
                    ]
                    runs.changed.append((shift, windows))
        found = runs.here() if name in size.peer_nulls else {}
        if not size.far_peer_nulls:
            found |= dict.fromkeys(FAR_TOOLS, "not in --quick")
        elif name in size.far_peer_nulls:
            found |= runs.elsewhere()
        for tool, said in found.items():
            result.setdefault(tool, {})[name] = said
    return result


def measure(seed: int, size: Size) -> dict[str, Any]:
    """Measure everything."""
    tallies = {name: {which: Tally() for which in size.deltas} for name in ALL_NULLS}
    for name in ALL_NULLS:
        for draw in range(size.draws):
            measured(name, seed, draw, size, tallies[name])

    def mean_delays(name: str, which: str) -> dict[str, float]:
        return {k: round(float(np.mean(v)), 1) for k, v in tallies[name][which].delays.items()}

    result: dict[str, Any] = {
        "windows_per_alarm": WINDOWS_PER_ALARM,
        "floor": DELTAS["default"],
        "seed": seed,
        "size": msgspec.to_builtins(size),
    }
    for which in size.deltas:
        summaries = {name: tallies[name][which].summary() for name in ALL_NULLS}
        part = {
            "false_alarms_per_budget": {name: summaries[name]["per_budget"] for name in NULLS},
            "stress": {name: summaries[name] for name in STRESSES},
            "delay_windows": mean_delays("iid", which),
            "delay_windows_by_null": {n: mean_delays(n, which) for n in size.delay_nulls},
            "intervals": {name: summaries[name] for name in NULLS},
        }
        if which == "default":
            result |= part
        else:
            result[which] = {"floor": DELTAS[which], **part}
    result["changes_per_delay"] = size.draws * size.changes
    result["ablations"] = ablations(seed, size.ablation_windows)
    result["peers"] = peers(seed, size)
    return result


def table(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    lines = [
        f"false alarms per {WINDOWS_PER_ALARM} windows (budget 1) [95 % interval], then mean windows to a change's alarm"
    ]
    head = ["", "per budget", "worst", *SHIFTS]
    rows: list[Sequence[str]] = []
    for which in DELTAS:
        part = result if which == "default" else result.get(which)
        if part is None:
            continue
        for name, one in {**part["intervals"], **part["stress"]}.items():
            found = part["delay_windows_by_null"].get(name, {})
            rate = f"{one['per_budget']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
            title = f"{name}, floor {part['floor']}" + " (stress)" * (name in STRESSES)
            rows.append(
                [title, rate, f"{one['worst']:.2f}", *(str(found.get(s, "")) for s in SHIFTS)]
            )
    lines += aligned(head, rows)
    lines += ["", "without a part that the budget needs, per budget"]
    lines += [f"  {name} {value}" for name, value in result["ablations"].items()]
    cap = result["size"]["peer_cap"]
    lines += [
        "",
        f"other tools' rules, alarms per 720 windows; delays under iid, at most {cap} + 1",
    ]
    head = ["", *ALL_NULLS, *SHIFTS]
    rows = []
    for tool, found in result["peers"].items():
        said = [found.get(name, "") for name in ALL_NULLS]
        if any(isinstance(one, str) and one for one in said):
            rows.append([tool, next(one for one in said if one)])
            continue
        late = found.get("iid", {}).get("delay_windows", {})
        rates = [str(one["per_720"]) if one else "" for one in said]
        rows.append([tool, *rates, *(str(late.get(s, "")) for s in SHIFTS)])
    return "\n".join([*lines, *aligned(head, rows)])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns under each other."""
    full = [head, *(row for row in rows if len(row) == len(head))]
    widths = [max(len(row[k]) for row in full) for k in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in (head, *rows)
    ]


def main() -> None:
    """Measure and print."""
    parser = rig.options(
        __doc__, "one draw of 720 windows, few changes, only peers that run in this process"
    )
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")
    result = measure(asked.seed, QUICK if asked.quick else FULL)
    if asked.json:
        rig.show(result, as_json=True)
    else:
        print(table(result))


if __name__ == "__main__":
    main()
