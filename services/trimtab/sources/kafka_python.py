"""kafka-python 3 as a Source: the default client."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from trimtab.source import (
    ASK_LIMIT_MS,
    CONFIRM_LIMIT_MS,
    POLL_FETCH_BYTES,
    RETRY_S,
    SESSION_TIMEOUT_MS,
    Identity,
    Lost,
    Partition,
    Polled,
    SourceAwayError,
    SourceError,
    max_poll_interval_ms,
)

log = logging.getLogger(__name__)

NO_LEADER = -1


def check_crc() -> str | None:
    """Return a warning when kafka-python has no native CRC-32C, else None."""
    if importlib.util.find_spec("crc32c") is not None:
        return None
    return (
        "kafka-python runs without its crc32c extra and reads ten times slower. "
        "Install it: pip install 'kafka-python[crc32c]'."
    )


class KafkaPythonSource:
    """kafka-python 3 as a Source.

    `settings` are client options (`bootstrap_servers`, `api_version`, security …). `cluster_identity`
    replaces the cluster id where the broker has none worth keeping (the embedded one).
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        group: str,
        poll_records: int = 5_000,
        cluster_identity: str | None = None,
    ) -> None:
        from kafka import KafkaConsumer

        warning = check_crc()
        if warning:
            log.warning(warning)
        self._cluster_identity = cluster_identity
        options: dict[str, Any] = {
            "session_timeout_ms": SESSION_TIMEOUT_MS,
            "heartbeat_interval_ms": SESSION_TIMEOUT_MS // 3,
            "max_poll_interval_ms": max_poll_interval_ms(settings.get("session_timeout_ms")),
            "max_partition_fetch_bytes": POLL_FETCH_BYTES,
            **settings,
            # What the ledger rests on is not for the settings to change.
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "max_poll_records": poll_records,
        }
        self._consumer = KafkaConsumer(**options)
        self._told: dict[str, Identity] = {}
        """The identity of each topic as `identity` last told it."""
        self._sought: dict[Partition, Identity | None] = {}
        """The identity told when each partition was last placed: its position is one of that log."""
        self._answers: dict[Partition, Identity] | None = None
        """What was asked for a callback that runs now: on the client's own thread nothing can be."""

    def start(
        self,
        topics: Iterable[str],
        on_assigned: Callable[[Sequence[Partition]], None],
        on_revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        """Join the group. Raises SourceError when a topic does not exist."""
        wanted = list(topics)
        # The embedded broker makes a topic when it is first named; a topic that appears after the
        # subscription would rebalance the group, which that broker does badly.
        missing = [topic for topic in wanted if not self._consumer.partitions_for_topic(topic)]
        if missing:
            log.warning("These topics do not exist yet and are waited for: %s", ", ".join(missing))

        def park_and_tell(partitions: Sequence[Partition]) -> None:
            # Kafka's own offset is only a hint: nothing is read before the ledger said where to.
            for partition in partitions:
                self.seek(partition, 0)
            self.pause(partitions)
            on_assigned(partitions)

        async def ask_and_tell(partitions: Sequence[Partition]) -> None:
            self._answers = await self._ask(partitions)
            try:
                on_revoked(partitions)
            finally:
                self._answers = None

        self._consumer.subscribe(wanted, listener=_listener(park_and_tell, ask_and_tell))

    def poll(self, timeout_s: float) -> tuple[dict[Partition, Polled], list[Lost]]:
        """Wait for records. Raises SourceError for what no retry mends."""
        from kafka import errors

        self._finish_join()
        try:
            polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        except errors.OffsetOutOfRangeError as error:
            return {}, self._lost(error.args[0])
        except errors.LogTruncationError as error:
            for key, diverges in error.divergent_offsets.items():
                position, _ = self.progress(Partition(*key))
                if diverges is None or position is None or position > diverges.offset:
                    self._refuse_truncated(Partition(*key))
                # else the answer is about where we stood before a seek
            return {}, []
        except errors.UnsupportedCodecError as error:
            raise SourceError(
                f"A topic is compressed with a codec this installation lacks ({error}). Install "
                "kafka-python[lz4,zstd,snappy]."
            ) from error
        except (
            errors.TopicAuthorizationFailedError,
            errors.GroupAuthorizationFailedError,
        ) as error:
            raise SourceError(
                f"Kafka refuses access ({error}). Grant READ on the topics and the group."
            ) from error
        except errors.CorruptRecordError as error:
            if "UnicodeDecodeError" not in str(error):
                return self._again(error)
            raise SourceError(
                f"A message has a header whose name is no UTF-8, which kafka-python cannot read ({error}). "
                'Read with the other client, kafka.client = "confluent-kafka": it rejects that message.'
            ) from error
        except errors.KafkaError as error:
            return self._again(error)
        batches = {}
        for key, records in polled.items():
            position, end = self.progress(key)
            after = records[-1].offset + 1
            batches[Partition(*key)] = Polled(records, max(after, position or after), end)
        return batches, []

    @staticmethod
    def _again(error: Exception) -> tuple[dict[Partition, Polled], list[Lost]]:
        """The client retries by itself; what remains is told and tried again at the next poll."""
        log.warning("Reading from Kafka failed and is tried again: %r", error)
        time.sleep(RETRY_S)
        return {}, []

    def _finish_join(self) -> None:
        """Let the client complete a join that an earlier poll had no time for.

        kafka-python 3.0.12 goes on with a join only while it finds that one is needed. Where new
        metadata asked for it, it no longer does once the request is out: if a poll's time then runs
        out before the answer, the member keeps no partition, sends no heartbeat and is evicted.
        """
        coordinator = self._consumer._coordinator  # noqa: SLF001 - no public name
        if coordinator is not None and coordinator.rejoining:
            coordinator.request_rejoin()

    def _lost(self, wanted: Mapping[Any, int]) -> list[Lost]:
        lost = []
        for key, offset in wanted.items():
            try:
                beginning = self.beginning(Partition(*key))
            except SourceAwayError as error:  # its position stays, so the next poll meets it again
                log.warning("%s", error)
                continue
            if beginning <= offset:
                self._refuse_truncated(Partition(*key))
                continue
            self._consumer.seek(key, beginning)
            lost.append(Lost(Partition(*key), offset, beginning))
        return lost

    def _refuse_truncated(self, partition: Partition) -> None:
        """Raise SourceError for a log that ends too early, unless it is of a topic created again."""
        placed_as = self._sought.get(partition)
        if placed_as is not None and self.identities([partition]).get(partition) != placed_as:
            time.sleep(RETRY_S)  # until whoever claimed it asks, too
            return
        position, _ = self.progress(partition)
        raise SourceError(
            f"{partition.topic}[{partition.partition}] ends before offset {position}, where the "
            "ledger stands: its log was truncated. Restore it, or give the topic a new identity by "
            "creating it again."
        )

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset."""
        self._sought[partition] = self._told.get(partition.topic)
        self._consumer.seek(_key(partition), offset)

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these."""
        self._consumer.pause(*map(_key, partitions))

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver again."""
        self._consumer.resume(*map(_key, partitions))

    def beginning(self, partition: Partition) -> int:
        """Return the first offset that the log still holds. Raises SourceAwayError."""
        from kafka.errors import KafkaError

        key = _key(partition)
        try:
            return int(self._consumer.beginning_offsets([key], timeout_ms=ASK_LIMIT_MS)[key])
        except KafkaError as error:
            raise SourceAwayError(
                f"The broker does not say where {partition.topic}[{partition.partition}] begins "
                f"({error!r}). It is asked again; check the broker if this stays."
            ) from error

    def progress(self, partition: Partition) -> tuple[int | None, int | None]:
        """Return (position, end of the log) as last seen."""
        # `position()` would talk to the broker about partitions without one; this only looks.
        state = self._consumer._subscription.assignment.get(_key(partition))  # noqa: SLF001
        if state is None or state.position is None:
            return None, None
        return state.position.offset, state.highwater if self._hears_of(partition) else None

    def _hears_of(self, partition: Partition) -> bool:
        """Whether the partition's leader is connected.

        While it is not, the end seen last says nothing of now: taken for it, a broker that is away would
        look like a topic that has fallen silent, and its windows would be closed.
        """
        leader = self._consumer._cluster.leader_for_partition(_key(partition))  # noqa: SLF001
        return leader is not None and bool(self._consumer._client.connected(leader))  # noqa: SLF001

    def identity(self, topic: str) -> Identity:
        """Return the identity of the topic's offsets. Raises SourceAwayError while it is unknown.

        An identity made up for the time being would start a second ledger and count all rows again.
        """
        from kafka.errors import KafkaError

        try:
            numbers = self._consumer.partitions_for_topic(topic)
            answers = set(self.identities([Partition(topic, n) for n in numbers]).values())
            if len(answers) != 1:
                raise SourceAwayError(
                    f"The brokers do not agree on {topic} yet. They are asked again."
                    if answers
                    else f"The broker does not describe {topic} yet. It is asked again."
                )
            (identity,) = answers
            cluster = self._consumer._cluster  # noqa: SLF001 - no public name
            known = cluster.topic_id(topic)
            if known is not None and _text(known) != identity.topic_id:
                # Made again: its new leaders and epochs are not known yet either.
                self._run(self._wait_for, cluster.request_update(), CONFIRM_LIMIT_MS)
        except KafkaError as error:
            raise SourceAwayError(
                f"The broker does not describe {topic} ({error!r}). It is asked again."
            ) from error
        self._told[topic] = identity
        return identity

    def identities(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Ask each partition's leader which creation of the topic it has; see `Source`."""
        if self._answers is not None:
            return {p: self._answers[p] for p in partitions if p in self._answers}
        from kafka.errors import KafkaError

        try:
            answers: dict[Partition, Identity] = self._run(self._ask, partitions)
        except KafkaError as error:
            log.warning("The brokers cannot be asked for their topics: %r", error)
            return {}
        return answers

    @property
    def _run(self) -> Callable[..., Any]:
        return self._consumer._net.run  # type: ignore[no-any-return] # noqa: SLF001 - no public name

    @property
    def _wait_for(self) -> Callable[[Any, float], Awaitable[Any]]:
        return self._consumer._manager.wait_for  # type: ignore[no-any-return] # noqa: SLF001

    async def _ask(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Ask the leaders for metadata, all at the same time, past the client's own (maybe old) ones."""
        from kafka.errors import KafkaError
        from kafka.protocol.metadata import MetadataRequest

        cluster, manager = self._consumer._cluster, self._consumer._manager  # noqa: SLF001
        led: dict[int, list[Partition]] = {}
        for partition in partitions:
            leader = cluster.leader_for_partition(_key(partition))
            if leader is not None and leader != NO_LEADER:
                led.setdefault(leader, []).append(partition)
        sent = {}
        for leader, theirs in led.items():
            request = MetadataRequest(
                topics=[
                    MetadataRequest.MetadataRequestTopic(name=topic)
                    for topic in sorted({partition.topic for partition in theirs})
                ],
                allow_auto_topic_creation=False,
                include_cluster_authorized_operations=False,
                include_topic_authorized_operations=False,
            )
            try:
                sent[leader] = manager.send(
                    request, self._line_to(leader), request_timeout_ms=CONFIRM_LIMIT_MS
                )
            except KafkaError as error:
                log.debug("Broker %s cannot be asked: %r", leader, error)
        answers: dict[Partition, Identity] = {}
        until_s = time.monotonic() + CONFIRM_LIMIT_MS / 1000
        for leader, future in sent.items():
            try:
                said = await self._wait_for(future, max(0, until_s - time.monotonic()) * 1000)
            except KafkaError as error:
                log.debug("Broker %s does not describe its topics: %r", leader, error)
                continue
            cluster_id = self._cluster_identity or said.cluster_id or "unknown"
            ids = {topic.name: topic.topic_id for topic in said.topics if not topic.error_code}
            answers |= {
                partition: Identity(cluster_id, _text(ids[partition.topic]))
                for partition in led[leader]
                if partition.topic in ids
            }
        return answers

    def _line_to(self, leader: int) -> str:
        """Return the name of a connection of our own: on the other one the answer waits for a fetch."""
        cluster = self._consumer._cluster  # noqa: SLF001 - as the client itself does for coordinators
        broker = cluster.broker_metadata(leader)
        name = f"identity-{leader}"
        if broker is not None:
            own = type(broker)(name, broker.host, broker.port, broker.rack)
            cluster._coordinator_brokers[name] = own  # noqa: SLF001
        return name

    def hint(self, offsets: Mapping[Partition, int]) -> None:
        """Commit to Kafka as a hint for lag tools; a failure only shows there."""
        from kafka.structs import OffsetAndMetadata

        marks = {_key(p): OffsetAndMetadata(offset, "", -1) for p, offset in offsets.items()}
        if marks:
            self._consumer.commit_async(marks, callback=_hinted)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False)


def _hinted(_offsets: object, outcome: object) -> None:
    if isinstance(outcome, Exception):
        log.debug("Kafka did not take the offsets as a hint: %s", outcome)


def _text(topic_id: Any) -> str:
    return str(topic_id) if topic_id is not None and topic_id.int else ""


def _key(partition: Partition) -> Any:
    from kafka import TopicPartition

    return TopicPartition(partition.topic, partition.partition)


def _listener(
    on_assigned: Callable[[Sequence[Partition]], None],
    on_revoked: Callable[[Sequence[Partition]], Awaitable[None]],
) -> Any:
    from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener

    class Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
        async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            on_assigned(sorted(Partition(*key) for key in assigned))

        async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            await on_revoked(sorted(Partition(*key) for key in revoked))

    return Listener()
