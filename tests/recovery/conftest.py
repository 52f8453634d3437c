"""What the fault suite needs beside the fixtures of all tests, and its table at the end."""

from __future__ import annotations

import pytest
from faults.world import OUTCOMES, Outcome, World


@pytest.fixture
def make_world(request, tmp_path):
    """`make_world(fault, database, **options)`: a World on a fresh database; it ends with the test."""
    made = []

    def make(fault, database, *, broker=None, url=None, **options):
        long = request.config.getoption("--faults-long")
        url = url or request.getfixturevalue(
            "sqlite_url" if database == "sqlite" else "postgres_url"
        )
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
        world.long = long
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
