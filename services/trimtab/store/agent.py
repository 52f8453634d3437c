"""The agent's records as rows: incidents, runs, rollouts, their transitions, effects, traffic.

Only the agent changes a record, by `apply_transition` (a new state) or `save_progress` (new numbers
in the same state). Both compare the stored record with the one the decision was made on, and check
the agent's lease, in the transaction that writes. People ask by `request`; the agent acts on it at
its tick. The `traffic` row is the desired split: the topic and the routers are projections of it.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, Row, Table, insert, select, update

from trimtab.errors import ConflictError, NotFoundError
from trimtab.events.types import RETRAINING_TYPE, ROLLOUT_TYPE, Traffic, TrafficArm
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
    Transition,
)
from trimtab.store import tables
from trimtab.store.alerts import OUTCOMES, enqueue
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.keys import audit
from trimtab.store.leases import Lease, check
from trimtab.store.models import add_version

RecordKind = Literal["incident", "run", "rollout"]
Record = Incident | Run | Rollout

CHAMPION_ARM = "champion"
CHALLENGER_ARM = "challenger"
HOLDBACK_ARM = "holdback"

LIST_LIMIT = 100


class _Meaning(Struct, frozen=True):
    """What one kind of record is made of."""

    table: Table
    record: type[Any]
    states: type[IncidentState] | type[RunState] | type[RolloutState]
    final: frozenset[Any]
    unknown: str
    """A stored state that this release does not know is read as this one."""
    event: str


_KINDS: dict[str, _Meaning] = {
    "incident": _Meaning(
        tables.incidents, Incident, IncidentState, FINAL_INCIDENT, "escalated", RETRAINING_TYPE
    ),
    "run": _Meaning(tables.runs, Run, RunState, FINAL_RUN, "held", RETRAINING_TYPE),
    "rollout": _Meaning(
        tables.rollouts, Rollout, RolloutState, FINAL_ROLLOUT, "held", ROLLOUT_TYPE
    ),
}

_ENCODER = msgspec.json.Encoder(order="deterministic")

# --- reading records ------------------------------------------------------------------------------


def _kind_of(record: Record) -> RecordKind:
    if isinstance(record, Incident):
        return "incident"
    return "run" if isinstance(record, Run) else "rollout"


def _decode(meaning: _Meaning, body: str) -> Any:
    raw = msgspec.json.decode(body)
    state = raw["state"]
    if state not in {known.value for known in meaning.states}:
        raw = {
            **raw,
            "state": meaning.unknown,
            "reason": f"Its stored state {state!r} is unknown to this release; upgrade trimtab, or "
            "end the record by hand.",
        }
        if meaning.record is Rollout:  # held until a person acts, not until the evidence allows
            assessment = raw.get("assessment", {})
            kept = {**assessment.get("kept", {}), "unknown_state": state}
            raw["assessment"] = {**assessment, "kept": kept}
    return msgspec.convert(raw, meaning.record)


def _active(store: Store, kind: RecordKind, model: str) -> Any:
    table = _KINDS[kind].table
    with store.read() as connection:
        body = connection.scalar(select(table.c.body).where(table.c.model == model, table.c.active))
    return None if body is None else _decode(_KINDS[kind], body)


def _list(store: Store, kind: RecordKind, model: str | None, limit: int) -> list[Any]:
    table = _KINDS[kind].table
    query = select(table.c.body).order_by(table.c.created_ms.desc(), table.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(table.c.model == model)
    with store.read() as connection:
        return [_decode(_KINDS[kind], body) for body in connection.scalars(query)]


def get_record(store: Store, kind: RecordKind, record_id: str) -> Record:
    """The record with this id. Raises NotFoundError."""
    if kind not in _KINDS:
        raise NotFoundError(f"{kind!r} is no kind of record. Use incident, run or rollout.")
    table = _KINDS[kind].table
    with store.read() as connection:
        body = connection.scalar(select(table.c.body).where(table.c.id == record_id))
    if body is None:
        raise NotFoundError(
            f"There is no {kind} {record_id!r}. `trimtab {kind} list` shows those there are."
        )
    return cast(Record, _decode(_KINDS[kind], body))


def active_incident(store: Store, model: str) -> Incident | None:
    """The model's unresolved incident; at most one exists."""
    return cast(Incident | None, _active(store, "incident", model))


