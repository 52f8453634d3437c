"""Transactions on real Kafka: what was aborted is a gap. Kills and replicas are in `test_faults.py`."""

import json
import threading
import time

import pytest

from trimtab.contracts.model import Contract, Feature, Labels, Reference, Windows
from trimtab.monitor.app import run_monitor
from trimtab.settings import Settings
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

CONTRACT = Contract(
    name="m",
    task="multiclass",
    features={"x": Feature(kind="number"), "c": Feature(kind="category", values=("a", "b"))},
    labels=Labels(arrive="within 1h", sources=("human",)),
    windows=Windows(length="2s", out_of_order="30s", segments=("c",)),
    reference=Reference(rows=200),
)
DEADLINE_S = 60


class Setup:
    """Topics of their own, a store, and a monitor's settings."""

    def __init__(self, broker, make_topic, url):
        self.url = url
        self.bootstrap = broker.bootstrap
        self.inference, self.labels = make_topic(4, "inference"), make_topic(2, "labels")
        self.resources = make_topic(1, "resources")
        self.group = f"g-{self.inference}"
        self.store = open_store(url)
        upgrade(self.store)
        apply_contract(self.store, CONTRACT, "", "test", 0)

    def settings(self, **consumer):
        return {
            "store": {"url": self.url},
            "kafka": {
                "bootstrap": self.bootstrap,
                "group": self.group,
                "inference_topics": [self.inference],
                "label_topics": [self.labels],
                "resource_topics": [self.resources],
                "consumer": {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 500, **consumer},
            },
            "monitor": {"flush_s": 0.2, "poll_records": 300},
        }

    def entries(self):
        return [one for one in ledger(self.store) if one.topic != self.resources]

    def flushed(self):
        return {(one.topic, one.partition): one.next_offset for one in self.entries()}


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.05)


def test_control_records_and_aborted_transactions_are_gaps(kafka_broker, kafka_topic, sqlite_url):
    from kafka import KafkaProducer

    setup = Setup(kafka_broker, kafka_topic, sqlite_url)
    producer = KafkaProducer(
        bootstrap_servers=setup.bootstrap, transactional_id=f"t-{setup.inference}"
    )
    producer.init_transactions()
    now = time.time_ns() // 1_000_000
    for number, committed in enumerate((True, False, True)):
        producer.begin_transaction()
        for i in range(5):
            row = {"id": f"{number}-{i}", "model": "m", "version": "1", "time": now}
            producer.send(setup.inference, partition=0, value=json.dumps(row).encode()).get()
        (producer.commit_transaction if committed else producer.abort_transaction)()
    producer.close()
    stop = threading.Event()
    settings = Settings.model_validate(setup.settings())
    monitor = threading.Thread(target=run_monitor, args=(settings, stop, lambda: None))
    monitor.start()
    try:
        wait_for(
            lambda: setup.flushed().get((setup.inference, 0), 0) >= 18, "the end of the log read"
        )
    finally:
        stop.set()
        monitor.join()
    (first,) = (e for e in setup.entries() if (e.topic, e.partition) == (setup.inference, 0))
    assert (first.messages, first.gaps, first.lost, first.next_offset) == (10, 8, 0, 18)
    assert first.balance() == []
    setup.store.close()
