"""Verdicts by window and revision, and the evaluator's memory of where it is."""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Select, func, insert, select, update
from sqlalchemy.sql.elements import ColumnElement

from trimtab.errors import NotFoundError
from trimtab.records import Evidence, Finding, Reason, Verdict
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.ledger import losses_since
from trimtab.store.tables import (
    evaluations,
    panes,
    partitions,
    performance,
    resource_panes,
    verdicts,
    watermarks,
)

_ENCODER = msgspec.json.Encoder(order="deterministic")


class VerdictRow(Struct, frozen=True):
    """A stored verdict."""

    id: int
    verdict: Verdict
    created_ms: int


def latest_verdicts(
    source: Store | Connection, model: str, limit: int = 20, before_ms: int | None = None
) -> list[VerdictRow]:
    """Return the latest revision of each window, newest window first; `before_ms` pages by start."""
    query = _latest(model)
    if before_ms is not None:
        query = query.where(verdicts.c.window_start_ms < before_ms)
    return _rows(source, query.order_by(verdicts.c.window_start_ms.desc()).limit(limit))


def verdicts_between(
    source: Store | Connection, model: str, from_ms: int, to_ms: int
) -> list[VerdictRow]:
    """Return the latest revision of each window that starts in [from_ms, to_ms), oldest first."""
    query = _latest(model).where(
        verdicts.c.window_start_ms >= from_ms, verdicts.c.window_start_ms < to_ms
    )
    return _rows(source, query.order_by(verdicts.c.window_start_ms))


def verdict_history(store: Store, model: str, window_start_ms: int) -> list[VerdictRow]:
    """Return every revision of one window, first revision first."""
    query = (
        select(verdicts.c.id, verdicts.c.body, verdicts.c.created_ms)
        .where(verdicts.c.model == model, verdicts.c.window_start_ms == window_start_ms)
        .order_by(verdicts.c.revision)
    )
    return _rows(store, query)


def verdict(store: Store, verdict_id: int) -> VerdictRow:
    """Return one verdict. Raises NotFoundError."""
    query = select(verdicts.c.id, verdicts.c.body, verdicts.c.created_ms).where(
        verdicts.c.id == verdict_id
    )
    found = _rows(store, query)
    if not found:
        raise NotFoundError(
            f"There is no verdict {verdict_id}. `trimtab window list MODEL` names them."
        )
    return found[0]


def add_verdict(connection: Connection, new: Verdict, now_ms: int) -> int | None:
    """Insert a verdict and make it its window's latest; None when the latest rests on this evidence already.

    Evidence may come back: a label is withdrawn, a loss turns out to lie elsewhere. Then it is judged again.
    """
    known = connection.scalar(
        select(verdicts.c.id).where(
            verdicts.c.model == new.model,
            verdicts.c.window_start_ms == new.window_start_ms,
            verdicts.c.input_digest == new.evidence.input_digest,
            verdicts.c.latest,
        )
    )
    if known is not None:
        return None
    connection.execute(
        update(verdicts)
        .where(
            verdicts.c.model == new.model,
            verdicts.c.window_start_ms == new.window_start_ms,
            verdicts.c.latest,
        )
        .values(latest=False)
    )
    added = connection.execute(
        insert(verdicts)
        .values(
            model=new.model,
            window_start_ms=new.window_start_ms,
            window_end_ms=new.window_end_ms,
            revision=new.revision,
            latest=True,
            outcome=str(new.outcome),
            kind=None if new.kind is None else str(new.kind),
            reason=str(new.reason),
            rows=new.figures["rows"],
            input_digest=new.evidence.input_digest,
            body=_ENCODER.encode(new).decode(),
            created_ms=now_ms,
        )
        .returning(verdicts.c.id)
    ).scalar_one()
    return int(added)


def _latest(model: str) -> Select[Any]:
    return select(verdicts.c.id, verdicts.c.body, verdicts.c.created_ms).where(
        verdicts.c.model == model, verdicts.c.latest
    )


