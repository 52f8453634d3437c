"""The recipe trainer on real workers: searched, fitted, compared, and found again by a second process."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from trimtab.artifacts import FeatureSpec, verify_artifact
from trimtab.contracts.model import Contract, Feature, Retraining
from trimtab.events.types import TrafficArm
from trimtab.records import Run, RunState
from trimtab_agent.data import Prepared
from trimtab_agent.gate.gate import GateOutcome, judge, terms_of
from trimtab_agent.jobs import BackgroundJobs
from trimtab_agent.recipe_trainer import RecipeTrainer
from trimtab_agent.recipes.data import make_data, save_data, with_validation
from trimtab_agent.registry import local_path
from trimtab_agent.search.protocol import RecipeRef
from trimtab_agent.search.runner import fit_artifact
from trimtab_agent.search.workers import WorkerPool
from trimtab_agent.training import Compared, Fitted, Searched, Working

CONTRACT = Contract(
    name="m",
    task="binary",
    features={name: Feature(kind="number") for name in ("a", "b")},
    retraining=Retraining(trainer="tabular", trials=2, old_mix=(0.0,)),
)
CHAMPION_PARAMS: dict[str, Any] = {
    "hyperparameters": {"learning_rate": 0.01, "batch_size": 64, "dropout": 0.0},
    "architecture": {"layers": 1, "units": 32},
    "data": {},
}
SPECS = (FeatureSpec(name="a"), FeatureSpec(name="b"))


def rows(n: int, flipped: bool, seed: int) -> Any:
    """A line separates two classes; the champion learnt them the other way round."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    return make_data(x, 1 - y if flipped else y, specs=SPECS, classes=("no", "yes"), task="binary")


class TwoClouds:
    """Data that needs no archive."""

    def pin(self, *_: Any) -> dict[str, Any]:
        return {"from_ms": 0, "to_ms": 1}

    def prepare(
        self,
        snapshot: dict[str, Any],
        contract: Contract,
        directory: Path,
        champion: Sequence[FeatureSpec],
    ) -> Prepared:
        assert tuple(champion) == SPECS
        return Prepared(
            search=save_data(with_validation(rows(600, False, 1), 0.25, 0), directory / "s.npz"),
            gate=save_data(rows(300, False, 2), directory / "g.npz"),
            gate_from_ms=10,
            gate_to_ms=20,
            labelled_rows=900,
        )


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    made = WorkerPool(1)
    yield made
    made.close()


def until(ask: Callable[[], Any], wanted: type, within_s: float = 120) -> Any:
    deadline = time.monotonic() + within_s
    while isinstance(found := ask(), Working):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert isinstance(found, wanted), found
    return found


@pytest.mark.slow
@pytest.mark.tensorflow
def test_a_run_is_trained_by_one_process_and_found_by_the_next(
    pool: WorkerPool, tmp_path: Path
) -> None:
    old = save_data(rows(400, True, 3), tmp_path / "old.npz")
    made = fit_artifact(
        pool,
        recipe_ref=RecipeRef("tabular"),
        params=CHAMPION_PARAMS,
        steps=20,
        data=old,
        out_dir=tmp_path / "champion",
        created_ms=1,
    ).result(240)
    champion = TrafficArm("champion", "1", 1.0, Path(made.path).as_uri(), made.sha256)
    run = Run(
        id="r-1",
        model="m",
        incident_id=None,
        state=RunState.SEARCHING,
        reason="",
        created_ms=1,
        updated_ms=1,
        trainer="tabular",
        onset_ms=0,
        champion_version="1",
        snapshot={"from_ms": 0, "to_ms": 1},
    )

    def trainer() -> RecipeTrainer:
        return RecipeTrainer(pool, TwoClouds(), tmp_path / "runs", BackgroundJobs())

    now = round(time.time() * 1000)
    first = trainer()
    searched = until(lambda: first.search(run, CONTRACT, champion, now), Searched)
    second = trainer()
    again = until(lambda: second.search(run, CONTRACT, champion, now), Searched)
    assert again.params == searched.params
    assert again.numbers["trials"] == 2
    run = replace(run, params=searched.params, search=searched.numbers)
    fitted = until(lambda: first.fit(run, CONTRACT, champion), Fitted)
    assert until(lambda: first.fit(run, CONTRACT, champion), Fitted) == fitted
    verify_artifact(local_path(fitted.directory), fitted.sha256)
    run = replace(run, artifact_uri=fitted.directory, artifact_sha256=fitted.sha256)
    compared = until(lambda: first.compare(run, CONTRACT, champion), Compared)
    record = judge(compared.rows, terms_of(CONTRACT), [], 1)
    assert record.outcome is GateOutcome.BLESSED, record
    assert (record.from_ms, record.to_ms, record.rows) == (10, 21, 300)
    first.stop("r-1")
    assert not (tmp_path / "runs" / "r-1" / "data").exists()
