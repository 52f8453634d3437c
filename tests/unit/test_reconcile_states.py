"""The reconciler: from any stored state it comes to an end; people's requests; holds; projections."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import update

from trimtab.contracts.model import Contract
from trimtab.detect.diagnosis import Code, Sign
from trimtab.detect.label_signals import LabelSignals
from trimtab.errors import ConflictError
from trimtab.records import (
    FINAL_ROLLOUT,
    FINAL_RUN,
    Evidence,
    Finding,
    IncidentState,
    Kind,
    Outcome,
    Reason,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Verdict,
)
from trimtab.store import agent as records
from trimtab.store import tables
from trimtab.store.leases import Lease, acquire
from trimtab.store.models import add_version, apply_contract
from trimtab_agent.context import Context
from trimtab_agent.gate.gate import HeldOut
from trimtab_agent.jobs import InlineJobs
from trimtab_agent.recipes.data import DataError
from trimtab_agent.reconcile import champion_since_ms, reconcile_model
from trimtab_agent.scheduler import Agent
from trimtab_agent.testing import (
    LEASE_MS,
    MODEL,
    START_MS,
    Failpoints,
    World,
    make_artifact,
    scripted_contract,
)
from trimtab_agent.training import Compared, WorkFailed

SHA = "a" * 64


@pytest.fixture
def world(tmp_path: Path, sqlite_url: str) -> Iterator[World]:
    """A scripted world with a champion; nothing has happened yet."""
    made = World(tmp_path / "world", sqlite_url, "promote", Failpoints())
    tables.metadata.create_all(made.store.engine)
    install(made, scripted_contract())
    yield made
    made.store.close()


def install(world: World, contract: Contract) -> None:
    apply_contract(world.store, contract, "", "test", START_MS)
    champion = world.folder / "champion"
    if not champion.exists():
        champion.mkdir()
        sha256 = make_artifact(champion, START_MS)
        records.set_champion(world.store, MODEL, "1", champion.as_uri(), sha256, "test", START_MS)


def lease_of(world: World) -> Lease:
    lease = acquire(world.store, "agent", "a test", START_MS, LEASE_MS)
    assert lease is not None
    return lease


def put(world: World, record: Run | Rollout) -> None:
    forget_lease(world)
    lease = lease_of(world)
    with world.store.write() as connection:
        records.apply_transition(connection, None, record, "test", {}, lease)
    forget_lease(world)


def forget_lease(world: World) -> None:
    with world.store.write() as connection:
        connection.execute(update(tables.leases).values(expires_ms=0))


def run_in(state: RunState, **changes: Any) -> Run:
    base = Run(
        id="r-1",
        model=MODEL,
        incident_id=None,
        state=state,
        reason="test",
        created_ms=START_MS,
        updated_ms=START_MS,
        trainer="scripted",
        onset_ms=START_MS,
        champion_version="1",
        snapshot={"from_ms": START_MS, "to_ms": START_MS + 1},
        search={"deadline_ms": START_MS + 5_000},
    )
    return replace(base, **changes)


def rollout_in(world: World, state: RolloutState, **changes: Any) -> Rollout:
    """A rollout as if it had come this far, with the split that belongs to it."""
    put(world, run_in(RunState.BLESSED, version="2", artifact_sha256=SHA))
    with world.store.write() as connection:
        add_version(connection, MODEL, "2", "file:///2", SHA, "r-1", "agent", START_MS)
    base = Rollout(
        id="o-1",
        model=MODEL,
        run_id="r-1",
        state=state,
        reason="test",
        created_ms=START_MS,
        updated_ms=START_MS,
        champion_version="1",
        challenger_version="2",
        salt="o-1",
    )
    untouched = {RolloutState.PENDING, RolloutState.AWAITING_APPROVAL}
    if state not in untouched:
        kind = "watch" if state in {RolloutState.PROMOTING, RolloutState.WATCHING} else "step"
        entry = {"kind": kind, "share": 0.9 if kind == "watch" else 0.25}
        base = replace(
            base,
            traffic_revision=2,
            step_since_ms=START_MS,
            promoted_ms=START_MS if kind == "watch" else None,
            steps=[{**entry, "revision": 2, "from_ms": START_MS}],
        )
        from trimtab_agent.rollout import router

        old, new = (_arm(world, version) for version in ("1", "2"))
        split = (
            router.watch_split(base, 2, old, new, 0.1, START_MS + 8_000)
            if kind == "watch"
            else router.canary_split(base, 2, old, new, 0.25, START_MS + 8_000)
        )
        with world.store.write() as connection:
            records.set_traffic(connection, split, START_MS)
    return replace(base, **changes)


def _arm(world: World, version: str) -> Any:
    from trimtab_agent.rollout.steps import arm_of

    return arm_of(context(world), version)


def context(world: World) -> Context:
    return Context(
        world.store, Lease("agent", "", 0, 0), world.deps, scripted_contract(), world.now_ms()
    )


def tick_until_done(world: World, kind: records.RecordKind, record_id: str, most: int = 400) -> Any:
    final: frozenset[Any] = FINAL_RUN if kind == "run" else FINAL_ROLLOUT
    for _ in range(most):
        world.tick()
        record = records.get_record(world.store, kind, record_id)
        if record.state in final:
            return record
    raise AssertionError(f"{record} is not finished after {most} ticks")


# --- every state comes to an end ------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        s
        for s in RunState
        if s not in FINAL_RUN and s not in {RunState.HELD, RunState.AWAITING_APPROVAL}
    ],
)
def test_a_run_in_any_state_comes_to_an_end(state: RunState, world: World) -> None:
    changes: dict[str, Any] = {}
    if state is RunState.REGISTERING:
        folder = world.folder / "challenger"
        folder.mkdir()
        sha256 = make_artifact(folder, START_MS)
        changes = {"artifact_uri": folder.as_uri(), "artifact_sha256": sha256, "version": "2"}
    if state is RunState.GATING:
        changes = {"artifact_uri": "file:///2", "artifact_sha256": SHA, "version": "2"}
    put(world, run_in(state, **changes))
    found = tick_until_done(world, "run", "r-1")
    expected = RunState.FAILED if state is RunState.WAITING_FOR_CHALLENGER else RunState.BLESSED
    assert found.state is expected
    assert found.finished_ms is not None


@pytest.mark.parametrize(
    "state",
    [s for s in RolloutState if s not in FINAL_ROLLOUT and s is not RolloutState.AWAITING_APPROVAL],
)
def test_a_rollout_in_any_state_comes_to_an_end(state: RolloutState, world: World) -> None:
    put(world, rollout_in(world, state))
    found = tick_until_done(world, "rollout", "o-1")
    traffic = records.current_traffic(world.store, MODEL)
    assert traffic is not None
    assert traffic.valid_until_ms is None
    winner = "2" if found.state is RolloutState.DONE else "1"
    assert [arm.version for arm in traffic.arms] == [winner]
    rolled_back = state is RolloutState.ROLLING_BACK
    assert (found.state is RolloutState.ROLLED_BACK) == rolled_back


def test_what_nobody_approves_in_seven_days_expires(world: World) -> None:
    week_ago = START_MS - 7 * 86_400_000
    put(world, run_in(RunState.AWAITING_APPROVAL, id="r-2", created_ms=week_ago))
    assert tick_until_done(world, "run", "r-2").state is RunState.CANCELLED
    put(world, rollout_in(world, RolloutState.AWAITING_APPROVAL, created_ms=week_ago))
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.ROLLED_BACK


def test_an_unknown_stored_state_is_held_until_a_person_acts(world: World) -> None:
    put(world, rollout_in(world, RolloutState.STEP))
    with world.store.write() as connection:
        body = connection.scalar(tables.rollouts.select().with_only_columns(tables.rollouts.c.body))
        body = body.replace('"state":"step"', '"state":"shadowing"')
        connection.execute(update(tables.rollouts).values(state="shadowing", body=body))
    for _ in range(10):
        world.tick()
    held = records.get_rollout(world.store, "o-1")
    assert held.state is RolloutState.HELD
    assert "shadowing" in held.reason
    records.request(world.store, "rollout", "o-1", "abort", "ann", START_MS)
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.ROLLED_BACK


# --- what may go wrong ----------------------------------------------------------------------------


def test_a_refused_challenger_spends_its_rows_and_opens_no_rollout(world: World) -> None:
    compare = world.deps.trainer.compare

    def no_better(run: Run, contract: Contract, champion: Any) -> Any:
        found = compare(run, contract, champion)
        assert isinstance(found, Compared)
        given = found.rows
        return Compared(
            HeldOut(
                labels=given.labels,
                champion=given.challenger,
                challenger=given.challenger,
                from_ms=given.from_ms,
                to_ms=given.to_ms,
            )
        )

    world.deps.trainer.compare = no_better  # type: ignore[method-assign]
    put(world, run_in(RunState.PLANNED))
    assert tick_until_done(world, "run", "r-1").state is RunState.REFUSED
    assert [each.run_id for each in records.gated_ranges(world.store, MODEL)] == ["r-1"]
    assert records.active_rollout(world.store, MODEL) is None


def test_a_failed_search_fails_the_run_and_says_why(world: World) -> None:
    world.deps.trainer.search = lambda *_: WorkFailed("no trial was completed")  # type: ignore[method-assign]
    put(world, run_in(RunState.SEARCHING))
    found = tick_until_done(world, "run", "r-1")
    assert found.state is RunState.FAILED
    assert "no trial was completed" in found.reason


def test_another_champion_supersedes_a_run(world: World) -> None:
    put(world, run_in(RunState.SEARCHING, champion_version="0"))
    assert tick_until_done(world, "run", "r-1").state is RunState.SUPERSEDED


def broken(onset_ms: int) -> Verdict:
    finding = Finding(
        kind=Kind.DATA_QUALITY,
        outcome=Outcome.ALARM,
        reason=Reason.RULE_BREACHED,
        figure="missing(x)",
        onset_ms=onset_ms,
    )
    return Verdict(
        model=MODEL,
        window_start_ms=onset_ms,
        window_end_ms=onset_ms + 1000,
        revision=1,
        outcome=Outcome.ALARM,
        kind=Kind.DATA_QUALITY,
        reason=finding.reason,
        summary="",
        findings=[finding],
        figures={},
        evidence=Evidence(input_digest="", contract_revision=1, code_version=""),
    )


def test_broken_data_supersedes_a_run_whose_data_overlaps_it(world: World) -> None:
    world.deps.sight.verdicts = lambda _model: [broken(START_MS + 10)]  # type: ignore[method-assign]
    early = {"from_ms": START_MS, "to_ms": START_MS + 10}
    put(world, run_in(RunState.GATING, snapshot=early, version="2", artifact_uri="file:///2"))
    assert tick_until_done(world, "run", "r-1").state is RunState.BLESSED
    rollout = records.active_rollout(world.store, MODEL)
    assert rollout is not None
    assert rollout.state is RolloutState.PENDING, "broken data keeps a rollout from starting"
    put(world, run_in(RunState.SEARCHING, id="r-2", snapshot={"to_ms": START_MS + 11}))
    assert tick_until_done(world, "run", "r-2").state is RunState.SUPERSEDED


def test_broken_data_holds_a_canary_and_it_goes_on_afterwards(world: World) -> None:
    sight = world.deps.sight.verdicts
    put(world, rollout_in(world, RolloutState.STEP))
    world.deps.sight.verdicts = lambda _model: [broken(START_MS)]  # type: ignore[method-assign]
    world.tick()
    assert records.get_rollout(world.store, "o-1").state is RolloutState.HELD
    world.deps.sight.verdicts = sight  # type: ignore[method-assign]
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.DONE


# --- the diagnosis --------------------------------------------------------------------------------


def judged(second: int, version: str, *, bad: bool) -> Verdict:
    start_ms = START_MS + 1_000 * second
    finding = Finding(
        kind=Kind.PERFORMANCE,
        outcome=Outcome.ALARM if bad else Outcome.OK,
        reason=Reason.RULE_BREACHED if bad else Reason.WITHIN_LIMITS,
        figure="accuracy",
        rule="accuracy < 0.90 in 3 of 4",
        value=0.6 if bad else 0.95,
        onset_ms=start_ms if bad else None,
    )
    return replace(
        broken(start_ms),
        kind=Kind.PERFORMANCE,
        findings=[finding],
        figures={"rows_by_version": {version: 400}, "judged_version": version},
    )


def test_a_promotion_that_brought_the_drop_is_taken_back_while_it_is_watched(world: World) -> None:
    put(world, rollout_in(world, RolloutState.WATCHING))
    after_ms = records.traffic_history(world.store, MODEL)[0][0]
    second = (after_ms - START_MS) // 1_000 + 1
    seen = [judged(second, "2", bad=True), judged(second - 2, "1", bad=False)]
    world.deps.sight.verdicts = lambda _model: seen  # type: ignore[method-assign]
    world.tick()
    rollout = records.get_rollout(world.store, "o-1")
    assert rollout.state is RolloutState.ROLLING_BACK
    assert rollout.reason == "Accuracy changed when version 2 came: roll back to 1."
    traffic = records.current_traffic(world.store, MODEL)
    assert traffic is not None
    assert [arm.version for arm in traffic.arms] == ["1"]
    incident = records.active_incident(world.store, MODEL)
    assert incident is not None
    assert incident.state is IncidentState.ACTING
    assert incident.decision["diagnosis"]["cause"] == "bad_release"
    world.deps.sight.verdicts = lambda _model: [seen[1]]  # type: ignore[method-assign]
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.ROLLED_BACK


class SlowJobs(InlineJobs):
    """Jobs that are done when they are asked for a second time."""

    def __init__(self) -> None:
        self.begun: set[str] = set()

    def poll(self, key: str, work: Any) -> tuple[bool, Any]:
        if key.startswith("labelled:") and key not in self.begun:
            self.begun.add(key)
            return False, None
        return super().poll(key, work)


def label_shift() -> LabelSignals:
    moved = tuple(
        Sign(code=code, subject="'1'", text="It comes more often.")
        for code in (Code.LABEL_PRIOR, Code.CALIBRATION, Code.SCORE_DRIFT)
    )
    return LabelSignals(
        rows=900,
        reference_rows=2_000,
        label_prior=moved[:1],
        class_conditional=(),
        calibration=moved[1:2],
        calibration_shape=(),
        features=(),
        score=moved[2:],
        quality=(),
    )


def test_labelled_rows_are_read_aside_before_a_run_begins_and_may_prevent_it(world: World) -> None:
    jobs = SlowJobs()
    world.deps = dataclasses.replace(world.deps, jobs=jobs)
    world.agent = Agent(world.store, world.deps, "slow", LEASE_MS, world.now_ms)
    asked: list[tuple[str, int]] = []

    def read(contract: Contract, version: str, since_ms: int, onset_ms: int, now_ms: int) -> Any:
        asked.append((version, onset_ms))
        return label_shift()

    world.deps.sight.label_signals = read  # type: ignore[method-assign]
    codes: list[str] = []
    for _ in range(30):
        world.tick()
        incident = records.active_incident(world.store, MODEL)
        if incident is not None:
            codes.append(incident.decision["reason_code"])
    assert codes[-1] == "label_shift"
    assert set(asked) == {("1", START_MS + 4_000)}
    assert len(asked) < len(codes), "not at every tick"
    assert records.list_runs(world.store) == []
    incident = records.active_incident(world.store, MODEL)
    assert incident is not None
    assert incident.decision["diagnosis"]["advice"] == "recalibrate"
    assert "recalibrate" in incident.reason


def test_an_archive_that_cannot_be_read_does_not_keep_a_model_from_being_retrained(
    world: World,
) -> None:
    def unreadable(*_: Any) -> Any:
        raise DataError("the archive is away")

    world.deps.sight.label_signals = unreadable  # type: ignore[method-assign]
    for _ in range(20):
        world.tick()
    assert records.list_runs(world.store) != []


# --- people ---------------------------------------------------------------------------------------


def ask(world: World, kind: records.RecordKind, record_id: str, action: str, **detail: Any) -> None:
    records.request(world.store, kind, record_id, action, "ann", world.now_ms(), detail)


def outcome_of(world: World, kind: records.RecordKind, record_id: str) -> str | None:
    return records.requests_of(world.store, kind, record_id)[-1].outcome


def test_a_run_waits_for_approval_and_goes_on_with_it(world: World) -> None:
    put(world, run_in(RunState.AWAITING_APPROVAL))
    world.tick()
    assert records.get_run(world.store, "r-1").state is RunState.AWAITING_APPROVAL
    ask(world, "run", "r-1", "approve")
    found = tick_until_done(world, "run", "r-1")
    assert (found.state, found.approved_by) == (RunState.BLESSED, "ann")
    assert outcome_of(world, "run", "r-1") == "approved"


@pytest.mark.parametrize("action", ["reject", "cancel"])
def test_a_person_ends_a_run(action: str, world: World) -> None:
    put(world, run_in(RunState.AWAITING_APPROVAL))
    ask(world, "run", "r-1", action)
    assert tick_until_done(world, "run", "r-1").state is RunState.CANCELLED


def test_an_external_challenger_is_registered_and_gated_like_any_other(world: World) -> None:
    install(world, scripted_contract(trainer="external"))
    put(world, run_in(RunState.PLANNED, trainer="external"))
    world.tick()
    assert records.get_run(world.store, "r-1").state is RunState.WAITING_FOR_CHALLENGER
    folder = world.folder / "sent"
    folder.mkdir()
    sha256 = make_artifact(folder, START_MS)
    ask(world, "run", "r-1", "challenger", artifact_uri=folder.as_uri(), artifact_sha256=sha256)
    assert tick_until_done(world, "run", "r-1").state is RunState.BLESSED


def test_a_challenger_that_is_not_what_was_announced_fails_the_run(world: World) -> None:
    put(world, run_in(RunState.WAITING_FOR_CHALLENGER))
    folder = world.folder / "sent"
    folder.mkdir()
    make_artifact(folder, START_MS)
    ask(world, "run", "r-1", "challenger", artifact_uri=folder.as_uri(), artifact_sha256=SHA)
    assert tick_until_done(world, "run", "r-1").state is RunState.FAILED


def test_a_pause_holds_until_it_is_taken_back(world: World) -> None:
    put(world, rollout_in(world, RolloutState.STEP))
    ask(world, "rollout", "o-1", "pause")
    for _ in range(8):
        world.tick()
    assert records.get_rollout(world.store, "o-1").state is RolloutState.HELD
    ask(world, "rollout", "o-1", "resume")
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.DONE


@pytest.mark.parametrize("state", [RolloutState.STEP, RolloutState.WATCHING, RolloutState.PENDING])
def test_an_abort_gives_the_traffic_back(state: RolloutState, world: World) -> None:
    put(world, rollout_in(world, state))
    ask(world, "rollout", "o-1", "abort")
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.ROLLED_BACK
    traffic = records.current_traffic(world.store, MODEL)
    assert traffic is not None
    assert [(arm.version, arm.weight) for arm in traffic.arms] == [("1", 1.0)]


def test_a_baseline_made_aside_does_not_come_after_its_rollback(world: World) -> None:
    put(world, rollout_in(world, RolloutState.WATCHING))
    fences: list[Any] = []
    rebase = world.deps.baselines.rebase

    def remember(*given: Any) -> int:
        fences.append(given[-1])
        return rebase(*given)

    world.deps.baselines.rebase = remember  # type: ignore[method-assign]
    world.tick()
    with world.store.write() as connection:
        fences[0](connection)  # while it watches, the baseline is wanted
    records.request(world.store, "rollout", "o-1", "abort", "ann", world.now_ms())
    tick_until_done(world, "rollout", "o-1")
    with world.store.write() as connection, pytest.raises(ConflictError, match="rolled_back"):
        fences[0](connection)


def test_an_approval_holds_for_the_artifact_that_was_approved(world: World) -> None:
    put(world, rollout_in(world, RolloutState.AWAITING_APPROVAL))
    ask(world, "rollout", "o-1", "approve")
    with world.store.write() as connection:
        connection.execute(update(tables.requests).values(detail='{"artifact_sha256":"other"}'))
    world.tick()
    assert records.get_rollout(world.store, "o-1").state is RolloutState.AWAITING_APPROVAL
    assert "declined" in str(outcome_of(world, "rollout", "o-1"))
    ask(world, "rollout", "o-1", "approve")
    assert tick_until_done(world, "rollout", "o-1").state is RolloutState.DONE


def test_what_makes_no_sense_is_refused_at_once_or_declined_with_its_reason(world: World) -> None:
    put(world, run_in(RunState.AWAITING_APPROVAL))
    with pytest.raises(ConflictError, match="knows no"):
        ask(world, "run", "r-1", "pause")
    ask(world, "run", "r-1", "challenger")
    world.tick()
    assert "declined" in str(outcome_of(world, "run", "r-1"))
    ask(world, "run", "r-1", "cancel")
    tick_until_done(world, "run", "r-1")
    with pytest.raises(ConflictError, match="finished"):
        ask(world, "run", "r-1", "approve")


def test_an_incident_is_closed_by_a_person(world: World) -> None:
    install(world, scripted_contract(mode="off"))
    for _ in range(12):
        world.tick()
    incident = records.active_incident(world.store, MODEL)
    assert incident is not None
    assert incident.decision["reason_code"] == "retraining_off"
    ask(world, "incident", incident.id, "close")
    world.tick()
    assert records.get_incident(world.store, incident.id).state is IncidentState.RESOLVED


# --- fences and projections -----------------------------------------------------------------------


def test_an_agent_of_the_past_writes_nothing(world: World) -> None:
    old = lease_of(world)
    forget_lease(world)
    world.tick()
    with pytest.raises(ConflictError), world.store.write() as connection:
        records.apply_transition(connection, None, run_in(RunState.PLANNED), "", {}, old)
    assert records.list_runs(world.store) == []


def test_a_decision_on_a_record_that_moved_is_dropped(world: World) -> None:
    lease = lease_of(world)
    first = run_in(RunState.SEARCHING)
    with world.store.write() as connection:
        records.apply_transition(connection, None, first, "", {}, lease)
        records.apply_transition(connection, first, run_in(RunState.FITTING), "", {}, lease)
    with pytest.raises(ConflictError, match="changed since"), world.store.write() as connection:
        records.apply_transition(connection, first, run_in(RunState.CANCELLED), "", {}, lease)


def test_a_model_has_one_active_run(world: World) -> None:
    put(world, run_in(RunState.AWAITING_APPROVAL))
    with pytest.raises(ConflictError, match="already has"):
        put(world, run_in(RunState.AWAITING_APPROVAL, id="r-2"))


def test_traffic_revisions_only_follow_one_another(world: World) -> None:
    current = records.current_traffic(world.store, MODEL)
    assert current is not None
    for revision in (current.revision, current.revision + 2):
        skipping = replace(current, revision=revision)
        with pytest.raises(ConflictError), world.store.write() as connection:
            records.set_traffic(connection, skipping, START_MS)


def test_an_active_split_is_renewed_before_it_expires(world: World) -> None:
    put(world, rollout_in(world, RolloutState.STEP))
    ask(world, "rollout", "o-1", "pause")
    for _ in range(30):
        world.tick()
        traffic = records.current_traffic(world.store, MODEL)
        assert traffic is not None
        assert traffic.valid_until_ms is not None
        assert traffic.valid_until_ms > world.now_ms()
    assert traffic.revision == 2


def test_a_split_that_no_rollout_wants_goes_back_to_the_champion(world: World) -> None:
    rollout = rollout_in(world, RolloutState.STEP)
    put(world, replace(rollout, state=RolloutState.ROLLED_BACK))
    world.tick()
    traffic = records.current_traffic(world.store, MODEL)
    assert traffic is not None
    assert [(arm.version, arm.weight) for arm in traffic.arms] == [("1", 1.0)]


def test_an_alias_that_somebody_moved_is_put_back(world: World) -> None:
    put(world, rollout_in(world, RolloutState.STEP))
    ask(world, "rollout", "o-1", "pause")
    world.tick()
    assert world.registry.read()["aliases"] == {"champion": "1", "challenger": "2"}
    world.deps.registry.set_alias(MODEL, "champion", "7")
    for _ in range(61):
        world.tick()
    assert world.registry.read()["aliases"]["champion"] == "1"


def test_the_champion_is_new_since_its_version_took_over(world: World) -> None:
    assert champion_since_ms(records.traffic_history(world.store, MODEL)) == 0
    put(world, rollout_in(world, RolloutState.STEP))
    assert champion_since_ms(records.traffic_history(world.store, MODEL)) == 0
    tick_until_done(world, "rollout", "o-1")
    promoted = records.get_rollout(world.store, "o-1").promoted_ms
    assert champion_since_ms(records.traffic_history(world.store, MODEL)) == promoted


def test_one_models_trouble_does_not_stop_the_others(world: World) -> None:
    apply_contract(world.store, replace(scripted_contract(), name="another"), "", "t", START_MS)
    good = world.deps.sight.verdicts

    def verdicts(model: str) -> list[Verdict]:
        if model == "another":
            raise OSError("its figures cannot be read")
        return good(model)

    world.deps.sight.verdicts = verdicts  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="cannot be read"):
        world.tick()
    assert world.agent.last is not None
    assert list(world.agent.last.errors) == ["another"]


def test_every_transition_is_announced_once(world: World) -> None:
    put(world, run_in(RunState.PLANNED))
    tick_until_done(world, "run", "r-1")
    with world.store.read() as connection:
        events = connection.execute(tables.outbox.select()).all()
        transitions = connection.execute(tables.transitions.select()).all()
    assert len({event.event_id for event in events}) == len(events) == len(transitions)


def test_reconciling_an_untouched_model_writes_nothing(world: World) -> None:
    lease = lease_of(world)
    ctx = Context(world.store, lease, world.deps, scripted_contract(), world.now_ms())
    reconcile_model(ctx)
    with world.store.read() as connection:
        assert connection.execute(tables.transitions.select()).all() == []
        assert connection.execute(tables.outbox.select()).all() == []
