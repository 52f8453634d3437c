"""The joiner: one fenced owner per (model, shard) merges label runs in sequence and writes deltas.

Its index lives in memory. Checkpoints keep it in SQL: now and then, and whenever retention asks to let
something go. Whoever takes a shard over rebuilds the index from the kept runs and the few runs beyond
them, and goes on from there.
"""

from __future__ import annotations

import logging

from msgspec import Struct

from trimtab.errors import ConflictError
from trimtab.monitor.compaction import compact
from trimtab.monitor.joining import Joining
from trimtab.store.engine import Store
from trimtab.store.joiners import (
    JoinerClaim,
    claim_joiner,
    commit_merge,
    merged_positions,
    release_joiner,
    shards_to_expire,
)
from trimtab.store.kept import Checkpoint, commit_checkpoint, kept_heads, kept_run, next_expiry
from trimtab.store.label_runs import (
    StoredRun,
    newest_run,
    newest_runs,
    runs_after,
    runs_between,
)

log = logging.getLogger(__name__)

HOLD_MS = 6_000
BATCH_ROWS = 100_000
LOOK_BACK_RUNS = 500
"""Transactions of several partitions commit out of the order of their ids; later ones look back."""
LOOK_AT_ALL_MS = 60_000
EXPIRIES_PER_TICK = 50
"""A fleet is asked to let go of old labels all at once; what has come to be joined goes first."""
CHECKPOINT_ROWS = 500_000
CHECKPOINT_RUNS = 1_000
"""A checkpoint is made after so many rows or runs: more a rebuild need not read."""
KEPT_RUN_ROWS = 500_000
"""A kept run grows no further (5 to 15 MB), so a checkpoint rewrites no more than that."""
_REBUILD_ROWS = 500_000


class _Owned(Struct):
    claim: JoinerClaim
    index: Joining
    runs: int = 0
    """Merged since the last checkpoint."""


