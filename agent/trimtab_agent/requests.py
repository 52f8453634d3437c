"""What people asked for since the last tick: done, or declined with the reason, in one transaction."""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection

from trimtab.records import (
    FINAL_INCIDENT,
    FINAL_ROLLOUT,
    FINAL_RUN,
    Incident,
    IncidentState,
    Rollout,
    RolloutState,
    Run,
    RunState,
)
from trimtab.store import agent as records
from trimtab.store.leases import check
from trimtab_agent.context import Context
from trimtab_agent.rollout.steps import close, kept, roll_back
from trimtab_agent.train import accept_challenger, end_run

UNTOUCHED = frozenset({RolloutState.PENDING, RolloutState.AWAITING_APPROVAL})
"""States in which a rollout has not touched traffic."""


def answer_requests(ctx: Context) -> None:
    """Act on every pending request of the model, oldest first."""
    for asked in records.pending_requests(ctx.store, ctx.model):
        record = records.get_record(ctx.store, asked.record, asked.record_id)
        if isinstance(record, Incident):
            declined = _incident(ctx, record, asked)
        elif isinstance(record, Run):
            declined = _run(ctx, record, asked)
        else:
            declined = _rollout(ctx, record, asked)
        if declined is not None:
            with ctx.store.write() as connection:
                check(connection, ctx.lease)
                records.finish_request(connection, asked.id, declined, ctx.now_ms)


def _answered(ctx: Context, asked: records.Request, outcome: str) -> Callable[[Connection], None]:
    """The note that the request is answered, for the transaction that acts on it."""

    def note(connection: Connection) -> None:
        records.finish_request(connection, asked.id, outcome, ctx.now_ms)

    return note


def _declined(asked: records.Request, state: str) -> str:
    return f"declined: nothing to {asked.action} in state {state}"


def _incident(ctx: Context, incident: Incident, asked: records.Request) -> str | None:
    if incident.state in FINAL_INCIDENT:
        return _declined(asked, incident.state.value)
    busy = records.active_run(ctx.store, ctx.model) or records.active_rollout(ctx.store, ctx.model)
    if busy is not None:
        return f"declined: {busy.id} is under way; cancel or abort it first"
    closed = replace(
        incident,
        state=IncidentState.RESOLVED,
        reason=f"Closed by {asked.by}.",
        updated_ms=ctx.now_ms,
        resolved_ms=ctx.now_ms,
        next_wake_ms=None,
    )
    note = _answered(ctx, asked, "closed")
    ctx.transition(incident, closed, closed.reason, {"request": asked.id}, note)
    return None


def _run(ctx: Context, run: Run, asked: records.Request) -> str | None:
    if run.state in FINAL_RUN:
        return _declined(asked, run.state.value)
    match asked.action:
        case "approve" if run.state is RunState.AWAITING_APPROVAL:
            reason = f"Approved by {asked.by}."
            planned = replace(
                run,
                state=RunState.PLANNED,
                reason=reason,
                approved_by=asked.by,
                updated_ms=ctx.now_ms,
            )
            note = _answered(ctx, asked, "approved")
            ctx.transition(run, planned, reason, {"request": asked.id}, note)
        case "reject" if run.state is RunState.AWAITING_APPROVAL:
            note = _answered(ctx, asked, "rejected")
            end_run(ctx, run, RunState.CANCELLED, f"Rejected by {asked.by}.", note)
        case "cancel":
            note = _answered(ctx, asked, "cancelled")
            end_run(ctx, run, RunState.CANCELLED, f"Cancelled by {asked.by}.", note)
        case "challenger" if run.state is RunState.WAITING_FOR_CHALLENGER:
            return _challenger(ctx, run, asked)
        case _:
            return _declined(asked, run.state.value)
    return None


def _challenger(ctx: Context, run: Run, asked: records.Request) -> str | None:
    uri, sha256 = asked.detail.get("artifact_uri"), asked.detail.get("artifact_sha256")
    if not isinstance(uri, str) or not isinstance(sha256, str):
        return "declined: artifact_uri and artifact_sha256 are needed"
    accept_challenger(ctx, run, uri, sha256, asked.by, _answered(ctx, asked, "accepted"))
    return None


def _rollout(ctx: Context, rollout: Rollout, asked: records.Request) -> str | None:
    state = rollout.state
    if state in FINAL_ROLLOUT or state is RolloutState.ROLLING_BACK:
        return _declined(asked, state.value)
    match asked.action:
        case "approve" if state is RolloutState.AWAITING_APPROVAL:
            return _approve(ctx, rollout, asked)
        case "reject" | "abort" if state in UNTOUCHED or not rollout.steps:
            verb = "Rejected" if asked.action == "reject" else "Aborted"
            close(ctx, rollout, f"{verb} by {asked.by}.", _answered(ctx, asked, verb.lower()))
        case "abort":
            note = _answered(ctx, asked, "rolling back")
            roll_back(ctx, rollout, f"Aborted by {asked.by}.", {"request": asked.id}, note)
        case "pause" if state is RolloutState.STEP:
            notes = {**kept(rollout), "paused_by": asked.by}
            _change(ctx, rollout, RolloutState.HELD, f"Paused by {asked.by}.", notes, asked)
        case "resume" if state is RolloutState.HELD and "paused_by" in kept(rollout):
            notes = {key: value for key, value in kept(rollout).items() if key != "paused_by"}
            _change(ctx, rollout, RolloutState.HELD, f"Resumed by {asked.by}.", notes, asked)
        case _:
            return _declined(asked, state.value)
    return None


def _approve(ctx: Context, rollout: Rollout, asked: records.Request) -> str | None:
    """An approval holds for the artifact that was approved, no other."""
    sha256 = records.get_run(ctx.store, rollout.run_id).artifact_sha256
    if asked.detail.get("artifact_sha256") != sha256:
        return "declined: the approval was for another artifact; look again and approve again"
    reason = f"Approved by {asked.by}."
    _change(ctx, rollout, RolloutState.PENDING, reason, kept(rollout), asked)
    return None


def _change(
    ctx: Context,
    rollout: Rollout,
    state: RolloutState,
    reason: str,
    notes: dict[str, Any],
    asked: records.Request,
) -> None:
    moved = replace(
        rollout,
        state=state,
        reason=reason,
        updated_ms=ctx.now_ms,
        assessment={**rollout.assessment, "kept": notes},
    )
    inputs = {"request": asked.id, **asked.detail}
    ctx.transition(rollout, moved, reason, inputs, _answered(ctx, asked, reason))
