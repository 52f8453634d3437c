"""What the monitor costs per event: CPU of decode, counting and the flush, beside a bare Kafka loop.

    python bench/ingest.py [--quick] [--json]

Events: one JSON message each, 20 numeric features, structured CloudEvents. `bare` is kafka-python
reading the same messages from the embedded broker and doing nothing; `count` is decode to states, without SQL;
`flush` is everything up to the commit in SQLite. CPU time of this process, single runs: read ratios.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from trimtab.contracts.model import Contract, Feature, Reference, Windows
from trimtab.events.types import Inference
from trimtab.monitor.embedded import EmbeddedBroker
from trimtab.monitor.partition import OwnedPartition
from trimtab.monitor.views import ModelView
from trimtab.source import Partition
from trimtab.stats.cuts import build_numeric_cuts, model_cuts
from trimtab.store import ledger
from trimtab.store.engine import open_store
from trimtab.store.models import apply_contract
from trimtab.store.tables import metadata
from trimtab.testing.log import MemoryLog

FEATURES = 20
BATCH = 4_000


def events(count: int) -> MemoryLog:
    """Return a log of `count` inferences over a minute of event time."""
    log, rng, start = MemoryLog(), random.Random(1), 1_700_000_000_000
    for i in range(count):
        time_ms = start + i * 60_000 // count
        row = Inference(
            id=f"request-{i:012d}",
            model="m",
            version="1",
            time=time_ms,
            features={f"feature_{k:02d}": rng.gauss(0, 1) for k in range(FEATURES)},
            prediction=i % 2,
            latency_ms=rng.random() * 20,
        )
        log.send(Partition("in", 0), row, time_ms)
    return log


def bare(log: MemoryLog) -> float:
    """CPU seconds of kafka-python to read the messages."""
    with EmbeddedBroker(["in"]) as broker:
        producer = KafkaProducer(**broker.client)
        records = log.records[Partition("in", 0)]
        for record in records:
            # Spread by hand: the broker keeps 5 MB per partition and drops the rest.
            producer.send(
                "in", partition=record.offset % 4, value=record.value, headers=list(record.headers)
            )
        producer.flush()
        producer.close()
        consumer = KafkaConsumer(**broker.client, enable_auto_commit=False)
        parts = [TopicPartition("in", p) for p in consumer.partitions_for_topic("in")]
        consumer.assign(parts)
        consumer.seek_to_beginning()
        seen, began = 0, time.process_time()
        while seen < len(records):
            seen += sum(map(len, consumer.poll(500, max_records=5_000).values()))
        spent = time.process_time() - began
        consumer.close()
    return spent


def flush(log: MemoryLog, folder: Path) -> tuple[float, float, int]:
    """CPU seconds of (everything, without the transaction) and how many messages were read typed."""
    store = open_store(f"sqlite:///{folder / 'bench.db'}")
    metadata.create_all(store.engine)
    names = [f"feature_{k:02d}" for k in range(FEATURES)]
    contract = Contract(
        name="m",
        task="binary",
        features={name: Feature(kind="number", min=-10, max=10) for name in names},
        windows=Windows(length="1 min"),
        reference=Reference(rows=1),
    )
    apply_contract(store, contract, "", "bench", 0)
    rng = random.Random(2)
    sample = [rng.gauss(0, 1) for _ in range(2_000)]
    cuts = model_cuts((name, build_numeric_cuts(sample)) for name in names)
    claim = ledger.claim(
        store,
        consumer="monitor",
        cluster_id="c",
        topic="in",
        topic_id="",
        partition=0,
        owner="bench",
        beginning_offset=0,
        now_ms=0,
    )
    views = {"m": ModelView(1, contract)}
    owned = OwnedPartition(store, claim, "inference", views)
    records = log.records[Partition("in", 0)]
    prepared, fast, began = 0.0, 0, time.process_time()
    real = owned._prepare  # noqa: SLF001 - the part before the transaction

    def timed(*args: Any) -> Any:
        nonlocal prepared
        at = time.process_time()
        result = real(*args)
        prepared += time.process_time() - at
        return result

    owned._prepare = timed  # type: ignore[method-assign]  # noqa: SLF001
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        fast += owned.flush(part, part[-1].offset + 1, views, {"m": cuts}, 1).fast
    spent = time.process_time() - began
    store.close()
    return spent, prepared, fast


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    count = 5_000 if asked.quick else 16_000  # more would not fit into the embedded broker
    log = events(count)
    with tempfile.TemporaryDirectory() as folder:
        spent, prepared, fast = flush(log, Path(folder))
    reading = bare(log)
    micro = 1e6 / count
    result = {
        "events": count,
        "typed": fast,
        "bare_kafka_us": round(reading * micro, 2),
        "count_us": round(prepared * micro, 2),
        "flush_us": round(spent * micro, 2),
        "flush_to_bare": round(spent / reading, 2),
    }
    if asked.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:16} {value}")


if __name__ == "__main__":
    main()
