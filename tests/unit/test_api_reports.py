"""Evidently's report is made by a process of its own, from the row sample, and asked for over HTTP."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient
from sqlalchemy import Connection

from trimtab.api.app import create_app
from trimtab.api.report_worker import heading, samples
from trimtab.api.reports import make_report
from trimtab.contracts.model import Contract, Feature, Reference, Windows
from trimtab.detect.observed import Observed
from trimtab.errors import TrimtabError
from trimtab.monitor.evaluator import Evaluator
from trimtab.records import Role
from trimtab.settings import Settings, load
from trimtab.store import keys, migrate
from trimtab.store.baselines import active_baseline, add_baseline
from trimtab.store.engine import Store, open_store
from trimtab.store.samples import HOUR_MS, SampleRow, write_sample
from trimtab.store.tables import partitions
from trimtab.store.verdicts import latest_verdicts
from trimtab.testing import example
from trimtab.testing.series import SeriesWriter

NOW_MS = 1_800_000_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({"data_dir": str(tmp_path)}, environ={}).settings


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings.store.url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def partition_of(connection: Connection) -> int:
    """A partition to write samples under."""
    return int(
        connection.execute(
            partitions.insert()
            .values(
                consumer="monitor",
                cluster_id="c",
                topic="t",
                topic_id="i",
                partition=0,
                epoch=1,
                first_offset=0,
                next_offset=0,
                flush_seq=0,
                updated_ms=0,
            )
            .returning(partitions.c.id)
        ).scalar_one()
    )


def sample(store: Store, start_ms: int, rows: int) -> None:
    """Rows in the window at `start_ms`, and as many an hour before."""
    chance = random.Random(1)
    with store.write() as connection:
        partition = partition_of(connection)
        for at_ms, shift in ((start_ms - HOUR_MS, 0.0), (start_ms, 0.4)):
            made = [
                SampleRow(
                    hash=number,
                    id=f"r{number}",
                    time_ms=at_ms + number,
                    version="1",
                    prediction=str(number % 4),
                    score=None,
                    latency_ms=1.0 + chance.random(),
                    features={
                        name: chance.random() + shift
                        for name in ("brightness", "contrast", "sharpness")
                    },
                )
                for number in range(rows)
            ]
            write_sample(connection, partition, example.MODEL, at_ms // HOUR_MS * HOUR_MS, made)


def test_a_report_compares_with_the_baseline_of_the_verdict(store: Store) -> None:
    contract = Contract(
        name="m",
        task="binary",
        features={"x": Feature("number")},
        windows=Windows(length="2s", pane="2s", lateness="1 min", out_of_order="0s", min_rows=20),
        reference=Reference(windows=3),
    )
    begin_ms = NOW_MS // HOUR_MS * HOUR_MS
    writer = SeriesWriter(store, contract, begin_ms)
    writer.fit_cuts({"x": [float(value) for value in range(500)]}, ["a", "b"])
    for number in range(6):
        rows = [float(value) for value in range(200)]
        writer.rows(begin_ms + number * 2_000, {"x": rows}, prediction=["a", "b"] * 100)
    writer.passed(begin_ms + 12_000)
    evaluator = Evaluator(store, "one")
    for tick in range(3):
        evaluator.tick(begin_ms + tick * 5_000 + 60_000)
    old = active_baseline(store, "m")
    assert old is not None
    assert old.from_ms is not None
    judged = latest_verdicts(store, "m", 1)[0].verdict
    assert judged.evidence.baseline_id == old.id
    later_ms = begin_ms + HOUR_MS
    with store.write() as connection:
        add_baseline(
            connection, "m", [(later_ms, Observed(state=old.state))], 2_000, "traffic", {}, later_ms
        )
        partition = partition_of(connection)
        for name, at_ms in (
            ("old", old.from_ms),
            ("window", judged.window_start_ms),
            ("new", later_ms),
        ):
            rows_then = [
                SampleRow(hash=n, id=f"{name}{n}", time_ms=at_ms + n, version="1", prediction="a",
                          score=None, latency_ms=None, features={"x": 1.0})
                for n in range(40)
            ]  # fmt: skip
            write_sample(connection, partition, "m", at_ms, rows_then)

    assert active_baseline(store, "m") != old
    compared = samples(store, "m", judged.window_start_ms)
    assert {row.id[:3] for row in compared.reference} == {"old"}
    assert {row.id[:3] for row in compared.current} == {"win"}
    top = heading("m<", compared)
    assert "m&lt;" in top
    assert f"№ {old.number} (id {old.id}, from {old.source})" in top
    assert f"verdict {latest_verdicts(store, 'm', 1)[0].id}" in top


@pytest.mark.slow
def test_a_report_is_asked_for_made_and_opened(store: Store, settings: Settings) -> None:
    start = example.fill(store, NOW_MS, windows=30)
    sample(store, start, 200)
    _, secret = keys.create_key(store, "test", Role.OPERATOR, "*", NOW_MS)
    header = {"Authorization": f"Bearer {secret}"}
    path = f"/v1/models/digits/windows/{start}/reports"
    with TestClient(create_app(store, settings)) as client:
        assert client.get(path, headers=header).json()["state"] == "missing"
        assert client.post(path, headers=header).json()["state"] == "working"
        deadline = time.monotonic() + 240
        while (state := client.get(path, headers=header).json())["state"] == "working":
            assert time.monotonic() < deadline
            time.sleep(0.25)  # polling, as a client would
        assert state["state"] == "done", state
        page = client.get(state["url"], headers=header)
    assert "contrast" in page.text
    top = page.text.split("<body>")[1][:1_000]
    assert "<b>Model</b> digits" in top
    assert "<b>Baseline</b> none: the verdict was made before the model had one" in top
    assert "sandbox" in page.headers["content-security-policy"]


@pytest.mark.slow
def test_a_window_without_a_sample_says_so(store: Store, settings: Settings) -> None:
    start = example.fill(store, NOW_MS, windows=30)
    with pytest.raises(TrimtabError, match="Only 0 sampled rows of the window"):
        make_report(settings, example.MODEL, start)


def test_a_model_s_name_leads_to_no_other_folder(settings: Settings) -> None:
    from trimtab.api.reports import Reports

    reports = Reports(settings)
    path = reports.path("../../etc", 0)
    assert path.parent.parent == settings.data_dir / "reports"
