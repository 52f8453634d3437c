"""The life of a run, one step at a time.

    planned → (awaiting_approval) → searching → fitting → registering → gating
            → blessed | refused | failed | superseded | cancelled

`step_run` does one step of the state a run is in and says whether it moved. Every step may be
repeated: data is pinned by reading, search and fit find what is finished, the registry is asked
before a version is made, and a transition is written once because it is compared with what was read.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection

from trimtab.contracts.model import duration_ms
from trimtab.errors import ConflictError, TrimtabError
from trimtab.events.types import TrafficArm
from trimtab.records import FINAL_RUN, Incident, Rollout, RolloutState, Run, RunState
from trimtab.store import agent as records
from trimtab.store.models import add_version, versions_of
from trimtab_agent.context import Context, short_id
from trimtab_agent.decide.decision import Decision
from trimtab_agent.gate.gate import GateOutcome, GateRecord, judge, terms_of
from trimtab_agent.registry import install_artifact, local_path
from trimtab_agent.training import Compared, Fitted, Searched, WorkFailed

APPROVAL_MS = 7 * 86_400_000
"""An approval that nobody gives in this time expires."""
ERRORS_ALLOWED = 3
PATIENCE_MS = 10 * 60_000
"""A run fails after so many unexpected errors in a row over so long a time; chosen so that a registry
that restarts costs no run."""
EXTERNAL = "external"


class ChampionChangedError(TrimtabError):
    """Somebody named another champion while a run was to beat the old one."""


def plan_run(ctx: Context, incident: Incident, decision: Decision, number: int) -> Run:
    """The run that a decision to retrain starts; `number` counts the incident's runs from 1."""
    approve = ctx.contract.retraining.mode != "auto"
    champion = records.current_traffic(ctx.store, ctx.model)
    onset = decision.numbers.get("onset_ms")
    return Run(
        id=short_id("r", incident.id, number),
        model=ctx.model,
        incident_id=incident.id,
        state=RunState.AWAITING_APPROVAL if approve else RunState.PLANNED,
        reason=decision.reason,
        created_ms=ctx.now_ms,
        updated_ms=ctx.now_ms,
        trainer=ctx.contract.retraining.trainer,
        onset_ms=incident.onset_ms if onset is None else onset,
        champion_version="" if champion is None else champion.arms[0].version,
    )


def step_run(ctx: Context, run: Run, *, hold: str | None = None) -> bool:
    """Do the next step of an active run; True when it moved, so that one may step again at once.

    `hold` names a data-quality alarm: a run that has pinned no data yet waits until it is over.
    """
    step = _STEPS.get(run.state)
    if step is None or (hold is not None and run.state is RunState.PLANNED):
        return False
    key = f"{run.id}:{run.state.value}"
    try:
        moved = step(ctx, run)
    except ConflictError:
        raise
    except ChampionChangedError as error:
        end_run(ctx, run, RunState.SUPERSEDED, str(error))
        return True
    except TrimtabError as error:
        _fail(ctx, run, str(error))
        return True
    except Exception as error:
        first_ms, count = ctx.deps.errors.get(key, (ctx.now_ms, 0))
        ctx.deps.errors[key] = (first_ms, count + 1)
        if count + 1 < ERRORS_ALLOWED or ctx.now_ms < first_ms + PATIENCE_MS:
            raise  # the tick reports it and goes on with other models; the next tick tries again
        _fail(ctx, run, f"{type(error).__name__} {count + 1} times in a row: {error}")
        return True
    ctx.deps.errors.pop(key, None)
    return moved


def end_run(
    ctx: Context,
    run: Run,
    state: RunState,
    reason: str,
    *also: Callable[[Connection], object],
    **changes: Any,
) -> Run:
    """Move a run into a final state and drop what works for it."""
    assert state in FINAL_RUN
    ended = replace(
        run, state=state, reason=reason, updated_ms=ctx.now_ms, finished_ms=ctx.now_ms, **changes
    )
    ctx.transition(run, ended, reason, {}, *also)
    ctx.deps.trainer.stop(run.id)
    return ended


