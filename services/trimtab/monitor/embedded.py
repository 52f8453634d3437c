"""The embedded broker: librdkafka's mock cluster, reached through confluent-kafka.

It is for trying trimtab out (`trimtab up`, `trimtab demo`) and for quick tests: pip alone installs
it, it starts in milliseconds, and it keeps everything in memory. It runs in the caller's process
(`EmbeddedBroker`) or in a process of its own that outlives a crash of the monitor
(`EmbeddedBrokerProcess`, or `python -m trimtab.monitor.embedded --port-file FILE`, which ends when
its standard input closes).

What it does with kafka-python 3.0.12 on librdkafka 2.16.0, as measured:

- Clients must pass `api_version=(2, 1)`. Without it they find no broker and give up after 30 s.
- Subscribing clients must pass `metadata_max_age_ms=1000`. With the default (5 minutes) 1 start in 5
  lost the race for its topics' metadata and stayed without partitions; with 1000 none of 14 did.
  (On Apache Kafka 4.3 none of 14 did either way.) `EmbeddedBroker.client` has both settings.
- Topics appear with 4 partitions when a producer or a subscription first names them, or at start
  (`topics`). KafkaAdminClient cannot create any (UnknownBrokerIdError).
- Plain and idempotent producers, keys, headers, gzip, lz4 and zstd work. The record carries the
  producer's timestamp; the timestamp in the send result is meaningless (1234).
- Transactions do not: a consumer that meets the commit marker raises CorruptRecordError, with
  `read_committed` or without. `read_committed` is harmless on topics without transactions.
- Groups: one member gets its partitions 3.1 to 3.5 s after it joins (`session_timeout_ms` from 3000
  up; with 1000 never). Its successor waits until the group has forgotten it, after a clean `close`
  as after a kill -9: 2 s with a session of 3000 ms, 5 to 10 s with 6000, 11 s with 10000, more than
  20 s with kafka-python's default. Hence `EmbeddedBroker.group`, with a session of 6000 ms.
  Two members that join together settle at 2 + 2. Later rebalances fail: a member that joins later
  meets InvalidRequestError, and nobody takes the partitions of a member that leaves. So: one member
  per group.
- `offsets_for_times` answers None.
- It keeps the newest 5 MB or 100,000 batches of each partition and drops the oldest silently (of
  8,000 messages of 1 kB the first 2,830 were gone). A reader that fell behind learns of it: with
  `auto_offset_reset="none"` its next poll raises OffsetOutOfRangeError, whose argument maps each
  partition to the offset it wanted, and `beginning_offsets` names the first offset that is left.
- Its cluster id is a memory address, so two starts can share it. `identity` is fresh at each start
  and is what ledgers are keyed by.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from trimtab.errors import TrimtabError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

API_VERSION = (2, 1)
METADATA_MAX_AGE_MS = 1000
SESSION_TIMEOUT_MS = 6000
HEARTBEAT_INTERVAL_MS = 1000
PARTITIONS = 4
START_LIMIT_S = 20.0
STOP_LIMIT_S = 5.0


class EmbeddedBrokerError(TrimtabError):
    """The embedded broker cannot start or is not running."""


class EmbeddedBroker:
    """A broker inside this process, alive between `start` and `stop` or within `with`.

    `topics` exist from the start; others appear on first use. All have 4 partitions.
    """

    def __init__(self, topics: Sequence[str] = ()) -> None:
        self.topics = tuple(topics)
        self._cluster: Any = None
        self._bootstrap = ""
        self._identity = ""

    @property
    def bootstrap(self) -> str:
        """`host:port`. Raises EmbeddedBrokerError when it is not running."""
        return _running(self._bootstrap)

    @property
    def identity(self) -> str:
        """What makes this start's offsets different from any other start's. Raises as `bootstrap`."""
        return _running(self._identity)

    @property
    def client(self) -> dict[str, Any]:
        """The settings every kafka-python client of this broker needs."""
        return client_settings(self.bootstrap)

    @property
    def group(self) -> dict[str, Any]:
        """The settings of a consumer that joins a group on this broker."""
        return group_settings(self.bootstrap)

    def start(self) -> Self:
        """Start the broker; harmless if it runs. Raises EmbeddedBrokerError without confluent-kafka."""
        if self._cluster is not None:
            return self
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError as missing:
            raise EmbeddedBrokerError(
                "The embedded broker needs confluent-kafka. Install trimtab[monitor], or point "
                "trimtab at an Apache Kafka broker."
            ) from missing
        # The mock cluster belongs to this producer and lives as long as it does; log_level 3 keeps
        # librdkafka's notice about the replaced address off the terminal.
        cluster = Producer(
            {"bootstrap.servers": "unused:1", "test.mock.num.brokers": 1, "log_level": 3}
        )
        try:
            brokers = cluster.list_topics(timeout=START_LIMIT_S).brokers.values()
            for topic in self.topics:
                cluster.list_topics(topic, timeout=START_LIMIT_S)
        except KafkaException as failure:
            raise EmbeddedBrokerError(
                f"The embedded broker did not answer ({failure}). Check that this machine lets "
                "processes listen on 127.0.0.1."
            ) from failure
        self._cluster = cluster
        self._bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        self._identity = uuid.uuid4().hex
        return self

    def stop(self) -> None:
        """End the broker; every message is gone. Harmless if it is down."""
        self._cluster = None
        self._bootstrap = self._identity = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class EmbeddedBrokerProcess:
    """The same broker in a process of its own; it ends with `stop`, `with`, or this process.

    A crash of the monitor then leaves messages and consumers' positions in place.
    """

    def __init__(self, topics: Sequence[str] = ()) -> None:
        self.topics = tuple(topics)
        self._process: subprocess.Popen[bytes] | None = None
        self._address: dict[str, str] = {}

    @property
    def bootstrap(self) -> str:
        """`host:port`. Raises EmbeddedBrokerError when it is not running."""
        return _running(self._address.get("bootstrap", ""))

    @property
    def identity(self) -> str:
        """What makes this start's offsets different from any other start's. Raises as `bootstrap`."""
        return _running(self._address.get("identity", ""))

    @property
    def client(self) -> dict[str, Any]:
        """The settings every kafka-python client of this broker needs."""
        return client_settings(self.bootstrap)

    @property
    def group(self) -> dict[str, Any]:
        """The settings of a consumer that joins a group on this broker."""
        return group_settings(self.bootstrap)

    @property
    def pid(self) -> int:
        """The process id. Raises EmbeddedBrokerError when it is not running."""
        if self._process is None:
            raise EmbeddedBrokerError("The embedded broker is not running. Start it first.")
        return self._process.pid

    def start(self) -> Self:
        """Start the process and wait for its address; harmless if it runs.

        Raises EmbeddedBrokerError if it ends at once or says nothing for 20 s.
        """
        if self._process is not None:
            return self
        with tempfile.TemporaryDirectory(prefix="trimtab-broker-") as folder:
            port_file = Path(folder) / "address.json"
            command = [sys.executable, "-m", "trimtab.monitor.embedded"]
            command += ["--port-file", str(port_file)]
            for topic in self.topics:
                command += ["--topic", topic]
            process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
            self._process = process
            deadline = time.monotonic() + START_LIMIT_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise EmbeddedBrokerError(
                        "The embedded broker's process did not start. Run "
                        "`python -m trimtab.monitor.embedded --port-file FILE` to see why."
                    )
                time.sleep(0.02)
            self._address = json.loads(port_file.read_text())
        return self

    def stop(self) -> None:
        """End the process; every message is gone. Harmless if it is down."""
        process, self._process, self._address = self._process, None, {}
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def client_settings(bootstrap: str) -> dict[str, Any]:
    """Keyword arguments with which kafka-python reaches an embedded broker at `bootstrap`."""
    return {
        "bootstrap_servers": bootstrap,
        "api_version": API_VERSION,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }


def group_settings(bootstrap: str) -> dict[str, Any]:
    """`client_settings` and a session short enough that a restarted member soon gets its partitions."""
    return client_settings(bootstrap) | {
        "session_timeout_ms": SESSION_TIMEOUT_MS,
        "heartbeat_interval_ms": HEARTBEAT_INTERVAL_MS,
    }


def _running(value: str) -> str:
    if not value:
        raise EmbeddedBrokerError("The embedded broker is not running. Start it first.")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until standard input closes; the port file then holds bootstrap and identity as JSON."""
    parser = argparse.ArgumentParser(description="trimtab's embedded broker in a process.")
    parser.add_argument("--port-file", type=Path, required=True, help="written once it serves")
    parser.add_argument("--topic", action="append", default=[], help="exists from the start")
    asked = parser.parse_args(arguments)
    try:
        with EmbeddedBroker(asked.topic) as broker:
            address = {"bootstrap": broker.bootstrap, "identity": broker.identity}
            partial = asked.port_file.with_suffix(".partial")
            partial.write_text(json.dumps(address))
            partial.replace(asked.port_file)
            sys.stdout.write(f"{broker.bootstrap}\n")
            sys.stdout.flush()
            # Whoever started it holds the other end of the pipe, so even its sudden death ends
            # this read. Run by hand, Ctrl-C ends it too.
            with contextlib.suppress(KeyboardInterrupt):
                sys.stdin.buffer.read()
    except TrimtabError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
