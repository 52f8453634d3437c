"""`trimtab archive`: a consumer group of its own that writes inferences and labels to Parquet.

poll → decode → collect per partition → files on disk → manifest and offset in one transaction. What
cannot be decoded is not archived; the monitor counts and keeps it.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from trimtab import logs
from trimtab.archive.writer import Pending, write_files
from trimtab.errors import ConflictError
from trimtab.events.cloudevents import DecodeError, Role, batch_rows, decode
from trimtab.events.types import Inference, InferenceBatch, Label
from trimtab.monitor.source import KafkaPythonSource, Lost, Partition, Polled, Record, Source
from trimtab.settings import Settings
from trimtab.store.archive import commit_files
from trimtab.store.engine import Store, open_store
from trimtab.store.ledger import Advance, Claim, Sight, claim, seen
from trimtab.store.migrate import upgrade

log = logs.get("archive")

CONSUMER = "archive"
_POLL_S = 0.5
_SEEN_EVERY_S = 2.0
_RETRY_S = 1.0


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
        self._claims: dict[Partition, Claim] = {}
        self._pending: dict[Partition, Pending] = {}
        self._seen_s = 0.0

    def start(self) -> None:
        """Join the group."""
        self._source.start(self._roles, self._assigned, self._revoked)

    def step(self) -> int:
        """Poll once, then commit what is due. Returns the messages read."""
        for partition in sorted(self._assigned_now - self._claims.keys()):
            self._claim(partition)
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
        for partition in list(self._pending):
            self._flush(partition)
        self._source.close()

    def _assigned(self, partitions: Sequence[Partition]) -> None:
        self._assigned_now.update(partitions)

    def _revoked(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            if partition in self._pending:
                self._flush(partition)
            self._assigned_now.discard(partition)
            self._forget(partition)

    def _forget(self, partition: Partition) -> None:
        """Drop what was collected. While the partition is ours, the next step claims it again."""
        self._claims.pop(partition, None)
        if self._pending.pop(partition, None) is not None and partition in self._assigned_now:
            self._source.pause([partition])

    def _claim(self, partition: Partition) -> None:
        """Take the partition and read on from where the ledger stands."""
        identity = self._source.identity(partition.topic)
        claimed = claim(
            self._store,
            consumer=CONSUMER,
            cluster_id=identity.cluster_id,
            topic=partition.topic,
            topic_id=identity.topic_id,
            partition=partition.partition,
            owner=self._owner,
            beginning_offset=self._source.beginning(partition),
            now_ms=_now_ms(),
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
        if pending.next_offset == pending.from_offset:
            pending.since_ms = _now_ms()
        role = self._roles[partition.topic]
        for record in polled.records:
            for event in _events(record, role):
                pending.add(event, record.offset, record.timestamp)
        pending.messages += len(polled.records)
        pending.next_offset = polled.next_offset

    def _flush_due(self) -> None:
        now_ms = _now_ms()
        for partition, pending in list(self._pending.items()):
            waiting = pending.next_offset > pending.from_offset
            old = now_ms - pending.since_ms >= self._flush_s * 1000
            if waiting and (old or pending.rows >= self._flush_rows):
                self._flush(partition)

    def _flush(self, partition: Partition) -> None:
        pending, claimed = self._pending[partition], self._claims[partition]
        if pending.next_offset == pending.from_offset:
            return
        files = write_files(self._directory, claimed.partition_id, pending)
        step = Advance(
            from_offset=pending.from_offset,
            next_offset=pending.next_offset,
            messages=pending.messages,
            lost=pending.lost,
            rows=sum(file.rows for file in files if file.kind == "inference"),
            labels=sum(file.rows for file in files if file.kind == "label"),
        )
        try:
            with self._store.write() as connection:
                commit_files(
                    connection, claimed.partition_id, claimed.epoch, step, files, _now_ms()
                )
        except ConflictError:
            log.warning("partition has another owner", action="archive_fenced", topic=partition[0])
            self._claims.pop(partition)
            self._pending.pop(partition)
            return
        except SQLAlchemyError as error:
            # Whether it was committed is unknown: the ledger knows, so read on from there.
            log.warning(
                "commit failed, reading the ledger", action="archive_retry", error=str(error)
            )
            time.sleep(_RETRY_S)
            self._claim(partition)
            return
        self._pending[partition] = Pending(step.next_offset, step.next_offset)
        self._source.hint({partition: step.next_offset})

    def _show_life(self) -> None:
        if time.monotonic() - self._seen_s < _SEEN_EVERY_S:
            return
        self._seen_s = time.monotonic()
        sights = []
        for partition, claimed in self._claims.items():
            position, end = self._source.progress(partition)
            caught_up = position is not None and end is not None and position >= end
            sights.append(Sight(claimed.partition_id, claimed.epoch, end, caught_up))
        gone = set(seen(self._store, sights, _now_ms())) if sights else set()
        for partition, claimed in list(self._claims.items()):
            if claimed.partition_id in gone:
                self._forget(partition)


def _events(record: Record, role: Role) -> list[Inference | Label]:
    try:
        event = decode(record.value, record.headers, role)
    except DecodeError:
        return []
    if isinstance(event, InferenceBatch):
        return list(batch_rows(event))
    return [event] if isinstance(event, Inference | Label) else []


def run_archive(
    settings: Settings, stop: threading.Event, ready: Callable[[], None] | None = None
) -> None:
    """Run until `stop` is set. A store that is away is waited for."""
    store = open_store(settings.store.url)
    upgrade(store)
    kafka = settings.kafka
    roles: dict[str, Role] = dict.fromkeys(kafka.inference_topics, "inference")
    roles |= dict.fromkeys(kafka.label_topics, "labels")
    source = KafkaPythonSource(
        {"bootstrap_servers": kafka.bootstrap, "api_version": kafka.version, **kafka.client},
        settings.archive.group,
        cluster_identity=kafka.identity,
    )
    archive = Archive(
        store,
        source,
        settings.archive.dir,
        roles,
        owner=f"{socket.gethostname()}-{os.getpid()}",
        flush_rows=settings.archive.flush_rows,
        flush_s=settings.archive.flush_s,
    )
    archive.start()
    log.info("archive started", action="archive_started", directory=str(settings.archive.dir))
    if ready:
        ready()
    while not stop.is_set():
        try:
            archive.step()
        except (SQLAlchemyError, OSError) as error:
            log.warning("cannot archive now", action="archive_waits", error=str(error))
            stop.wait(_RETRY_S)
    archive.close()
    store.close()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
