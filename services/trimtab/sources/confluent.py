"""confluent-kafka (librdkafka) as a Source: the fast client.

What librdkafka reads is always one call of `assign`: the partitions that flow, each from where we
stand. Pausing, seeking and resuming only change our own notes, and the next poll hands them over in one
piece. So a partition that was given to us is not fetched before the ledger said where to, a position that
the log has dropped (after which librdkafka refuses to seek) needs no way of its own, and nothing fetched
under an older position is ever delivered. The price is that a change fetches the others' read-ahead again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import methodcaller
from typing import Any, overload
from uuid import UUID

import msgspec
from msgspec import Struct

from trimtab.source import (
    ASK_LIMIT_MS,
    CONFIRM_LIMIT_MS,
    POLL_FETCH_BYTES,
    RETRY_S,
    SESSION_TIMEOUT_MS,
    UNREADABLE,
    Columns,
    Headers,
    Identity,
    Lost,
    Partition,
    Polled,
    SourceAwayError,
    SourceError,
    UnreadableHeadersError,
    max_poll_interval_ms,
)
from trimtab.sources.options import OF_GROUP, librdkafka_options

log = logging.getLogger(__name__)

LINGER_S = 0.01
"""After the first message of a poll, wait so long for others: one message a poll costs ten times as much."""
QUEUE_KILOBYTES = 32 * 1024
"""Read ahead at most so much, over all partitions; a fetch that is under way comes on top."""
QUEUE_BACKOFF_MS = 20
"""Look so often whether the read-ahead has room again. With librdkafka's 1000 it runs dry in between."""
STATISTICS_MS = 1_000
SILENT_US = 5_000_000
"""A broker that has not answered for so long, though fetches return within half a second, is not heard."""
FIRST_TOPIC_IDS = (2, 8)
RECONNECT_MS = 1_000
"""Whom to ask is looked for again so often at least, so that flushes need not wait after a restart."""
_ASK_LIMIT_S = ASK_LIMIT_MS / 1000
_CONFIRM_LIMIT_S = CONFIRM_LIMIT_MS / 1000


class ConfluentRecord(Struct, gc=False, frozen=True):
    """One message."""

    message: Any
    broken: set[int]
    """Of all messages that it came with: see `_headers`."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""
        offset: int = self.message.offset()
        return offset

    @property
    def timestamp(self) -> int:
        """Milliseconds since the epoch."""
        timestamp: int = self.message.timestamp()[1]
        return timestamp

    @property
    def value(self) -> bytes | None:
        """The payload."""
        value: bytes | None = self.message.value()
        return value

    @property
    def headers(self) -> Headers:
        """Names and values in the order sent. Raises UnreadableHeadersError."""
        return _headers(self.message, self.broken)


class ConfluentRecords(Sequence[ConfluentRecord]):
    """Messages of one partition. Records are made when they are looked at, `columns` without any."""

    def __init__(self, messages: list[Any], broken: set[int] | None = None) -> None:
        self.messages = messages
        self._broken: set[int] = set() if broken is None else broken

    def __len__(self) -> int:
        """Number of messages."""
        return len(self.messages)

    @overload
    def __getitem__(self, index: int) -> ConfluentRecord: ...
    @overload
    def __getitem__(self, index: slice) -> ConfluentRecords: ...
    def __getitem__(self, index: int | slice) -> ConfluentRecord | ConfluentRecords:
        """Return a record, or some of the messages."""
        if isinstance(index, slice):
            return ConfluentRecords(self.messages[index], self._broken)
        return ConfluentRecord(self.messages[index], self._broken)

    def columns(self) -> Columns:
        """Return the messages as columns."""
        messages = self.messages
        first, last = messages[0].offset(), messages[-1].offset()
        return Columns(
            # Offsets grow, so where none is missing they need not be asked for one by one.
            range(first, last + 1)
            if last - first == len(messages) - 1
            else [message.offset() for message in messages],
            [stamp for _, stamp in map(_TIMESTAMP, messages)],
            list(map(_VALUE, messages)),
            lambda: [_headers_or_mark(message, self._broken) for message in messages],
        )


def _headers(message: Any, broken: set[int]) -> Headers:
    """Return the headers of a message. Raises UnreadableHeadersError.

    For a name that is no UTF-8 confluent-kafka makes a list with a hole, keeps it, and sets an error. Asked
    again it gives that list without a word, and whoever looks into it ends the process. So such a message,
    named by `id` in `broken` while it lives, is asked once.
    """
    if id(message) not in broken:
        try:
            # `message.headers()` in code that has run often would not be looked at for an error at once.
            return _HEADERS(message) or ()
        except (SystemError, UnicodeDecodeError):
            broken.add(id(message))
    raise UnreadableHeadersError("The name of a header is no UTF-8.")


def _headers_or_mark(message: Any, broken: set[int]) -> Headers:
    try:
        return _headers(message, broken)
    except UnreadableHeadersError:
        return UNREADABLE


class _Place(Struct):
    """Where we stand in a partition that the group has given us."""

    position: int | None = None
    """None until `seek`."""
    flowing: bool = False
    heard: bool = False
    """Whether the broker has answered for it since it was last placed."""
    identity: Identity | None = None
    """The identity told when it was last sought: the position is one of that log."""


class _Broker(Struct):
    """What librdkafka's statistics say about a broker, as far as we look."""

    nodeid: int
    state: str
    rxidle: int = -1