def active_run(store: Store, model: str) -> Run | None:
    """The model's unfinished run; at most one exists."""
    return cast(Run | None, _active(store, "run", model))


def active_rollout(store: Store, model: str) -> Rollout | None:
    """The model's unfinished rollout; at most one exists."""
    return cast(Rollout | None, _active(store, "rollout", model))


def list_incidents(
    store: Store, model: str | None = None, limit: int = LIST_LIMIT
) -> list[Incident]:
    """Incidents of one model or all, newest first."""
    return cast(list[Incident], _list(store, "incident", model, limit))


def list_runs(store: Store, model: str | None = None, limit: int = LIST_LIMIT) -> list[Run]:
    """Runs of one model or all, newest first."""
    return cast(list[Run], _list(store, "run", model, limit))


def list_rollouts(store: Store, model: str | None = None, limit: int = LIST_LIMIT) -> list[Rollout]:
    """Rollouts of one model or all, newest first."""
    return cast(list[Rollout], _list(store, "rollout", model, limit))


def get_incident(store: Store, incident_id: str) -> Incident:
    """One incident. Raises NotFoundError."""
    return cast(Incident, get_record(store, "incident", incident_id))


def get_run(store: Store, run_id: str) -> Run:
    """One run. Raises NotFoundError."""
    return cast(Run, get_record(store, "run", run_id))


def get_rollout(store: Store, rollout_id: str) -> Rollout:
    """One rollout. Raises NotFoundError."""
    return cast(Rollout, get_record(store, "rollout", rollout_id))


def transitions_of(store: Store, record: RecordKind, record_id: str) -> list[Transition]:
    """The record's transitions in order; empty for an unknown id."""
    table = tables.transitions
    query = (
        select(table)
        .where(table.c.record == record, table.c.record_id == record_id)
        .order_by(table.c.seq)
    )
    with store.read() as connection:
        return [
            Transition(
                record=row.record,
                record_id=row.record_id,
                seq=row.seq,
                from_state=row.from_state,
                to_state=row.to_state,
                reason=row.reason,
                at_ms=row.at_ms,
                inputs=msgspec.json.decode(row.inputs),
                token=row.token,
            )
            for row in connection.execute(query)
        ]


# --- writing records ------------------------------------------------------------------------------


def _locked(connection: Connection, kind: RecordKind, record: Record) -> Row[Any] | None:
    table = _KINDS[kind].table
    return connection.execute(
        select(table).where(table.c.id == record.id).with_for_update()
    ).one_or_none()


def _compare(kind: RecordKind, row: Row[Any] | None, old: Record) -> None:
    if row is None or _decode(_KINDS[kind], row.body) != old:
        raise ConflictError(
            f"The {kind} {old.id} has changed since it was read. Read it again and decide again."
        )


def _columns(kind: RecordKind, record: Record) -> dict[str, Any]:
    return {
        "state": record.state.value,
        "active": record.state not in _KINDS[kind].final,
        "updated_ms": record.updated_ms,
        "body": _ENCODER.encode(record).decode(),
    }


def apply_transition(
    connection: Connection,
    old: Record | None,
    new: Record,
    reason: str,
    inputs: Mapping[str, Any],
    lease: Lease,
) -> int:
    """Move a record from `old` (None: create it) to `new`; returns the transition's number.

    Writes the record, its transition row and its outcome event in the caller's transaction; the
    time is `new.updated_ms`. Raises ConflictError when the stored record is no longer `old`, when
    the model already has an active record of this kind, or when the lease has another owner.
    """
    kind = _kind_of(new)
    meaning = _KINDS[kind]
    check(connection, lease)
    row = _locked(connection, kind, new)
    if old is None:
        _create(connection, kind, new, row)
        seq, from_state = 1, ""
    else:
        _compare(kind, row, old)
        assert row is not None
        seq, from_state = row.seq + 1, row.state
        connection.execute(
            update(meaning.table)
            .where(meaning.table.c.id == new.id)
            .values(seq=seq, **_columns(kind, new))
        )
    connection.execute(
        insert(tables.transitions).values(
            record=kind,
            record_id=new.id,
            seq=seq,
            from_state=from_state,
            to_state=new.state.value,
            reason=reason,
            inputs=_ENCODER.encode(inputs).decode(),
            at_ms=new.updated_ms,
            token=lease.token,
        )
    )
    _announce(connection, kind, new, seq, from_state, reason)
    return seq


