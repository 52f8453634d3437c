"""What the CLI, the API and the dashboard ask of many models at once, a page at a time."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, or_, select

from trimtab.errors import NotFoundError, TrimtabError
from trimtab.records import Alert, Incident, Rollout, Run
from trimtab.store import tables
from trimtab.store.engine import Store
from trimtab.store.ledger import PartitionLedger, ledger

PAGE_MAX = 500


class ModelStatus(Struct, frozen=True, kw_only=True):
    """One model at a glance. Times are ms since the epoch, UTC."""

    model: str
    team: str
    contract_revision: int
    retired: bool
    outcome: str | None = None
    """Of the latest verdict; None before the first window closed."""
    kind: str | None = None
    reason: str | None = None
    summary: str = "No window has closed yet."
    window_start_ms: int | None = None
    window_end_ms: int | None = None
    rows: int | None = None
    """Rows in that window."""
    open_alerts: int = 0
    incident: str | None = None
    """State of the unresolved incident."""
    run: str | None = None
    """State of the active run."""
    rollout: str | None = None
    """State of the active rollout."""
    champion: str | None = None
    challenger: str | None = None
    challenger_share: float | None = None
    baseline: int | None = None
    """Number of the active baseline; None while the reference is still being gathered."""
    baseline_windows: int | None = None


def fleet(
    store: Store,
    *,
    after: str = "",
    limit: int = 100,
    scope: str = "*",
    search: str = "",
) -> list[ModelStatus]:
    """Return the models in order of their names, those after `after`, inside a key's scope."""
    models = tables.models
    query = select(models).where(models.c.name > after, models.c.retired_ms.is_(None))
    query = query.order_by(models.c.name).limit(min(limit, PAGE_MAX)).where(*_scoped(scope))
    if search:
        query = query.where(
            or_(
                models.c.name.contains(search, autoescape=True),
                models.c.team.contains(search, autoescape=True),
            )
        )
    with store.read() as connection:
        return _statuses(connection, connection.execute(query).mappings().all())


def model_status(store: Store, model: str) -> ModelStatus:
    """Return one model at a glance, a retired one too. Raises NotFoundError."""
    with store.read() as connection:
        rows = connection.execute(
            select(tables.models).where(tables.models.c.name == model)
        ).mappings()
        found = _statuses(connection, rows.all())
    if not found:
        raise NotFoundError(f"There is no model {model!r}. `trimtab model list` names them.")
    return found[0]


def _statuses(connection: Connection, models: Sequence[Any]) -> list[ModelStatus]:
    names = [row["name"] for row in models]
    verdicts = _latest(connection, names)
    alerts = _open_alerts(connection, names)
    baselines = {
        row.model: row
        for row in connection.execute(
            select(
                tables.baselines.c.model, tables.baselines.c.number, tables.baselines.c.windows
            ).where(tables.baselines.c.model.in_(names), tables.baselines.c.active)
        )
    }
    states = {
        table.name: {
            row.model: row.state
            for row in connection.execute(
                select(table.c.model, table.c.state).where(table.c.model.in_(names), table.c.active)
            )
        }
        for table in (tables.incidents, tables.runs, tables.rollouts)
    }
    splits = {
        row.model: msgspec.json.decode(row.body)["arms"]
        for row in connection.execute(
            select(tables.traffic.c.model, tables.traffic.c.body).where(
                tables.traffic.c.model.in_(names)
            )
        )
    }
    found = []
    for row in models:
        name = row["name"]
        verdict = verdicts.get(name, {})
        baseline = baselines.get(name)
        found.append(
            ModelStatus(
                model=name,
                team=row["team"],
                contract_revision=row["contract_revision"],
                retired=row["retired_ms"] is not None,
                open_alerts=alerts.get(name, 0),
                incident=states["incidents"].get(name),
                run=states["runs"].get(name),
                rollout=states["rollouts"].get(name),
                baseline=baseline.number if baseline else None,
                baseline_windows=baseline.windows if baseline else None,
                **verdict,
                **_arms(splits.get(name, [])),
            )
        )
    return found


def _newest() -> tuple[Table, ColumnElement[bool]]:
    """Return (verdicts, what joins a model with that of its newest window): an index look-up each.

    Grouping all verdicts instead would read every window that was ever judged.
    """
    models, verdicts, others = tables.models, tables.verdicts, tables.verdicts.alias()
    start = select(func.max(others.c.window_start_ms)).where(
        others.c.model == models.c.name, others.c.latest
    )
    return verdicts, and_(
        verdicts.c.model == models.c.name,
        verdicts.c.latest,
        verdicts.c.window_start_ms == start.scalar_subquery(),
    )


