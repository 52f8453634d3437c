"""Child processes under one parent: start, restart with backoff, stop; logs go to files.

A child ends with its parent, also when the parent is killed: it holds the read end of a pipe whose
write end only the parent has, and `exit_with_parent` ends the child when that pipe closes. This
works on every POSIX system, without privileges.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from trimtab.errors import TrimtabError

PARENT_VARIABLE = "TRIMTAB_EXIT_WITH_STDIN"
_BACKOFF_S = (0.2, 1.0, 2.0, 5.0)
_STEADY_S = 30.0
_LOG_TAIL_BYTES = 4_000


class ProcessFailedError(TrimtabError):
    """A process keeps dying; the text ends with the last lines of its log."""


class Restart(Struct, frozen=True):
    """A child that died and was started again."""

    name: str
    exit_code: int
    log: Path


class _Child(Struct):
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    quick_deaths: int = 0
    restart_at_s: float | None = None


class Supervisor:
    """Named child processes that are kept running until `stop`.

    Call `check` now and then: it starts the dead again, waiting longer after each quick death.
    """

    def __init__(self, log_directory: Path, give_up_after: int = 5) -> None:
        self._directory = log_directory
        self._give_up_after = give_up_after
        self._children: dict[str, _Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start `command` as the child `name`, its output appended to `NAME.log`; returns its pid."""
        self._directory.mkdir(parents=True, exist_ok=True)
        child = _Child(
            command=command,
            environment={**os.environ, **(environment or {}), PARENT_VARIABLE: "1"},
            log=self._directory / f"{name}.log",
        )
        self._children[name] = child
        return self._spawn(child)

    def pids(self) -> dict[str, int]:
        """Process ids of the running children."""
        return {
            name: child.process.pid
            for name, child in self._children.items()
            if child.process is not None and child.process.poll() is None
        }

    def check(self) -> list[Restart]:
        """Start again what has died and is due.

        Raises:
            ProcessFailedError: a child died again and again right after its start.

        """
        restarts = []
        now_s = time.monotonic()
        for name, child in self._children.items():
            if child.process is None or child.process.poll() is None:
                continue
            if child.restart_at_s is None:
                lived_s = now_s - child.started_s
                child.quick_deaths = 0 if lived_s > _STEADY_S else child.quick_deaths + 1
                if child.quick_deaths > self._give_up_after:
                    raise ProcessFailedError(
                        f"{name} ended {child.quick_deaths} times right after its start "
                        f"(exit code {child.process.returncode}). Its log {child.log} ends:\n"
                        f"{tail(child.log)}"
                    )
                step = min(child.quick_deaths, len(_BACKOFF_S) - 1)
                child.restart_at_s = now_s + _BACKOFF_S[step]
            elif now_s >= child.restart_at_s:
                restarts.append(Restart(name, child.process.returncode, child.log))
                self._spawn(child)
        return restarts

    def stop(self, timeout_s: float = 15.0) -> None:
        """End every child, the last started first: SIGTERM, then SIGKILL after `timeout_s`."""
        running = [
            child.process
            for child in reversed(self._children.values())
            if child.process is not None and child.process.poll() is None
        ]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + timeout_s
        for process in running:
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in self._children.values():
            if child.process is not None and child.process.stdin is not None:
                child.process.stdin.close()
        self._children.clear()

    def _spawn(self, child: _Child) -> int:
        if child.process is not None and child.process.stdin is not None:
            child.process.stdin.close()
        with child.log.open("ab") as output:
            child.process = subprocess.Popen(  # noqa: S603 - our own command lines
                list(child.command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(child.environment),
                start_new_session=True,  # Ctrl-C reaches the parent, which stops them in order
            )
        child.started_s = time.monotonic()
        child.restart_at_s = None
        return child.process.pid


def trimtab_command(*arguments: str) -> list[str]:
    """The command line of a trimtab command in this interpreter's environment."""
    return [sys.executable, "-m", "trimtab", *arguments]


def exit_with_parent(descriptor: int = 0) -> None:
    """End this process with SIGTERM when the parent that started it is gone.

    Does nothing unless the parent asked for it (see `Supervisor`).
    """
    if os.environ.get(PARENT_VARIABLE) != "1":
        return

    def wait() -> None:
        # Not through sys.stdin: its lock, held by this thread, would break the shutdown.
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def tail(log: Path, limit_bytes: int = _LOG_TAIL_BYTES) -> str:
    """The end of a log file."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - limit_bytes))
        return file.read().decode(errors="replace")
