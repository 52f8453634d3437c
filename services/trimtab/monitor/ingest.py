"""The ingest loop: claim, poll, buffer, flush; and what to do when any of these fails.

Whatever goes wrong with a partition, its memory is dropped and, while it is still ours, it is claimed
again and read from its stored offset. A record is rejected for it only after a flush without any record
has worked; where that fails, too, the partition waits. While the store is away everything is paused, and
polling goes on so that the group keeps us.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from sqlalchemy import select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from trimtab.clock import now_ms
from trimtab.errors import ConflictError
from trimtab.events.cloudevents import Role
from trimtab.identities import Identities
from trimtab.monitor.decode import Reading
from trimtab.monitor.metrics import METRICS
from trimtab.monitor.partition import Flush, OwnedPartition
from trimtab.monitor.views import ModelView
from trimtab.source import Lost, Partition, Polled, Record, Source, SourceAwayError
from trimtab.stats.cuts import ModelCuts
from trimtab.store import ledger
from trimtab.store import tables as t
from trimtab.store.dialect import lost_a_race
from trimtab.store.engine import Store
from trimtab.store.models import ContractRow, CurrentContracts, active_cuts_ids, cuts_at

log = logging.getLogger(__name__)

REFRESH_S = 0.5
"""How often contracts and cuts are looked at."""
SIGHT_S = 1.0
"""How often an owner says that it lives and where the log ends."""
CLAIM_AGAIN_S = 1.0
STORE_RETRY_S = 1.0
STUCK_LONGEST_S = 30.0
"""A partition that fails without any record of its own is tried again after 1 s, 2 s, … this long at most."""
STUCK_SAY_S = 60.0
"""How often the log says so."""
BUFFER_BYTES_MAX = 32 * 1024 * 1024
READ_RECORDS, READ_BYTES = 500, 256 * 1024
"""Records that come in such a number, or of such a size, are read at once."""
POLL_S = 0.2


class _Buffer(Struct):
    """What was polled of a partition but not yet flushed: `reading`, then `waiting`."""

    next_offset: int
    reading: Reading | None = None
    cuts: Mapping[str, ModelCuts] = field(default_factory=dict)
    """Those known when the reading began, as its contracts are: the two belong together."""
    waiting: list[Sequence[Record]] = field(default_factory=list)
    """Records not read yet: few, or a batch in trouble."""
    waiting_bytes: int = 0
    since_s: float = 0.0

    @property
    def waits(self) -> int:
        """Records not read yet."""
        return sum(map(len, self.waiting))

    @property
    def records(self) -> int:
        """Records polled since the last flush."""
        return self.waits + (self.reading.records if self.reading else 0)

    @property
    def units(self) -> int:
        """Rows, labels and resources in them; a record not read yet counts as one."""
        return self.waits + (self.reading.units if self.reading else 0)

    @property
    def value_bytes(self) -> int:
        """Bytes of their values."""
        return self.waiting_bytes + (self.reading.value_bytes if self.reading else 0)


class _Trouble(Struct):
    """A partition whose counting failed for no reason of the store's."""

    partition_id: int
    """Of the ledger: a topic made again has another, and other records at these offsets."""
    until: int = 0
    """Records before this offset are flushed one at a time."""
    poison: frozenset[int] = frozenset()
    """Offsets of records that are rejected: each flush of theirs failed, and the one without them worked."""
    trying: int | None = None
    """Offset of the record that is flushed alone; None while more or fewer are."""
    suspect: int | None = None
    """Offset of the one that failed alone, until a flush without it has shown whose fault it is."""
    waits: int = 0
    """How often in a row no record was to blame."""
    said_s: float | None = None
    """When the log last said so."""


