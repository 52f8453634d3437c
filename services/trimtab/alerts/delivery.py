"""Delivery: what waits in the outbox goes to Kafka and to webhooks, and each model's traffic row to its topic.

At least once: a delivery is marked sent after its receiver has it, so a crash between the two sends it
again, under the same event id. Receivers order by the event's time. A webhook that fails is tried again
after 1 s, 2 s, 4 s … at most RETRY_MOST_MS, for KEEP_TRYING_MS.

Signature of a webhook: `X-Trimtab-Signature: v1=HEX`, HEX = HMAC-SHA256(secret, timestamp "." body), with
the seconds since the epoch in `X-Trimtab-Timestamp`. Receivers recompute it and refuse old timestamps.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from sqlalchemy import or_, select, update

from trimtab import logs
from trimtab.events.cloudevents import STRUCTURED_CONTENT_TYPE, encode_structured
from trimtab.events.outcomes import OUTCOME_SOURCE
from trimtab.events.types import Traffic
from trimtab.sdk.producer import close_producer, make_producer
from trimtab.store.alerts import KAFKA, Delivery, due_deliveries, mark_failed, mark_sent
from trimtab.store.engine import Store
from trimtab.store.leases import Lease, check
from trimtab.store.tables import traffic

BATCH = 500
"""Deliveries per receiver and tick."""
PER_WEBHOOK = 20
WEBHOOK_TIMEOUT_S = 5.0
RETRY_FIRST_MS = 1_000
RETRY_MOST_MS = 300_000
KEEP_TRYING_MS = 86_400_000
NEVER_MS = 2**62
"""`next_attempt_ms` of a delivery that was given up; its last error says why."""
REPUBLISH_MS = 60_000
"""A traffic row is published again after this, so that a reader that starts anywhere learns it soon."""
FLUSH_TIMEOUT_S = 10.0

log = logs.get("delivery")


class Message(Struct, frozen=True):
    """One Kafka message."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Publisher(Protocol):
    """Where messages go."""

    def publish(self, messages: Sequence[Message]) -> list[str | None]:
        """Send all and wait; return, per message, why it failed (None: the broker has it)."""
        ...

    def close(self) -> None:
        """Give up connections."""
        ...


