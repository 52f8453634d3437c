"""Faults, while a faulty stream runs through real Kafka: what the store holds at the end is what was sent.

After each: the ledgers balance, every window's state and joined labels are, byte for byte, those of an
independent recount of the topics, nothing is stuck, and no error was logged that the fault does not
explain. `make faults` runs the long form, every fault on both databases, and prints a table.
"""

import resource
import shutil
import signal
from itertools import cycle

import pytest
from faults.strike import PLACES, Strike
from faults.world import wait_for
from msgspec.structs import replace

from trimtab.store.models import apply_contract

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def points_to_die(random, number):
    """Where to kill: None is any moment, by the clock; the others are in a transaction or right after it."""
    points = [None, Strike("flush", "at a statement", 3), Strike("flush", "after COMMIT", 1)]
    points += [Strike("joiner", "before COMMIT", 1)]
    while len(points) < number:
        more = [None] * 6
        more += [Strike("flush", "at a statement", random.randint(1, 60)) for _ in range(5)]
        more += [Strike("flush", place, random.randint(1, 4)) for place in PLACES[1:] * 2]
        more += [Strike("claim", random.choice(PLACES), random.randint(1, 7))]
        more += [Strike("joiner", place, random.randint(1, 2)) for place in PLACES]
        more += [Strike("evaluator", random.choice(PLACES), random.randint(1, 4))]
        more += [Strike("housekeeping", random.choice(PLACES), random.randint(1, 4))]
        random.shuffle(more)
        points += more
    return points[:number]


def hurry(world):
    """Let joiner and evaluator take over fast: else none would work between two kills."""
    world.knobs["trimtab.monitor.joiner:HOLD_MS"] = 1_000
    world.lease_s = 1.0


def killed(world):
    """`kill -9` at random points: of one process after the other, then of one of two that work side by side."""
    number = (200 if world.client == "kafka-python" else 100) if world.long else 4
    hurry(world)
    producer, beside = world.producer(), None
    for turn, point in enumerate(points_to_die(world.random, number)):
        world.hand_over(producer, 0.9 / number)
        if turn == number * 3 // 5:
            beside = world.start_static("beside")
        world.kill(world.start_static(strike=point), point)
    producer.flush()
    producer.close()
    assert beside.stop() == 0


def zombie(world):
    """Two replicas; one is stopped, evicted, and wakes up with what it had."""
    world.knobs["trimtab.store.engine:ABANDONED_S"] = 5
    world.allowed += [
        "idle-in-transaction",
        "server closed the connection",
    ]  # of who slept in a write
    for _ in range(8 if world.long else 1):
        first = world.start()
        world.send(0.03)
        world.wait_for_flushes()
        second = world.start()
        wait_for(lambda: len(world.owners()) == 2, "both own partitions")
        world.send(0.03)
        world.freeze(first)
        stopped = world.owners()
        world.send(0.03)
        wait_for(lambda was=stopped: len(world.owners()) == 1 and world.owners() < was, "eviction")
        first.send(signal.SIGCONT)
        wait_for(lambda: len(world.owners()) == 2, "the zombie is a member again")
        world.outcome.struck += 1
        assert second.stop() == 0
        wait_for(lambda: len(world.owners()) == 1, "the one left owns all")
        assert first.stop() == 0
        world.outcome.told["writes of a zombie refused by a fence"] += first.trace.refused


def rebalanced(world):
    """Replicas that come and go."""
    stays = world.start()
    for _ in range(20 if world.long else 2):
        world.send(0.04 if world.long else 0.3)
        goes = world.start()
        wait_for(lambda: len(world.owners()) == 2, "both own partitions")
        assert goes.stop() == 0
        wait_for(lambda: len(world.owners()) == 1, "the one left owns all")
        world.outcome.struck += 1
    assert stays.stop() == 0


