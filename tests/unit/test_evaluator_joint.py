"""A change of the relation between two features that leaves each as it was: found, recorded, replayed."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hourly_world import HOUR, START, HourlyWorld
from litestar.testing import TestClient
from sqlalchemy import delete

from trimtab.api.app import create_app
from trimtab.contracts.model import Alarms, Contract, Feature, Reference, Windows
from trimtab.detect.verdict import joint_of
from trimtab.monitor.verify import verify_verdict
from trimtab.records import Kind, Outcome, Role
from trimtab.settings import load
from trimtab.store import alerts, baselines, keys
from trimtab.store.detectors import detectors_of
from trimtab.store.engine import Store, open_store
from trimtab.store.tables import metadata, row_samples

REFERENCE = 60
ROWS = 300


def contract(**changes) -> Contract:
    given = {
        "name": "m",
        "task": "binary",
        "features": {name: Feature("number") for name in ("income", "age", "debts")},
        "windows": Windows(length="1h", pane="1h", lateness="3h", out_of_order="0s", min_rows=100),
        "alarms": Alarms(false_alarms="1 per 30 days"),
        "reference": Reference(windows=REFERENCE),
    }
    return Contract(**{**given, **changes})


class World(HourlyWorld):
    """`income` and `age` go together as `relation` says, `debts` with neither."""

    def __init__(self, store: Store, *, sampled: bool = True) -> None:
        super().__init__(store, contract())
        self.sampled = sampled
        self.rng = np.random.default_rng(4)
        self.writer.fit_cuts(self.columns(4_000, 0.0))

    def columns(self, rows: int, relation: float) -> dict[str, list[float]]:
        income, other, debts = self.rng.normal(size=(3, rows))
        age = relation * income + np.sqrt(1 - relation**2) * other
        return {"income": income.tolist(), "age": age.tolist(), "debts": debts.tolist()}

    def write(self, number: int, relation: float = 0.0) -> None:
        self.writer.now_ms = self.now_ms
        columns = self.columns(ROWS, relation)
        if self.sampled:
            self.writer.sample(self.at(number), columns)
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


def forget_samples(store: Store) -> None:
    with store.write() as connection:
        connection.execute(delete(row_samples))


def test_a_new_relation_of_two_features_is_found_and_verified_without_the_samples(store):
    world = World(store)
    world.go(REFERENCE + 6)
    assert world.verdict(world.next - 1).outcome is Outcome.OK
    changed_at = world.next
    world.go(8, relation=0.5)
    first = next(
        n for n in range(changed_at, world.next) if world.verdict(n).outcome is Outcome.ALARM
    )
    assert first - changed_at < 6
    (finding,) = [f for f in world.verdict(first).findings if f.outcome is Outcome.ALARM]
    assert finding.kind is Kind.INPUT
    assert finding.onset_ms == world.at(changed_at)
    assert finding.detail.startswith("age and income: rank correlation +0.4")
    assert ", usually +0.0" in finding.detail or ", usually -0.0" in finding.detail
    with store.read() as connection:
        (alert,) = alerts.open_alerts(connection, "m")
    assert alert.condition == "detector:input"

    forget_samples(store)
    for number in range(world.next - 3, world.next):
        assert verify_verdict(store, world.rows_of(number)[-1].id).confirmed


def test_a_late_row_leaves_the_relation_as_it_was_first_read(local):
    world = World(local)
    world.go(REFERENCE + 4)
    late = world.next - 2
    before = world.verdict(late).evidence.prior["joint"]
    world.write(late, relation=0.9)
    forget_samples(local)
    world.close()
    assert world.verdict(late).changed == f"+{ROWS} rows"
    assert world.verdict(late).evidence.prior["joint"] == before
    pair = joint_of(world.verdict(late).evidence.prior).pairs["age", "income"]
    assert (pair.windows, pair.rows) == (1, ROWS)
    assert verify_verdict(local, world.rows_of(late)[-1].id).confirmed


def test_without_samples_the_detector_does_without_pairs(local):
    world = World(local, sampled=False)
    world.go(REFERENCE + 2)
    verdict = world.verdict(world.next - 1)
    assert verdict.outcome is Outcome.OK
    assert "joint" not in verdict.evidence.prior


def test_samples_that_end_leave_the_rest_of_the_detector_at_work(local):
    world = World(local)
    world.go(REFERENCE + 2)
    world.sampled = False
    world.go(3)
    verdict = world.verdict(world.next - 1)
    assert verdict.outcome is Outcome.OK
    assert joint_of(verdict.evidence.prior).pairs == {}


def test_a_new_baseline_takes_the_relation_as_it_is_now(local):
    world = World(local)
    world.go(REFERENCE)
    world.go(16, relation=0.5)
    baselines.rebase(
        local, "m", world.at(REFERENCE), world.at(REFERENCE + 16), "rebase", world.now_ms
    )
    world.go(4, relation=0.5)
    assert world.verdict(world.next - 1).outcome is Outcome.OK
    with local.read() as connection:
        newest = detectors_of(connection, "m")[-1].fitted
        windows = baselines.observed_windows(connection, 2)
    assert newest.inherited
    assert len(windows) == 16
    assert all(one.joint.pairs["age", "income"].z > 0.3 for _, one in windows)


def test_a_file_with_times_gives_the_relations_of_its_windows(local, tmp_path):
    world = World(local)
    training = tmp_path / "training.csv"
    lines = ["time,income,age,debts"]
    for hour in range(50):
        when = datetime.fromtimestamp((START + hour * HOUR) / 1000, UTC).isoformat()
        columns = world.columns(700, 0.6).values()
        lines += [f"{when},{a},{b},{c}" for a, b, c in zip(*columns, strict=True)]
    training.write_text("\n".join(lines))
    fitted = baselines.fit_from_file(
        local, "m", str(training), time_column="time", now_ms=world.now_ms
    )
    with local.read() as connection:
        windows = baselines.observed_windows(connection, fitted)
    pairs = [one.joint.pairs["age", "income"] for _, one in windows]
    assert {pair.rows for pair in pairs} == {350}
    assert np.mean([pair.z for pair in pairs]) == pytest.approx(0.664, abs=0.02)


def test_the_joint_distribution_of_a_window_is_compared_on_demand(local, tmp_path):
    world = World(local)
    world.go(REFERENCE + 2)
    world.go(1, relation=0.8)
    world.sampled = False
    world.go(1)
    settings = load({"data_dir": str(tmp_path)}, environ={}).settings
    _, secret = keys.create_key(local, "test", Role.VIEWER, "*", world.now_ms)
    header = {"Authorization": f"Bearer {secret}"}

    with TestClient(create_app(local, settings)) as client:

        def asked(number: int):
            return client.get(f"/v1/models/m/windows/{world.at(number)}/joint", headers=header)

        usual, moved = asked(REFERENCE + 1).json(), asked(REFERENCE + 2).json()
        assert asked(999).status_code == 404
        forget_samples(local)
        none = asked(REFERENCE + 3)
    assert moved["columns"] == ["income", "age", "debts"]
    assert (moved["rows"], moved["reference_rows"], moved["permutations"]) == (ROWS, 500, 199)
    assert moved["p_value"] == 0.005
    assert usual["p_value"] > 0.01
    assert usual["energy"] < moved["energy"] < 0.2
    assert "№ 1" in moved["baseline"]
    assert none.status_code == 400
    assert "Only 0 sampled rows" in none.text
