"""Events of producers that know nothing of trimtab, on real Kafka: plain kafka-python, and kcat where it is."""

import json
import subprocess
import threading
import time

import pytest

from trimtab.contracts.model import Contract, Feature, Labels, Windows
from trimtab.monitor.app import run_monitor
from trimtab.settings import Settings
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract

DEADLINE_S = 60
CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature(kind="number")},
    labels=Labels(arrive="within 1h"),
    windows=Windows(length="2s"),
)


def row(name):
    return {
        "id": name,
        "model": "m",
        "version": "1",
        "time": time.time_ns() // 1_000_000,
        "features": {"x": 1.5},
        "prediction": "yes",
    }


def label(name):
    return {
        "inference_id": name,
        "model": "m",
        "label": "yes",
        "time": time.time_ns() // 1_000_000,
    }


def attributes(kind, name):
    return {"specversion": "1.0", "id": f"e-{name}", "source": "shop", "type": kind}


def structured(kind, data, name):
    envelope = attributes(kind, name) | {"data": data}
    return json.dumps(envelope).encode(), [("content-type", b"application/cloudevents+json")]


def binary(kind, data, name):
    headers = [(f"ce_{key}", value.encode()) for key, value in attributes(kind, name).items()]
    return json.dumps(data).encode(), [*headers, ("content-type", b"application/json")]


def bare(_kind, data, _name):
    return json.dumps(data).encode(), []


@pytest.fixture
def monitored(kafka_broker, kafka_topic, sqlite_url):
    """(bootstrap, inference topic, label topic, store) with a monitor that reads them."""
    inference, labels = kafka_topic(3, "inference"), kafka_topic(1, "labels")
    store = open_store(sqlite_url)
    upgrade(store)
    apply_contract(store, CONTRACT, "", "test", 0)
    settings = Settings.model_validate(
        {
            "store": {"url": sqlite_url},
            "kafka": {
                "bootstrap": kafka_broker.bootstrap,
                "group": f"g-{inference}",
                "inference_topics": [inference],
                "label_topics": [labels],
                "resource_topics": [kafka_topic(1, "resources")],
            },
            "monitor": {"flush_s": 0.2},
        }
    )
    stop = threading.Event()
    monitor = threading.Thread(target=run_monitor, args=(settings, stop, lambda: None))
    monitor.start()
    yield kafka_broker.bootstrap, inference, labels, store
    stop.set()
    monitor.join(DEADLINE_S)
    assert not monitor.is_alive()
    store.close()


def totals(store):
    """(rows, by class), (labels placed, by class) over all partitions; the ledger balances."""
    entries = ledger(store)
    assert [text for entry in entries for text in entry.balance()] == []
    rows, labels = {}, {}
    for entry in entries:
        for cls, count in entry.unit("row").items():
            rows[cls] = rows.get(cls, 0) + count
        for cls, count in entry.placed_labels.items():
            labels[cls] = labels.get(cls, 0) + count
    return rows, labels


def wait_until_counted(store, events):
    deadline = time.monotonic() + DEADLINE_S
    while True:
        rows, labels = totals(store)
        known = rows.get("counted", 0) + rows.get("held", 0)
        if known == events and labels.get("joined", 0) == events:
            return
        assert time.monotonic() < deadline, (rows, labels)
        time.sleep(0.05)


@pytest.mark.parametrize("form", [structured, binary, bare])
def test_plain_kafka_python_needs_nothing_of_ours(monitored, form):
    from kafka import KafkaProducer

    bootstrap, inference, labels, store = monitored
    producer = KafkaProducer(bootstrap_servers=bootstrap)
    for number in range(20):
        name = f"{form.__name__}-{number}"
        value, headers = form("io.trimtab.inference.v1", row(name), name)
        producer.send(inference, value=value, headers=headers, key=b"any key")
        value, headers = form("io.trimtab.label.v1", label(name), name)
        producer.send(labels, value=value, headers=headers)
    producer.flush(30)
    producer.close()
    wait_until_counted(store, 20)


def test_kcat_can_send_events_from_a_shell(monitored, kcat):
    bootstrap, inference, labels, store = monitored
    for topic, event in ((inference, row), (labels, label)):
        lines = "".join(json.dumps(event(f"kcat-{number}")) + "\n" for number in range(5))
        subprocess.run(
            [kcat, "-P", "-b", bootstrap, "-t", topic],
            input=lines,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
    wait_until_counted(store, 5)
