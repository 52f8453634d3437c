# ruff: noqa: ARG002 - a double ignores what its script does not need
"""A scripted world for the agent: what it sees, trains and touches, with a clock that survives a crash.

The real `reconcile`, the real store and the real artifacts run in it; only the monitor's figures, the
training and the registry are scripted, from the time and the traffic history alone. Whatever the
world does outside the store lies in files, and every write has a failpoint before and after it.

    1 s windows, RATE rows per second; performance falls DRIFT_S after the start
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from trimtab.artifacts import FeatureSpec, make_signature, write_manifest
from trimtab.contracts.model import Alarms, Canary, Contract, Feature, Labels, Retraining, Windows
from trimtab.detect.diagnosis import Signs
from trimtab.detect.label_signals import LabelSignals
from trimtab.events.types import Traffic, TrafficArm
from trimtab.records import Evidence, Finding, Kind, Outcome, Reason, Run, Verdict
from trimtab.store import agent as records
from trimtab.store.engine import Store, open_store
from trimtab_agent.context import Deps
from trimtab_agent.data import Prepared
from trimtab_agent.gate.gate import Footprint, HeldOut
from trimtab_agent.jobs import InlineJobs
from trimtab_agent.rollout.assess import ArmTally
from trimtab_agent.scheduler import Agent
from trimtab_agent.training import Compared, Fitted, Searched, WorkFailed, Working

MODEL = "scripted"
START_MS = 1_700_000_000_000
RATE = 400
DRIFT_S = 4
TICK_MS = 1_000
LEASE_MS = 2_500
KILLED = 137
"""Exit status of a process that a failpoint ended."""

Endings = ("promote", "roll_back", "harm_later")


class Failpoints:
    """Ends the process, as `kill -9` does, when point number `at` is reached."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.passed = 0
        self.names: list[str] = []

    def __call__(self, name: str) -> None:
        """Pass a point."""
        if self.passed == self.at:
            os._exit(KILLED)
        self.passed += 1
        self.names.append(name)


