"""Faults, while a faulty stream runs through real Kafka: what the store holds at the end is what was sent.

After each: the ledgers balance, every window's state and joined labels are, byte for byte, those of an
independent recount of the topics, nothing is stuck, and no error was logged that the fault does not
explain. `make faults` runs the long form, every fault on both databases, and prints a table.
"""

import signal
import time

import pytest
from faults.world import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def killed(world):
    """`kill -9` at random points."""
    for _ in range(200 if world.long else 4):
        world.send(0.9 / (200 if world.long else 4))
        before = world.claims()
        monitor = world.start_static()
        wait_for(lambda seen=before: world.claims() > seen, "a claim")
        time.sleep(world.random.random() * 0.4)  # and then at any point of its work
        monitor.kill()
        world.outcome.struck += 1


def zombie(world):
    """Two replicas; one is stopped, evicted, and wakes up with what it had."""
    for _ in range(8 if world.long else 1):
        first = world.start()
        world.send(0.03)
        world.wait_for_flushes()
        second = world.start()
        wait_for(lambda: len(world.owners()) == 2, "both own partitions")
        world.send(0.03)
        first.send(signal.SIGSTOP)
        stopped = world.owners()
        world.send(0.03)
        wait_for(lambda was=stopped: len(world.owners()) == 1 and world.owners() < was, "eviction")
        first.send(signal.SIGCONT)
        wait_for(lambda: len(world.owners()) == 2, "the zombie is a member again")
        world.outcome.struck += 1
        assert second.stop() == 0
        wait_for(lambda: len(world.owners()) == 1, "the one left owns all")
        assert first.stop() == 0


FAULTS = {"killed": (killed, "both"), "zombie": (zombie, "postgresql")}


def pytest_generate_tests(metafunc):
    if "fault" in metafunc.fixturenames:
        long = metafunc.config.getoption("--faults-long")
        cases = [
            pytest.param(
                act,
                database,
                id=f"{name}-{database}",
                marks=[pytest.mark.postgres] if database == "postgresql" else [],
            )
            for name, (act, where) in FAULTS.items()
            for database in ("sqlite", "postgresql")
            if long or where in (database, "both")
        ]
        metafunc.parametrize(("fault", "database"), cases)


@pytest.mark.timeout(600)
def test_a_fault_changes_nothing_that_is_counted(fault, database, make_world):
    world = make_world(fault.__name__.replace("_", " "), database)
    fault(world)
    world.finish()
