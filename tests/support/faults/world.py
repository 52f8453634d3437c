"""Topics, a store and monitors as processes, with a stream between them; and what must hold at the end."""

from __future__ import annotations

import faulthandler
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec
from sqlalchemy import Engine, event, func, select
from sqlalchemy.exc import SQLAlchemyError

from faults.recount import Log, Record, differences, recount
from faults.stream import LABEL_PARTITIONS, PARTITIONS, models, stream
from faults.strike import read_trace, watch
from trimtab.contracts.model import Contract
from trimtab.monitor.verify import verify_verdict
from trimtab.store import tables as t
from trimtab.store.engine import open_store
from trimtab.store.ledger import ledger
from trimtab.store.migrate import upgrade
from trimtab.store.models import active_cuts, apply_contract, load_contracts
from trimtab.store.settled import under_way

DEADLINE_S = 120
GATHERING = "the baseline was still being gathered then, and has grown since"
"""What is said of the first windows of a model, whose baseline is not kept as it was then."""
VERDICTS = 30
"""How many verdicts are recomputed at the end."""
CLIENT_LOGGERS = ("kafka",)
"""Loggers of the Kafka client. What it says when a connection ends under it, or a request is cancelled because its
consumer leaves, is counted and printed, and fails nothing: whether it did harm is told by ledger, recount, exit code
and what the monitor itself says."""
STRIKE_S = 5
"""How long a monitor may take to come to the point at which it is to die."""
# A process forked from one that has imported the monitor starts in milliseconds, and dies like any other.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["faults.world", "trimtab.monitor.app"])


@dataclass
class Outcome:
    """One line of the table at the end."""

    fault: str
    database: str
    client: str = "kafka-python"
    rows: int = 0
    struck: int = 0
    """How often the fault struck: kills, restarts, lock-outs."""
    told: Counter = field(default_factory=Counter)
    """What more there is to tell of it, such as where the kills struck."""
    ledger: str = "–"
    recount: str = "–"
    result: str = "FAILED"
    seconds: float = 0.0


OUTCOMES: list[Outcome] = []


def wait_for(condition, what, deadline_s=DEADLINE_S):
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {deadline_s} s"
        time.sleep(0.05)
    return found


def run_child(settings, log, knobs):
    """The body of a monitor process; its output goes to `log`."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.enable()  # what a crash inside a library was doing
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from trimtab import logs
    from trimtab.errors import TrimtabError
    from trimtab.monitor.app import run_monitor
    from trimtab.settings import Settings

    logs.set_up("warning", "json")
    knobs = dict(knobs)
    watch(f"{log}.trace", knobs.pop("strike", None), knobs.pop("lose answers", None))
    if "full" in knobs:
        _fill_while(knobs.pop("full"))
    for place, value in knobs.items():
        module, _, name = place.partition(":")
        setattr(importlib.import_module(module), name, value)
    try:
        run_monitor(Settings.model_validate(settings), stop, lambda: None)
    except TrimtabError as error:
        print(json.dumps({"level": "error", "event": str(error)}), flush=True)
        sys.exit(1)


def _fill_while(path):
    """While `path` exists, a database of this process cannot grow: SQLITE_FULL, as on a full disk."""

    @event.listens_for(Engine, "begin")
    def limit(connection):
        pages = 1 if Path(path).exists() else 2**30  # never less than there are
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


class Monitor:
    """A monitor as a process."""

    def __init__(self, settings, log, knobs):
        self.log = Path(log)
        self.process = _FORKS.Process(
            target=run_child, args=(settings, str(log), knobs), daemon=True
        )
        self.process.start()
        self.pid = self.process.pid

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()
        self.process.join(DEADLINE_S)

    def stop(self):
        """Ask it to end, and return its exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self):
        self.process.join(DEADLINE_S)
        assert self.process.exitcode is not None, f"the monitor did not end within {DEADLINE_S} s"
        return self.process.exitcode

    def is_stopped(self):
        """Whether a SIGSTOP has reached all of it."""
        asked = ["ps", "-o", "state=", "-p", str(self.pid)]
        state = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        return state.strip().startswith("T")

    @property
    def trace(self):
        """What it has done and is doing, or was when it died."""
        return read_trace(f"{self.log}.trace")

    def errors(self, of_client=False):
        """What it has logged as an error, and every line that is no log entry; or what its Kafka client has."""
        if not self.log.exists():
            return []
        found = []
        for line in self.log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"level": "error", "event": line}  # a traceback, or words of a library
            if entry["level"] not in ("error", "critical"):
                continue
            logger = entry.get("logger", "")
            if logger.startswith(CLIENT_LOGGERS) == of_client:
                found.append(" ".join((logger, entry["event"], entry.get("exception", ""))))
        return found


