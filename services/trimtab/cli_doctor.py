"""`trimtab doctor`: whether this machine and this configuration are fit to run."""

import importlib.metadata
import importlib.util
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from trimtab.errors import TrimtabError
from trimtab.settings import Settings

FIRST_PYTHON, LAST_PYTHON = (3, 11), (3, 13)
_CODECS = {"lz4": "lz4", "zstandard": "zstd"}


class Check(Struct, frozen=True):
    """One examined thing. `fine` is None where it does not apply."""

    name: str
    fine: bool | None
    said: str


def examine(settings: Settings) -> list[Check]:
    """Run every check; none of them raises."""
    checks: list[Callable[[Settings], Check]] = [_python, _crc32c, _codecs, _store, _kafka, _clock]
    return [check(settings) for check in checks]


def _python(_settings: Settings) -> Check:
    version = sys.version_info[:2]
    fine = FIRST_PYTHON <= version <= LAST_PYTHON
    said = platform.python_version()
    return Check("Python", fine, said if fine else f"{said}: use 3.11, 3.12 or 3.13")


def _crc32c(_settings: Settings) -> Check:
    if importlib.util.find_spec("crc32c"):
        return Check("crc32c", True, importlib.metadata.version("crc32c"))
    said = "missing: Kafka is read ten times slower; pip install 'kafka-python[crc32c]'"
    return Check("crc32c", False, said)


def _codecs(_settings: Settings) -> Check:
    missing = [name for module, name in _CODECS.items() if not importlib.util.find_spec(module)]
    if not missing:
        return Check("compression", True, "gzip, lz4, zstd")
    return Check("compression", False, f"missing: {', '.join(missing)}; pip install 'trimtab[all]'")


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


def _clock(_settings: Settings) -> Check:
    now = datetime.now(UTC)
    steady = abs(time.time() - now.timestamp()) < 1
    plausible = 2025 <= now.year < 2100
    said = now.isoformat(timespec="seconds")
    fine = steady and plausible
    return Check("clock", fine, said if fine else f"{said}: set the machine's clock (NTP)")
