"""The choice of a client, its options, and what the fast client does with what librdkafka tells."""

import json
import sys
from concurrent.futures import Future
from uuid import UUID

import pytest
from confluent_kafka import KafkaError, KafkaException, Uuid

from trimtab import cli_doctor
from trimtab.settings import KafkaSettings, Settings
from trimtab.source import Lost, Partition, SourceAwayError, SourceError
from trimtab.sources import open_source
from trimtab.sources.confluent import ConfluentSource
from trimtab.sources.options import librdkafka_options

ONE = Partition("t", 0)


def test_options_have_one_spelling_for_both_clients():
    assert librdkafka_options(
        {
            "bootstrap_servers": ["a:1", "b:2"],
            "api_version": (2, 1),
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_plain_username": "me",
            "sasl_plain_password": "hush",
            "ssl_cafile": "/ca.pem",
            "ssl_check_hostname": False,
            "session_timeout_ms": 6000,
            "group_instance_id": "a",
            "check_crcs": True,
            "client_rack": None,
            "enable_auto_commit": True,  # the ledger's rules stand above the settings
        }
    ) == {
        "bootstrap.servers": "a:1,b:2",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": "hush",
        "ssl.ca.location": "/ca.pem",
        "ssl.endpoint.identification.algorithm": "none",
        "session.timeout.ms": "6000",
        "group.instance.id": "a",
        "check.crcs": "true",
    }


def test_an_option_without_a_translation_is_named():
    with pytest.raises(SourceError, match=r"proxy_url, selector .*kafka-python"):
        librdkafka_options({"selector": "x", "proxy_url": "y", "client_id": "z"})


def test_an_option_that_librdkafka_refuses_is_told_in_its_words():
    kafka = KafkaSettings(client="confluent-kafka", options={"security_protocol": "NONSENSE"})
    with pytest.raises(SourceError, match=r"security\.protocol"):
        open_source(kafka, "g", 10)


def test_a_missing_client_is_told_with_both_ways_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(SourceError, match=r'not installed.*client = "kafka-python"'):
        open_source(KafkaSettings(client="confluent-kafka"), "g", 10)


@pytest.mark.parametrize("client", ["kafka-python", "confluent-kafka"])
def test_doctor_names_the_client_and_its_codecs(client, sqlite_url):
    settings = Settings.model_validate({"store": {"url": sqlite_url}, "kafka": {"client": client}})
    named, codecs = cli_doctor._client(settings), cli_doctor._codecs(settings)
    assert (named.fine, codecs.fine) == (True, True)
    assert named.said.startswith(f"{client} ")
    assert "zstd" in codecs.said


def test_doctor_says_that_the_client_is_not_installed(sqlite_url, monkeypatch):
    settings = Settings.model_validate(
        {"store": {"url": sqlite_url}, "kafka": {"client": "confluent-kafka"}}
    )
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert cli_doctor._codecs(settings).fine is None


# --- what librdkafka tells ------------------------------------------------------------------------


class Message:
    """What the client hands on, of partition `ONE`."""

    def __init__(self, offset, error=None, value=b"v"):
        self._offset, self._error, self._value = offset, error and KafkaError(error), value

    topic = staticmethod(lambda: ONE.topic)
    partition = staticmethod(lambda: ONE.partition)
    timestamp = staticmethod(lambda: (1, 5))
    headers = staticmethod(lambda: None)

    def offset(self):
        return self._offset

    def error(self):
        return self._error

    def value(self):
        return self._value


class Client:
    """librdkafka's consumer as far as a source uses it: a test says what comes at each poll."""

    def __init__(self, bounds=(0, 100)):
        self.bounds, self.batches, self.placed = bounds, [], []

    def assign(self, partitions):
        self.placed.append([(p.topic, p.partition, p.offset) for p in partitions])

    def consume(self, number, timeout):
        return self.batches.pop(0) if number == 1 and self.batches else []

    def get_watermark_offsets(self, partition, timeout=0, *, cached=False):
        return self.bounds

    def list_topics(self, topic, timeout):
        described = type("Topic", (), {"partitions": {0: None}})
        return type("Cluster", (), {"topics": {topic: described}, "cluster_id": "c"})

    def subscribe(self, topics, on_assign, on_revoke):
        self.on_assign = on_assign


class Asked:
    """The client that asks for topic ids; None: the topic is not there."""

    def __init__(self, topic_id=1):
        self.topic_id = topic_id

    def describe_topics(self, topics, request_timeout):
        answer = Future()
        if self.topic_id is None:
            answer.set_exception(
                KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "gone"))
            )
        else:
            answer.set_result(type("Topic", (), {"topic_id": Uuid(-1, self.topic_id)}))
        return {"t": answer}


@pytest.fixture
def source(monkeypatch):
    """A source that reads `ONE` from offset 10, with a scripted client (its `_consumer`)."""
    monkeypatch.setattr("trimtab.sources.confluent.RETRY_S", 0)
    source = ConfluentSource({"bootstrap_servers": "unused:1"}, "g", 100)
    source._consumer.close()
    source._consumer = client = Client()
    source._asking = Asked()
    source.identity("t")
    monkeypatch.setattr(source, "_partitions", lambda topic: 1)
    source.start(["t"], lambda _: None, lambda _: None)
    client.on_assign(client, [type("P", (), {"topic": "t", "partition": 0})])
    source.seek(ONE, 10)
    source.resume([ONE])
    return source


