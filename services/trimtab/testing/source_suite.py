"""What every `Source` must do, as tests that ship: a client is done when they pass.

Subclass a suite as a `Test…` class and give pytest a fixture `rig` (and `own_rig`, whose broker nobody else
uses) that returns a `SourceRig`. `BasicSuite` asks nothing that the embedded broker cannot do.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from trimtab.source import Identity, Lost, Partition, Record, Source, SourceError

DEADLINE_S = 60.0
POLL_S = 0.05
LONG_SESSION_MS = 4 * 60 * 1000
"""Longer than any deadline here: whoever takes over before has been let in by the leaver."""

STEPS_OF_NEW_LOG = 100
"""How long a client may take to read on in a log made again; some do not at all."""

Headers = Sequence[tuple[str, bytes]]


class StoppableBroker(Protocol):
    """A broker that keeps its address (and, where it can, its log) over `stop` and `start`."""

    @property
    def bootstrap(self) -> str: ...  # noqa: D102
    def start(self) -> Any: ...  # noqa: D102
    def stop(self) -> None: ...  # noqa: D102


class SourceRig:
    """A broker, and the client under test on it.

    `open_source(group, consumer options)` makes a Source; `api_version` is what kafka-python needs to
    produce; `unreadable` are codecs for which this installation of the client has no library.
    """

    def __init__(
        self,
        broker: StoppableBroker,
        open_source: Callable[[str, Mapping[str, Any]], Source],
        *,
        api_version: tuple[int, ...] | None = None,
        creates_topics: bool = True,
        unreadable: frozenset[str] = frozenset(),
    ) -> None:
        self.broker, self._open_source, self.unreadable = broker, open_source, unreadable
        self._creates_topics = creates_topics
        self._client: dict[str, Any] = {"bootstrap_servers": broker.bootstrap}
        if api_version is not None:
            self._client["api_version"] = api_version
        self._opened: list[Source] = []

    def open(self, group: str, **consumer: Any) -> Source:
        """Make a source; `close` ends what a test has left open."""
        source = self._open_source(group, consumer)
        self._opened.append(source)
        return source

    def leave(self, source: Source) -> None:
        """Close a source before the end of the test."""
        self._opened.remove(source)
        source.close()

    def close(self) -> None:
        """Close every source still open."""
        while self._opened:
            self._opened.pop().close()

    def topic(self, name: str = "", partitions: int = 4, **configs: str) -> str:
        """Make a topic that nobody else uses (4 partitions where the broker decides)."""
        name = name or f"s-{uuid.uuid4().hex[:12]}"
        if not self._creates_topics:
            self.send(Partition(name, 0), [])
            return name
        from kafka.admin import NewTopic

        settings = {key.replace("_", "."): value for key, value in configs.items()}
        with self._admin() as admin:
            admin.create_topics(
                [NewTopic(name, partitions, replication_factor=1, topic_configs=settings)]
            )
        return name

    def make_again(self, topic: str, partitions: int) -> None:
        """Delete the topic and create it anew under the same name."""
        from kafka.errors import TopicAlreadyExistsError

        with self._admin() as admin:
            admin.delete_topics([topic])
        deadline_s = time.monotonic() + DEADLINE_S
        while True:  # a topic is deleted some time after the answer
            try:
                self.topic(topic, partitions)
            except TopicAlreadyExistsError:
                assert time.monotonic() < deadline_s, f"{topic} was not deleted"
                time.sleep(0.05)
            else:
                return

    def drop_before(self, partition: Partition, offset: int) -> None:
        """Move the log's beginning, as retention does."""
        from kafka import TopicPartition

        with self._admin() as admin:
            admin.delete_records({TopicPartition(*partition): offset})

    def send(
        self,
        partition: Partition,
        values: Iterable[bytes | None],
        *,
        timestamp_ms: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Append messages and wait until the broker has them."""
        producer = self._producer()
        try:
            topic, number = partition
            producer.partitions_for(topic)
            sent = [
                producer.send(
                    topic,
                    value,
                    key=b"k",  # a tombstone needs one
                    partition=number,
                    timestamp_ms=timestamp_ms,
                    headers=list(headers),
                )
                for value in values
            ]
            for one in sent:
                one.get(DEADLINE_S)
        finally:
            producer.close()

    def transact(
        self, partition: Partition, batches: Sequence[tuple[Sequence[bytes], bool]]
    ) -> None:
        """Send each batch as a transaction, committed or aborted."""
        producer = self._producer(transactional_id=f"t-{uuid.uuid4().hex[:12]}")
        try:
            producer.init_transactions()
            for values, committed in batches:
                producer.begin_transaction()
                for value in values:
                    producer.send(
                        partition.topic,
                        value,
                        partition=partition.partition,
                    ).get(DEADLINE_S)
                (producer.commit_transaction if committed else producer.abort_transaction)()
        finally:
            producer.close()

    def _producer(self, **more: Any) -> Any:
        from kafka import KafkaProducer

        return KafkaProducer(**self._client, **more)

    def _admin(self) -> Any:
        from contextlib import closing

        from kafka import KafkaAdminClient

        return closing(KafkaAdminClient(**self._client))


class Reader:
    """One member that does as the ingest loop: whenever it is given partitions, it places them.

    Each goes where this reader has come to, at first to `starts` (0 without). `seeks` and `resumes` say
    which half of a placement is done; partitions in `held` stay paused. A group may rebalance at any
    time, so tests tell the reader what they want and leave the placing to it.
    """

    def __init__(
        self,
        source: Source,
        topic: str,
        starts: Mapping[Partition, int] | None = None,
        *,
        seeks: bool = True,
        resumes: bool = True,
    ) -> None:
        self.source, self.seeks, self.resumes = source, seeks, resumes
        self.starts = dict(starts or {})
        self.held: set[Partition] = set()
        self.assigned: set[Partition] = set()
        self.revoked: set[Partition] = set()
        self.records: dict[Partition, list[Record]] = {}
        self.next_offset: dict[Partition, int] = {}
        self.lost: list[Lost] = []
        self.asks = False
        """Whether to ask for the identities of what is taken away, into `told`."""
        self.told: dict[Partition, Identity] = {}
        self._polling = False
        self._waiting: set[Partition] = set()
        source.start([topic], self._on_assigned, self._on_revoked)

    def _on_assigned(self, partitions: Sequence[Partition]) -> None:
        assert self._polling, "partitions were assigned outside poll"
        self.assigned |= set(partitions)
        self._waiting |= set(partitions)

    def _on_revoked(self, partitions: Sequence[Partition]) -> None:
        self.revoked |= set(partitions)
        if self.asks:
            self.told |= self.source.identities(partitions)
        self.assigned -= set(partitions)
        self._waiting -= set(partitions)

    def step(self) -> None:
        """Poll once, then place what is new."""
        self._polling = True
        polled, lost = self.source.poll(POLL_S)
        self._polling = False
        self.lost += lost
        for partition, batch in polled.items():
            assert partition in self.assigned, f"records of {partition}, which is not ours"
            offsets = [record.offset for record in batch.records]
            assert offsets == sorted(set(offsets)), "records are out of order"
            assert batch.next_offset > offsets[-1]
            self.records.setdefault(partition, []).extend(batch.records)
            self.next_offset[partition] = batch.next_offset
        if self._waiting:
            new, self._waiting = self._waiting, set()
            self.place(new)

    def place(self, partitions: Iterable[Partition]) -> None:
        """Do what the ingest loop does after a claim."""
        for partition in partitions:
            if self.seeks:
                start = self.starts.get(partition, 0)
                self.source.seek(partition, self.next_offset.get(partition, start))
            if self.resumes and partition not in self.held:
                self.source.resume([partition])

    def hold(self, partition: Partition) -> None:
        """Pause a partition."""
        self.held.add(partition)
        self.source.pause([partition])

    def release(self, partition: Partition) -> None:
        """Resume it."""
        self.held.discard(partition)
        self.source.resume([partition])

    def move(self, partition: Partition, offset: int) -> None:
        """Read on from another offset, as after a failed flush."""
        self.source.pause([partition])
        self.next_offset[partition] = offset
        self.place([partition])

    def values(self, partition: Partition) -> list[bytes | None]:
        """Values received from a partition, in order."""
        return [record.value for record in self.records.get(partition, [])]

    def offsets(self, partition: Partition) -> list[int]:
        """Offsets received from a partition, in order."""
        return [record.offset for record in self.records.get(partition, [])]


def drive(readers: Sequence[Reader], until: Callable[[], bool], what: str) -> None:
    """Poll all readers in turn until a condition holds; fails when it does not within the deadline."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not until():
        assert time.monotonic() < deadline_s, f"{what} did not happen within {DEADLINE_S:.0f} s"
        for reader in readers:
            reader.step()


def numbered(count: int, first: int = 0) -> list[bytes]:
    """Return the values b"0", b"1" and so on."""
    return [b"%d" % number for number in range(first, first + count)]


class BasicSuite:
    """What holds on any broker."""

    def test_nothing_comes_before_seek_and_resume(self, rig: SourceRig) -> None:
        """Offsets live in SQL: a source that starts by itself would read what is not to be read."""
        topic = rig.topic()
        first = Partition(topic, 0)
        rig.send(first, numbered(5))
        reader = Reader(rig.open(topic), topic, {first: 2}, seeks=False, resumes=False)
        drive([reader], lambda: first in reader.assigned, "an assignment")
        for _ in range(10):
            reader.step()
        assert reader.records == {}
        reader.seeks = True
        reader.place(reader.assigned)
        for _ in range(10):
            reader.step()
        assert reader.records == {}
        reader.resumes = True
        reader.place(reader.assigned)
        drive([reader], lambda: len(reader.values(first)) == 3, "three records")
        assert reader.offsets(first) == [2, 3, 4]
        assert reader.values(first) == numbered(3, 2)

    def test_it_starts_at_the_offset_sought_and_keeps_the_order(self, rig: SourceRig) -> None:
        """Each partition from its own offset, without a gap and without a repetition."""
        topic = rig.topic()
        one, two = Partition(topic, 0), Partition(topic, 1)
        rig.send(one, numbered(1200))
        rig.send(two, numbered(700))
        reader = Reader(rig.open(topic), topic, {one: 200, two: 699})
        drive([reader], lambda: len(reader.values(one)) >= 1000 and bool(reader.values(two)), "all")
        assert reader.offsets(one) == list(range(200, 1200))
        assert reader.values(one) == numbered(1000, 200)
        assert reader.offsets(two) == [699]
        drive(
            [reader],
            lambda: (
                reader.source.progress(one) == (1200, 1200)
                and reader.source.progress(two) == (700, 700)
            ),
            "the end of the log known",
        )
        assert reader.next_offset == {one: 1200, two: 700}

    def test_a_seek_back_reads_again_from_there(self, rig: SourceRig) -> None:
        """What was fetched under the older position is not delivered after it."""
        topic = rig.topic()
        first = Partition(topic, 0)
        rig.send(first, numbered(2000))
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: bool(reader.records), "a first poll with records")
        reader.records.clear()
        reader.move(first, 7)
        drive([reader], lambda: len(reader.values(first)) >= 1993, "the rest")
        assert reader.offsets(first) == list(range(7, 2000))

    def test_a_paused_partition_keeps_its_place_and_the_member_its_own(
        self, rig: SourceRig
    ) -> None:
        """A pause is not a leave, and nothing is skipped by it."""
        topic = rig.topic()
        held, free = Partition(topic, 0), Partition(topic, 1)
        rig.send(held, numbered(3))
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: len(reader.values(held)) == 3, "the first records")
        reader.hold(held)
        rig.send(held, numbered(3, 3))
        rig.send(free, numbered(3))
        drive([reader], lambda: len(reader.values(free)) == 3, "records of the other partition")
        assert reader.offsets(held) == [0, 1, 2]
        assert len(reader.assigned) == 4
        reader.release(held)
        drive([reader], lambda: len(reader.values(held)) == 6, "the records held back")
        assert reader.values(held) == numbered(6)

    def test_timestamps_headers_and_empty_values_come_as_sent(self, rig: SourceRig) -> None:
        """A tombstone is None, an empty value is not; a header's name may come twice."""
        topic = rig.topic()
        first = Partition(topic, 0)
        headers = [("content-type", b"a/b"), ("x", b""), ("x", b"2")]
        moment_ms = time.time_ns() // 1_000_000 - 60_000  # of now: retention goes by it
        rig.send(first, [None, b""], timestamp_ms=moment_ms, headers=headers)
        rig.send(first, [b"bare"], timestamp_ms=moment_ms + 1)
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: len(reader.values(first)) == 3, "three records")
        assert reader.values(first) == [None, b"", b"bare"]
        tombstone, _, bare = reader.records[first]
        stamps = [record.timestamp for record in reader.records[first]]
        assert stamps == [moment_ms, moment_ms, moment_ms + 1]
        assert list(tombstone.headers) == headers
        assert (len(tombstone.headers), tombstone.headers[0]) == (3, headers[0])
        assert (len(bare.headers), list(bare.headers)) == (0, [])
        assert not bare.headers

    def test_offsets_of_a_broker_have_an_identity(self, rig: SourceRig) -> None:
        """The same whenever it is asked for."""
        topic = rig.topic()
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: bool(reader.assigned), "an assignment")
        first = reader.source.identity(topic)
        assert first.cluster_id
        reader.step()
        assert reader.source.identity(topic) == first

    def test_a_hint_never_raises(self, rig: SourceRig) -> None:
        """Not for a partition of others, not without one."""
        topic = rig.topic()
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: bool(reader.assigned), "an assignment")
        reader.source.hint({})
        reader.source.hint({Partition(topic, 0): 0, Partition("of-others", 9): 5})
        for _ in range(5):
            reader.step()

    def test_the_end_is_unknown_while_the_broker_is_away(self, own_rig: SourceRig) -> None:
        """Else a broker that is away looks like a topic that has fallen silent."""
        topic = own_rig.topic()
        first = Partition(topic, 0)
        own_rig.send(first, numbered(1))
        reader = Reader(own_rig.open(topic), topic)
        drive([reader], lambda: reader.source.progress(first) == (1, 1), "all read")
        own_rig.broker.stop()
        drive([reader], lambda: reader.source.progress(first)[1] is None, "an unknown end")
        assert reader.values(first) == numbered(1)


