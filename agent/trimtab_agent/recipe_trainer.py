"""The trainer every installation has: recipes on warm worker processes, data from the archive.

Everything of a run lies in `<scratch>/<run>/`: the data files, the study, the artifact, the answers.
What is there already is used, so a process that was killed goes on where it was.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimtab.artifacts import FeatureSpec, Manifest, verify_artifact
from trimtab.contracts.model import Contract, duration_ms
from trimtab.errors import TrimtabError
from trimtab.events.types import TrafficArm
from trimtab.records import Run
from trimtab.store.engine import Store
from trimtab_agent.data import Prepared, pin_snapshot, prepare, snapshot_from
from trimtab_agent.gate.gate import Footprint, HeldOut
from trimtab_agent.jobs import Jobs
from trimtab_agent.recipes.data import TrainingData, load_data
from trimtab_agent.registry import local_path
from trimtab_agent.search.protocol import ArtifactResult, EvaluateResult, RecipeRef
from trimtab_agent.search.runner import Pending, Search, SearchPlan, evaluate, read_answers, refit
from trimtab_agent.search.space import DataSpace, data_space_for
from trimtab_agent.search.study import SearchSpec, TrialRecord, sqlite_url
from trimtab_agent.search.workers import WorkerError, WorkerPool, WorkerStoppedError
from trimtab_agent.training import Compared, DataSource, Fitted, Searched, WorkFailed, Working

_SAMPLERS = {"bayesian": "tpe", "random": "random", "grid": "grid"}


class ArchiveSource:
    """Training data from trimtab's archive (see `trimtab_agent.data`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def pin(
        self, contract: Contract, run_id: str, onset_ms: int, now_ms: int, gate_after_ms: int
    ) -> dict[str, Any]:
        """Fix the archive's files since the onset. Raises DataError."""
        pinned: dict[str, Any] = msgspec.to_builtins(
            pin_snapshot(
                self._store,
                contract,
                run_id=run_id,
                onset_ms=onset_ms,
                now_ms=now_ms,
                gate_after_ms=gate_after_ms,
            )
        )
        return pinned

    def prepare(
        self,
        snapshot: dict[str, Any],
        contract: Contract,
        directory: Path,
        champion: Sequence[FeatureSpec],
    ) -> Prepared:
        """Read, join and split the pinned files. Raises DataError."""
        return prepare(snapshot_from(snapshot), contract, directory, champion=champion)


class _Data(msgspec.Struct, frozen=True):
    """Prepared data and the part of the space that matters for it."""

    prepared: Prepared
    space: DataSpace


