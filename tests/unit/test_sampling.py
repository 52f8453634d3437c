"""The sampler: an hour that has passed is stored with the rows of the next one, other changes every ten seconds."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from trimtab.contracts.model import Contract, Feature
from trimtab.monitor.decode import decode_records
from trimtab.monitor.sampling import WRITE_EVERY_MS, Sampler
from trimtab.monitor.views import ModelView
from trimtab.store.engine import open_store
from trimtab.store.samples import HOUR_MS, partition_samples
from trimtab.store.tables import metadata

VIEW = ModelView(1, Contract(name="m", task="regression", features={"z": Feature("number")}))


@pytest.fixture
def store(sqlite_url: str):
    opened = open_store(sqlite_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


class World:
    def __init__(self, store) -> None:
        self.store, self.sampler, self.offset = store, Sampler(1), 0

    def offer(self, hour: int, rows: int = 1) -> None:
        messages = []
        for _ in range(rows):
            self.offset += 1
            row = {"id": str(self.offset), "model": "m", "version": "1", "time": hour * HOUR_MS}
            value = json.dumps({**row, "features": {"z": 1.0}}).encode()
            messages.append(
                SimpleNamespace(offset=self.offset, timestamp=1, headers=(), value=value, key=None)
            )
        read = decode_records(messages, "inference", "in", {"m": VIEW})
        self.sampler.offer(VIEW, read.rows["m"])

    def write(self, now_ms: int) -> dict[int, int]:
        """Write what is due; return the stored rows by hour."""
        with self.store.write() as connection:
            self.sampler.write(connection, now_ms)
            hours = [hour * HOUR_MS for hour in range(20)]
            stored = partition_samples(connection, 1, "m", hours)
        return {start // HOUR_MS: len(rows) for start, rows in stored.items()}


def test_a_passed_hour_is_stored_at_once(store):
    world = World(store)
    world.offer(0)
    assert world.write(WRITE_EVERY_MS) == {0: 1}
    world.offer(0, rows=2)
    assert world.write(WRITE_EVERY_MS + 1) == {0: 1}, "the hour goes on; ten seconds are not over"
    world.offer(1)
    assert world.write(WRITE_EVERY_MS + 2) == {0: 3}
    world.offer(0)
    assert world.write(WRITE_EVERY_MS + 3) == {0: 3}, "a late row waits"
    assert world.write(2 * WRITE_EVERY_MS) == {0: 4, 1: 1}


def test_a_replay_of_many_hours_loses_no_row(store):
    world = World(store)
    for hour in range(12):
        world.offer(hour, rows=2)
    assert world.write(1) == dict.fromkeys(range(11), 2)
    world.offer(3)
    assert world.write(2)[3] == 2
    assert world.write(WRITE_EVERY_MS + 2) == {**dict.fromkeys(range(12), 2), 3: 3}