def broker_restarted(world):
    """The broker stops in good order, and is killed."""
    # kafka-python's producer, when it is let go with messages on their way, says so in a traceback.
    world.allowed += [
        "Traceback (most",
        "null_logger=True",
        "self.flush(",
        "await_flush_completion",
    ]
    world.start()
    for end in (world.broker.stop, world.broker.kill) * (5 if world.long else 1):
        world.send(0.04 if world.long else 0.4)
        world.wait_for_flushes()
        end()
        world.broker.start()
        world.outcome.struck += 1


def database_restarted(world):
    """The database server is shut down at once, in the middle of everything, and comes back."""
    world.allowed += [
        "The store is away",
        "worker_failed",
        "a worker failed",
        "terminating connection",
    ]
    world.start()
    for _ in range(10 if world.long else 2):
        world.send(0.05 if world.long else 0.4)
        world.wait_for_flushes()
        world.server.shut_down()
        world.send(0.01)
        world.server.start()
        world.outcome.struck += 1


def locked_out(world):
    """Somebody else holds the write lock for longer than a transaction waits."""
    world.allowed += ["The store is away", "a worker failed"]
    world.knobs["trimtab.store.engine:BUSY_TIMEOUT_S"] = 1
    world.start()
    for _ in range(10 if world.long else 1):
        world.send(0.08 if world.long else 0.5)
        world.wait_for_flushes()
        with world.store.engine.connect() as holder:
            if world.store.dialect == "sqlite":
                holder.exec_driver_sql(
                    "ROLLBACK"
                )  # the read transaction that every connection begins
                holder.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                holder.exec_driver_sql("LOCK TABLE partitions IN ACCESS EXCLUSIVE MODE")
            with world.made_to_say("The store is away"):
                world.send(0.01)
            if world.store.dialect == "sqlite":
                holder.exec_driver_sql("ROLLBACK")
                holder.exec_driver_sql("BEGIN")
        world.outcome.struck += 1


FULL = ["database or disk is full", "disk I/O error"]


def disk_full(world):
    """The database may not grow for a while: SQLite's own limit of pages says what a full disk says."""
    world.allowed += ["database or disk is full"]
    full = world.folder / "full"
    world.knobs["full"] = str(full)
    world.start()
    for _ in range(10 if world.long else 1):
        world.send(0.05 if world.long else 0.4)
        world.wait_for_flushes()
        with world.made_to_say("database or disk is full"):
            full.touch()
            world.send(0.04 if world.long else 0.4)
        full.unlink()
        world.outcome.struck += 1


def file_system_full(world):
    """The file system of the database is full for a while."""
    world.allowed += FULL
    world.start()
    for _ in range(10 if world.long else 1):
        world.send(0.05 if world.long else 0.4)
        world.wait_for_flushes()
        with world.disk.filled(world.shrink_wal), world.made_to_say(*FULL):
            world.send(0.04 if world.long else 0.4)
        world.outcome.struck += 1


def files_limited(world):
    """The files of the monitor may not grow for a while: the system refuses to write beyond a size."""
    world.allowed += FULL
    monitor = world.start()
    for _ in range(10 if world.long else 1):
        world.send(0.05 if world.long else 0.4)
        world.wait_for_flushes()
        world.shrink_wal()
        _, most = resource.prlimit(monitor.pid, resource.RLIMIT_FSIZE)
        size = monitor.log.stat().st_size + 200_000  # it shall still be able to say so
        with world.made_to_say(*FULL):
            resource.prlimit(monitor.pid, resource.RLIMIT_FSIZE, (size, most))
            world.send(0.04 if world.long else 0.4)
        resource.prlimit(monitor.pid, resource.RLIMIT_FSIZE, (most, most))
        world.outcome.struck += 1