def _move(
    ctx: Context,
    run: Run,
    state: RunState,
    reason: str,
    *also: Callable[[Connection], object],
    **changes: Any,
) -> bool:
    moved = replace(run, state=state, reason=reason, updated_ms=ctx.now_ms, **changes)
    inputs = {key: value for key, value in changes.items() if key != "snapshot"}
    ctx.transition(run, moved, reason, inputs, *also)
    return True


def _fail(ctx: Context, run: Run, reason: str) -> None:
    end_run(ctx, run, RunState.FAILED, f"Failed while {run.state.value}: {reason}")


def _champion(ctx: Context, run: Run) -> TrafficArm:
    """The arm that the run is to beat. Raises ChampionChangedError."""
    traffic = records.current_traffic(ctx.store, ctx.model)
    if traffic is None or traffic.arms[0].version != run.champion_version:
        raise ChampionChangedError(
            f"The champion is no longer {run.champion_version!r}; the next decision starts from "
            "the new one."
        )
    return traffic.arms[0]


# --- one step per state ---------------------------------------------------------------------------


def _awaiting_approval(ctx: Context, run: Run) -> bool:
    if ctx.now_ms < run.created_ms + APPROVAL_MS:
        return False
    end_run(ctx, run, RunState.CANCELLED, "Nobody approved it in seven days.")
    return True


def _planned(ctx: Context, run: Run) -> bool:
    _champion(ctx, run)
    spent = max((each.to_ms for each in records.gated_ranges(ctx.store, ctx.model)), default=0)
    snapshot = ctx.deps.source.pin(ctx.contract, run.id, run.onset_ms, ctx.now_ms, spent)
    if run.trainer == EXTERNAL:
        deadline = ctx.now_ms + duration_ms(ctx.contract.retraining.search_limit)
        reason = "Retraining is requested from outside; waiting for the challenger."
        return _move(
            ctx,
            run,
            RunState.WAITING_FOR_CHALLENGER,
            reason,
            snapshot=snapshot,
            search={"deadline_ms": deadline},
        )
    return _move(
        ctx, run, RunState.SEARCHING, "The data is pinned; the search begins.", snapshot=snapshot
    )


def _waiting_for_challenger(ctx: Context, run: Run) -> bool:
    if ctx.now_ms < run.search["deadline_ms"]:
        return False
    end_run(ctx, run, RunState.FAILED, "No challenger came before the deadline.")
    return True


def _searching(ctx: Context, run: Run) -> bool:
    found = ctx.deps.trainer.search(run, ctx.contract, _champion(ctx, run), ctx.now_ms)
    if isinstance(found, WorkFailed):
        _fail(ctx, run, found.reason)
        return True
    if isinstance(found, Searched):
        reason = "The search is over; the winner is fitted on all its rows."
        return _move(ctx, run, RunState.FITTING, reason, params=found.params, search=found.numbers)
    ctx.progress(run, replace(run, search=found.numbers))
    return False


def _fitting(ctx: Context, run: Run) -> bool:
    found = ctx.deps.trainer.fit(run, ctx.contract, _champion(ctx, run))
    if isinstance(found, WorkFailed):
        _fail(ctx, run, found.reason)
        return True
    if isinstance(found, Fitted):
        return _move(
            ctx,
            run,
            RunState.REGISTERING,
            "The challenger is fitted; it is registered under its own version.",
            artifact_uri=found.directory,
            artifact_sha256=found.sha256,
            version=next_version(ctx),
        )
    return False


def next_version(ctx: Context) -> str:
    """The next free number among the model's versions; names that are no numbers do not count."""
    taken = {row.version for row in versions_of(ctx.store, ctx.model)}
    taken |= {run.version for run in records.list_runs(ctx.store, ctx.model) if run.version}
    return str(1 + max((int(name) for name in taken if name.isdecimal()), default=0))


def accept_challenger(
    ctx: Context,
    run: Run,
    uri: str,
    sha256: str,
    by: str,
    *also: Callable[[Connection], object],
) -> bool:
    """Take what an external trainer sends: it is registered and gated like any other."""
    reason = f"{by} sent the challenger; it is registered under its own version."
    return _move(
        ctx,
        run,
        RunState.REGISTERING,
        reason,
        *also,
        artifact_uri=uri,
        artifact_sha256=sha256,
        version=next_version(ctx),
    )


