"""Two monitors of one command share the partitions, and each row counts once."""

import json
import os
import subprocess
import time

import pytest
from kafka import KafkaProducer

from trimtab.contracts.model import Contract, Feature, Reference, Windows
from trimtab.processes import trimtab_command
from trimtab.settings import load
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract

ROWS = 2_000


def test_two_workers_share_a_topic_and_count_each_row_once(
    kafka_broker, kafka_topic, sqlite_url, tmp_path
):
    inference, labels, resources = kafka_topic(4), kafka_topic(1), kafka_topic(1)
    store = open_store(sqlite_url)
    upgrade(store)
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature(kind="number")},
        windows=Windows(length="1 min"),
        reference=Reference(rows=100),
    )
    apply_contract(store, contract, "", "test", 0)
    environment = {
        **os.environ,
        "TRIMTAB_DATA_DIR": str(tmp_path / "data"),
        "TRIMTAB_STORE__URL": sqlite_url,
        "TRIMTAB_KAFKA__BOOTSTRAP": kafka_broker.bootstrap,
        "TRIMTAB_KAFKA__GROUP": f"workers-{inference}",
        "TRIMTAB_KAFKA__INFERENCE_TOPICS": json.dumps([inference]),
        "TRIMTAB_KAFKA__LABEL_TOPICS": json.dumps([labels]),
        "TRIMTAB_KAFKA__RESOURCE_TOPICS": json.dumps([resources]),
        "TRIMTAB_MONITOR__FLUSH_S": "0.2",
    }
    parent = subprocess.Popen(trimtab_command("monitor", "--workers", "2"), env=environment)
    try:
        deadline = time.monotonic() + 90

        def owners():
            return {row.owner for row in ledger(store) if row.topic == inference and row.owner}

        def wait(condition, what):
            while not condition():
                assert parent.poll() is None, "the parent ended"
                assert time.monotonic() < deadline, what
                time.sleep(0.1)

        wait(lambda: len(owners()) == 2, "two monitors never shared the partitions")
        producer = KafkaProducer(bootstrap_servers=kafka_broker.bootstrap)
        now_ms = time.time_ns() // 1_000_000
        for number in range(ROWS):
            event = {
                "id": str(number),
                "model": "m",
                "version": "1",
                "time": now_ms,
                "features": {"x": number},
            }
            producer.send(inference, json.dumps(event).encode(), partition=number % 4)
        producer.close()

        wait(
            lambda: sum(row.rows for row in ledger(store) if row.topic == inference) == ROWS,
            "not every row was read",
        )
        assert [problem for row in ledger(store) for problem in row.balance()] == []
    finally:
        parent.terminate()
        assert parent.wait(30) == 0


def test_the_embedded_broker_refuses_a_second_monitor(tmp_path):
    settings = load(
        {"data_dir": str(tmp_path), "monitor.workers": 2, "kafka.identity": "embedded"}, environ={}
    ).settings
    from threading import Event

    from trimtab.errors import TrimtabError
    from trimtab.monitor.replicas import run_replicas

    with pytest.raises(TrimtabError, match="one monitor only"):
        run_replicas(settings, Event())
