"""`trimtab archive`: a consumer group of its own that writes inferences and labels to Parquet.

poll → decode → collect per partition → files on disk → manifest and offset in one transaction. What
cannot be decoded is not archived; the monitor counts and keeps it.

Whatever goes wrong with a partition, its memory is dropped and, while it is still ours, it is claimed
again and read from its stored offset. While the store or the disk is away nothing is held in memory,
and polling goes on so that the group keeps us.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from trimtab import logs, structs
from trimtab.archive.writer import Pending, write_files
from trimtab.arrow import decode_message
from trimtab.clock import now_ms
from trimtab.errors import ConflictError
from trimtab.events.cloudevents import DecodeError, Role, batch_rows
from trimtab.events.types import Inference, InferenceBatch, Label
from trimtab.identities import Identities
from trimtab.settings import Settings
from trimtab.source import Lost, Partition, Polled, Record, Source, SourceAwayError
from trimtab.sources import open_source
from trimtab.store.archive import commit_files
from trimtab.store.engine import Store, open_store
from trimtab.store.leases import owner_name
from trimtab.store.ledger import Advance, Claim, Sight, claim, seen
from trimtab.store.migrate import upgrade

log = logs.get("archive")

CONSUMER = "archive"
_POLL_S = 0.5
_POLL_RECORDS = 5_000
_SEEN_EVERY_S = 2.0
_RETRY_S = 1.0
_FLUSH_BYTES = 32 * 1024 * 1024
"""A partition with so much in memory is committed before its time."""


class Archive:
    """Collects what its partitions bring and commits it file by file."""

    def __init__(
        self,
        store: Store,
        source: Source,
        directory: Path,
        roles: dict[str, Role],
        *,
        owner: str,
        flush_rows: int,
        flush_s: float,
    ) -> None:
        self._store = store
        self._source = source
        self._directory = directory
        self._roles = roles
        self._owner = owner
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._assigned_now: set[Partition] = set()
        self._claim_at_s = 0.0
        self._claims: dict[Partition, Claim] = {}
        self._pending: dict[Partition, Pending] = {}
        self._seen_s = 0.0
        self._identities = Identities(source, time.monotonic)
        self._full: set[Partition] = set()
        """Partitions that are paused, because much waits until their identity is confirmed."""

    def start(self) -> None:
        """Join the group."""
        self._source.start(self._roles, self._assigned, self._revoked)

    def step(self) -> int:
        """Poll once, then commit what is due. Returns the messages read."""
        self._claim_due()
        batches, losses = self._source.poll(_POLL_S)
        for loss in losses:
            self._lose(loss)
        messages = 0
        for partition, polled in batches.items():
            if partition in self._claims:
                messages += len(polled.records)
                self._collect(partition, polled)
        self._flush_due()
        self._show_life()
        return messages

    def close(self) -> None:
        """Commit what is collected and leave the group."""
        self._flush_all(list(self._pending))
        self._source.close()

    def _assigned(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._forget(partition)
        self._assigned_now.update(partitions)

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        self._flush_all([partition for partition in partitions if partition in self._pending])
        for partition in partitions:
            self._assigned_now.discard(partition)
            self._forget(partition)

    def _forget(self, partition: Partition) -> None:
        """Drop what was collected. While the partition is ours, a later step claims it again."""
        self._claims.pop(partition, None)
        self._identities.drop(partition)
        self._full.discard(partition)
        if self._pending.pop(partition, None) is not None and partition in self._assigned_now:
            self._source.pause([partition])

    def _wait(self, what: str, error: Exception) -> None:
        """Say why nothing can be archived now; claims wait a little."""
        self._claim_at_s = time.monotonic() + _RETRY_S
        log.warning(what, action="archive_waits", error=str(error), again_s=_RETRY_S)

    def _claim_due(self) -> None:
        """Claim what is ours and not yet claimed; it stays paused until that works."""
        if time.monotonic() < self._claim_at_s:
            return
        for partition in sorted(self._assigned_now - self._claims.keys()):
            try:
                self._claim(partition)
            except (SQLAlchemyError, SourceAwayError) as error:
                self._forget(partition)
                self._wait("a partition cannot be claimed now", error)
                return

    def _claim(self, partition: Partition) -> None:
        """Take the partition and read on from where the ledger stands."""
        identity = self._identities.claim(partition)
        claimed = claim(
            self._store,
            consumer=CONSUMER,
            cluster_id=identity.cluster_id,
            topic=partition.topic,
            topic_id=identity.topic_id,
            partition=partition.partition,
            owner=self._owner,
            beginning_offset=self._source.beginning(partition),
            now_ms=now_ms(),
        )
        self._claims[partition] = claimed
        self._pending[partition] = Pending(claimed.next_offset, claimed.next_offset)
        self._source.seek(partition, claimed.next_offset)
        self._source.resume([partition])

    def _lose(self, loss: Lost) -> None:
        if loss.partition not in self._pending:
            return
        pending = self._pending[loss.partition]
        pending.lost += loss.beginning - loss.wanted
        pending.next_offset = loss.beginning
        log.error(
            "messages were gone before they could be archived",
            action="archive_lost_messages",
            topic=loss.partition.topic,
            partition=loss.partition.partition,
            lost=loss.beginning - loss.wanted,
        )

    def _collect(self, partition: Partition, polled: Polled) -> None:
        pending = self._pending[partition]
        if polled.records and polled.records[0].offset < pending.next_offset:
            return  # fetched before a seek
        if pending.next_offset == pending.from_offset:
            pending.since_ms = now_ms()
        role = self._roles[partition.topic]
        for record in polled.records:
            for event in _events(record, role):
                pending.add(event, record.offset, record.timestamp)
            pending.value_bytes += len(record.value or b"")
        pending.messages += len(polled.records)
        pending.next_offset = polled.next_offset

    def _flush_due(self) -> None:
        at_ms = now_ms()
        self._flush_all(
            [
                partition
                for partition, pending in self._pending.items()
                if self._is_full(pending) or at_ms - pending.since_ms >= self._flush_s * 1000
            ]
        )

    def _is_full(self, pending: Pending) -> bool:
        return pending.rows >= self._flush_rows or pending.value_bytes >= _FLUSH_BYTES

    def _flush_all(self, partitions: Collection[Partition]) -> None:
        """Commit what these have brought, as far as it is known to be of the log that was claimed."""
        waiting = [
            partition
            for partition in partitions
            if self._pending[partition].next_offset > self._pending[partition].from_offset
        ]
        confirmed = self._confirm(waiting) if waiting else frozenset()
        for partition in waiting:
            pending = self._pending.get(partition)
            if partition in confirmed:
                self._flush(partition)
            elif pending is not None and self._is_full(pending) and partition not in self._full:
                self._full.add(partition)
                self._source.pause([partition])

    def _confirm(self, partitions: Collection[Partition]) -> frozenset[Partition]:
        """Return which of these are still what was claimed; claim anew what was made again under us."""
        confirmed = self._identities.confirm(partitions)
        for partition in sorted(confirmed.other & self._claims.keys()):
            log.error(
                "a topic was made again: its offsets start a ledger of their own. What was read, but not "
                "yet archived, is dropped: the messages of the new topic are read again",
                action="archive_topic_made_again",
                topic=partition.topic,
                partition=partition.partition,
                dropped=self._pending[partition].messages,
            )
            self._forget(partition)
        return confirmed.same

    def _flush(self, partition: Partition) -> None:
        """Commit what the partition has brought, or drop it so that it is read again."""
        pending, claimed = self._pending[partition], self._claims[partition]
        try:
            self._commit(claimed, pending)
        except ConflictError:
            log.warning(
                "the partition has another owner or another offset",
                action="archive_fenced",
                topic=partition.topic,
                partition=partition.partition,
            )
            self._forget(partition)
        except (SQLAlchemyError, OSError) as error:
            # Whether it was committed is unknown: the ledger knows, so read on from there.
            self._forget(partition)
            self._wait("files cannot be committed now", error)
        else:
            self._pending[partition] = Pending(pending.next_offset, pending.next_offset)
            if partition in self._full:
                self._full.discard(partition)
                self._source.resume([partition])
            self._source.hint({partition: pending.next_offset})

    def _commit(self, claimed: Claim, pending: Pending) -> None:
        files = write_files(self._directory, claimed.partition_id, pending)
        step = Advance(
            from_offset=pending.from_offset,
            next_offset=pending.next_offset,
            messages=pending.messages,
            lost=pending.lost,
            rows=sum(file.rows for file in files if file.kind == "inference"),
            labels=sum(file.rows for file in files if file.kind == "label"),
        )
        with self._store.write() as connection:
            commit_files(connection, claimed.partition_id, claimed.epoch, step, files, now_ms())

    def _show_life(self) -> None:
        if time.monotonic() - self._seen_s < _SEEN_EVERY_S:
            return
        self._seen_s = time.monotonic()
        # A client may stand beyond the end of a new log: then nothing comes that a commit would ask for.
        progress = {partition: self._source.progress(partition) for partition in self._claims}
        confirmed = self._confirm(sorted(self._claims)) if self._claims else frozenset()
        sights = []
        for partition, claimed in self._claims.items():
            position, end = progress[partition]
            if partition not in confirmed:
                end = None
            caught_up = position is not None and end is not None and position >= end
            sights.append(Sight(claimed.partition_id, claimed.epoch, end, caught_up))
        try:
            gone = set(seen(self._store, sights, now_ms())) if sights else set()
        except SQLAlchemyError as error:
            self._wait("the store does not answer", error)
            return
        for partition, claimed in list(self._claims.items()):
            if claimed.partition_id in gone:
                self._forget(partition)


def _events(record: Record, role: Role) -> list[Inference | Label]:
    try:
        event = decode_message(record.value, record.headers, role)
    except DecodeError:
        return []
    if isinstance(event, InferenceBatch):
        return list(batch_rows(event))
    return [event] if isinstance(event, Inference | Label) else []


def run_archive(
    settings: Settings, stop: threading.Event, ready: Callable[[], None] | None = None
) -> None:
    """Run until `stop` is set; commits what is collected before it returns.

    A store or a disk that is away is waited for. Raises SourceError for what no retry
    mends, such as a missing codec.
    """
    structs.prepare()
    store = open_store(settings.store.url)
    upgrade(store)
    kafka = settings.kafka
    roles: dict[str, Role] = dict.fromkeys(kafka.inference_topics, "inference")
    roles |= dict.fromkeys(kafka.label_topics, "labels")
    source = open_source(kafka, settings.archive.group, _POLL_RECORDS)
    archive = Archive(
        store,
        source,
        settings.archive.dir,
        roles,
        owner=owner_name(),
        flush_rows=settings.archive.flush_rows,
        flush_s=settings.archive.flush_s,
    )
    archive.start()
    log.info("archive started", action="archive_started", directory=str(settings.archive.dir))
    if ready:
        ready()
    while not stop.is_set():
        archive.step()
    archive.close()
    store.close()
