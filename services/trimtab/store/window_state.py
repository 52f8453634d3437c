"""What is counted about a window: its panes, and the hours and days in it, merged."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, and_, or_, select

from trimtab.contracts.model import Contract
from trimtab.stats.aggregate import PaneState
from trimtab.store.ledger import lost_between
from trimtab.store.models import active_cuts
from trimtab.store.panes import PANE_KEY, origin_of
from trimtab.store.tables import panes, partitions, resource_rollups, rollups
from trimtab.windows.panes import start_of
from trimtab.windows.rollup import Origin, Resolution


class OffsetRange(Struct, frozen=True):
    """Offsets of one partition that a window's rows come from: [first, next)."""

    partition_id: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int


class WindowState(Struct, frozen=True, kw_only=True):
    """Everything counted about a window, over partitions, versions, arms and generations.

    `state` is None when nothing was counted. It holds every row; features and answers are those of the cuts
    that most rows were counted under, and `other_cuts_rows` says how many were not. `flushes` is the input's
    version: the last flush per partition.
    """

    start_ms: int
    end_ms: int
    cuts_id: str | None
    state: PaneState | None
    by_version: dict[str, PaneState]
    offsets: tuple[OffsetRange, ...]
    panes: int
    """Panes with rows."""
    flushes: dict[int, int]
    other_cuts_rows: int
    lost: int
    """Offsets lost whose records may have belonged here."""
    digest: str
    """SHA-256 of what was counted, by version, arm, traffic revision and cuts: equal counts, equal
    digest, wherever they are stored."""
    coarser: Resolution | None = None
    """Set when rows of the window may have become part of an hour or day that reaches beyond it: they are
    not in `state` then, and nothing can tell them apart any more."""

    @property
    def rows(self) -> int:
        """Rows counted, under whatever cuts."""
        return self.state.rows if self.state else 0


def window_state(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str = ""
) -> WindowState:
    """Merge the panes with start_ms <= pane start < end_ms.

    Hours and days that lie in the window count like the panes they were made of. Features are read under the
    cuts of most rows: a late row under newer cuts does not take the others from their window.
    """
    found = [
        *_unfolded(connection, model, start_ms, end_ms, segment),
        *_folded(connection, model, start_ms, end_ms, segment),
    ]
    coarser = _coarser(connection, model, start_ms, end_ms)
    origin = Origin.merged(one.origin for one in found)
    states = _by_series(found)
    cuts_id = _cuts_to_read(connection, model, states)
    by_version = _by_version(states, cuts_id)
    whole: PaneState | None = None
    for state in by_version.values():
        whole = state if whole is None else whole.merge(state)
    return WindowState(
        start_ms=start_ms,
        end_ms=end_ms,
        cuts_id=cuts_id,
        state=whole,
        by_version=by_version,
        offsets=_offsets(connection, origin),
        panes=len(origin.starts_ms),
        flushes={p.partition_id: p.flush_seq for p in origin.partitions},
        other_cuts_rows=sum(s.rows for series, s in states.items() if series[3] != cuts_id),
        lost=lost_between(connection, model, start_ms, end_ms),
        digest=_digest(states),
        coarser=coarser,
    )


def segment_states(
    connection: Connection, contract: Contract, start_ms: int, end_ms: int, cuts_id: str
) -> dict[str, PaneState]:
    """Return the counts of a window's segments under these cuts, over versions and arms, by `column=value`."""
    if not contract.windows.segments:
        return {}
    model = contract.name
    found: dict[str, PaneState] = {}
    queries = (
        select(panes.c.segment, panes.c.state).where(
            panes.c.model == model,
            panes.c.pane_start_ms >= start_ms,
            panes.c.pane_start_ms < end_ms,
            panes.c.segment != "",
            panes.c.cuts_id == cuts_id,
        ),
        select(rollups.c.segment, rollups.c.state).where(
            rollups.c.model == model,
            rollups.c.segment != "",
            rollups.c.cuts_id == cuts_id,
            or_(*(inside(rollups, r, start_ms, end_ms) for r in Resolution)),
        ),
    )
    for query in queries:
        for row in connection.execute(query):
            state = PaneState.from_bytes(row.state)
            found[row.segment] = found[row.segment].merge(state) if row.segment in found else state
    return dict(sorted(found.items()))


_Series = tuple[str, str, int, str]
"""Version, arm, traffic revision, cuts."""


class _Counted(Struct, frozen=True):
    """One stored state, folded or not, with where it comes from."""

    series: _Series
    state: bytes
    origin: Origin