def offsets(polled):
    return [record.offset for record in polled[ONE].records] if ONE in polled else []


def test_pausing_seeking_and_resuming_are_one_placement(source):
    source.poll(0)
    assert source._consumer.placed == [[], [("t", 0, 10)]]
    source.pause([ONE])
    source.seek(ONE, 3)
    source.poll(0)
    source.resume([ONE])
    source.poll(0)
    assert source._consumer.placed[2:] == [[], [("t", 0, 3)]]


def test_a_message_that_cannot_be_read_is_never_skipped(source):
    """librdkafka goes on behind a batch whose checksum is wrong; we read it again."""
    broken = Message(11, KafkaError._BAD_MSG)
    source._consumer.batches = [[Message(10), broken, Message(12), Message(13)], [Message(11)]]
    polled, lost = source.poll(0)
    assert (offsets(polled), polled[ONE].next_offset, lost) == ([10], 11, [])
    polled, _ = source.poll(0)
    assert source._consumer.placed[-1] == [("t", 0, 11)]
    assert offsets(polled) == [11]


def test_the_end_of_the_log_moves_the_position_past_control_records(source):
    source._consumer.batches = [[Message(10), Message(13, KafkaError._PARTITION_EOF)]]
    polled, _ = source.poll(0)
    assert (offsets(polled), polled[ONE].next_offset) == ([10], 13)
    assert source.progress(ONE)[0] == 13


def test_the_end_is_known_while_the_leader_is_up_and_answers(source):
    def statistics(state="UP", idle=1000):
        said = {
            "brokers": {"b": {"nodeid": 1, "state": state, "rxidle": idle}},
            "topics": {"t": {"partitions": {"0": {"leader": 1}}}},
        }
        source._read_statistics(json.dumps(said))

    statistics()
    source.poll(0)
    assert source.progress(ONE) == (10, None), "nothing was heard of this placement"
    source._consumer.batches = [[Message(100, KafkaError._PARTITION_EOF)]]
    source.poll(0)
    assert source.progress(ONE) == (100, 100)
    statistics(state="DOWN")
    assert source.progress(ONE) == (100, None)
    statistics()
    assert source.progress(ONE) == (100, 100)
    statistics(idle=60_000_000)
    assert source.progress(ONE) == (100, None)
    statistics()
    source._hear_trouble(KafkaError(KafkaError._TRANSPORT))
    assert source.progress(ONE) == (100, None)


def test_out_of_range_is_judged_by_where_the_log_begins_and_ends(source):
    out = Message(10, KafkaError._AUTO_OFFSET_RESET)
    source._consumer.batches = [[out]]
    assert source.poll(0) == ({}, []), "the log has the offset after all"
    source._consumer.batches = [[Message(9, KafkaError._AUTO_OFFSET_RESET)]]
    assert source.poll(0) == ({}, []), "about an older placement"
    source._consumer.bounds, source._consumer.batches = (40, 100), [[out]]
    assert source.poll(0) == ({}, [Lost(ONE, 10, 40)])
    source.poll(0)
    assert source._consumer.placed[-1] == [("t", 0, 40)]
    source._consumer.bounds = (0, 39)
    source._consumer.batches = [[Message(40, KafkaError._AUTO_OFFSET_RESET)]]
    with pytest.raises(SourceError, match="truncated"):
        source.poll(0)


@pytest.mark.parametrize("topic_id", [2, None])
def test_a_log_that_ends_too_early_is_not_truncated_when_it_may_be_another(source, topic_id):
    source._consumer.bounds = (0, 5)
    source._consumer.batches = [[Message(10, KafkaError._AUTO_OFFSET_RESET)]]
    source._asking.topic_id = topic_id
    assert source.poll(0) == ({}, [])


def test_identities_are_asked_for_each_time_and_left_out_where_nobody_answers(source):
    (first,) = source.identities([ONE]).values()
    assert first == source.identity("t") == ("c", str(UUID(int=(2**64 - 1) << 64 | 1)))
    source._asking.topic_id = 2
    assert source.identities([ONE])[ONE] not in (first, None)
    source._asking.topic_id = None
    assert source.identities([ONE]) == {}
    with pytest.raises(SourceAwayError, match="does not describe t"):
        source.identity("t")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (KafkaError._NOT_IMPLEMENTED, "codec"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "Grant READ"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "Grant READ"),
    ],
)
def test_what_no_retry_mends_stops_the_reader(source, code, said):
    source._consumer.batches = [[Message(10, code)]]
    with pytest.raises(SourceError, match=said):
        source.poll(0)


def test_headers_are_those_of_the_message(source):
    message = Message(10)
    message.headers = lambda: [("a", b"1"), ("a", None)]
    source._consumer.batches = [[message]]
    (record,) = source.poll(0)[0][ONE].records
    assert (len(record.headers), record.headers[1], list(record.headers)) == (
        *(2, ("a", None)),
        [("a", b"1"), ("a", None)],
    )
    assert ("a", b"1") in record.headers
