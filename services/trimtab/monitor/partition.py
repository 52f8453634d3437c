"""One owned partition: what it remembers, and the flush that turns a batch of records into rows.

A flush is one transaction that the fence opens: either everything about a batch is stored with
its offsets, or nothing. When it fails, the whole object is dropped and loaded again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field
from sqlalchemy import Connection

from trimtab.events.cloudevents import Role
from trimtab.events.types import ResourceSample
from trimtab.monitor.columns import Ints, Rows, concatenate, number_list
from trimtab.monitor.counting import Grouping, Segments, count_rows, group_rows
from trimtab.monitor.decode import Decoded, Reading, Reject, ResourceRow
from trimtab.monitor.label_columns import LabelColumns
from trimtab.monitor.queued import prediction_runs, queued_labels
from trimtab.monitor.sampling import Sampler
from trimtab.monitor.views import ModelView, Views
from trimtab.stats.aggregate import ResourceState
from trimtab.stats.cuts import ModelCuts
from trimtab.store import flushes, ledger, panes, resources, watermarks
from trimtab.store.baselines import build_cuts, cuts_from_rows
from trimtab.store.engine import Store
from trimtab.store.known_ids import pane_predictions, predictions_since
from trimtab.store.label_runs import (
    LabelRun,
    PredictionRun,
    longest_pane_ms,
    write_run,
)
from trimtab.store.ledger import Advance, Claim, ClassKey
from trimtab.store.models import active_cuts, contract_at
from trimtab.store.panes import PaneKey, PaneRow
from trimtab.store.watermarks import WatermarkRow
from trimtab.windows.ids import HashSet
from trimtab.windows.lateness import NEVER_MS, Classified, classify, sealed_to, watermark_of
from trimtab.windows.panes import pane_starts, split_by, start_of

UNREAD_LOSS_MS = 7 * 86_400_000
"""How far back a loss reaches where nothing was ever read of the log: Kafka's default retention."""
ID_BYTES_MAX = 32 * 1024 * 1024
"""Ids that a partition keeps in memory to find duplicates: 8 bytes each. Beyond it, panes behind the
watermark are let go, the one longest without a row first, and read back from their runs when one comes."""

Pane = tuple[int, int]
"""Start and length in milliseconds: a contract may change the length while panes are open."""


class ModelState:
    """What a partition remembers of one model."""

    def __init__(self, stored: WatermarkRow | None = None) -> None:
        self.newest_ms = stored.newest_ms if stored else NEVER_MS
        self.sealed_ms = stored.sealed_ms if stored else NEVER_MS
        self.last_row_record_ms = stored.last_row_record_ms if stored else 0
        self.last_row_seen_ms = stored.last_row_seen_ms if stored else 0
        self.watermark_ms = NEVER_MS
        self.hashes: dict[Pane, HashSet] = {}
        """Ids of panes that are not sealed; some may have been let go."""
        self.flushes: dict[Pane, tuple[int, int]] = {}
        """First and last flush with rows of a pane: its ids are in the runs of these."""
        self.segments = Segments()

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids in memory."""
        return sum(known.nbytes for known in self.hashes.values())

    def see(self, pane: Pane, flush_seq: int) -> None:
        """Note that a flush has brought rows of a pane."""
        first, _ = self.flushes.get(pane, (flush_seq, flush_seq))
        self.flushes[pane] = (first, flush_seq)

    def row(self, model: str) -> WatermarkRow:
        """What is stored of it."""
        return WatermarkRow(
            model,
            self.newest_ms,
            self.last_row_record_ms,
            self.last_row_seen_ms,
            self.sealed_ms,
        )


class Flush(Struct):
    """What one flush writes; built from a batch before the transaction opens."""

    from_offset: int
    next_offset: int
    messages: int = 0
    record_ms: int | None = None
    first_record_ms: int | None = None
    units: Counter[str] = field(default_factory=Counter)
    classes: Counter[ClassKey] = field(default_factory=Counter)
    rejected: list[flushes.RejectedPayload] = field(default_factory=list)
    revisions: dict[str, int] = field(default_factory=dict)
    held: dict[str, Rows] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    runs: list[tuple[str, int, PredictionRun | LabelRun]] = field(default_factory=list)
    resources: dict[tuple[str, int, str, str], ResourceState] = field(default_factory=dict)
    fresh: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Records whose row was counted or held, by model, where gauges may have come beside rows."""
    touched_panes: set[PaneKey] = field(default_factory=set)
    touched_models: set[str] = field(default_factory=set)
    touched_ids: set[tuple[str, Pane]] = field(default_factory=set)
    """Panes by model to whose ids rows were added."""
    generations: dict[tuple[str, int], int] = field(default_factory=dict)
    """A generation that has not been stored yet, by model and pane start."""
    reopened: dict[PaneKey, int] | None = None
    """Open panes of a later generation: it, by the key that the first one has."""
    read_back: int = 0
    """Panes whose ids had been let go and were read back."""
    versions: dict[str, set[str]] = field(default_factory=dict)
    fast: int = 0


