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
from sklearn.datasets import load_digits

from trimtab.artifacts import FeatureSpec
from trimtab_agent.demo.camera import CLEAN, STEPS, Lens, see
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
TRAIN, STREAMED = 700, 600


class Digits:
    """The digits, split by identity so that no figure is inflated by repeats."""

    def __init__(self, seed: int) -> None:
        digits = load_digits()
        order = np.random.default_rng(seed).permutation(len(digits.target))
        self.images = (digits.images / 16.0).astype(np.float32)[order]
        self.labels = digits.target[order]
        self.rng = np.random.default_rng(seed + 1)

    def seen(self, first: int, last: int, lens: Lens | None, rows: int, start: int) -> TrainingData:
        """Return `rows` rows drawn in turn from the identities [first, last) through the lens."""
        identities = first + np.arange(rows) % (last - first)
        images = self.images[identities]
        pixels = images if lens is None else see(images, lens, self.rng)
        return make_data(
            pixels.reshape(rows, -1),
            self.labels[identities],
            specs=tuple(FeatureSpec(f"pixel_{index}") for index in range(64)),
            classes=tuple(str(digit) for digit in range(10)),
            event_time_ms=start + np.arange(rows) * 10,
            original=lens is None,
        )


def measure(folder: Path, *, trials: int, seed: int) -> dict[str, Any]:
    """Run the whole measurement and return its figures."""
    digits = Digits(seed)
    end = len(digits.images)
    old = digits.seen(0, TRAIN, None, TRAIN, 0)
    degraded = digits.seen(TRAIN, TRAIN + STREAMED, STEPS[-1], 2400, 10**9)
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
            name: save_data(
                digits.seen(TRAIN + STREAMED, end, lens, 2 * (end - TRAIN - STREAMED), 0),
                folder / f"unseen-{index}.npz",
            )
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