class CrashingStore(Store):
    """A store whose every write transaction has a failpoint before its commit and after it."""

    def __init__(self, url: str, failpoints: Failpoints) -> None:
        super().__init__(open_store(url).engine)
        self._failpoints = failpoints

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction between two failpoints."""
        with super().write() as connection:
            yield connection
            self._failpoints("before a commit")
        self._failpoints("after a commit")


class WorldFile:
    """A JSON file that outlives the process, with a failpoint before and after each write."""

    def __init__(self, path: Path, empty: dict[str, Any], failpoints: Failpoints) -> None:
        self._path = path
        self._empty = empty
        self._failpoints = failpoints

    def read(self) -> dict[str, Any]:
        """The content, or the empty one."""
        if not self._path.exists():
            return dict(deepcopy(self._empty))
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    def change(self, change: Callable[[dict[str, Any]], None], *, point: bool = True) -> None:
        """Read, change and write, atomically."""
        content = self.read()
        change(content)
        if point:
            self._failpoints(f"before writing {self._path.name}")
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(content))
        part.replace(self._path)
        if point:
            self._failpoints(f"after writing {self._path.name}")


class ScriptedRegistry:
    """A registry in a file. It makes a second version when it is asked to create one twice."""

    def __init__(self, file: WorldFile) -> None:
        self._file = file

    def ensure_version(
        self,
        model: str,
        version: str,
        run_id: str,
        artifact_uri: str,
        sha256: str,
        tags: Mapping[str, str],
    ) -> str:
        """See `registry.Registry`."""
        for known in self._file.read()["versions"]:
            if known["run"] == run_id and known["sha256"] == sha256:
                return str(known["number"])
        made = {"run": run_id, "sha256": sha256, "version": version, "uri": artifact_uri, **tags}

        def add(content: dict[str, Any]) -> None:
            content["versions"].append({**made, "number": len(content["versions"]) + 1})

        self._file.change(add)
        return str(len(self._file.read()["versions"]))

    def aliases(self, model: str) -> dict[str, str]:
        """See `registry.Registry`."""
        return dict(self._file.read()["aliases"])

    def set_alias(self, model: str, alias: str, version: str | None) -> None:
        """See `registry.Registry`; each real change is logged."""
        if self.aliases(model).get(alias) == version:
            return

        def point(content: dict[str, Any]) -> None:
            content["aliases"].pop(alias, None)
            if version is not None:
                content["aliases"][alias] = version
            content["alias_log"].append([alias, version])

        self._file.change(point)


class ScriptedBaselines:
    """Baselines in a file: number 1 is the one before any promotion."""

    def __init__(self, file: WorldFile) -> None:
        self._file = file

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
        """See `context.Baselines`; the file is written at once, so there is no transaction to fence."""
        del fence, version
        sources = self._file.read()["sources"]
        if source in sources:
            return int(sources.index(source)) + 1

        def add(content: dict[str, Any]) -> None:
            content["sources"].append(source)
            content["active"] = len(content["sources"])

        self._file.change(add)
        return len(sources) + 1

    def active(self, model: str) -> int | None:
        """See `context.Baselines`."""
        return int(self._file.read()["active"])

    def restore(self, connection: Connection, model: str, baseline_id: int) -> None:
        """See `context.Baselines`."""
        self._file.change(lambda content: content.update(active=baseline_id))


class ScriptedSource:
    """Pins bounds; there are no files."""

    def pin(
        self, contract: Contract, run_id: str, onset_ms: int, now_ms: int, gate_after_ms: int
    ) -> dict[str, Any]:
        """See `training.DataSource`."""
        return {
            "model": contract.name,
            "run_id": run_id,
            "from_ms": onset_ms,
            "to_ms": now_ms,
            "gate_after_ms": gate_after_ms,
        }

    def prepare(
        self,
        snapshot: dict[str, Any],
        contract: Contract,
        directory: Path,
        champion: Sequence[FeatureSpec],
    ) -> Prepared:
        """Never asked: the scripted trainer needs no files."""
        raise AssertionError(f"{snapshot} {contract.name} {directory} {champion}")


class ScriptedTrainer:
    """Searches for two looks, fits an artifact of one small file, and compares better by far."""

    def __init__(self, scratch: Path, failpoints: Failpoints) -> None:
        self._scratch = scratch
        self._failpoints = failpoints
        self._looks: dict[str, int] = {}

    def search(
        self,
        run: Run,
        contract: Contract,
        champion: TrafficArm,
        now_ms: int,
    ) -> Working | Searched | WorkFailed:
        """See `training.Trainer`."""
        looks = self._looks[run.id] = self._looks.get(run.id, 0) + 1
        if looks < 2:
            return Working({"trials": looks})
        return Searched({"hyperparameters": {"learning_rate": 0.01}}, {"trials": looks})

    def fit(
        self,
        run: Run,
        contract: Contract,
        champion: TrafficArm,
    ) -> Working | Fitted | WorkFailed:
        """See `training.Trainer`."""
        folder = self._scratch / run.id
        if not (folder / "manifest.json").exists():
            self._failpoints("before fitting")
            folder.mkdir(parents=True, exist_ok=True)
            sha256 = make_artifact(folder, run.created_ms)
            self._failpoints("after fitting")
            return Fitted(folder.as_uri(), sha256)
        from trimtab.artifacts import artifact_digest

        return Fitted(folder.as_uri(), artifact_digest(folder))

    def compare(
        self,
        run: Run,
        contract: Contract,
        champion: TrafficArm,
    ) -> Working | Compared | WorkFailed:
        """See `training.Trainer`."""
        rng = np.random.default_rng(1)
        labels = rng.integers(0, 2, 600)
        wrong = {
            share: np.where(rng.random(600) < share, 1 - labels, labels) for share in (0.4, 0.05)
        }
        costs = Footprint(1_000, 1.0)
        return Compared(
            HeldOut(
                labels=labels,
                champion=wrong[0.4],
                challenger=wrong[0.05],
                from_ms=run.snapshot["to_ms"] - 1_000,
                to_ms=run.snapshot["to_ms"],
                champion_costs=costs,
                challenger_costs=costs,
            )
        )

    def stop(self, run_id: str) -> None:
        """See `training.Trainer`."""
        self._looks.pop(run_id, None)

    def close(self) -> None:
        """Nothing runs."""


def make_artifact(folder: Path, created_ms: int) -> str:
    """Write an artifact of one small file; returns its digest."""
    (folder / "model.bin").write_bytes(b"weights")
    signature = make_signature("binary", (FeatureSpec(name="x"),), ("0", "1"))
    return write_manifest(
        folder,
        recipe="scripted",
        framework="none",
        signature=signature,
        params={},
        created_ms=created_ms,
    )


def scripted_contract(**retraining: Any) -> Contract:
    """The contract of the scripted model."""
    rules: dict[str, Any] = {
        "mode": "auto",
        "trainer": "scripted",
        "min_labels": 3 * RATE,
        "cooldown": "1 day",
        **retraining,
    }
    return Contract(
        name=MODEL,
        task="binary",
        features={"x": Feature(kind="number")},
        labels=Labels(arrive="within 1 h", sources=("outcome",)),
        windows=Windows(length="1s"),
        alarms=Alarms(rules=("accuracy < 0.90 in 3 of 4",)),
        retraining=Retraining(**rules),
        canary=Canary(
            steps=(0.25, 0.5), step="2s", longest="10 min", watch="4s", valid="8s", holdback=0.1
        ),
    )


class ScriptedSight:
    """What the monitor would have written, as a function of the time and the traffic history."""

    def __init__(self, store: Store, ending: str, clock: Callable[[], int]) -> None:
        self._store = store
        self._ending = ending
        self._clock = clock

    def verdicts(self, model: str) -> list[Verdict]:
        """Windows since the start; performance is in alarm while version 1 answers drifted rows."""
        now_s = (self._clock() - START_MS) // 1000
        return [self._verdict(model, second) for second in range(max(0, now_s - 20), now_s)]

    def _verdict(self, model: str, second: int) -> Verdict:
        start_ms = START_MS + 1000 * second
        champion = next(
            (t.arms[0].version for at, t in self._history(model) if at <= start_ms), "1"
        )
        bad = second >= DRIFT_S + 2 and champion == "1"
        outcome = Outcome.ALARM if bad else Outcome.OK
        finding = Finding(
            kind=Kind.PERFORMANCE,
            outcome=outcome,
            reason=Reason.RULE_BREACHED if bad else Reason.WITHIN_LIMITS,
            figure="accuracy",
            rule="accuracy < 0.90 in 3 of 4",
            value=0.6 if bad else 0.95,
            threshold=0.9,
            onset_ms=START_MS + 1000 * DRIFT_S if bad else None,
        )
        return Verdict(
            model=model,
            window_start_ms=start_ms,
            window_end_ms=start_ms + 1000,
            revision=1,
            outcome=outcome,
            kind=Kind.PERFORMANCE if bad else None,
            reason=finding.reason,
            summary="",
            findings=[finding],
            figures={},
            evidence=Evidence(input_digest="", contract_revision=1, code_version=""),
        )

    def _history(self, model: str) -> list[tuple[int, Traffic]]:
        return records.traffic_history(self._store, model)

    def labelled_rows(self, model: str, version: str, from_ms: int) -> int:
        """RATE per second since `from_ms`."""
        return RATE * max(0, self._clock() - from_ms) // 1000

    def label_signals(
        self, contract: Contract, version: str, since_ms: int, onset_ms: int, now_ms: int
    ) -> LabelSignals | None:
        """There is no archive."""
        return None

    def value_signs(
        self, model: str, start_ms: int, end_ms: int, onset_ms: int
    ) -> tuple[Signs, Signs] | None:
        """There are no counts."""
        return None

    def arms(
        self,
        contract: Contract,
        revisions: Sequence[int],
        now_ms: int,
        maturity_ms: int,
    ) -> dict[tuple[int, str], ArmTally]:
        """Rows of each arm while its revision was current; every row is labelled."""
        tallies = {}
        until_ms = now_ms
        for at_ms, traffic in self._history(contract.name):
            if traffic.revision in revisions:
                for arm in traffic.arms:
                    rows = int(RATE * arm.weight * (until_ms - at_ms) / 1000)
                    wrong = int(rows * self._wrong(arm))
                    tallies[traffic.revision, arm.name] = ArmTally(rows, 0, rows, wrong)
            until_ms = at_ms
        return tallies

    def _wrong(self, arm: TrafficArm) -> float:
        if arm.version == "1":
            return 0.3
        if self._ending == "roll_back":
            return 0.75
        promoted = arm.name == records.CHAMPION_ARM
        return 0.85 if self._ending == "harm_later" and promoted else 0.05


class ScriptedRouter:
    """The traffic row; a split is observed one second after it was set."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def set(self, connection: Connection, traffic: Traffic, now_ms: int) -> None:
        """See `router.TrafficRouter`."""
        records.set_traffic(connection, traffic, now_ms)

    def observed(self, store: Store, traffic: Traffic) -> bool | None:
        """See `router.TrafficRouter`."""
        at_ms = records.traffic_history(store, traffic.model, 1)[0][0]
        return self._clock() >= at_ms + 1_000


