"""Both brokers start, take messages and give them back; what the embedded one cannot do is known."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import OffsetOutOfRangeError

from trimtab.monitor.embedded import (
    EmbeddedBroker,
    EmbeddedBrokerError,
    EmbeddedBrokerProcess,
)

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 20.0


def produce(client: dict[str, Any], topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(**client)
    for value in values:
        producer.send(topic, value=value, partition=0)
    producer.flush(DEADLINE_S)
    producer.close()


def consume(client: dict[str, Any], topic: str, rows: int) -> list[bytes]:
    consumer = KafkaConsumer(auto_offset_reset="none", enable_auto_commit=False, **client)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    got: list[bytes] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(got) < rows and time.monotonic() < deadline:
        got += [r.value for records in consumer.poll(200).values() for r in records]
    consumer.close()
    return got


def poll_for(consumer: KafkaConsumer, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        consumer.poll(200)


VALUES = [b"%d" % number for number in range(500)]


def test_kafka_gives_back_what_it_took_and_keeps_it_over_a_restart(
    kafka_broker: Any, kafka_topic: Any
) -> None:
    topic = kafka_topic(partitions=2)
    client = {"bootstrap_servers": kafka_broker.bootstrap}
    produce(client, topic, VALUES)
    assert consume(client, topic, len(VALUES)) == VALUES
    before = kafka_broker.bootstrap
    assert kafka_broker.restart() == before
    assert consume(client, topic, len(VALUES)) == VALUES


def test_kafka_keeps_what_it_acknowledged_over_a_crash(kafka_broker: Any, kafka_topic: Any) -> None:
    topic = kafka_topic()
    client = {"bootstrap_servers": kafka_broker.bootstrap}
    produce(client, topic, VALUES)
    kafka_broker.kill()
    assert kafka_broker.pid is None
    kafka_broker.start()
    assert consume(client, topic, len(VALUES)) == VALUES


def test_the_kafka_script_starts_reports_and_stops_by_pid(
    kafka_requirements: Any, tmp_path: Path
) -> None:
    script = ROOT / "deploy" / "kafka" / "broker.py"

    def call(action: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), action, "--dir", str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    assert call("status").stdout == "not running\n"
    started = call("start")
    try:
        assert started.returncode == 0, started.stderr
        bootstrap = started.stdout.strip()
        assert call("start").stdout.strip() == bootstrap
        assert call("status").stdout.startswith(f"running on {bootstrap}, pid ")
    finally:
        stopped = call("stop")
    assert stopped.returncode == 0
    assert call("status").returncode == 1


def test_a_machine_without_maven_is_told_what_to_install(
    kafka_tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kafka_tools.BrokerError, match="Install Maven"):
        kafka_tools.fetch_libs(tmp_path / "libs")


def test_the_embedded_broker_gives_back_what_it_took(embedded_broker: EmbeddedBroker) -> None:
    produce(embedded_broker.client, "t", VALUES)
    assert consume(embedded_broker.client, "t", len(VALUES)) == VALUES


def test_the_embedded_broker_in_its_own_process_ends_when_its_owner_closes_the_pipe() -> None:
    with EmbeddedBrokerProcess(["t"]) as broker:
        process = broker._process
        assert process is not None
        produce(broker.client, "t", VALUES)
        assert consume(broker.client, "t", len(VALUES)) == VALUES
    assert process.returncode == 0
    with pytest.raises(EmbeddedBrokerError, match="not running"):
        _ = broker.bootstrap


def test_each_start_of_the_embedded_broker_has_an_identity_of_its_own() -> None:
    broker = EmbeddedBroker()
    seen = set()
    for _ in range(3):
        with broker:
            seen.add(broker.identity)
    assert len(seen) == 3


def test_an_embedded_group_of_one_gets_every_partition_and_resumes_where_it_committed(
    embedded_broker: EmbeddedBroker,
) -> None:
    produce(embedded_broker.client, "t", VALUES)
    got: list[bytes] = []
    for wanted in (len(VALUES), len(VALUES) + 1):
        member = KafkaConsumer(
            "t",
            group_id="g",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            **embedded_broker.group,
        )
        deadline = time.monotonic() + DEADLINE_S
        while len(got) < wanted and time.monotonic() < deadline:
            got += [r.value for records in member.poll(200).values() for r in records]
        assert len(member.assignment()) == 4
        member.commit()
        member.close()
        produce(embedded_broker.client, "t", [b"last"])
    assert got == [*VALUES, b"last"]


def test_a_reader_too_slow_for_the_embedded_broker_learns_which_offsets_are_gone(
    embedded_broker: EmbeddedBroker,
) -> None:
    partition = TopicPartition("t", 0)
    produce(embedded_broker.client, "t", [b"first"])
    reader = KafkaConsumer(
        auto_offset_reset="none", enable_auto_commit=False, **embedded_broker.client
    )
    reader.assign([partition])
    reader.seek(partition, 0)
    assert reader.poll(int(DEADLINE_S * 1000))
    produce(embedded_broker.client, "t", [b"x" * 1000] * 8000)
    with pytest.raises(OffsetOutOfRangeError) as raised:
        poll_for(reader, DEADLINE_S)
    assert raised.value.args[0] == {partition: 1}
    first = reader.beginning_offsets([partition])[partition]
    assert 1 < first < 8001
    reader.close()
