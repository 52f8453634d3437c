"""The relay: what is due arrives, failures wait, receivers are told apart."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from trimtab.alerts.delivery import (
    BATCH,
    KEEP_TRYING_MS,
    NEVER_MS,
    RETRY_MOST_MS,
    Relay,
    WebhookTarget,
    retry_ms,
    sign,
)
from trimtab.errors import ConflictError
from trimtab.events.outcomes import read_outcome
from trimtab.events.types import Traffic, TrafficArm
from trimtab.logs import OncePerTopic
from trimtab.store import alerts
from trimtab.store.agent import set_traffic
from trimtab.store.engine import open_store
from trimtab.store.leases import acquire
from trimtab.store.tables import deliveries, metadata

ALERT = "io.trimtab.alert.v1"
NOW = 1_000_000


class Recorder:
    """A publisher in memory; `down` makes every message fail."""

    def __init__(self) -> None:
        self.messages = []
        self.down = False

    def publish(self, messages):
        if self.down:
            return ["broker is away"] * len(messages)
        self.messages += messages
        return [None] * len(messages)

    def close(self) -> None:
        self.messages.clear()


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def put(store, name, receivers=("kafka",), now_ms=NOW):
    with store.write() as connection:
        alerts.enqueue(connection, name, "outcomes", "m", ALERT, {"n": name}, now_ms, receivers)


def lease_of(store, now_ms=NOW):
    return acquire(store, "relay", "one", now_ms, 600_000)


def test_the_same_fact_twice_is_one_event_and_is_sent_once(store):
    put(store, "alert:1:opened")
    put(store, "alert:1:opened")
    recorder = Recorder()
    relay = Relay(store, recorder, "tt")
    lease = lease_of(store)
    assert relay.deliver(lease, NOW) == 1
    assert relay.deliver(lease, NOW + 1) == 0
    (message,) = recorder.messages
    assert (message.topic, message.key) == ("tt.outcomes", b"m")
    assert read_outcome(message.value).data == {"n": "alert:1:opened"}


def test_while_the_broker_is_away_rows_wait_and_attempts_grow_apart(store):
    put(store, "a")
    recorder = Recorder()
    recorder.down = True
    relay = Relay(store, recorder, "tt")
    lease = lease_of(store)
    assert relay.deliver(lease, NOW) == 0
    recorder.down = False
    assert relay.deliver(lease, NOW + 500) == 0  # not before a second has passed
    assert relay.deliver(lease, NOW + 1_000) == 1
    assert [retry_ms(n) for n in (0, 1, 2, 50)] == [1_000, 2_000, 4_000, RETRY_MOST_MS]


def test_a_failing_webhook_holds_up_neither_kafka_nor_another_webhook(store):
    put(store, "a", ("kafka", "webhook:bad", "webhook:good"))
    heard = []

    def send(target, body, headers):
        if target.url.endswith("bad"):
            return "HTTP 500"
        heard.append((target.url, headers))
        return None

    hooks = {"bad": WebhookTarget("http://h/bad"), "good": WebhookTarget("http://h/good")}
    relay = Relay(store, Recorder(), "tt", hooks, send=send)
    assert relay.deliver(lease_of(store), NOW) == 2
    assert [url for url, _ in heard] == ["http://h/good"]
    with store.read() as connection:
        row = connection.execute(
            select(deliveries).where(deliveries.c.receiver == "webhook:bad")
        ).one()
    assert (row.sent_ms, row.attempts, row.last_error) == (None, 1, "HTTP 500")
    assert row.next_attempt_ms == NOW + 1_000


def test_what_piles_up_for_one_receiver_takes_nobody_elses_place(store):
    for number in range(BATCH + 1):
        put(store, f"old {number}")
    put(store, "new", ("kafka", "webhook:good"))
    recorder = Recorder()
    recorder.down = True
    hooks = {"good": WebhookTarget("http://h/good")}
    relay = Relay(store, recorder, "tt", hooks, send=lambda *_: None)
    assert relay.deliver(lease_of(store), NOW) == 1, "the webhook hears of it while Kafka is away"


def test_a_message_that_the_broker_refuses_waits_by_itself(store):
    class Picky(Recorder):
        def publish(self, messages):
            said = ["too large" if b"huge" in m.value else None for m in messages]
            self.messages += [m for m, why in zip(messages, said, strict=True) if why is None]
            return said

    put(store, "huge")
    put(store, "a")
    relay = Relay(store, Picky(), "tt")
    lease = lease_of(store)
    assert relay.deliver(lease, NOW) == 1
    put(store, "b")
    assert relay.deliver(lease, NOW + 1) == 1, "no pause for the others"
    with store.read() as connection:
        row = connection.execute(select(deliveries).where(deliveries.c.sent_ms.is_(None))).one()
    assert (row.attempts, row.last_error) == (1, "too large")


def test_a_missing_topic_for_outcomes_is_told_once_and_does_not_hold_up_the_split(store):
    class NoOutcomes(Recorder):
        missing = True

        def publish(self, messages):
            if self.missing and messages[0].topic == "tt.outcomes":
                return ["KafkaTimeoutError: no such topic"] * len(messages)
            return super().publish(messages)

    put(store, "a")
    with store.write() as connection:
        arm = TrafficArm("champion", "1", 1.0, "/a", "0" * 64)
        set_traffic(connection, Traffic(model="m", revision=1, salt="s", arms=[arm]), NOW)
    recorder = NoOutcomes()
    relay = Relay(store, recorder, "tt")
    lease = lease_of(store)
    with capture_logs() as lines:
        for second in range(0, 100, 10):
            relay.deliver(lease, NOW + second * 1_000)
        assert relay.publish_traffic(lease, NOW + 100_000) == 1
        recorder.missing = False
        assert relay.deliver(lease, NOW + 1_000_000) == 1
    said = [(line["event"], line.get("failed_batches")) for line in lines]
    assert said[0] == ("outbox_not_sent", None)
    assert [event for event, _ in said] == ["outbox_not_sent", "outbox_sent_again"]
    assert said[1][1] > 3


def test_kafkas_own_line_about_a_missing_topic_is_let_through_once():
    once = OncePerTopic()

    def line(topic, at_s):
        text = "Topic %s not found in cluster metadata"
        record = logging.LogRecord("kafka.cluster", logging.ERROR, "", 0, text, (topic,), None)
        record.created = at_s
        return once.filter(record)

    assert [line("a", 0.0), line("a", 1.0), line("b", 1.0), line("a", 300.0)] == [
        True,
        False,
        True,
        False,
    ]
    assert line("a", 300.0 + OncePerTopic.AGAIN_S + 1)


def test_a_delivery_is_given_up_after_a_day_and_says_why(store):
    put(store, "a", ("webhook:gone",), now_ms=NOW)
    relay = Relay(store, Recorder(), "tt")
    late = NOW + KEEP_TRYING_MS + 1
    assert relay.deliver(lease_of(store, late), late) == 0
    with store.read() as connection:
        row = connection.execute(select(deliveries)).one()
    assert row.next_attempt_ms == NEVER_MS
    assert row.last_error == "no webhook of this name in the settings of this monitor"


def test_a_webhook_gets_a_signature_that_its_secret_verifies(store):
    heard = {}

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            heard["body"] = self.rfile.read(int(self.headers["Content-Length"]))
            heard["headers"] = dict(self.headers)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args):
            heard["logged"] = True

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    put(store, "alert:1:opened", ("webhook:w",))
    target = WebhookTarget(f"http://127.0.0.1:{server.server_port}/", "s3cret")
    assert "s3cret" not in repr(target)
    assert Relay(store, Recorder(), "tt", {"w": target}).deliver(lease_of(store), NOW) == 1
    thread.join(10)
    server.server_close()
    timestamp = heard["headers"]["X-Trimtab-Timestamp"]
    expected = hmac.new(
        b"s3cret", f"{timestamp}.".encode() + heard["body"], hashlib.sha256
    ).hexdigest()
    assert heard["headers"]["X-Trimtab-Signature"] == f"v1={expected}"
    assert sign("s3cret", NOW // 1000, heard["body"]) == f"v1={expected}"
    assert json.loads(heard["body"])["id"] == heard["headers"]["X-Trimtab-Event-Id"]


def test_a_relay_that_lost_its_lease_marks_nothing(store):
    put(store, "a")
    old = lease_of(store)
    assert acquire(store, "relay", "two", NOW + 700_000, 1_000) is not None
    with pytest.raises(ConflictError):
        Relay(store, Recorder(), "tt").deliver(old, NOW)
    assert len(alerts.due_deliveries(store, NOW, BATCH)) == 1


def test_the_current_traffic_row_is_published_when_it_changes_and_every_minute(store):
    recorder = Recorder()
    relay = Relay(store, recorder, "tt")
    lease = lease_of(store)

    def split(revision, version):
        arm = TrafficArm("champion", version, 1.0, "file:a", "0" * 64)
        with store.write() as connection:
            set_traffic(
                connection, Traffic(model="m", revision=revision, salt="s", arms=[arm]), NOW
            )

    split(1, "1")
    split(2, "2")
    assert relay.publish_traffic(lease, NOW) == 1
    assert relay.publish_traffic(lease, NOW + 59_999) == 0
    assert relay.publish_traffic(lease, NOW + 60_000) == 1
    sent = [json.loads(m.value)["data"] for m in recorder.messages]
    assert [s["revision"] for s in sent] == [2, 2]
    assert recorder.messages[0].topic == "tt.traffic"
