"""One tick: every model's records are taken as they are stored and moved as far as they go now.

Order per model: what people asked → the rollout → the run → the decision → the projections. A tick
does no long work; what takes long runs aside (`jobs`, the trainer's workers) and is asked for again.
A model that fails is reported and does not stop the others.
"""

import math
from itertools import pairwise

from msgspec import Struct, field
from msgspec.structs import replace

from trimtab import logs
from trimtab.contracts.model import duration_ms
from trimtab.detect.label_signals import LEAST_ROWS, LabelSignals
from trimtab.errors import ConflictError
from trimtab.events.types import Traffic
from trimtab.records import (
    FINAL_ROLLOUT,
    FINAL_RUN,
    Incident,
    IncidentState,
    Kind,
    Outcome,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Verdict,
)
from trimtab.store import agent as records
from trimtab.store.alerts import open_alerts
from trimtab.store.engine import Store
from trimtab.store.leases import Lease, check
from trimtab.store.models import load_contracts
from trimtab_agent.context import Context, Deps, Reading, short_id
from trimtab_agent.decide.decision import Action, Decision, decide
from trimtab_agent.decide.evidence import (
    REFUNDED,
    Evidence,
    Seen,
    concerns,
    gather,
    harm_onset_ms,
    last_attempt,
    newest_windows,
)
from trimtab_agent.decide.incident import is_transition, next_incident
from trimtab_agent.decide.policy import Policy, month_start_ms, policy_of
from trimtab_agent.recipes.data import DataError
from trimtab_agent.requests import answer_requests
from trimtab_agent.rollout.router import whole_split
from trimtab_agent.rollout.steps import arm_of, roll_back, step_rollout
from trimtab_agent.train import end_run, plan_run, step_run

MOVES_PER_TICK = 8
"""A record may move this often in one tick; more moves wait for the next."""
RUNS_REMEMBERED = 200
ALIAS_CHECK_MS = 60_000
"""Unchanged aliases are compared again this often."""
IN_TRAFFIC = frozenset(
    {RolloutState.STEP, RolloutState.HELD, RolloutState.PROMOTING, RolloutState.WATCHING}
)

DIAGNOSED_KINDS = frozenset({Kind.INPUT, Kind.PREDICTION, Kind.PERFORMANCE})
"""Kinds whose cause labelled rows may tell."""

log = logs.get("agent")


class Tick(Struct):
    """What one tick did."""

    models: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    """Model → what went wrong with it."""


def reconcile(store: Store, lease: Lease, deps: Deps, now_ms: int) -> Tick:
    """Do one tick over all models. Raises ConflictError when the lease has another owner now."""
    tick = Tick()
    for model, row in load_contracts(store).items():
        tick.models += 1
        ctx = Context(store, lease, deps, row.contract, now_ms)
        try:
            reconcile_model(ctx)
        except Exception as error:  # one model's trouble must not stop the others
            if isinstance(error, ConflictError):
                with store.write() as connection:
                    check(connection, lease)
            log.exception("a model could not be reconciled", action="reconcile_failed", model=model)
            tick.errors[model] = f"{type(error).__name__}: {error}"
    return tick


def reconcile_model(ctx: Context) -> None:
    """Move one model's records as far as they go now."""
    answer_requests(ctx)
    broken = _data_quality_alarm(ctx)
    _advance_rollout(ctx, broken)
    _advance_run(ctx, broken)
    _decide(ctx)
    _renew(ctx)
    _repair_traffic(ctx)
    _repair_aliases(ctx)


def _data_quality_alarm(ctx: Context) -> tuple[str, int] | None:
    """(what, onset in ms) of the newest data-quality alarm."""
    found = [
        c
        for c in concerns(ctx.deps.sight.verdicts(ctx.model))
        if c.kind is Kind.DATA_QUALITY and c.outcome is Outcome.ALARM
    ]
    if not found:
        return None
    names = ", ".join(dict.fromkeys(c.figure for c in found))
    return f"the data is broken ({names})", min(c.onset_ms for c in found)


def _advance_rollout(ctx: Context, broken: tuple[str, int] | None) -> None:
    blocked = None if broken is None else broken[0]
    for _ in range(MOVES_PER_TICK):
        rollout = records.active_rollout(ctx.store, ctx.model)
        if rollout is None or not step_rollout(ctx, rollout, blocked=blocked):
            return


def _advance_run(ctx: Context, broken: tuple[str, int] | None) -> None:
    for _ in range(MOVES_PER_TICK):
        run = records.active_run(ctx.store, ctx.model)
        if run is None:
            return
        if broken is not None and run.snapshot.get("to_ms", 0) > broken[1]:
            reason = f"Its data overlaps a data-quality alarm: {broken[0]}."
            end_run(ctx, run, RunState.SUPERSEDED, reason)
            return
        if not step_run(ctx, run, hold=None if broken is None else broken[0]):
            return


# --- the decision ---------------------------------------------------------------------------------


