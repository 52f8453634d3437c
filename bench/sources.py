"""How often sources of the detector alarm when nothing happens, how soon when something does, what they cost.

    python bench/sources.py [--quick] [--json]

Latencies, gauges, volume, rates of rows. `alone_*`: alarms per budget (720 windows) of one source that has the
whole weight, over all seeds, each with a reference of 336 windows of its own; 1 is what is allowed. `worst_*`: the
worst seed. `shared_*`: of the same source in a model, where it has a twentieth of the weight. `delay_*`: windows
until a lasting change is found, median over seeds, the source alone. `update_ms_*`: reading and judging one window of
20 features, without segments and with as many as are taken. `outliers_us_per_row`, `combination_us_per_row`: scoring rows of
20 numbers and 4 categories, and matching two conditions, in batches of 1,000.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rig

sys.path.insert(0, str(rig.ROOT / "tests" / "support"))
import sources_traffic as traffic

from trimtab.contracts.combinations import parse_combination
from trimtab.detect.evidence import Detector
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.coded import Coded
from trimtab.stats.combinations import matches
from trimtab.stats.cuts import Cuts, build_category_cuts, build_numeric_cuts, model_cuts
from trimtab.stats.outliers import fit, outlying

REFERENCE, BUDGET, SHARE = 336, 720, 0.05
SEEDS, QUICK_SEEDS = 4, 2
WINDOWS, QUICK_WINDOWS = 2 * BUDGET, BUDGET
BATCH = 1_000
Windows = list[Observed]


def alarms(windows: Windows, windows_per_alarm: float) -> int:
    """How often a detector of the first 336 windows alarms on the others."""
    found = traffic.detector_of(
        traffic.BARE, windows[:REFERENCE], windows_per_alarm=windows_per_alarm
    )
    first = traffic.START + REFERENCE * traffic.HOUR
    said = traffic.follow(found, traffic.BARE, windows[REFERENCE:], first, unmute=True)
    return sum(one.alarm for one in said)


def budgets(seeds: int, count: int) -> dict[str, float]:
    """Alarms per budget of every null."""
    result: dict[str, float] = {}
    for name in traffic.NULLS:
        alone, shared = [], []
        for seed in range(seeds):
            windows = traffic.null(name, np.random.default_rng(seed), REFERENCE + count)
            alone.append(alarms(windows, BUDGET) * BUDGET / count)
            shared.append(alarms(windows, BUDGET / SHARE) * BUDGET / count)
        key = name.replace(", ", "_").replace(" ", "_")
        result[f"alone_{key}"] = float(np.mean(alone))
        result[f"worst_{key}"] = max(alone)
        result[f"shared_{key}"] = float(np.mean(shared))
    return result


def _cpu(rng: Any, count: int, mean: float) -> Windows:
    samples = traffic.autoregressive(rng, count * 60, 0.95, 8).reshape(count, 60)
    level = traffic.autoregressive(rng, count, 0.8, 3)
    return [traffic.gauge(row) for row in np.clip(mean + samples + level[:, None], 0.01, 100)]


def _latency(rng: Any, count: int, factor: float, slow: float = 0.0) -> Windows:
    level = traffic.autoregressive(rng, count, 0.8, 0.03)
    made = []
    for t in range(count):
        values = factor * np.exp(3 + level[t] + 0.5 * rng.normal(size=500))
        values[rng.random(500) < slow] *= 8
        made.append(traffic.latency(values))
    return made


def _volume(rng: Any, count: int, mean: float) -> Windows:
    return traffic.volumes(rng, count, mean, 9.0, 0.2)


def _timeouts(rng: Any, count: int, share: float) -> Windows:
    return traffic.timeouts(rng, count, share, 200)


CHANGES: dict[str, tuple[Callable[..., Windows], dict[str, float], dict[str, float]]] = {
    "cpu_40_to_60": (_cpu, {"mean": 40}, {"mean": 60}),
    "latency_half_more": (_latency, {"factor": 1.0}, {"factor": 1.5}),
    "latency_a_tenth_more": (_latency, {"factor": 1.0}, {"factor": 1.1}),
    "slow_tail_4_percent": (_latency, {"factor": 1.0}, {"factor": 1.0, "slow": 0.04}),
    "volume_to_0.3": (_volume, {"mean": 1_000}, {"mean": 300}),
    "timeouts_1_to_5_percent": (_timeouts, {"share": 0.01}, {"share": 0.05}),
}


def delays(seeds: int) -> dict[str, float]:
    """Median windows until each change is found; 100 where it is not in 100."""
    result = {}
    first = traffic.START + REFERENCE * traffic.HOUR
    for name, (make, before, after) in CHANGES.items():
        found = []
        for seed in range(seeds):
            rng = np.random.default_rng(100 + seed)
            usual = make(rng, REFERENCE, **before)
            detector = traffic.detector_of(traffic.BARE, usual)
            said = traffic.follow(detector, traffic.BARE, make(rng, 100, **after), first)
            found.append(next((at + 1 for at, one in enumerate(said) if one.alarm), 100))
        result[f"delay_{name}"] = float(np.median(found))
    return result


def odd_rows(seeds: int, count: int) -> dict[str, float]:
    """Alarms per budget of the outliers of usual rows, and windows until rows far out in three of ten features are found."""
    alone: list[float] = []
    delay: dict[float, list[int]] = {0.005: [], 0.01: [], 0.02: []}
    first = traffic.START + REFERENCE * traffic.HOUR
    for seed in range(seeds):
        rng = np.random.default_rng(200 + seed)
        cuts = traffic.scored_cuts(rng)
        detector = traffic.detector_of(cuts, traffic.odd_rows(cuts, rng, REFERENCE))
        said = traffic.follow(
            detector, cuts, traffic.odd_rows(cuts, rng, count), first, unmute=True
        )
        alone.append(sum(one.alarm for one in said) * BUDGET / count)
        for share, found in delay.items():
            said = traffic.follow(detector, cuts, traffic.odd_rows(cuts, rng, 100, share), first)
            found.append(next((at + 1 for at, one in enumerate(said) if one.alarm), 100))
    return {
        "alone_outliers": float(np.mean(alone)),
        "worst_outliers": max(alone),
        **{
            f"delay_outliers_{100 * share:g}_percent": float(np.median(found))
            for share, found in delay.items()
        },
    }


def _fastest(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return best


def updates(repeats: int) -> dict[str, float]:
    """Milliseconds a window of 20 features, by segments."""
    rng = np.random.default_rng(0)
    numbers = {f"n{k}": rng.normal(size=5_000) for k in range(20)}
    cuts = model_cuts((name, build_numeric_cuts(values)) for name, values in numbers.items())
    columns = {name: Column(values) for name, values in numbers.items()}
    state = observe_pane(
        cuts,
        5_000,
        numeric=columns,
        categories={},
        statuses={},
        rules={},
        latency_ms=np.exp(rng.normal(3, 0.5, 5_000)),
    )
    result = {}
    for segments in (0, 20):
        window = Observed(state=state, segments={f"s={k}": state for k in range(segments)})
        detector = traffic.detector_of(cuts, [window] * 60)
        result[f"contrasts_{segments}_segments"] = float(detector.weights.size)
        result[f"update_ms_{segments}_segments"] = 1_000 * _one(detector, cuts, window, repeats)
    return result


def _one(detector: Detector, cuts: Any, window: Observed, repeats: int) -> float:
    start_ms = traffic.START + 60 * traffic.HOUR

    def run() -> None:
        detector.update(detector.start(), detector.contrasts.measure(window, cuts), start_ms)

    return _fastest(run, repeats)


def rows(repeats: int) -> dict[str, float]:
    """Microseconds a row to score it, and to match a combination."""
    rng = np.random.default_rng(0)
    numbers = {f"n{k}": rng.normal(size=20_000) for k in range(20)}
    words = np.array([f"v{k}" for k in range(8)])
    categories = {
        f"c{k}": Coded.of_keys(words[rng.integers(0, 8, 20_000)].tolist()) for k in range(4)
    }
    features: dict[str, Cuts] = {
        name: build_numeric_cuts(values) for name, values in numbers.items()
    }
    features |= {name: build_category_cuts(values) for name, values in categories.items()}
    cuts = model_cuts(features.items(), outliers=fit(features, numbers, categories, 20_000))
    few = {name: values[:BATCH] for name, values in numbers.items()}
    coded = {name: values.take(slice(BATCH)) for name, values in categories.items()}
    combination = parse_combination("n0 < -1 and c0 = 'v1'")
    return {
        "outliers_us_per_row": 1e6
        / BATCH
        * _fastest(lambda: outlying(cuts, few, coded, BATCH), repeats),
        "combination_us_per_row": 1e6
        / BATCH
        * _fastest(lambda: matches(combination, few, coded, BATCH), repeats),
    }


def main() -> None:
    """Run, print."""
    given = rig.options(__doc__, "2 seeds and half of the windows").parse_args()
    seeds, count, repeats = (
        (QUICK_SEEDS, QUICK_WINDOWS, 20) if given.quick else (SEEDS, WINDOWS, 100)
    )
    result = budgets(seeds, count) | delays(seeds) | odd_rows(2 * seeds, count)
    result |= updates(repeats) | rows(repeats)
    rig.show(result, as_json=given.json, seeds=seeds, windows=count)


if __name__ == "__main__":
    main()