def _rows(source: Store | Connection, query: Select[Any]) -> list[VerdictRow]:
    if isinstance(source, Connection):
        found = source.execute(query).all()
    else:
        with source.read() as connection:
            found = connection.execute(query).all()
    return [
        VerdictRow(row.id, msgspec.json.decode(row.body, type=Verdict), row.created_ms)
        for row in found
    ]


# --- what earlier verdicts remember ---------------------------------------------------------------


class HeadFigures(Struct, frozen=True):
    """The few figures that say what changed between two revisions."""

    rows: int
    performance: dict[str, dict[str, Any]] = {}
    resources: dict[str, dict[str, Any]] | None = None
    """None where retention has taken them."""
    detector: dict[str, Any] | None = None
    """What the detector said of the window."""

    @property
    def labelled_rows(self) -> int:
        """Labelled rows over all versions."""
        return sum(p["labelled_rows"] for p in self.performance.values())

    @property
    def resource_samples(self) -> int | None:
        """Samples of all gauges; None where that is not known any more."""
        if self.resources is None:
            return None
        return sum(int(gauge["samples"]) for gauge in self.resources.values())


class Head(Struct, frozen=True):
    """The parts of a verdict that later windows and revisions need; cheap to read."""

    window_start_ms: int
    window_end_ms: int
    revision: int
    reason: Reason
    findings: list[Finding]
    evidence: Evidence
    figures: HeadFigures
    created_ms: int = 0


def heads_between(connection: Connection, model: str, from_ms: int, to_ms: int) -> list[Head]:
    """Return the latest verdict's head of each window that starts in [from_ms, to_ms), oldest first."""
    rows = connection.execute(
        select(verdicts.c.body, verdicts.c.created_ms)
        .where(
            verdicts.c.model == model,
            verdicts.c.latest,
            verdicts.c.window_start_ms >= from_ms,
            verdicts.c.window_start_ms < to_ms,
        )
        .order_by(verdicts.c.window_start_ms)
    ).all()
    return [head_of(row.body, row.created_ms) for row in rows]


def head_of(body: str | bytes, created_ms: int) -> Head:
    """Read the head of a verdict's JSON."""
    return msgspec.structs.replace(msgspec.json.decode(body, type=Head), created_ms=created_ms)


# --- the evaluator's memory -------------------------------------------------------------------------


class Progress(Struct, frozen=True, kw_only=True):
    """Where the evaluation of one model is. Written with the verdicts, in one transaction."""

    evaluated_to_ms: int
    """Windows that end at or before this have a verdict, or lie inside a long gap without rows."""
    seen: dict[str, int] = {}
    """By partition: the flush up to which counts and gauges of panes were looked at."""
    joined: dict[str, int] = {}
    """By hash shard: the joiner's position up to which labels were looked at."""
    pending: list[int] = []
    """Starts of windows that changed and still wait for their revision."""
    due_to_ms: int | None = None
    """Windows that end at or before this have been told that their labels are due."""
    empty_windows: int = 0
    """Windows without rows at the end of the series so far."""


def progress_of(connection: Connection, model: str) -> Progress | None:
    """Return where the evaluation of a model is; None before its first window."""
    body = connection.scalar(select(evaluations.c.state).where(evaluations.c.model == model))
    return None if body is None else msgspec.json.decode(body, type=Progress)


def save_progress(connection: Connection, model: str, progress: Progress, now_ms: int) -> None:
    """Store where the evaluation of a model is."""
    values = {
        "evaluated_to_ms": progress.evaluated_to_ms,
        "state": _ENCODER.encode(progress).decode(),
        "updated_ms": now_ms,
    }
    connection.execute(
        insert_for(connection, evaluations)
        .values(model=model, **values)
        .on_conflict_do_update(index_elements=[evaluations.c.model], set_=values)
    )


class Touched(Struct, frozen=True):
    """What changed since the positions that were passed: pane starts, and the new positions."""

    pane_starts_ms: frozenset[int]
    positions: dict[str, int]
    windows_ms: frozenset[int] = frozenset()
    """Starts of judged windows whose messages may count as lost now, or may no longer."""


