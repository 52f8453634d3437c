"""The archive as a process, killed with SIGKILL while events stream: each event is in it exactly once."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trimtab.monitor.embedded import client_settings, group_settings
from trimtab.store.archive import files_of
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade

pytestmark = pytest.mark.slow

EVENTS = 6_000
KILLS = 2
DEADLINE_S = 90
RUN = """
import json, signal, sys, threading
from trimtab import logs
from trimtab.archive.app import run_archive
from trimtab.settings import Settings
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
logs.set_up("warning")
run_archive(Settings.model_validate(json.load(open(sys.argv[1]))), stop)
"""


def settings_of(broker, url, directory):
    client, group = client_settings(broker.bootstrap), group_settings(broker.bootstrap)
    own = {"bootstrap_servers", "api_version"}
    return {
        "store": {"url": url},
        "kafka": {
            "bootstrap": broker.bootstrap,
            "api_version": "2.1",
            "identity": broker.identity,
            "options": {k: v for k, v in client.items() if k not in own},
            "consumer": {k: v for k, v in group.items() if k not in client},
        },
        "archive": {"dir": str(directory), "flush_s": 0.05, "flush_rows": 400},
    }


def send(broker, stop):
    """Inferences in plain JSON at some 600 a second, each followed by its label."""
    from kafka import KafkaProducer

    producer = KafkaProducer(**client_settings(broker.bootstrap), linger_ms=5)
    start = time.time_ns() // 1_000_000
    for number in range(EVENTS):
        if stop.is_set():
            break
        row = {"id": f"i{number}", "model": "m", "version": "1", "time": start + number}
        truth = {"inference_id": f"i{number}", "model": "m", "label": 1, "time": start + number}
        producer.send("trimtab.inference", json.dumps(row | {"features": {"x": number}}).encode())
        producer.send("trimtab.labels", json.dumps(truth).encode())
        if number % 30 == 0:
            time.sleep(0.05)
    producer.flush(30)
    producer.close()


def archived(store, kind, column):
    with store.read() as connection:
        files = files_of(connection, "m", kind, 0, 2**60)
    return Counter(
        value for file in files for value in pq.read_table(file.path)[column].to_pylist()
    )


def committed(store):
    return sum(entry.rows + entry.labels for entry in ledger(store, "archive"))


def wait_for(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {DEADLINE_S} s"
        time.sleep(0.05)


def test_an_archive_killed_at_any_moment_holds_each_event_once(
    embedded_broker, sqlite_url, tmp_path
):
    store, directory = open_store(sqlite_url), tmp_path / "archive"
    upgrade(store)
    path = tmp_path / "settings.json"
    settings = settings_of(embedded_broker, sqlite_url, directory)
    path.write_text(json.dumps(settings))
    rng, stop = random.Random(11), threading.Event()
    sender = threading.Thread(target=send, args=(embedded_broker, stop))

    def start():
        return subprocess.Popen([sys.executable, "-c", RUN, str(path)])

    process = start()
    sender.start()
    try:
        for _ in range(KILLS):
            before = committed(store)
            wait_for(lambda before=before: committed(store) > before, "a commit")
            time.sleep(rng.uniform(0, 0.4))  # the moment of the kill, not a wait for anything
            process.kill()
            process.wait()
            process = start()
        sender.join()
        wait_for(lambda: committed(store) >= 2 * EVENTS, "the end of the stream")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    finally:
        stop.set()
        process.kill()
        process.wait()
        sender.join()
    once = {f"i{number}": 1 for number in range(EVENTS)}
    assert archived(store, "inference", "id") == once
    assert archived(store, "label", "inference_id") == once
    entries = ledger(store, "archive")
    assert [text for entry in entries for text in entry.balance()] == []
    assert sum(entry.lost for entry in entries) == 0
    assert sum(entry.messages for entry in entries) == 2 * EVENTS
    assert max(entry.epoch for entry in entries) == KILLS + 1
    with store.read() as connection:
        known = {
            file.path
            for kind in ("inference", "label")
            for file in files_of(connection, "m", kind, 0, 2**60)
        }
    assert known <= {str(file) for file in Path(directory).rglob("*.parquet")}
    store.close()
