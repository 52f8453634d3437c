"""Figures by hour and day: the same before and after the panes became hours and the hours days."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from litestar.testing import TestClient
from typer.testing import CliRunner

from trimtab.api.app import create_app
from trimtab.api.history import EVER_MS, History, history
from trimtab.cli import app
from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.monitor import rollup
from trimtab.monitor.evaluator import Evaluator
from trimtab.records import Role
from trimtab.settings import load
from trimtab.store import keys, migrate
from trimtab.store.engine import Store, open_store
from trimtab.store.leases import acquire
from trimtab.testing.series import SeriesWriter
from trimtab.windows.rollup import DAY_MS, HOUR_MS, Kept, Resolution

DAY = 19_700 * DAY_MS
NOW = 1_800_000_000_000
CONTRACT = Contract(
    name="m",
    task="binary",
    features={"x": Feature("number"), "y": Feature("number")},
    windows=Windows(length="1h", pane="20 min", out_of_order="0s", min_rows=5),
    alarms=Alarms(rules=()),
    reference=Reference(windows=3),
)


def fill(store: Store, hours: int) -> SeriesWriter:
    """Thirty rows in each hour; from the tenth hour on `y` has moved."""
    writer = SeriesWriter(store, CONTRACT, NOW)
    rng = np.random.default_rng(2)
    both = {name: rng.normal(size=2_000).tolist() for name in ("x", "y")}
    writer.fit_cuts(both, ["a", "b"])
    for hour in range(hours):
        for pane in range(3):
            shift = 3.0 if hour >= 10 else 0.0
            x, y = rng.normal(size=(2, 100)).tolist()
            writer.rows(
                DAY + hour * HOUR_MS + pane * 20 * 60_000,
                {"x": x, "y": [v + shift for v in y]},
                prediction=["a"] * 60 + ["b"] * 40,
                latency_ms=[10.0] * 100,
                errors=10,
            )
    writer.passed(DAY + hours * HOUR_MS)
    writer.seal(DAY + hours * HOUR_MS)
    evaluator = Evaluator(store, "one")
    for tick in range(3):
        evaluator.tick(NOW + tick * 1_000)
    return writer


def fold(store: Store, kept: Kept) -> None:
    lease = acquire(store, "retention", "me", NOW, 30_000)
    assert lease is not None
    while rollup.roll_up(store, lease, "m", CONTRACT, DAY + 90 * DAY_MS, kept, 1_000).rows:
        pass


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.close()


def told(store: Store, resolution: Resolution, **changes: Any) -> History:
    given = {"from_ms": EVER_MS[0], "to_ms": EVER_MS[1], "limit": 100, "now_ms": NOW} | changes
    return history(store, "m", resolution, **given)


def test_hours_and_days_say_the_same_before_and_after_they_are_folded(store: Store) -> None:
    fill(store, 50)
    hours, days = told(store, Resolution.HOUR), told(store, Resolution.DAY)
    assert [period.rows for period in days.items] == [2 * 300, 24 * 300, 24 * 300]
    assert [period.complete for period in days.items] == [False, True, True]
    newest = hours.items[0]
    assert (len(hours.items), newest.start_ms) == (50, DAY + 49 * HOUR_MS)
    assert newest.figures["error_rate"] == pytest.approx(0.1)
    assert newest.figures["latency_ms"]["p95"] == pytest.approx(10.0, rel=0.03)
    assert newest.figures["drift"]["drifted"] == ["y"]
    assert newest.figures["features"]["x"]["psi"] < 0.1
    assert not hours.items[-1].figures["drift"]["drifted"]

    fold(store, Kept(panes_ms=HOUR_MS))
    assert told(store, Resolution.HOUR) == hours
    assert told(store, Resolution.DAY) == days
    fold(store, Kept(panes_ms=HOUR_MS, hours_ms=HOUR_MS))
    assert told(store, Resolution.DAY) == days
    # Hours of a day that was folded are told no more; a late row makes no hour of its own there.
    left = told(store, Resolution.HOUR)
    assert left.items == [p for p in hours.items if p.start_ms >= DAY + 2 * DAY_MS]


def test_a_late_row_makes_no_hour_of_its_own_in_a_day_that_was_folded(store: Store) -> None:
    writer = fill(store, 50)
    fold(store, Kept(panes_ms=HOUR_MS, hours_ms=HOUR_MS))
    before = told(store, Resolution.HOUR)
    writer.rows(DAY + HOUR_MS, {"x": [1.0], "y": [1.0]}, newest_ms=DAY + 50 * HOUR_MS)
    assert told(store, Resolution.HOUR) == before
    assert told(store, Resolution.DAY).items[-1].rows == 24 * 300 + 1


def test_a_long_history_comes_in_pages(store: Store) -> None:
    fill(store, 30)
    starts = []
    to_ms = EVER_MS[1]
    for _ in range(10):
        page = told(store, Resolution.HOUR, to_ms=to_ms, limit=7)
        starts += [period.start_ms for period in page.items]
        if page.next is None:
            break
        to_ms = page.next
    assert starts == [DAY + hour * HOUR_MS for hour in reversed(range(30))]
    some = told(store, Resolution.HOUR, from_ms=DAY + 4 * HOUR_MS, to_ms=DAY + 6 * HOUR_MS)
    assert [period.start_ms - DAY for period in some.items] == [5 * HOUR_MS, 4 * HOUR_MS]


def test_counts_under_other_cuts_are_not_compared_with_the_baseline(store: Store) -> None:
    writer = fill(store, 12)
    both = {name: [5.0, 6.0, 7.0] * 100 for name in ("x", "y")}
    writer.fit_cuts(both, ["a", "b"])
    writer.rows(DAY + 12 * HOUR_MS, both)
    newest, before, *_ = told(store, Resolution.HOUR).items
    assert newest.figures["features"]["x"]["reason"] == "no baseline yet"
    assert before.figures["features"]["x"]["psi"] is not None
    (day,) = told(store, Resolution.DAY).items
    assert (day.rows, day.other_cuts_rows) == (13 * 300, 300)
    assert day.figures["features"]["x"]["rows"] == 12 * 300


def test_the_api_and_the_command_give_the_same_history(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({}, environ={}).settings
    store = open_store(settings.store.url)
    (tmp_path / ".trimtab").mkdir()
    migrate.upgrade(store)
    fill(store, 26)
    _, secret = keys.create_key(store, "test", Role.VIEWER, "*", NOW)
    with TestClient(create_app(store, settings)) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        asked = {"resolution": "day", "to": DAY + 40 * HOUR_MS}
        answer = client.get("/v1/models/m/history", params=asked, headers=headers)
        assert answer.status_code == 200
        body = answer.json()
        assert [item["rows"] for item in body["items"]] == [600, 7_200]
        wrong = client.get("/v1/models/m/history", params={"resolution": "pane"}, headers=headers)
        assert wrong.status_code == 400
        assert client.get("/v1/models/n/history", headers=headers).status_code == 404
    store.close()
    command = ["window", "history", "m", "--by", "day", "--to", "2023-12-11T00:00:00Z"]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["items"] == body["items"]
    table = CliRunner().invoke(app, command)
    assert "7,200" in table.stdout
    assert "y" in table.stdout
