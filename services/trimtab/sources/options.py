"""Client options in kafka-python's names, as librdkafka spells them.

Settings have one spelling (`kafka.options`, `kafka.consumer`), because producers stay on kafka-python
whatever reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trimtab.source import SourceError


def _as_it_is(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _addresses(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(map(str, value))


def _host_name_checked(value: Any) -> str:
    return "https" if value else "none"


_NAMES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "bootstrap_servers": ("bootstrap.servers", _addresses),
    "ssl_check_hostname": ("ssl.endpoint.identification.algorithm", _host_name_checked),
    **{
        name: (dotted, _as_it_is)
        for name, dotted in (
            ("client_id", "client.id"),
            ("client_rack", "client.rack"),
            ("security_protocol", "security.protocol"),
            ("sasl_mechanism", "sasl.mechanism"),
            ("sasl_plain_username", "sasl.username"),
            ("sasl_plain_password", "sasl.password"),
            ("sasl_kerberos_service_name", "sasl.kerberos.service.name"),
            ("ssl_cafile", "ssl.ca.location"),
            ("ssl_certfile", "ssl.certificate.location"),
            ("ssl_keyfile", "ssl.key.location"),
            ("ssl_password", "ssl.key.password"),
            ("ssl_crlfile", "ssl.crl.location"),
            ("ssl_ciphers", "ssl.cipher.suites"),
            ("group_instance_id", "group.instance.id"),
            ("session_timeout_ms", "session.timeout.ms"),
            ("heartbeat_interval_ms", "heartbeat.interval.ms"),
            ("max_poll_interval_ms", "max.poll.interval.ms"),
            ("metadata_max_age_ms", "topic.metadata.refresh.interval.ms"),
            ("allow_auto_create_topics", "allow.auto.create.topics"),
            ("request_timeout_ms", "socket.timeout.ms"),
            ("connections_max_idle_ms", "connections.max.idle.ms"),
            ("reconnect_backoff_ms", "reconnect.backoff.ms"),
            ("reconnect_backoff_max_ms", "reconnect.backoff.max.ms"),
            ("retry_backoff_ms", "retry.backoff.ms"),
            ("receive_buffer_bytes", "socket.receive.buffer.bytes"),
            ("send_buffer_bytes", "socket.send.buffer.bytes"),
            ("fetch_min_bytes", "fetch.min.bytes"),
            ("fetch_max_wait_ms", "fetch.wait.max.ms"),
            ("fetch_max_bytes", "fetch.max.bytes"),
            ("max_partition_fetch_bytes", "max.partition.fetch.bytes"),
            ("check_crcs", "check.crcs"),
        )
    },
}
FIXED = frozenset(
    {
        "group_id",
        "enable_auto_commit",
        "auto_offset_reset",
        "isolation_level",
        "max_poll_records",
    }
)
"""What the source sets itself, whatever the settings say."""
NOT_ASKED = frozenset({"api_version"})
"""librdkafka always asks the broker."""
OF_GROUP = frozenset(
    {
        "group.instance.id",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "max.poll.interval.ms",
        "allow.auto.create.topics",
        "fetch.min.bytes",
        "fetch.wait.max.ms",
        "fetch.max.bytes",
        "max.partition.fetch.bytes",
        "check.crcs",
    }
)
"""Options of consumers only, in librdkafka's names; a client that only asks does not take them."""


def librdkafka_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the options in librdkafka's names; those set to None are left out.

    Raises SourceError that names every option without a translation.
    """
    given = {
        name: value
        for name, value in options.items()
        if value is not None and name not in FIXED | NOT_ASKED
    }
    unknown = sorted(given.keys() - _NAMES.keys())
    if unknown:
        raise SourceError(
            f"confluent-kafka has no option for {', '.join(unknown)} (in kafka.options or "
            'kafka.consumer). Remove it, or set kafka.client = "kafka-python".'
        )
    return {_NAMES[name][0]: _NAMES[name][1](value) for name, value in given.items()}
