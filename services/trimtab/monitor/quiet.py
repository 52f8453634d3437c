"""Which models have nothing to judge, found without asking the store for each.

Whether a model has something to judge follows from its contract, its flushes (of rows, and of gauges of windows
that were judged), what was lost, its joins, its watermark, and the clock: of a live model that is silent, and of revisions that
wait for their time. A model that was looked at and had nothing to judge has nothing
until one of these is another than then. All but the clock is read here for every model at once: what has
moved since the last look, and the partitions. Times are milliseconds since the epoch.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from sqlalchemy import Connection

from trimtab.contracts.model import Contract, Windows
from trimtab.store.joiners import joiner_positions
from trimtab.store.ledger import has_losses_since
from trimtab.store.models import ContractRow
from trimtab.store.resources import gauges_since
from trimtab.store.watermarks import (
    MarkRow,
    PartitionStand,
    last_flushes,
    marks_since,
    newest_row,
    partition_stands,
    progress_of_model,
)
from trimtab.windows.lateness import TimeRules
from trimtab.windows.watermark import Watermark, model_watermark

LIVE_MS = 600_000
"""A model whose newest row was this close to its Kafka time (or ten windows, if longer) runs live: when it
falls silent, the wall clock closes its windows as `no_data`. A replay of the past does not."""
MARKS_KEPT = 8
"""Watermarks under which a model was found quiet: a partition that lags now and then has two."""


def closed_to(
    contract: Contract,
    mark: Watermark,
    evaluated_to_ms: int,
    rows: Iterable[MarkRow],
    now_ms: int,
) -> int:
    """Up to where windows are closed: by the watermark, past a stall, or by a live model's silence."""
    if mark.reason == "stalled" and mark.beyond_ms is not None:
        return max(mark.beyond_ms, mark.ms or evaluated_to_ms)
    if mark.ms is None:
        return evaluated_to_ms
    if mark.reason != "idle" or not _is_live(contract.windows, newest_row(rows)):
        return mark.ms
    windows = contract.windows
    silent_to_ms = now_ms - windows.out_of_order_ms - windows.idle_ms - windows.length_ms
    return max(mark.ms, silent_to_ms)


def _is_live(windows: Windows, newest: MarkRow | None) -> bool:
    return newest is not None and abs(newest.last_row_record_ms - newest.newest_ms) < max(
        LIVE_MS, 10 * windows.length_ms
    )


class _Found(Struct):
    """A model that had nothing to judge."""

    row: ContractRow
    rules: TimeRules
    next_end_ms: int | None
    """End of the next window to judge; None while the model has none: then only a flush of rows gives it one."""
    marks: list[Watermark]
    """Under any of these it had nothing to judge."""
    again_ms: int | None
    """When a revision that waits may be judged; None where none does."""

    def has_judged(self, start_ms: int) -> bool:
        """Whether what begins then lies in a window that was judged."""
        length_ms = self.row.contract.windows.length_ms
        return self.next_end_ms is not None and start_ms < self.next_end_ms - length_ms


class Quiet:
    """The models that had nothing to judge. `look` begins a tick; what was found before it holds or goes."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}
        self._rows: dict[str, dict[int, MarkRow]] = {}
        self._flushes: dict[int, int] = {}
        self._joins: dict[tuple[str, int], int] = {}
        self._stands: list[PartitionStand] = []

    def clear(self) -> None:
        """Forget what was found: another evaluator may have judged since."""
        self._found.clear()

    def look(self, connection: Connection) -> None:
        """Read what has moved since the last look, and forget the models that have.

        A gauge moves a model only if its window was judged: of an open one it is read when that closes.
        """
        self._stands = partition_stands(connection)
        for partition_id, flush_seq in last_flushes(connection).items():
            seen = self._flushes.get(partition_id, -1)
            if flush_seq <= seen:
                continue
            for model, row in marks_since(connection, partition_id, seen):
                self._rows.setdefault(model, {})[partition_id] = row
                self._found.pop(model, None)
            if has_losses_since(connection, partition_id, seen):
                self._found.clear()
            if self._found:
                for model, start_ms in gauges_since(connection, partition_id, seen):
                    found = self._found.get(model)
                    if found is not None and found.has_judged(start_ms):
                        del self._found[model]
            self._flushes[partition_id] = flush_seq
        joins = joiner_positions(connection)
        for key in joins.items() - self._joins.items():
            self._found.pop(key[0][0], None)
        self._joins = joins

    def has_nothing(self, row: ContractRow, now_ms: int) -> bool:
        """Whether the model was looked at and nothing that it depends on has become another."""
        model = row.contract.name
        found = self._found.get(model)
        if found is None or found.row is not row:
            return False
        if found.next_end_ms is None:
            return True
        if found.again_ms is not None and now_ms >= found.again_ms:
            return False
        mine = self._rows.get(model, {})
        mark = self._mark(found, mine, now_ms)
        if mark not in found.marks:
            return False
        if mark.reason != "idle":
            return True
        end_ms = found.next_end_ms
        return closed_to(row.contract, mark, end_ms - 1, mine.values(), now_ms) < end_ms

    def _mark(self, found: _Found, mine: Mapping[int, MarkRow], now_ms: int) -> Watermark:
        partitions = progress_of_model(self._stands, mine, found.row.contract.source.topics)
        return model_watermark(partitions, found.rules, now_ms)

    def remember(
        self,
        row: ContractRow,
        mark: Watermark | None,
        next_end_ms: int | None,
        again_ms: int | None,
    ) -> None:
        """Remember that there was nothing to judge under this watermark, since `look` or earlier.

        Nor will there be before `again_ms`, unless something moves.
        """
        model = row.contract.name
        found = self._found.get(model)
        if found is None or found.row is not row or found.next_end_ms != next_end_ms:
            rules = TimeRules.of(row.contract.windows)
            found = self._found[model] = _Found(row, rules, next_end_ms, [], again_ms)
        found.again_ms = again_ms
        if mark is not None and mark not in found.marks:
            found.marks = [*found.marks, mark][-MARKS_KEPT:]

    def forget(self, model: str) -> None:
        """Forget a model that had something to judge."""
        self._found.pop(model, None)
