"""Alerts, silences, and the outbox with its deliveries.

The outbox is written in the transaction of the fact it tells of; the relay sends what is due. One
delivery row per receiver says what became of it: at least once, with a deterministic event id.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, insert, select, update

from trimtab.errors import ConflictError, NotFoundError
from trimtab.events.outcomes import outcome_event, outcome_id
from trimtab.events.types import ALERT_TYPE
from trimtab.records import Alert, AlertState
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import alerts, deliveries, outbox, silences

KAFKA = "kafka"
OUTCOMES = "outcomes"
TRIMTAB = "trimtab"
"""Subject of events that are about no model."""


# --- outbox ---------------------------------------------------------------------------------------


def enqueue(
    connection: Connection,
    event_id: str,
    topic: str,
    key: str,
    type: str,  # noqa: A002 - the event attribute's name
    body: Mapping[str, Any],
    now_ms: int,
    receivers: Sequence[str] = (KAFKA,),
) -> None:
    """Put an outcome into the outbox, in the transaction of the fact; the same fact twice is once.

    `event_id` names the fact within the model and type, such as "alert:17:opened"; `topic` is
    "outcomes" (the relay adds the prefix); `key` the model; `type` one of the outcome types; `body`
    the event's data. `receivers` are "kafka" and "webhook:NAME".
    """
    stored_id = outcome_id(type, key, event_id)
    added = connection.execute(
        insert_for(connection, outbox)
        .values(
            event_id=stored_id,
            topic=topic,
            key=key,
            type=type,
            body=outcome_event(type, key, event_id, body, now_ms).decode(),
            created_ms=now_ms,
        )
        .on_conflict_do_nothing()
        .returning(outbox.c.id)
    ).scalar()
    if added is None:
        return
    connection.execute(
        insert(deliveries),
        [
            {"outbox_id": added, "receiver": receiver, "attempts": 0, "next_attempt_ms": now_ms}
            for receiver in dict.fromkeys(receivers)
        ],
    )


class Delivery(Struct, frozen=True, kw_only=True):
    """One outbox row on its way to one receiver."""

    outbox_id: int
    receiver: str
    attempts: int
    event_id: str
    topic: str
    key: str
    type: str
    body: str
    created_ms: int


def due_deliveries(store: Store, now_ms: int, limit: int) -> list[Delivery]:
    """Return deliveries that are not sent and due: at most `limit` per receiver, oldest first.

    So what piles up for a receiver that is away takes nobody else's place.
    """
    due = deliveries.c.sent_ms.is_(None) & (deliveries.c.next_attempt_ms <= now_ms)
    found: list[Delivery] = []
    with store.read() as connection:
        receivers = connection.scalars(
            select(deliveries.c.receiver).distinct().where(due).order_by(deliveries.c.receiver)
        ).all()
        for receiver in receivers:
            query = (
                select(
                    deliveries.c.outbox_id,
                    deliveries.c.receiver,
                    deliveries.c.attempts,
                    outbox.c.event_id,
                    outbox.c.topic,
                    outbox.c.key,
                    outbox.c.type,
                    outbox.c.body,
                    outbox.c.created_ms,
                )
                .join(outbox, outbox.c.id == deliveries.c.outbox_id)
                .where(due, deliveries.c.receiver == receiver)
                .order_by(deliveries.c.outbox_id)
                .limit(limit)
            )
            found += [Delivery(**row) for row in connection.execute(query).mappings()]
    return found


def mark_sent(connection: Connection, sent: Sequence[Delivery], now_ms: int) -> None:
    """Record that the receivers have these."""
    for delivery in sent:
        connection.execute(
            update(deliveries)
            .where(_is(delivery))
            .values(sent_ms=now_ms, attempts=delivery.attempts + 1, last_error=None)
        )


def mark_failed(
    connection: Connection, delivery: Delivery, error: str, next_attempt_ms: int
) -> None:
    """Record a failed attempt and when to try again."""
    connection.execute(
        update(deliveries)
        .where(_is(delivery))
        .values(
            attempts=delivery.attempts + 1,
            last_error=error[:500],
            next_attempt_ms=next_attempt_ms,
        )
    )


def _is(delivery: Delivery) -> Any:
    return (deliveries.c.outbox_id == delivery.outbox_id) & (
        deliveries.c.receiver == delivery.receiver
    )


# --- alerts ---------------------------------------------------------------------------------------


def open_alerts(
    source: Store | Connection, model: str | None = None, *, lock: bool = False
) -> list[Alert]:
    """Return alerts that are not resolved, oldest first; of one model or of all.

    `lock` keeps their rows until the caller's transaction ends, so that what a person does to one at
    the same time is neither missed nor overwritten.
    """
    query = select(alerts.c.body).where(alerts.c.state != AlertState.RESOLVED)
    if model is not None:
        query = query.where(alerts.c.model == model)
    query = query.order_by(alerts.c.opened_ms, alerts.c.id)
    if lock:
        query = query.with_for_update()
    if isinstance(source, Connection):
        return [_alert(body) for body in source.scalars(query)]
    with source.read() as connection:
        return [_alert(body) for body in connection.scalars(query)]


def last_resolved(connection: Connection, model: str, conditions: Sequence[str]) -> list[Alert]:
    """Return, per condition, the alert that was resolved last."""
    found = []
    for condition in conditions:
        body = connection.scalar(
            select(alerts.c.body)
            .where(
                alerts.c.model == model,
                alerts.c.condition == condition,
                alerts.c.state == AlertState.RESOLVED,
            )
            .order_by(alerts.c.resolved_ms.desc(), alerts.c.id)
            .limit(1)
        )
        if body is not None:
            found.append(_alert(body))
    return found


def alerts_of(
    store: Store, model: str | None = None, limit: int = 100, before_ms: int | None = None
) -> list[Alert]:
    """Return alerts in any state, newest first; `before_ms` pages by the time they opened."""
    query = select(alerts.c.body)
    if model is not None:
        query = query.where(alerts.c.model == model)
    if before_ms is not None:
        query = query.where(alerts.c.opened_ms < before_ms)
    query = query.order_by(alerts.c.opened_ms.desc(), alerts.c.id).limit(limit)
    with store.read() as connection:
        return [_alert(body) for body in connection.scalars(query)]


def get_alert(store: Store, alert_id: str) -> Alert:
    """Return one alert. Raises NotFoundError."""
    with store.read() as connection:
        return _load(connection, alert_id)


def save_alert(connection: Connection, alert: Alert) -> None:
    """Insert or replace an alert's row inside the caller's transaction.

    The index `uq_alerts_open` keeps a second open alert of the same condition out.
    """
    values = {
        "model": alert.model,
        "condition": alert.condition,
        "kind": str(alert.kind),
        "state": str(alert.state),
        "opened_ms": alert.opened_ms,
        "updated_ms": alert.updated_ms,
        "resolved_ms": alert.resolved_ms,
        "body": msgspec.json.encode(alert).decode(),
    }
    connection.execute(
        insert_for(connection, alerts)
        .values(id=alert.id, **values)
        .on_conflict_do_update(index_elements=[alerts.c.id], set_=values)
    )


def acknowledge(store: Store, alert_id: str, by: str, now_ms: int) -> Alert:
    """Say that somebody looks at it. Raises NotFoundError, and ConflictError when it is resolved."""
    with store.write() as connection:
        alert = _load(connection, alert_id, lock=True)
        if alert.state is AlertState.RESOLVED:
            raise ConflictError(
                f"Alert {alert_id} is resolved already; there is nothing to acknowledge."
            )
        return _change(
            connection,
            msgspec.structs.replace(
                alert, state=AlertState.ACKNOWLEDGED, acknowledged_by=by, updated_ms=now_ms
            ),
            "acknowledged",
            now_ms,
        )


def resolve(store: Store, alert_id: str, by: str, note: str, now_ms: int) -> Alert:
    """Resolve an alert by hand; while its condition lasts the next verdict opens a new one."""
    with store.write() as connection:
        alert = _load(connection, alert_id, lock=True)
        if alert.state is AlertState.RESOLVED:
            return alert
        text = f"Resolved by {by}: {note}" if note else f"Resolved by {by}."
        return _change(
            connection,
            msgspec.structs.replace(
                alert,
                state=AlertState.RESOLVED,
                resolved_ms=now_ms,
                updated_ms=now_ms,
                resolution=text,
            ),
            "resolved",
            now_ms,
        )


def key_of(alert: Alert) -> str:
    """Return the key and subject of an alert's event: its model, or trimtab itself."""
    return alert.model or TRIMTAB


