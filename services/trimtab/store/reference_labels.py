"""What `reference` is in a rule on performance: joined labels of the baseline's own windows, by version.

While these labels may still come they are read from the performance of the baseline's windows, so that late and
corrected ones count. When their time has run out (`labels.judge_after`) and there are enough, or when retention
is about to let them go, their sum is stored beside the baseline, once and for all (`labels_due`, `keep_labels`).
The sum of a file's label column is stored there from the beginning.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, func, insert, select

from trimtab.contracts.model import Contract
from trimtab.stats.performance import PerformanceState, merge_all
from trimtab.store.performance import VersionPerformance, window_performance
from trimtab.store.tables import baseline_performance, baseline_windows, baselines, performance

Signature = tuple[int, ...]
"""What changes whenever a label of a window changes."""


class Place(Struct, frozen=True):
    """Where a baseline's windows are; `starts_ms` is empty of a file without times."""

    starts_ms: tuple[int, ...]
    length_ms: int
    is_file: bool

    @property
    def to_ms(self) -> int | None:
        """End of its last window."""
        return self.starts_ms[-1] + self.length_ms if self.starts_ms else None


def place_of(connection: Connection, baseline_id: int) -> Place:
    """Return where a baseline's windows are."""
    row = connection.execute(
        select(baselines.c.from_ms, baselines.c.to_ms, baselines.c.source).where(
            baselines.c.id == baseline_id
        )
    ).one()
    is_file = row.source.startswith("file ")
    if row.from_ms is None:
        return Place((), 0, is_file)
    starts = tuple(
        connection.scalars(
            select(baseline_windows.c.window_start_ms)
            .where(baseline_windows.c.baseline_id == baseline_id)
            .order_by(baseline_windows.c.window_start_ms)
        )
    )
    return Place(starts, row.to_ms - starts[-1], is_file)


def kept_labels(connection: Connection, baseline_id: int) -> dict[str, VersionPerformance] | None:
    """Return the labels that are stored beside a baseline; None while they may still come."""
    table = baseline_performance.c
    rows = connection.execute(
        select(baseline_performance).where(table.baseline_id == baseline_id).order_by(table.version)
    ).all()
    found = {
        row.version: VersionPerformance(
            PerformanceState.from_bytes(bytes(row.state)), row.labelled_rows, row.predicted_rows
        )
        for row in rows
    }
    return found or None


def window_signatures(connection: Connection, model: str, place: Place) -> dict[int, Signature]:
    """Return a signature of the labels of each of a baseline's windows that has any, without reading states."""
    columns = performance.c
    start_ms = columns.pane_start_ms - columns.pane_start_ms % place.length_ms
    rows = connection.execute(
        select(
            start_ms.label("start_ms"),
            func.count().label("panes"),
            func.sum(columns.labelled_rows).label("labelled"),
            func.sum(columns.predicted_rows).label("predicted"),
            func.sum(columns.position).label("positions"),
        )
        .where(*_within(model, place))
        .group_by(start_ms)
    )
    own = set(place.starts_ms)
    return {
        int(row.start_ms): tuple(map(int, (row.panes, row.labelled, row.predicted, row.positions)))
        for row in rows
        if int(row.start_ms) in own
    }


def window_labels(
    connection: Connection, model: str, place: Place, start_ms: int
) -> dict[str, VersionPerformance]:
    """Return the labels that have come so far for rows of one of a baseline's windows, by version."""
    return window_performance(connection, model, start_ms, start_ms + place.length_ms)


def pooled(windows: Iterable[Mapping[str, VersionPerformance]]) -> dict[str, VersionPerformance]:
    """Return the labels of several windows together, by version."""
    parts: dict[str, list[VersionPerformance]] = {}
    for by_version in windows:
        for version, one in by_version.items():
            parts.setdefault(version, []).append(one)
    return {
        version: VersionPerformance(
            merge_all(one.state for one in found) or PerformanceState(),
            sum(one.labelled_rows for one in found),
            sum(one.predicted_rows for one in found),
        )
        for version, found in sorted(parts.items())
    }


def _within(model: str, place: Place) -> tuple[ColumnElement[bool], ...]:
    columns = performance.c
    return (
        columns.model == model,
        columns.segment == "",
        columns.pane_start_ms >= place.starts_ms[0],
        columns.pane_start_ms < place.to_ms,
    )


def labels_due(
    connection: Connection, contract: Contract, newest_ms: int, expire_to_ms: int
) -> dict[int, dict[str, VersionPerformance]]:
    """Return the labels, by baseline, that should now be stored beside it.

    That is so when some of them are about to expire (from before `expire_to_ms`), or when they are waited for no
    longer and one version has `windows.min_rows` of them; later labels of the same windows change nothing any more.
    """
    stored = select(baseline_performance.c.baseline_id)
    rows = connection.execute(
        select(baselines.c.id, baselines.c.from_ms, baselines.c.to_ms).where(
            baselines.c.model == contract.name,
            baselines.c.number > 0,
            baselines.c.from_ms.is_not(None),
            baselines.c.id.not_in(stored),
        )
    ).all()
    after_ms = contract.labels.judge_after_ms
    due: dict[int, dict[str, VersionPerformance]] = {}
    for row in rows:
        expires = row.from_ms < expire_to_ms
        if not expires and (after_ms is None or row.to_ms + after_ms > newest_ms):
            continue
        place = place_of(connection, row.id)
        most = _most_labelled(connection, contract.name, place)
        if most is not None and (expires or most >= contract.windows.min_rows):
            starts = window_signatures(connection, contract.name, place)
            found = pooled(
                window_labels(connection, contract.name, place, start_ms) for start_ms in starts
            )
            if found:
                due[row.id] = found
    return due


def _most_labelled(connection: Connection, model: str, place: Place) -> int | None:
    """Return the labelled rows of the version with most; None where nothing was joined."""
    labelled = func.sum(performance.c.labelled_rows)
    found = connection.scalars(
        select(labelled).where(*_within(model, place)).group_by(performance.c.version)
    ).all()
    return max((int(rows) for rows in found), default=None)


def keep_labels(
    connection: Connection, baseline_id: int, labels: Mapping[str, VersionPerformance]
) -> None:
    """Store labels beside a baseline that has none stored yet."""
    connection.execute(
        insert(baseline_performance),
        [
            {
                "baseline_id": baseline_id,
                "version": version,
                "labelled_rows": one.labelled_rows,
                "predicted_rows": one.predicted_rows,
                "state": one.state.to_bytes(),
            }
            for version, one in sorted(labels.items())
        ],
    )
