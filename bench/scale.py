"""Whether two monitors on one machine do twice the work of one.

    python bench/scale.py [--quick] [--json]

Real Kafka and PostgreSQL, one topic of four partitions, filled beforehand with JSON events of 20 numeric
features; `trimtab monitor` as a user starts it: one, one with `--workers 2`, and two by themselves in one
group. Each reads a fresh store to the end with confluent-kafka; the clock runs from the moment a tenth is
committed and every monitor has partitions, so that starting and joining do not count. Broker and PostgreSQL
run on the same cores: `busy_*` says how much of the machine was in use, and `rows_per_s_per_core_*` what a
second of one core gave, so that a machine with cores to spare is told apart from one without.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import rig
from sqlalchemy import select

from trimtab.store.engine import Store, open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import apply_contract, save_cuts
from trimtab.store.tables import partitions

PARTITIONS, FEATURES = 4, 20
LIMIT_S = 300.0
ARRANGEMENTS = {"1": [["monitor"]], "2_workers": [["monitor", "--workers", "2"]]} | {
    "2_replicas": [["monitor"], ["monitor"]]
}


@contextmanager
def running(commands: Sequence[Sequence[str]], folder: Path, environment: Any) -> Iterator[None]:
    """Run processes of ours, each with its own data directory; end them afterwards."""
    processes = []
    try:
        for number, command in enumerate(commands):
            home = folder / f"{number}-{uuid.uuid4().hex[:6]}"
            home.mkdir()
            with (home / "log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "trimtab", *command],
                        env=environment | {"TRIMTAB_DATA_DIR": str(home)},
                        cwd=home,
                        stdout=log,
                        stderr=log,
                    )
                )
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def used_s(parent: int) -> float:
    """CPU seconds that the living descendants of a process have used, threads and all."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # it ended meanwhile
        fields = text.rpartition(")")[2].split()
        name = text[text.index("(") + 1 : text.rindex(")")]
        found[int(text.split()[0])] = (name, int(fields[1]), int(fields[11]) + int(fields[12]))

    def descends(pid: int) -> bool:
        while pid in found:
            pid = found[pid][1]
            if pid == parent:
                return True
        return False

    ours = {pid: entry for pid, entry in found.items() if descends(pid)}
    return sum(spent for name, _, spent in ours.values() if name.startswith("python")) / tick


def machine_s() -> tuple[float, float]:
    """(busy, all) CPU seconds of the machine since it started."""
    tick = os.sysconf("SC_CLK_TCK")
    numbers = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / tick, sum(numbers) / tick


def measure(
    store: Store,
    commands: Sequence[Sequence[str]],
    folder: Path,
    environment: Any,
    rows: int,
    members: int,
) -> dict[str, float]:
    """Let the processes read everything; return rows per second and what it took."""
    with running(commands, folder, environment):
        wait_for(store, rows // 10, members)
        first, used, machine, began = (
            done(store),
            used_s(os.getpid()),
            machine_s(),
            time.monotonic(),
        )
        wait_for(store, rows)
        wall, spent, after = time.monotonic() - began, used_s(os.getpid()) - used, machine_s()
    problems = [problem for entry in ledger(store) for problem in entry.balance()]
    assert not problems, problems
    return {
        "rows_per_s": (rows - first) / wall,
        "rows_per_s_per_core": (rows - first) / spent,
        "busy": (after[0] - machine[0]) / (after[1] - machine[1]),
    }


def done(store: Store) -> int:
    """Rows committed so far."""
    return sum(entry.rows for entry in ledger(store))


def owners(store: Store) -> int:
    """Monitors that own a partition."""
    with store.read() as connection:
        return len(set(connection.execute(select(partitions.c.owner)).scalars()))


def wait_for(store: Store, rows: int, members: int = 1) -> None:
    """Wait until so many rows are committed and so many monitors read."""
    deadline = time.monotonic() + LIMIT_S
    while done(store) < rows or owners(store) < members:
        assert time.monotonic() < deadline, f"{done(store)} of {rows} rows after {LIMIT_S} s"
        time.sleep(0.05)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows = 300_000 if asked.quick else 1_000_000
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        rig.kafka() as bootstrap,
        rig.postgres() as postgres,
    ):
        rig.fill(
            bootstrap, "trimtab.inference", rig.singles(rows, FEATURES, "structured"), PARTITIONS
        )
        for name, commands in ARRANGEMENTS.items():
            database = f"b_{uuid.uuid4().hex[:12]}"
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute(f"create database {database}")
            url = postgres.replace("/postgres?", f"/{database}?")
            store = open_store(url)
            upgrade(store)
            apply_contract(store, rig.contract(FEATURES), "", "bench", 0)
            with store.write() as connection:
                save_cuts(connection, rig.MODEL, rig.cuts(FEATURES), "bench", 0)
            environment = dict(os.environ) | {
                "TRIMTAB_KAFKA__BOOTSTRAP": bootstrap,
                "TRIMTAB_KAFKA__CLIENT": "confluent-kafka",
                "TRIMTAB_KAFKA__GROUP": name,
                "TRIMTAB_STORE__URL": url,
            }
            members = int(name[0])
            got = measure(store, commands, Path(folder), environment, rows, members)
            found |= {f"{key}_{name}": round(value, 3) for key, value in got.items()}
            store.close()
    for name in ("2_workers", "2_replicas"):
        found[f"scaling_{name}"] = round(found[f"rows_per_s_{name}"] / found["rows_per_s_1"], 3)
    found["cores"] = os.cpu_count() or 1
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:40} {value}")


if __name__ == "__main__":
    main()
