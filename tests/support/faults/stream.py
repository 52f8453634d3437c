"""A stream with faults as data: the same seed gives the same messages, whatever happens to who reads them.

Two models share the topics: `live` has classes, `replay` predicts numbers and plays the 1990s. Among
their rows and labels: duplicates, rows out of order within the bounds, beyond them and too late, rows of the
future, labels before their rows, twice, corrected, withdrawn, of a source that does not count, and
poison of every kind.
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle

from msgspec.structs import replace

from trimtab.contracts.model import Contract, Feature, Labels, Prediction, Reference, Windows

T_LIVE, T_REPLAY = 1_767_225_600_000, 631_152_000_000  # 2026-01-01, 1990-01-01
STEP_MS = 40
PARTITIONS, LABEL_PARTITIONS = 4, 2
STRUCTURED = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)

LIVE = Contract(
    name="live",
    task="multiclass",
    features={
        "x": Feature(kind="number", min=-3, max=3, required=True),
        "n": Feature(kind="number"),
        "c": Feature(kind="category", values=("a", "b")),
        "d": Feature(kind="category"),
    },
    prediction=Prediction(classes=("0", "1", "2")),
    labels=Labels(arrive="within 1h", sources=("human",)),
    windows=Windows(
        length="4s",
        pane="2s",
        lateness="20s",
        out_of_order="5s",
        idle="1s",
        segments=("c",),
        min_rows=5,
    ),
    reference=Reference(rows=200, windows=4),
)
REPLAY = Contract(
    name="replay",
    task="regression",
    features={"x": Feature(kind="number")},
    labels=Labels(arrive="within 1h", sources=("outcome",)),
    windows=Windows(
        length="5s", pane="5s", lateness="60s", out_of_order="10s", idle="1s", min_rows=2
    ),
    reference=Reference(rows=60, windows=4),
)
MODELS = (LIVE, REPLAY)
SCORED_ROWS = 1_000
"""A reference of so many rows tells which rows are outliers; short streams have no room for it."""


def models(rows: int) -> tuple[Contract, Contract]:
    """Return the contracts for a stream of so many rows."""
    if rows <= 2 * SCORED_ROWS:
        return MODELS
    return replace(LIVE, reference=Reference(rows=SCORED_ROWS, windows=4)), REPLAY


@dataclass(frozen=True)
class Message:
    """What is sent where. `timestamp` is Kafka's, in milliseconds."""

    role: str
    partition: int
    timestamp: int
    value: bytes | None
    headers: tuple = ()


def poison() -> dict[str, tuple[bytes | None, tuple]]:
    """Every kind of payload that does not count, by name: (value, headers)."""
    good = {"id": "p", "model": "live", "version": "1", "time": T_LIVE}

    def bare(**changed):
        return json.dumps(good | changed).encode(), ()

    def cut(name):
        return json.dumps({k: v for k, v in good.items() if k != name}).encode(), ()

    def wrapped(spec="1.0", kind="io.trimtab.inference.v1"):
        event = {"specversion": spec, "type": kind, "id": "e", "source": "s", "data": good}
        return json.dumps(event).encode(), STRUCTURED

    return {
        "nothing": (None, ()),
        "no bytes": (b"", ()),
        "bad JSON": (b'{"id": "p", "model": "live",', ()),
        "bytes": (b"\xff\xfe\x00\x01", ()),
        "bad UTF-8": (b'{"id":"\xff","model":"live","version":"1","time":5}', ()),
        "huge": bare(id="h", error="x" * 1_100_000),
        "deep": (b'{"id":"p","extra":' + b"[" * 5_000 + b"]" * 5_000 + b"}", ()),
        "deep objects": (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, ()),
        "NaN": bare(features={"x": float("nan")}),
        "infinity": bare(features={"x": float("-inf")}),
        "beyond float": (
            b'{"id":"p","model":"live","version":"1","time":5,"features":{"x":1e999}}',
            (),
        ),
        "beyond 64 bits": bare(features={"x": 2**70}),
        "features are a number": bare(features=3),
        "a list in a feature": bare(features={"x": [1]}),
        "an object as prediction": bare(prediction={"a": 1}),
        "a number as id": bare(id=5),
        "a float as time": bare(time=5.5),
        "latency in words": bare(latency_ms="fast"),
        "no id": cut("id"),
        "no model": cut("model"),
        "no time": cut("time"),
        "empty id": bare(id=""),
        "long id": bare(id="x" * 300),
        "unknown status": bare(status="weird"),
        "naive time": bare(time="2026-01-01T00:00:00"),
        "no time at all": bare(time="yesterday"),
        "microseconds": bare(time=T_LIVE * 1_000),
        "spec 0.3": wrapped(spec="0.3"),
        "type v9": wrapped(kind="io.trimtab.inference.v9"),
        "spec 0.3 in a header": (*bare()[:1], (("ce_specversion", b"0.3"),)),
        "a foreign content type": (*bare()[:1], (("content-type", b"application/avro"),)),
        "NUL": bare(id="a\0b"),
        "half a surrogate pair": bare(version="\ud800"),
        "unequal columns": bare(rows=3, features={"x": [1.0]}),
    }