def contracts_in_force(store):
    """Return what tells the contract of (partition id, model, offset), as the store has recorded it."""
    with store.read() as connection:
        activations = connection.execute(
            select(t.contract_activations).order_by(t.contract_activations.c.from_offset)
        ).all()
        bodies = {
            (row.model, row.revision): msgspec.json.decode(row.body, type=Contract)
            for row in connection.execute(select(t.contracts))
        }

    def contract_at(partition_id, model, offset):
        found = None
        for row in activations:
            if (row.partition_id, row.model) == (partition_id, model) and row.from_offset <= offset:
                found = bodies[model, row.revision]
        return found

    return contract_at


class World:
    """Everything a fault can do something to."""

    def __init__(
        self, *, broker, url, folder, outcome, rows, seed=1, topic_configs=(), other_broker=None
    ):
        self.other_broker = other_broker
        self.broker, self.url, self.folder, self.outcome = broker, url, Path(folder), outcome
        self.random = Random(seed)
        self.name = f"f{uuid.uuid4().hex[:10]}"
        self.topic = {role: f"{self.name}.{role}" for role in ("inference", "labels", "resources")}
        self.role = {name: role for role, name in self.topic.items()}
        self.partitions = {"inference": PARTITIONS, "labels": LABEL_PARTITIONS, "resources": 1}
        self.topic_configs = dict(topic_configs)
        self.make_topics(*self.partitions)
        self._create(f"{self.name}.outcomes", 1)
        self.store = open_store(url)
        upgrade(self.store)
        self.contracts = models(rows)
        for contract in self.contracts:
            apply_contract(self.store, contract, "", "test", 0)
        self.messages = stream(rows, seed)
        self.sent = 0
        self.monitors: list[Monitor] = []
        self.kept: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
        """Every record seen in the topics as they are, whether or not they still hold it."""
        self.former: list[Log] = []
        """The same of topics that are gone."""
        self.allowed: list[str] = []
        """Words of errors that this fault makes monitors log."""
        self.knobs: dict[str, object] = {}
        self.codec: str | None = None
        self.client = "kafka-python"
        self.lease_s = 3.0
        self.long = False
        self.disk = None
        self.began_s = time.monotonic()

    # --- topics and messages ----------------------------------------------------------------------

    def make_topics(self, *roles):
        for role in roles:
            self._create(self.topic[role], self.partitions[role])

    def admin(self):
        from kafka import KafkaAdminClient

        return KafkaAdminClient(bootstrap_servers=self.broker.bootstrap)

    def _create(self, name, partitions):
        from kafka.admin import NewTopic

        # The stream's timestamps are of the past: retention would delete it at once.
        configs = {"retention.ms": "-1", "max.message.bytes": "4000000"} | self.topic_configs
        admin = self.admin()
        try:
            admin.create_topics(
                [
                    NewTopic(
                        name=name,
                        num_partitions=partitions,
                        replication_factor=1,
                        topic_configs=configs,
                    )
                ]
            )
        finally:
            admin.close()

    def producer(self):
        from kafka import KafkaProducer

        return KafkaProducer(
            bootstrap_servers=self.broker.bootstrap,
            linger_ms=5,
            max_request_size=4_000_000,
            compression_type=self.codec,
        )

    def send(self, share=1.0):
        """Send the next part of the stream (a share of the whole) and wait until the broker has it."""
        producer = self.producer()
        try:
            self.hand_over(producer, share)
            producer.flush(timeout=DEADLINE_S)
        finally:
            producer.close()

    def hand_over(self, producer, share):
        """Give the next part of the stream to a producer, which sends it in its own time."""
        until = min(len(self.messages), self.sent + int(share * len(self.messages)) + 1)
        for one in self.messages[self.sent : until]:
            producer.send(
                self.topic[one.role],
                partition=one.partition,
                key=b"k",
                value=one.value,
                headers=list(one.headers),
                timestamp_ms=one.timestamp,
            )
        self.sent = until

    def read(self, roles=("inference", "labels", "resources")):
        """Read the topics as they are into `kept`; return where they end."""
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(
            bootstrap_servers=self.broker.bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            max_partition_fetch_bytes=4_000_000,
        )
        try:
            parts = [
                TopicPartition(self.topic[role], n)
                for role in roles
                for n in range(self.partitions[role])
            ]
            consumer.assign(parts)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(parts)
            deadline = time.monotonic() + DEADLINE_S
            while any(consumer.position(p) < ends[p] for p in parts):
                assert time.monotonic() < deadline, "the topics could not be read to their ends"
                for part, records in consumer.poll(500).items():
                    self.kept[tuple(part)] |= {
                        r.offset: Record(r.offset, r.timestamp, tuple(r.headers), r.value)
                        for r in records
                    }
        finally:
            consumer.close()
        return {tuple(part): end for part, end in ends.items()}

    def take_leave_of(self, names):
        """Read topics to their ends for the recount, before they are gone."""
        self.read()
        pids = {(e.topic, e.partition): e.partition_id for e in self.entries()}
        for place in [p for p in self.kept if p[0] in names]:
            records = [record for _, record in sorted(self.kept.pop(place).items())]
            self.former.append(Log(pids[place], self.role[place[0]], records))

    def move_to(self, broker):
        """Go on in another cluster, in topics of the same names."""
        self.take_leave_of(list(self.role))
        self.broker = broker
        self.make_topics(*self.partitions)
        self._create(f"{self.name}.outcomes", 1)

    def create_again(self, *roles):
        """Delete topics and create them anew, under the same names."""
        names = [self.topic[role] for role in roles]
        self.take_leave_of(names)
        admin = self.admin()
        try:
            admin.delete_topics(names)
        finally:
            admin.close()
        for role in roles:  # at once, before any reader has asked for metadata in between
            wait_for(lambda role=role: self._creates(role), "the creation")

    def _creates(self, role):
        from kafka.errors import TopicAlreadyExistsError

        try:
            self._create(self.topic[role], self.partitions[role])
        except TopicAlreadyExistsError:
            return False
        return True

    # --- monitors ---------------------------------------------------------------------------------

    def settings(self, **consumer):
        return {
            "data_dir": str(self.folder),
            "store": {"url": self.url},
            "kafka": {
                "bootstrap": self.broker.bootstrap,
                "client": self.client,
                "prefix": self.name,
                "group": self.name,
                "inference_topics": [self.topic["inference"]],
                "label_topics": [self.topic["labels"]],
                "resource_topics": [self.topic["resources"]],
                "consumer": {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 500, **consumer},
            },
            "monitor": {"flush_s": 0.2, "poll_records": 200, "lease_s": self.lease_s},
        }

    def start(self, knobs=(), **consumer):
        log = self.folder / f"{self.name}-{len(self.monitors)}.log"
        monitor = Monitor(self.settings(**consumer), log, self.knobs | dict(knobs))
        self.monitors.append(monitor)
        return monitor

    def start_static(self, name="static", **knobs):
        """Start one that takes over at once from a killed one of the same name."""
        return self.start(knobs, group_instance_id=name)

    def kill(self, monitor, strike=None):
        """`kill -9` one that is at work: at a moment of the next second, or where `strike` says it dies.

        A point that a monitor does not come to within some seconds (there is nothing to judge, say) becomes
        a moment. Of those by the clock, one in three is counted from the claim, the others from the first flush.
        """
        early = strike or self.random.random() < 1 / 3

        def busy():
            trace = monitor.trace
            return trace.at_work if early else trace.commits["flush"]

        wait_for(lambda: not monitor.process.is_alive() or busy(), "something to kill")
        limit_s = STRIKE_S if strike else self.random.random() * 0.6
        deadline = time.monotonic() + limit_s
        while monitor.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        monitor.kill()
        trace = monitor.trace
        code = monitor.process.exitcode
        assert code == -signal.SIGKILL, f"ended by itself with {code}\n{self.said()}"
        assert trace.at_work
        self.outcome.struck += 1
        stored = ", had flushed" if trace.commits["flush"] else ""
        where = f"{strike.kind} {strike.place}" if trace.struck else f"any moment, {trace.doing}"
        self.outcome.told[where + stored] += 1

    def freeze(self, monitor):
        """Stop a process in the middle of what it does.

        On SQLite not inside a write transaction: it would hold the only write lock for as long as it is
        stopped, and nobody could take over. PostgreSQL frees it after `ABANDONED_S`.
        """
        while True:
            monitor.send(signal.SIGSTOP)
            wait_for(monitor.is_stopped, "the stop")
            if self.store.dialect != "sqlite" or not monitor.trace.writing:
                self.outcome.told[f"stopped, {monitor.trace.doing}"] += 1
                return
            monitor.send(signal.SIGCONT)
            time.sleep(self.random.random() * 0.02)  # and then at another moment

    def entries(self):
        return ledger(self.store)

    def ledgers(self, role):
        """How many ledgers each partition of a topic has, one for each creation; the least of them."""
        topic = self.topic[role]
        places = [e.partition for e in self.entries() if e.topic == topic]
        return min(places.count(number) for number in range(self.partitions[role]))

    def flushed(self):
        """How many flushes there have been, over all partitions."""
        with self.store.read() as connection:
            return int(connection.scalar(select(func.sum(t.partitions.c.flush_seq))) or 0)

    def owners(self):
        return {e.owner for e in self.entries() if e.topic == self.topic["inference"]}

    def claims(self):
        return sum(e.epoch for e in self.entries())

    def wait_for_flushes(self, more=1):
        before = self.flushed()
        wait_for(lambda: self.flushed() >= before + more, f"{more} flushes")

    @contextmanager
    def made_to_say(self, *words):
        """Do the block, then wait until a monitor says one of these words that it had not said before."""
        heard = {m.log: m.log.stat().st_size for m in self.monitors if m.log.exists()}

        def said():
            for log in (m.log for m in self.monitors if m.log.exists()):
                text = log.read_bytes()[heard.get(log, 0) :].decode()
                if any(word in text for word in words):
                    return True
            return False

        yield
        wait_for(said, f"the words {' or '.join(words)}")

    def shrink_wal(self):
        """Bring SQLite's log of writes into the database, so that the next write makes its file grow."""

        def shrunk():
            with self.store.engine.connect() as connection:
                connection.exec_driver_sql("ROLLBACK")  # every connection begins a transaction
                busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
                connection.exec_driver_sql("BEGIN")
                return not busy

        wait_for(shrunk, "the checkpoint")

    # --- the end ----------------------------------------------------------------------------------

    def settle(self, ends):
        """Wait until everything is read, joined, judged and told."""
        left = ["nothing was looked at"]

        def done():
            try:
                left[:] = [
                    text
                    for contract in self.contracts
                    for text in under_way(
                        self.store, contract.name, ends, time.time_ns() // 1_000_000
                    )
                ]
                with self.store.read() as connection:
                    unsent = connection.scalar(
                        select(func.count()).where(t.deliveries.c.sent_ms.is_(None))
                    )
            except SQLAlchemyError as error:
                left[:] = [str(error)]
                return False
            left.extend([f"{unsent} outcomes to tell"] * bool(unsent))
            return not left

        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, f"stuck: {left}\n{self.said()}"
            time.sleep(0.1)

    def said(self):
        """The last words of the monitors."""
        return "\n".join(
            f"--- {m.log.name}\n{m.log.read_text()[-2_000:]}"
            for m in self.monitors
            if m.log.exists()
        )

    def finish(self):
        """Send the rest, wait for the end, and check all that must hold."""
        if self.sent < len(self.messages):
            self.send()
        ends = self.read()
        if not any(m.process.is_alive() for m in self.monitors):
            last = (
                self.start_static()
            )  # there may be nothing left for it, and it must not end unborn
            wait_for(lambda: last.trace.at_work or not last.process.is_alive(), "a claim")
        self.settle(ends)
        for monitor in self.monitors:
            if monitor.process.is_alive():
                assert monitor.stop() == 0, self.said()
        entries = self.entries()
        self.outcome.rows = sum(e.rows for e in entries)
        problems = [problem for e in entries for problem in e.balance()]
        self.outcome.ledger = "balances" if not problems else "DOES NOT BALANCE"
        assert problems == []
        models = [row.contract for row in load_contracts(self.store).values()]
        problems = differences(self.store, self.expected(), models)
        self.outcome.recount = "equal" if not problems else "DIFFERS"
        assert problems == [], "\n".join(text[:2_000] for text in problems[:6])
        problems = self.unconfirmed()
        assert problems == [], "\n".join(problems)
        unexpected = [
            f"{monitor.log.name}: {text}"
            for monitor in self.monitors
            for text in monitor.errors()
            if not any(word in text for word in self.allowed)
        ]
        assert unexpected == [], "\n".join(text[:2_000] for text in unexpected[:5])
        if said := sum(len(monitor.errors(of_client=True)) for monitor in self.monitors):
            self.outcome.told["errors that the Kafka client has logged"] = said

    def unconfirmed(self):
        """Recompute some of the verdicts that stand; return what is said of those that come out otherwise."""
        with self.store.read() as connection:
            standing = connection.scalars(select(t.verdicts.c.id).where(t.verdicts.c.latest)).all()
        looked_at = self.random.sample(standing, min(len(standing), VERDICTS))
        told = [verify_verdict(self.store, one) for one in looked_at]
        assert any(one.confirmed for one in told)
        return [
            f"verdict {one.verdict}: {one.said}"
            for one in told
            if not one.confirmed and one.parts != [GATHERING]
        ]

    def expected(self):
        """Recount what is in the topics, and what was in those that are gone."""
        # A topic created again has a newer entry per partition.
        newest = {(e.topic, e.partition): e.partition_id for e in self.entries()}
        logs = self.former + [
            Log(newest[place], self.role[place[0]], [record for _, record in sorted(kept.items())])
            for place, kept in self.kept.items()
        ]
        with self.store.read() as connection:
            lost = connection.execute(
                select(t.losses.c.partition_id, t.losses.c.from_offset, t.losses.c.to_offset)
            ).all()
        for log in logs:
            gone = [(a, b) for pid, a, b in lost if pid == log.partition_id]
            log.records = [r for r in log.records if not any(a <= r.offset < b for a, b in gone)]
        logs.sort(key=lambda log: log.partition_id)
        cuts = {name: active_cuts(self.store, name) for name in load_contracts(self.store)}
        return recount(logs, contracts_in_force(self.store), cuts)

    def close(self):
        for monitor in self.monitors:
            if monitor.process.is_alive():
                monitor.send(signal.SIGCONT)
                monitor.kill()
        self.outcome.seconds = time.monotonic() - self.began_s
        self.store.close()
