"""Where records come from: the `Source` seam. The clients behind it are in `sources/`.

Offsets live in SQL, so a source starts where it is told (`seek` inside `on_assigned`) and never by
itself. What it promises: records of a partition in the order of their offsets, and for each partition the
offset after the last one it has passed, so that the caller can tell gaps from messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from msgspec import Struct

from trimtab.errors import TrimtabError

POLL_FETCH_BYTES = 2 * 1024 * 1024
SESSION_TIMEOUT_MS = 10_000
MAX_POLL_INTERVAL_MS = 120_000
"""A group that waits for a member to join again gives it up after this; the clients' own five minutes stalled all."""
RETRY_S = 0.2
ASK_LIMIT_MS = 10_000
"""How long a question to the broker may hold up the loop."""
CONFIRM_LIMIT_MS = 1_000
"""The same of the question whether topics are still those that were claimed, which every flush asks."""


def max_poll_interval_ms(session_timeout_ms: object = None) -> int:
    """Return how long a group waits for a member that must join again: clients want no less than the session."""
    session = SESSION_TIMEOUT_MS if session_timeout_ms is None else int(str(session_timeout_ms))
    return max(MAX_POLL_INTERVAL_MS, session)


class SourceError(TrimtabError):
    """The log cannot be read as configured; the text says what to change."""


class SourceAwayError(TrimtabError):
    """The log cannot be asked now; the caller asks again later."""


class UnreadableHeadersError(TrimtabError, ValueError):
    """The headers of one message cannot be read; its value can."""


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


class Identity(NamedTuple):
    """What makes offsets of a topic comparable: the cluster and this creation of the topic."""

    cluster_id: str
    topic_id: str


Headers = Sequence[tuple[str, bytes | None]]


class Record(Protocol):
    """One message; kafka-python's own records have these attributes.

    `timestamp` is the record's, in milliseconds. `headers` may cost more than all else in a message:
    a client may take them apart only when they are looked at.
    """

    @property
    def offset(self) -> int: ...  # noqa: D102
    @property
    def timestamp(self) -> int: ...  # noqa: D102
    @property
    def headers(self) -> Headers: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102


class Columns(Struct, frozen=True):
    """Some records of a partition, taken apart once instead of record by record."""

    offsets: Sequence[int]
    timestamps: Sequence[int]
    """Of the records, in milliseconds."""
    values: list[bytes | None]
    headers: Callable[[], list[Headers]]
    """Makes the headers of all: to be called only where they are needed. UNREADABLE stands for headers
    that cannot be read."""


UNREADABLE: Headers = (("\ufffd", None),)
"""A header of no known name."""


def columns_of(records: Sequence[Record]) -> Columns:
    """Return records as columns, by the client's own short way where it has one."""
    own = getattr(records, "columns", None)
    if own is not None:
        columns: Columns = own()
        return columns
    return Columns(
        [record.offset for record in records],
        [record.timestamp for record in records],
        [record.value for record in records],
        lambda: [_headers_or_mark(record) for record in records],
    )


def _headers_or_mark(record: Record) -> Headers:
    try:
        return record.headers
    except UnreadableHeadersError:
        return UNREADABLE


class Polled(Struct, frozen=True):
    """What one poll brought from one partition."""

    records: Sequence[Record]
    """May make its records when they are looked at; `columns_of` costs a fraction of that."""
    next_offset: int
    """Offset after the last record, past any control records that the source has skipped."""
    end_offset: int | None
    """End of the log as last seen; None while unknown."""


class Lost(Struct, frozen=True):
    """The log has dropped records before they were read: offsets [wanted, beginning)."""

    partition: Partition
    wanted: int
    beginning: int


class Source(Protocol):
    """A log of partitions, shared out among the members of a group."""

    def start(
        self,
        topics: Iterable[str],
        on_assigned: Callable[[Sequence[Partition]], None],
        on_revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        """Join the group. Both callbacks run inside `poll` (or `close`).

        Assigned partitions come paused; `seek` and `resume` start them.
        """

    def poll(self, timeout_s: float) -> tuple[dict[Partition, Polled], list[Lost]]:
        """Wait for records; also keeps the membership alive. Raises SourceError."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset."""

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these; `poll` still keeps the membership alive."""

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver again."""

    def beginning(self, partition: Partition) -> int:
        """Return the first offset that the log still holds. Raises SourceAwayError."""

    def progress(self, partition: Partition) -> tuple[int | None, int | None]:
        """Return (position, end of the log) as last seen, without asking the broker.

        None for what is unknown; the end is unknown while the broker cannot be heard.
        """

    def identity(self, topic: str) -> Identity:
        """Ask the broker for the identity of the topic's offsets. Raises SourceAwayError.

        Not for use inside the callbacks.
        """

    def identities(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Ask the broker, after this call has begun, which creation of their topics these are now.

        Whatever came from `poll` before is of that creation or an earlier one. Left out is what is not
        answered within CONFIRM_LIMIT_MS. Inside `on_revoked`, only for the partitions that it names.
        """

    def hint(self, offsets: Mapping[Partition, int]) -> None:
        """Tell the broker how far we are, for lag tools. Never raises, never waits."""

    def close(self) -> None:
        """Leave the group."""