def _create(connection: Connection, kind: RecordKind, new: Record, row: Row[Any] | None) -> None:
    table = _KINDS[kind].table
    if row is not None:
        raise ConflictError(f"The {kind} {new.id} exists already. Read it and go on from there.")
    active = connection.scalar(select(table.c.id).where(table.c.model == new.model, table.c.active))
    if active is not None and new.state not in _KINDS[kind].final:
        raise ConflictError(
            f"The model {new.model!r} already has the active {kind} {active}. End it first."
        )
    connection.execute(
        insert(table).values(
            id=new.id, model=new.model, seq=1, created_ms=new.updated_ms, **_columns(kind, new)
        )
    )


def _announce(
    connection: Connection, kind: RecordKind, new: Record, seq: int, from_state: str, reason: str
) -> None:
    body = {
        "record": kind,
        "id": new.id,
        "seq": seq,
        "from_state": from_state,
        "to_state": new.state.value,
        "reason": reason,
        "at_ms": new.updated_ms,
        "body": msgspec.to_builtins(new),
    }
    enqueue(
        connection,
        f"{kind}:{new.id}:{seq}",
        OUTCOMES,
        new.model,
        _KINDS[kind].event,
        body,
        new.updated_ms,
    )


def save_progress(connection: Connection, old: Record, new: Record, lease: Lease) -> None:
    """Store new numbers of a record whose state stays; no transition and no event.

    Raises ConflictError as `apply_transition` does, and when the state differs.
    """
    kind = _kind_of(new)
    if old.state != new.state:
        raise ConflictError(f"The state of {kind} {new.id} would change. Use apply_transition.")
    check(connection, lease)
    _compare(kind, _locked(connection, kind, new), old)
    connection.execute(
        update(_KINDS[kind].table)
        .where(_KINDS[kind].table.c.id == new.id)
        .values(**_columns(kind, new))
    )


def require_rollout(connection: Connection, rollout_id: str, state: RolloutState) -> None:
    """Keep a rollout in a state until the caller's transaction ends. Raises ConflictError otherwise."""
    table = tables.rollouts
    found = connection.scalar(
        select(table.c.state).where(table.c.id == rollout_id).with_for_update()
    )
    if found != state.value:
        raise ConflictError(
            f"The rollout {rollout_id} is {found}, no longer {state.value}; what was done for it is "
            "dropped."
        )


# --- effects --------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """One effect outside a record's row: intended, and once confirmed, done with its result."""

    key: str
    record_id: str
    intent_ms: int
    done_ms: int | None
    result: dict[str, Any]


def effect(store: Store, key: str) -> Effect | None:
    """The effect with this key; None when it was never intended."""
    with store.read() as connection:
        row = connection.execute(
            select(tables.effects).where(tables.effects.c.key == key)
        ).one_or_none()
    if row is None:
        return None
    return Effect(
        row.key,
        row.record_id,
        row.intent_ms,
        row.done_ms,
        {} if row.result is None else msgspec.json.decode(row.result),
    )


def begin_effect(store: Store, key: str, record_id: str, now_ms: int, lease: Lease) -> Effect:
    """Write the intent, or return the effect as it stands: done, or intended by an earlier try.

    One intended but not done may or may not have happened: look it up before doing it again.
    """
    with store.write() as connection:
        check(connection, lease)
        statement = insert_for(connection, tables.effects)
        connection.execute(
            statement.values(
                key=key, record_id=record_id, intent_ms=now_ms
            ).on_conflict_do_nothing()
        )
    found = effect(store, key)
    assert found is not None
    return found


def finish_effect(
    connection: Connection, key: str, result: Mapping[str, Any], now_ms: int, lease: Lease
) -> None:
    """Confirm an intended effect with what came of it. Raises ConflictError without an intent."""
    check(connection, lease)
    done = connection.execute(
        update(tables.effects)
        .where(tables.effects.c.key == key)
        .values(done_ms=now_ms, result=_ENCODER.encode(result).decode())
    )
    if done.rowcount != 1:
        raise ConflictError(f"The effect {key!r} was never begun. Begin it before it is done.")


# --- traffic --------------------------------------------------------------------------------------