class World:
    """One scripted world in a folder and a database; made again after a crash, it goes on."""

    def __init__(self, folder: Path, url: str, ending: str, failpoints: Failpoints) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.store = CrashingStore(url, failpoints)
        self._time = WorldFile(folder / "time.json", {"ticks": 0, "lives": 0}, failpoints)
        self._time.change(lambda content: content.update(lives=content["lives"] + 1), point=False)
        self.registry = WorldFile(
            folder / "registry.json", {"versions": [], "aliases": {}, "alias_log": []}, failpoints
        )
        self.baselines = WorldFile(
            folder / "baselines.json", {"sources": ["file"], "active": 1}, failpoints
        )
        self.deps = Deps(
            trainer=ScriptedTrainer(folder / "runs", failpoints),
            source=ScriptedSource(),
            registry=ScriptedRegistry(self.registry),
            router=ScriptedRouter(self.now_ms),
            sight=ScriptedSight(self.store, ending, self.now_ms),
            baselines=ScriptedBaselines(self.baselines),
            jobs=InlineJobs(),
            artifacts=folder / "artifacts",
        )
        owner = f"life {self._time.read()['lives']}"
        self.agent = Agent(self.store, self.deps, owner, LEASE_MS, self.now_ms)

    def now_ms(self) -> int:
        """The world's time: it goes on when the agent dies."""
        return START_MS + TICK_MS * int(self._time.read()["ticks"])

    def tick(self) -> None:
        """Let a second pass and tick the agent once. Raises what a model's records raised."""
        self._time.change(lambda content: content.update(ticks=content["ticks"] + 1), point=False)
        self.agent.tick()
        if self.agent.last is not None and self.agent.last.errors:
            raise AssertionError(self.agent.last.errors)

    def run(self, most_ticks: int = 200) -> None:
        """Tick until the loop has closed: a finished rollout and nothing under way."""
        for _ in range(most_ticks):
            self.tick()
            if self.agent.active and self.closed():  # a standby has not compared anything yet
                return
        raise AssertionError(f"the loop did not close in {most_ticks} ticks: {self.summary()}")

    def closed(self) -> bool:
        """Whether a rollout ended and the incident has come to rest."""
        rollouts = records.list_rollouts(self.store, MODEL)
        incident = next(iter(records.list_incidents(self.store, MODEL)), None)
        if not rollouts or records.active_rollout(self.store, MODEL) is not None:
            return False
        return incident is not None and incident.state.value in {"resolved", "diagnosing"}

    def summary(self) -> dict[str, Any]:
        """What must be the same however often the agent was killed: states and effects, no times."""

        def states(kind: records.RecordKind, found: Sequence[Any]) -> list[list[str]]:
            return [
                [t.to_state for t in records.transitions_of(self.store, kind, each.id)]
                for each in found
            ]

        traffic = records.current_traffic(self.store, MODEL)
        aliased = self.registry.read()["alias_log"]
        artifacts = sorted(self.deps.artifacts.glob("*/*"))
        return {
            "incidents": [i.state.value for i in records.list_incidents(self.store, MODEL)],
            "runs": states("run", records.list_runs(self.store, MODEL)),
            "rollouts": states("rollout", records.list_rollouts(self.store, MODEL)),
            "traffic": None if traffic is None else [(a.version, a.weight) for a in traffic.arms],
            "revisions": len(records.traffic_history(self.store, MODEL)),
            "registry": {
                "versions": [v["version"] for v in self.registry.read()["versions"]],
                "aliases": self.registry.read()["aliases"],
                "champions": [to for alias, to in aliased if alias == "champion"],
                "challengers": [to for alias, to in aliased if alias == "challenger"],
            },
            "baselines": {
                "sources": [each.split(":")[0] for each in self.baselines.read()["sources"]],
                "active": self.baselines.read()["active"],
            },
            "artifacts": [path.name for path in artifacts if not path.name.startswith(".")],
            "gated": len(records.gated_ranges(self.store, MODEL)),
        }
