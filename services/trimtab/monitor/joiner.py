"""The joiner: one fenced owner per (model, shard) merges label runs in sequence and writes deltas.

Its index is memory only; whoever takes a shard over rebuilds it from the runs up to the stored
positions, and goes on from there.
"""

from __future__ import annotations

import logging

from msgspec import Struct

from trimtab.errors import ConflictError
from trimtab.monitor.joining import Joining
from trimtab.store.engine import Store
from trimtab.store.labels import (
    JoinerClaim,
    StoredRun,
    claim_joiner,
    commit_merge,
    newest_run,
    release_joiner,
    rows_in_runs,
    runs_after,
    runs_up_to,
    shards_with_runs,
)

log = logging.getLogger(__name__)

HOLD_MS = 6_000
BATCH_ROWS = 100_000
LOOK_BACK_RUNS = 500
"""Transactions of several partitions commit out of the order of their ids; later ones look back."""
LOOK_AT_ALL_MS = 60_000
KEPT_ENTRIES = 100_000
"""An index this small (5 MB) is not worth a rebuild."""
_REBUILD_ROWS = 500_000


class _Owned(Struct):
    claim: JoinerClaim
    index: Joining


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
        """Return the shards that may have runs to merge: with new ones, or with more than one batch."""
        look_at_all = now_ms - self._looked_at_all_ms >= LOOK_AT_ALL_MS
        after_id = 0 if look_at_all else self._seen_id - LOOK_BACK_RUNS
        with self._store.read() as connection:
            newest = newest_run(connection)
            found = set(shards_with_runs(connection, after_id)) | self._behind
        self._seen_id, self._behind = newest, set()
        if look_at_all:
            self._looked_at_all_ms = now_ms
            self._let_go()
        return sorted(found)

    def _let_go(self) -> None:
        """Drop an index that is mostly of runs past retention: the next merge rebuilds it from the rest."""
        for (model, shard), owned in list(self._owned.items()):
            held = len(owned.index)
            if held <= KEPT_ENTRIES:
                continue
            with self._store.read() as connection:
                stored = rows_in_runs(connection, model, shard)
            if held > 2 * stored:
                log.info("The join index of %s shard %d held %d entries.", model, shard, held)
                del self._owned[model, shard]

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
        if not runs:
            return 0
        merge = owned.index.merge(runs)
        owned.claim = commit_merge(
            self._store, owned.claim, _positions(runs), merge.deltas, merge.classes, now_ms
        )
        return merge.rows

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
            owned = _Owned(claim, self._rebuild(claim))
            self._owned[key] = owned
        owned.claim = claim
        return owned

    def _rebuild(self, claim: JoinerClaim) -> Joining:
        index = Joining()
        with self._store.read() as connection:
            pending: list[StoredRun] = []
            rows = 0
            for stored in runs_up_to(connection, claim.model, claim.shard, claim.positions):
                pending.append(stored)
                rows += stored.run.hashes.size
                if rows >= _REBUILD_ROWS:
                    index.merge(pending)
                    pending, rows = [], 0
            index.merge(pending)
        return index


def _positions(runs: list[StoredRun]) -> dict[int, int]:
    newest: dict[int, int] = {}
    for stored in runs:
        newest[stored.partition_id] = max(newest.get(stored.partition_id, 0), stored.seq)
    return newest