def records_deleted(world):
    """The log drops records before they were read: they are lost, counted, and nothing else is."""
    from kafka import TopicPartition

    world.allowed += ["had dropped"]
    world.send(0.3)
    first = world.start_static()
    world.settle(world.read())
    assert first.stop() == 0
    world.send(0.3)
    ends = world.read()
    admin = world.admin()
    stood = world.entries()
    places = [(world.topic["inference"], n) for n in (0, 1)]
    admin.delete_records({TopicPartition(*place): ends[place] - 20 for place in places})
    admin.close()
    world.outcome.struck += 2
    world.finish()
    for entry in world.entries():
        (before,) = (e for e in stood if e.partition_id == entry.partition_id)
        place = (entry.topic, entry.partition)
        expected = ends[place] - 20 - before.next_offset if place in places else 0
        assert entry.lost == expected


def topic_created_again(world):
    """A topic is deleted and created again: under a monitor, under one that sleeps, and while none runs.

    The new log reaches beyond where the old one was read, so that an old offset lies inside; once it does not.
    """
    world.allowed += ["not found in cluster metadata", "was made again"]
    running = world.start()
    rounds = 3 if world.long else 1
    world.send(0.25 / rounds)
    cases = ((0.27, "asleep"), (0.29, "under it"), (0.12, "stopped"), (0.07, "under it"))
    for share, how in cases * rounds:
        world.settle(world.read())
        if how == "asleep":
            running.send(signal.SIGSTOP)
        if how == "stopped":
            assert running.stop() == 0
        world.create_again("inference")
        world.send(share / rounds)
        if how == "asleep":
            running.send(signal.SIGCONT)
        if how == "stopped":
            running = world.start()
        world.outcome.struck += 1
        # Where the new log does not reach beyond the old one, the old ledgers say that all is read.
        wait_for(lambda: world.ledgers("inference") == world.outcome.struck + 1, "new ledgers")


def cluster_changed(world):
    """The monitor is pointed at another cluster, whose topics have the same names; it misses nothing there."""
    world.send(0.3)
    before = world.start_static()
    world.settle(world.read())
    assert before.stop() == 0
    world.move_to(world.other_broker)
    world.send(0.6)  # beyond the offsets at which the other one stopped
    world.outcome.struck += 1


def contracts_applied(world):
    """Contracts change while monitors are killed: a record that is read again is of the same class."""
    lateness = cycle(("40s", "5s", "1 min", "10s"))
    sources = cycle((("human", "model"), ("human",)))
    number = 30 if world.long else 3
    hurry(world)
    for point in points_to_die(world.random, number):
        world.send(0.9 / number)
        monitor = world.start_static(strike=point)
        wait_for(lambda one=monitor: one.trace.at_work or not one.process.is_alive(), "some work")
        live = world.contracts[0]
        changed = replace(
            live,
            windows=replace(live.windows, lateness=next(lateness)),
            labels=replace(live.labels, sources=next(sources)),
        )
        apply_contract(world.store, changed, "", "test", 0)
        world.kill(monitor, point)


def answers_lost(world):
    """Commits are done, and the connection breaks before the answer comes."""
    world.allowed += ["the answer to COMMIT is lost"]
    world.knobs["lose answers"] = (0.1, 200 if world.long else 20)
    world.knobs["trimtab.monitor.app:LONGEST_RESTART_S"] = 1
    first, second = world.start(), world.start()
    wait_for(lambda: len(world.owners()) == 2, "both own partitions")
    for _ in range(10 if world.long else 2):
        world.send(0.09 if world.long else 0.45)
    world.send()
    world.settle(world.read())
    assert first.stop() == second.stop() == 0
    world.outcome.struck = sum(one.trace.answers_lost for one in (first, second))
    assert world.outcome.struck


