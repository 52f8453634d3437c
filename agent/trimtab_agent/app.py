"""The agent process: everything is wired here, by hand."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy.orm  # noqa: F401 - Optuna and MLflow import it in threads, where one half done fails
from sqlalchemy import Connection

from trimtab import logs, structs
from trimtab.records import RunState
from trimtab.settings import Settings
from trimtab.store import baselines
from trimtab.store.agent import list_runs
from trimtab.store.engine import Store, open_store
from trimtab.store.leases import owner_name
from trimtab_agent.context import Deps
from trimtab_agent.jobs import BackgroundJobs
from trimtab_agent.recipe_trainer import ArchiveSource, RecipeTrainer
from trimtab_agent.registry import MlflowRegistry, sweep_parts
from trimtab_agent.rollout.router import TrafficRow
from trimtab_agent.scheduler import Agent, run_ticks
from trimtab_agent.search.workers import WorkerPool
from trimtab_agent.sight import StoreSight

log = logs.get("agent")


class StoreBaselines:
    """The baselines of the store (`context.Baselines`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def rebase(
        self,
        model: str,
        from_ms: int,
        to_ms: int,
        version: str,
        source: str,
        now_ms: int,
        fence: Callable[[Connection], object],
    ) -> int:
        """See `context.Baselines`."""
        return baselines.rebase(
            self._store, model, from_ms, to_ms, source, now_ms, version=version, fence=fence
        )

    def active(self, model: str) -> int | None:
        """See `context.Baselines`."""
        found = baselines.active_baseline(self._store, model)
        return None if found is None else found.id

    def restore(self, connection: Connection, model: str, baseline_id: int) -> None:
        """See `context.Baselines`."""
        baselines.restore(connection, model, baseline_id)


def wire(settings: Settings, store: Store) -> Deps:
    """The seams of a real agent; starts nothing but idle threads."""
    jobs = BackgroundJobs()
    source = ArchiveSource(store)
    artifacts = Path(settings.registry.artifacts)
    artifacts.mkdir(parents=True, exist_ok=True)
    pool = WorkerPool(settings.agent.workers)
    trainer = RecipeTrainer(
        pool,
        source,
        settings.data_dir / "agent" / "runs",
        jobs,
        lambda model: earlier_winners(store, model),
    )
    # The first trial should not wait for TensorFlow's import (4 to 17 s).
    threading.Thread(target=_warm, args=(pool,), name="warm-workers", daemon=True).start()
    return Deps(
        trainer=trainer,
        source=source,
        registry=MlflowRegistry(settings.registry.uri),
        router=TrafficRow(),
        sight=StoreSight(store),
        baselines=StoreBaselines(store),
        jobs=jobs,
        artifacts=artifacts,
    )


def _warm(pool: WorkerPool) -> None:
    try:
        pool.warm()
    except Exception:
        log.exception("the training workers did not start yet", action="workers_not_warm")


def earlier_winners(store: Store, model: str) -> list[dict[str, Any]]:
    """Parameters of the model's blessed runs, newest first: a search tries them again."""
    return [run.params for run in list_runs(store, model) if run.state is RunState.BLESSED][:3]


def run_agent(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Run the agent until `stop` is set; `ready` is called when its first tick may begin.

    A clean stop ends the workers and gives the lease back. After a crash the rows say where to go on.
    """
    structs.prepare()
    store = open_store(settings.store.url)
    deps = wire(settings, store)
    swept = sweep_parts(deps.artifacts)
    if swept:
        log.info("removed half-done copies of artifacts", action="artifacts_swept", count=swept)
    agent = Agent(store, deps, owner_name(), round(settings.agent.lease_s * 1000))
    try:
        ready()
        run_ticks(agent, settings.agent.tick_s, stop)
    finally:
        deps.trainer.close()
        deps.jobs.close()
        store.close()
