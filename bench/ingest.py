"""What the monitor costs per event from a real Kafka topic to committed SQL, beside loops that only read it.

    python bench/ingest.py [--quick] [--json] [--rounds 3] [--features 20 5 100]

Every figure is CPU time of one process (not of the broker, nor of PostgreSQL), the least of some rounds in
which ours and the loops beside it take turns on the same topic: read ratios, and 1 is "as cheap as doing
nothing with the events". All run with the collector's thresholds that the monitor sets for itself, which makes
the bare loops cheaper, too.

    bare        kafka-python: poll, count the records
    bare+decode confluent-kafka: poll, read the headers, decode with msgspec into the published event types
                (`trimtab.events.types`); for Arrow, pyarrow. What a consumer of these events would write.
    bare+typed  the same with the decoder that the monitor builds from the contract, a third cheaper
    ours        Source, decode, columns, dedupe, counts, label runs, samples: everything up to the commit
"""

import argparse
import json
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rig

SIZES = (20, 5, 100)
POLL = 5_000


# --- children -----------------------------------------------------------------------------------------


def bare_kafka_python(task: dict[str, Any]) -> float:
    """CPU seconds of kafka-python to poll and count."""
    from kafka import KafkaConsumer, TopicPartition

    from trimtab.source import POLL_FETCH_BYTES

    consumer = KafkaConsumer(
        bootstrap_servers=task["bootstrap"],
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_poll_records=POLL,
        max_partition_fetch_bytes=POLL_FETCH_BYTES,
    )
    parts = [TopicPartition(task["topic"], p) for p in consumer.partitions_for_topic(task["topic"])]
    consumer.assign(parts)
    consumer.seek_to_beginning()
    seen, began = 0, time.process_time()
    while seen < task["messages"]:
        seen += sum(map(len, consumer.poll(500).values()))
    spent = time.process_time() - began
    consumer.close()
    return spent