class _PartitionFigures(Struct):
    leader: int


class _TopicFigures(Struct):
    partitions: dict[str, _PartitionFigures]


class _Statistics(Struct):
    brokers: dict[str, _Broker]
    topics: dict[str, _TopicFigures]


_STATISTICS = msgspec.json.Decoder(_Statistics)


class ConfluentSource:
    """librdkafka as a Source.

    `settings` are client options in kafka-python's names (see `librdkafka_options`). `cluster_identity`
    replaces the cluster id where the broker has none worth keeping (the embedded one).
    Raises SourceError for options that cannot be used and where confluent-kafka is not installed.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        group: str,
        poll_records: int = 5_000,
        cluster_identity: str | None = None,
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as missing:
            raise SourceError(
                'kafka.client is "confluent-kafka", which is not installed. Install it (pip install '
                'confluent-kafka), or set kafka.client = "kafka-python".'
            ) from missing
        self._cluster_identity = cluster_identity
        self._poll_records = poll_records
        self._bootstrap = str(settings.get("bootstrap_servers", ""))
        # kafka-python learns no topic ids from a broker that it takes for an older one: a ledger must
        # not begin anew because the other client reads.
        self._has_topic_ids = (
            tuple(settings.get("api_version") or FIRST_TOPIC_IDS) >= FIRST_TOPIC_IDS
        )
        translated = librdkafka_options(settings)
        options: dict[str, Any] = {
            "session.timeout.ms": SESSION_TIMEOUT_MS,
            "heartbeat.interval.ms": SESSION_TIMEOUT_MS // 3,
            "max.poll.interval.ms": max_poll_interval_ms(translated.get("session.timeout.ms")),
            "max.partition.fetch.bytes": POLL_FETCH_BYTES,
            "allow.auto.create.topics": "true",
            "check.crcs": "true",
            **translated,
            # What the ledger rests on is not for the settings to change.
            "group.id": group,
            "enable.auto.commit": "false",
            "enable.auto.offset.store": "false",
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": "true",
            # One protocol in a group: kafka-python's, so that members of both clients share it.
            "partition.assignment.strategy": "range,roundrobin",
            "queued.max.messages.kbytes": QUEUE_KILOBYTES,
            "fetch.queue.backoff.ms": QUEUE_BACKOFF_MS,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": self._read_statistics,
            "error_cb": self._hear_trouble,
        }
        self._ask_options = {"reconnect.backoff.max.ms": str(RECONNECT_MS)} | {
            k: v for k, v in translated.items() if k not in OF_GROUP
        }
        self._cluster_id = cluster_identity
        self._named: dict[str, Identity] = {}
        """The identity of each topic as `identity` last told it."""
        self._asking: Any = None
        self._kafka = confluent_kafka
        self._code = confluent_kafka.KafkaError
        self._places: dict[Partition, _Place] = {}
        self._moved = False
        self._up: frozenset[int] = frozenset()
        self._leaders: dict[Partition, int] = {}
        self._trouble = ""
        try:
            self._consumer = confluent_kafka.Consumer(options, logger=log)
        except confluent_kafka.KafkaException as error:
            raise SourceError(
                f"confluent-kafka does not take its options ({_text(error)}). Check kafka.options and "
                "kafka.consumer (`trimtab config show`)."
            ) from error

    def start(
        self,
        topics: Iterable[str],
        on_assigned: Callable[[Sequence[Partition]], None],
        on_revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        """Join the group. Raises SourceError when no broker answers."""
        wanted = list(topics)
        missing = [topic for topic in wanted if not self._partitions(topic)]
        if missing:
            log.warning("These topics do not exist yet and are waited for: %s", ", ".join(missing))

        def park_and_tell(consumer: Any, given: Iterable[Any]) -> None:
            # Kafka's own offset is only a hint: nothing is read before the ledger said where to.
            consumer.assign([])
            self._places = {Partition(p.topic, p.partition): _Place() for p in given}
            self._moved = False
            on_assigned(sorted(self._places))

        def tell_and_drop(consumer: Any, taken: Iterable[Any]) -> None:
            try:
                on_revoked(sorted(Partition(p.topic, p.partition) for p in taken))
            finally:
                self._places = {}
                self._moved = False
                consumer.unassign()

        self._consumer.subscribe(wanted, on_assign=park_and_tell, on_revoke=tell_and_drop)

    def _partitions(self, topic: str) -> int:
        """Number of partitions as the broker says now, 0 for no such topic. Raises SourceError."""
        try:
            said = self._consumer.list_topics(topic, timeout=3 * _ASK_LIMIT_S).topics[topic]
        except self._kafka.KafkaException as error:
            raise SourceError(
                f"No Kafka broker answers at {self._bootstrap} ({self._trouble or _text(error)}). Check "
                "kafka.bootstrap (`trimtab config show`) and that the broker runs."
            ) from error
        if said.error is not None and said.error.code() in self._refusals:
            raise self._refused(str(said.error))
        return len(said.partitions)

    @property
    def _refusals(self) -> tuple[int, ...]:
        return (self._code.TOPIC_AUTHORIZATION_FAILED, self._code.GROUP_AUTHORIZATION_FAILED)

    def _refused(self, said: str) -> SourceError:
        return SourceError(
            f"Kafka refuses access ({said}). Grant READ on the topics and the group."
        )

    # --- reading ----------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> tuple[dict[Partition, Polled], list[Lost]]:
        """Wait for records. Raises SourceError for what no retry mends."""
        if self._moved:
            self._place()
        # `consume` waits until it has all it was asked for: ask for one, then take what is there.
        messages = self._consumer.consume(1, timeout_s)
        if messages and self._poll_records > 1:
            # Of large messages fewer, so that the caller can work on them in pieces.
            likely = max(1, len(messages[0].value() or b""))
            most = min(self._poll_records - 1, max(1, POLL_FETCH_BYTES // likely))
            messages += self._consumer.consume(most, LINGER_S)
        taken: dict[Partition, list[Any]] = {}
        lost: list[Lost] = []
        for (topic, number, fine), run in self._runs(messages):
            if fine:
                self._take(Partition(topic, number), run, taken)
            else:
                for message in run:
                    lost += self._told(message)
        return {
            partition: Polled(
                ConfluentRecords(run),
                self._places[partition].position or 0,
                self.progress(partition)[1],
            )
            for partition, run in taken.items()
        }, lost

    def _runs(self, messages: list[Any]) -> Iterable[tuple[tuple[str, int, bool], list[Any]]]:
        """Yield runs of messages of one partition, errors apart, as ((topic, partition, fine), messages)."""
        topics = {partition.topic for partition in self._places}
        if (
            len(topics) == 1
            and not [message for message in messages if message.error() is not None]
            and len(set(map(_NUMBER, messages))) == 1
        ):  # of one partition, as usual: a third of the time for every message
            yield (next(iter(topics)), messages[0].partition(), True), messages
            return
        for key, run in groupby(messages, _run_of):
            yield key, list(run)

    def _place(self) -> None:
        """Tell librdkafka what flows and from where."""
        flowing = []
        for partition, place in self._places.items():
            place.heard = False
            if place.flowing and place.position is not None:
                flowing.append(self._kafka.TopicPartition(*partition, place.position))
        try:
            self._consumer.assign(flowing)
            self._moved = False
        except self._kafka.KafkaException as error:
            log.warning("Kafka's client did not take what is to be read; again: %s", _text(error))

    def _take(
        self, partition: Partition, run: list[Any], taken: dict[Partition, list[Any]]
    ) -> None:
        place = self._places.get(partition)
        if place is None or place.position is None or not place.flowing or self._moved:
            return  # it is placed again at the next poll, and read from where we stand
        if run[0].offset() < place.position:
            run = [message for message in run if message.offset() >= place.position]
        if run:
            taken.setdefault(partition, []).extend(run)
            place.position = run[-1].offset() + 1
        place.heard = True

    def _told(self, message: Any) -> list[Lost]:
        """Take what librdkafka says in place of a message. Raises SourceError."""
        error, code = message.error(), self._code
        if error.fatal():
            raise SourceError(
                f"Kafka takes this member no longer ({error.str()}). Start the process again; check "
                "that no other one uses the same group_instance_id."
            )
        if error.code() in self._refusals:
            raise self._refused(error.str())
        if error.code() == code._NOT_IMPLEMENTED:  # noqa: SLF001 - librdkafka's local errors begin so
            raise SourceError(
                "A topic is compressed with a codec that this build of confluent-kafka lacks "
                f"({error.str()}). Install its wheel, or compress with another codec."
            )
        partition = Partition(message.topic() or "", message.partition())
        place = self._places.get(partition)
        if place is None or place.position is None or not place.flowing or self._moved:
            if place is None:
                log.warning("Kafka: %s", error.str())
            return []
        if error.code() == code._PARTITION_EOF:  # noqa: SLF001
            # Also past the control records and aborted messages before it.
            place.position = max(place.position, message.offset())
            place.heard = True
            return []
        if error.code() == code._AUTO_OFFSET_RESET:  # noqa: SLF001
            # Such a word survives a new placement; it is about the position that it names.
            return self._lost(partition, place) if message.offset() == place.position else []
        log.warning(
            "Reading %s[%d] from offset %d failed and is tried again: %s",
            *(partition.topic, partition.partition, place.position, error.str()),
        )
        self._moved = True
        time.sleep(RETRY_S)
        return []

    def _lost(self, partition: Partition, place: _Place) -> list[Lost]:
        wanted = place.position or 0
        self._moved = True
        try:
            beginning, end = self._bounds(partition)
        except SourceAwayError as error:  # its position stays, so the next poll meets it again
            log.warning("%s", error)
            return []
        if beginning > wanted:
            place.position = beginning
            return [Lost(partition, wanted, beginning)]
        if end < wanted:
            placed_as = place.identity
            if placed_as is not None and self.identities([partition]).get(partition) != placed_as:
                time.sleep(RETRY_S)  # made again: until whoever claimed it asks, too
                return []
            raise SourceError(
                f"{partition.topic}[{partition.partition}] ends before offset {wanted}, where the "
                "ledger stands: its log was truncated. Restore it, or give the topic a new identity by "
                "creating it again."
            )
        time.sleep(RETRY_S)  # the log has the offset after all: a leader has changed
        return []

    # --- where to read ----------------------------------------------------------------------------

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset."""
        place = self._of(partition)
        place.position, place.identity = offset, self._named.get(partition.topic)
        self._moved = True

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these."""
        for partition in partitions:
            self._of(partition).flowing = False
            self._moved = True

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver again."""
        for partition in partitions:
            self._of(partition).flowing = True
            self._moved = True

    def _of(self, partition: Partition) -> _Place:
        """Return our place in it; a place nobody keeps where it is no longer ours."""
        return self._places.get(partition) or _Place()

    # --- what is known ----------------------------------------------------------------------------

    def beginning(self, partition: Partition) -> int:
        """Return the first offset that the log still holds. Raises SourceAwayError."""
        return self._bounds(partition)[0]

    def _bounds(self, partition: Partition) -> tuple[int, int]:
        """Ask the broker for the first offset and the one after the last. Raises SourceAwayError."""
        try:
            low, high = self._consumer.get_watermark_offsets(
                self._kafka.TopicPartition(*partition), timeout=_ASK_LIMIT_S
            )
        except self._kafka.KafkaException as error:
            raise SourceAwayError(
                f"The broker does not say where {partition.topic}[{partition.partition}] begins "
                f"({_text(error)}). It is asked again; check the broker if this stays."
            ) from error
        return int(low), int(high)

    def progress(self, partition: Partition) -> tuple[int | None, int | None]:
        """Return (position, end of the log) as last seen."""
        place = self._places.get(partition)
        if place is None or place.position is None:
            return None, None
        if not place.heard or self._leaders.get(partition) not in self._up:
            return place.position, None
        _, high = self._consumer.get_watermark_offsets(
            self._kafka.TopicPartition(*partition), cached=True
        )
        return place.position, int(high) if high >= 0 else None

    def _read_statistics(self, text: str) -> None:
        said = _STATISTICS.decode(text)
        self._up = frozenset(
            broker.nodeid
            for broker in said.brokers.values()
            if broker.state == "UP" and broker.nodeid >= 0 and 0 <= broker.rxidle < SILENT_US
        )
        self._leaders = {
            partition: said.topics[partition.topic].partitions[str(partition.partition)].leader
            for partition in self._places
            if partition.topic in said.topics
            and str(partition.partition) in said.topics[partition.topic].partitions
        }

    def _hear_trouble(self, error: Any) -> None:
        """Forget who was up until the next statistics say it again."""
        self._trouble = error.str()
        self._up = frozenset()

    def identity(self, topic: str) -> Identity:
        """Return the identity of the topic's offsets. Raises SourceAwayError while it is unknown.

        An identity made up for the time being would start a second ledger and count all rows again.
        """
        try:
            described = self._consumer.list_topics(topic, timeout=_ASK_LIMIT_S)
            if not described.topics[topic].partitions:
                raise SourceAwayError(
                    f"The broker does not describe {topic} yet. It is asked again."
                )
        except self._kafka.KafkaException as error:
            raise SourceAwayError(
                f"The broker does not describe {topic} ({_text(error)}). It is asked again."
            ) from error
        self._cluster_id = self._cluster_identity or described.cluster_id or "unknown"
        topic_id = self._topic_ids([topic], _ASK_LIMIT_S).get(topic)
        if topic_id is None:
            raise SourceAwayError(f"The broker does not describe {topic} yet. It is asked again.")
        self._named[topic] = Identity(self._cluster_id, topic_id)
        return self._named[topic]

    def identities(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Ask a broker of the client's choice; see `Source`.

        The cluster is that of the last `identity`: a topic id is of one cluster only.
        """
        if self._cluster_id is None:
            return {}
        ids = self._topic_ids(sorted({p.topic for p in partitions}), _CONFIRM_LIMIT_S)
        return {p: Identity(self._cluster_id, ids[p.topic]) for p in partitions if p.topic in ids}

    def _topic_ids(self, topics: list[str], limit_s: float) -> dict[str, str]:
        """Return the ids as kafka-python writes them; "" where the broker has none."""
        from confluent_kafka.admin import AdminClient

        if not self._has_topic_ids:
            return dict.fromkeys(topics, "")
        try:
            if self._asking is None:
                self._asking = AdminClient(self._ask_options, logger=log)
            answers = self._asking.describe_topics(
                self._kafka.TopicCollection(topics), request_timeout=limit_s
            )
        except self._kafka.KafkaException as error:
            log.warning("The broker cannot be asked for its topics: %s", _text(error))
            return {}
        ids = {}
        for topic, answer in answers.items():
            try:
                said = answer.result().topic_id
            except self._kafka.KafkaException as error:
                log.debug("The broker does not describe %s: %s", topic, _text(error))
                continue
            # Both halves come as signed 64-bit numbers.
            high, low = (
                (said.get_most_significant_bits(), said.get_least_significant_bits())
                if said is not None
                else (0, 0)
            )
            topic_id = UUID(int=(high % 2**64) << 64 | low % 2**64)
            ids[topic] = str(topic_id) if topic_id.int else ""
        return ids

    def hint(self, offsets: Mapping[Partition, int]) -> None:
        """Commit to Kafka as a hint for lag tools; a failure only shows there."""
        marks = [self._kafka.TopicPartition(*p, offset) for p, offset in offsets.items()]
        if not marks:
            return
        try:
            self._consumer.commit(offsets=marks, asynchronous=True)
        except self._kafka.KafkaException as error:
            log.debug("Kafka did not take the offsets as a hint: %s", _text(error))

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()
        self._asking = None


_HEADERS, _NUMBER, _TIMESTAMP, _VALUE = map(
    methodcaller, ("headers", "partition", "timestamp", "value")
)


def _run_of(message: Any) -> tuple[str, int, bool]:
    return message.topic(), message.partition(), message.error() is None


def _text(error: Any) -> str:
    """Return librdkafka's words for a KafkaException."""
    said = error.args[0]
    return str(said.str()) if hasattr(said, "str") else str(said)
