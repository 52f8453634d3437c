"""`trimtab doctor`: whether this machine and this configuration are fit to run."""

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from trimtab.clock import now_ms
from trimtab.errors import TrimtabError
from trimtab.settings import Settings

if TYPE_CHECKING:
    from trimtab.store.engine import Store

FIRST_PYTHON, LAST_PYTHON = (3, 11), (3, 13)
CLOCK_APART_MS = 2_000
"""Leases bear this much; see docs/operations.md."""


class Check(Struct, frozen=True):
    """One examined thing. `fine` is None where it does not apply."""

    name: str
    fine: bool | None
    said: str


def examine(settings: Settings) -> list[Check]:
    """Run every check; none of them raises."""
    checks: list[Callable[[Settings], Check]] = [
        _python,
        _client,
        _crc32c,
        _codecs,
        _store,
        _ledger,
        _kafka,
        _clock,
    ]
    return [check(settings) for check in checks]


def _python(_settings: Settings) -> Check:
    version = sys.version_info[:2]
    fine = FIRST_PYTHON <= version <= LAST_PYTHON
    said = platform.python_version()
    return Check("Python", fine, said if fine else f"{said}: use 3.11, 3.12 or 3.13")


def _client(settings: Settings) -> Check:
    """Say what the monitor and the archive read with."""
    name = settings.kafka.client
    try:
        return Check("Kafka client", True, f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        return Check("Kafka client", False, f"{name} is not installed: pip install {name}")


def _crc32c(_settings: Settings) -> Check:
    if importlib.util.find_spec("crc32c"):
        return Check("crc32c", True, importlib.metadata.version("crc32c"))
    said = "missing: Kafka is read ten times slower; pip install 'kafka-python[crc32c]'"
    return Check("crc32c", False, said)


def _codecs(settings: Settings) -> Check:
    """Look for the codecs of whatever reads; kafka-python also writes."""
    if settings.kafka.client == "confluent-kafka":
        return _librdkafka_codecs()
    from kafka import codec

    missing = [
        name for name, there in (("lz4", codec.has_lz4), ("zstd", codec.has_zstd)) if not there()
    ]
    if missing:
        said = f"missing: {', '.join(missing)}; pip install 'trimtab[all]'"
        return Check("compression", False, said)
    snappy = (
        ", snappy"
        if codec.has_snappy()
        else "; not snappy: only a topic compressed with it needs pip install 'kafka-python[snappy]'"
    )
    return Check("compression", True, f"gzip, lz4, zstd{snappy}")


def _librdkafka_codecs() -> Check:
    """Ask the library itself: whoever builds it may leave codecs out."""
    try:
        from confluent_kafka import KafkaException, Producer
    except ImportError:
        return Check("compression", None, "not checked: confluent-kafka is not installed")
    present, missing = [], []
    for codec in ("gzip", "lz4", "zstd", "snappy"):
        try:
            Producer({"bootstrap.servers": "unused:1", "compression.type": codec, "log_level": 0})
            present.append(codec)
        except KafkaException:
            missing.append(codec)
    if missing:
        said = f"this build lacks {', '.join(missing)}: install the wheel of confluent-kafka"
        return Check("compression", False, said)
    return Check("compression", True, ", ".join(present))


def _store(settings: Settings) -> Check:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from trimtab.store import migrate
    from trimtab.store.engine import open_store

    url = make_url(settings.store.url)
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return Check("store", None, f"{shown}: not made yet; the first process makes it")
    store = open_store(settings.store.url)
    try:
        migrate.check(store)
    except TrimtabError as error:
        return Check("store", False, f"{shown}: {error}")
    except SQLAlchemyError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        return Check("store", False, f"{shown}: not reachable: {reason}")
    finally:
        store.close()
    return Check("store", True, f"{shown}, schema {migrate.head()}")


def _ledger(settings: Settings) -> Check:
    """Whether every message, row and label that was read is accounted for."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from trimtab.store import migrate
    from trimtab.store.engine import open_store
    from trimtab.store.overview import ledger_lines

    url = make_url(settings.store.url)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return Check("ledger", None, "not there yet")
    store = open_store(settings.store.url)
    try:
        migrate.check(store)
        lines = ledger_lines(store)
    except (TrimtabError, SQLAlchemyError):
        return Check("ledger", None, "not read: the store cannot be used")
    finally:
        store.close()
    problems = [problem for line in lines for problem in line.problems]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Check("ledger", False, f"out of balance: {problems[0]}{more}; trimtab ledger show")
    return Check("ledger", True, f"balances over {len(lines)} partitions")


def _kafka(settings: Settings) -> Check:
    from trimtab.cli_kafka import topics_of

    try:
        topics = topics_of(settings.kafka)
    except TrimtabError as error:
        return Check("Kafka", False, str(error))
    wanted = {
        *settings.kafka.inference_topics,
        *settings.kafka.label_topics,
        *settings.kafka.resource_topics,
    }
    missing = sorted(wanted - topics)
    said = f"{settings.kafka.bootstrap}, {len(topics)} topics"
    return Check("Kafka", True, f"{said}; not there yet: {', '.join(missing)}" if missing else said)


def _clock(settings: Settings) -> Check:
    """Compare this machine's clock with the database server's: leases and retention compare them too."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from trimtab.store.engine import open_store

    if make_url(settings.store.url).get_backend_name() != "postgresql":
        said = "not checked: an SQLite store is on this machine, so no second clock is at hand"
        return Check("clock", None, said)
    store = open_store(settings.store.url)
    try:
        ahead_ms, within_ms = clock_ahead(store)
    except SQLAlchemyError:
        return Check("clock", None, "not checked: the database server does not answer")
    finally:
        store.close()
    said = f"{ahead_ms:+,d} ms against the database server's, ± {within_ms} ms"
    if abs(ahead_ms) - within_ms <= CLOCK_APART_MS:
        return Check("clock", True, said)
    return Check("clock", False, f"{said}: set both machines' clocks (NTP)")


def clock_ahead(store: "Store") -> tuple[int, int]:
    """Return by how much this machine's clock is ahead of PostgreSQL's, and how exact that is, in ms.

    The server answers between two readings of ours, so half the time between them is the error.
    """
    from sqlalchemy import text

    with store.read() as connection:
        connection.execute(text("SELECT 1"))  # the connection is made before the measurement
        before = now_ms()
        server = connection.scalar(
            text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
        )
        after = now_ms()
    return (before + after) // 2 - int(server or 0), (after - before + 1) // 2 + 1