def alert_event_body(alert: Alert, change: str, *, silenced: bool) -> dict[str, Any]:
    """Return the data of an alert's outcome event."""
    return {
        "change": change,
        "silenced": silenced,
        "alert": msgspec.to_builtins(msgspec.json.decode(msgspec.json.encode(alert))),
    }


def _change(connection: Connection, alert: Alert, change: str, now_ms: int) -> Alert:
    save_alert(connection, alert)
    enqueue(
        connection,
        f"alert:{alert.id}:{change}",
        OUTCOMES,
        key_of(alert),
        ALERT_TYPE,
        alert_event_body(alert, change, silenced=False),
        now_ms,
    )
    return alert


def _load(connection: Connection, alert_id: str, *, lock: bool = False) -> Alert:
    query = select(alerts.c.body).where(alerts.c.id == alert_id)
    body = connection.scalar(query.with_for_update() if lock else query)
    if body is None:
        raise NotFoundError(f"There is no alert {alert_id!r}. `trimtab alert list` names them.")
    return _alert(body)


def _alert(body: str) -> Alert:
    return msgspec.json.decode(body, type=Alert)


# --- silences -------------------------------------------------------------------------------------


class Silence(Struct, frozen=True, kw_only=True):
    """No webhook is called for these alerts between two times; the record is kept all the same."""

    id: str
    model: str
    condition: str | None
    """None: every condition of the model."""
    from_ms: int
    to_ms: int
    by: str
    note: str

    def mutes(self, condition: str, now_ms: int) -> bool:
        """Whether it covers this condition at this time."""
        return self.from_ms <= now_ms < self.to_ms and self.condition in (None, condition)


def silence(
    store: Store,
    model: str,
    condition: str | None,
    from_ms: int,
    to_ms: int,
    by: str,
    note: str = "",
) -> Silence:
    """Mute the delivery of a model's alerts (of one condition or of all) between two times."""
    entry = Silence(
        id=uuid4().hex,
        model=model,
        condition=condition,
        from_ms=from_ms,
        to_ms=to_ms,
        by=by,
        note=note,
    )
    with store.write() as connection:
        connection.execute(insert(silences).values(**msgspec.structs.asdict(entry)))
    return entry


def silences_of(source: Store | Connection, model: str, now_ms: int | None = None) -> list[Silence]:
    """Return a model's silences; with `now_ms` only those that hold then."""
    query = select(silences).where(silences.c.model == model).order_by(silences.c.from_ms)
    if now_ms is not None:
        query = query.where(silences.c.from_ms <= now_ms, silences.c.to_ms > now_ms)
    if isinstance(source, Connection):
        return [Silence(**row) for row in source.execute(query).mappings()]
    with source.read() as connection:
        return [Silence(**row) for row in connection.execute(query).mappings()]
