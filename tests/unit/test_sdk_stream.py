import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from trimtab import InferenceStream
from trimtab.errors import TrimtabError
from trimtab.events.cloudevents import Event, decode
from trimtab.events.types import Inference, InferenceBatch, Label, Resource
from trimtab.sdk.producer import parse_api_version
from trimtab.sdk.resources import ResourceSampler


class Future:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def add_callback(self, call: Callable[[Any], None]) -> None:
        if self.error is None:
            call(None)

    def add_errback(self, call: Callable[[BaseException], None]) -> None:
        if self.error is not None:
            call(self.error)


class Broker:
    """Stands for a Kafka client: keeps what is sent, fails or blocks when told to."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, bytes, Any]] = []
        self.open = threading.Event()
        self.open.set()
        self.error: BaseException | None = None
        self.closed = False

    def send(self, topic: str, value: bytes, key: bytes, headers: Any) -> Future:
        self.open.wait(10)
        if self.error is None:
            self.messages.append((topic, key, value, headers))
        return Future(self.error)

    def close(self, timeout: float) -> None:
        self.closed = True

    def events(self, topic: str = "trimtab.inference") -> list[Event]:
        return [decode(v, h, "inference") for t, _, v, h in self.messages if t == topic]


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def stream(broker: Broker) -> Iterator[InferenceStream]:
    with InferenceStream("m", "1", producer_factory=lambda: broker, resources_every_s=0) as made:
        yield made


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        threading.Event().wait(0.01)


def test_an_inference_and_its_label_arrive(stream: InferenceStream, broker: Broker) -> None:
    inference_id = stream.log(
        {"x": 1.5}, "yes", scores={"yes": 0.9}, latency_ms=3, arm="champion", traffic_revision=2
    )
    stream.label(inference_id, "no", source="human", time=5)
    assert stream.flush(10)
    (event,) = broker.events()
    assert isinstance(event, Inference)
    assert (event.id, event.model, event.version) == (inference_id, "m", "1")
    assert (event.features, event.prediction, event.arm) == ({"x": 1.5}, "yes", "champion")
    assert broker.events("trimtab.labels") == [
        Label(inference_id=inference_id, model="m", label="no", time=5, source="human")
    ]
    assert broker.messages[0][1] == inference_id.encode()
    assert stream.stats().sent == 2


def test_values_of_numpy_become_plain_and_nan_becomes_missing(
    stream: InferenceStream, broker: Broker
) -> None:
    stream.log(
        {"a": np.float32(1.5), "b": np.int64(3), "c": np.nan, "d": np.array([True])}, np.str_("p")
    )
    assert stream.flush(10)
    (event,) = broker.events()
    assert isinstance(event, Inference)
    assert event.features == {"a": 1.5, "b": 3, "c": None, "d": True}
    assert event.prediction == "p"


def test_a_batch_arrives_whole_or_in_parts(stream: InferenceStream, broker: Broker) -> None:
    count = 25_000
    ids = stream.log_batch(
        {"a": np.arange(count), "b": ["y" * 60] * count}, np.ones(count), latency_ms=[1.0] * count
    )
    assert stream.flush(10)
    events = broker.events()
    assert len(events) > 3
    assert all(isinstance(event, InferenceBatch) for event in events)
    batches = [event for event in events if isinstance(event, InferenceBatch)]
    assert [row for batch in batches for row in batch.ids or []] == ids
    assert [value for batch in batches for value in batch.features["a"]] == list(range(count))
    assert max(len(value) for _, _, value, _ in broker.messages) < 1_000_000
    assert stream.stats().sent == count


def test_attributions_arrive_beside_single_inferences_batches_and_watched_calls(
    stream: InferenceStream, broker: Broker
) -> None:
    stream.log({"a": 1.0}, "p", attributions={"a": np.float32(0.5), "b": np.nan})
    rows = {"a": np.arange(3.0), "c": ["x"] * 3}
    stream.log_batch(rows, attributions={"a": np.array([0.5, np.nan, -1]), "c": [1, None, 2]})
    stream.log_batch(rows, attributions={"a": ["much", 0, 0]})  # type: ignore[dict-item]

    @stream.watch
    def predict(features: dict[str, float]) -> dict[str, Any]:
        return {"prediction": "p", "attributions": {"a": 0.25}}

    predict({"a": 1.0})
    assert stream.flush(10)
    single, batch, watched = broker.events()
    assert isinstance(single, Inference)
    assert isinstance(batch, InferenceBatch)
    assert isinstance(watched, Inference)
    assert single.attributions == {"a": 0.5}
    assert batch.attributions == {"a": [0.5, None, -1], "c": [1, None, 2]}
    assert (watched.prediction, watched.attributions) == ("p", {"a": 0.25})
    assert stream.stats().dropped_by_reason == {"invalid": 1}


def test_nothing_raises_into_the_caller_and_everything_is_counted(
    stream: InferenceStream, broker: Broker
) -> None:
    assert stream.log({"x": [1, 2]})
    assert stream.log({"x": object()})
    stream.log({"x": "y" * 2_000_000})
    stream.log({"x": 1}, scores={"yes": "high"})  # type: ignore[dict-item]
    stream.label("a", {"no": "scalar"})
    assert stream.flush(10)
    stats = stream.stats()
    assert (stats.sent, stats.dropped_by_reason) == (0, {"invalid": 4, "too_large": 1})
    assert broker.messages == []


def test_a_full_queue_drops_and_never_waits(broker: Broker) -> None:
    broker.open.clear()
    with InferenceStream(
        "m", "1", producer_factory=lambda: broker, events_max=10, resources_every_s=0
    ) as stream:
        for index in range(50):
            stream.log({"x": index})
        stats = stream.stats()
        assert (stats.pending, stats.dropped_by_reason) == (10, {"queue_full": 40})
        broker.open.set()
        assert stream.flush(10)
        assert stream.stats().sent == 10


def test_the_bound_in_bytes_holds_too(broker: Broker) -> None:
    broker.open.clear()
    with InferenceStream(
        "m", "1", producer_factory=lambda: broker, bytes_max=12_000, resources_every_s=0
    ) as stream:
        for _ in range(10):
            stream.log({"x": "y" * 3_000})
        assert stream.stats().pending == 3
        broker.open.set()


def test_a_broker_that_is_down_at_first_gets_the_events_later(broker: Broker) -> None:
    attempts: list[int] = []

    def factory() -> Broker:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("no broker")
        return broker

    with InferenceStream("m", "1", producer_factory=factory, resources_every_s=0) as stream:
        stream.log({"x": 1})
        assert stream.flush(10)
    assert len(attempts) == 2
    assert len(broker.messages) == 1


def test_events_that_kafka_refuses_are_counted(stream: InferenceStream, broker: Broker) -> None:
    broker.error = ConnectionError("gone")
    stream.log({"x": 1})
    assert stream.flush(10)
    assert stream.stats().dropped_by_reason == {"send_failed": 1}
    broker.error = None
    stream.log({"x": 1})
    assert stream.flush(10)
    assert stream.stats().sent == 1


def test_after_close_events_are_dropped_and_counted(broker: Broker) -> None:
    stream = InferenceStream("m", "1", producer_factory=lambda: broker, resources_every_s=0)
    stream.log({"x": 1})
    assert stream.close().sent == 1
    assert broker.closed
    stream.log({"x": 1})
    assert stream.close().dropped_by_reason == {"closed": 1}


def test_closing_with_a_dead_broker_ends_in_time_and_counts_what_is_lost() -> None:
    def down() -> Any:
        raise ConnectionError("no broker")

    stream = InferenceStream("m", "1", producer_factory=down, resources_every_s=0)
    stream.log({"x": 1})
    begin_s = time.monotonic()
    assert stream.close(timeout_s=1.0).dropped_by_reason == {"closed": 1}
    assert time.monotonic() - begin_s < 5


def warning_of(caplog: pytest.LogCaptureFixture) -> str:
    (said,) = [
        record.getMessage()
        for record in caplog.records
        if record.levelname == "WARNING" and "were not sent" in record.getMessage()
    ]
    return said


def test_closing_a_stream_that_never_reached_a_broker_says_so_and_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocked = threading.Event()

    def silent() -> Any:  # as the Kafka client of an embedded broker does without api_version
        blocked.wait(30)
        raise ConnectionError("no broker")

    stream = InferenceStream(
        "m", "1", "127.0.0.1:39111", producer_factory=silent, resources_every_s=0
    )
    for index in range(3):
        stream.log({"x": index})
    stats = stream.close(timeout_s=0.1)
    blocked.set()
    assert (stats.sent, stats.dropped_by_reason) == (0, {"closed": 3})
    said = warning_of(caplog)
    assert said.startswith("3 of 3 events of m 1 were not sent: 3 closed.")
    assert "No Kafka broker at 127.0.0.1:39111 has taken anything" in said
    assert 'api_version="2.1"' in said


def test_closing_names_each_reason_for_what_was_not_sent(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    stream = InferenceStream("m", "1", producer_factory=lambda: broker, resources_every_s=0)
    stream.log({"x": 1})
    assert stream.flush(10)
    broker.error = ConnectionError("gone")
    stream.log({"x": 2})
    assert stream.flush(10)
    stream.log({"x": [1, 2]})
    stream.log({"x": "y" * 2_000_000})
    stats = stream.close()
    assert (stats.sent, stats.dropped) == (1, 3)
    said = warning_of(caplog)
    assert said.startswith("3 of 4 events of m 1 were not sent: ")
    for reason in ("1 send_failed", "1 invalid", "1 too_large", "ConnectionError: gone"):
        assert reason in said
    assert "No Kafka broker" not in said


def test_closing_after_everything_was_sent_warns_of_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    stream = InferenceStream("m", "1", producer_factory=lambda: broker, resources_every_s=0)
    stream.log({"x": 1})
    assert stream.close(timeout_s=30).sent == 1
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


def test_resource_events_tell_what_was_sent_and_dropped(broker: Broker) -> None:
    with InferenceStream(
        "m", "1", producer_factory=lambda: broker, resources_every_s=0.05
    ) as stream:
        stream.log({"x": 1})
        stream.log({"x": [1]})
        until(lambda: len(broker.events("trimtab.resources")) > 1)
    last = broker.events("trimtab.resources")[-1]
    assert isinstance(last, Resource)
    assert last.dropped_by_reason == {"invalid": 1}
    assert last.sent_events is not None
    assert last.sent_events >= 1
    assert last.instance.endswith(f"-{os.getpid()}")
    assert last.sample.memory_bytes is not None
    assert last.sample.memory_bytes > 1_000_000


def test_gauges_lie_in_their_ranges() -> None:
    sample = ResourceSampler().sample(queue_depth=3)
    assert 0 <= (sample.cpu_percent or 0) <= 100
    assert 0 < (sample.disk_percent or 0) <= 100
    assert sample.queue_depth == 3
    assert ResourceSampler("/no such path").sample().disk_percent is None


def test_a_watched_function_is_logged_and_keeps_its_answer(
    stream: InferenceStream, broker: Broker
) -> None:
    @stream.watch
    def predict(features: dict[str, float]) -> str:
        return "yes" if features["x"] > 0 else "no"

    @stream.watch(features=lambda x: {"x": x}, answer=lambda result: {"prediction": result[0]})
    def other(x: float) -> list[float]:
        return [2 * x]

    assert predict({"x": 1}) == "yes"
    assert other(2) == [4]
    with pytest.raises(KeyError):
        predict({})
    assert stream.flush(10)
    first, second, third = (event for event in broker.events() if isinstance(event, Inference))
    assert (first.features, first.prediction, first.status) == ({"x": 1}, "yes", "ok")
    assert (second.features, second.prediction) == ({"x": 2}, 4)
    assert (third.status, third.error) == ("error", "KeyError: 'x'")
    assert (first.latency_ms or 0) > 0


def test_a_watched_coroutine_is_logged(stream: InferenceStream, broker: Broker) -> None:
    @stream.watch
    async def predict(**features: float) -> dict[str, Any]:
        return {"prediction": 1, "scores": {"1": 0.7}}

    assert asyncio.run(predict(x=1.0))["prediction"] == 1
    assert stream.flush(10)
    (event,) = broker.events()
    assert isinstance(event, Inference)
    assert (event.features, event.prediction, event.scores) == ({"x": 1.0}, 1, {"1": 0.7})


def test_watching_what_has_no_features_does_not_break_it(
    stream: InferenceStream, broker: Broker
) -> None:
    @stream.watch
    def predict(x: int) -> int:
        return x

    assert predict(3) == 3
    assert stream.stats().dropped_by_reason == {"invalid": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_starts_afresh(broker: Broker) -> None:
    broker.open.clear()
    stream = InferenceStream("m", "1", producer_factory=lambda: broker, resources_every_s=0)
    stream.log({"x": 1})
    child = os.fork()
    if child == 0:
        fresh = stream.stats().pending == 0 and str(os.getpid()) in stream.instance
        os._exit(0 if fresh else 1)
    assert os.waitpid(child, 0)[1] == 0
    broker.open.set()
    assert stream.close().sent == 1


def test_wrong_arguments_of_the_constructor_are_refused() -> None:
    for model, version in (("", "1"), ("m", ""), ("m" * 201, "1"), ("m", 1)):
        with pytest.raises(TrimtabError, match="cannot be used"):
            InferenceStream(model, version)  # type: ignore[arg-type]
    with pytest.raises(TrimtabError, match="must be positive"):
        InferenceStream("m", "1", events_max=0)
    with pytest.raises(TrimtabError, match="no Kafka API version"):
        InferenceStream("m", "1", api_version="two")


def test_versions_are_tuples_to_the_client() -> None:
    assert parse_api_version("2.1") == (2, 1)
    assert parse_api_version(None) is None


def test_the_embedded_broker_takes_events_from_many_threads(embedded_broker: Any) -> None:
    from kafka import KafkaConsumer

    with InferenceStream(
        "m", "1", embedded_broker.bootstrap, api_version="2.1", resources_every_s=0
    ) as stream:
        threads = [
            threading.Thread(target=lambda: [stream.log({"x": i}) for i in range(250)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stream.flush(30)
        assert stream.stats().sent == 1_000
    consumer = KafkaConsumer(
        "trimtab.inference",
        **embedded_broker.client,
        auto_offset_reset="earliest",
    )
    ids: set[str] = set()

    def read() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            for record in records:
                event = decode(record.value, record.headers, "inference")
                assert isinstance(event, Inference)
                ids.add(event.id)
        return len(ids) == 1_000

    try:
        until(read, 30)
    finally:
        consumer.close()
