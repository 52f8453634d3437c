"""Header names that are no UTF-8, which any C or Go producer may send."""

import time

import pytest
from kafka import KafkaProducer

from trimtab.monitor.decode import decode_records
from trimtab.settings import KafkaSettings
from trimtab.source import UNREADABLE, Partition, SourceError, columns_of
from trimtab.sources import open_source

pytestmark = pytest.mark.kafka
DEADLINE_S = 60


class Odd(str):
    """A header's name as another language's client would send it."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def reading(broker, topic, client):
    """Give what polls bring; the topic's one message has an odd header."""
    source = open_source(KafkaSettings(bootstrap=broker.bootstrap, client=client), topic, 100)
    assigned: list[Partition] = []
    source.start([topic], assigned.extend, lambda _: None)
    deadline = time.monotonic() + DEADLINE_S
    placed = False
    try:
        while time.monotonic() < deadline:
            polled, _ = source.poll(0.2)
            if assigned and not placed:
                placed = True
                for partition in assigned:
                    source.seek(partition, source.beginning(partition))
                source.resume(assigned)
            for batch in polled.values():
                yield batch.records
    finally:
        source.close()


@pytest.fixture
def odd_topic(kafka_broker, kafka_topic):
    topic = kafka_topic(1, "odd")
    producer = KafkaProducer(bootstrap_servers=kafka_broker.bootstrap)
    producer.send(topic, b'{"id":"a","model":"m"}', headers=[(Odd("name"), b"x")]).get(30)
    producer.close()
    return topic


def test_the_fast_client_rejects_the_one_message(kafka_broker, odd_topic):
    records = next(reading(kafka_broker, odd_topic, "confluent-kafka"))
    # The client tells of such a name once, and Python misses that in code that has run often.
    for _ in range(100):
        assert columns_of(records).headers() == [UNREADABLE]
        (reject,) = decode_records(records, "inference", odd_topic, {}).rejects
        assert (reject.reason, reject.record) == ("bad_utf8", 0)
        (reject,) = decode_records(list(records), "inference", odd_topic, {}).rejects
        assert (reject.reason, reject.record) == ("bad_utf8", 0)


def test_kafka_python_says_what_to_do(kafka_broker, odd_topic):
    with pytest.raises(SourceError, match=r"kafka\.client = .confluent-kafka."):
        next(reading(kafka_broker, odd_topic, "kafka-python"))
