"""Producers whose broker goes away."""

import pytest
from kafka.errors import KafkaError

from trimtab.alerts.delivery import KafkaPublisher, Message
from trimtab.monitor.embedded import EmbeddedBroker
from trimtab.sdk.producer import close_producer, make_producer


@pytest.fixture
def broker():
    own = EmbeddedBroker(["t"]).start()
    yield own
    own.stop()


def producer_of(broker):
    options = {k: v for k, v in broker.client.items() if k != "bootstrap_servers"}
    version = options.pop("api_version", None)
    return make_producer(broker.bootstrap, client_id="test", version=version, options=options)


def test_a_producer_that_cannot_send_is_closed_gives_up_and_ends_its_thread(broker):
    producer = producer_of(broker)
    producer.send("t", b"first").get(30)
    broker.stop()
    unsent = producer.send("t", b"second")
    error = close_producer(producer, 0.2)
    assert isinstance(error, KafkaError)
    assert not producer._sender.is_alive()
    assert unsent.failed()
    assert close_producer(producer, 0.2) is None, "it is closed"


def test_a_producer_that_has_sent_everything_closes_without_a_word(broker):
    producer = producer_of(broker)
    sent = producer.send("t", b"only")
    assert close_producer(producer, 30) is None
    assert sent.succeeded()
    assert not producer._sender.is_alive()


def test_the_relay_is_told_what_was_not_sent_and_goes_on(broker, monkeypatch):
    """Its publisher used to raise out of `publish`, because closing the broken producer raised."""
    monkeypatch.setattr("trimtab.alerts.delivery.FLUSH_TIMEOUT_S", 0.5)
    options = {k: v for k, v in broker.client.items() if k != "bootstrap_servers"}
    publisher = KafkaPublisher(broker.bootstrap, options.pop("api_version", None), options)
    message = Message("t", b"k", b"v", [])
    assert publisher.publish([message]) == [None]
    broker.stop()
    (failure,) = publisher.publish([message])
    assert failure is not None
    publisher.close()
