"""Where a monitor is when it dies: a trace that outlives `kill -9`, and deaths at points of its transactions.

`watch` runs inside the monitor's process. What it counts lies in a file that is mapped into memory, so it is
there however the process ends; who killed it reads it with `read_trace`.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from trimtab.errors import ConflictError
from trimtab.store.engine import Store

KINDS = ("claim", "flush", "ingest", "joiner", "evaluator", "housekeeping")
"""The write transactions of a monitor, by who writes; `ingest` are those that only tell that it lives."""
PLACES = ("at a statement", "before COMMIT", "after COMMIT")
_WRITING, _STRUCK, _ANSWERS, _REFUSED = (2 * len(KINDS) + i for i in range(4))
_SLOTS = struct.Struct(f"<{2 * len(KINDS) + 4}q")


@dataclass(frozen=True)
class Strike:
    """A point to die at: the `nth` time that a transaction of `kind` comes to `place`."""

    kind: str
    place: str
    nth: int


@dataclass(frozen=True)
class Trace:
    """What a process had done and was doing when it was looked at."""

    commits: dict[str, int]
    inside: tuple[str, ...]
    """The kinds of transactions that it was in, beyond the first statement."""
    writing: int
    """How many threads were in a write transaction, or waited to begin one."""
    struck: bool
    """Whether it died at its `Strike`."""
    answers_lost: int
    refused: int
    """How many of its write transactions a fence has refused."""

    @property
    def at_work(self):
        """Whether it had stored something or was about to."""
        return bool(self.inside) or any(self.commits.values())

    @property
    def doing(self):
        """What it was doing, in words."""
        return f"inside {' and '.join(self.inside)}" if self.inside else "between transactions"


def read_trace(path):
    """Return the trace of a process; an empty one before it has begun."""
    path = Path(path)
    raw = path.read_bytes() if path.exists() else b""
    numbers = _SLOTS.unpack(raw.ljust(_SLOTS.size, b"\0"))
    n = len(KINDS)
    return Trace(
        dict(zip(KINDS, numbers[:n], strict=True)),
        tuple(k for k, inside in zip(KINDS, numbers[n : 2 * n], strict=True) if inside),
        numbers[_WRITING],
        bool(numbers[_STRUCK]),
        numbers[_ANSWERS],
        numbers[_REFUSED],
    )


class _Slots:
    """Numbers in a mapped file."""

    def __init__(self, path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, _SLOTS.size)
        self._map = mmap.mmap(descriptor, _SLOTS.size)
        self._lock = threading.Lock()
        os.close(descriptor)

    def add(self, slot, number):
        with self._lock:
            (value,) = struct.unpack_from("<q", self._map, 8 * slot)
            struct.pack_into("<q", self._map, 8 * slot, value + number)


class _Here(threading.local):
    """The write transaction that a thread is in."""

    writing = False
    kind = ""


def _kind(statement):
    """Whose transaction begins with this statement."""
    thread = threading.current_thread().name.removeprefix("trimtab-")
    if thread in KINDS:
        return thread
    if statement.startswith("INSERT INTO partitions"):
        return "claim"
    is_flush = statement.startswith("UPDATE partitions") and "flush_seq=" in statement
    return "flush" if is_flush else "ingest"


def watch(path, strike=None, lose_answers=None):
    """Trace the transactions of this process into `path`.

    Die at `strike`, if there is one. With `lose_answers` (share of commits, how many at most), a commit is
    done and then looks as if the connection had broken before its answer came.
    """
    slots, here, lock, dice = _Slots(path), _Here(), threading.Lock(), random.Random(os.getpid())
    share, left = lose_answers or (0.0, 0)
    came, reads, real = 0, False, Store.write

    def at(place):
        nonlocal came
        if strike is None or (here.kind, place) != (strike.kind, strike.place):
            return
        came += 1
        if came == strike.nth:
            slots.add(_STRUCK, 1)
            os.kill(os.getpid(), signal.SIGKILL)

    def answer():
        nonlocal left
        with lock:
            # A monitor that cannot write when it starts ends with an error, and is started again by others.
            if not reads or not left or dice.random() >= share:
                return
            left -= 1
        slots.add(_ANSWERS, 1)
        raise OperationalError("COMMIT", {}, Exception("the answer to COMMIT is lost"))

    @event.listens_for(Engine, "before_cursor_execute")
    def statement(_connection, _cursor, text, *_):
        if not here.writing or text.startswith(("BEGIN", "SET ", "PRAGMA")):
            return
        if not here.kind:
            here.kind = _kind(text)
            slots.add(len(KINDS) + KINDS.index(here.kind), 1)
        at("at a statement")

    @contextmanager
    def write(store):
        nonlocal reads
        here.writing, here.kind = True, ""
        slots.add(_WRITING, 1)
        try:
            with real(store) as connection:
                yield connection
                at("before COMMIT")
        except ConflictError:
            slots.add(_REFUSED, 1)
            raise
        finally:
            here.writing = False
            slots.add(_WRITING, -1)
            if here.kind:
                slots.add(len(KINDS) + KINDS.index(here.kind), -1)
        if here.kind:
            slots.add(KINDS.index(here.kind), 1)
            at("after COMMIT")
            reads = reads or here.kind == "claim"
            answer()

    Store.write = write
