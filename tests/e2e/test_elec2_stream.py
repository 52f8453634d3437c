"""A real stream on real Kafka and PostgreSQL: `trimtab stream` and `trimtab monitor` as a user starts them.

The file is Elec2 (New South Wales electricity, 45,312 half hours; Harries 1999) where TRIMTAB_ELEC2
names it or a `shared` folder beside the repository holds it, else a generated one of the same
form. The answer "as before" needs no model, and each day's accuracy is recounted from the file.
"""

import csv
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BESIDE = ROOT.parent / "shared" / "data" / "elec2" / "stream.csv.gz"
NAMED = os.environ.get("TRIMTAB_ELEC2")  # read before the tests' environment is emptied of ours
COLUMNS = (
    *("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand"),
    *("transfer", "class"),
)
CHANGE_ROW, ROWS_OF_A_DAY = 17_424, 48
START_MS, STEP_MS = 831_427_200_000, 1_800_000  # 7 May 1996, half hours
DAY_MS = ROWS_OF_A_DAY * STEP_MS
LIMIT_S = 400

CONTRACT = """
name = "elec2"
task = "binary"
[features]
period = { kind = "number", min = 0, max = 1 }
nswprice = { kind = "number" }
nswdemand = { kind = "number" }
vicprice = { kind = "number" }
vicdemand = { kind = "number" }
transfer = { kind = "number" }
day = { kind = "category", values = ["1", "2", "3", "4", "5", "6", "7"] }
[prediction]
positive = "UP"
[labels]
arrive = "within 2 days"
[windows]
length = "1 day"
pane = "1 day"
idle = "2s"
out_of_order = "90 days"  # as fast as possible, so a window closes after its labels were joined
min_rows = 40
[reference]
rows = 2000
[alarms]
rules = ["psi(vicprice) > 0.25 in 3 of 4", "accuracy < 0.5 in 3 of 4"]
"""


@pytest.fixture(scope="module")
def stream_csv(tmp_path_factory):
    """Elec2 itself, or a file like it: three columns constant until row 17,424, sticky labels."""
    for given in (NAMED, BESIDE):
        if given and Path(given).is_file():
            return Path(given)
    path = tmp_path_factory.mktemp("elec2") / "stream.csv.gz"
    rng, label = random.Random(17), "UP"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in range(CHANGE_ROW + 150 * ROWS_OF_A_DAY):
            label = label if rng.random() < 0.85 else {"UP": "DOWN", "DOWN": "UP"}[label]
            period = row % ROWS_OF_A_DAY / 47
            vic = (
                (0.003467, 0.422915, 0.414912)
                if row < CHANGE_ROW
                else (rng.betavariate(2, 90), rng.betavariate(8, 10), rng.betavariate(9, 9))
            )
            nsw = (rng.betavariate(2, 30), rng.betavariate(4 + 3 * period, 5))
            day = 1 + (row // ROWS_OF_A_DAY + 1) % 7
            writer.writerow([0.0, day, round(period, 6), *nsw, *vic, label])
    return path


def recount(path):
    """By day: (rows answered, of them right) of the answer "as before", from the file alone."""
    days, before, rows = defaultdict(lambda: [0, 0]), None, 0
    with gzip.open(path, "rt", newline="") as file:
        for rows, line in enumerate(csv.DictReader(file), start=1):
            if before is not None:
                day = days[START_MS + (rows - 1) // ROWS_OF_A_DAY * DAY_MS]
                day[0] += 1
                day[1] += before == line["class"]
            before = line["class"]
    return dict(days), rows


def trimtab(environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


STREAM = (
    *("--model", "elec2", "--label", "class", "--category", "day", "--predict", "previous-label"),
    *("--start", "1996-05-07T00:00:00Z", "--interval", "30 min", "--label-delay", "1 day"),
    *[part for name in COLUMNS[1:-1] for part in ("--feature", name)],
)


@pytest.fixture
def environment(kafka_broker, postgres_url, tmp_path):
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    prefix = f"elec2-{time.monotonic_ns()}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    admin.create_topics(
        [
            NewTopic(name=f"{prefix}.{name}", num_partitions=partitions, replication_factor=1)
            for name, partitions in (("inference", 4), ("labels", 2), ("resources", 1))
        ]
    )
    admin.close()
    return {
        name: value for name, value in os.environ.items() if not name.startswith("TRIMTAB_")
    } | {
        "TRIMTAB_DATA_DIR": str(tmp_path / "data"),
        "TRIMTAB_STORE__URL": postgres_url,
        "TRIMTAB_KAFKA__BOOTSTRAP": kafka_broker.bootstrap,
        "TRIMTAB_KAFKA__PREFIX": prefix,
        "TRIMTAB_KAFKA__GROUP": prefix,
        "TRIMTAB_LOGGING__LEVEL": "warning",
    }


@pytest.mark.slow
def test_a_file_through_kafka_and_postgresql_agrees_with_a_recount_for_every_day(
    environment, stream_csv, tmp_path
):
    days, rows = recount(stream_csv)
    contract = tmp_path / "elec2.toml"
    contract.write_text(CONTRACT)
    trimtab(environment, "model", "apply", str(contract))
    with (tmp_path / "monitor.log").open("w") as log:
        monitor = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "monitor"], env=environment, stderr=log
        )
        try:
            text = trimtab(
                environment,
                *("stream", str(stream_csv), *STREAM),
                *("--wait", "--wait-limit", str(LIMIT_S), "--json"),
            )
            answer = json.loads(text)
            ledger = json.loads(trimtab(environment, "ledger", "show", "--json"))
            windows = json.loads(
                trimtab(environment, "window", "list", "elec2", "--limit", "2000", "--json")
            )
        finally:
            monitor.terminate()
            assert monitor.wait(60) == 0, (tmp_path / "monitor.log").read_text()[-4000:]

    assert answer["stream"]["inferences"] == answer["stream"]["labels"] == rows
    assert ledger["balances"], ledger["problems"]
    assert ledger["partitions"] == answer["ledger"]["partitions"]
    counted = sum(p["row_classes"].get("counted", 0) for p in ledger["partitions"])
    assert counted == sum(p["rows"] for p in ledger["partitions"]) == rows
    assert sum(p["labels"] for p in ledger["partitions"]) == rows
    assert sum(p["label_classes"].get("joined", 0) for p in ledger["partitions"]) == rows
    assert sum(p["lost"] for p in ledger["partitions"]) == 0

    verdicts = {w["verdict"]["window_start_ms"]: w["verdict"] for w in windows}
    assert sorted(verdicts) == [START_MS + n * DAY_MS for n in range(rows // ROWS_OF_A_DAY)]
    for start_ms, (answered, right) in days.items():
        if start_ms not in verdicts:
            continue  # a last day that the file does not finish
        figures = verdicts[start_ms]["figures"]
        found = figures["performance"]["1"]
        accuracy = found["figures"]["accuracy"]["value"]
        assert figures["rows"] == ROWS_OF_A_DAY
        assert (found["labelled_rows"], accuracy) == (answered, pytest.approx(right / answered))
    day = CHANGE_ROW // ROWS_OF_A_DAY
    moved = [psi_of(verdicts[START_MS + n * DAY_MS]) for n in range(day - 5, day + 5)]
    assert max(moved[:5]) < 0.25 < min(moved[5:]), moved


def psi_of(verdict):
    """What the rule on `vicprice` saw; old verdicts keep their findings, not the tree of figures."""
    return next(f["value"] for f in verdict["findings"] if f["figure"] == "psi(vicprice)")
