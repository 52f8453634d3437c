"""How long a search takes and what it gains: the demo's digits under a worse camera.

A champion is fitted on 700 clean digits. The camera degrades; 2,400 labelled rows of 600 other
digits are searched with 12 trials of TPE on one worker with one CPU thread; the winner is refitted
and judged, like the champion, on degraded digits that neither has seen.

Usage: python bench/search_digits.py [--quick] [--json]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.artifacts import FeatureSpec
from trimtab_agent.demo.camera import CLEAN, STEPS, Lens, see
from trimtab_agent.demo.digits import CLASSES, PIXELS, Digits, Pool, champion_data
from trimtab_agent.recipes.data import TrainingData, concatenate, make_data, save_data
from trimtab_agent.recipes.data import with_validation as hold_out
from trimtab_agent.search.protocol import ArtifactResult, RecipeRef
from trimtab_agent.search.runner import SearchPlan, evaluate, fit_artifact, refit, run_search
from trimtab_agent.search.space import DataSpace, data_space_for
from trimtab_agent.search.study import SearchSpec, sqlite_url
from trimtab_agent.search.workers import WorkerPool

RECIPE = RecipeRef("image-cnn", {"shape": [8, 8, 1], "range": [0, 1]})
CHAMPION = {
    "hyperparameters": {"learning_rate": 1e-3, "batch_size": 32, "dropout": 0.2},
    "architecture": {"filters": 8, "depth": 2, "dense": 64},
    "data": {"window": 1.0, "old_mix": 1.0, "class_balance": "none"},
    "seed": 1,
}


def seen(digits: Digits, pool: Pool, lens: Lens, rows: int, seed: int) -> TrainingData:
    """Return `rows` labelled rows of a pool, its digits in turn, as the camera sees them."""
    images, labels = digits.pool(pool)
    turn = np.arange(rows) % len(images)
    pixels = see(images[turn], lens, np.random.default_rng(seed))
    return make_data(
        pixels.reshape(rows, -1),
        labels[turn].astype(np.int64),
        specs=tuple(FeatureSpec(name) for name in PIXELS),
        classes=CLASSES,
        event_time_ms=np.arange(rows) * 10 + 10**9,
    )


def measure(folder: Path, *, trials: int, seed: int) -> dict[str, Any]:
    """Run the whole measurement and return its figures."""
    digits = Digits(seed)
    old = champion_data(digits, CLEAN, np.random.default_rng(seed))
    degraded = seen(digits, "early", STEPS[-1], 2400, seed)
    data = hold_out(concatenate(old, degraded), 0.2)
    pool = WorkerPool(1)
    figures: dict[str, Any] = {"trials": trials, "seed": seed}
    try:
        began = time.perf_counter()
        champion = fit_artifact(
            pool,
            recipe_ref=RECIPE,
            params=CHAMPION,
            steps=12,
            data=save_data(old, folder / "old.npz"),
            out_dir=folder / "champion",
            created_ms=0,
        ).result(300)
        figures["start_and_champion_s"] = time.perf_counter() - began
        figures["champion_s"] = champion.seconds
        lenses = {"clean": CLEAN, **{f"{x.blur_sigma}/{x.contrast}": x for x in STEPS}}
        unseen = {
            name: save_data(seen(digits, "late", lens, 1000, seed), folder / f"unseen-{index}.npz")
            for index, (name, lens) in enumerate(lenses.items())
        }

        def accuracies(artifact: ArtifactResult) -> dict[str, float]:
            return {
                name: evaluate(
                    pool,
                    recipe_ref=RECIPE,
                    artifact_dir=Path(artifact.path),
                    sha256=artifact.sha256,
                    data=ref,
                    out_file=folder / "answers.npz",
                )
                .result(300)
                .value
                for name, ref in unseen.items()
            }

        figures["champion"] = accuracies(champion)
        ref = save_data(data, folder / "data.npz")
        plan = SearchPlan(
            run_id=f"bench-{seed}",
            storage_url=sqlite_url(folder / "study.db"),
            recipe=RECIPE,
            data=ref,
            data_space=data_space_for(data, DataSpace()),
            spec=SearchSpec(trials=trials, seconds=600, warm_start=(CHAMPION,)),
        )
        began = time.perf_counter()
        search = run_search(plan, pool)
        while (progress := search.advance(round(time.time() * 1000))).state == "searching":
            search.wait(0.2)
        figures["search_s"] = time.perf_counter() - began
        if progress.state == "failed" or progress.best is None:
            raise SystemExit(f"the search failed: {progress.reason}")
        figures["best_value"] = progress.best.value
        figures["best_params"] = progress.best.params
        winner = refit(
            pool,
            recipe_ref=RECIPE,
            winner=progress.best,
            data=ref,
            out_dir=folder / "challenger",
            created_ms=0,
        ).result(300)
        figures["refit_s"] = winner.seconds
        figures["challenger"] = accuracies(winner)
    finally:
        pool.close()
    return figures


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="4 trials instead of 12")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), trials=4 if arguments.quick else 12, seed=arguments.seed)
    if arguments.json:
        json.dump(figures, sys.stdout, indent=1)
        print()
        return
    for name in ("start_and_champion_s", "champion_s", "search_s", "refit_s", "best_value"):
        print(f"{name:22} {figures[name]:8.3f}")
    print(f"{'blur/contrast':22} champion challenger")
    for name, value in figures["champion"].items():
        print(f"{name:22} {value:8.3f} {figures['challenger'][name]:10.3f}")


if __name__ == "__main__":
    main()