def log_truncated(world):
    """The broker comes back with older data: a clear error, and with the newer data all is read."""
    world.send(0.2)
    world.broker.stop()
    older, newer = world.folder / "older", world.folder / "newer"
    data = world.broker.directory / "data"
    shutil.copytree(data, older)
    world.broker.start()
    world.send(0.2)
    monitor = world.start_static()
    world.settle(world.read())
    assert monitor.stop() == 0
    world.broker.stop()
    data.rename(newer)
    shutil.copytree(older, data)
    world.broker.start()
    refused = world.start_static()
    assert refused.wait() == 1
    (said,) = [text for text in refused.errors() if "ends before offset" in text]
    assert "Restore it, or give the topic a new identity" in said
    world.allowed += ["ends before offset"]
    world.broker.stop()
    shutil.rmtree(data)
    newer.rename(data)
    world.broker.start()
    world.outcome.struck += 1


def codec_missing(world):
    """Messages are compressed with a codec that this installation lacks."""
    world.send(0.3)
    world.codec = "lz4"
    world.send(0.3)
    hidden = dict.fromkeys(f"kafka.codec:{name}" for name in ("lz4", "lz4f", "lz4framed"))
    refused = world.start_static()
    world.wait_for_flushes()
    assert refused.stop() == 0
    world.send(0.2)
    refused = world.start(hidden, group_instance_id="static")
    assert refused.wait() == 1
    (said,) = [text for text in refused.errors() if "codec" in text]
    assert "Install kafka-python[lz4,zstd,snappy]" in said
    world.allowed += [said]
    world.outcome.struck += 1


OWN_BROKER = {broker_restarted, log_truncated}
FAULTS = {
    killed: "both",
    zombie: "postgresql",
    rebalanced: "sqlite",
    broker_restarted: "postgresql",
    database_restarted: "postgresql",
    locked_out: "both",
    disk_full: "sqlite",
    file_system_full: "",
    files_limited: "",
    records_deleted: "sqlite",
    topic_created_again: "postgresql",
    cluster_changed: "postgresql",
    contracts_applied: "sqlite",
    answers_lost: "postgresql",
    log_truncated: "sqlite",
    codec_missing: "postgresql",
}
ONLY = {
    database_restarted: "postgresql",
    disk_full: "sqlite",
    file_system_full: "sqlite",
    files_limited: "sqlite",
}
"""Faults that the other database does not know."""
FAST = {
    killed: "sqlite",
    rebalanced: "postgresql",
    records_deleted: "postgresql",
    topic_created_again: "sqlite",
}
"""Faults that are also met by monitors that read with confluent-kafka."""


def pytest_generate_tests(metafunc):
    if "fault" in metafunc.fixturenames:
        long = metafunc.config.getoption("--faults-long")
        wanted = [
            (act, database, "kafka-python")
            for act, short in FAULTS.items()
            for database in ("sqlite", "postgresql")
            if (ONLY.get(act, database) == database if long else short in (database, "both"))
        ] + [(act, database, "confluent-kafka") for act, database in FAST.items()]
        cases = [
            pytest.param(
                *case,
                id=" ".join((case[0].__name__.replace("_", " "), *case[1:])),
                marks=[pytest.mark.postgres] if case[1] == "postgresql" else [],
            )
            for case in wanted
        ]
        metafunc.parametrize(("fault", "database", "client"), cases)


@pytest.mark.timeout(3_600)
def test_a_fault_changes_nothing_that_is_counted(fault, database, client, make_world, request):
    options = {}
    if fault in OWN_BROKER:
        options["broker"] = request.getfixturevalue("own_broker")
    if fault is database_restarted:
        options["server"] = request.getfixturevalue("own_postgres")
    if fault is cluster_changed:
        options["other_broker"] = request.getfixturevalue("own_broker")
    if fault is file_system_full:
        options["disk"] = request.getfixturevalue("small_disk")
    if fault is files_limited and not hasattr(resource, "prlimit"):
        pytest.skip("this system has no prlimit, which limits the files of another process")
    name = fault.__name__.replace("_", " ")
    world = make_world(name, database, client, **options)
    fault(world)
    if world.outcome.recount == "–":
        world.finish()
    world.outcome.result = "ok"
