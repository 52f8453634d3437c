"""What label-free estimates are calibrated on: labels of a baseline's windows, by version, segment and score bin.

While these labels are kept they are read from the performance of the baseline's windows, so that late
and corrected ones count. When they are waited for no longer, or retention would let them go, they are written
into the baseline's notes (`notes_due`). A baseline from a file has those of the file's label column there from the beginning.
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, and_, func, select, update

from trimtab.contracts.model import Contract
from trimtab.detect.label_gaps import LEAST_OF_SEGMENT
from trimtab.detect.label_residuals import LabelledWindow
from trimtab.detect.score_calibration import LabelledScores
from trimtab.stats.performance import PerformanceState, merge_all
from trimtab.stats.score_figures import hits_and_misses
from trimtab.stats.scorebins import BINS
from trimtab.store.performance import window_performance
from trimtab.store.tables import baselines, performance
from trimtab.windows.panes import start_of

NOTE, FILE = "labelled_scores", ""
"""Key in a baseline's notes, and the version that stands for the labels of a file."""
MOST_WINDOWS, MOST_PANES = 50, 3_000
"""Recent windows with labels that a calibrator is checked against, and the panes looked at for them."""
MOST_SEGMENTS, MOST_SEGMENT_PANES = 50, 100_000
"""Segments of a baseline that are kept or looked at, those with most labels, and the panes read for them."""

Segments = dict[str, LabelledScores]
"""Labelled rows of one version by `column=value`."""
_Rows = list[tuple[int, int, int]]
"""(bin, hits, misses) of each bin that has any."""
Signature = tuple[int, ...]
"""What changes whenever labels of a range of panes change."""


class Reference(Struct, frozen=True):
    """Labels of one version under a baseline; `since_ms` is the end of its windows, or when it was made.

    `counts` are those of its notes; without them the labels are those in `range_ms`, the baseline's windows
    (None of a file without times). `segments` go with `counts`; None where the notes know of none.
    """

    since_ms: int
    counts: LabelledScores | None = None
    range_ms: tuple[int, int] | None = None
    segments: Segments | None = None


class _Note(Struct, frozen=True):
    """A baseline's note. `positive` is the class that hits were counted of, None for several classes."""

    positive: str | None
    versions: dict[str, _Rows]
    segments: dict[str, dict[str, _Rows]] | None = None
    """By version and segment; None in notes from before they were kept."""


def counts_of(state: PerformanceState, contract: Contract) -> LabelledScores:
    """Return joined rows by score bin. Negative counts (a label taken back early) count as none."""
    sides = hits_and_misses(state.scored, _positive(contract))
    hits, misses = (tuple(side.clip(min=0).tolist()) for side in sides)
    return LabelledScores(hits, misses)


def _positive(contract: Contract) -> str | None:
    return contract.prediction.positive if contract.task == "binary" else None


def labelled_scores_note(
    contract: Contract,
    by_version: Mapping[str, PerformanceState],
    segments: Mapping[str, Segments],
) -> dict[str, Any]:
    """Return the entry of a baseline's notes that keeps these labels, and those of segments by version."""
    versions = {v: _rows(counts_of(state, contract)) for v, state in sorted(by_version.items())}
    named = {
        version: {name: _rows(one) for name, one in sorted(most_labelled(found).items())}
        for version, found in sorted(segments.items())
    }
    return {NOTE: msgspec.to_builtins(_Note(_positive(contract), versions, named))}


def most_labelled(segments: Segments) -> Segments:
    """Return the segments that have labels enough to say something of them, at most MOST_SEGMENTS."""
    enough = {name: one for name, one in segments.items() if one.labels >= LEAST_OF_SEGMENT}
    names = sorted(enough, key=lambda name: (-enough[name].labels, name))[:MOST_SEGMENTS]
    return {name: enough[name] for name in sorted(names)}


def _rows(counts: LabelledScores) -> _Rows:
    rows = zip(range(BINS), counts.hits, counts.misses, strict=True)
    return [row for row in rows if row[1] or row[2]]


def _noted(rows: _Rows) -> LabelledScores:
    hits, misses = [0] * BINS, [0] * BINS
    for place, hit, miss in rows:
        hits[place], misses[place] = hit, miss
    return LabelledScores(tuple(hits), tuple(misses))


def reference_of(
    connection: Connection, contract: Contract, baseline_id: int, version: str
) -> Reference:
    """Return where a version's labels are under a baseline."""
    row = connection.execute(
        select(
            *(baselines.c.from_ms, baselines.c.to_ms, baselines.c.body, baselines.c.created_ms)
        ).where(baselines.c.id == baseline_id)
    ).one()
    since_ms = row.created_ms if row.to_ms is None else row.to_ms
    range_ms = None if row.from_ms is None else (row.from_ms, row.to_ms)
    notes = msgspec.json.decode(row.body)
    if NOTE in notes:
        note = msgspec.convert(notes[NOTE], _Note)
        if note.positive == _positive(contract):
            for name in (version, FILE):
                if name in note.versions:
                    segments = None
                    if note.segments is not None:
                        kept = note.segments.get(name, {})
                        segments = {segment: _noted(rows) for segment, rows in kept.items()}
                    return Reference(since_ms, _noted(note.versions[name]), range_ms, segments)
    return Reference(since_ms, None, range_ms)


def range_signature(
    connection: Connection, model: str, version: str, from_ms: int, to_ms: int
) -> Signature:
    """Return a signature of a version's labels in [from_ms, to_ms) without reading their states."""
    columns = performance.c
    row = connection.execute(
        select(func.count(), func.sum(columns.labelled_rows), func.sum(columns.position)).where(
            columns.model == model,
            columns.version == version,
            columns.segment == "",
            columns.pane_start_ms >= from_ms,
            columns.pane_start_ms < to_ms,
        )
    ).one()
    return tuple(int(value or 0) for value in row)


