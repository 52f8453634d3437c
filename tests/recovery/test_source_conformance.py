"""Both clients behind the Source seam pass the suite that ships, on Apache Kafka and on the embedded broker."""

import tempfile
from pathlib import Path

import pytest
from kafka.codec import has_snappy

from trimtab.monitor.embedded import API_VERSION, EmbeddedBroker, group_settings
from trimtab.settings import KafkaSettings
from trimtab.sources import open_source
from trimtab.testing.source_suite import (
    BasicSuite,
    Partition,
    Reader,
    SourceRig,
    SourceSuite,
    drive,
)

CLIENTS = ("kafka-python", "confluent-kafka")


def rig_of(broker, client, **kafka):
    api_version = API_VERSION if "identity" in kafka else None

    def opened(group, consumer):
        settings = KafkaSettings(
            **{**kafka, "bootstrap": broker.bootstrap, "client": client}
            | {"consumer": kafka.get("consumer", {}) | consumer}
        )
        return open_source(settings, group, 500)

    lacks_snappy = client == "kafka-python" and not has_snappy()
    return SourceRig(
        broker,
        opened,
        api_version=api_version,
        creates_topics=api_version is None,
        unreadable=frozenset({"snappy"} if lacks_snappy else ()),
    )


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


@pytest.mark.slow
class TestOnKafka(SourceSuite):
    @pytest.fixture
    def rig(self, kafka_broker, client):
        rig = rig_of(kafka_broker, client)
        yield rig
        rig.close()

    @pytest.fixture
    def own_rig(self, kafka_requirements, client):
        with tempfile.TemporaryDirectory(prefix="trimtab-kafka-") as folder:
            with kafka_requirements.KafkaBroker(Path(folder)) as broker:
                rig = rig_of(broker, client)
                yield rig
                rig.close()

    def test_both_clients_tell_the_same_identity(self, kafka_broker, rig):
        """Else the other client would begin a second ledger and count all rows again."""
        topic = rig.topic()
        told = set()
        for name in CLIENTS:
            other = rig_of(kafka_broker, name)
            reader = Reader(other.open(f"{topic}-{name}"), topic)
            drive([reader], lambda one=reader: bool(one.assigned), "an assignment")
            told.add(reader.source.identity(topic))
            other.close()
        assert len(told) == 1

    def test_members_of_both_clients_share_a_group(self, kafka_broker, rig, client):
        topic = rig.topic()
        other_rig = rig_of(kafka_broker, next(name for name in CLIENTS if name != client))
        one = Reader(rig.open(topic), topic)
        drive([one], lambda: len(one.assigned) == 4, "all partitions")
        two = Reader(other_rig.open(topic), topic)
        drive([one, two], lambda: len(one.assigned) == len(two.assigned) == 2, "2 + 2 partitions")
        assert one.assigned | two.assigned == {Partition(topic, n) for n in range(4)}
        other_rig.close()


@pytest.mark.slow
class TestOnTheEmbeddedBroker(BasicSuite):
    @pytest.fixture
    def rig(self, client):
        with EmbeddedBroker() as broker:
            group = group_settings(broker.bootstrap)
            own = {"bootstrap_servers", "api_version"}
            rig = rig_of(
                broker,
                client,
                api_version=".".join(map(str, API_VERSION)),
                identity=broker.identity,
                consumer={k: v for k, v in group.items() if k not in own},
            )
            yield rig
            rig.close()

    @pytest.fixture
    def own_rig(self, rig):
        return rig
