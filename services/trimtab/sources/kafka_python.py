"""kafka-python 3 as a Source: the default client."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trimtab.source import (
    ASK_LIMIT_MS,
    POLL_FETCH_BYTES,
    RETRY_S,
    SESSION_TIMEOUT_MS,
    Identity,
    Lost,
    Partition,
    Polled,
    SourceAwayError,
    SourceError,
)

log = logging.getLogger(__name__)


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
        self._assign_anew: Callable[[Sequence[Partition]], None] = lambda _: None

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

        def assign_anew(partitions: Sequence[Partition]) -> None:
            on_revoked(partitions)
            park_and_tell(partitions)

        self._assign_anew = assign_anew
        self._consumer.subscribe(wanted, listener=_listener(park_and_tell, on_revoked))

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
        again = self._created_again()
        if again:
            log.warning("Created again, and claimed anew: %s", _listed(again))
            for partition in again:
                self._told.pop(partition.topic, None)
            self._assign_anew(again)
        batches = {}
        for key, records in polled.items():
            if Partition(*key) in again:
                continue  # of which creation they are nobody can tell
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
        from kafka.errors import KafkaError

        try:
            self._consumer.topics()  # the only public call that asks for metadata
        except KafkaError as error:
            log.warning("The broker does not list its topics and is asked again: %r", error)
            return
        if partition in self._created_again():
            return
        position, _ = self.progress(partition)
        raise SourceError(
            f"{partition.topic}[{partition.partition}] ends before offset {position}, where the "
            "ledger stands: its log was truncated. Restore it, or give the topic a new identity by "
            "creating it again."
        )

    def _created_again(self) -> list[Partition]:
        """Return the assigned partitions whose topic is no longer the one they were claimed by.

        The client reads on by the topic's name, from an offset that means nothing in the new log.
        """
        assigned = sorted(Partition(*key) for key in self._consumer.assignment())
        return [
            partition
            for partition in assigned
            if partition.topic in self._told
            and self._known_identity(partition.topic) not in (None, self._told[partition.topic])
        ]

    def _known_identity(self, topic: str) -> Identity | None:
        """Return the identity by the metadata at hand; None while they have none."""
        cluster = self._consumer._cluster  # noqa: SLF001 - no public name for either id
        if not cluster.partitions_for_topic(topic):
            return None
        topic_id = cluster.topic_id(topic)
        return Identity(
            self._cluster_identity or cluster.cluster_id or "unknown",
            str(topic_id) if topic_id is not None and topic_id.int else "",
        )

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset."""
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
            known = self._consumer.partitions_for_topic(topic)
        except KafkaError as error:
            raise SourceAwayError(
                f"The broker does not describe {topic} ({error!r}). It is asked again."
            ) from error
        identity = self._known_identity(topic) if known else None
        if identity is None:
            raise SourceAwayError(f"The broker does not describe {topic} yet. It is asked again.")
        self._told[topic] = identity
        return identity

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


def _listed(partitions: Iterable[Partition]) -> str:
    return ", ".join(f"{p.topic}[{p.partition}]" for p in partitions)


def _key(partition: Partition) -> Any:
    from kafka import TopicPartition

    return TopicPartition(partition.topic, partition.partition)


def _listener(
    on_assigned: Callable[[Sequence[Partition]], None],
    on_revoked: Callable[[Sequence[Partition]], None],
) -> Any:
    from kafka.consumer.subscription_state import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
            on_assigned(sorted(Partition(*key) for key in assigned))

        def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
            on_revoked(sorted(Partition(*key) for key in revoked))

    return Listener()
