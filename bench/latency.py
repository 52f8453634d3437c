"""How long a verdict takes: from the moment a window's watermark may pass to the verdict in SQL.

    python bench/latency.py [--quick] [--json]

A real Kafka broker, `run_monitor` in a process of its own with its defaults, and a producer that sends
inferences of 5 numeric features at an even pace. Windows
are of 2 s, out of order 0.2 s. Latency = verdict.created_ms - (window end + out_of_order): what polling,
the flush (at least twice per pane), the evaluator's tick and the verdict take. The first windows, which fill
the baseline, are left out. Wall-clock times: run it on a machine that does nothing else.
"""

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import rig
from sqlalchemy import func, select

from trimtab.clock import now_ms
from trimtab.contracts.model import Reference, Windows
from trimtab.monitor.app import run_monitor
from trimtab.settings import load
from trimtab.store.engine import Store, open_store
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract
from trimtab.store.tables import partitions, verdicts

FEATURES, PARTITIONS = 5, 4
WINDOW_MS, OUT_OF_ORDER_MS = 2_000, 200
FIRST_WINDOWS = 4
START_LIMIT_S = 60.0
CONTRACT = rig.two_classes(
    "m",
    FEATURES,
    Windows(length="2s", pane="2s", lateness="10s", out_of_order="200 ms", min_rows=50),
    Reference(rows=1_000, windows=2),
)
TOPICS = {
    f"trimtab.{name}": PARTITIONS if name == "inference" else 1
    for name in ("inference", "labels", "resources", "outcomes", "traffic")
}


def monitor(flags: dict[str, Any], stop: Event, ready: Event) -> None:
    """Run the monitor in this process until `stop` is set."""
    os.dup2(2, 1)  # the log is no part of what --json prints
    asked = threading.Event()

    def wait() -> None:
        stop.wait()
        asked.set()

    threading.Thread(target=wait, daemon=True).start()
    run_monitor(load(flags, environ={}).settings, asked, ready.set)


def produce(bootstrap: str, per_second: int, seconds: int) -> int:
    """Send at an even pace; return by how many milliseconds the producer was behind at most."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "acks": "1"})
    rng = np.random.default_rng(1)
    bodies = [
        ",".join(f'"f{k}":{value:.6f}' for k, value in enumerate(row))
        for row in rng.normal(size=(1_000, FEATURES))
    ]
    began_ms, sent, behind_ms = now_ms(), 0, 0
    while sent < per_second * seconds:
        due = min(per_second * seconds, (now_ms() - began_ms) * per_second // 1_000)
        while sent < due:
            time_ms = began_ms + sent * 1_000 // per_second
            behind_ms = max(behind_ms, now_ms() - time_ms)
            name = f"r{sent:x}"
            value = (
                '{"specversion":"1.0","type":"io.trimtab.inference.v1","source":"/bench",'
                f'"id":"{name}","data":{{"id":"{name}","model":"m","version":"1","time":{time_ms},'
                f'"features":{{{bodies[sent % 1_000]}}},"prediction":"{"ab"[sent % 2]}"}}}}'
            )
            try:
                producer.produce("trimtab.inference", value.encode(), partition=sent % PARTITIONS)
            except BufferError:
                producer.poll(0.05)
                continue
            sent += 1
        producer.poll(0)
        time.sleep(0.005)
    producer.flush(30)
    return behind_ms


def found(store: Store, expected_end_ms: int, limit_s: float) -> list[tuple[int, int]]:
    """Return (window end, created) of first revisions, once the last expected window has one."""
    until = time.monotonic() + limit_s
    while True:
        with store.read() as connection:
            rows = connection.execute(
                select(verdicts.c.window_end_ms, verdicts.c.created_ms)
                .where(verdicts.c.revision == 1)
                .order_by(verdicts.c.window_end_ms)
            ).all()
        ends = [(int(end), int(created)) for end, created in rows]
        if time.monotonic() > until or (ends and ends[-1][0] >= expected_end_ms):
            return ends
        time.sleep(0.5)


def measure(folder: Path, per_second: int, seconds: int) -> dict[str, Any]:
    """Run broker, monitor and producer; return the figures."""
    url = f"sqlite:///{folder / 'bench.db'}"
    store = open_store(url)
    upgrade(store)
    apply_contract(store, CONTRACT, "", "bench", now_ms())
    context = multiprocessing.get_context("spawn")
    stop, ready = context.Event(), context.Event()
    with rig.kafka() as bootstrap, contextlib.closing(store):
        rig.make_topics(bootstrap, TOPICS)
        flags = {"store.url": url, "kafka.bootstrap": bootstrap, "data_dir": str(folder)}
        child = context.Process(target=monitor, args=(flags, stop, ready))
        child.start()
        try:
            if not ready.wait(START_LIMIT_S):
                raise SystemExit("The monitor did not begin to read.")
            behind_ms = produce(bootstrap, per_second, seconds)
            ended_ms = now_ms()
            last_end_ms = ended_ms // WINDOW_MS * WINDOW_MS - WINDOW_MS
            ends = found(store, last_end_ms, 30.0)
            with store.read() as connection:
                rows = connection.scalar(select(func.sum(partitions.c.rows)))
        finally:
            stop.set()
            child.join(30)
            if child.is_alive():
                child.kill()
    kept = [pair for pair in ends if pair[0] <= ended_ms - OUT_OF_ORDER_MS][FIRST_WINDOWS:]
    if not kept:
        raise SystemExit("No window was judged in time: the machine is too busy to say anything.")
    latency_s = np.array([(created - end - OUT_OF_ORDER_MS) / 1_000 for end, created in kept])
    return {
        "events_per_second": per_second,
        "seconds": seconds,
        "events_counted": int(rows or 0),
        "windows": len(kept),
        "verdict_p50_s": round(float(np.quantile(latency_s, 0.5)), 3),
        "verdict_p99_s": round(float(np.quantile(latency_s, 0.99)), 3),
        "verdict_max_s": round(float(latency_s.max()), 3),
        "producer_behind_s": round(behind_ms / 1_000, 3),
    }


def main() -> None:
    """Measure and print."""
    asked = rig.options(__doc__, "1,000 events/s for 20 s").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), *((1_000, 20) if asked.quick else (10_000, 60)))
    rig.show(result, as_json=asked.json)


if __name__ == "__main__":
    main()