def flushed_since(connection: Connection, model: str, seen: Mapping[str, int]) -> Touched:
    """Return what was flushed, or found lost, after the positions `seen` (partition id to flush)."""
    found: set[int] = set()
    positions = dict(seen)
    for table, last_flushes in (
        (panes, _last_flushes_of_rows(model)),
        (resource_panes, _last_flushes_of_gauges(model)),
    ):
        for partition_id, last_seq in connection.execute(last_flushes).all():
            key = str(partition_id)
            if last_seq is None or last_seq <= seen.get(key, -1):
                continue
            rows = connection.execute(
                select(table.c.pane_start_ms, func.max(table.c.flush_seq))
                .where(
                    table.c.model == model,
                    table.c.partition_id == partition_id,
                    table.c.flush_seq > seen.get(key, -1),
                )
                .group_by(table.c.pane_start_ms)
            ).all()
            for start_ms, flush_seq in rows:
                found.add(start_ms)
                positions[key] = max(positions.get(key, -1), flush_seq)
    windows = set[int]()
    for span in losses_since(connection, model, seen):
        key = str(span.partition_id)
        positions[key] = max(positions.get(key, -1), span.flush_seq)
        windows.update(windows_within(connection, model, span.from_ms, span.to_ms))
    return Touched(frozenset(found), positions, frozenset(windows))


def _last_flushes_of_rows(model: str) -> Select[Any]:
    return select(watermarks.c.partition_id, watermarks.c.flush_seq).where(
        watermarks.c.model == model
    )


def _last_flushes_of_gauges(model: str) -> Select[Any]:
    """Of every partition, from the index: null where it has brought no gauge of the model."""
    newest = (
        select(func.max(resource_panes.c.flush_seq))
        .where(resource_panes.c.model == model, resource_panes.c.partition_id == partitions.c.id)
        .scalar_subquery()
    )
    return select(partitions.c.id, newest).where(partitions.c.consumer == "monitor")


def joined_since(connection: Connection, model: str, joined: Mapping[str, int]) -> Touched:
    """Return the panes whose performance changed after the positions `joined` (shard to position)."""
    found: set[int] = set()
    positions = dict(joined)
    newest = connection.execute(
        select(performance.c.shard, func.max(performance.c.position))
        .where(performance.c.model == model)
        .group_by(performance.c.shard)
    ).all()
    for shard, position in newest:
        key = str(shard)
        if position <= joined.get(key, -1):
            continue
        found.update(
            connection.scalars(
                select(performance.c.pane_start_ms)
                .where(
                    performance.c.model == model,
                    performance.c.shard == shard,
                    performance.c.position > joined.get(key, -1),
                )
                .distinct()
            )
        )
        positions[key] = position
    return Touched(frozenset(found), positions)


def last_window(connection: Connection, model: str, before_ms: int) -> tuple[int, int] | None:
    """Return (start, end) of the last judged window that starts before a time; None when there is none."""
    found = connection.execute(
        select(verdicts.c.window_start_ms, verdicts.c.window_end_ms)
        .where(verdicts.c.model == model, verdicts.c.latest, verdicts.c.window_start_ms < before_ms)
        .order_by(verdicts.c.window_start_ms.desc())
        .limit(1)
    ).one_or_none()
    return None if found is None else (found.window_start_ms, found.window_end_ms)


def windows_within(connection: Connection, model: str, from_ms: int, to_ms: int) -> list[int]:
    """Return the starts of judged windows that have a part in [from_ms, to_ms], oldest first."""
    return _starts(
        connection, model, verdicts.c.window_end_ms > from_ms, verdicts.c.window_start_ms <= to_ms
    )


def windows_ending(connection: Connection, model: str, after_ms: int, to_ms: int) -> list[int]:
    """Return the starts of judged windows that end in (after_ms, to_ms], oldest first."""
    return _starts(
        connection, model, verdicts.c.window_end_ms > after_ms, verdicts.c.window_end_ms <= to_ms
    )


def _starts(connection: Connection, model: str, *where: ColumnElement[bool]) -> list[int]:
    query = select(verdicts.c.window_start_ms).where(
        verdicts.c.model == model, verdicts.c.latest, *where
    )
    return list(connection.scalars(query.order_by(verdicts.c.window_start_ms)))
