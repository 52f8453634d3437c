"""The life of a rollout, one step at a time.

    pending → (awaiting_approval) → step k ⇄ held → promoting → watching → done
                                        └──────────────┴───────────┴→ rolling_back → rolled_back

A change of the split and the transition that wants it are one transaction, so the record always says
which split is desired. Steps begin to count when their split has been seen in traffic.
"""

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection

from trimtab.contracts.model import duration_ms
from trimtab.errors import TrimtabError
from trimtab.events.types import Traffic, TrafficArm
from trimtab.records import Rollout, RolloutState
from trimtab.store import agent as records
from trimtab.store.models import versions_of
from trimtab_agent.context import Context
from trimtab_agent.rollout import router
from trimtab_agent.rollout.assess import (
    ArmTally,
    Assessment,
    Move,
    Tally,
    Terms,
    assess,
    terms_of,
)
from trimtab_agent.train import APPROVAL_MS

STEP, WATCH, END = "step", "watch", "end"
"""What an entry of `Rollout.steps` was for."""


def step_rollout(ctx: Context, rollout: Rollout, *, blocked: str | None = None) -> bool:
    """Do the next step of an active rollout; True when it moved.

    `blocked` is a data-quality alarm, which holds it.
    """
    match rollout.state:
        case RolloutState.AWAITING_APPROVAL:
            return _expire(ctx, rollout)
        case RolloutState.PENDING:
            return _start(ctx, rollout, blocked)
        case RolloutState.STEP | RolloutState.HELD:
            return _canary(ctx, rollout, blocked)
        case RolloutState.PROMOTING:
            return _promoting(ctx, rollout)
        case RolloutState.WATCHING:
            return _watching(ctx, rollout, blocked)
        case RolloutState.ROLLING_BACK:
            return _rolling_back(ctx, rollout)
        case _:
            return False


# --- what every step uses -------------------------------------------------------------------------


def arm_of(ctx: Context, version: str) -> TrafficArm:
    """A version's arm. Raises TrimtabError for a version nobody registered."""
    for row in versions_of(ctx.store, ctx.model):
        if row.version == version:
            return TrafficArm(
                version, version, 1.0, row.artifact_uri or "", row.artifact_sha256 or ""
            )
    raise TrimtabError(
        f"Version {version!r} of {ctx.model!r} is not registered, so nothing can be routed to it. "
        "Abort the rollout, or register the version."
    )


def _move(
    ctx: Context,
    rollout: Rollout,
    state: RolloutState,
    reason: str,
    inputs: dict[str, Any] | None = None,
    *also: Callable[[Connection], object],
    **changes: Any,
) -> bool:
    moved = replace(rollout, state=state, reason=reason, updated_ms=ctx.now_ms, **changes)
    ctx.transition(rollout, moved, reason, inputs, *also)
    return True


def _route(
    ctx: Context,
    rollout: Rollout,
    state: RolloutState,
    reason: str,
    split: Callable[[int], Traffic],
    entry: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    *also: Callable[[Connection], object],
    **changes: Any,
) -> bool:
    """Move to a state whose split is new; `split` makes it for the next traffic revision."""
    current = records.current_traffic(ctx.store, ctx.model)
    traffic = split(1 + (0 if current is None else current.revision))
    now = {**entry, "revision": traffic.revision, "from_ms": ctx.now_ms}
    return _move(
        ctx,
        rollout,
        state,
        reason,
        inputs,
        lambda c: ctx.deps.router.set(c, traffic, ctx.now_ms),
        *also,
        **{
            "traffic_revision": traffic.revision,
            "steps": [*_closed(rollout, ctx.now_ms), now],
            **changes,
        },
    )


def _closed(rollout: Rollout, now_ms: int) -> list[dict[str, Any]]:
    return [entry if "to_ms" in entry else {**entry, "to_ms": now_ms} for entry in rollout.steps]


def valid_until_ms(ctx: Context) -> int:
    """Until when a split set now holds if nobody renews it."""
    return ctx.now_ms + duration_ms(ctx.contract.canary.valid)


