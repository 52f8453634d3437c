"""Following the traffic topic: the newest split of each model, in memory.

The topic is compacted and the relay publishes each model's current row again every minute, so a
reader that starts anywhere learns the truth soon. Lower revisions are ignored; an equal revision
renews `valid_until_ms`. Without the topic the last known split holds until it expires.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from trimtab.events.types import Traffic

log = structlog.get_logger(__name__)

_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)


class _Envelope(msgspec.Struct):
    """The part of a CloudEvent that a follower needs."""

    data: Traffic


class TrafficTable:
    """The current split of each model. Thread-safe; readers never wait for Kafka.

    A newer split takes effect once `settled` says that its arms can answer (or have failed for
    good); until then the one before it holds, so that loading a challenger is not counted against it.
    """

    def __init__(
        self,
        on_taken: Callable[[Traffic], None] | None = None,
        settled: Callable[[Traffic], bool] | None = None,
    ) -> None:
        self._rows: dict[str, Traffic] = {}
        self._coming: dict[str, Traffic] = {}
        self._lock = threading.Lock()
        self._on_taken = on_taken
        self._settled = settled or (lambda _: True)

    def current(self, model: str) -> Traffic | None:
        """The split of `model` in effect, or None while none is known."""
        coming = self._coming.get(model)
        if coming is not None and self._settled(coming):
            with self._lock:
                if self._coming.get(model) is coming:  # else a newer one came meanwhile
                    self._rows[model] = coming
                    del self._coming[model]
        return self._rows.get(model)

    def models(self) -> list[str]:
        """Models with a known split."""
        return sorted(self._rows)

    def offer(self, traffic: Traffic) -> bool:
        """Take a split unless a newer one is known. Returns whether it was taken."""
        with self._lock:
            now = self._rows.get(traffic.model)
            newest = self._coming.get(traffic.model, now)
            if not traffic.arms or (newest is not None and traffic.revision < newest.revision):
                return False
            if now is None or now.revision == traffic.revision:
                self._rows[traffic.model] = traffic  # the first one, or a renewal
            else:
                self._coming[traffic.model] = traffic
        if self._on_taken:
            self._on_taken(traffic)
        return True


def decode_traffic(value: bytes | None) -> Traffic | None:
    """The split in a message of the traffic topic; None for a tombstone or a foreign message."""
    if not value:
        return None
    try:
        return msgspec.json.decode(value, type=_Envelope).data
    except msgspec.DecodeError:
        log.warning("unreadable traffic message ignored", action="traffic_unreadable")
        return None


class TrafficFollower:
    """A background thread that reads the traffic topic into a table, for ever."""

    def __init__(self, table: TrafficTable, topic: str, consumer: Callable[[], Any]) -> None:
        self._table = table
        self._topic = topic
        self._consumer = consumer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic-follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop following and wait for the thread."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._follow()
                failures = 0
            except Exception as error:  # noqa: BLE001 - any client error means: say so, try again
                wait_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                log.warning(
                    "cannot read the traffic topic; the last known split holds",
                    action="traffic_unavailable",
                    topic=self._topic,
                    error=str(error),
                    retry_s=wait_s,
                )
                self._stop.wait(wait_s)

    def _follow(self) -> None:
        consumer = self._consumer()
        try:
            partitions = _assign_from_start(consumer, self._topic)
            known = len(partitions)
            while not self._stop.is_set():
                for records in consumer.poll(timeout_ms=500).values():
                    self._take(records)
                if known == 0:  # the topic appears with its first message
                    self._stop.wait(0.5)
                    known = len(_assign_from_start(consumer, self._topic))
        finally:
            consumer.close()

    def _take(self, records: Iterable[Any]) -> None:
        for record in records:
            traffic = decode_traffic(record.value)
            if traffic is not None:
                self._table.offer(traffic)


def _assign_from_start(consumer: Any, topic: str) -> list[Any]:
    """Assign all partitions of `topic` from their beginning, without a consumer group."""
    from kafka import TopicPartition

    partitions = [
        TopicPartition(topic, number)
        for number in sorted(consumer.partitions_for_topic(topic) or ())
    ]
    if partitions:
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
    return partitions