def _decide(ctx: Context) -> None:
    """Gather the evidence, decide, and move the incident; a run begins in the same transaction."""
    incident = records.active_incident(ctx.store, ctx.model)
    if incident is not None and incident.decision.get("unknown_state"):
        return
    policy = policy_of(ctx.contract)
    runs = records.list_runs(ctx.store, ctx.model, RUNS_REMEMBERED)
    incident = _counted(ctx, incident, runs)
    evidence = gather_evidence(ctx, policy, incident, runs)
    decision = decide(evidence, policy, ctx.now_ms)
    new_id = short_id("i", ctx.model, ctx.now_ms)
    moved = next_incident(incident, decision, evidence, new_id, ctx.now_ms)
    if moved is None:
        return
    alerts = [alert.id for alert in open_alerts(ctx.store, ctx.model)]
    if moved.state is not IncidentState.RESOLVED and alerts:
        moved = replace(moved, alerts=sorted({*moved.alerts, *alerts}))
    if decision.action is Action.ROLL_BACK:
        _take_back(ctx, decision)
    if decision.action is Action.RETRAIN:
        _retrain(ctx, incident, moved, decision, runs)
    elif is_transition(incident, moved):
        ctx.transition(incident, moved, moved.reason, moved.decision)
    elif incident is not None:
        ctx.progress(incident, moved)


def _counted(ctx: Context, incident: Incident | None, runs: list[Run]) -> Incident | None:
    """The incident with its attempts counted anew: refunded runs are no attempts."""
    if incident is None:
        return None
    attempts = sum(run.incident_id == incident.id and run.state not in REFUNDED for run in runs)
    if attempts == incident.attempts:
        return incident
    counted = replace(incident, attempts=attempts, updated_ms=ctx.now_ms)
    ctx.progress(incident, counted)
    return counted


def gather_evidence(
    ctx: Context, policy: Policy, incident: Incident | None, runs: list[Run]
) -> Evidence:
    """Read what a decision about the model rests on."""
    rollouts = records.list_rollouts(ctx.store, ctx.model, RUNS_REMEMBERED)
    since_ms = champion_since_ms(records.traffic_history(ctx.store, ctx.model))
    verdicts = ctx.deps.sight.verdicts(ctx.model)
    onset_ms = harm_onset_ms(concerns(verdicts, since_ms), incident)
    traffic = records.current_traffic(ctx.store, ctx.model)
    labelled = 0
    if traffic is not None and onset_ms is not None:
        labelled = ctx.deps.sight.labelled_rows(ctx.model, traffic.arms[0].version, onset_ms)
    busy = _busy(runs, rollouts)
    champion = None if traffic is None else traffic.arms[0].version
    ends = {
        r.run_id: (r.state.value, r.finished_ms or r.updated_ms)
        for r in rollouts
        if r.state in FINAL_ROLLOUT
    }
    return gather(
        model=ctx.model,
        verdicts=verdicts,
        since_ms=since_ms,
        labelled_rows=labelled,
        labels_onset_ms=onset_ms,
        incident=incident,
        runs=runs,
        month_start_ms=month_start_ms(policy, ctx.now_ms),
        last_attempt=last_attempt(runs, ends),
        busy=busy,
        champion=traffic is not None,
        labels_promised=policy.labels_promised,
        seen=Seen() if busy else _seen(ctx, verdicts, since_ms, champion, labelled),
        rollout=next((r for r in rollouts if r.state not in FINAL_ROLLOUT), None),
    )


def _seen(
    ctx: Context, verdicts: list[Verdict], since_ms: int, champion: str | None, labelled: int
) -> Seen:
    """Read what verdicts do not hold, where something stands: the newest window's values, labelled rows."""
    onsets = [
        c.onset_ms for c in concerns(verdicts, since_ms) if c.stands and c.kind in DIAGNOSED_KINDS
    ]
    newest = next(iter(newest_windows(verdicts, since_ms)), None)
    if not onsets or newest is None:
        return Seen()
    sight = ctx.deps.sight
    found = sight.value_signs(
        ctx.model, newest.window_start_ms, newest.window_end_ms, newest.window_start_ms
    )
    broken, heterogeneous = (None, None) if found is None else found
    labels, pending = None, False
    if champion is not None and labelled >= LEAST_ROWS:
        labels, pending = _labelled(ctx, champion, since_ms, min(onsets), labelled)
    return Seen(labels=labels, pending=pending, broken_values=broken, heterogeneity=heterogeneous)


def _labelled(
    ctx: Context, version: str, since_ms: int, onset_ms: int, labelled: int
) -> tuple[LabelSignals | None, bool]:
    """(signals of labelled rows, whether newer ones are being read). Read again at each tenth more rows."""
    sight, contract, now_ms = ctx.deps.sight, ctx.contract, ctx.now_ms
    about = f"labelled:{ctx.model}:{version}:{onset_ms}"
    asked = f"{about}:{math.floor(math.log(labelled) / math.log(1.1))}"
    reading = ctx.deps.labelled.setdefault(ctx.model, Reading())
    if reading.asked == asked:
        return reading.answer, False
    reading.running = reading.running or asked

    def read() -> LabelSignals | None:
        try:
            return sight.label_signals(contract, version, since_ms, onset_ms, now_ms)
        except DataError as error:
            log.warning(
                "the archive's labelled rows cannot be read",
                action="labelled_unread",
                model=contract.name,
                error=str(error),
            )
            return None

    # What began earlier is asked for until it is done, though more rows came meanwhile.
    done, found = ctx.deps.jobs.poll(reading.running, read)
    if done:
        began, reading.running = reading.running, ""
        if began.startswith(f"{about}:"):
            reading.about, reading.asked, reading.answer = about, began, found
    if reading.about == about:
        return reading.answer, False
    return None, True


