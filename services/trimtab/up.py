"""All of trimtab in one place: `trimtab up` and the demo start their processes through a `Stack`.

Each process is the ordinary command (`trimtab monitor`, `trimtab api` …) with its settings in the
environment, so nothing here is another code path. Without a broker in the settings an embedded one
runs in a process of its own; it is for trying out (see `trimtab.monitor.embedded` for its limits).
"""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec

from trimtab.errors import TrimtabError
from trimtab.monitor.embedded import API_VERSION, EmbeddedBrokerProcess
from trimtab.ports import check_port
from trimtab.processes import Restart, Supervisor, tail, trimtab_command
from trimtab.records import Role
from trimtab.settings import KafkaSettings, Loaded, Settings, as_environment
from trimtab.store.engine import Store, open_store
from trimtab.store.keys import create_key, list_keys, revoke_key
from trimtab.store.migrate import upgrade

PROCESSES = ("serve", "agent", "monitor", "archive", "api")
"""In the order of their start: those that import TensorFlow take longest."""
TOPICS = ("inference", "labels", "resources", "outcomes", "traffic")
KEY_NAME = "up"
PARTITIONS = 4


class Stack:
    """The broker (if embedded) and trimtab's processes; a context manager."""

    def __init__(self, loaded: Loaded) -> None:
        given = loaded.settings
        self._embedded: EmbeddedBrokerProcess | None = None
        if "kafka.bootstrap" not in loaded.origins:
            topics = [given.kafka.topic(name) for name in TOPICS]
            self._embedded = EmbeddedBrokerProcess(topics).start()
            given = given.model_copy(
                update={"kafka": _embedded_kafka(given.kafka, self._embedded)}, deep=True
            )
        self.settings: Settings = given
        given.data_dir.mkdir(parents=True, exist_ok=True)
        self.logs = given.data_dir / "logs"
        self.supervisor = Supervisor(self.logs)
        self.store: Store = open_store(given.store.url)
        upgrade(self.store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def embedded(self) -> bool:
        """Whether the broker is the embedded one."""
        return self._embedded is not None

    @property
    def dashboard(self) -> str:
        """Address of the dashboard."""
        return f"http://{self.settings.api.host}:{self.settings.api.port}"

    @property
    def server(self) -> str:
        """Address of the model server."""
        return f"http://{self.settings.serve.host}:{self.settings.serve.port}"

    def start(self, names: Sequence[str] = PROCESSES) -> None:
        """Start processes by name."""
        environment = as_environment(self.settings)
        for name in names:
            self.supervisor.start(name, trimtab_command(name), environment)

    def key(self, now_ms: int) -> str:
        """A new admin key for the person at this terminal; the one of the last start is revoked."""
        for row in list_keys(self.store):
            if row.name == KEY_NAME and row.revoked_ms is None:
                revoke_key(self.store, row.id, now_ms, by=KEY_NAME)
        _, secret = create_key(self.store, KEY_NAME, Role.ADMIN, "*", now_ms, by=KEY_NAME)
        return secret

    def check(self) -> list[Restart]:
        """Start again what has died; see `Supervisor.check`."""
        return self.supervisor.check()

    def wait_ready(self, name: str, address: str, limit_s: float = 60.0) -> None:
        """Wait until `address` answers 200.

        Raises:
            TrimtabError: it did not within the limit; the text ends with the process's log.

        """
        deadline_s = time.monotonic() + limit_s
        while time.monotonic() < deadline_s:
            self.check()
            try:
                with urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310 - our own http address
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TrimtabError(
            f"{name} did not answer at {address} within {limit_s:.0f} s. Its log "
            f"{self.logs / (name + '.log')} ends:\n{tail(self.logs / (name + '.log'))}"
        )

    def stop(self) -> None:
        """End the processes, then the broker."""
        self.supervisor.stop()
        self.store.close()
        if self._embedded is not None:
            self._embedded.stop()


def _embedded_kafka(kafka: KafkaSettings, broker: EmbeddedBrokerProcess) -> KafkaSettings:
    return kafka.model_copy(
        update={
            "bootstrap": broker.bootstrap,
            "api_version": ".".join(map(str, API_VERSION)),
            "identity": broker.identity,
            "options": kafka.options | _beyond(broker.client, ("bootstrap_servers", "api_version")),
            # Producers refuse a consumer's options.
            "consumer": kafka.consumer | _beyond(broker.group, broker.client),
        }
    )


def _beyond(options: Mapping[str, object], known: Collection[str]) -> dict[str, object]:
    return {key: value for key, value in options.items() if key not in known}


def check_ports(settings: Settings, names: Collection[str] = PROCESSES) -> None:
    """Raise TrimtabError when one of these processes would find its port taken."""
    for name, section in (("api", settings.api), ("serve", settings.serve)):
        if name in names:
            check_port(name, section.host, section.port)


def create_topics(kafka: KafkaSettings) -> list[str]:
    """Create those of our topics that a real broker lacks; returns their names.

    The traffic topic is compacted: only the newest split of each model matters.

    Raises:
        TrimtabError: the broker refuses.

    """
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    wanted = [
        *kafka.inference_topics,
        *kafka.label_topics,
        *kafka.resource_topics,
        *(kafka.topic(name) for name in ("outcomes", "traffic")),
    ]
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, **kafka.options)
    try:
        missing = [topic for topic in dict.fromkeys(wanted) if topic not in admin.list_topics()]
        for topic in missing:
            compacted = topic == kafka.topic("traffic")
            admin.create_topics(
                [
                    NewTopic(
                        topic,
                        num_partitions=1 if compacted else PARTITIONS,
                        replication_factor=-1,
                        topic_configs={"cleanup.policy": "compact"} if compacted else {},
                    )
                ]
            )
    except TopicAlreadyExistsError:
        return create_topics(kafka)  # another process was quicker; see what is left
    except KafkaError as error:
        raise TrimtabError(
            f"Kafka at {kafka.bootstrap} refused to create topics ({error}). Create them yourself: "
            f"{', '.join(wanted)}."
        ) from error
    finally:
        admin.close()
    return missing


def write_pids(stack: Stack, path: Path) -> None:
    """Write the processes' ids as JSON, so that tools (and tests that kill) can find them."""
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode({"parent": os.getpid(), **stack.supervisor.pids()}))
    part.replace(path)