def kept(rollout: Rollout) -> dict[str, Any]:
    """What a rollout's assessment carries from look to look: pauses, the baseline before."""
    found = rollout.assessment.get("kept", {})
    return dict(found)


def _expire(ctx: Context, rollout: Rollout) -> bool:
    if ctx.now_ms < rollout.created_ms + APPROVAL_MS:
        return False
    return close(ctx, rollout, "Nobody approved it in seven days.")


def close(
    ctx: Context, rollout: Rollout, reason: str, *also: Callable[[Connection], object]
) -> bool:
    """End a rollout that never touched traffic."""
    return _move(ctx, rollout, RolloutState.ROLLED_BACK, reason, {}, *also, finished_ms=ctx.now_ms)


def roll_back(
    ctx: Context,
    rollout: Rollout,
    reason: str,
    inputs: dict[str, Any],
    *also: Callable[[Connection], object],
) -> bool:
    """Give all traffic back to the old champion; aliases and baseline follow."""
    champion = arm_of(ctx, rollout.champion_version)
    return _route(
        ctx,
        rollout,
        RolloutState.ROLLING_BACK,
        reason,
        lambda revision: router.whole_split(rollout, revision, champion),
        {"kind": END, "share": 0.0},
        inputs,
        *also,
    )


# --- steps ----------------------------------------------------------------------------------------


def _start(ctx: Context, rollout: Rollout, blocked: str | None) -> bool:
    if blocked is not None:
        return False
    current = records.current_traffic(ctx.store, ctx.model)
    if current is None or current.arms[0].version != rollout.champion_version:
        return close(
            ctx,
            rollout,
            f"The champion is no longer {rollout.champion_version!r}; nothing to replace.",
        )
    return _to_step(ctx, rollout, 0, f"The canary begins: {rollout.reason}")


def _to_step(
    ctx: Context, rollout: Rollout, step: int, reason: str, look: Assessment | None = None
) -> bool:
    share = ctx.contract.canary.steps[step]
    champion = arm_of(ctx, rollout.champion_version)
    challenger = arm_of(ctx, rollout.challenger_version)
    until = valid_until_ms(ctx)
    return _route(
        ctx,
        rollout,
        RolloutState.STEP,
        reason,
        lambda revision: router.canary_split(rollout, revision, champion, challenger, share, until),
        {"kind": STEP, "share": share},
        {} if look is None else look.numbers,
        step=step,
        step_since_ms=ctx.now_ms,
        assessment=_record_of(rollout, look, ctx.now_ms),
    )


def _record_of(rollout: Rollout, look: Assessment | None, now_ms: int) -> dict[str, Any]:
    if look is None:
        return {"kept": kept(rollout)}
    return {
        "decision": look.move.value,
        "reason": look.reason,
        "next_wake_ms": look.next_wake_ms,
        "assessed_ms": now_ms,
        **look.numbers,
        "kept": kept(rollout),
    }


def _look(
    ctx: Context, rollout: Rollout, terms: Terms, kind: str, blocked: str | None
) -> tuple[Rollout, Assessment]:
    """Note when the split was first seen, then assess."""
    entry = rollout.steps[-1]
    if "observed_ms" not in entry:
        traffic = records.current_traffic(ctx.store, ctx.model)
        if traffic is not None and ctx.deps.router.observed(ctx.store, traffic):
            seen = {**entry, "observed_ms": ctx.now_ms}
            rollout = replace(rollout, steps=[*rollout.steps[:-1], seen], step_since_ms=ctx.now_ms)
    look = assess(
        rollout,
        tallies_of(ctx, rollout, terms, kind),
        terms,
        ctx.now_ms,
        observed="observed_ms" in rollout.steps[-1],
        blocked=_blocked(rollout, blocked),
    )
    return replace(rollout, assessment=_record_of(rollout, look, ctx.now_ms)), look


def _blocked(rollout: Rollout, alarm: str | None) -> str | None:
    notes = kept(rollout)
    if "unknown_state" in notes:
        return f"its stored state {notes['unknown_state']!r} is unknown to this release"
    if "paused_by" in notes:
        return f"paused by {notes['paused_by']}"
    return alarm