def _unfolded(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str
) -> Iterator[_Counted]:
    for row in connection.execute(
        select(panes)
        .where(
            panes.c.model == model,
            panes.c.pane_start_ms >= start_ms,
            panes.c.pane_start_ms < end_ms,
            panes.c.segment == segment,
        )
        .order_by(*(panes.c[name] for name in PANE_KEY))
    ):
        yield _Counted(_series_of(row), row.state, origin_of(row))


def _folded(
    connection: Connection, model: str, start_ms: int, end_ms: int, segment: str
) -> Iterator[_Counted]:
    """What was folded and lies in the window as a whole."""
    for row in connection.execute(
        select(rollups)
        .where(
            rollups.c.model == model,
            rollups.c.segment == segment,
            or_(*(inside(rollups, r, start_ms, end_ms) for r in Resolution)),
        )
        .order_by(rollups.c.resolution, rollups.c.start_ms, rollups.c.version, rollups.c.arm)
    ):
        yield _Counted(_series_of(row), row.state, Origin.from_bytes(row.origin))


def inside(table: Any, resolution: Resolution, start_ms: int, end_ms: int) -> ColumnElement[bool]:
    """Return which roll-ups of a resolution lie in the window as a whole."""
    length_ms = 1 if resolution is Resolution.PANE else resolution.length_ms
    condition: ColumnElement[bool] = and_(
        table.c.resolution == resolution.value,
        table.c.start_ms >= start_ms,
        table.c.start_ms <= end_ms - length_ms,
    )
    return condition


def _coarser(connection: Connection, model: str, start_ms: int, end_ms: int) -> Resolution | None:
    """The coarsest roll-up that holds a part of the window and more than it."""
    for resolution in (Resolution.DAY, Resolution.HOUR):
        length_ms = resolution.length_ms
        edges = {start_of(start_ms, length_ms), start_of(end_ms - 1, length_ms)}
        beyond = [e for e in edges if e < start_ms or e + length_ms > end_ms]
        for table in (rollups, resource_rollups) if beyond else ():
            found = connection.scalar(
                select(table.c.start_ms)
                .where(
                    table.c.model == model,
                    table.c.resolution == resolution.value,
                    table.c.start_ms.in_(beyond),
                )
                .limit(1)
            )
            if found is not None:
                return resolution
    return None


def _series_of(row: Any) -> _Series:
    return (row.version, row.arm, row.traffic_revision, row.cuts_id)


def _by_series(found: Sequence[_Counted]) -> dict[_Series, PaneState]:
    states: dict[_Series, PaneState] = {}
    for one in found:
        state = PaneState.from_bytes(one.state)
        before = states.get(one.series)
        states[one.series] = state if before is None else before.merge(state)
    return dict(sorted(states.items()))


def _digest(states: Mapping[_Series, PaneState]) -> str:
    digest = hashlib.sha256()
    for series, state in states.items():
        digest.update(repr(series).encode())
        digest.update(state.to_bytes())
    return digest.hexdigest()


def _offsets(connection: Connection, origin: Origin) -> tuple[OffsetRange, ...]:
    ids = [p.partition_id for p in origin.partitions]
    places = {
        row.id: row
        for row in connection.execute(
            select(partitions.c.id, partitions.c.topic, partitions.c.partition).where(
                partitions.c.id.in_(ids)
            )
        )
    }
    return tuple(
        OffsetRange(
            p.partition_id,
            places[p.partition_id].topic,
            places[p.partition_id].partition,
            p.first_offset,
            p.next_offset,
        )
        for p in origin.partitions
    )


def _cuts_to_read(
    connection: Connection, model: str, states: Mapping[_Series, PaneState]
) -> str | None:
    """The cuts of most rows; the active ones where as many are under others, or where there are no rows."""
    active = active_cuts(connection, model)
    active_id = None if active is None else active.cuts_id
    rows: Counter[str] = Counter()
    for (*_, cuts_id), state in states.items():
        rows[cuts_id] += state.rows
    if not rows:
        return active_id
    return max(rows, key=lambda cuts_id: (rows[cuts_id], cuts_id == active_id, cuts_id))


def _by_version(states: Mapping[_Series, PaneState], cuts_id: str | None) -> dict[str, PaneState]:
    found: dict[str, PaneState] = {}
    for (version, *_, cuts), state in states.items():
        before = found.get(version, PaneState(str(cuts_id)))
        found[version] = before.merge(state) if cuts == cuts_id else before.with_uncut(state)
    return found
