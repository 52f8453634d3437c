"""What a long run costs: resident memory and CPU per event as millions of events go by.

    python bench/memory.py [--quick] [--events N] [--json]

One process with ingest, joiner, evaluator and housekeeping, ticked in turn. A synthetic `Source` makes JSON
messages from a template (no broker, no log in memory): inferences with 5 numeric features at a steady rate
of event time, 2 % of them sent twice and 2 % late; labels for a tenth of them, half a minute later, every
fifth of these corrected. Lateness, retention and the label horizon are short enough that each is passed
many times. CPU is this process's, with the making of the messages apart. `rss_growth` compares resident
memory at the end with that after the first million; `cost_growth` the CPU per event of the last million
with that of the first. A quick run is too short for either to mean much: its parts are of 100,000 events.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rig

from trimtab.alerts.delivery import Relay
from trimtab.contracts.model import Labels, Reference, Windows
from trimtab.monitor.app import collect_rarely
from trimtab.monitor.evaluator import Evaluator
from trimtab.monitor.housekeeping import Housekeeping, Retention
from trimtab.monitor.ingest import Ingest
from trimtab.monitor.joiner import Joiner
from trimtab.source import Identity, Lost, Partition, Polled
from trimtab.store.models import apply_contract
from trimtab.testing.log import MemoryRecord

FEATURES = 5
EVENTS, QUICK_EVENTS = 20_000_000, 300_000
PER_SECOND = 1_000
"""Inferences per second of event time."""
START_MS = 1_750_000_000_000
POLL_RECORDS = 5_000
LABEL_DELAY = 30 * PER_SECOND
LATE_MS, OUT_OF_ORDER_MS = 20_000, 1_000
INFERENCES, LABELS = Partition("in", 0), Partition("labels", 0)
CONTRACT = rig.two_classes(
    "m",
    FEATURES,
    Windows(length="10s", pane="10s", lateness="30s", out_of_order="1s", min_rows=50),
    Reference(rows=2_000, windows=3),
    ("accuracy < 0.2 in 2 of 3", "psi(f0) > 0.25 in 3 of 3"),
    Labels(arrive="within 1 min"),
)
RETENTION = Retention(
    panes_ms=60_000,
    hours_ms=3_600_000,
    days_ms=86_400_000,
    labels_ms=120_000,
    samples_ms=60_000,
    verdict_detail_ms=60_000,
    rejected_ms=60_000,
    outbox_ms=60_000,
)
RETENTION_TEXT = (
    "event time: lateness 30 s, label horizon 1 min, labels 2 min, panes 1 min, hours 1 h, days 1 d"
)
_INFERENCE = (
    '{"specversion":"1.0","type":"io.trimtab.inference.v1","source":"/bench","id":"%s",'
    '"data":{"id":"%s","model":"m","version":"1","time":%d,"features":{%s},"prediction":"%s",'
    '"latency_ms":%.2f}}'
)
_LABEL = (
    '{"specversion":"1.0","type":"io.trimtab.label.v1","source":"/bench","id":"%s-%d",'
    '"data":{"inference_id":"%s","model":"m","time":%d,"value":"%s","revision":%d,'
    '"source":"human"}}'
)


class MadeSource:
    """A `Source` whose records are made when they are polled, as functions of their number."""

    def __init__(self, count: int) -> None:
        self.count, self.made_s, self.made = count, 0.0, 0
        self._next = {INFERENCES: 0, LABELS: 0}
        self._labels: list[MemoryRecord] = []
        self._labelled = 0
        self._label_end = 0
        self._paused = {INFERENCES, LABELS}
        self._on_assigned: Callable[[Sequence[Partition]], None] = lambda _: None
        self._assigned = False
        numbers = np.random.default_rng(1).normal(size=(1_000, FEATURES))
        self._features = [
            ",".join(f'"f{k}":{value:.6f}' for k, value in enumerate(row)) for row in numbers
        ]

    def start(
        self,
        topics: Iterable[str],
        on_assigned: Callable[[Sequence[Partition]], None],
        on_revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        """Keep the callback; both partitions come with the first poll."""
        del topics, on_revoked
        self._on_assigned = on_assigned

    def poll(self, timeout_s: float) -> tuple[dict[Partition, Polled], list[Lost]]:
        """Make the next records of both partitions."""
        del timeout_s
        if not self._assigned:
            self._assigned = True
            self._on_assigned([INFERENCES, LABELS])
            return {}, []
        began = time.process_time()
        batches = {}
        for partition in (INFERENCES, LABELS):
            if partition in self._paused:
                continue
            records = self._inferences() if partition == INFERENCES else self._take_labels()
            if records:
                after = records[-1].offset + 1
                self._next[partition] = after
                batches[partition] = Polled(records, after, self._end(partition))
        self.made_s += time.process_time() - began
        return batches, []

    def _inferences(self) -> list[MemoryRecord]:
        first = self._next[INFERENCES]
        return [self._inference(i) for i in range(first, min(first + POLL_RECORDS, self.count))]

    def _inference(self, offset: int) -> MemoryRecord:
        sent_ms = START_MS + offset * 1_000 // PER_SECOND
        number = offset - 7 if offset % 50 == 25 else offset  # 2 % are sent twice
        time_ms = START_MS + number * 1_000 // PER_SECOND
        if number % 50 == 13:
            time_ms -= LATE_MS
        name = f"r{number:x}"
        text = _INFERENCE % (
            *(name, name, time_ms, self._features[number % 1_000]),
            *("ab"[number % 2], number % 97 / 7),
        )
        return MemoryRecord(offset, sent_ms, (), text.encode())

    def _take_labels(self) -> list[MemoryRecord]:
        """Labels of every tenth inference, and corrections, up to half a minute behind."""
        records = []
        until = self._next[INFERENCES] - LABEL_DELAY
        while self._labelled < until:
            number = self._labelled
            self._labelled += 10
            time_ms = START_MS + (number + LABEL_DELAY) * 1_000 // PER_SECOND
            for revision in (0, 1) if number % 50 == 0 else (0,):
                name, value = f"r{number:x}", "ab"[(number // 10 + revision) % 2]
                text = _LABEL % (name, revision, name, time_ms, value, revision)
                records.append(MemoryRecord(self._label_end, time_ms, (), text.encode()))
                self._label_end += 1
        return records

    def _end(self, partition: Partition) -> int:
        return self.count if partition == INFERENCES else self._label_end

    def seek(self, partition: Partition, offset: int) -> None:
        """Only to where we are: nothing is made twice."""
        if offset != self._next[partition]:
            raise RuntimeError(f"A flush failed: {partition} was to be read again from {offset}.")

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these."""
        self._paused |= set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver again."""
        self._paused -= set(partitions)

    def beginning(self, partition: Partition) -> int:
        """Return 0: nothing is ever dropped."""
        del partition
        return 0

    def progress(self, partition: Partition) -> tuple[int | None, int | None]:
        """Return (position, end of the log)."""
        return self._next[partition], self._end(partition)

    def identity(self, topic: str) -> Identity:
        """Return one identity per topic."""
        return Identity("bench", topic)

    def identities(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Return the same again."""
        return {partition: self.identity(partition.topic) for partition in partitions}

    def hint(self, offsets: Mapping[Partition, int]) -> None:
        """No broker wants to know."""

    def close(self) -> None:
        """Nothing to leave."""

    @property
    def done(self) -> bool:
        """Whether every inference has been delivered."""
        return self._next[INFERENCES] >= self.count

    @property
    def now_ms(self) -> int:
        """The wall clock of this log: when the newest record was sent."""
        return START_MS + self._next[INFERENCES] * 1_000 // PER_SECOND