def tallies_of(ctx: Context, rollout: Rollout, terms: Terms, kind: str) -> list[Tally]:
    """The counts of every revision of this kind, each with the share it was set with."""
    entries = [entry for entry in rollout.steps if entry["kind"] == kind]
    treated, control = (
        (records.CHALLENGER_ARM, records.CHAMPION_ARM)
        if kind == STEP
        else (records.CHAMPION_ARM, records.HOLDBACK_ARM)
    )
    revisions = [entry["revision"] for entry in entries]
    arms = ctx.deps.sight.arms(ctx.contract, revisions, ctx.now_ms, terms.maturity_ms)
    return [
        Tally(
            entry["revision"],
            entry["share"],
            arms.get((entry["revision"], control), ArmTally()),
            arms.get((entry["revision"], treated), ArmTally()),
        )
        for entry in entries
    ]


def _canary(ctx: Context, rollout: Rollout, blocked: str | None) -> bool:
    terms = terms_of(ctx.contract)
    if not rollout.steps:  # held by an unknown state before it ever touched traffic
        return False
    if rollout.step >= len(terms.steps):
        return roll_back(ctx, rollout, "The contract's steps changed under it: start again.", {})
    seen, look = _look(ctx, rollout, terms, STEP, blocked)
    changes = {"assessment": seen.assessment, "steps": seen.steps}
    match look.move:
        case Move.ADVANCE:
            ctx.progress(rollout, seen)
            return _to_step(ctx, seen, seen.step + 1, look.reason, look)
        case Move.PROMOTE:
            ctx.progress(rollout, seen)
            return _promote(ctx, seen, terms, look)
        case Move.ROLL_BACK:
            ctx.progress(rollout, seen)
            return roll_back(ctx, seen, look.reason, look.numbers)
        case Move.HOLD:
            return _move(ctx, rollout, RolloutState.HELD, look.reason, look.numbers, **changes)
        case Move.RESUME:
            return _move(
                ctx,
                rollout,
                RolloutState.STEP,
                look.reason,
                look.numbers,
                step_since_ms=ctx.now_ms,
                **changes,
            )
        case _:
            ctx.progress(rollout, replace(seen, reason=look.reason))
            return False


def _promote(ctx: Context, rollout: Rollout, terms: Terms, look: Assessment) -> bool:
    champion = arm_of(ctx, rollout.champion_version)
    challenger = arm_of(ctx, rollout.challenger_version)
    until = valid_until_ms(ctx)
    record = _record_of(rollout, look, ctx.now_ms)
    notes = {**kept(rollout), "baseline_before": ctx.deps.baselines.active(ctx.model)}
    return _route(
        ctx,
        rollout,
        RolloutState.PROMOTING,
        look.reason,
        lambda revision: router.watch_split(
            rollout, revision, champion, challenger, terms.holdback, until
        ),
        {"kind": WATCH, "share": 1.0 - terms.holdback},
        look.numbers,
        promoted_ms=ctx.now_ms,
        step_since_ms=ctx.now_ms,
        assessment={**record, "kept": notes},
    )


def _promoting(ctx: Context, rollout: Rollout) -> bool:
    """Wait until the promotion is seen in traffic; without any traffic it is taken back in the end."""
    traffic = records.current_traffic(ctx.store, ctx.model)
    if traffic is not None and ctx.deps.router.observed(ctx.store, traffic):
        entry = {**rollout.steps[-1], "observed_ms": ctx.now_ms}
        return _move(
            ctx,
            rollout,
            RolloutState.WATCHING,
            f"Version {rollout.challenger_version} answers; the old champion keeps a holdback.",
            steps=[*rollout.steps[:-1], entry],
            step_since_ms=ctx.now_ms,
        )
    if (
        ctx.now_ms
        >= (rollout.promoted_ms or rollout.updated_ms) + terms_of(ctx.contract).longest_ms
    ):
        return roll_back(ctx, rollout, "The promotion was never seen in traffic.", {})
    return False


