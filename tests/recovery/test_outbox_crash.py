"""The outbox survives `kill -9` between commit and send, and between send and its mark."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from trimtab.alerts.delivery import KafkaPublisher, Relay
from trimtab.contracts.model import Alarms, Contract, Feature, Windows
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping
from trimtab.store import alerts
from trimtab.store.engine import open_store
from trimtab.store.tables import deliveries, metadata, verdicts
from trimtab.testing.series import SeriesWriter

START = 1_700_000_000_000


def die(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class ToFile:
    """A publisher whose messages survive the process; dies at the given point."""

    def __init__(self, point: str, out: Path) -> None:
        self.point = point
        self.out = out

    def publish(self, messages):
        if self.point == "before send":
            die()
        with self.out.open("ab") as file:
            for message in messages:
                file.write(message.value + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if self.point == "after send":
            die()
        return [None] * len(messages)

    def close(self) -> None:
        self.point = "closed"


def monitor(url: str, point: str, out: Path, now_ms: int) -> None:
    """One tick of evaluator and housekeeping, in a process of its own."""
    store = open_store(url)
    before = die if point == "before commit" else None
    Evaluator(store, f"e{os.getpid()}", lease_s=1, before_commit=before).tick(now_ms)
    if point == "after commit":
        die()
    relay = Relay(store, ToFile(point, out), "tt")
    Housekeeping(store, f"h{os.getpid()}", relay, lease_s=1).tick(now_ms)


def run(url: str, point: str, out: Path, now_ms: int) -> int | None:
    # Forked: importing SciPy again in each process would take most of the test's time.
    process = multiprocessing.get_context("fork").Process(
        target=monitor, args=(url, point, out, now_ms)
    )
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("point", ["before commit", "after commit", "before send", "after send"])
def test_a_kill_at_any_point_opens_the_alert_once_and_sends_its_event(store_url, tmp_path, point):
    store = open_store(store_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
        alarms=Alarms(rules=("error_rate > 0.5",)),
    )
    writer = SeriesWriter(store, contract, START)
    writer.fit_cuts({"x": [float(i) for i in range(100)]})
    writer.rows(START, {"x": [1.0] * 20}, errors=15)
    writer.passed(START + 2_000)
    out = tmp_path / "sent"

    assert run(store_url, point, out, START + 10_000) == -signal.SIGKILL
    assert run(store_url, "nowhere", out, START + 20_000) == 0

    sent = [json.loads(line) for line in out.read_bytes().splitlines()]
    opened = [e for e in sent if e["type"] == "io.trimtab.alert.v1"]
    assert {e["data"]["change"] for e in opened} == {"opened"}
    assert len({e["id"] for e in opened}) == 1
    assert len(opened) == (2 if point == "after send" else 1)  # twice, under one id
    assert len(alerts.alerts_of(store)) == 1
    with store.read() as connection:
        assert connection.scalar(select(func.count()).select_from(verdicts)) == 1
        waiting = select(func.count()).select_from(deliveries).where(deliveries.c.sent_ms.is_(None))
        assert connection.scalar(waiting) == 0
    store.close()


def test_outcomes_reach_a_broker_and_wait_while_it_is_away(embedded_broker, sqlite_url):
    from kafka import KafkaConsumer

    store = open_store(sqlite_url)
    metadata.create_all(store.engine)
    options = {k: v for k, v in embedded_broker.client.items() if k != "bootstrap_servers"}
    version = options.pop("api_version", None)
    away = KafkaPublisher(
        "127.0.0.1:1", version, {**options, "max_block_ms": 500, "bootstrap_timeout_ms": 500}
    )
    with store.write() as connection:
        alerts.enqueue(
            connection, "alert:1:opened", "outcomes", "m", "io.trimtab.alert.v1", {"a": 1}, START
        )
    first = Housekeeping(store, "one", Relay(store, away, "tt"))
    assert first.tick(START) == 0
    first.close()

    publisher = KafkaPublisher(embedded_broker.bootstrap, version, options)
    second = Housekeeping(store, "two", Relay(store, publisher, "tt"))
    deadline = time.monotonic() + 30
    now_ms = START + 1_000
    while alerts.due_deliveries(store, now_ms, 10) and time.monotonic() < deadline:
        now_ms += 5_000
        second.tick(now_ms)
    consumer = KafkaConsumer("tt.outcomes", auto_offset_reset="earliest", **embedded_broker.client)
    found = []
    while not found and time.monotonic() < deadline:
        found = [r for rows in consumer.poll(timeout_ms=500).values() for r in rows]
    consumer.close()
    second.close()
    store.close()
    assert [json.loads(r.value)["data"] for r in found] == [{"a": 1}]
    assert found[0].key == b"m"
    assert dict(found[0].headers)["content-type"].startswith(b"application/cloudevents+json")


def test_an_evaluator_that_is_killed_and_started_again_and_again_opens_each_alert_once(
    sqlite_url,
):
    """Ten kills at changing points of the commit, revisions in between: one alert, one event."""
    store = open_store(sqlite_url)
    metadata.create_all(store.engine)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", out_of_order="0s", min_rows=5),
        alarms=Alarms(rules=("error_rate > 0.5 in 2 of 3",)),
    )
    writer = SeriesWriter(store, contract, START)
    writer.fit_cuts({"x": [float(i) for i in range(100)]})

    class KilledError(BaseException):  # nothing that a loop over models may swallow
        """Stands for SIGKILL just before the commit."""

    def kill(_model: str) -> None:
        raise KilledError

    now_ms = START
    for number in range(10):
        now_ms += 40_000
        writer.now_ms = now_ms
        writer.rows(START + number * 2_000, {"x": [1.0] * 20}, errors=15)
        if number:
            writer.rows(START + (number - 1) * 2_000, {"x": [1.0] * 3}, errors=3)
        writer.passed(START + (number + 1) * 2_000)
        with pytest.raises(KilledError):
            Evaluator(store, f"k{number}", lease_s=1, before_commit=kill).tick(now_ms)
        Evaluator(store, f"e{number}", lease_s=1).tick(now_ms + 10_000)
    (alert,) = alerts.alerts_of(store)
    assert alert.windows == 9
    with store.read() as connection:
        waiting = alerts.due_deliveries(store, now_ms + 20_000, 1_000)
        opened = [d for d in waiting if '"change":"opened"' in d.body]
        assert len(opened) == 1
        latest = select(func.count()).select_from(verdicts).where(verdicts.c.latest)
        assert connection.scalar(latest) == 10
    store.close()