def current_traffic(store: Store, model: str) -> Traffic | None:
    """The model's desired split; None before it has a champion."""
    with store.read() as connection:
        return _traffic(connection, model)


def _traffic(connection: Connection, model: str) -> Traffic | None:
    body = connection.scalar(select(tables.traffic.c.body).where(tables.traffic.c.model == model))
    return None if body is None else msgspec.json.decode(body, type=Traffic)


def traffic_history(store: Store, model: str, limit: int = LIST_LIMIT) -> list[tuple[int, Traffic]]:
    """(time in ms, split) of the model's traffic revisions, newest first."""
    table = tables.traffic_history
    query = (
        select(table).where(table.c.model == model).order_by(table.c.revision.desc()).limit(limit)
    )
    with store.read() as connection:
        return [
            (row.at_ms, msgspec.json.decode(row.body, type=Traffic))
            for row in connection.execute(query)
        ]


def set_traffic(connection: Connection, traffic: Traffic, now_ms: int) -> None:
    """Set the model's desired split; it is due for publication at once.

    Raises ConflictError unless its revision is the stored one plus one (the first: 1).
    """
    table = tables.traffic
    stored = connection.scalar(
        select(table.c.revision).where(table.c.model == traffic.model).with_for_update()
    )
    if traffic.revision != (stored or 0) + 1:
        raise ConflictError(
            f"Traffic revision {traffic.revision} of {traffic.model!r} does not follow {stored or 0}. "
            "Read the current split and decide again."
        )
    body = _ENCODER.encode(traffic).decode()
    values = {"revision": traffic.revision, "body": body, "updated_ms": now_ms}
    statement = insert_for(connection, table).values(model=traffic.model, **values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["model"], set_={**values, "published_ms": None}
        )
    )
    connection.execute(
        insert(tables.traffic_history).values(
            model=traffic.model, revision=traffic.revision, body=body, at_ms=now_ms
        )
    )


def renew_traffic(
    connection: Connection,
    model: str,
    revision: int,
    valid_until_ms: int,
    now_ms: int,
    lease: Lease,
) -> None:
    """Let the current split live longer under the same revision; published again at once.

    Raises ConflictError when another revision is current, or the lease has another owner.
    """
    check(connection, lease)
    current = _traffic(connection, model)
    if current is None or current.revision != revision:
        raise ConflictError(
            f"Traffic revision {revision} of {model!r} is no longer current. Read the split again."
        )
    renewed = msgspec.structs.replace(current, valid_until_ms=valid_until_ms)
    connection.execute(
        update(tables.traffic)
        .where(tables.traffic.c.model == model, tables.traffic.c.revision == revision)
        .values(body=_ENCODER.encode(renewed).decode(), updated_ms=now_ms, published_ms=None)
    )


def set_champion(
    store: Store,
    model: str,
    version: str,
    artifact_uri: str,
    sha256: str,
    by: str,
    now_ms: int,
) -> Traffic:
    """Send all of a model's traffic to `version` (its first champion, or a person's choice).

    Raises ConflictError while a rollout is active. Setting the same champion again changes nothing.
    """
    arm = TrafficArm(CHAMPION_ARM, version, 1.0, artifact_uri, sha256)
    with store.write() as connection:
        add_version(connection, model, version, artifact_uri, sha256, None, "user", now_ms)
        rollouts = tables.rollouts
        active = connection.scalar(
            select(rollouts.c.id).where(rollouts.c.model == model, rollouts.c.active)
        )
        if active is not None:
            raise ConflictError(
                f"The rollout {active} of {model!r} is under way. End it with "
                f"`trimtab rollout abort {active}` first."
            )
        current = _traffic(connection, model)
        if current is not None and current.arms == [arm]:
            return current
        revision = 1 if current is None else current.revision + 1
        traffic = Traffic(model=model, revision=revision, salt=f"{model}:{revision}", arms=[arm])
        set_traffic(connection, traffic, now_ms)
        audit(connection, by, "set_champion", f"model:{model}", {"version": version}, now_ms)
    return traffic


# --- what people ask of the agent -----------------------------------------------------------------

Action = Literal["approve", "reject", "pause", "resume", "abort", "cancel", "challenger", "close"]

_ALLOWED: dict[str, frozenset[str]] = {
    "incident": frozenset({"close"}),
    "run": frozenset({"approve", "reject", "cancel", "challenger"}),
    "rollout": frozenset({"approve", "reject", "pause", "resume", "abort"}),
}


