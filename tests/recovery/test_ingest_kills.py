"""The monitor as a process on real Kafka: kill -9 while it streams, replicas that come and go, transactions.

What the store holds at the end is compared with a recount from the topics that shares no code with
the monitor.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from trimtab.contracts.model import Contract, Feature, Labels, Reference, Windows
from trimtab.monitor.app import run_monitor
from trimtab.settings import Settings
from trimtab.store.engine import open_store
from trimtab.store.labels import window_performance
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract
from trimtab.store.panes import pane_times, window_state

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

    def __init__(self, broker, make_topic, url, client="kafka-python"):
        self.url, self.client = url, client
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
                "client": self.client,
                "group": self.group,
                "inference_topics": [self.inference],
                "label_topics": [self.labels],
                "resource_topics": [self.resources],
                "consumer": {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 500, **consumer},
            },
            "monitor": {"flush_s": 0.2, "poll_records": 300},
        }

    def start_process(self, folder, **consumer):
        # A file for each start, so that a kill leaves the last words to read.
        path = Path(folder) / f"monitor-{time.monotonic_ns()}.json"
        path.write_text(json.dumps(self.settings(**consumer)))
        return subprocess.Popen([sys.executable, "-c", RUN, str(path)])

    def entries(self):
        return [one for one in ledger(self.store) if one.topic != self.resources]

    def claims(self):
        return sum(one.epoch for one in self.entries())

    def flushed(self):
        return {(one.topic, one.partition): one.next_offset for one in self.entries()}


RUN = """
import json, signal, sys, threading
from trimtab import logs
from trimtab.monitor.app import run_monitor
from trimtab.settings import Settings
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
logs.set_up("warning")
run_monitor(Settings.model_validate(json.load(open(sys.argv[1]))), stop, lambda: None)
"""


@pytest.fixture(
    params=[
        ("sqlite", "kafka-python"),
        ("sqlite", "confluent-kafka"),
        pytest.param(("postgresql", "kafka-python"), marks=pytest.mark.postgres),
    ],
    ids="-".join,
)
def setup(request, kafka_broker, kafka_topic):
    store, client = request.param
    url = request.getfixturevalue("sqlite_url" if store == "sqlite" else "postgres_url")
    setup = Setup(kafka_broker, kafka_topic, url, client)
    yield setup
    setup.store.close()


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.05)


def produce(setup, stop, total):
    """Stream rows, labels, duplicates and junk; the labels of some rows come before them."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=setup.bootstrap, linger_ms=5)
    start, rng = time.time_ns() // 1_000_000, random.Random(5)
    for i in range(total):
        if stop.is_set():
            break
        row = {
            "id": f"i{i}",
            "model": "m",
            "version": "1",
            "time": start + i,
            "features": {"x": rng.random(), "c": "ab"[i % 2]},
            "prediction": str(i % 3),
        }
        truth = str(i % 3 if i % 5 else (i + 1) % 3)
        label = {
            "inference_id": f"i{i}",
            "model": "m",
            "label": truth,
            "time": start + i,
            "source": "human",
        }
        key, sends = f"i{i}".encode(), [(setup.inference, row), (setup.labels, label)]
        if i % 7 == 0:
            sends.reverse()
        if i % 50 == 0:
            sends += [(setup.inference, row), (setup.labels, label)]
        for topic, body in sends:
            producer.send(topic, key=key, value=json.dumps(body).encode())
        if i % 333 == 0:
            producer.send(setup.inference, value=b"junk")
        if i % 20 == 0:
            time.sleep(0.01)
    producer.close()


