"""A rebalance that new metadata asks for completes, however short the polls are that drive it."""

import time

import pytest

from trimtab.sources.kafka_python import KafkaPythonSource

pytestmark = pytest.mark.kafka
DEADLINE_S = 30


def poll_until(source, assigned, number):
    deadline = time.monotonic() + DEADLINE_S
    while len(assigned) != number:
        assert time.monotonic() < deadline, f"{len(assigned)} of {number} partitions assigned"
        source.poll(0.001)


def test_a_join_that_outlasts_a_poll_is_completed_by_the_next(kafka_broker, kafka_topic):
    from kafka import KafkaAdminClient

    topic, assigned = kafka_topic(1), set()
    source = KafkaPythonSource(
        {"bootstrap_servers": kafka_broker.bootstrap, "metadata_max_age_ms": 200}, f"g-{topic}"
    )
    source.start([topic], assigned.update, assigned.difference_update)
    poll_until(source, assigned, 1)
    admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
    for partitions in (2, 3, 4):
        admin.create_partitions({topic: partitions})
        poll_until(source, assigned, partitions)
    admin.close()
    source.close()
