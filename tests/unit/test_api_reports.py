"""Evidently's report is made by a process of its own, from the row sample, and asked for over HTTP."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from litestar.testing import TestClient

from trimtab.api.app import create_app
from trimtab.api.reports import make_report
from trimtab.errors import TrimtabError
from trimtab.records import Role
from trimtab.settings import Settings, load
from trimtab.store import keys, migrate
from trimtab.store.engine import Store, open_store
from trimtab.store.samples import HOUR_MS, SampleRow, write_sample
from trimtab.store.tables import partitions
from trimtab.testing import example

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


def sample(store: Store, start_ms: int, rows: int) -> None:
    """Rows in the window at `start_ms`, and as many an hour before."""
    chance = random.Random(1)
    with store.write() as connection:
        partition = connection.execute(
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