class _Told(Struct, frozen=True):
    """The part of a verdict that a list shows; the rest is not decoded."""

    summary: str


def _latest(connection: Connection, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    verdicts, newest = _newest()
    rows = connection.execute(
        select(verdicts)
        .select_from(tables.models)
        .join(verdicts, newest)
        .where(tables.models.c.name.in_(names))
    )
    return {
        row.model: {
            "outcome": row.outcome,
            "kind": row.kind,
            "reason": row.reason,
            "summary": msgspec.json.decode(row.body, type=_Told).summary,
            "window_start_ms": row.window_start_ms,
            "window_end_ms": row.window_end_ms,
            "rows": row.rows,
        }
        for row in rows
    }


def _open_alerts(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    alerts = tables.alerts
    rows = connection.execute(
        select(alerts.c.model, func.count())
        .where(alerts.c.model.in_(names), alerts.c.state != "resolved")
        .group_by(alerts.c.model)
    )
    return {row[0]: row[1] for row in rows}


def _arms(arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_name = {arm["name"]: arm for arm in arms}
    champion, challenger = by_name.get("champion"), by_name.get("challenger")
    total = sum(arm["weight"] for arm in arms) or 1
    return {
        "champion": champion["version"] if champion else None,
        "challenger": challenger["version"] if challenger else None,
        "challenger_share": challenger["weight"] / total if challenger else None,
    }


def _scoped(scope: str) -> list[ColumnElement[bool]]:
    """Return what limits `models` to a key's scope."""
    kind, _, subject = scope.partition(":")
    if kind == "team":
        return [tables.models.c.team == subject]
    return [tables.models.c.name == subject] if kind == "model" else []


class Page(Struct, frozen=True, kw_only=True):
    """Part of a list, newest first, and where to go on."""

    items: list[Any]
    next: str | None
    """Cursor of the next page; None at the end."""


def alerts_page(
    store: Store,
    *,
    scope: str = "*",
    model: str | None = None,
    open_only: bool = False,
    cursor: str | None = None,
    limit: int = 100,
) -> Page:
    """Return alerts inside a key's scope, newest first. Raises TrimtabError for a wrong cursor."""
    table = tables.alerts
    query = select(table.c.opened_ms.label("at_ms"), table.c.id, table.c.body)
    if open_only:
        query = query.where(table.c.state != "resolved")
    return _page(store, query, table, table.c.opened_ms, Alert, (scope, model, cursor, limit))


def runs_page(
    store: Store,
    *,
    scope: str = "*",
    model: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page:
    """Return retraining runs inside a key's scope, newest first."""
    table = tables.runs
    query = select(table.c.created_ms.label("at_ms"), table.c.id, table.c.body)
    return _page(store, query, table, table.c.created_ms, Run, (scope, model, cursor, limit))


def incidents_page(
    store: Store,
    *,
    scope: str = "*",
    model: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page:
    """Return incidents inside a key's scope, newest first."""
    table = tables.incidents
    query = select(table.c.created_ms.label("at_ms"), table.c.id, table.c.body)
    return _page(store, query, table, table.c.created_ms, Incident, (scope, model, cursor, limit))


def rollouts_page(
    store: Store,
    *,
    scope: str = "*",
    model: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Page:
    """Return rollouts inside a key's scope, newest first."""
    table = tables.rollouts
    query = select(table.c.created_ms.label("at_ms"), table.c.id, table.c.body)
    return _page(store, query, table, table.c.created_ms, Rollout, (scope, model, cursor, limit))


def alerts_since(store: Store, scope: str, since_ms: int, limit: int = 200) -> list[Alert]:
    """Return alerts inside a key's scope that changed at or after a time, oldest change first."""
    table = tables.alerts
    query = _inside(select(table.c.body), table, scope, None)
    query = query.where(table.c.updated_ms >= since_ms).order_by(table.c.updated_ms, table.c.id)
    with store.read() as connection:
        return [
            msgspec.json.decode(body, type=Alert) for body in connection.scalars(query.limit(limit))
        ]


def _inside(query: Select[Any], table: Table, scope: str, model: str | None) -> Select[Any]:
    kind, _, subject = scope.partition(":")
    if kind == "team":
        team = select(tables.models.c.name).where(tables.models.c.team == subject)
        query = query.where(table.c.model.in_(team))
    elif kind == "model":
        query = query.where(table.c.model == subject)
    return query if model is None else query.where(table.c.model == model)


def _page(
    store: Store,
    query: Select[Any],
    table: Table,
    at: ColumnElement[int],
    record: type[Any],
    asked: tuple[str, str | None, str | None, int],
) -> Page:
    scope, model, cursor, limit = asked
    query = _inside(query, table, scope, model)
    if cursor is not None:
        at_ms, _, last_id = cursor.partition(":")
        if not at_ms.isdigit() or not last_id:
            raise TrimtabError(f"{cursor!r} is no cursor. Use `next` of the page before.")
        query = query.where(or_(at < int(at_ms), and_(at == int(at_ms), table.c.id < last_id)))
    query = query.order_by(at.desc(), table.c.id.desc()).limit(min(limit, PAGE_MAX) + 1)
    with store.read() as connection:
        rows = connection.execute(query).all()
    kept = rows[: min(limit, PAGE_MAX)]
    return Page(
        items=[msgspec.json.decode(row.body, type=record) for row in kept],
        next=f"{kept[-1].at_ms}:{kept[-1].id}" if len(rows) > len(kept) else None,
    )


def unknown_model_rows(store: Store) -> int:
    """Return the rows that were ignored because their model had no contract, over all topics."""
    classes = tables.row_classes.c
    with store.read() as connection:
        total = connection.scalar(
            select(func.coalesce(func.sum(classes.count), 0)).where(
                classes.unit == "row",
                classes["class"] == "ignored",
                classes.reason == "unknown_model",
            )
        )
    return int(total or 0)


class LedgerLine(Struct, frozen=True, kw_only=True):
    """One partition of one consumer, both its ledgers and whether they balance."""

    consumer: str
    topic: str
    partition: int
    cluster_id: str
    topic_id: str
    owner: str | None
    first_offset: int
    next_offset: int
    end_offset: int | None
    messages: int
    gaps: int
    lost: int
    rows: int
    labels: int
    resources: int
    row_classes: dict[str, int]
    label_classes: dict[str, int]
    rejected: dict[str, int]
    """Rejected and ignored rows, labels and resources by `unit class: reason`."""
    problems: list[str]

    @property
    def unread(self) -> int | None:
        """Messages between this reader and the end of the log as last seen; None before it was."""
        return None if self.end_offset is None else max(0, self.end_offset - self.next_offset)

    """What does not balance; empty when everything does."""


class Pulse(Struct, frozen=True):
    """Whether anybody reads: when a monitor was last heard of, and what it had yet to read then."""

    seen_ms: int | None
    unread: int


def monitor_pulse(store: Store) -> Pulse:
    """Return the newest sign of life of any monitor."""
    columns = tables.partitions.c
    with store.read() as connection:
        rows = connection.execute(
            select(columns.owner_seen_ms, columns.end_offset, columns.next_offset).where(
                columns.consumer == "monitor"
            )
        ).all()
    return Pulse(
        max((row.owner_seen_ms for row in rows if row.owner_seen_ms is not None), default=None),
        sum(max(0, row.end_offset - row.next_offset) for row in rows if row.end_offset is not None),
    )


def ledger_lines(store: Store, consumer: str | None = None) -> list[LedgerLine]:
    """Return every partition's ledger, as the CLI, the API and the page show it."""
    return [_ledger_line(entry) for entry in ledger(store, consumer)]


def _ledger_line(entry: PartitionLedger) -> LedgerLine:
    labels = {**entry.unit("label")}
    for name, count in entry.placed_labels.items():
        labels[name] = labels.get(name, 0) + count
    if entry.waiting_labels:
        labels["waiting"] = entry.waiting_labels
    return LedgerLine(
        consumer=entry.consumer,
        topic=entry.topic,
        partition=entry.partition,
        cluster_id=entry.cluster_id,
        topic_id=entry.topic_id,
        owner=entry.owner,
        first_offset=entry.first_offset,
        next_offset=entry.next_offset,
        end_offset=entry.end_offset,
        messages=entry.messages,
        gaps=entry.gaps,
        lost=entry.lost,
        rows=entry.rows,
        labels=entry.labels,
        resources=entry.resources,
        row_classes=entry.unit("row"),
        label_classes=labels,
        rejected={
            f"{unit} {cls}: {reason}": count
            for (unit, cls, reason), count in sorted(entry.classes.items())
            if reason
        },
        problems=entry.balance(),
    )