def run(
    folder: Path, count: int, step: int, tell: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Run `count` inferences through one monitor; return a mark per `step` of them."""
    store = rig.made_store(folder)
    apply_contract(store, CONTRACT, "", "bench", START_MS)
    source = MadeSource(count)
    roles = {"in": "inference", "labels": "labels"}
    clock = {"s": 0.0}
    ingest = Ingest(
        store,
        source,
        roles,
        "bench",
        now_ms=lambda: source.now_ms,
        monotonic=lambda: clock["s"],
    )
    collect_rarely()
    ingest.start()
    joiner, evaluator = Joiner(store, "bench"), Evaluator(store, "bench")
    relay = Relay(store, rig.Nowhere(), "trimtab", {})
    house = Housekeeping(store, "bench", relay, RETENTION)
    parts = dict.fromkeys(("ingest", "joiner", "evaluator", "housekeeping"), 0.0)
    marks: list[dict[str, Any]] = []
    before, made_before = dict(parts), 0.0
    while not source.done:
        for name, tick in (
            ("ingest", ingest.step),
            ("joiner", lambda: joiner.tick(source.now_ms)),
            ("evaluator", lambda: evaluator.tick(source.now_ms)),
            ("housekeeping", lambda: house.tick(source.now_ms)),
        ):
            began = time.process_time()
            tick()
            parts[name] += time.process_time() - began
        clock["s"] = (source.now_ms - START_MS) / 1_000
        passed = source._next[INFERENCES]  # noqa: SLF001 - this file's own
        if passed >= step * (len(marks) + 1):
            spent = {name: parts[name] - before[name] for name in parts}
            spent["ingest"] -= source.made_s - made_before
            mark = {"events": passed, "rss_mib": round(rig.rss_mib(), 1)}
            mark["us_per_event"] = round(1e6 * sum(spent.values()) / step, 2)
            mark |= {f"{name}_us": round(1e6 * s / step, 2) for name, s in spent.items()}
            size = (folder / "bench.db").stat().st_size
            mark["database_mib"] = round(size / 2**20, 1)
            marks.append(mark)
            tell(mark)
            before, made_before = dict(parts), source.made_s
    ingest.stop()
    house.close()
    store.close()
    return marks


def main() -> None:
    """Measure and print."""
    parser = rig.options(__doc__, f"{QUICK_EVENTS:,} events")
    parser.add_argument("--events", type=int, default=EVENTS, help="a multiple of a million")
    asked = parser.parse_args()
    count, step = (QUICK_EVENTS, 100_000) if asked.quick else (asked.events, 1_000_000)

    def tell(mark: dict[str, Any]) -> None:
        if not asked.json:
            print("  ".join(f"{name} {value:,}" for name, value in mark.items()), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        marks = run(Path(folder), count, step, tell)
    result = {
        "events": count,
        "rss_growth": round(marks[-1]["rss_mib"] / marks[0]["rss_mib"] - 1, 3),
        "cost_growth": round(marks[-1]["us_per_event"] / marks[0]["us_per_event"] - 1, 3),
        "rss_first_mib": marks[0]["rss_mib"],
        "rss_last_mib": marks[-1]["rss_mib"],
        "us_per_event_first": marks[0]["us_per_event"],
        "us_per_event_last": marks[-1]["us_per_event"],
        "settings": RETENTION_TEXT,
    }
    rig.show(result, as_json=asked.json, marks=marks)


if __name__ == "__main__":
    main()
