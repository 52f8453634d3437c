"""The Source over kafka-python, on the embedded broker."""

import time

import pytest

from trimtab.monitor.embedded import EmbeddedBroker
from trimtab.sdk.producer import make_producer
from trimtab.source import SourceAwayError
from trimtab.sources.kafka_python import KafkaPythonSource


def test_the_end_of_the_log_is_unknown_while_the_broker_is_away() -> None:
    """Else a broker that is away looks like a topic that has fallen silent."""
    broker = EmbeddedBroker().start()
    producer = make_producer(broker.bootstrap, client_id="test", version="2.1")
    producer.send("t", b"x", partition=0).get(10)
    producer.close()
    source = KafkaPythonSource(
        broker.client | {"request_timeout_ms": 20_000}, "g", cluster_identity="here"
    )
    assigned = []
    source.start(["t"], assigned.extend, lambda _: None)
    deadline = time.monotonic() + 60
    while not assigned and time.monotonic() < deadline:
        source.poll(0.2)
    (partition,) = [p for p in assigned if p.partition == 0]
    source.seek(partition, source.beginning(partition))  # never inside the callback
    source.resume(assigned)
    read = 0
    while not read and time.monotonic() < deadline:
        polled, _ = source.poll(0.2)
        read += sum(len(batch.records) for batch in polled.values())
    assert read == 1
    assert source.progress(partition) == (1, 1)
    with pytest.raises(SourceAwayError, match="no-such-topic"):
        source.identity("no-such-topic")
    broker.stop()
    while source.progress(partition)[1] is not None and time.monotonic() < deadline:
        source.poll(0.2)
    assert source.progress(partition) == (1, None)
    source.close()
