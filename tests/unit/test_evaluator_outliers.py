"""Rows unlike the reference in several features at once: more of them alarm, and examples say why."""

from __future__ import annotations

import numpy as np
import pytest
from hourly_world import HourlyWorld
from litestar.testing import TestClient

from trimtab.api.app import create_app
from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Kind, Outcome, Role
from trimtab.settings import load
from trimtab.store import keys
from trimtab.store.detector_view import detector_view
from trimtab.store.engine import Store, open_store
from trimtab.store.tables import metadata

REFERENCE = 60
ROWS = 500
NUMBERS = ("income", "age", "debts", "years")
CONTRACT = Contract(
    name="m",
    task="binary",
    features={
        **{name: Feature("number") for name in NUMBERS},
        "secret": Feature("number", personal=True),
        "channel": Feature("category"),
    },
    windows=Windows(length="1h", pane="1h", lateness="3h", out_of_order="0s", min_rows=100),
    alarms=Alarms(false_alarms="1 per 30 days", rules=("outlier_rate > 0.5",)),
    reference=Reference(windows=REFERENCE),
)


class World(HourlyWorld):
    """Independent numbers; a share `far` of the rows is far out in three, or in the personal one too."""

    def __init__(self, store: Store, held: int = 2_000) -> None:
        super().__init__(store, CONTRACT)
        self.rng = np.random.default_rng(5)
        self.writer.fit_cuts(self.columns(held, 0.0))

    def columns(self, rows: int, far: float) -> dict[str, list[object]]:
        columns = {name: self.rng.normal(size=rows) for name in (*NUMBERS, "secret")}
        odd = np.arange(rows) < far * rows
        columns["income"][odd] = 99.0
        columns["debts"][odd] = -99.0
        columns["years"][odd] = -4.5
        channel = np.where(self.rng.random(rows) < 0.3, "app", "web")
        return {name: values.tolist() for name, values in columns.items()} | {
            "channel": channel.tolist()
        }

    def write(self, number: int, far: float = 0.0) -> None:
        self.writer.now_ms = self.now_ms
        columns = self.columns(ROWS, far)
        shown = {name: values for name, values in columns.items() if name != "secret"}
        self.writer.sample(self.at(number), shown)
        self.writer.rows(self.at(number), columns)


@pytest.fixture
def store(store_url: str):
    opened = open_store(store_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def local(sqlite_url: str):
    opened = open_store(sqlite_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_a_feed_that_goes_wrong_for_a_few_rows_alarms_by_its_outliers(store):
    world = World(store)
    world.go(REFERENCE + 12)
    for number in range(REFERENCE + 1, world.next):
        assert world.verdict(number).outcome is Outcome.OK
        assert world.verdict(number).figures["abnormal"]["outlier_rate"] < 0.02
    changed_at = world.next
    world.go(4, far=0.03)
    verdict = world.verdict(changed_at + 1)
    assert verdict.figures["abnormal"]["outlier_rate"] == pytest.approx(0.03, abs=0.01)
    found = [f for f in verdict.findings if f.outcome is Outcome.ALARM and f.kind is Kind.INPUT]
    assert "outliers: request:outlier 3" in found[0].detail
    assert verify_verdict(store, world.rows_of(world.next - 1)[-1].id).confirmed


def test_examples_of_outliers_say_what_makes_them_so(local, tmp_path):
    world = World(local)
    world.go(REFERENCE + 1)
    world.go(1, far=0.06)
    settings = load({"data_dir": str(tmp_path)}, environ={}).settings
    _, secret = keys.create_key(local, "test", Role.VIEWER, "*", world.now_ms)
    header = {"Authorization": f"Bearer {secret}"}
    with TestClient(create_app(local, settings)) as client:

        def asked(number: int):
            return client.get(f"/v1/models/m/windows/{world.at(number)}/outliers", headers=header)

        usual, odd = asked(REFERENCE).json(), asked(REFERENCE + 1).json()
        assert asked(999).status_code == 404
    assert odd["sampled_rows"] == usual["sampled_rows"] == ROWS
    assert odd["outlier_rate"] == pytest.approx(0.06, abs=0.01)
    assert len(usual["outliers"]) < 5
    assert len(odd["outliers"]) == 20  # of 30
    first = odd["outliers"][0]
    assert first["score"] > odd["threshold"] > 0
    assert {why["feature"]: why["says"] for why in first["why"]} == {
        "debts": "below all of the reference",
        "income": "above all of the reference",
        "years": "below all of the reference",
    }


def test_where_the_cuts_come_from_too_few_rows_it_is_said(local, tmp_path):
    world = World(local, held=500)
    world.go(REFERENCE + 2, far=0.02)
    assert world.verdict(REFERENCE + 1).figures["abnormal"]["outlier_rate"] is None
    (rule,) = [f for f in world.verdict(REFERENCE + 1).findings if f.rule]
    assert rule.outcome is Outcome.CANNOT_TELL
    skipped = detector_view(local, "m", "4 per 30 days").skipped
    assert "outliers: the cuts come from 500 rows; to score rows takes 1000" in skipped
    settings = load({"data_dir": str(tmp_path)}, environ={}).settings
    _, secret = keys.create_key(local, "test", Role.VIEWER, "*", world.now_ms)
    with TestClient(create_app(local, settings)) as client:
        said = client.get(
            f"/v1/models/m/windows/{world.at(REFERENCE)}/outliers",
            headers={"Authorization": f"Bearer {secret}"},
        ).json()
    assert (said["threshold"], said["outliers"]) == (None, [])
    assert "too few rows" in said["needs"]