class Request(Struct, frozen=True):
    """What a person asked of a record, until the agent has acted on it."""

    id: int
    record: RecordKind
    record_id: str
    model: str
    action: str
    by: str
    at_ms: int
    detail: dict[str, Any] = field(default_factory=dict)
    handled_ms: int | None = None
    outcome: str | None = None


def request(
    store: Store,
    record_kind: RecordKind,
    record_id: str,
    action: str,
    by: str,
    now_ms: int,
    detail: Mapping[str, Any] | None = None,
) -> int:
    """Ask the agent to act on a record at its next tick; audited. Returns the request's number.

    An approval of a rollout is bound to the artifact as it is now. `detail` of `challenger`:
    `artifact_uri` and `artifact_sha256`. Raises NotFoundError for an unknown record, ConflictError
    when the record is finished or knows no such action.
    """
    record = get_record(store, record_kind, record_id)
    if record.state in _KINDS[record_kind].final:
        raise ConflictError(
            f"The {record_kind} {record_id} is finished ({record.state.value}); nothing can be asked of it."
        )
    if action not in _ALLOWED[record_kind]:
        known = ", ".join(sorted(_ALLOWED[record_kind]))
        raise ConflictError(f"A {record_kind} knows no {action!r}. It knows: {known}.")
    body = dict(detail or {})
    if isinstance(record, Rollout) and action == "approve":
        body["artifact_sha256"] = get_run(store, record.run_id).artifact_sha256
    with store.write() as connection:
        number = connection.scalar(
            insert(tables.requests)
            .values(
                record=record_kind,
                record_id=record_id,
                model=record.model,
                action=action,
                by=by,
                at_ms=now_ms,
                detail=_ENCODER.encode(body).decode(),
            )
            .returning(tables.requests.c.id)
        )
        audit(connection, by, f"{record_kind}.{action}", f"{record_kind}:{record_id}", body, now_ms)
    return cast(int, number)


def requests_of(store: Store, record: RecordKind, record_id: str) -> list[Request]:
    """What people asked of a record, oldest first."""
    table = tables.requests
    return _requests(store, (table.c.record == record) & (table.c.record_id == record_id))


def pending_requests(store: Store, model: str) -> list[Request]:
    """What people asked of a model's records and the agent has not acted on, oldest first."""
    table = tables.requests
    return _requests(store, (table.c.model == model) & table.c.handled_ms.is_(None))


def _requests(store: Store, condition: Any) -> list[Request]:
    table = tables.requests
    query = select(table).where(condition).order_by(table.c.id)
    with store.read() as connection:
        return [
            Request(
                row.id,
                row.record,
                row.record_id,
                row.model,
                row.action,
                row.by,
                row.at_ms,
                msgspec.json.decode(row.detail),
                row.handled_ms,
                row.outcome,
            )
            for row in connection.execute(query)
        ]


def finish_request(connection: Connection, request_id: int, outcome: str, now_ms: int) -> None:
    """Note what the agent made of a request, in the transaction in which it acted."""
    connection.execute(
        update(tables.requests)
        .where(tables.requests.c.id == request_id)
        .values(handled_ms=now_ms, outcome=outcome)
    )


# --- rows that a gate has used --------------------------------------------------------------------


class GatedRange(Struct, frozen=True):
    """Event times [from_ms, to_ms) whose labelled rows a run's gate has used."""

    run_id: str
    from_ms: int
    to_ms: int


def gated_ranges(store: Store, model: str) -> list[GatedRange]:
    """The ranges of event time that gates of this model have used, oldest first."""
    table = tables.gated_ranges
    with store.read() as connection:
        rows = connection.execute(
            select(table).where(table.c.model == model).order_by(table.c.from_ms)
        )
        return [GatedRange(row.run_id, row.from_ms, row.to_ms) for row in rows]


def spend_range(connection: Connection, model: str, run_id: str, from_ms: int, to_ms: int) -> None:
    """Mark the rows of [from_ms, to_ms) as used by this run's gate; again changes nothing."""
    connection.execute(
        insert_for(connection, tables.gated_ranges)
        .values(model=model, run_id=run_id, from_ms=from_ms, to_ms=to_ms)
        .on_conflict_do_nothing()
    )