class KafkaPublisher:
    """Kafka through kafka-python. Connects with the first message; a failed connection is tried anew."""

    def __init__(
        self,
        bootstrap: str,
        version: str | tuple[int, ...] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`version` is the broker's API version, needed by the embedded broker ("2.1")."""
        self._bootstrap = bootstrap
        self._version = version
        self._options = dict(options or {})
        self._producer: Any = None

    def publish(self, messages: Sequence[Message]) -> list[str | None]:
        """Send all and wait; return, per message, why it failed."""
        from kafka.errors import KafkaError, KafkaTimeoutError

        if not messages:
            return []
        try:
            if self._producer is None:
                self._producer = make_producer(
                    self._bootstrap,
                    client_id="trimtab-relay",
                    version=self._version,
                    options=self._options,
                )
            sent = [
                self._producer.send(m.topic, key=m.key, value=m.value, headers=m.headers)
                for m in messages
            ]
            # A producer with messages on their way cannot be closed while the broker is away: it goes on.
            with suppress(KafkaTimeoutError):  # `_failure` tells which have no answer
                self._producer.flush(timeout=FLUSH_TIMEOUT_S)
        except KafkaError as error:
            self.close()
            return [f"{type(error).__name__}: {error}"] * len(messages)
        return [_failure(future) for future in sent]

    def close(self) -> None:
        """Close the producer, if there is one."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        error = close_producer(producer, 1)
        if error is not None:  # what has no answer stays in the outbox, and is sent again
            log.warning("producer_not_closed", error=f"{type(error).__name__}: {error}")


def _failure(future: Any) -> str | None:
    if not future.is_done:
        return "no answer from the broker in time"
    return None if future.succeeded() else f"{type(future.exception).__name__}: {future.exception}"


class WebhookTarget(Struct, frozen=True):
    """A receiver of alerts over HTTP. `secret` signs; None sends unsigned."""

    url: str
    secret: str | None = None

    def __repr__(self) -> str:
        return f"WebhookTarget({self.url!r}, secret={'***' if self.secret else None})"


Post = Callable[[WebhookTarget, bytes, dict[str, str]], str | None]
"""Sends a body with headers; returns why it failed."""


def post(target: WebhookTarget, body: bytes, headers: dict[str, str]) -> str | None:
    """POST over HTTP; any answer but 2xx is a failure. Follows no redirect."""
    import httpx

    try:
        answer = httpx.post(
            target.url,
            content=body,
            headers=headers,
            timeout=WEBHOOK_TIMEOUT_S,
            follow_redirects=False,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{type(error).__name__}: {error}"
    return None if answer.is_success else f"HTTP {answer.status_code}"


def sign(secret: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of a webhook's body (see the module's text)."""
    text = str(timestamp_s).encode() + b"." + body
    return "v1=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


class Relay:
    """Sends what is due. Call it from one owner at a time, under `lease`."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        prefix: str,
        webhooks: Mapping[str, WebhookTarget] | None = None,
        *,
        send: Post = post,
    ) -> None:
        """`prefix` is the topics' prefix; `webhooks` are targets by the name contracts use."""
        self._store = store
        self._publisher = publisher
        self._prefix = prefix
        self._webhooks = dict(webhooks or {})
        self._send = send
        # Apart: a missing topic for outcomes must not keep the split from its own.
        self._outcomes = _Channel("outcomes")
        self._traffic = _Channel("traffic")

    def deliver(self, lease: Lease, now_ms: int) -> int:
        """Send due outbox rows; return how many arrived."""
        due = due_deliveries(self._store, now_ms, BATCH)
        to_kafka = [d for d in due if d.receiver == KAFKA]
        arrived = self._to_kafka(to_kafka, lease, now_ms)
        for receiver in dict.fromkeys(d.receiver for d in due if d.receiver != KAFKA):
            mine = [d for d in due if d.receiver == receiver][:PER_WEBHOOK]
            arrived += self._to_webhook(receiver, mine, lease, now_ms)
        return arrived

    def _to_kafka(self, due: Sequence[Delivery], lease: Lease, now_ms: int) -> int:
        if not due or now_ms < self._outcomes.from_ms:
            return 0
        failures = self._publisher.publish([self._message(d) for d in due])
        sent = [d for d, failure in zip(due, failures, strict=True) if failure is None]
        with self._store.write() as connection:
            check(connection, lease)
            mark_sent(connection, sent, now_ms)
            if sent:  # the broker takes messages: what it refused waits by itself, nobody behind it
                for delivery, failure in zip(due, failures, strict=True):
                    if failure is not None:
                        mark_failed(connection, delivery, failure, _next(delivery, now_ms))
        self._outcomes.note(None if sent else failures[0], now_ms)
        return len(sent)

    def _message(self, delivery: Delivery) -> Message:
        return Message(
            f"{self._prefix}.{delivery.topic}",
            delivery.key.encode(),
            delivery.body.encode(),
            [("content-type", STRUCTURED_CONTENT_TYPE)],
        )

    def _to_webhook(self, receiver: str, due: Sequence[Delivery], lease: Lease, now_ms: int) -> int:
        target = self._webhooks.get(receiver.removeprefix("webhook:"))
        arrived = 0
        for delivery in due:
            failure: str | None
            if target is None:
                failure = "no webhook of this name in the settings of this monitor"
            else:
                failure = self._send(
                    target, delivery.body.encode(), _headers(target, delivery, now_ms)
                )
            with self._store.write() as connection:
                check(connection, lease)
                if failure is None:
                    mark_sent(connection, [delivery], now_ms)
                else:
                    mark_failed(connection, delivery, failure, _next(delivery, now_ms))
            if failure is not None:
                log.warning("outbox_not_sent", receiver=receiver, error=failure)
                break  # the others of this receiver would meet the same
            arrived += 1
        return arrived

    def publish_traffic(self, lease: Lease, now_ms: int) -> int:
        """Publish traffic rows that changed or were last sent a minute ago; return how many."""
        if now_ms < self._traffic.from_ms:
            return 0
        with self._store.read() as connection:
            rows = connection.execute(
                select(traffic).where(
                    or_(
                        traffic.c.published_ms.is_(None),
                        traffic.c.published_ms <= now_ms - REPUBLISH_MS,
                    )
                )
            ).all()
        if not rows:
            return 0
        messages = []
        for row in rows:
            value, headers = encode_structured(
                msgspec.json.decode(row.body, type=Traffic), OUTCOME_SOURCE
            )
            messages.append(Message(f"{self._prefix}.traffic", row.model.encode(), value, headers))
        failures = self._publisher.publish(messages)
        with self._store.write() as connection:
            check(connection, lease)
            for row, failure in zip(rows, failures, strict=True):
                if failure is None:
                    # A row that changed meanwhile keeps its place: only what was sent is marked.
                    connection.execute(
                        update(traffic)
                        .where(traffic.c.model == row.model, traffic.c.body == row.body)
                        .values(published_ms=now_ms)
                    )
        self._traffic.note(next((f for f in failures if f is not None), None), now_ms)
        return sum(failure is None for failure in failures)

    def close(self) -> None:
        """Close the publisher."""
        self._publisher.close()


class _Channel:
    """One of our topics: since when it fails, and from when it is tried again.

    A failing topic is told once, and once more when it works again: the broker, or the topic, is away
    for all rows alike.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.failures = 0
        self.from_ms = 0

    def note(self, failure: str | None, now_ms: int) -> None:
        """Wait longer after each failed batch."""
        if failure is not None:
            if not self.failures:
                log.warning("outbox_not_sent", receiver=KAFKA, topic=self.topic, error=failure)
            self.from_ms = now_ms + retry_ms(self.failures)
            self.failures += 1
            return
        if self.failures:
            log.info("outbox_sent_again", topic=self.topic, failed_batches=self.failures)
        self.failures = self.from_ms = 0


def retry_ms(failures: int) -> int:
    """Return how long to wait after this many earlier failures."""
    return min(RETRY_MOST_MS, RETRY_FIRST_MS << min(failures, 20))


def _next(delivery: Delivery, now_ms: int) -> int:
    if now_ms - delivery.created_ms > KEEP_TRYING_MS:
        return NEVER_MS
    return now_ms + retry_ms(delivery.attempts)


def _headers(target: WebhookTarget, delivery: Delivery, now_ms: int) -> dict[str, str]:
    headers = {
        "Content-Type": STRUCTURED_CONTENT_TYPE.decode(),
        "X-Trimtab-Event-Id": delivery.event_id,
    }
    if target.secret is not None:
        timestamp_s = now_ms // 1000
        headers["X-Trimtab-Timestamp"] = str(timestamp_s)
        headers["X-Trimtab-Signature"] = sign(target.secret, timestamp_s, delivery.body.encode())
    return headers
