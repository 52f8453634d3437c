"""`InferenceStream`: a model server's events to Kafka, in the background.

No method but the constructor ever raises into the caller or waits for the network: what cannot be
sent is dropped and counted by reason, the counts go out with every resource event, and one log line
says so.
"""

import atexit
import functools
import inspect
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, ParamSpec, Self, TypeVar, cast

from trimtab.errors import TrimtabError
from trimtab.events.cloudevents import Event, encode_structured, event_key
from trimtab.events.types import (
    NAME_LENGTH_MAX,
    EventTime,
    Inference,
    InferenceBatch,
    Label,
    LabelSource,
    Resource,
    ResourceSample,
    Status,
)
from trimtab.sdk.outbox import DropReason, Message, Outbox, StreamStats
from trimtab.sdk.plain import columns, float_columns, floats, scalar, scalars
from trimtab.sdk.producer import VALUE_BYTES_MAX, make_producer, parse_api_version
from trimtab.sdk.resources import ResourceSampler
from trimtab.sdk.sender import Sender

log = logging.getLogger("trimtab.sdk")

EVENTS_MAX = 50_000
BYTES_MAX = 64 * 1024 * 1024
RESOURCES_EVERY_S = 5.0
EXIT_FLUSH_S = 5.0
"""At exit, what is under way gets this long."""
BATCH_ROWS_MAX = 10_000
_ADVICE = {
    "queue_full": "Events came faster than Kafka took them: raise events_max and bytes_max.",
    "too_large": f"A message holds at most {VALUE_BYTES_MAX:,} bytes: send fewer or shorter values.",
    "invalid": "The log trimtab.sdk at level DEBUG says what was wrong with each invalid event.",
}

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class InferenceStream:
    """Streams the inferences, labels and resource use of one model server.

    `model`, `version`: whose events these are. `bootstrap_servers`: Kafka's "host:port" (a list, or
    with commas). `topic_prefix`: events go to PREFIX.inference, .labels and .resources.
    `api_version`: None for Apache Kafka; the embedded broker of `trimtab up` is reached with "2.1" only,
    at an address that changes at every start. `client`: further kafka-python options,
    such as `security_protocol`. `events_max`, `bytes_max`: bounds on what waits for Kafka; beyond
    them events are dropped. `resources_every_s`: 0 for no resource events. `producer_factory` makes
    the Kafka client; tests give their own.

    Raises TrimtabError for a wrong argument; a broker that is down is no error here.
    May be shared by threads. After a fork the child starts afresh with its first event.
    """

    def __init__(
        self,
        model: str,
        version: str,
        bootstrap_servers: str | list[str] = "127.0.0.1:9092",
        *,
        topic_prefix: str = "trimtab",
        instance: str | None = None,
        api_version: str | tuple[int, ...] | None = None,
        client: dict[str, Any] | None = None,
        events_max: int = EVENTS_MAX,
        bytes_max: int = BYTES_MAX,
        resources_every_s: float = RESOURCES_EVERY_S,
        producer_factory: Callable[[], Any] | None = None,
    ) -> None:
        for what, name in (("model", model), ("version", version)):
            if not isinstance(name, str) or not 1 <= len(name) <= NAME_LENGTH_MAX:
                raise TrimtabError(
                    f"{what} {name!r} cannot be used. Give 1 to {NAME_LENGTH_MAX} characters."
                )
        if events_max < 1 or bytes_max < 1:
            raise TrimtabError("events_max and bytes_max must be positive.")
        self.model = model
        self.version = version
        self.source = f"trimtab/sdk/{model}"
        self.topic_prefix = topic_prefix
        self._instance = instance
        self._bounds = (events_max, bytes_max)
        self._resources_every_s = resources_every_s
        self._producer_factory = producer_factory or functools.partial(
            make_producer,
            bootstrap_servers,
            client_id=f"trimtab-sdk-{model}",
            version=parse_api_version(api_version),
            options=client,
        )
        self._bootstrap = bootstrap_servers
        self._closed = False
        self._begin()
        _live.add(self)

    def _begin(self) -> None:
        """Start with empty queues: at construction, and in a forked child."""
        self.instance = self._instance or f"{socket.gethostname()}-{os.getpid()}"
        self._starting = threading.Lock()
        self._outbox = Outbox(*self._bounds)
        self._sampler = ResourceSampler()
        self._sender: Sender | None = None

    # --- events ---

    def log(
        self,
        features: Mapping[str, Any] | None = None,
        prediction: Any = None,
        *,
        id: str | None = None,  # noqa: A002 - the event's field
        time: EventTime | None = None,
        scores: Mapping[str, float] | None = None,
        latency_ms: float | None = None,
        status: Status = "ok",
        error: str | None = None,
        attributes: Mapping[str, str] | None = None,
        embedding: Sequence[float] | None = None,
        attributions: Mapping[str, float] | None = None,
        input_ref: str | None = None,
        arm: str | None = None,
        served_by: str | None = None,
        traffic_revision: int | None = None,
        sample_rate: float = 1.0,
        resources: ResourceSample | None = None,
        version: str | None = None,
    ) -> str:
        """Send one inference and return its id, which its label will name.

        `id` and `time` default to a new one and now. Values of NumPy are taken as plain ones; NaN
        becomes null. `version` overrides the stream's, for a server with several.
        """
        inference_id = id or uuid.uuid4().hex

        def make() -> Inference:
            return Inference(
                id=inference_id,
                model=self.model,
                version=version or self.version,
                time=_time(time),
                features={name: scalar(value) for name, value in (features or {}).items()},
                prediction=scalar(prediction),
                scores=floats(scores),
                latency_ms=None if latency_ms is None else float(latency_ms),
                status=status,
                error=error,
                attributes=dict(attributes or {}),
                embedding=None if embedding is None else [float(value) for value in embedding],
                attributions=floats(attributions),
                input_ref=input_ref,
                arm=arm,
                served_by=served_by,
                traffic_revision=traffic_revision,
                sample_rate=sample_rate,
                resources=resources,
            )

        self._send("inference", make)
        return inference_id

    def log_batch(
        self,
        features: Mapping[str, Sequence[Any]],
        prediction: Sequence[Any] | None = None,
        *,
        ids: Sequence[str] | None = None,
        time: EventTime | Sequence[EventTime] | None = None,
        scores: Mapping[str, Sequence[float]] | None = None,
        latency_ms: Sequence[float | None] | None = None,
        status: Sequence[Status] | None = None,
        error: Sequence[str | None] | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
        arm: Sequence[str | None] | None = None,
        served_by: Sequence[str | None] | None = None,
        traffic_revision: Sequence[int | None] | None = None,
        sample_rate: float = 1.0,
        version: str | None = None,
        attributions: Mapping[str, Sequence[float | None]] | None = None,
    ) -> list[str]:
        """Send many inferences as columns of equal length; return the rows' ids.

        A batch that is too large for one message is sent as several.
        """
        rows = _length(features, prediction, ids)
        batch_id = uuid.uuid4().hex
        row_ids = list(ids) if ids is not None else [f"{batch_id}#{row}" for row in range(rows)]

        def make(start: int, end: int) -> InferenceBatch:
            part = slice(start, end)
            return InferenceBatch(
                id=batch_id if (start, end) == (0, rows) else f"{batch_id}/{start}",
                model=self.model,
                version=version or self.version,
                time=_times(time, part),
                rows=end - start,
                ids=row_ids[part],
                features=columns(features, part),
                prediction=None if prediction is None else scalars(prediction, part),
                scores=None if scores is None else cast("Any", columns(scores, part)),
                latency_ms=None if latency_ms is None else cast("Any", scalars(latency_ms, part)),
                status=None if status is None else list(status[part]),
                error=None if error is None else list(error[part]),
                attributes={
                    name: list(values[part]) for name, values in (attributes or {}).items()
                },
                arm=None if arm is None else list(arm[part]),
                served_by=None if served_by is None else list(served_by[part]),
                traffic_revision=None if traffic_revision is None else list(traffic_revision[part]),
                sample_rate=sample_rate,
                attributions=None if attributions is None else float_columns(attributions, part),
            )

        for start in range(0, rows, BATCH_ROWS_MAX):
            self._send_part(make, start, min(start + BATCH_ROWS_MAX, rows))
        return row_ids

    def label(
        self,
        inference_id: str,
        label: Any,
        *,
        time: EventTime | None = None,
        revision: int = 0,
        retracted: bool = False,
        source: LabelSource = "unknown",
    ) -> None:
        """Send the truth about an inference. A higher `revision` corrects; `retracted` withdraws."""

        def make() -> Label:
            return Label(
                inference_id=inference_id,
                model=self.model,
                label=scalar(label),
                time=_time(time),
                revision=revision,
                retracted=retracted,
                source=source,
            )

        self._send("labels", make)

    def resources(self, sample: ResourceSample | None = None) -> None:
        """Send what this process uses now, or the given sample, with the stream's counters."""

        def make() -> Resource:
            stats = self._outbox.stats()
            return Resource(
                instance=self.instance,
                model=self.model,
                version=self.version,
                time=_time(None),
                sample=sample or self._sampler.sample(stats.pending),
                sent_events=stats.sent,
                dropped_events=stats.dropped,
                dropped_by_reason=stats.dropped_by_reason,
            )

        self._send("resources", make)

    def watch(
        self,
        predict: Callable[Parameters, Result] | None = None,
        *,
        features: Callable[..., Mapping[str, Any]] | None = None,
        answer: Callable[[Any], Any] | None = None,
    ) -> Any:
        """Decorate a predict function: each call is sent as one inference with its latency.

        `features(*args, **kwargs)` gives the features; by default the first argument if it is a
        mapping, else the keyword arguments. `answer(result)` gives the prediction, or a mapping with
        `prediction` and `scores`; by default the result is taken as either. An exception of the
        function is sent as status "error" and goes on to the caller. Works on coroutines, too.
        """
        if predict is None:
            return functools.partial(self.watch, features=features, answer=answer)

        def record(begin_s: float, args: Any, kwargs: Any, result: Any, error: str | None) -> None:
            latency_ms = (time.perf_counter() - begin_s) * 1000
            try:
                given = (features or _features_of)(*args, **kwargs)
                said = answer(result) if answer and error is None else result
            except Exception as fault:  # noqa: BLE001 - the caller's request must not suffer from watching it
                self._drop("invalid", f"{type(fault).__name__}: {fault}")
                return
            scores = said.get("scores") if isinstance(said, Mapping) else None
            prediction = said.get("prediction") if isinstance(said, Mapping) else said
            self.log(
                given,
                prediction,
                scores=scores,
                latency_ms=latency_ms,
                status="ok" if error is None else "error",
                error=error,
            )

        if inspect.iscoroutinefunction(predict):

            @functools.wraps(predict)
            async def watched_async(*args: Any, **kwargs: Any) -> Any:
                begin_s = time.perf_counter()
                try:
                    result = await predict(*args, **kwargs)
                except Exception as fault:
                    record(begin_s, args, kwargs, None, f"{type(fault).__name__}: {fault}")
                    raise
                record(begin_s, args, kwargs, result, None)
                return result

            return watched_async

        @functools.wraps(predict)
        def watched(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            begin_s = time.perf_counter()
            try:
                result = predict(*args, **kwargs)
            except Exception as fault:
                record(begin_s, args, kwargs, None, f"{type(fault).__name__}: {fault}")
                raise
            record(begin_s, args, kwargs, result, None)
            return result

        return watched

    # --- life ---

    def stats(self) -> StreamStats:
        """Return what was sent and dropped so far, and what waits."""
        return self._outbox.stats()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything logged so far is acknowledged or given up; False after the timeout."""
        return self._outbox.wait_empty(timeout_s)

    def close(self, timeout_s: float = EXIT_FLUSH_S) -> StreamStats:
        """Flush within the timeout, stop the background thread and return the last counts.

        What was not sent is a warning in the log, with the reason and what to do. Events logged later are dropped and counted. Calling it again is harmless.
        """
        if self._closed:
            return self._outbox.stats()
        if self._sender is not None and self._resources_every_s > 0:
            self.resources()  # the last counts
        self._closed = True
        _live.discard(self)
        with self._starting:
            sender = self._sender
        if sender is not None:
            sender.stop(timeout_s)
        self._outbox.give_up()
        stats = self._outbox.stats()
        if stats.dropped or stats.pending:
            log.warning(
                "%d of %d events of %s %s were not sent: %s",
                stats.dropped + stats.pending,
                stats.sent + stats.dropped + stats.pending,
                self.model,
                self.version,
                self._why_unsent(stats, sender),
                extra={"action": "stream_closed"},
            )
        else:
            log.info(
                "The stream of %s %s has ended: %d events sent.",
                self.model,
                self.version,
                stats.sent,
                extra={"action": "stream_closed"},
            )
        return stats

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _why_unsent(self, stats: StreamStats, sender: Sender | None) -> str:
        """Say what kept events from being sent, and what to do about each reason."""
        counts = stats.dropped_by_reason | ({"unconfirmed": stats.pending} if stats.pending else {})
        said = [", ".join(f"{count} {reason}" for reason, count in counts.items()) + "."]
        error = sender.last_error if sender else None
        last = f" ({type(error).__name__}: {error})" if error else ""
        late = {"closed", "unconfirmed", "send_failed"} & counts.keys()
        if late and not (sender and sender.reached):
            said.append(
                f"No Kafka broker at {self._bootstrap} has taken anything{last}. Check "
                "bootstrap_servers; the embedded broker of `trimtab up` needs "
                'api_version="2.1", and its port changes at every start.'
            )
        elif "send_failed" in late:
            said.append(f"Kafka failed{last}. Check the broker and its topics.")
        elif late:
            said.append("The time was up: flush() first, or give close() a longer timeout_s.")
        said += [_ADVICE[reason] for reason in counts if reason in _ADVICE]
        return " ".join(said)

    def _send(self, topic: str, make: Callable[[], Event]) -> bool:
        """Encode and enqueue one event. Returns whether the message was small enough."""
        try:
            event = make()
            value, headers = encode_structured(event, self.source)
            rows = event.rows if isinstance(event, InferenceBatch) else 1
            if len(value) > VALUE_BYTES_MAX:
                if rows == 1:
                    self._drop("too_large", f"an event of {len(value)} bytes")
                return False
            if self._closed or not self._start():
                self._outbox.drop("closed", rows)
                return True
            self._outbox.put(
                Message(f"{self.topic_prefix}.{topic}", event_key(event), value, headers, rows)
            )
        except Exception as fault:  # noqa: BLE001 - never into the caller's request
            self._drop("invalid", f"{type(fault).__name__}: {fault}")
        return True

    def _send_part(self, make: Callable[[int, int], InferenceBatch], start: int, end: int) -> None:
        """Send rows start to end as one message, or halved until each part fits."""
        if not self._send("inference", lambda: make(start, end)) and end - start > 1:
            middle = (start + end) // 2
            self._send_part(make, start, middle)
            self._send_part(make, middle, end)

    def _start(self) -> bool:
        """Start the background thread when it does not run; False when the process is ending."""
        if self._sender is not None:
            return True
        with self._starting:
            if self._sender is None:
                sender = Sender(
                    self._outbox,
                    self._producer_factory,
                    every_s=self._resources_every_s,
                    report=self.resources,
                )
                try:
                    sender.start()
                except RuntimeError:  # no thread starts while the interpreter shuts down
                    return False
                self._sender = sender
        return True

    def _drop(self, reason: DropReason, detail: str) -> None:
        self._outbox.drop(reason)
        log.debug(
            "An event was dropped: %s (%s).", reason, detail, extra={"action": "event_dropped"}
        )


def _time(given: EventTime | None) -> EventTime:
    if given is None:
        return time.time_ns() // 1_000_000
    if isinstance(given, datetime) and given.tzinfo is None:
        raise TrimtabError("A time needs an offset. Give an aware datetime or milliseconds.")
    return given if isinstance(given, datetime) else int(given)


def _times(
    given: EventTime | Sequence[EventTime] | None, part: slice
) -> EventTime | list[EventTime]:
    if given is None or isinstance(given, datetime | int):
        return _time(given)
    return [_time(moment) for moment in given[part]]


def _length(
    features: Mapping[str, Sequence[Any]],
    prediction: Sequence[Any] | None,
    ids: Sequence[str] | None,
) -> int:
    for column in (ids, prediction, *features.values()):
        if column is not None:
            return len(column)
    return 0


def _features_of(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
    if args and isinstance(args[0], Mapping):
        return args[0]
    if kwargs and not args:
        return kwargs
    raise TypeError("the first argument is no mapping of features; give `features=` to watch")


_live: "weakref.WeakSet[InferenceStream]" = weakref.WeakSet()
_abandoned: list[Any] = []
"""Kafka clients a fork left in the child. Kept, so that their destructors never run there."""


def _after_fork() -> None:
    for stream in list(_live):
        sender = stream._sender  # noqa: SLF001 - one module, one class
        if sender is not None:
            _abandoned.append(sender)
            sender.abandon()
        stream._begin()  # noqa: SLF001


def end_all() -> None:
    """Close every open stream within EXIT_FLUSH_S: at exit."""
    deadline_s = time.monotonic() + EXIT_FLUSH_S
    for stream in list(_live):
        stream.close(max(deadline_s - time.monotonic(), 0.0))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(end_all)