class RecipeTrainer:
    """Searches, fits and compares on a pool of workers (see `training.Trainer`)."""

    def __init__(
        self,
        pool: WorkerPool,
        source: DataSource,
        scratch: Path,
        jobs: Jobs,
        earlier: Callable[[str], list[dict[str, Any]]] = lambda _model: [],
    ) -> None:
        """`earlier` gives the parameters of a model's earlier winners, tried first again."""
        self._pool = pool
        self._source = source
        self._scratch = scratch
        self._jobs = jobs
        self._earlier = earlier
        self._searches: dict[str, Search] = {}
        self._pending: dict[tuple[str, str], Pending[Any]] = {}

    # --- the three questions ----------------------------------------------------------------------

    def search(
        self, run: Run, contract: Contract, champion: TrafficArm, now_ms: int
    ) -> Working | Searched | WorkFailed:
        """Step the run's study."""
        try:
            data = self._data(run, contract, champion)
        except TrimtabError as error:
            return WorkFailed(str(error))
        if data is None:
            return Working({"stage": "preparing the data"})
        if run.id not in self._searches:
            plan = self._plan(run, contract, champion, data)
            self._searches[run.id] = Search(plan, self._pool)
        progress = self._searches[run.id].advance(now_ms)
        numbers = {**msgspec.to_builtins(progress), "labelled_rows": data.prepared.labelled_rows}
        numbers["running"] = {str(key): value for key, value in progress.running.items()}
        if progress.state == "failed":
            return WorkFailed(progress.reason)
        if progress.state == "done" and progress.best is not None:
            return Searched(progress.best.params, numbers)
        return Working(numbers)

    def fit(
        self, run: Run, contract: Contract, champion: TrafficArm
    ) -> Working | Fitted | WorkFailed:
        """Refit the winner on all rows but the gate's."""
        try:
            data = self._data(run, contract, champion)
        except TrimtabError as error:
            return WorkFailed(str(error))
        if data is None:
            return Working()
        winner = msgspec.convert(run.search["best"], TrialRecord)

        def start() -> Pending[ArtifactResult]:
            return refit(
                self._pool,
                recipe_ref=_recipe(contract),
                winner=winner,
                data=data.prepared.search,
                out_dir=self._folder(run.id) / "artifact",
                created_ms=run.created_ms,
            )

        result = self._ask(run.id, "fit", start)
        if result is None or isinstance(result, WorkFailed):
            return Working() if result is None else result
        return Fitted(Path(result.path).as_uri(), result.sha256)

    def compare(
        self, run: Run, contract: Contract, champion: TrafficArm
    ) -> Working | Compared | WorkFailed:
        """Let both models answer the gate's rows, one after the other on the same worker."""
        try:
            data = self._data(run, contract, champion)
            if data is None:
                return Working()
            old = self._answers(
                run, contract, data, "champion", champion.artifact_uri, champion.artifact_sha256
            )
            if not isinstance(old, EvaluateResult):
                return Working() if old is None else old
            assert run.artifact_uri is not None
            assert run.artifact_sha256 is not None
            new = self._answers(
                run, contract, data, "challenger", run.artifact_uri, run.artifact_sha256
            )
            if not isinstance(new, EvaluateResult):
                return Working() if new is None else new
            return Compared(_held_out(contract, data.prepared, old, new))
        except TrimtabError as error:
            return WorkFailed(str(error))

    def stop(self, run_id: str) -> None:
        """Drop a run's work and its large files; the study stays to be looked at."""
        search = self._searches.pop(run_id, None)
        if search is not None:
            search.stop()
        for key in [key for key in self._pending if key[0] == run_id]:
            del self._pending[key]
        for name in ("data", "artifact"):
            shutil.rmtree(self._folder(run_id) / name, ignore_errors=True)

    def close(self) -> None:
        """Stop every search and end the workers."""
        for search in self._searches.values():
            search.stop()
        self._pool.close()

    # --- parts ------------------------------------------------------------------------------------

    def _folder(self, run_id: str) -> Path:
        return self._scratch / run_id

    def _data(self, run: Run, contract: Contract, champion: TrafficArm) -> _Data | None:
        """The run's data files, made aside when they are not there yet. Raises TrimtabError."""
        folder = self._folder(run.id) / "data"
        marker = folder / "prepared.json"
        if marker.exists():
            return msgspec.json.decode(marker.read_bytes(), type=_Data)

        def work() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            specs = _manifest(champion).signature.features
            prepared = self._source.prepare(run.snapshot, contract, folder, specs)
            wanted = DataSpace(old_mix=contract.retraining.old_mix)
            space = data_space_for(load_data(prepared.search), wanted)
            part = marker.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(_Data(prepared, space)))
            part.replace(marker)

        done, _ = self._jobs.poll(f"data:{run.id}", work)
        return msgspec.json.decode(marker.read_bytes(), type=_Data) if done else None

    def _plan(self, run: Run, contract: Contract, champion: TrafficArm, data: _Data) -> SearchPlan:
        rules = contract.retraining
        warm = [dict(_manifest(champion).params), *self._earlier(run.model)]
        return SearchPlan(
            run_id=run.id,
            storage_url=sqlite_url(self._folder(run.id).absolute() / "study.db"),
            recipe=_recipe(contract),
            data=data.prepared.search,
            data_space=data.space,
            spec=SearchSpec(
                trials=rules.trials,
                seconds=duration_ms(rules.search_limit) / 1000,
                sampler=_SAMPLERS[rules.search],  # type: ignore[arg-type]
                warm_start=tuple(warm),
            ),
        )

    def _answers(
        self, run: Run, contract: Contract, data: _Data, name: str, uri: str, sha256: str
    ) -> EvaluateResult | WorkFailed | None:
        directory = local_path(uri)

        def start() -> Pending[EvaluateResult]:
            name_of_recipe = verify_artifact(directory, sha256).recipe
            return evaluate(
                self._pool,
                recipe_ref=RecipeRef(name_of_recipe, dict(contract.retraining.options)),
                artifact_dir=directory,
                sha256=sha256,
                data=data.prepared.gate,
                out_file=self._folder(run.id) / "data" / f"{name}.npz",
            )

        found: EvaluateResult | WorkFailed | None = self._ask(
            run.id, f"compare:{name}", start, keep=True
        )
        return found

    def _ask(
        self, run_id: str, what: str, start: Callable[[], Pending[Any]], *, keep: bool = False
    ) -> Any:
        """Result of a worker's task, started at the first call; None while it runs."""
        key = (run_id, what)
        if key not in self._pending:
            self._pending[key] = start()
        if not self._pending[key].done:
            return None
        pending = self._pending[key] if keep else self._pending.pop(key)
        try:
            return pending.result(0)
        except WorkerStoppedError:
            return None  # we are being stopped; whoever comes next asks again
        except WorkerError as error:
            self._pending.pop(key, None)
            return WorkFailed(str(error))


def _recipe(contract: Contract) -> RecipeRef:
    return RecipeRef(contract.retraining.trainer, dict(contract.retraining.options))


def _manifest(arm: TrafficArm) -> Manifest:
    return verify_artifact(local_path(arm.artifact_uri), arm.artifact_sha256)


def _held_out(
    contract: Contract, prepared: Prepared, old: EvaluateResult, new: EvaluateResult
) -> HeldOut:
    champion, challenger = read_answers(old), read_answers(new)
    return HeldOut(
        labels=champion.labels,
        champion=champion.predicted,
        challenger=challenger.predicted,
        from_ms=prepared.gate_from_ms,
        to_ms=prepared.gate_to_ms + 1,
        segments=_segments(contract, load_data(prepared.gate)),
        champion_costs=Footprint(old.artifact_bytes, old.one_row_median_ms),
        challenger_costs=Footprint(new.artifact_bytes, new.one_row_median_ms),
    )


def _segments(contract: Contract, data: TrainingData) -> dict[str, Any]:
    """Masks of the declared segments that are categorical inputs of the model."""
    masks: dict[str, Any] = {}
    for index, spec in enumerate(data.specs):
        if spec.name not in contract.windows.segments or spec.kind != "category":
            continue
        codes = np.asarray(data.features[:, index])
        for code, value in enumerate(spec.values):
            masks[f"{spec.name}={value}"] = codes == code
    return masks
