"""Short looks at Kafka for commands: does it answer, and what do a topic's events look like."""

import time
from typing import Any

from trimtab.errors import TrimtabError
from trimtab.events.cloudevents import DecodeError, batch_rows, decode, is_arrow
from trimtab.events.types import Inference, InferenceBatch
from trimtab.settings import KafkaSettings


def topics_of(kafka: KafkaSettings, timeout_s: float = 5.0) -> set[str]:
    """Names of the broker's topics. Raises TrimtabError when it does not answer."""
    from kafka import KafkaConsumer
    from kafka.errors import KafkaError

    try:
        consumer = KafkaConsumer(
            **{
                "request_timeout_ms": round(timeout_s * 1000),
                "bootstrap_timeout_ms": round(timeout_s * 1000),
                **kafka.client_options(),
            }
        )
        try:
            return {str(topic) for topic in consumer.topics()}
        finally:
            consumer.close()
    except (KafkaError, OSError, ValueError) as error:
        raise TrimtabError(
            f"Kafka does not answer at {kafka.bootstrap} ({error}). Start a broker, or set "
            "kafka.bootstrap (TRIMTAB_KAFKA__BOOTSTRAP)."
        ) from None


def sample_inferences(
    kafka: KafkaSettings, topic: str, messages: int, wait_s: float
) -> list[Inference]:
    """Return inferences from the start of a topic, at most `messages` events, within `wait_s`.

    Joins no group and commits nothing. Undecodable messages are passed over.
    """
    from kafka import KafkaConsumer, TopicPartition

    if topic not in topics_of(kafka):
        raise TrimtabError(f"There is no topic {topic!r} at {kafka.bootstrap}. Correct the name.")
    options = {**kafka.client_options(), "group_id": None, "enable_auto_commit": False}
    consumer = KafkaConsumer(**options)
    found: list[Inference] = []
    try:
        partitions = [
            TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
        ]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        deadline = time.monotonic() + wait_s
        while len(found) < messages and time.monotonic() < deadline:
            polled = consumer.poll(timeout_ms=500, max_records=messages)
            for record in (record for records in polled.values() for record in records):
                found += _inferences(record)
            if not polled and found:
                break
    finally:
        consumer.close()
    return found[:messages]


def _inferences(record: Any) -> list[Inference]:
    try:
        if is_arrow(record.headers):
            from trimtab.arrow import decode_message as read
        else:
            read = decode
        event = read(record.value, record.headers, "inference")
    except DecodeError:
        return []
    if isinstance(event, InferenceBatch):
        return batch_rows(event)
    return [event] if isinstance(event, Inference) else []
