"""How trimtab's producers are set up: one place, for the SDK and for `trimtab stream`."""

import contextlib
import importlib.util
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from trimtab.errors import TrimtabError
from trimtab.events.cloudevents import MESSAGE_BYTES_MAX

LINGER_MS = 20
"""Waiting this long fills batches; a 20-feature event alone is smaller than its batch's header."""
BATCH_BYTES = 131_072
MAX_BLOCK_MS = 5_000
"""How long a send may wait for a topic's metadata."""
DELIVERY_TIMEOUT_MS = 120_000
"""An event that the broker has not taken after this is given up and counted."""
VALUE_BYTES_MAX = MESSAGE_BYTES_MAX - 65_536
"""The value's share of a message; the rest is room for key, headers and the batch around them."""


def parse_api_version(text: str | tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return kafka-python's version tuple of "2.1"; None lets the client ask the broker.

    The embedded broker needs "2.1".
    Raises TrimtabError when the text is no version.
    """
    if text is None or isinstance(text, tuple):
        return text
    parts = text.split(".")
    if not 2 <= len(parts) <= 3 or not all(part.isdigit() for part in parts):
        raise TrimtabError(f"{text!r} is no Kafka API version. Write one such as 2.1.")
    return tuple(int(part) for part in parts)


def make_producer(
    bootstrap_servers: str | list[str],
    *,
    client_id: str,
    version: str | tuple[int, ...] | None = None,
    options: dict[str, Any] | None = None,
) -> KafkaProducer:
    """Return a producer that waits for all replicas and repeats without duplicates.

    `options` are kafka-python's own and win, such as `security_protocol` and `sasl_*`.
    Raises kafka.errors.KafkaError when no broker answers.
    """
    config: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers,
        "client_id": client_id,
        "acks": "all",
        "linger_ms": LINGER_MS,
        "batch_size": BATCH_BYTES,
        "max_block_ms": MAX_BLOCK_MS,
        "delivery_timeout_ms": DELIVERY_TIMEOUT_MS,
        "max_request_size": MESSAGE_BYTES_MAX,
        "api_version": parse_api_version(version),
        # kafka-python turns idempotence on by itself where the broker's version has it.
        "compression_type": "lz4" if importlib.util.find_spec("lz4") else None,
    }
    return KafkaProducer(**(config | (options or {})))


def close_producer(producer: KafkaProducer, timeout_s: float) -> KafkaError | None:
    """Close within two or three times `timeout_s`, whatever the broker does; return what went wrong.

    kafka-python's own `close` waits until everything is sent; when that takes too long it raises and leaves
    its thread running, which goes on trying. Here such a producer gives up: what it had not sent fails.
    """
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        sender = producer._sender  # noqa: SLF001 - there is no public way to give up
        sender.force_close()
        sender.join(max(timeout_s, 1.0))
        with contextlib.suppress(KafkaError):  # it says once more what it has said
            producer.close(timeout=0)
        return error
    return None
