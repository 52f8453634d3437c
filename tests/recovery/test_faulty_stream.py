"""The faulty stream on a log in memory: crashes and new contracts between any two flushes.

What Kafka cannot show in a short time: many orders of events, each compared with the recount by bytes.
"""

import time
from contextlib import contextmanager
from random import Random
from threading import Barrier, Event, Thread

import pytest
from faults.recount import Log, Record, differences, recount
from faults.stream import LABEL_PARTITIONS, MODELS, PARTITIONS, STEP_MS, models, poison, stream
from faults.world import contracts_in_force
from msgspec.structs import replace
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from trimtab.events.types import Inference
from trimtab.monitor.ingest import Ingest
from trimtab.monitor.joiner import Joiner
from trimtab.source import Partition
from trimtab.store import engine as engine_module
from trimtab.store import ledger as ledger_module
from trimtab.store import tables as t
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.models import active_cuts, apply_contract, load_contracts
from trimtab.testing.log import MemoryLog, MemorySource

DEADLINE_S = 60
PLACES = [
    *(Partition("inference", n) for n in range(PARTITIONS)),
    *(Partition("labels", n) for n in range(LABEL_PARTITIONS)),
    Partition("resources", 0),
]
ROLES = {"inference": "inference", "labels": "labels", "resources": "resources"}


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    t.metadata.create_all(store.engine)
    for contract in MODELS:
        apply_contract(store, contract, "", "test", 0)
    yield store
    store.close()


def send(log, messages):
    for one in messages:
        log.append(Partition(one.role, one.partition), one.value, one.timestamp, list(one.headers))


def member(store, log, owner, poll=100, places=PLACES):
    clock = [0.0]

    def monotonic():
        clock[0] += 1.0  # so that everything is due at each look
        return clock[0]

    source = MemorySource(log, poll)
    ingest = Ingest(store, source, ROLES, owner, monotonic=monotonic)
    ingest.start()
    source.assign(*places)
    return ingest


def drain(store, ingest, owner):
    while ingest.step(0):
        pass
    for _ in range(20):
        ingest.step(0)
    joiner = Joiner(store, owner)
    while joiner.tick(0):
        pass
    joiner.stop()


def assert_equals_recount(store, log):
    entries = ledger(store)
    assert [problem for one in entries for problem in one.balance()] == []
    ids = {(e.topic, e.partition): e.partition_id for e in entries}
    logs = [
        Log(
            ids[place],
            place.topic,
            [
                Record(r.offset, r.timestamp, tuple(r.headers), r.value)
                for r in log.records.get(place, [])
            ],
        )
        for place in sorted(PLACES, key=lambda p: ids[p])
    ]
    cuts = {name: active_cuts(store, name) for name in load_contracts(store)}
    contracts = [row.contract for row in load_contracts(store).values()]
    expected = recount(logs, contracts_in_force(store), cuts)
    assert differences(store, expected, contracts) == []
    return expected


def test_every_kind_of_poison_has_its_reason_by_the_recount_too(store):
    log = MemoryLog()
    send(log, stream(600, seed=3))
    for value, headers in poison().values():
        log.append(Partition("inference", 0), value, 0, list(headers))
    drain(store, member(store, log, "one"), "one")
    rejected = {reason for e in ledger(store) for _, cls, reason in e.classes if cls == "rejected"}
    assert len(rejected) > 15
    assert "internal_error" not in rejected
    assert_equals_recount(store, log)