def recount(setup):
    """Counters by plain reading: offsets, distinct rows, and correct answers."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=setup.bootstrap,
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    parts = [
        TopicPartition(topic, number)
        for topic in (setup.inference, setup.labels)
        for number in sorted(consumer.partitions_for_topic(topic))
    ]
    consumer.assign(parts)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(parts)
    rows, labels, junk, messages = {}, {}, 0, Counter()
    deadline = time.monotonic() + DEADLINE_S
    while any(consumer.position(p) < ends[p] for p in parts):
        assert time.monotonic() < deadline
        for part, records in consumer.poll(500).items():
            messages[part.topic, part.partition] += len(records)
            for record in records:
                try:
                    body = json.loads(record.value)
                except ValueError:
                    junk += 1
                    continue
                if part.topic == setup.inference:
                    rows[part.partition, body["id"]] = body["prediction"]
                else:
                    labels[body["inference_id"]] = body["label"]
    consumer.close()
    pairs = Counter((labels[i], said) for (_, i), said in rows.items() if i in labels)
    return {
        "ends": {(p.topic, p.partition): end for p, end in ends.items()},
        "messages": dict(messages),
        "rows": len(rows),
        "junk": junk,
        "pairs": dict(pairs),
    }


def assert_store_equals(setup, expected):
    entries = setup.entries()
    assert [problem for one in entries for problem in one.balance()] == []
    assert {(e.topic, e.partition): e.messages for e in entries if e.messages} == expected[
        "messages"
    ]
    counted = sum(one.unit("row").get("counted", 0) for one in entries)
    assert counted == expected["rows"]
    assert sum(one.unit("row").get("rejected", 0) for one in entries) == expected["junk"]
    times = pane_times(setup.store, "m")
    with setup.store.read() as connection:
        state = window_state(connection, "m", times[0], times[-1] + 1).state
        joined = window_performance(connection, "m", times[0], times[-1] + 1)
    assert state.rows == expected["rows"]
    assert dict(joined["1"].state.confusion) == expected["pairs"]


def all_is_in(setup, expected):
    def done():
        if any(setup.flushed().get(key, 0) < end for key, end in expected["ends"].items()):
            return False
        return sum(e.placed_labels.get("joined", 0) for e in setup.entries()) == sum(
            expected["pairs"].values()
        )

    return done


def test_killed_again_and_again_the_monitor_counts_every_row_once(setup, tmp_path):
    stop = threading.Event()
    producer = threading.Thread(target=produce, args=(setup, stop, 6_000))
    rng = random.Random(3)
    producer.start()
    try:
        for _ in range(3):
            before = setup.claims()
            process = setup.start_process(tmp_path, group_instance_id="static")
            try:
                wait_for(lambda seen=before: setup.claims() >= seen + 6, "a claim of all")
                time.sleep(rng.random())  # and then at any point of its work
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        producer.join()
        expected = recount(setup)
        process = setup.start_process(tmp_path, group_instance_id="static")
        try:
            wait_for(all_is_in(setup, expected), "everything counted and joined")
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
    finally:
        stop.set()
        producer.join()
    assert_store_equals(setup, expected)


def test_a_replica_that_joins_and_one_that_leaves_count_every_row_once(setup):
    stop = threading.Event()
    producer = threading.Thread(target=produce, args=(setup, stop, 8_000))
    stops = [threading.Event(), threading.Event()]
    settings = Settings.model_validate(setup.settings())
    replicas = [
        threading.Thread(target=run_monitor, args=(settings, one, lambda: None)) for one in stops
    ]

    def owners():
        return {e.owner for e in setup.entries() if e.topic == setup.inference}

    producer.start()
    try:
        replicas[0].start()
        wait_for(lambda: sum(setup.flushed().values()) > 0, "a flush")
        replicas[1].start()
        wait_for(lambda: len(owners()) == 2, "both replicas own partitions")
        stops[0].set()
        replicas[0].join()
        wait_for(lambda: len(owners()) == 1, "the other one owns all")
        producer.join()
        expected = recount(setup)
        wait_for(all_is_in(setup, expected), "everything counted and joined")
    finally:
        stop.set()
        for one in stops:
            one.set()
        for thread in [producer, *replicas]:
            if thread.ident is not None:
                thread.join()
    assert_store_equals(setup, expected)


@pytest.mark.parametrize("client", ["kafka-python", "confluent-kafka"])
def test_control_records_and_aborted_transactions_are_gaps(
    kafka_broker, kafka_topic, sqlite_url, client
):
    from kafka import KafkaProducer

    setup = Setup(kafka_broker, kafka_topic, sqlite_url, client)
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
