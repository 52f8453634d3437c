"""What counts cost on disk: bytes of one model and day as panes, as hours and as a day, in SQLite.

    python bench/storage.py [--quick] [--json]

A day of one-minute panes of numeric features of 64 bins is written by two partitions, sealed, judged to the
end and folded over partitions, into hours and into a day, by the code that does it in the monitor. Bytes
are those of the pages that a table and its indexes take (`dbstat`), after VACUUM for roll-ups. The last
line has ten times the rows of the second: the room that counts take does not depend on the event rate.
`cpu_us_per_row` is CPU of this process per stored row that a fold took away.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import text

from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.monitor.rollup import roll_up
from trimtab.store.engine import Store, open_store
from trimtab.store.leases import acquire
from trimtab.store.tables import metadata, rollups
from trimtab.store.verdicts import Progress, flushed_since, save_progress
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import DAY_MS, HOUR_MS, Kept

START_MS = 19_700 * DAY_MS
PANE_MS = 60_000
PANES_PER_HOUR = HOUR_MS // PANE_MS
EVER_MS = 1_000 * DAY_MS


def table_bytes(store: Store, *tables: str) -> int:
    """Bytes of the pages of some tables with their indexes."""
    total = 0
    with store.read() as connection:
        for name in tables:
            found = connection.execute(
                text(
                    "select coalesce(sum(pgsize), 0) from dbstat where name in "
                    "(select name from sqlite_master where tbl_name = :name) "
                    "and pgsize > 0"
                ),
                {"name": name},
            )
            total += int(found.scalar_one())
    return total


def month_bytes(store: Store) -> int:
    """Bytes of the stored day thirty times over."""
    names = [column.name for column in rollups.columns]
    moved = ", ".join(f"start_ms + {DAY_MS} * :day" if n == "start_ms" else n for n in names)
    with store.write() as connection:
        for day in range(1, 30):
            connection.execute(
                text(
                    f"insert into rollups ({', '.join(names)}) "
                    f"select {moved} from rollups where start_ms = {START_MS}"
                ),
                {"day": day},
            )
    return table_bytes(store, "rollups")


def fill(store: Store, features: int, rows_per_pane: int, hours: int) -> Contract:
    """Write and seal the panes of some hours, and say that all of them are judged."""
    names = [f"feature_{number:03d}" for number in range(features)]
    contract = Contract(
        name="m",
        task="binary",
        features={name: Feature(kind="number") for name in names},
        windows=Windows(length="1h", out_of_order="0s", min_rows=1),
        alarms=Alarms(rules=()),
        reference=Reference(windows=10),
    )
    writer = SeriesWriter(store, contract, START_MS)
    rng = np.random.default_rng(1)
    writer.fit_cuts({name: rng.normal(size=2_000).tolist() for name in names}, ["a", "b"])
    answers = ["a" if number % 2 else "b" for number in range(rows_per_pane)]
    for pane in range(hours * PANES_PER_HOUR):
        values = rng.normal(size=(features, rows_per_pane))
        for partition in (0, 1):
            writer.rows(
                START_MS + pane * PANE_MS,
                dict(zip(names, values.tolist(), strict=True)),
                prediction=answers,
                latency_ms=rng.lognormal(3, 1, size=rows_per_pane).tolist(),
                partition=partition,
            )
    writer.seal(START_MS + DAY_MS)
    with store.write() as connection:
        seen = flushed_since(connection, "m", {}).positions
        judged_ms = START_MS + 10 * DAY_MS
        save_progress(connection, "m", Progress(evaluated_to_ms=judged_ms, seen=seen), START_MS)
    return contract


def measure(folder: Path, features: int, rows_per_pane: int, hours: int) -> dict[str, Any]:
    """Return the bytes per day of each resolution."""
    store = open_store(f"sqlite:///{folder / f'{features}-{rows_per_pane}.db'}")
    metadata.create_all(store.engine)
    contract = fill(store, features, rows_per_pane, hours)
    days = hours * HOUR_MS / DAY_MS
    found: dict[str, Any] = {"features": features, "rows_per_day": rows_per_pane * 2 * 1_440}
    found["panes_by_partition"] = round(table_bytes(store, "panes") / days)
    lease = acquire(store, "retention", "bench", START_MS, EVER_MS)
    assert lease is not None  # nobody else is here
    newest_ms = START_MS + 10 * DAY_MS
    went, spent_s = 0, 0.0
    for name, kept in (
        ("panes", Kept(panes_ms=EVER_MS, hours_ms=EVER_MS, days_ms=EVER_MS)),
        ("hours", Kept(panes_ms=HOUR_MS, hours_ms=EVER_MS, days_ms=EVER_MS)),
        ("day", Kept(panes_ms=HOUR_MS, hours_ms=HOUR_MS, days_ms=EVER_MS)),
    ):
        began_s = time.process_time()
        while done := roll_up(store, lease, "m", contract, newest_ms, kept, 1_000).rows:
            went += done
        spent_s += time.process_time() - began_s
        with store.engine.connect() as connection:
            connection.exec_driver_sql("ROLLBACK")
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("BEGIN")
        if name == "day":  # one row, however much of the day was written: a month of its like
            found[name] = round(month_bytes(store) / 30)
        else:
            found[name] = round(table_bytes(store, "rollups") / days)
    store.close()
    found["cpu_us_per_row"] = round(1e6 * spent_s / went)
    return found


def kept_bytes(found: dict[str, Any]) -> int:
    """Bytes of a model that has run for two years under the default retention."""
    return int(2 * found["panes"] + 28 * found["hours"] + 700 * found["day"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two hours instead of a day")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    hours = 2 if asked.quick else 24
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(Path(folder), features, rows, hours)
            for features, rows in ((5, 100), (20, 100), (100, 100), (20, 1_000))
        ]
    for found in results:
        found["after_two_years"] = kept_bytes(found)
    if asked.json:
        print(json.dumps(results, indent=2))
        return
    names = list(results[0])
    print("  ".join(f"{name:>18}" for name in names))
    for found in results:
        print("  ".join(f"{found[name]:>18,}" for name in names))


if __name__ == "__main__":
    main()