@pytest.mark.parametrize(("seed", "rows"), [(0, 1_000), (1, 1_000), (2, 1_000), (3, 2_400)])
def test_crashes_and_new_contracts_between_any_flushes_change_no_class(
    store, seed, rows, monkeypatch
):
    random, log = Random(seed), MemoryLog()
    live, _ = models(rows)
    apply_contract(store, live, "", "test", 0)
    messages = stream(rows, seed)
    lateness = iter(("40s", "5s", "20s", "1 min", "10s", "30s"))
    real = ledger_module.advance
    strike = [0]

    def crashes(*args, **kwargs):
        if strike[0] and random.random() < 0.2:
            strike[0] -= 1
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(ledger_module, "advance", crashes)
    for part in range(6):
        send(log, messages[part * len(messages) // 6 : (part + 1) * len(messages) // 6])
        strike[0] = 3
        ingest = member(store, log, f"part {part}", poll=random.choice((7, 40, 200)))
        for _ in range(30):
            try:
                ingest.step(0)
            except KeyboardInterrupt:
                ingest = member(store, log, f"part {part} again", poll=random.choice((13, 90)))
            if random.random() < 0.05 and (longer := next(lateness, None)):
                changed = replace(
                    live,
                    windows=replace(
                        live.windows,
                        lateness=longer,
                        pane=random.choice(("500ms", "1s", "2s", "4s")),
                    ),
                    labels=replace(
                        live.labels, sources=random.choice((("human",), ("human", "model")))
                    ),
                )
                apply_contract(store, changed, "", "test", 0)
    strike[0] = 0
    drain(store, member(store, log, "last"), "last")
    windows = assert_equals_recount(store, log).windows
    outliers = [w.rules["request:outlier"] for (_, _, segment), w in windows.items() if not segment]
    assert (sum(outliers) > 10) == (rows == 2_400)


def test_a_lost_answer_to_commit_is_learned_from_the_row(store, monkeypatch):
    log, random = MemoryLog(), Random(5)
    send(log, stream(600))
    real = store.write
    lost = [0]

    @contextmanager
    def write():
        with real() as connection:
            yield connection
        if random.random() < 0.3 and lost[0] < 20:
            lost[0] += 1
            raise OperationalError("COMMIT", {}, Exception("the connection broke; who knows"))

    monkeypatch.setattr(store, "write", write)
    ingest = member(store, log, "one")
    for _ in range(300):
        ingest.step(0)
    assert lost[0] == 20
    drain(store, ingest, "one")
    assert_equals_recount(store, log)


def test_rows_and_labels_of_two_replicas_at_the_same_moment_all_meet(store, store_url):
    """One replica has the rows, the other the labels; they flush at once, and a joiner merges meanwhile."""
    log = MemoryLog()
    send(log, stream(600, seed=11))
    rows = [place for place in PLACES if place.topic != "labels"]
    labels = [place for place in PLACES if place.topic == "labels"]
    together, failed = Barrier(2, timeout=DEADLINE_S), []
    done = Event()

    def replica(owner, places):
        own = open_store(store_url)
        try:
            ingest = member(own, log, owner, poll=20, places=places)
            for _ in range(60):
                together.wait()
                ingest.step(0)
        except Exception as error:  # noqa: BLE001 - it is told in the test's thread
            failed.append(error)
            together.abort()
        finally:
            own.close()

    def joins():
        own = open_store(store_url)
        joiner = Joiner(own, "joiner")
        try:
            while not done.is_set():
                joiner.tick(0)
            joiner.stop()
        except Exception as error:  # noqa: BLE001 - it is told in the test's thread
            failed.append(error)
        finally:
            own.close()

    threads = [Thread(target=replica, args=each) for each in (("rows", rows), ("labels", labels))]
    merging = Thread(target=joins)
    for thread in (*threads, merging):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    merging.join()
    assert failed == []
    assert {e.owner for e in ledger(store)} == {"rows", "labels"}
    drain(store, member(store, log, "last"), "last")
    assert_equals_recount(store, log)


def test_the_1990s_and_live_traffic_on_one_topic_do_not_disturb_each_other(store):
    log = MemoryLog()
    send(log, stream(600))
    drain(store, member(store, log, "one"), "one")
    late = t.row_classes.c
    with store.read() as connection:
        newest = dict(
            connection.execute(
                select(t.watermarks.c.model, func.max(t.watermarks.c.newest_ms)).group_by(
                    t.watermarks.c.model
                )
            ).all()
        )
        too_late = dict(
            connection.execute(
                select(late.model, func.sum(late.count))
                .where(late["class"] == "too_late")
                .group_by(late.model)
            ).all()
        )
    years = (newest["live"] - newest["replay"]) // (365 * 86_400_000)
    assert years > 35
    assert sum(too_late.values()) < 60
    assert_equals_recount(store, log)


def test_a_producer_with_a_fast_clock_seals_no_pane_of_the_others(store):
    log, place = MemoryLog(), PLACES[0]
    base = 1_767_225_600_000

    def row(i, at):
        event = Inference(id=f"s{i}", model="live", version="1", time=at, features={"x": 1.0})
        log.send(place, event, base + i * STEP_MS)

    for i in range(300):
        row(2 * i, base + 2 * i * STEP_MS)
        row(2 * i + 1, base + 2 * i * STEP_MS + 86_400_000)  # a day ahead
    drain(store, member(store, log, "one"), "one")
    (entry,) = (e for e in ledger(store) if (e.topic, e.partition) == tuple(place))
    assert {key: n for key, n in entry.classes.items() if n} == {
        ("row", "counted", ""): 300,
        ("row", "rejected", "future"): 300,
    }


def test_a_process_stopped_inside_its_write_holds_up_nobody_for_ever(postgres_url, monkeypatch):
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 1)
    monkeypatch.setattr(engine_module, "ABANDONED_S", 3)
    stopped, other = open_store(postgres_url), open_store(postgres_url)
    t.metadata.create_all(other.engine)

    def claim(owner):
        return ledger_module.claim(
            other,
            consumer="monitor",
            cluster_id="c",
            topic="in",
            topic_id="",
            partition=0,
            owner=owner,
            beginning_offset=0,
            now_ms=0,
        )

    claim("stopped")
    connection = stopped.engine.connect().execution_options(trimtab_writes=True)
    connection.execute(text("UPDATE partitions SET messages = 1"))  # and then nothing more
    with pytest.raises(OperationalError, match="lock timeout"):
        claim("other")
    deadline, claimed = time.monotonic() + DEADLINE_S, None
    while claimed is None:
        assert time.monotonic() < deadline, "the lock was never freed"
        try:
            claimed = claim("other")
        except OperationalError:
            continue
    with pytest.raises(SQLAlchemyError, match="idle-in-transaction"):
        connection.execute(text("UPDATE partitions SET messages = 2"))
    connection.close()
    assert claimed.epoch == 2
    stopped.close()
    other.close()