def bare_confluent(task: dict[str, Any]) -> float:
    """CPU seconds of confluent-kafka to poll, read headers and decode."""
    from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

    read = _typed_reader(task) if task["role"] == "bare+typed" else _published_reader(task)
    consumer = Consumer(
        {
            "bootstrap.servers": task["bootstrap"],
            "group.id": uuid.uuid4().hex,
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    partitions = consumer.list_topics(task["topic"]).topics[task["topic"]].partitions
    consumer.assign([TopicPartition(task["topic"], p, OFFSET_BEGINNING) for p in partitions])
    seen, began = 0, time.process_time()
    while seen < task["messages"]:
        for message in consumer.consume(POLL, 0.5):
            message.headers()
            read(message.value())
            seen += 1
    spent = time.process_time() - began
    consumer.close()
    return spent


def _published_reader(task: dict[str, Any]) -> Callable[[bytes], Any]:
    """Return the msgspec decoder of the event types."""
    from trimtab.events import cloudevents, types

    decoders = cloudevents._DECODERS  # noqa: SLF001 - the msgspec decoders themselves
    return {
        "bare": decoders[types.INFERENCE_TYPE].decode,
        "binary": decoders[types.INFERENCE_TYPE].decode,
        "structured": cloudevents._ENVELOPES.decode,  # noqa: SLF001
        "json": cloudevents._ENVELOPES.decode,  # noqa: SLF001
        "arrow": _read_arrow,
    }[task["form"]]


def _typed_reader(task: dict[str, Any]) -> Callable[[bytes], Any]:
    """Return the msgspec decoder of the contract's model."""
    from trimtab.monitor.views import ModelView

    decoder = ModelView(1, rig.contract(task["features"])).decoder
    structured = task["form"] in ("structured", "json")
    return decoder._decode_structured if structured else decoder._decode_row  # noqa: SLF001


def _read_arrow(value: bytes) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(value).read_all()


def monitor(task: dict[str, Any]) -> float:
    """CPU seconds of our ingest loop to read, count and commit every message."""
    from trimtab.monitor.ingest import Ingest
    from trimtab.settings import KafkaSettings, MonitorSettings
    from trimtab.sources import open_source
    from trimtab.store.engine import open_store
    from trimtab.store.ledger import ledger
    from trimtab.store.migrate import upgrade
    from trimtab.store.models import apply_contract, save_cuts

    store = open_store(task["store"])
    upgrade(store)
    apply_contract(store, rig.contract(task["features"]), "", "bench", 0)
    with store.write() as connection:
        save_cuts(connection, rig.MODEL, rig.cuts(task["features"]), "bench", 0)
    kafka = KafkaSettings(bootstrap=task["bootstrap"], client=task["client"])
    source = open_source(kafka, uuid.uuid4().hex, POLL)
    usual = MonitorSettings().flush_rows
    # Of few messages the first flush, which is left out, must not be the only one.
    ingest = Ingest(
        store,
        source,
        {task["topic"]: "inference"},
        "bench",
        flush_rows=min(usual, max(1, task["rows"] // 4)),
    )
    ingest.start()

    def until(messages: int) -> int:
        while (done := sum(owned.next_offset for owned in ingest.owned.values())) < messages:
            ingest.step()
        return done

    # The first flush imports and compiles what later ones use again.
    warm = until(task["messages"] // 10)
    began = time.process_time()
    until(task["messages"])
    spent = (time.process_time() - began) * task["messages"] / (task["messages"] - warm)
    ingest.stop()
    entry = ledger(store)[0]
    assert entry.rows == task["rows"], entry
    assert not entry.balance(), entry.balance()
    counted = entry.classes.get(("row", "counted", ""), 0)
    assert counted == task["rows"], entry.classes
    store.close()
    return spent


ROLES = {
    "bare": bare_kafka_python,
    "bare+decode": bare_confluent,
    "bare+typed": bare_confluent,
    "ours": monitor,
}


# --- rounds -------------------------------------------------------------------------------------------


class Bench:
    """Runs children in turn and keeps the least CPU time of each, in µs per row."""

    def __init__(self, bootstrap: str, rounds: int, folder: Path, postgres: str | None) -> None:
        self.bootstrap, self.rounds, self.folder, self.postgres = (
            bootstrap,
            rounds,
            folder,
            postgres,
        )

    def measure(
        self, topic: dict[str, Any], wanted: list[tuple[str, str, str]]
    ) -> dict[str, float]:
        """Return µs per row by name; `wanted` are (name, role, "client/database")."""
        best: dict[str, float] = {}
        for _ in range(self.rounds):
            for name, role, how in wanted:
                client, _, database = how.partition("/")
                task = topic | {
                    "role": role,
                    "bootstrap": self.bootstrap,
                    "client": client,
                    "store": self._store(database),
                }
                spent = rig.child(__file__, task)["cpu_s"] / topic["rows"] * 1e6
                best[name] = min(best.get(name, spent), spent)
        return best

    def _store(self, database: str) -> str:
        if database != "postgresql":
            return f"sqlite:///{self.folder / uuid.uuid4().hex}.db"
        import psycopg

        assert self.postgres is not None
        name = f"b_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return self.postgres.replace("/postgres?", f"/{name}?")


def singles(bench: Bench, count: int, features: int, *, everything: bool) -> dict[str, Any]:
    """Events of one row each."""
    table: dict[str, Any] = {}
    for form, headers in (("binary", 5), ("bare", 0), *([("structured", 1)] if everything else [])):
        name = f"singles-{form}-{features}"
        size = rig.fill(bench.bootstrap, name, rig.singles(count, features, form))
        topic = {
            "topic": name,
            "messages": count,
            "rows": count,
            "features": features,
            "form": form,
        }
        wanted = [
            ("bare", "bare", ""),
            ("bare+decode", "bare+decode", ""),
            ("bare+typed", "bare+typed", ""),
            ("kafka-python", "ours", "kafka-python/sqlite"),
            ("confluent-kafka", "ours", "confluent-kafka/sqlite"),
        ]
        if bench.postgres is not None and everything:
            wanted.append(("confluent-kafka, PostgreSQL", "ours", "confluent-kafka/postgresql"))
            wanted.append(("kafka-python, PostgreSQL", "ours", "kafka-python/postgresql"))
        us = bench.measure(topic, wanted)
        table[f"{features} features, {headers} headers, {size} bytes"] = us
    return table


def columnar(bench: Bench, count: int) -> dict[str, Any]:
    """Batches of 500 rows."""
    table = {}
    for form in ("json", "arrow"):
        name = f"batches-{form}"
        size = rig.fill(bench.bootstrap, name, rig.batches(count, 500, 20, form))
        topic = {
            "topic": name,
            "messages": count // 500,
            "rows": count // 500 * 500,
            "features": 20,
            "form": form,
        }
        wanted = [
            ("bare", "bare", ""),
            ("bare+decode", "bare+decode", ""),
            ("kafka-python", "ours", "kafka-python/sqlite"),
            ("confluent-kafka", "ours", "confluent-kafka/sqlite"),
        ]
        table[f"500 rows of 20 features, {form}, {size // 500} bytes a row"] = bench.measure(
            topic, wanted
        )
    return table


def figures(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """The named ratios."""
    found: dict[str, float] = {}
    for title, us in table.items():
        if title.startswith("20 features") and "1 headers" not in title:
            headers = "5_headers" if "5 headers" in title else "0_headers"
            found[f"json_vs_bare_kafka_python_{headers}"] = us["bare"] / us["kafka-python"]
            found[f"json_vs_bare_librdkafka_{headers}"] = us["bare+decode"] / us["confluent-kafka"]
            found[f"json_vs_typed_librdkafka_{headers}"] = us["bare+typed"] / us["confluent-kafka"]
            found[f"json_events_per_s_per_core_{headers}"] = 1e6 / us["confluent-kafka"]
        if title.startswith("500 rows"):
            form = "" if "json" in title else "arrow_"
            found[f"{form}columnar_rows_per_s_per_core"] = 1e6 / us["confluent-kafka"]
            found[f"{form}columnar_vs_ceiling"] = us["bare+decode"] / us["confluent-kafka"]
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--features", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        from trimtab.monitor.app import collect_rarely

        collect_rarely()
        task = json.loads(asked.child)
        print(json.dumps({"cpu_s": ROLES[task["role"]](task)}))
        return
    table: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, rig.kafka() as bootstrap:
        if asked.quick:
            bench = Bench(bootstrap, 1, Path(folder), None)
            table |= singles(bench, 20_000, 20, everything=False)
            table |= columnar(bench, 60_000)
        else:
            with rig.postgres() as postgres:
                bench = Bench(bootstrap, asked.rounds, Path(folder), postgres)
                for features in asked.features:
                    count = 200_000 if features <= 20 else 60_000
                    table |= singles(bench, count, features, everything=features == 20)
                table |= columnar(bench, 1_000_000)
    found = figures(table)
    if asked.json:
        print(json.dumps(found | {"us_per_row": table}))
        return
    for title, us in table.items():
        print(f"\n{title}: CPU µs per row")
        for name, value in us.items():
            print(f"  {name:28} {value:8.2f}")
    print()
    for name, ratio in found.items():
        print(f"{name:40} {ratio}")


if __name__ == "__main__":
    main()