def champion_since_ms(history: list[tuple[int, Traffic]]) -> int:
    """When the current champion took over; 0 for a model's first one. `history` is newest first.

    Windows before it judge another model, so they neither accuse nor clear the current one.
    """
    for (at_ms, traffic), (_, before) in pairwise(history):
        if traffic.arms[0].version != before.arms[0].version:
            return at_ms
    return 0


def _busy(runs: list[Run], rollouts: list[Rollout]) -> str | None:
    for rollout in rollouts:
        if rollout.state not in FINAL_ROLLOUT:
            return f"Rollout {rollout.id} ({rollout.state.value})"
    for run in runs:
        if run.state not in FINAL_RUN:
            return f"Run {run.id} ({run.state.value})"
    return None


def _take_back(ctx: Context, decision: Decision) -> None:
    """Roll back the promotion that is being watched; its baseline and aliases follow at its own steps."""
    rollout = records.active_rollout(ctx.store, ctx.model)
    if rollout is not None and rollout.state is RolloutState.WATCHING:
        roll_back(ctx, rollout, decision.reason, decision.numbers)


def _retrain(
    ctx: Context, incident: Incident | None, moved: Incident, decision: Decision, runs: list[Run]
) -> None:
    number = 1 + sum(run.incident_id == moved.id for run in runs)
    run = plan_run(ctx, moved, decision, number)
    acting = replace(moved, run_id=run.id, rollout_id=None, attempts=moved.attempts + 1)
    ctx.transition(
        incident,
        acting,
        acting.reason,
        acting.decision,
        lambda connection: records.apply_transition(
            connection, None, run, run.reason, acting.decision, ctx.lease
        ),
    )


# --- projections ----------------------------------------------------------------------------------


def _renew(ctx: Context) -> None:
    """Keep an active rollout's split valid: half of its time before it expires."""
    rollout = records.active_rollout(ctx.store, ctx.model)
    traffic = records.current_traffic(ctx.store, ctx.model)
    if rollout is None or traffic is None or traffic.valid_until_ms is None:
        return
    valid_ms = duration_ms(ctx.contract.canary.valid)
    if rollout.state not in IN_TRAFFIC or traffic.valid_until_ms - ctx.now_ms > valid_ms // 2:
        return
    with ctx.store.write() as connection:
        records.renew_traffic(
            connection, ctx.model, traffic.revision, ctx.now_ms + valid_ms, ctx.now_ms, ctx.lease
        )


def _repair_traffic(ctx: Context) -> None:
    """A split without a rollout that wants it (ended by hand, or restored data) goes to the champion."""
    rollout = records.active_rollout(ctx.store, ctx.model)
    traffic = records.current_traffic(ctx.store, ctx.model)
    if rollout is not None or traffic is None or len(traffic.arms) == 1:
        return
    last = next(iter(records.list_rollouts(ctx.store, ctx.model, 1)), None)
    if last is None:
        return
    whole = whole_split(last, traffic.revision + 1, arm_of(ctx, traffic.arms[0].version))
    with ctx.store.write() as connection:
        check(connection, ctx.lease)
        ctx.deps.router.set(connection, whole, ctx.now_ms)
    log.warning("a split without a rollout was ended", action="traffic_repaired", model=ctx.model)


def _repair_aliases(ctx: Context) -> None:
    """Compare the registry's aliases with the records, aside, and correct what differs.

    Only for models with a run behind them: what the agent never registered it does not touch.
    """
    if not records.list_runs(ctx.store, ctx.model, 1):
        return
    traffic = records.current_traffic(ctx.store, ctx.model)
    if traffic is None:
        return
    rollout = records.active_rollout(ctx.store, ctx.model)
    wanted = {
        "champion": traffic.arms[0].version,
        "challenger": None if rollout is None else rollout.challenger_version,
    }
    registry, model = ctx.deps.registry, ctx.model

    def repair() -> None:
        found = registry.aliases(model)
        for alias, version in wanted.items():
            if found.get(alias) != version:
                registry.set_alias(model, alias, version)

    checked_ms, confirmed = ctx.deps.aliases.get(model, (0, {}))
    if confirmed == wanted and ctx.now_ms < checked_ms + ALIAS_CHECK_MS:
        return
    key = f"aliases:{model}:{wanted['champion']}:{wanted['challenger']}"
    done, _ = ctx.deps.jobs.poll(key, repair)
    if done:
        ctx.deps.aliases[model] = (ctx.now_ms, wanted)