def range_counts(
    connection: Connection, contract: Contract, version: str, from_ms: int, to_ms: int
) -> LabelledScores:
    """Return the labelled rows of a version in [from_ms, to_ms) by score bin."""
    found = window_performance(connection, contract.name, from_ms, to_ms).get(version)
    return counts_of(PerformanceState() if found is None else found.state, contract)


def range_segments(
    connection: Connection, contract: Contract, version: str, from_ms: int, to_ms: int
) -> Segments:
    """Return the labelled rows of a version in [from_ms, to_ms) by segment and score bin.

    Of the segments of the contract those with most labels; fewer where their panes are very many.
    """
    if not contract.windows.segments:
        return {}
    columns = performance.c
    mine = and_(
        columns.model == contract.name,
        columns.version == version,
        columns.pane_start_ms >= from_ms,
        columns.pane_start_ms < to_ms,
        columns.labelled_rows > 0,
    )
    labels = func.sum(columns.labelled_rows)
    heads = connection.execute(
        select(columns.segment, func.count())
        .where(mine, columns.segment != "")
        .group_by(columns.segment)
        .having(labels >= LEAST_OF_SEGMENT)
        .order_by(labels.desc(), columns.segment)
        .limit(MOST_SEGMENTS)
    ).all()
    found: Segments = {}
    panes = 0
    for segment, count in heads:
        panes += count
        if panes > MOST_SEGMENT_PANES:
            break
        if segment.partition("=")[0] not in contract.windows.segments:
            continue
        states = connection.scalars(select(columns.state).where(mine, columns.segment == segment))
        merged = merge_all(PerformanceState.from_bytes(state) for state in states)
        if merged is not None:
            found[segment] = counts_of(merged, contract)
    return found


def labelled_windows(
    connection: Connection, contract: Contract, version: str
) -> dict[int, Signature]:
    """Return the newest windows of a version that have labels: start to signature, oldest first."""
    length_ms, columns = contract.windows.length_ms, performance.c
    rows = connection.execute(
        select(columns.pane_start_ms, columns.labelled_rows, columns.position)
        .where(
            columns.model == contract.name,
            columns.version == version,
            columns.segment == "",
            columns.labelled_rows > 0,
        )
        .order_by(columns.pane_start_ms.desc())
        .limit(MOST_PANES)
    ).all()
    windows: dict[int, Signature] = {}
    for pane_start_ms, labelled, position in rows:
        start_ms = start_of(pane_start_ms, length_ms)
        if start_ms not in windows and len(windows) == MOST_WINDOWS:
            break
        before = windows.get(start_ms, (0, 0, 0))
        windows[start_ms] = (before[0] + 1, before[1] + labelled, before[2] + position)
    if len(rows) == MOST_PANES and len(windows) > 1:  # the oldest may have been cut
        del windows[min(windows)]
    return dict(sorted(windows.items()))


def labelled_window(
    connection: Connection, contract: Contract, version: str, start_ms: int
) -> LabelledWindow:
    """Return the labelled rows of one window by score bin."""
    end_ms = start_ms + contract.windows.length_ms
    counts = range_counts(connection, contract, version, start_ms, end_ms)
    return LabelledWindow(start_ms, counts.hits, counts.misses)


def window_segments(
    connection: Connection,
    contract: Contract,
    version: str,
    start_ms: int,
    segments: Collection[str],
) -> Segments:
    """Return the labelled rows of one window by score bin, of each of these segments that has some."""
    end_ms = start_ms + contract.windows.length_ms
    named: Segments = {}
    for segment in segments:
        found = window_performance(connection, contract.name, start_ms, end_ms, segment)
        if version in found and found[version].labelled_rows > 0:
            named[segment] = counts_of(found[version].state, contract)
    return named


def notes_due(
    connection: Connection, contract: Contract, newest_ms: int, expire_to_ms: int
) -> dict[int, dict[str, Any]]:
    """Return the notes, by baseline, that should now keep the labels of its windows.

    That is so when some of them are about to expire (from before `expire_to_ms`), or when they are waited for no
    longer (`labels.judge_after`) and suffice; later labels of the same windows change nothing any more.
    """
    if contract.task == "regression":
        return {}
    rows = connection.execute(
        select(baselines.c.id, baselines.c.from_ms, baselines.c.to_ms, baselines.c.body).where(
            baselines.c.model == contract.name,
            baselines.c.number > 0,
            baselines.c.from_ms.is_not(None),
        )
    ).all()
    after_ms = contract.labels.judge_after_ms
    due: dict[int, dict[str, Any]] = {}
    for row in rows:
        expires = row.from_ms < expire_to_ms
        if not expires and (after_ms is None or row.to_ms + after_ms > newest_ms):
            continue
        notes = msgspec.json.decode(row.body)
        if NOTE in notes:
            continue
        found = window_performance(connection, contract.name, row.from_ms, row.to_ms)
        scored = {version: one.state for version, one in found.items() if one.state.scored}
        short = not scored or any(counts_of(s, contract).shortage for s in scored.values())
        if expires or not short:
            span = (row.from_ms, row.to_ms)
            segments = {
                version: range_segments(connection, contract, version, *span) for version in scored
            }
            due[row.id] = notes | labelled_scores_note(contract, scored, segments)
    return due


def keep_notes(connection: Connection, due: dict[int, dict[str, Any]]) -> None:
    """Store what `notes_due` gave."""
    for baseline_id, notes in due.items():
        connection.execute(
            update(baselines)
            .where(baselines.c.id == baseline_id)
            .values(body=msgspec.json.encode(notes).decode())
        )