def _watching(ctx: Context, rollout: Rollout, blocked: str | None) -> bool:
    settled = _alias(ctx, rollout, "promote", rollout.challenger_version)
    rollout, rebased = _rebase(ctx, rollout)
    terms = terms_of(ctx.contract)
    seen, look = _look(ctx, rollout, terms, WATCH, blocked)
    if look.move is Move.ROLL_BACK:
        ctx.progress(rollout, seen)
        return roll_back(ctx, seen, look.reason, look.numbers)
    ctx.progress(rollout, replace(seen, reason=look.reason))
    if look.move is not Move.FINISH or not settled or not rebased:
        return False
    challenger = arm_of(ctx, rollout.challenger_version)
    seen = replace(seen, reason=look.reason)
    return _route(
        ctx,
        seen,
        RolloutState.DONE,
        look.reason,
        lambda revision: router.whole_split(seen, revision, challenger),
        {"kind": END, "share": 1.0},
        look.numbers,
        finished_ms=ctx.now_ms,
    )


def _rolling_back(ctx: Context, rollout: Rollout) -> bool:
    """Traffic is back already; alias and baseline follow, then it is over."""
    if rollout.promoted_ms is not None and not _alias(
        ctx, rollout, "restore", rollout.champion_version
    ):
        return False
    before = kept(rollout).get("baseline_before")

    def restore(connection: Connection) -> None:
        if before is not None:
            ctx.deps.baselines.restore(connection, ctx.model, before)

    return _move(
        ctx,
        rollout,
        RolloutState.ROLLED_BACK,
        rollout.reason,
        {"baseline": before},
        restore,
        finished_ms=ctx.now_ms,
        steps=_closed(rollout, ctx.now_ms),
    )


# --- effects --------------------------------------------------------------------------------------


def _alias(ctx: Context, rollout: Rollout, cause: str, version: str) -> bool:
    """Point the registry's champion at `version`, once; True when that is confirmed."""
    key = f"rollout:{rollout.id}:alias:{cause}"
    known = records.begin_effect(ctx.store, key, rollout.id, ctx.now_ms, ctx.lease)
    if known.done_ms is not None:
        return True

    def point() -> None:
        ctx.deps.registry.set_alias(ctx.model, "champion", version)

    done, _ = ctx.deps.jobs.poll(key, point)
    if done:
        with ctx.store.write() as connection:
            records.finish_effect(connection, key, {"champion": version}, ctx.now_ms, ctx.lease)
    return done


def _rebase(ctx: Context, rollout: Rollout) -> tuple[Rollout, bool]:
    """Move the baseline to the windows since the onset, once there are enough of them.

    True when it is moved, or when the last try said that there are too few windows still: a watch
    that ends before there are enough leaves the old baseline, and says so.
    """
    key = f"rollout:{rollout.id}:rebase"
    known = records.begin_effect(ctx.store, key, rollout.id, ctx.now_ms, ctx.lease)
    if known.done_ms is not None:
        return rollout, True
    notes = kept(rollout)
    if ctx.now_ms < notes.get("rebase_tried_ms", 0) + ctx.contract.windows.length_ms:
        return rollout, True
    onset_ms = records.get_run(ctx.store, rollout.run_id).onset_ms
    cause = f"promotion:{rollout.id}"

    def still_watching(connection: Connection) -> None:
        # It runs aside: a rollback meanwhile has put the old baseline back, and that one stays.
        records.require_rollout(connection, rollout.id, RolloutState.WATCHING)

    def move() -> int | str:
        try:
            return ctx.deps.baselines.rebase(
                ctx.model,
                onset_ms,
                ctx.now_ms,
                rollout.challenger_version,
                cause,
                ctx.now_ms,
                still_watching,
            )
        except TrimtabError as error:
            return str(error)

    done, result = ctx.deps.jobs.poll(key, move)
    if not done:
        return rollout, False
    if isinstance(result, int):
        with ctx.store.write() as connection:
            records.finish_effect(connection, key, {"baseline": result}, ctx.now_ms, ctx.lease)
        notes = {**notes, "baseline": result}
    else:
        notes = {**notes, "rebase_tried_ms": ctx.now_ms, "rebase_waits": result}
    updated = replace(rollout, assessment={**rollout.assessment, "kept": notes})
    ctx.progress(rollout, updated)
    return updated, True
