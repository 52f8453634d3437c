"""A log in memory and a Source that reads it: for tests of whatever consumes partitions.

`MemoryLog` keeps records per partition, may drop the oldest and be made again; each `MemorySource` is one
member whose assignment the test decides, so zombies, rebalances and losses can be arranged to the record.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from trimtab.events.cloudevents import encode_structured
from trimtab.events.types import Inference, InferenceBatch, Label, Resource
from trimtab.source import Identity, Lost, Partition, Polled, Record, SourceAwayError


class MemoryRecord(Struct, frozen=True):
    """One message."""

    offset: int
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None


class MemoryLog:
    """Partitions of records; offsets may be skipped, as transactions do."""

    def __init__(self, cluster_id: str = "memory") -> None:
        self.cluster_id = cluster_id
        self.records: dict[Partition, list[MemoryRecord]] = {}
        self.ends: dict[Partition, int] = {}
        self.beginnings: dict[Partition, int] = {}
        self.creations: dict[str, int] = {}

    def append(
        self,
        partition: Partition,
        value: bytes | None,
        timestamp_ms: int,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> int:
        """Add a message; return its offset."""
        offset = self.ends.get(partition, 0)
        record = MemoryRecord(offset, timestamp_ms, list(headers), value)
        self.records.setdefault(partition, []).append(record)
        self.ends[partition] = offset + 1
        return offset

    def send(
        self,
        partition: Partition,
        event: Inference | InferenceBatch | Label | Resource,
        timestamp_ms: int,
    ) -> int:
        """Add an event in structured mode; return its offset."""
        value, headers = encode_structured(event, "test")
        return self.append(partition, value, timestamp_ms, headers)

    def skip(self, partition: Partition, offsets: int = 1) -> None:
        """Let offsets pass without a message, as control records do."""
        self.ends[partition] = self.ends.get(partition, 0) + offsets

    def drop_before(self, partition: Partition, offset: int) -> None:
        """Drop the oldest records, as retention does."""
        self.beginnings[partition] = offset
        kept = [r for r in self.records.get(partition, []) if r.offset >= offset]
        self.records[partition] = kept

    def make_again(self, topic: str) -> None:
        """Delete the topic and create it anew, empty, under the same name."""
        for kept in (self.records, self.ends, self.beginnings):
            for partition in [p for p in kept if p.topic == topic]:
                del kept[partition]
        self.creations[topic] = self.creations.get(topic, 0) + 1

    def identity(self, topic: str) -> Identity:
        """Return the identity of the topic as it is now."""
        times = self.creations.get(topic, 0)
        return Identity(self.cluster_id, f"{topic}.{times}" if times else topic)


class MemorySource:
    """One member of a group on a MemoryLog. `assign` and `revoke` take effect at the next poll."""

    def __init__(self, log: MemoryLog, poll_records: int = 500) -> None:
        self.log, self.poll_records = log, poll_records
        self.positions: dict[Partition, int] = {}
        self.paused: set[Partition] = set()
        self.hinted: dict[Partition, int] = {}
        self.silent: set[str] = set()
        """Topics whose identity the broker does not tell now."""
        self.asked: list[list[Partition]] = []
        """What `identities` was asked for, question by question."""
        self._assign: list[Partition] = []
        self._revoke: list[Partition] = []
        self._on_assigned: Callable[[Sequence[Partition]], None] = lambda _: None
        self._on_revoked: Callable[[Sequence[Partition]], None] = lambda _: None

    def assign(self, *partitions: Partition) -> None:
        """Give partitions to this member."""
        self._assign += partitions

    def revoke(self, *partitions: Partition) -> None:
        """Take partitions from this member."""
        self._revoke += partitions

    def start(
        self,
        topics: Iterable[str],
        on_assigned: Callable[[Sequence[Partition]], None],
        on_revoked: Callable[[Sequence[Partition]], None],
    ) -> None:
        """Keep the callbacks; partitions come by `assign`."""
        del topics
        self._on_assigned, self._on_revoked = on_assigned, on_revoked

    def poll(self, timeout_s: float) -> tuple[dict[Partition, Polled], list[Lost]]:
        """Return at once what is there, at most `poll_records` per partition."""
        del timeout_s
        if self._revoke:
            revoked, self._revoke = self._revoke, []
            self._on_revoked(revoked)
            for partition in revoked:
                self.positions.pop(partition, None)
        if self._assign:
            assigned, self._assign = self._assign, []
            self.positions |= dict.fromkeys(assigned, 0)
            self.paused |= set(assigned)
            self._on_assigned(assigned)
        batches: dict[Partition, Polled] = {}
        lost: list[Lost] = []
        for partition in sorted(self.positions.keys() - self.paused):
            position = self.positions[partition]
            beginning = self.beginning(partition)
            if position < beginning:
                lost.append(Lost(partition, position, beginning))
                self.positions[partition] = beginning
                continue
            waiting: list[Record] = [
                r for r in self.log.records.get(partition, []) if r.offset >= position
            ]
            end = self.log.ends.get(partition, 0)
            taken = waiting[: self.poll_records]
            after = taken[-1].offset + 1 if len(taken) < len(waiting) else end
            self.positions[partition] = after
            if taken:
                batches[partition] = Polled(taken, after, end)
        return batches, lost

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset."""
        self.positions[partition] = offset

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Deliver nothing from these."""
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Deliver again."""
        self.paused -= set(partitions)

    def beginning(self, partition: Partition) -> int:
        """Return the first offset kept."""
        return self.log.beginnings.get(partition, 0)

    def progress(self, partition: Partition) -> tuple[int | None, int | None]:
        """Return (position, end of the log)."""
        return self.positions.get(partition), self.log.ends.get(partition, 0)

    def identity(self, topic: str) -> Identity:
        """Return the identity of the topic as it is now. Raises SourceAwayError for a silent one."""
        if topic in self.silent:
            raise SourceAwayError(f"{topic} is silent.")
        return self.log.identity(topic)

    def identities(self, partitions: Collection[Partition]) -> dict[Partition, Identity]:
        """Return the identities as they are now, of all topics that are not silent."""
        self.asked.append(sorted(partitions))
        return {p: self.log.identity(p.topic) for p in partitions if p.topic not in self.silent}

    def hint(self, offsets: Mapping[Partition, int]) -> None:
        """Remember the hint."""
        self.hinted |= offsets

    def close(self) -> None:
        """Nothing to leave."""
        self.positions.clear()
