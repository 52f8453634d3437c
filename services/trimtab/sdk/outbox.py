"""The bounded queue between a caller's request and the background sender.

An event counts against the bound from `put` until Kafka has acknowledged it or it was given up, so
the bound covers what waits here and what the Kafka client holds (which bounds nothing itself).
"""

import threading
import time
from collections import Counter, deque
from typing import Literal

from msgspec import Struct

DropReason = Literal["queue_full", "too_large", "invalid", "send_failed", "closed"]


class Message(Struct, frozen=True, gc=False):
    """One encoded Kafka message."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    rows: int = 1
    """Events in it: more than one for a batch."""

    @property
    def size(self) -> int:
        """Bytes that count against the bound."""
        return len(self.value) + len(self.key) + 200


class StreamStats(Struct, frozen=True):
    """What a stream has done since its start; `accepted = sent + pending + dropped later`."""

    sent: int
    """Events that Kafka has acknowledged."""
    dropped: int
    dropped_by_reason: dict[str, int]
    pending: int
    """Events that wait or are under way."""


class Outbox:
    """A bounded first-in-first-out queue with counters. Every method may be called by any thread."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._changed = threading.Condition()
        self._queue: deque[Message] = deque()
        self._pending = 0
        self._pending_bytes = 0
        self._sent = 0
        self._dropped: Counter[str] = Counter()

    def put(self, message: Message) -> bool:
        """Add the message, or drop and count it when the bound is reached. Never waits."""
        with self._changed:
            if (
                self._pending + message.rows > self._events_max
                or self._pending_bytes + message.size > self._bytes_max
            ):
                self._dropped["queue_full"] += message.rows
                return False
            self._pending += message.rows
            self._pending_bytes += message.size
            self._queue.append(message)
            if len(self._queue) == 1:
                self._changed.notify_all()
            return True

    def take(self, count: int, timeout_s: float) -> list[Message]:
        """Return up to `count` messages, after waiting up to `timeout_s` for the first."""
        with self._changed:
            if not self._queue:
                self._changed.wait(timeout_s)
            return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    def done(self, message: Message, dropped: DropReason | None = None) -> None:
        """Count a taken message as sent, or as dropped for a reason."""
        with self._changed:
            self._pending -= message.rows
            self._pending_bytes -= message.size
            if dropped is None:
                self._sent += message.rows
            else:
                self._dropped[dropped] += message.rows
            if self._pending == 0:
                self._changed.notify_all()

    def drop(self, reason: DropReason, rows: int = 1) -> None:
        """Count events that never came in."""
        with self._changed:
            self._dropped[reason] += rows

    def give_up(self) -> None:
        """Drop what still waits here; what is under way keeps its own end."""
        with self._changed:
            for message in self._queue:
                self._pending -= message.rows
                self._pending_bytes -= message.size
                self._dropped["closed"] += message.rows
            self._queue.clear()
            self._changed.notify_all()

    def wake(self) -> None:
        """Let `take` return now."""
        with self._changed:
            self._changed.notify_all()

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nothing is pending; False when the time is up."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._pending:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True

    def stats(self) -> StreamStats:
        """Return the counters now."""
        with self._changed:
            return StreamStats(
                self._sent, self._dropped.total(), dict(self._dropped), self._pending
            )