class Knowledge:
    """Contracts and active cuts as last loaded."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._contracts = CurrentContracts(store)
        self._prepared: Mapping[str, ContractRow] = {}
        """The contracts that `views` were made of."""
        self._cuts_ids: Sequence[tuple[str, str]] = []
        self.views: dict[str, ModelView] = {}
        self.cuts: dict[str, ModelCuts] = {}
        self.shortest_pane_ms: int | None = None
        """Of all models; None without one."""

    def refresh(self) -> None:
        """Load what has changed; models keep their prepared view while their revision stays.

        A change makes new mappings, so that a flush under way keeps what it began with.
        """
        self._contracts.refresh()
        rows = self._contracts.rows
        if rows is not self._prepared:
            self.views = {model: self._view(row) for model, row in rows.items()}
            panes = (view.rules.pane_ms for view in self.views.values())
            self.shortest_pane_ms = min(panes, default=None)
            self._prepared = rows
        with self._store.read() as connection:
            active = active_cuts_ids(connection)
            if active == self._cuts_ids:
                return
            known = dict(self._cuts_ids)
            found = {}
            for model, cuts_id in active:
                if known.get(model) == cuts_id:
                    found[model] = self.cuts[model]
                elif (cuts := cuts_at(connection, model, cuts_id)) is not None:
                    found[model] = cuts
        self.cuts, self._cuts_ids = found, active

    def _view(self, row: ContractRow) -> ModelView:
        view = self.views.get(row.contract.name)
        if view is not None and view.revision == row.revision:
            return view
        return ModelView(row.revision, row.contract)


class Ingest:
    """Reads a source into the store. One thread calls `start`, then `step` again and again, then `stop`."""

    def __init__(
        self,
        store: Store,
        source: Source,
        roles: Mapping[str, Role],
        owner: str,
        *,
        flush_rows: int = 50_000,
        flush_s: float = 1.0,
        shards: int = 1,
        now_ms: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.source, self.roles, self.owner = store, source, dict(roles), owner
        self.flush_rows, self.flush_s, self.shards = flush_rows, flush_s, shards
        self.now_ms, self._monotonic = now_ms, monotonic
        self.knowledge = Knowledge(store)
        self.owned: dict[Partition, OwnedPartition] = {}
        self.counters: Counter[str] = Counter()
        self._assigned: set[Partition] = set()
        self._claim_at_s: dict[Partition, float] = {}
        self._buffers: dict[Partition, _Buffer] = {}
        self._trouble: dict[Partition, _Trouble] = {}
        self._identities = Identities(source, monotonic)
        self._unconfirmed: set[Partition] = set()
        """Partitions with a flush that waits until their identity is confirmed."""
        self._full: set[Partition] = set()
        """Those of them that are paused, because what waits has become too much."""
        self._store_retry_s: float | None = None
        self._refreshed_s = self._sighted_s = -1e9

    def start(self) -> None:
        """Join the group."""
        self.source.start(list(self.roles), self._on_assigned, self._on_revoked)

    @property
    def assigned(self) -> frozenset[Partition]:
        """The partitions the group has given us, claimed or not."""
        return frozenset(self._assigned)

    def step(self, timeout_s: float = POLL_S) -> int:
        """Poll once and do what is due; return the records polled. Raises SourceError."""
        polled, lost = self.source.poll(timeout_s)
        for partition, batch in polled.items():
            self._take(partition, batch)
        if self._store_retry_s is not None and self._monotonic() < self._store_retry_s:
            return 0
        try:
            self._work(lost)
        except SQLAlchemyError as error:
            self._store_is_away(error)
        return sum(len(batch.records) for batch in polled.values())

    def stop(self) -> None:
        """Flush what is buffered and leave the group."""
        try:
            self._flush_all(sorted(self.owned), last=True)
        except SQLAlchemyError as error:
            log.warning("The last flush failed; its rows are read again: %s", error)
        finally:
            self.source.close()

    # --- assignment -------------------------------------------------------------------------------

    def _on_assigned(self, partitions: Sequence[Partition]) -> None:
        self._assigned |= set(partitions)
        for partition in partitions:
            self._drop(partition)
            self._claim_at_s[partition] = self._monotonic()

    def _on_revoked(self, partitions: Sequence[Partition]) -> None:
        try:
            self._flush_all([p for p in partitions if p in self.owned], last=True)
        except SQLAlchemyError as error:
            log.warning("Flushing revoked partitions failed; their rows are read again: %s", error)
        for partition in partitions:
            self._drop(partition)
            self._assigned.discard(partition)
            self._claim_at_s.pop(partition, None)
            self._trouble.pop(partition, None)

    def _drop(self, partition: Partition) -> None:
        self.owned.pop(partition, None)
        self._buffers.pop(partition, None)
        self._identities.drop(partition)
        self._unconfirmed.discard(partition)
        self._full.discard(partition)

    def _drop_and_claim_again(self, partition: Partition, after_s: float) -> None:
        self._drop(partition)
        if partition in self._assigned:
            self.source.pause([partition])
            self._claim_at_s[partition] = self._monotonic() + after_s

    def _claim_due(self) -> None:
        due = [p for p, at in sorted(self._claim_at_s.items()) if at <= self._monotonic()]
        if not due:
            return
        for partition in due:
            del self._claim_at_s[partition]
            try:
                self._claim(partition)
            except SourceAwayError as error:
                self._claim_at_s[partition] = self._monotonic() + CLAIM_AGAIN_S
                self.counters["source_away"] += 1
                log.warning("%s", error)
                return  # the others would wait for the same broker; polling goes on meanwhile

    def _claim(self, partition: Partition) -> None:
        trouble = self._trouble.get(partition)
        identity = self._identities.claim(partition)
        claim = ledger.claim(
            self.store,
            consumer="monitor",
            cluster_id=identity.cluster_id,
            topic=partition.topic,
            topic_id=identity.topic_id,
            partition=partition.partition,
            owner=self.owner,
            beginning_offset=self.source.beginning(partition),
            now_ms=self.now_ms(),
            again=trouble is not None and trouble.waits > 0,
        )
        if trouble is not None and trouble.partition_id != claim.partition_id:
            del self._trouble[partition]
            trouble = None
        # After the claim: whatever contracts an earlier owner has counted by are known from here on.
        self.knowledge.refresh()
        try:
            if trouble is not None:
                self._probe(partition, trouble, claim)
            owned = self._load(partition, claim)
        except Exception as error:
            if _is_conflict(error):
                self._conflict(partition, error)
            elif _is_of_store(error):
                raise
            else:
                self._nobody_is_to_blame(partition, claim, claim.next_offset, error)
            return
        self.owned[partition] = owned
        self._buffers[partition] = _Buffer(owned.next_offset)
        self.source.seek(partition, owned.next_offset)
        self.source.resume([partition])
        self.counters["claims"] += 1

    def _load(self, partition: Partition, claim: ledger.Claim) -> OwnedPartition:
        role, views = self.roles[partition.topic], self.knowledge.views
        return OwnedPartition(self.store, claim, role, views, shards=self.shards)

    def _confirm(self, partitions: Sequence[Partition]) -> frozenset[Partition]:
        """Return which of these are still what was claimed; claim anew what was made again under us.

        All that was polled from a confirmed partition until now is of the claimed log.
        """
        confirmed = self._identities.confirm(partitions)
        for partition in sorted(confirmed.other & self.owned.keys()):
            waiting = self._buffers[partition].records
            self.counters["identities_changed"] += 1
            log.error(
                "%s[%d] was made again: its offsets start a ledger of their own. %d messages that were "
                "read, but not yet counted, are dropped: those of the new topic are read again.",
                *(partition.topic, partition.partition, waiting),
            )
            self._drop_and_claim_again(partition, 0.0)
        return confirmed.same

    def _moves(self, partition: Partition) -> bool:
        """Whether a flush would move the partition's ledger."""
        buffer = self._buffers[partition]
        return bool(buffer.records) or buffer.next_offset != self.owned[partition].next_offset

    def _put_off(self, partition: Partition) -> None:
        """Commit nothing while nobody says of which log it is; read on while there is room."""
        if partition not in self._unconfirmed:
            self._unconfirmed.add(partition)
            self.counters["unconfirmed"] += 1
            log.warning(
                "%s[%d]: the broker does not say whether the topic is still the one that was claimed. "
                "What was read is counted as soon as it does; check the broker if this stays.",
                *(partition.topic, partition.partition),
            )
        if partition not in self._full and self._is_full(partition):
            self._full.add(partition)
            self.source.pause([partition])

    def _was_flushed(self, partition: Partition) -> None:
        self._unconfirmed.discard(partition)
        if partition in self._full:
            self._full.discard(partition)
            self.source.resume([partition])

    # --- buffering --------------------------------------------------------------------------------

    def _take(self, partition: Partition, batch: Polled) -> None:
        buffer = self._buffers.get(partition)
        if buffer is None:
            return  # polled before the claim placed us, or after it failed: it is read again
        records = batch.records
        if records and records[0].offset < buffer.next_offset:
            return  # fetched before a seek
        if not buffer.records:
            buffer.since_s = self._monotonic()
        if records:
            buffer.waiting.append(records)
        buffer.next_offset = batch.next_offset
        careful = partition in self._trouble
        if buffer.waits >= READ_RECORDS and not careful:
            self._read_now(partition, buffer)
            return
        buffer.waiting_bytes += sum(len(record.value or b"") for record in records)
        if buffer.waiting_bytes >= READ_BYTES and not careful:
            self._read_now(partition, buffer)

    def _read_now(self, partition: Partition, buffer: _Buffer) -> None:
        """Turn what waits into columns while the processor's cache still holds it.

        Few records wait for the flush instead: a contract applied a moment ago is known by then.
        """
        try:
            self._read(partition, buffer)
        except Exception as error:  # noqa: BLE001 - no payload may stop its partition
            self._counting_failed(partition, self.owned[partition], error)

    def _read(self, partition: Partition, buffer: _Buffer) -> Reading:
        """Read what waits; return all that was read since the last flush."""
        if buffer.reading is None:
            buffer.reading = self._new_reading(partition)
            buffer.cuts = self.knowledge.cuts
        for records in buffer.waiting:
            buffer.reading.add(records)
        buffer.waiting, buffer.waiting_bytes = [], 0
        return buffer.reading

    def _new_reading(self, partition: Partition) -> Reading:
        trouble = self._trouble.get(partition)
        return Reading(
            self.roles[partition.topic],
            partition.topic,
            self.knowledge.views,
            trouble.poison if trouble else frozenset(),
        )

    def _work(self, lost: Sequence[Lost]) -> None:
        if self._store_retry_s is not None:
            self._store_is_back()
        self._claim_due()
        for loss in lost:
            self._lose(loss)
        if self._monotonic() - self._refreshed_s >= REFRESH_S:
            self.knowledge.refresh()
            self._refreshed_s = self._monotonic()
        self._flush_all([p for p in sorted(self.owned) if self._due(p)])
        if self._monotonic() - self._sighted_s >= SIGHT_S:
            self._sight()
            self._sighted_s = self._monotonic()

    def _due(self, partition: Partition) -> bool:
        buffer, owned = self._buffers[partition], self.owned[partition]
        if self._is_full(partition):
            return True
        if buffer.records:
            return self._monotonic() - buffer.since_s >= self._flush_interval_s()
        if owned.held & self.knowledge.cuts.keys() & self.knowledge.views.keys():
            return True
        # Control records at the end of the log move the position without bringing a message.
        position, _ = self.source.progress(partition)
        if position is not None and position > owned.next_offset:
            buffer.next_offset = position
            return True
        return False

    def _is_full(self, partition: Partition) -> bool:
        buffer = self._buffers[partition]
        return buffer.units >= self.flush_rows or buffer.value_bytes >= BUFFER_BYTES_MAX

    def _flush_interval_s(self) -> float:
        """Flush at least twice per pane of the fastest model, so that its windows close in time."""
        pane_ms = self.knowledge.shortest_pane_ms
        return self.flush_s if pane_ms is None else min(self.flush_s, pane_ms / 2_000)

    # --- flushing ---------------------------------------------------------------------------------

    def _flush_all(self, partitions: Sequence[Partition], *, last: bool = False) -> None:
        done: dict[Partition, int] = {}
        # Ends first, then the question: a confirmed log's end is its own, too.
        ends = {partition: self.source.progress(partition)[1] for partition in partitions}
        moving = {partition for partition in partitions if self._moves(partition)}
        confirmed = self._confirm(sorted(moving)) if moving else frozenset()
        for partition in partitions:
            owned = self.owned.get(partition)
            if owned is None or (last and partition not in moving):
                continue
            if partition in moving - confirmed:
                if last:
                    log.warning(
                        "%s[%d]: what was read from offset %d is not committed, because the broker did "
                        "not say of which log it is; whoever comes next reads it again.",
                        *(partition.topic, partition.partition, owned.next_offset),
                    )
                else:
                    self._put_off(partition)
                continue
            try:
                self._flush(partition, owned, ends[partition])
                done[partition] = owned.next_offset
                self._was_flushed(partition)
            except Exception as error:
                if _is_conflict(error):
                    self._conflict(partition, error)
                elif _is_of_store(error):
                    raise
                else:  # no payload may stop its partition
                    self._counting_failed(partition, owned, error)
        if done and not last:  # whoever leaves would only cancel it
            self.source.hint(done)

    def _conflict(self, partition: Partition, error: Exception) -> None:
        """Begin again from the stored offset, with this partition alone."""
        self.counters["conflicts"] += 1
        log.info("%s", error)
        self._drop_and_claim_again(partition, CLAIM_AGAIN_S)

    def _flush(self, partition: Partition, owned: OwnedPartition, end: int | None) -> None:
        buffer = self._buffers[partition]
        for reading, cuts, next_offset in self._batches(partition, buffer, owned):
            flush = owned.flush(
                reading,
                next_offset,
                cuts,
                self.now_ms(),
                end_offset=end,
                caught_up=end is not None and next_offset >= end,
            )
            self._account(partition, flush)
        self._buffers[partition] = _Buffer(owned.next_offset)
        trouble = self._trouble.get(partition)
        if trouble and owned.next_offset >= trouble.until:
            del self._trouble[partition]

    def _batches(
        self, partition: Partition, buffer: _Buffer, owned: OwnedPartition
    ) -> Iterator[tuple[Reading, Mapping[str, ModelCuts], int]]:
        """Yield (batch, its cuts, offset after it) to flush: one, or single records while one is in trouble."""
        trouble = self._trouble.get(partition)
        if trouble is not None:
            trouble.trying = None  # a flush that lost a race may have left one
        if trouble is not None and owned.next_offset < trouble.until:
            records = [record for some in buffer.waiting for record in some]
            careful = [record for record in records if record.offset < trouble.until]
            for record in careful:
                trouble.trying = record.offset
                reading = self._new_reading(partition)
                reading.add([record])
                yield reading, self.knowledge.cuts, record.offset + 1
                trouble.waits, trouble.trying = 0, None
            buffer.waiting = [records[len(careful) :]]
        yield self._read(partition, buffer), buffer.cuts, buffer.next_offset

    def _account(self, partition: Partition, flush: Flush) -> None:
        self.counters["flushes"] += 1
        self.counters["messages"] += flush.messages
        self.counters["fast"] += flush.fast
        self.counters["read_back"] += flush.read_back
        METRICS.flushed(partition, flush)

    def _counting_failed(
        self, partition: Partition, owned: OwnedPartition, error: Exception
    ) -> None:
        """No message may stop its partition: find the one that does, and reject it."""
        trouble = self._trouble.get(partition)
        trying = trouble.trying if trouble else None
        rejected = trouble is not None and trying is not None and trying in trouble.poison
        if rejected or not self._buffers[partition].records:
            self._nobody_is_to_blame(partition, owned.claim, owned.next_offset, error)
            return
        self.counters["counting_failed"] += 1
        log.error(
            "Counting %s[%d] from offset %d failed",
            *(partition.topic, partition.partition, owned.next_offset),
            exc_info=error,
        )
        if trouble is None:
            trouble = self._trouble[partition] = _Trouble(owned.claim.partition_id)
        if trying is None:  # which record is not known yet
            trouble.until = max(trouble.until, self._buffers[partition].next_offset)
        trouble.suspect, trouble.trying = trying, None
        self._drop_and_claim_again(partition, 0.0)

    def _probe(self, partition: Partition, trouble: _Trouble, claim: ledger.Claim) -> None:
        """Try a flush of no record: where that works, the record that failed alone is to blame.

        Raises what the flush raises.
        """
        known = self.knowledge
        self._load(partition, claim).probe(known.views, known.cuts, self.now_ms())
        if trouble.suspect is not None:
            trouble.poison |= {trouble.suspect}
            trouble.suspect = None
        elif trouble.until <= claim.next_offset:
            del self._trouble[partition]

    def _nobody_is_to_blame(
        self, partition: Partition, claim: ledger.Claim, offset: int, error: Exception
    ) -> None:
        """Wait, longer each time: nothing is rejected, and the log keeps what is not counted.

        Meanwhile the partition has no owner that is seen, so that windows do not wait for it for ever.
        """
        trouble = self._trouble.setdefault(partition, _Trouble(claim.partition_id))
        trouble.suspect = trouble.trying = None
        wait_s = min(STUCK_LONGEST_S, CLAIM_AGAIN_S * 2.0 ** min(trouble.waits, 10))
        trouble.waits += 1
        self.counters["stuck"] += 1
        now_s = self._monotonic()
        if trouble.said_s is None or now_s - trouble.said_s >= STUCK_SAY_S:
            trouble.said_s = now_s
            log.error(
                "%s[%d] waits at offset %d: counting fails without any message, so none is rejected. Nothing "
                "is lost while the topic keeps its records. Look at the error below: a state in the "
                "database that cannot be read, or a defect of this version (report it). It is tried again "
                "at least every %d s.",
                *(partition.topic, partition.partition, offset, STUCK_LONGEST_S),
                exc_info=error,
            )
        self._drop_and_claim_again(partition, wait_s)

    def _lose(self, loss: Lost) -> None:
        owned = self.owned.get(loss.partition)
        if owned is None:
            return  # it is claimed first and then meets the same loss
        self._flush_all([loss.partition])
        if self.owned.get(loss.partition) is not owned:
            return
        if self._moves(loss.partition) or loss.partition not in self._confirm([loss.partition]):
            if self.owned.get(loss.partition) is owned:  # else it was made again
                self._drop_and_claim_again(loss.partition, CLAIM_AGAIN_S)  # it meets the same loss
            return
        try:
            if loss.beginning > owned.next_offset:
                count = loss.beginning - owned.next_offset
                owned.lose(loss.beginning, self.now_ms())
                self.counters["lost"] += count
                METRICS.lost(loss.partition, count)
                log.error(
                    "%s[%d]: the log had dropped %d messages before they were read. Windows they "
                    "touch cannot be told; give the topic more retention or the monitor more room.",
                    *(loss.partition.topic, loss.partition.partition, count),
                )
            self._buffers[loss.partition] = _Buffer(owned.next_offset)
        except (ConflictError, DBAPIError) as error:
            if not _is_conflict(error):
                raise
            self._conflict(loss.partition, error)

    # --- signs of life ----------------------------------------------------------------------------

    def _sight(self) -> None:
        if not self.owned:
            return
        # A client may stand beyond the end of a new log: then nothing comes that a flush would ask for.
        progress = {partition: self.source.progress(partition) for partition in self.owned}
        confirmed = self._confirm(sorted(self.owned))
        sights = []
        by_id = {owned.claim.partition_id: p for p, owned in self.owned.items()}
        for partition, owned in sorted(self.owned.items()):
            trouble = self._trouble.get(partition)
            if trouble is not None and trouble.waits:
                continue  # who makes no progress must not look as if it did
            position, end = progress[partition]
            if partition not in confirmed:
                end = None
            caught_up = (
                not self._buffers[partition].records
                and end is not None
                and position is not None
                and position >= end
                and owned.next_offset >= end
            )
            sights.append(ledger.Sight(owned.claim.partition_id, owned.claim.epoch, end, caught_up))
            METRICS.lag(partition, None if end is None else max(0, end - owned.next_offset))
        if not sights:
            return
        for partition_id in ledger.seen(self.store, sights, self.now_ms()):
            self.counters["conflicts"] += 1
            self._drop_and_claim_again(by_id[partition_id], CLAIM_AGAIN_S)

    def _store_is_away(self, error: SQLAlchemyError) -> None:
        first = self._store_retry_s is None
        self._store_retry_s = self._monotonic() + STORE_RETRY_S
        self.counters["store_errors"] += 1
        if first:
            log.error("The store is away; reading is paused until it answers: %s", error)
        for partition in sorted(self._assigned):
            self._drop(partition)
            self._claim_at_s[partition] = self._monotonic()
        if self._assigned:
            self.source.pause(sorted(self._assigned))

    def _store_is_back(self) -> None:
        with self.store.read() as connection:
            connection.execute(select(t.partitions.c.id).limit(1)).all()
        log.info("The store answers; reading goes on from the stored offsets.")
        self._store_retry_s = None


def _is_conflict(error: Exception) -> bool:
    """Whether the same again may work, for this partition alone: another owns it, or was faster."""
    return isinstance(error, ConflictError) or lost_a_race(error)


def _is_of_store(error: Exception) -> bool:
    """Whether the store failed, and will answer again; not where it answers and refuses a value."""
    return isinstance(error, SQLAlchemyError) and not isinstance(error, DataError | IntegrityError)
