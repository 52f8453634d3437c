"""The background thread that hands a stream's messages to Kafka."""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from trimtab.sdk.outbox import Message, Outbox
from trimtab.sdk.producer import close_producer

log = logging.getLogger("trimtab.sdk")

_TAKE_MESSAGES = 500
_TAKE_WAIT_S = 0.25
_BACKOFF_S = (0.5, 10.0)
"""Between attempts to reach a broker: first, and at most."""
_FAILURES_MAX = 20
"""So many failed sends in a row, and the client is made anew."""
_SAY_EVERY_S = 60.0
"""The same trouble is logged at most this often."""


class Sender:
    """Takes messages from an outbox and sends them, until stopped. `report` logs resource use."""

    def __init__(
        self,
        outbox: Outbox,
        producer_factory: Callable[[], Any],
        *,
        every_s: float,
        report: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._producer_factory = producer_factory
        self._every_s = every_s
        self._report = report
        self._producer: Any = None
        self._stopping = threading.Event()
        self._deadline_s = float("inf")
        self._thread = threading.Thread(target=self._run, name="trimtab-stream", daemon=True)
        self._failures = 0
        self._said_s = -_SAY_EVERY_S
        self.reached = False
        """Whether a broker has taken an event since the start."""
        self.last_error: BaseException | None = None
        """What went wrong last, if anything did."""

    def start(self) -> None:
        """Start the thread. Raises RuntimeError while the interpreter shuts down."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send what waits, within the timeout, and end the thread."""
        self._deadline_s = time.monotonic() + timeout_s
        self._stopping.set()
        self._outbox.wake()
        self._thread.join(timeout_s + 0.5)

    def abandon(self) -> None:
        """In a forked child: the thread is not here and the sockets are the parent's."""
        producer = self._producer
        if producer is not None:
            # A closed client does nothing at exit; this one would wait for its missing thread.
            producer._closed = True  # noqa: SLF001 - kafka-python has no way to disown a client

    def _run(self) -> None:
        backoff_s = _BACKOFF_S[0]
        report_s = time.monotonic() + self._every_s
        while not self._over():
            if self._producer is None and not self._connect():
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_S[1])
                if self._stopping.is_set():
                    break  # nobody has answered until now: what waits is counted as dropped
                continue
            backoff_s = _BACKOFF_S[0]
            if self._every_s > 0 and time.monotonic() >= report_s:
                report_s = time.monotonic() + self._every_s
                self._report()
                self._say_drops()
            messages = self._outbox.take(_TAKE_MESSAGES, _TAKE_WAIT_S)
            for message in messages:
                self._deliver(message)
            if not messages and self._stopping.is_set():
                break
        self._disconnect()

    def _over(self) -> bool:
        return self._stopping.is_set() and time.monotonic() >= self._deadline_s

    def _connect(self) -> bool:
        try:
            self._producer = self._producer_factory()
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the thread goes on
            self.last_error = error
            self._say("Kafka cannot be reached (%s). Events wait, then are dropped.", error)
            return False
        # Registered after the client's own handler, so it runs before: what waits is sent first.
        atexit.register(self._at_exit)
        self._failures = 0
        return True

    def _at_exit(self) -> None:
        if not self._stopping.is_set():
            from trimtab.sdk.stream import end_all

            end_all()

    def _deliver(self, message: Message) -> None:
        try:
            future = self._producer.send(
                message.topic, value=message.value, key=message.key, headers=message.headers
            )
        except Exception as error:  # noqa: BLE001 - counted, said, and the next one is tried
            self._failed(message, error)
            if self._failures >= _FAILURES_MAX:
                self._disconnect()
                self._producer = None
                self._failures = 0
            return
        future.add_callback(lambda _: self._sent(message))
        future.add_errback(lambda error: self._failed(message, error))

    def _sent(self, message: Message) -> None:
        self._failures = 0
        self.reached = True
        self._outbox.done(message)

    def _failed(self, message: Message, error: BaseException) -> None:
        self._failures += 1
        self.last_error = error
        self._outbox.done(message, "send_failed")
        self._say("Events could not be sent (%s); they are counted as dropped.", error)

    def _disconnect(self) -> None:
        if self._producer is None:
            return
        left_s = self._deadline_s - time.monotonic() if self._stopping.is_set() else 5.0
        error = close_producer(self._producer, max(left_s, 0.0))
        if error is not None:
            self._say("The Kafka client did not end in time (%s).", error)
        atexit.unregister(self._at_exit)

    def _say_drops(self) -> None:
        stats = self._outbox.stats()
        if stats.dropped:
            self._say("Events were dropped so far: %s.", stats.dropped_by_reason)

    def _say(self, text: str, detail: object) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= _SAY_EVERY_S:
            self._said_s = now_s
            log.warning(text, detail, extra={"action": "stream_trouble"})