class SourceSuite(BasicSuite):
    """What holds on Apache Kafka."""

    def test_a_second_member_takes_over_and_the_rest_reads_on(self, rig: SourceRig) -> None:
        """Both callbacks run inside poll; each partition has one reader, also after one has left."""
        topic = rig.topic()
        every = {Partition(topic, number) for number in range(4)}
        for partition in every:
            rig.send(partition, numbered(10))
        # Whoever takes over starts where the one before has ended.
        one = Reader(rig.open(topic), topic)
        drive([one], lambda: all(len(one.values(p)) == 10 for p in every), "all read by one")
        two = Reader(rig.open(topic), topic, dict.fromkeys(every, 10))
        drive([one, two], lambda: len(one.assigned) == len(two.assigned) == 2, "2 + 2 partitions")
        assert one.assigned | two.assigned == every
        assert one.revoked >= two.assigned
        for partition in every:
            rig.send(partition, numbered(10, 10))
        kept, taken = set(one.assigned), set(two.assigned)
        drive(
            [one, two],
            lambda: (
                all(len(one.values(p)) == 20 for p in kept)
                and all(len(two.values(p)) == 10 for p in taken)
            ),
            "each reads its own",
        )
        assert all(one.values(p) == numbered(20) for p in kept)
        assert all(two.values(p) == numbered(10, 10) for p in taken)
        rig.leave(one.source)
        assert one.assigned == set()
        two.starts = dict.fromkeys(every, 20)
        drive([two], lambda: two.assigned == every, "all for the one that stays")

    def test_who_closes_leaves_the_group_at_once(self, rig: SourceRig) -> None:
        """With a session longer than the deadline, a successor would wait in vain otherwise."""
        topic = rig.topic()
        session = {"session_timeout_ms": LONG_SESSION_MS}
        one = Reader(rig.open(topic, **session), topic)
        drive([one], lambda: len(one.assigned) == 4, "all partitions")
        rig.leave(one.source)
        two = Reader(rig.open(topic, **session), topic)
        drive([two], lambda: len(two.assigned) == 4, "all partitions for the successor")

    def test_every_codec_is_read_or_named(self, rig: SourceRig) -> None:
        """A codec without its library ends the process with a sentence, not in a loop."""
        for codec in ("gzip", "snappy", "lz4", "zstd"):
            self._read_codec(rig, codec)

    def _read_codec(self, rig: SourceRig, codec: str) -> None:
        topic = rig.topic(partitions=1, compression_type=codec)
        first = Partition(topic, 0)
        rig.send(first, [b"x" * 1000, *numbered(20)])
        reader = Reader(rig.open(topic), topic)
        if codec not in rig.unreadable:
            drive([reader], lambda: len(reader.values(first)) == 21, f"reading {codec}")
            assert reader.values(first)[1:] == numbered(20)
            return
        text = ""
        try:
            drive([reader], lambda: bool(reader.records), f"a refusal of {codec}")
        except SourceError as error:
            text = str(error)
        assert "codec" in text, codec
        assert reader.records == {}

    def test_of_transactions_only_what_was_committed_comes(self, rig: SourceRig) -> None:
        """Aborted messages and control records are passed: gaps that no message follows are known too."""
        topic = rig.topic(partitions=1)
        first = Partition(topic, 0)
        batches = [
            (numbered(5), True),
            (numbered(5, 90), False),
            (numbered(5, 5), True),
            (numbered(2, 95), False),
        ]
        rig.transact(first, batches)
        reader = Reader(rig.open(topic), topic)
        # Offsets 0-4, marker 5, aborted 6-10, marker 11, 12-16, marker 17, aborted 18-19, marker 20.
        drive([reader], lambda: reader.source.progress(first) == (21, 21), "the end reached")
        assert reader.values(first) == numbered(10)
        assert reader.offsets(first) == [0, 1, 2, 3, 4, 12, 13, 14, 15, 16]
        assert 17 <= reader.next_offset[first] <= 21

    def test_what_retention_took_is_lost_and_counted(self, rig: SourceRig) -> None:
        """Also of a partition that was read before; the others read on."""
        topic = rig.topic(partitions=2)
        first, other = Partition(topic, 0), Partition(topic, 1)
        rig.send(first, numbered(10))
        rig.send(other, numbered(10))
        rig.drop_before(first, 6)
        reader = Reader(rig.open(topic), topic)
        drive(
            [reader],
            lambda: len(reader.values(first)) == 4 and len(reader.values(other)) == 10,
            "what is left",
        )
        assert reader.lost == [Lost(first, 0, 6)]
        assert reader.source.beginning(first) == 6
        assert reader.offsets(first) == [6, 7, 8, 9]
        assert reader.values(other) == numbered(10)
        reader.hold(first)
        rig.send(first, numbered(5, 10))
        rig.drop_before(first, 13)
        reader.step()
        reader.release(first)
        drive([reader], lambda: len(reader.values(first)) == 6, "what is left again")
        assert reader.lost[1:] == [Lost(first, 10, 13)]
        assert reader.offsets(first) == [6, 7, 8, 9, 13, 14]

    def test_a_truncated_log_stops_the_reader(self, rig: SourceRig) -> None:
        """A ledger beyond the end of the log must not wait until other messages have its offsets.

        Whether or not the reader has asked of which log they are.
        """
        for asks in (False, True):
            self._truncate_under(rig, asks=asks)

    def _truncate_under(self, rig: SourceRig, *, asks: bool) -> None:
        topic = rig.topic(partitions=1)
        first = Partition(topic, 0)
        rig.send(first, numbered(10))
        reader = Reader(rig.open(topic), topic, {first: 11}, seeks=False, resumes=False)
        drive([reader], lambda: first in reader.assigned, "an assignment")
        if asks:
            reader.source.identity(topic)
        reader.seeks = reader.resumes = True
        reader.place(reader.assigned)
        text = ""
        try:
            drive([reader], lambda: bool(reader.records), "a refusal")
        except SourceError as error:
            text = str(error)
        assert "truncated" in text
        assert (reader.records, reader.lost) == ({}, [])

    def test_a_topic_made_again_has_another_identity(self, rig: SourceRig) -> None:
        """Its offsets count other messages: they belong into a ledger of their own."""
        topic = rig.topic(partitions=1)
        one = Reader(rig.open(topic), topic)
        drive([one], lambda: bool(one.assigned), "an assignment")
        before = one.source.identity(topic)
        rig.leave(one.source)
        rig.make_again(topic, 1)
        two = Reader(rig.open(topic), topic)
        drive([two], lambda: bool(two.assigned), "an assignment of the new topic")
        after = two.source.identity(topic)
        assert after.cluster_id == before.cluster_id
        assert after.topic_id
        assert after.topic_id != before.topic_id

    def test_a_topic_made_again_under_a_reader_is_told_as_soon_as_anything_came_of_it(
        self, rig: SourceRig
    ) -> None:
        """Clients read on by the name; asked after that, the identity is never that of the old log.

        Whether the new log reaches to where the reader stands or not: that is no truncated log.
        """
        for count in (20, 2):
            self._make_again_under(rig, count)

    def _make_again_under(self, rig: SourceRig, count: int) -> None:
        topic = rig.topic(partitions=1)
        first = Partition(topic, 0)
        rig.send(first, numbered(5))
        reader = Reader(rig.open(topic), topic)
        drive([reader], lambda: len(reader.values(first)) == 5, "the old log")
        source = reader.source
        before = source.identity(topic)
        assert source.identities([first]) == {first: before}
        reader.move(first, 5)  # where it stands, and as of this log, as after a claim
        rig.make_again(topic, 1)
        rig.send(first, numbered(count, 100))

        def is_told() -> bool:
            said = source.identities([first]).get(first)
            assert said != before or len(reader.values(first)) == 5, "records of two logs as of one"
            return said not in (None, before)

        for _ in range(
            STEPS_OF_NEW_LOG
        ):  # whatever a client makes of its old position, it does not stop
            reader.step()
            if len(reader.values(first)) > 5:
                break
        drive([reader], is_told, "another identity")
        drive([reader], lambda: first in reader.assigned, "an assignment")
        after = source.identity(topic)
        assert after != before
        reader.records.clear()
        reader.move(first, source.beginning(first))
        drive([reader], lambda: len(reader.values(first)) == count, "the new log")
        assert reader.values(first) == numbered(count, 100)
        assert source.identities([first]) == {first: after}

    def test_what_is_taken_away_can_still_be_asked_for(self, rig: SourceRig) -> None:
        """Its owner commits a last time, and commits nothing without knowing of which log it is."""
        topic = rig.topic()
        one = Reader(rig.open(topic), topic)
        drive([one], lambda: len(one.assigned) == 4, "all partitions")
        identity = one.source.identity(topic)
        one.revoked.clear()
        one.asks = True
        two = Reader(rig.open(topic), topic)
        drive([one, two], lambda: len(one.assigned) == len(two.assigned) == 2, "2 + 2 partitions")
        assert one.told == dict.fromkeys(one.revoked, identity)
        assert one.told.keys() >= two.assigned

    def test_after_a_restart_of_the_broker_reading_goes_on(self, own_rig: SourceRig) -> None:
        """From where it stood; in between nothing comes and nothing is raised."""
        topic = own_rig.topic(partitions=1)
        first = Partition(topic, 0)
        own_rig.send(first, numbered(5))
        reader = Reader(own_rig.open(topic), topic)
        drive([reader], lambda: reader.source.progress(first) == (5, 5), "the first records")
        identity = reader.source.identity(topic)
        own_rig.broker.stop()
        drive([reader], lambda: reader.source.progress(first)[1] is None, "an unknown end")
        assert reader.source.identities([first]) == {}
        own_rig.broker.start()
        own_rig.send(first, numbered(5, 5))
        drive([reader], lambda: reader.source.progress(first) == (10, 10), "records after it")
        assert reader.values(first) == numbered(10)
        drive(
            [reader],
            lambda: reader.source.identities([first]) == {first: identity},
            "the identity known again",
        )