class OwnedPartition:
    """A claimed partition. Not thread-safe: the ingest loop is its only user."""

    def __init__(
        self,
        store: Store,
        claim: Claim,
        role: Role,
        views: Views,
        *,
        shards: int = 1,
        id_bytes_max: int = ID_BYTES_MAX,
    ) -> None:
        self.store, self.claim, self.role, self.shards = store, claim, role, shards
        self.id_bytes_max = id_bytes_max
        self.next_offset = claim.next_offset
        self.flush_seq = claim.flush_seq
        self.record_ms = claim.record_ms
        self.models: dict[str, ModelState] = {}
        self.open: dict[PaneKey, PaneRow] = {}
        self.revisions: dict[str, int] = {}
        self.held: set[str] = set()
        self.unread_held: set[str] = set()
        """Of these the segments of what is held are not known here yet."""
        self.versions: set[tuple[str, str]] = set()
        self.sampler = Sampler(claim.partition_id)
        self.has_losses = True  # unknown until the first flush has looked
        self.lossy: set[str] = set()
        """Models of which no row has come since something was lost."""
        self._load(views)

    def _load(self, views: Views) -> None:
        pid = self.claim.partition_id
        with self.store.read() as connection:
            for stored in watermarks.watermarks_of(connection, pid):
                state = self.models[stored.model] = ModelState(stored)
                state.segments = Segments(panes.stored_segments(connection, pid, stored.model))
            for row in panes.open_panes(connection, pid):
                self.open[row.key] = row
            self.revisions = flushes.activations(connection, pid)
            self.held = flushes.held_models(connection, pid)
            self.unread_held = set(self.held)
            self.lossy = ledger.models_with_open_losses(connection, pid)
            for model, state in self.models.items():
                if model in views:  # without a contract its rows are ignored
                    state.watermark_ms = watermark_of(views[model].rules, state.newest_ms)
                    self._load_hashes(connection, model, state)

    def _load_hashes(self, connection: Connection, model: str, state: ModelState) -> None:
        """Read the ids of panes that are not sealed back from the runs, as many as there is room for."""
        from_ms = state.sealed_ms - longest_pane_ms(connection, model) + 1
        held = sum(other.id_bytes for other in self.models.values())
        for length, hashes, starts in predictions_since(
            connection, self.claim.partition_id, model, from_ms
        ):
            for start, index in split_by(starts):
                pane = (start, length)
                if start + length <= state.sealed_ms:
                    continue
                if pane in state.flushes and pane not in state.hashes:
                    continue  # let go a moment ago
                # Which flushes is not asked: any up to the last one.
                state.flushes[pane] = (0, self.flush_seq)
                known = state.hashes.setdefault(pane, HashSet())
                held -= known.nbytes
                known.add_new(hashes[index])
                held += known.nbytes
            if held > self.id_bytes_max:
                held = self._let_go()

    def _ids_of_pane(self, flush: Flush, model: str, state: ModelState, pane: Pane) -> HashSet:
        """Return the ids known of a pane; read them back where they are not in memory."""
        known = state.hashes.get(pane)
        if known is not None:
            return known
        known = state.hashes[pane] = HashSet()
        pid = self.claim.partition_id
        start, length = pane
        if start + length <= state.sealed_ms:
            # It was evicted, and only a longer lateness opens it again.
            with self.store.read() as connection:
                for found, hashes, starts in predictions_since(connection, pid, model, start):
                    if found == length:
                        known.add_new(hashes[starts == start])
        elif pane in state.flushes:
            flush.read_back += 1
            with self.store.read() as connection:
                for hashes in pane_predictions(connection, pid, model, pane, state.flushes[pane]):
                    known.add_new(hashes)
        return known

    # --- the flush --------------------------------------------------------------------------------

    def flush(
        self,
        reading: Reading,
        next_offset: int,
        cuts: Mapping[str, ModelCuts],
        now_ms: int,
        *,
        end_offset: int | None = None,
        caught_up: bool = False,
    ) -> Flush:
        """Count a batch and store it with its offsets in one transaction.

        `reading` holds the records in [next_offset of the last flush, next_offset) and the contracts in
        force for them; `cuts` are those of their models. Raises ConflictError when another owner has
        taken the partition; after any exception this object must be dropped.
        """
        views = reading.views
        flush = self._prepare(reading, next_offset, cuts, now_ms)
        step = Advance(
            from_offset=flush.from_offset,
            next_offset=next_offset,
            messages=flush.messages,
            rows=flush.units["row"],
            labels=flush.units["label"],
            resources=flush.units["resource"],
            record_ms=flush.record_ms,
            end_offset=end_offset,
            caught_up_ms=now_ms if caught_up else None,
        )
        with self.store.write() as connection:
            self._store(connection, flush, step, views, now_ms)
        self.next_offset = next_offset
        if flush.record_ms is not None:
            self.record_ms = flush.record_ms
        self._evict(flush)
        return flush

    def probe(self, views: Views, cuts: Mapping[str, ModelCuts], now_ms: int) -> None:
        """Try a flush of no record, and cuts of what is held; nothing of it is stored.

        Raises what fails of a flush whatever its records are. This object must be dropped afterwards.
        """
        with self.store.read() as connection:
            for model in sorted(views.keys() - cuts.keys()):
                if flushes.held_total(connection, model):
                    every = _every_held(connection, views[model])
                    build_cuts(
                        views[model].contract,
                        every.feature_values(),
                        every.prediction_values(),
                        number_list(every.score),
                    )
        nothing = Reading(self.role, self.claim.topic, views)
        flush = self._prepare(nothing, self.next_offset, cuts, now_ms)
        with suppress(_Undone), self.store.write() as connection:
            step = Advance(from_offset=self.next_offset, next_offset=self.next_offset)
            self._store(connection, flush, step, views, now_ms)
            raise _Undone

    def lose(self, beginning: int, now_ms: int) -> None:
        """Account for offsets that the log has dropped: from the last flush to `beginning`."""
        pid = self.claim.partition_id
        with self.store.write() as connection:
            self.flush_seq = ledger.advance(
                connection,
                pid,
                self.claim.epoch,
                Advance(
                    from_offset=self.next_offset,
                    next_offset=beginning,
                    lost=beginning - self.next_offset,
                ),
                now_ms,
            )
            from_ms = self.record_ms or self.claim.caught_up_ms or now_ms - UNREAD_LOSS_MS
            ledger.add_loss(
                connection, pid, self.next_offset, beginning, from_ms, now_ms, self.flush_seq
            )
            sealed_ms = {m: s.sealed_ms for m, s in self.models.items() if s.newest_ms > NEVER_MS}
            ledger.add_loss_ranges(connection, pid, self.next_offset, sealed_ms, self.flush_seq)
        self.next_offset = beginning
        self.has_losses = True
        self.lossy |= sealed_ms.keys()

    def _prepare(
        self, reading: Reading, next_offset: int, cuts: Mapping[str, ModelCuts], now_ms: int
    ) -> Flush:
        decoded, views = reading.decoded(), reading.views
        flush = Flush(self.next_offset, next_offset, reading.records, units=decoded.units)
        flush.fast = decoded.fast
        if reading.records:
            flush.first_record_ms = int(decoded.stamps_ms[0])
            flush.record_ms = int(decoded.stamps_ms[-1])
        flush.classes.update(decoded.ignored)
        for model in sorted(self.held & cuts.keys() & views.keys()):
            self._release(flush, views[model], cuts[model])
        for model, rows in decoded.rows.items():
            self._rows(flush, views[model], cuts.get(model), rows, decoded, now_ms)
        for model, labels in decoded.labels.items():
            self._activate(flush, views[model])
            self._labels(flush, views[model], labels)
        self._resources(flush, decoded, views)
        for key in decoded.ignored:  # a contract that only refuses is in force, too
            if key.model in views:
                self._activate(flush, views[key.model])
        for reject in decoded.rejects:
            if reject.model in views:
                self._activate(flush, views[reject.model])
            self._reject(flush, reject, decoded)
        return flush

    def _activate(self, flush: Flush, view: ModelView) -> None:
        if self.revisions.get(view.model, 0) < view.revision:
            flush.revisions[view.model] = view.revision
            self.revisions[view.model] = view.revision

    def _reject(self, flush: Flush, reject: Reject, decoded: Decoded) -> None:
        flush.classes[ClassKey(reject.unit, reject.model, "rejected", reject.reason)] += reject.rows
        flush.rejected.append(
            flushes.RejectedPayload(
                int(decoded.offsets[reject.record]),
                int(decoded.stamps_ms[reject.record]),
                reject.model,
                reject.reason,
                reject.detail,
                decoded.payloads[reject.record],
            )
        )

    def _rows(
        self,
        flush: Flush,
        view: ModelView,
        cuts: ModelCuts | None,
        rows: Rows,
        decoded: Decoded,
        now_ms: int,
    ) -> None:
        """Classify the rows of a model, then count or hold those that count."""
        self._activate(flush, view)
        model = view.model
        state = self.models.setdefault(model, ModelState())
        times = classify(view.rules, state.newest_ms, rows.times_ms, rows.record_ms)
        for i in np.flatnonzero(times.future).tolist():
            text = (
                f"Event time {rows.times_ms[i]} is beyond its Kafka timestamp {rows.record_ms[i]}."
            )
            decoded.rejects.append(Reject(int(rows.record[i]), "row", model, "future", text))
        flush.classes[ClassKey("row", model, "too_late")] += int(times.too_late.sum())
        keep = ~(times.future | times.too_late)
        fresh = self._fresh(flush, state, view, rows, times, keep)
        flush.classes[ClassKey("row", model, "duplicate")] += int(keep.sum() - fresh.sum())
        flush.touched_models.add(model)
        state.newest_ms = times.newest_ms
        state.watermark_ms = watermark_of(view.rules, times.newest_ms)
        state.last_row_seen_ms = now_ms
        state.last_row_record_ms = int(rows.record_ms[-1])
        if not fresh.any():
            return
        kept = rows if fresh.all() else rows.take(fresh)
        starts = times.panes_ms[fresh]
        if decoded.beside:
            flush.fresh[model].update(kept.record.tolist())
        grouping = group_rows(view, kept, self._segments_of(view))
        self._see_versions(flush, model, kept)
        self._append_predictions(flush, view, kept, starts, grouping)
        self.sampler.offer(view, kept)
        if cuts is None:
            flush.held[model] = kept
            flush.classes[ClassKey("row", model, "held")] += kept.size
        else:
            flush.classes[ClassKey("row", model, "counted")] += kept.size
            self._count(flush, view, cuts, kept, starts, grouping)

    def _fresh(
        self,
        flush: Flush,
        state: ModelState,
        view: ModelView,
        rows: Rows,
        times: Classified,
        keep: Any,
    ) -> Any:
        """Return which of the rows to keep bring their id for the first time in their pane."""
        model, length = view.model, view.rules.pane_ms
        fresh = np.zeros(rows.size, np.bool_)
        kept = np.flatnonzero(keep)
        others = {other for _, other in state.flushes} - {length}
        if others:
            kept = kept[~self._known_otherwise(flush, state, model, rows, times, kept, others)]
        for start, place in split_by(times.panes_ms[kept]):
            index = kept[place]
            pane = (start, length)
            flush.touched_ids.add((model, pane))
            first = self._ids_of_pane(flush, model, state, pane).add_new(rows.hashes[index])
            fresh[index if first is None else index[first]] = True
        return fresh

    def _known_otherwise(
        self,
        flush: Flush,
        state: ModelState,
        model: str,
        rows: Rows,
        times: Classified,
        kept: Ints,
        lengths: set[int],
    ) -> Any:
        """Return which rows came before in a pane of another length, from before the contract changed.

        Only in panes that the rows before it have not sealed: how a batch is cut must not matter.
        """
        known = np.zeros(kept.size, np.bool_)
        for length in sorted(lengths):
            starts = pane_starts(rows.times_ms[kept], length)
            takes_rows = starts + length > times.sealed_ms[kept]
            for start, place in split_by(starts):
                if (start, length) in state.flushes:
                    ids = self._ids_of_pane(flush, model, state, (start, length))
                    known[place] |= takes_rows[place] & ids.contains(rows.hashes[kept[place]])
        return known

    def _see_versions(self, flush: Flush, model: str, rows: Rows) -> None:
        for key in rows.version.present():
            version = str(key)
            if (model, version) not in self.versions:
                self.versions.add((model, version))
                flush.versions.setdefault(model, set()).add(version)

    def _count(
        self,
        flush: Flush,
        view: ModelView,
        cuts: ModelCuts,
        rows: Rows,
        starts: Ints,
        grouping: Grouping,
    ) -> None:
        pane_ms = view.rules.pane_ms
        for counted in count_rows(view, cuts, rows, starts, grouping):
            key = self._key(flush, view.model, counted, cuts.cuts_id)
            before = self.open.get(key)
            row = PaneRow(
                key,
                pane_ms,
                counted.state if before is None else before.state.merge(counted.state),
                sealed=False,
                first_offset=min(counted.first_offset, before.first_offset)
                if before
                else counted.first_offset,
                next_offset=max(counted.next_offset, before.next_offset)
                if before
                else counted.next_offset,
            )
            self.open[key] = row
            flush.touched_panes.add(key)

    def _key(self, flush: Flush, model: str, counted: Any, cuts_id: str) -> PaneKey:
        """Return the key of the open state that rows are added to, or of a new one.

        What starts before the seal may have been sealed, under a shorter pane or lateness, and is not in
        memory any more: then a new generation begins.
        """
        start = counted.pane_start_ms
        first = PaneKey(
            model,
            start,
            counted.version,
            counted.arm,
            counted.traffic_revision,
            counted.segment,
            0,
            cuts_id,
        )
        if start >= self.models[model].sealed_ms or first in self.open:
            return first
        if flush.reopened is None:
            flush.reopened = {
                msgspec.structs.replace(key, generation=0): key.generation
                for key in self.open
                if key.generation
            }
        generation = flush.reopened.get(first)
        if generation is None:
            place = (model, start)
            if place not in flush.generations:
                with self.store.read() as connection:
                    pid = self.claim.partition_id
                    flush.generations[place] = panes.generations(connection, pid, model, start)
            generation = flush.reopened[first] = flush.generations[place]
        return msgspec.structs.replace(first, generation=generation)

    def _release(self, flush: Flush, view: ModelView, cuts: ModelCuts) -> None:
        """Count the rows that were held until the model had cuts."""
        model = view.model
        state = self.models.setdefault(model, ModelState())
        flush.released.add(model)
        self.unread_held.discard(model)
        # Panes and segments are those under which their predictions wait for labels; features are those in force.
        for then, rows in self._held_rows(view):
            flush.classes[ClassKey("row", model, "held")] -= rows.size
            flush.classes[ClassKey("row", model, "counted")] += rows.size
            flush.touched_models.add(model)
            starts = pane_starts(rows.times_ms, then.rules.pane_ms)
            grouping = group_rows(then, rows, state.segments)
            self._count(flush, view, cuts, rows.under(view), starts, grouping)

    def _held_rows(self, view: ModelView) -> Iterator[tuple[ModelView, Rows]]:
        """What is held of a model here, in order, each with the contract that it was read under."""
        with self.store.read() as connection:
            held = flushes.held_with_contracts(connection, view.model, self.claim.partition_id)
        views = {view.revision: view}
        for revision, body in held:
            if revision not in views:
                contract = contract_at(self.store, view.model, revision).contract
                views[revision] = ModelView(revision, contract)
            yield views[revision], Rows.from_bytes(body)

    def _segments_of(self, view: ModelView) -> Segments:
        """The segments met so far, those of rows that are held among them, which no pane tells of yet."""
        state = self.models[view.model]
        if view.model in self.unread_held:
            self.unread_held.discard(view.model)
            for then, rows in self._held_rows(view):
                group_rows(then, rows, state.segments)
        return state.segments

    # --- runs and resources -----------------------------------------------------------------------

    def _append_predictions(
        self, flush: Flush, view: ModelView, rows: Rows, starts: Ints, grouping: Grouping
    ) -> None:
        for shard, run in prediction_runs(view, rows, starts, grouping, self.shards):
            flush.runs.append((view.model, shard, run))

    def _labels(self, flush: Flush, view: ModelView, labels: LabelColumns) -> None:
        left_out, runs = queued_labels(view, labels, self.shards)
        if left_out:
            flush.classes[ClassKey("label", view.model, "unsampled")] += left_out
        for shard, run in runs:
            flush.classes[ClassKey("label", view.model, "queued")] += run.hashes.size
            flush.runs.append((view.model, shard, run))

    def _resources(self, flush: Flush, decoded: Decoded, views: Views) -> None:
        gauges: dict[tuple[str, int, str, str], dict[str, list[float]]] = {}

        def add(row: ResourceRow) -> None:
            start = start_of(row.time_ms, views[row.model].rules.pane_ms)
            place = gauges.setdefault((row.model, start, row.version, row.instance), {})
            for name, value in gauges_of(row.sample):
                place.setdefault(name, []).append(value)

        for row in decoded.resources:
            view = views[row.model]
            self._activate(flush, view)
            if row.time_ms > decoded.stamps_ms[row.record] + view.rules.future_ms:
                text = f"Event time {row.time_ms} is beyond its Kafka timestamp."
                decoded.rejects.append(Reject(row.record, "resource", row.model, "future", text))
                continue
            flush.classes[ClassKey("resource", row.model, "counted")] += 1
            add(row)
        for row in decoded.beside:
            if row.record in flush.fresh[row.model]:
                add(row)
        flush.resources = {key: ResourceState.observe(values) for key, values in gauges.items()}

    # --- writing ----------------------------------------------------------------------------------

    def _store(
        self, connection: Connection, flush: Flush, step: Advance, views: Views, now_ms: int
    ) -> None:
        pid, epoch = self.claim.partition_id, self.claim.epoch
        self.flush_seq = ledger.advance(connection, pid, epoch, step, now_ms)
        self._write(connection, flush, views, now_ms)

    def _write(self, connection: Connection, flush: Flush, views: Views, now_ms: int) -> None:
        pid = self.claim.partition_id
        flushes.activate(connection, pid, flush.revisions, flush.from_offset)
        self._seal(flush, views)
        panes.write_panes(
            connection, pid, self.flush_seq, [self.open[key] for key in flush.touched_panes]
        )
        watermarks.write_watermarks(
            connection,
            pid,
            self.flush_seq,
            (self.models[m].row(m) for m in sorted(flush.touched_models)),
        )
        for model, shard, run in flush.runs:
            write_run(
                connection,
                partition_id=pid,
                model=model,
                shard=shard,
                seq=self.flush_seq,
                next_offset=flush.next_offset,
                run=run,
            )
        resources.write_resources(connection, pid, self.flush_seq, flush.resources)
        flushes.keep_rejected(connection, pid, flush.rejected)
        flushes.see_versions(connection, {m: sorted(v) for m, v in flush.versions.items()}, now_ms)
        self.sampler.write(connection, now_ms)
        for model in sorted(flush.released):
            flushes.drop_held(connection, model, pid)
        self._hold(connection, flush, views, now_ms)
        ledger.add_classes(connection, pid, flush.classes)
        if self.has_losses and flush.first_record_ms is not None:
            ledger.close_losses(connection, pid, flush.first_record_ms, self.flush_seq)
            self.has_losses = False
        if closed := flush.touched_models & self.lossy:
            newest_ms = {m: self.models[m].newest_ms for m in closed}
            ledger.close_loss_ranges(connection, pid, newest_ms, self.flush_seq)
            self.lossy -= closed
        self.held = (self.held - flush.released) | flush.held.keys()

    def _hold(self, connection: Connection, flush: Flush, views: Views, now_ms: int) -> None:
        """Hold rows; when enough have come over all partitions, make the model's cuts from them."""
        for model, rows in sorted(flush.held.items()):
            flushes.lock_model(connection, model)
            flushes.hold_rows(
                connection,
                self.claim.partition_id,
                model,
                int(rows.offset[0]),
                rows.size,
                rows.to_bytes(),
            )
            wanted = views[model].contract.reference.rows
            enough = flushes.held_total(connection, model) >= wanted
            if not enough or active_cuts(connection, model) is not None:
                continue
            every = _every_held(connection, views[model])
            cuts_from_rows(
                connection,
                model,
                every.feature_values(),
                now_ms,
                prediction=every.prediction_values(),
                score=number_list(every.score),
            )

    def _seal(self, flush: Flush, views: Views) -> None:
        """Seal the panes that the flush's watermarks have passed."""
        for model in flush.touched_models:
            state = self.models[model]
            state.sealed_ms = sealed_to(views[model].rules, state.newest_ms, state.sealed_ms)
        for key, row in self.open.items():
            state = self.models[key.model]
            if key.pane_start_ms + row.pane_length_ms <= state.sealed_ms:
                flush.touched_panes.add(key)
        for key in flush.touched_panes:
            # Whoever asks which models a flush has touched asks the watermarks.
            flush.touched_models.add(key.model)
            row = self.open[key]
            sealed = key.pane_start_ms + row.pane_length_ms <= self.models[key.model].sealed_ms
            if sealed:
                self.open[key] = PaneRow(
                    key,
                    row.pane_length_ms,
                    row.state,
                    sealed=True,
                    first_offset=row.first_offset,
                    next_offset=row.next_offset,
                )

    def _evict(self, flush: Flush) -> None:
        """Forget sealed panes: their rows are in SQL, and no row may come to them any more.

        Of the ids of the others, keep as many as there is room for.
        """
        self.open = {key: row for key, row in self.open.items() if not row.sealed}
        for model, pane in flush.touched_ids:
            self.models[model].see(pane, self.flush_seq)
        for model in flush.touched_models:
            state = self.models[model]
            for pane in [pane for pane in state.flushes if sum(pane) <= state.sealed_ms]:
                del state.flushes[pane]
                state.hashes.pop(pane, None)
        if sum(state.id_bytes for state in self.models.values()) > self.id_bytes_max:
            self._let_go()

    def _let_go(self) -> int:
        """Let go of ids of panes behind the watermark until the rest fits; return the bytes left."""
        held = sum(state.id_bytes for state in self.models.values())
        behind = [
            (state.flushes[pane][1], pane, model)
            for model, state in self.models.items()
            for pane in state.hashes
            if sum(pane) <= state.watermark_ms
        ]
        for _, pane, model in sorted(behind):
            if held <= self.id_bytes_max:
                break
            held -= self.models[model].hashes.pop(pane).nbytes
        return held


class _Undone(Exception):  # noqa: N818 - no error: it rolls a probe back
    pass


def _every_held(connection: Connection, view: ModelView) -> Rows:
    """Return the rows held for a model in all partitions, each as the contract reads it now; there are some."""
    bodies = flushes.held_bodies(connection, view.model)
    return concatenate([Rows.from_bytes(body).under(view) for body in bodies])


def gauges_of(sample: ResourceSample) -> list[tuple[str, float]]:
    """Return the gauges of a sample by the names of its fields, those that were not measured left out."""
    named = ((name, getattr(sample, name)) for name in ResourceSample.__struct_fields__)
    return [(name, float(value)) for name, value in named if value is not None]