def _registering(ctx: Context, run: Run) -> bool:
    """Copy the artifact to its place and list it; both are looked up before they are done again."""
    version, sha256, source = run.version, run.artifact_sha256, run.artifact_uri
    assert version is not None
    assert sha256 is not None
    assert source is not None
    key = f"run:{run.id}:register"
    records.begin_effect(ctx.store, key, run.id, ctx.now_ms, ctx.lease)
    tags = {"trimtab.incident": run.incident_id or "", "trimtab.trainer": run.trainer}
    tags["trimtab.snapshot"] = str(run.snapshot.get("digest", ""))

    def register() -> tuple[str, str]:
        uri = install_artifact(local_path(source), ctx.deps.artifacts, ctx.model, version, sha256)
        number = ctx.deps.registry.ensure_version(ctx.model, version, run.id, uri, sha256, tags)
        return uri, number

    done, result = ctx.deps.jobs.poll(key, register)
    if not done:
        return False
    uri, number = result
    return _move(
        ctx,
        run,
        RunState.GATING,
        f"Registered as version {version}; it meets the champion on held-out rows.",
        lambda c: add_version(c, ctx.model, version, uri, sha256, run.id, "agent", ctx.now_ms),
        lambda c: records.finish_effect(
            c, key, {"uri": uri, "registry_version": number}, ctx.now_ms, ctx.lease
        ),
        artifact_uri=uri,
    )


def _gating(ctx: Context, run: Run) -> bool:
    champion = _champion(ctx, run)
    found = ctx.deps.trainer.compare(run, ctx.contract, champion)
    if isinstance(found, WorkFailed):
        _fail(ctx, run, found.reason)
        return True
    if not isinstance(found, Compared):
        return False
    spent = [
        (each.from_ms, each.to_ms)
        for each in records.gated_ranges(ctx.store, ctx.model)
        if each.run_id != run.id
    ]
    seed = int(short_id("gate", run.id).removeprefix("gate-"), 16) % 2**32
    _finish_gate(ctx, run, judge(found.rows, terms_of(ctx.contract), spent, seed))
    return True


def _finish_gate(ctx: Context, run: Run, record: GateRecord) -> None:
    """Store the gate's record, spend its rows and, when blessed, open the rollout: all at once."""

    def spend(connection: Connection) -> None:
        records.spend_range(connection, ctx.model, run.id, record.from_ms, record.to_ms)

    gate = msgspec.to_builtins(record)
    if record.outcome is not GateOutcome.BLESSED:
        end_run(ctx, run, RunState.REFUSED, record.reason, spend, gate=gate)
        return
    rollout = _rollout_of(ctx, run, record)

    incident = records.active_incident(ctx.store, ctx.model)

    def open_rollout(connection: Connection) -> None:
        records.apply_transition(
            connection, None, rollout, rollout.reason, {"gate": gate}, ctx.lease
        )
        if incident is not None and incident.id == run.incident_id:
            linked = replace(incident, rollout_id=rollout.id, updated_ms=ctx.now_ms)
            records.save_progress(connection, incident, linked, ctx.lease)

    end_run(ctx, run, RunState.BLESSED, record.reason, spend, open_rollout, gate=gate)


def _rollout_of(ctx: Context, run: Run, record: GateRecord) -> Rollout:
    assert run.version is not None
    approve = ctx.contract.retraining.mode != "auto"
    rollout_id = short_id("o", run.id)
    return Rollout(
        id=rollout_id,
        model=ctx.model,
        run_id=run.id,
        state=RolloutState.AWAITING_APPROVAL if approve else RolloutState.PENDING,
        reason="Waits for a person's approval." if approve else record.reason,
        created_ms=ctx.now_ms,
        updated_ms=ctx.now_ms,
        champion_version=run.champion_version,
        challenger_version=run.version,
        salt=rollout_id,
    )


_STEPS: dict[RunState, Callable[[Context, Run], bool]] = {
    RunState.PLANNED: _planned,
    RunState.AWAITING_APPROVAL: _awaiting_approval,
    RunState.WAITING_FOR_CHALLENGER: _waiting_for_challenger,
    RunState.SEARCHING: _searching,
    RunState.FITTING: _fitting,
    RunState.REGISTERING: _registering,
    RunState.GATING: _gating,
}