class Joiner:
    """Joins every model's labels that no other process joins. Not thread-safe."""

    def __init__(self, store: Store, owner: str, batch_rows: int = BATCH_ROWS) -> None:
        self._store, self._owner, self._batch_rows = store, owner, batch_rows
        self._owned: dict[tuple[str, int], _Owned] = {}
        self._seen_id = 0
        self._looked_at_all_ms = 0
        self._behind: set[tuple[str, int]] = set()

    def tick(self, now_ms: int) -> int:
        """Merge what is new; return the rows merged (predictions and labels)."""
        rows = 0
        for model, shard in self._candidates(now_ms):
            try:
                merged = self._tick(model, shard, now_ms)
                if merged:
                    self._behind.add((model, shard))
                rows += merged
            except ConflictError as error:
                log.info("%s", error)
                self._owned.pop((model, shard), None)
            except Exception:
                # The index may have taken in what was not committed: it is rebuilt.
                self._owned.pop((model, shard), None)
                raise
        return rows

    def _candidates(self, now_ms: int) -> list[tuple[str, int]]:
        """Return the shards that have something to do: runs that nobody has merged, or to let go."""
        look_at_all = now_ms - self._looked_at_all_ms >= LOOK_AT_ALL_MS
        with self._store.read() as connection:
            newest = newest_run(connection)
            # SQLite gives ids of deleted runs away again.
            after_id = 0 if look_at_all else min(self._seen_id, newest) - LOOK_BACK_RUNS
            newest_seqs = newest_runs(connection, max(0, after_id))
            stored = merged_positions(
                connection,
                sorted({model for model, shard in newest_seqs.keys() - self._owned.keys()}),
            )
            found = self._behind | set(shards_to_expire(connection, EXPIRIES_PER_TICK))
        for key, seqs in newest_seqs.items():
            owned = self._owned.get(key)
            merged = stored.get(key, {}) if owned is None else owned.claim.positions
            if any(seq > merged.get(partition_id, 0) for partition_id, seq in seqs.items()):
                found.add(key)
        self._seen_id, self._behind = newest, set()
        if look_at_all:
            self._looked_at_all_ms = now_ms
        return sorted(found)

    def stop(self) -> None:
        """Give every shard back, so that the next owner need not wait."""
        for owned in self._owned.values():
            release_joiner(self._store, owned.claim)
        self._owned.clear()

    def _tick(self, model: str, shard: int, now_ms: int) -> int:
        owned = self._own(model, shard, now_ms)
        if owned is None:
            return 0
        with self._store.read() as connection:
            runs = runs_after(
                connection, model, shard, owned.claim.positions, limit_rows=self._batch_rows
            )
        rows = 0
        if runs:
            merge = owned.index.merge(runs)
            owned.claim = commit_merge(
                self._store, owned.claim, _positions(runs), merge.deltas, merge.classes, now_ms
            )
            owned.runs += len(runs)
            rows = merge.rows
        with self._store.read() as connection:  # what was merged just now holds back what expires
            expire_to_ms = next_expiry(connection, owned.claim)
        many = owned.runs >= CHECKPOINT_RUNS or owned.index.touched_rows >= CHECKPOINT_ROWS
        if many or expire_to_ms is not None:
            self._checkpoint(owned, expire_to_ms, now_ms)
        return rows

    def _checkpoint(self, owned: _Owned, expire_to_ms: int | None, now_ms: int) -> None:
        """Keep what has changed, let go of what has expired, and merge small kept runs into one."""
        claim = owned.claim
        expired_to_ms = claim.expired_to_ms if expire_to_ms is None else expire_to_ms
        run, replaces = owned.index.keep(now_ms), []
        with self._store.read() as connection:
            heads = kept_heads(connection, claim.model, claim.shard)
            while heads:
                rows, last = run.rows, heads[-1]
                if last.rows > 2 * rows or last.rows + rows > KEPT_RUN_ROWS:
                    break
                heads.pop()
                replaces.append(last.number)
                older = kept_run(connection, claim.model, claim.shard, last.number)
                run = compact(older, run, None if heads else expired_to_ms)
        owned.claim = commit_checkpoint(
            self._store,
            claim,
            Checkpoint(
                positions=claim.positions,
                expired_to_ms=expired_to_ms,
                classes=owned.index.expire(expired_to_ms),
                run=run if run.rows else None,
                replaces=tuple(replaces),
            ),
            now_ms,
        )
        owned.runs = 0

    def _own(self, model: str, shard: int, now_ms: int) -> _Owned | None:
        key = (model, shard)
        owned = self._owned.get(key)
        if owned is not None and owned.claim.expires_ms - now_ms > HOLD_MS // 2:
            return owned
        claim = claim_joiner(self._store, model, shard, self._owner, now_ms, HOLD_MS)
        if claim is None:
            self._owned.pop(key, None)
            return None
        if owned is None or owned.claim.epoch != claim.epoch:
            owned = self._rebuild(claim)
            self._owned[key] = owned
        owned.claim = claim
        return owned

    def _rebuild(self, claim: JoinerClaim) -> _Owned:
        index, runs = Joining(), 0
        with self._store.read() as connection:
            for head in kept_heads(connection, claim.model, claim.shard):
                index.load(kept_run(connection, claim.model, claim.shard, head.number))
            index.expire(claim.expired_to_ms)
            pending: list[StoredRun] = []
            rows = 0
            beyond = runs_between(
                connection, claim.model, claim.shard, claim.kept_positions, claim.positions
            )
            for stored in beyond:
                runs += 1
                pending.append(stored)
                rows += stored.run.hashes.size
                if rows >= _REBUILD_ROWS:
                    index.merge(pending)
                    pending, rows = [], 0
            index.merge(pending)
        return _Owned(claim, index, runs)


def _positions(runs: list[StoredRun]) -> dict[int, int]:
    newest: dict[int, int] = {}
    for stored in runs:
        newest[stored.partition_id] = max(newest.get(stored.partition_id, 0), stored.seq)
    return newest