def hostile(i: int) -> dict:
    """Rows that count, although their strings are nasty."""
    return {
        "version": "1'; drop table panes; --" if i % 2 else "\u202e\U0001f4a5 1",
        "features": {
            "x": 1.0,
            "c": "'); delete from partitions; --",
            "d": "é" * 300,
            "\u0000é"[1:]: 1,
        },
        "prediction": "<script>alert(1)</script>",
    }


class _Writer:
    def __init__(self, seed, rows):
        self.random = random.Random(seed)
        self.rows = rows
        self.out: list[tuple[float, int, Message]] = []
        self.poison = cycle(poison().values())

    def put(self, at, role, partition, body, headers=()):
        value = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        stamp = T_LIVE + int(max(0.0, at) * STEP_MS)
        message = Message(role, partition, stamp, value, tuple(headers))
        self.out.append((at, len(self.out), message))

    def chance(self, share):
        return self.random.random() < share

    def row(self, i, row):
        """Send a row in one of the three forms, and perhaps twice."""
        partition = zlib.crc32(row["id"].encode()) % PARTITIONS
        form, body, headers = self.random.random(), row, ()
        if form < 0.3:
            event = {"specversion": "1.0", "type": "io.trimtab.inference.v1", "id": row["id"]}
            body, headers = event | {"source": "s", "data": row}, STRUCTURED
        elif form < 0.4:
            headers = (("ce_specversion", b"1.0"), ("ce_type", b"io.trimtab.inference.v1"))
        self.put(i, "inference", partition, body, headers)
        if self.chance(0.05):
            self.put(i + self.random.choice((0.1, 3, 40)), "inference", partition, body, headers)
        if self.chance(0.003):  # a producer that keys otherwise: both rows count, one is joined
            self.put(i + 1, "inference", (partition + 1) % PARTITIONS, body, headers)

    def labels(self, i, model, row, truth, source):
        """Send what is known of the truth, early or late, and at times changed."""
        partition = zlib.crc32(row["id"].encode()) % LABEL_PARTITIONS

        def say(at, label, partition=partition, **more):
            body = {"inference_id": row["id"], "model": model, "label": label, "time": T_LIVE}
            self.put(at, "labels", partition, body | {"source": source} | more)

        at = i + self.random.choice((-5, 1, 10, 200))
        say(at, truth)
        if self.chance(0.05):
            say(at + 2, truth)
        if self.chance(0.02):  # from a producer that keys otherwise
            say(at + self.random.choice((-3, 3, 50)), truth, (partition + 1) % LABEL_PARTITIONS)
        if self.chance(0.05):
            say(at + self.random.choice((-1, 30)), 1 if source == "outcome" else "1", revision=1)
        if self.chance(0.02):
            say(at + 60, None, revision=2, retracted=True)
        if self.chance(0.02):
            say(at, truth, source="model")
        if self.chance(0.01):
            say(at, True if source == "outcome" else "y" * 300)

    def live(self, i):
        now = T_LIVE + i * STEP_MS
        kind, time = self.random.random(), now
        if kind < 0.2:
            time = now - self.random.randrange(5_000)
        elif kind < 0.22:
            time = now - self.random.randrange(6_000, 20_000)
        elif kind < 0.23:
            time = now - 60_000
        elif kind < 0.235:
            time = now + 600_000
        row = {
            "id": f"l{i}",
            "model": "live",
            "version": "1" if i < self.rows * 0.7 else "2",
            "time": time,
            "features": {
                "x": self.random.gauss(0, 1),
                "n": i % 7,
                "c": "ab"[i % 2],
                "d": f"d{i % 9}",
            },
            "prediction": str(i % 3),
            "scores": {"0": self.random.random(), "1": 0.2},
            "latency_ms": self.random.expovariate(0.1),
        }
        odd = self.random.random()
        if odd < 0.02:
            row["features"]["x"] = self.random.choice(("wrong", True, None, 1e300, -9.5, -0.0))
        elif odd < 0.03:
            row["features"] |= {"c": self.random.choice(("z", None, 3.0, "q" * 300)), "new": i}
        elif odd < 0.04:
            row |= {"prediction": None, "status": self.random.choice(("ok", "error", "timeout"))}
        elif odd < 0.05:
            row |= hostile(i)
        elif odd < 0.06:
            row["time"] = datetime.fromtimestamp(time / 1_000, UTC).isoformat(
                timespec="milliseconds"
            )
        elif odd < 0.12 and i > self.rows * 0.75:  # like no row that cuts are made of
            row["features"] |= {"x": 7.5, "n": self.random.choice((-4, 900)), "d": "nowhere"}
        if self.chance(0.01):
            batch = {k: row[k] for k in ("model", "version", "time")} | {"id": row["id"], "rows": 3}
            batch |= {
                "features": {"x": [0.5, None, 2], "c": ["a", "b", "z"]},
                "prediction": ["0", 1, "2"],
            }
            self.put(i, "inference", i % PARTITIONS, batch)
            return
        self.row(i, row)
        if self.chance(0.8):
            truth = str(i % 3 if i % 5 else (i + 1) % 3)
            self.labels(i, "live", row, truth, "human")

    def replay(self, i):
        row = {
            "id": f"r{i}",
            "model": "replay",
            "version": "1",
            "time": T_REPLAY + i * 200 - self.random.choice((0, 0, 0, 6_000, 40_000, 180_000)),
            "features": {"x": self.random.uniform(-5, 5)},
            "prediction": self.random.gauss(10, 3),
        }
        self.row(i, row)
        self.labels(i, "replay", row, row["prediction"] + self.random.gauss(0, 1), "outcome")

    def write(self):
        for i in range(self.rows):
            (self.replay if i % 5 == 0 else self.live)(i)
            if self.chance(0.02):  # 1 % of the messages: there are as many labels as rows
                value, headers = next(self.poison)
                self.put(i, "inference", self.random.randrange(PARTITIONS), value, headers)
            if self.chance(0.002):
                self.put(i, "labels", 0, self.random.choice((b"junk", b'{"label":1}', None)))
            if self.chance(0.003):
                self.put(
                    i, "inference", 0, {"id": "u", "model": "nobody", "version": "1", "time": 5}
                )
            if i % 100 == 0:
                sample = {
                    "instance": "i",
                    "model": "live",
                    "version": "1",
                    "sample": {"cpu_percent": 5},
                }
                self.put(i, "resources", 0, sample | {"time": T_LIVE + i * STEP_MS})
        return [message for _, _, message in sorted(self.out, key=lambda item: item[:2])]


def stream(rows: int, seed: int = 1) -> list[Message]:
    """Return the messages of about `rows` rows, in the order in which they are sent."""
    return _Writer(seed, rows).write()
