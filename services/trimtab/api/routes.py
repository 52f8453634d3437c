"""The HTTP API `/v1`, reading: models, windows, verdicts, alerts, incidents, runs, rollouts, ledger, keys, audit.

Every handler runs in a thread, since the store blocks. Lists take `limit` and `cursor` and answer
`{"items": […], "next": cursor or null}`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from anyio.to_thread import run_sync
from litestar import Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter
from litestar.response import ServerSentEvent, ServerSentEventMessage
from msgspec import Struct

from trimtab.api.auth import Asked, allow
from trimtab.api.history import EVER_MS, PERIODS_MAX, History, history
from trimtab.api.series import Series, series
from trimtab.clock import now_ms
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.records import Alert, Incident, Role, Rollout, Run, Transition, Verdict
from trimtab.store import agent, models, overview, verdicts
from trimtab.store.alerts import get_alert
from trimtab.store.baselines import baselines_of
from trimtab.store.detector_view import DetectorView, detector_view
from trimtab.store.engine import Store
from trimtab.store.keys import AuditRow, list_audit, list_keys
from trimtab.windows.rollup import Resolution

WINDOWS_MAX = 2_000
STREAM_EVERY_S = 1.0

Limit = Annotated[int, QueryParameter(ge=1, le=500, description="At most this many.")]
Cursor = Annotated[
    str | None,
    QueryParameter(max_length=300, description="`next` of the page before.", required=False),
]
OfModel = Annotated[str | None, QueryParameter(max_length=200, required=False)]


class ModelPage(Struct, frozen=True):
    """Some models, by name."""

    items: list[overview.ModelStatus]
    next: str | None


class ContractRevision(Struct, frozen=True):
    """One revision of a model's contract, as it was applied."""

    revision: int
    applied_ms: int
    applied_by: str
    digest: str
    text: str


class ModelDetail(Struct, frozen=True):
    """A model with its current contract and its versions."""

    status: overview.ModelStatus
    contract: dict[str, Any] | None
    versions: list[models.VersionRow]


class Baseline(Struct, frozen=True, kw_only=True):
    """A numbered fit over stored counts; number 0 is the one that traffic still fills."""

    id: int
    number: int
    cuts_id: str
    windows: int
    rows: int
    from_ms: int | None
    to_ms: int | None
    source: str
    active: bool
    created_ms: int


class WindowSummary(Struct, frozen=True, kw_only=True):
    """A closed window without its figures."""

    verdict_id: int
    window_start_ms: int
    window_end_ms: int
    revision: int
    outcome: str
    kind: str | None
    reason: str
    summary: str
    rows: int | None
    created_ms: int


class WindowPage(Struct, frozen=True):
    """Some windows, newest first."""

    items: list[WindowSummary]
    next: str | None


class DriftReport(Struct, frozen=True, kw_only=True):
    """A window's drift report: its latest verdict with findings, figures and evidence."""

    verdict_id: int
    created_ms: int
    revisions: int
    verdict: Verdict


class VerdictRevision(Struct, frozen=True):
    """One stored verdict."""

    id: int
    created_ms: int
    verdict: Verdict


class AlertPage(Struct, frozen=True):
    """Some alerts, newest first."""

    items: list[Alert]
    next: str | None


class IncidentPage(Struct, frozen=True):
    """Some incidents, newest first."""

    items: list[Incident]
    next: str | None


class IncidentDetail(Struct, frozen=True):
    """An incident and how it came here; `decision.diagnosis` is the kind of change, with its reasons."""

    incident: Incident
    transitions: list[Transition]


class RunPage(Struct, frozen=True):
    """Some runs, newest first."""

    items: list[Run]
    next: str | None


class RolloutPage(Struct, frozen=True):
    """Some rollouts, newest first."""

    items: list[Rollout]
    next: str | None


class RunDetail(Struct, frozen=True):
    """A run and how it came here."""

    run: Run
    transitions: list[Transition]


class RolloutDetail(Struct, frozen=True):
    """A rollout and how it came here."""

    rollout: Rollout
    transitions: list[Transition]


class Ledger(Struct, frozen=True):
    """Every partition's ledgers."""

    balances: bool
    problems: list[str]
    partitions: list[overview.LedgerLine]


class Key(Struct, frozen=True, kw_only=True):
    """An API key without its secret."""

    id: str
    name: str
    role: str
    scope: str
    created_ms: int
    revoked_ms: int | None


class AuditPage(Struct, frozen=True):
    """Some acts, newest first."""

    items: list[AuditRow]
    next: str | None


def _store(state: State) -> Store:
    store: Store = state.store
    return store


# --- models ---------------------------------------------------------------------------------------


@get("/models", sync_to_thread=True)
def list_models(
    state: State, request: Asked, limit: Limit = 100, cursor: Cursor = None, search: OfModel = None
) -> ModelPage:
    """List the models inside the key's scope, by name."""
    store = _store(state)
    items = overview.fleet(
        store, after=cursor or "", limit=limit, scope=request.user.scope, search=search or ""
    )
    return ModelPage(items, items[-1].model if len(items) == limit else None)


@get("/models/{model:str}", sync_to_thread=True)
def get_model(state: State, model: FromPath[str]) -> ModelDetail:
    """Get a model: status, contract, versions."""
    store = _store(state)
    status = overview.model_status(store, model)
    revisions = models.contract_history(store, model)
    contract = msgspec.to_builtins(revisions[-1].contract) if revisions else None
    return ModelDetail(status, contract, models.versions_of(store, model))


@get("/models/{model:str}/status", sync_to_thread=True)
def get_status(state: State, model: FromPath[str]) -> overview.ModelStatus:
    """Get a model at a glance."""
    return overview.model_status(_store(state), model)


@get("/models/{model:str}/contracts", sync_to_thread=True)
def list_contracts(state: State, model: FromPath[str]) -> list[ContractRevision]:
    """List the revisions of a model's contract, oldest first."""
    store = _store(state)
    overview.model_status(store, model)
    return [
        ContractRevision(row.revision, row.applied_ms, row.applied_by, row.digest, row.text)
        for row in models.contract_history(store, model)
    ]


@get("/models/{model:str}/detector", sync_to_thread=True)
def get_detector(state: State, model: FromPath[str]) -> DetectorView:
    """Show a model's drift detector: budget, reference, evidence, what has moved."""
    return detector_view(state.store, model, state.settings.alarms.false_alarms)


@get("/models/{model:str}/baselines", sync_to_thread=True)
def list_baselines(state: State, model: FromPath[str]) -> list[Baseline]:
    """List a model's baselines, oldest first."""
    store = _store(state)
    overview.model_status(store, model)
    fields = Baseline.__struct_fields__
    return [
        Baseline(**{name: getattr(row, name) for name in fields})
        for row in baselines_of(store, model)
    ]


@get("/models/{model:str}/series", sync_to_thread=True)
def get_series(
    state: State,
    model: FromPath[str],
    from_ms: Annotated[int | None, QueryParameter(name="from", required=False)] = None,
    to_ms: Annotated[int | None, QueryParameter(name="to", required=False)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=WINDOWS_MAX)] = 240,
) -> Series:
    """Get the figures of a model's windows as columns, for charts: the newest `limit` of a range."""
    store = _store(state)
    overview.model_status(store, model)
    newest = verdicts.latest_verdicts(store, model, limit, to_ms)
    chosen = [row.verdict for row in reversed(newest)]
    if from_ms is not None:
        chosen = [verdict for verdict in chosen if verdict.window_start_ms >= from_ms]
    return series(model, chosen, agent.traffic_history(store, model))


@get("/models/{model:str}/history", sync_to_thread=True)
def get_history(
    state: State,
    model: FromPath[str],
    resolution: Annotated[
        Literal["hour", "day"], QueryParameter(description="Hours or days, of UTC.")
    ] = "hour",
    from_ms: Annotated[int | None, QueryParameter(name="from", required=False)] = None,
    to_ms: Annotated[int | None, QueryParameter(name="to", required=False)] = None,
    limit: Annotated[
        int, QueryParameter(ge=1, le=PERIODS_MAX, description="At most this many.")
    ] = 48,
) -> History:
    """Get a model's figures by hour or day, newest first: of those that start in a range."""
    return history(
        _store(state),
        model,
        Resolution(resolution),
        from_ms=EVER_MS[0] if from_ms is None else from_ms,
        to_ms=EVER_MS[1] if to_ms is None else to_ms,
        limit=limit,
        now_ms=now_ms(),
    )


# --- windows and verdicts -------------------------------------------------------------------------


@get("/models/{model:str}/windows", sync_to_thread=True)
def list_windows(
    state: State, model: FromPath[str], limit: Limit = 100, cursor: Cursor = None
) -> WindowPage:
    """List a model's closed windows, newest first."""
    store = _store(state)
    overview.model_status(store, model)
    if cursor is not None and not cursor.lstrip("-").isdigit():
        raise TrimtabError(f"{cursor!r} is no cursor. Use `next` of the page before.")
    before_ms = None if cursor is None else int(cursor)
    rows = verdicts.latest_verdicts(store, model, limit, before_ms)
    items = [
        WindowSummary(
            verdict_id=row.id,
            window_start_ms=row.verdict.window_start_ms,
            window_end_ms=row.verdict.window_end_ms,
            revision=row.verdict.revision,
            outcome=row.verdict.outcome,
            kind=row.verdict.kind,
            reason=row.verdict.reason,
            summary=row.verdict.summary,
            rows=row.verdict.figures.get("rows"),
            created_ms=row.created_ms,
        )
        for row in rows
    ]
    return WindowPage(items, str(items[-1].window_start_ms) if len(items) == limit else None)


@get("/models/{model:str}/windows/{start_ms:int}", sync_to_thread=True)
def get_window(state: State, model: FromPath[str], start_ms: FromPath[int]) -> DriftReport:
    """Get the drift report of a window."""
    revisions = _history(_store(state), model, start_ms)
    last = revisions[-1]
    return DriftReport(
        verdict_id=last.id,
        created_ms=last.created_ms,
        revisions=len(revisions),
        verdict=last.verdict,
    )


@get("/models/{model:str}/windows/{start_ms:int}/verdicts", sync_to_thread=True)
def list_verdicts(
    state: State, model: FromPath[str], start_ms: FromPath[int]
) -> list[VerdictRevision]:
    """List every revision of a window's verdict, first to last."""
    return [
        VerdictRevision(row.id, row.created_ms, row.verdict)
        for row in _history(_store(state), model, start_ms)
    ]


def _history(store: Store, model: str, start_ms: int) -> list[verdicts.VerdictRow]:
    overview.model_status(store, model)
    found = verdicts.verdict_history(store, model, start_ms)
    if not found:
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    return found


# --- alerts, runs, rollouts -----------------------------------------------------------------------


@get("/alerts", sync_to_thread=True)
def list_alerts(
    state: State,
    request: Asked,
    model: OfModel = None,
    everything: Annotated[bool, QueryParameter(name="all", required=False)] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> AlertPage:
    """List alerts inside the key's scope, newest first; only open ones unless `all`."""
    page = overview.alerts_page(
        _store(state),
        scope=request.user.scope,
        model=model,
        open_only=not everything,
        cursor=cursor,
        limit=limit,
    )
    return AlertPage(page.items, page.next)


@get("/alerts/{alert:str}", sync_to_thread=True)
def get_one_alert(state: State, request: Asked, alert: FromPath[str]) -> Alert:
    """Get an alert."""
    found = get_alert(_store(state), alert)
    allow(request.user, _store(state), found.model)
    return found


@get("/alerts/stream", media_type="text/event-stream")
async def stream_alerts(state: State, request: Asked) -> ServerSentEvent:
    """Follow alerts inside the key's scope: one event per change, as they happen."""
    return ServerSentEvent(_changes(_store(state), request.user.scope))


async def _changes(store: Store, scope: str) -> AsyncIterator[ServerSentEventMessage]:
    since_ms = now_ms()
    seen: set[tuple[str, int]] = set()
    while True:
        changed = await run_sync(overview.alerts_since, store, scope, since_ms)
        for alert in changed:
            mark = (alert.id, alert.updated_ms)
            if mark not in seen:
                seen.add(mark)
                body = msgspec.json.encode(alert).decode()
                yield ServerSentEventMessage(data=body, event="alert", id=f"{mark[0]}:{mark[1]}")
        if changed:
            since_ms = changed[-1].updated_ms
            seen = {mark for mark in seen if mark[1] >= since_ms}
        else:
            yield ServerSentEventMessage(data=None, comment="still here")
        await asyncio.sleep(STREAM_EVERY_S)


@get("/incidents", sync_to_thread=True)
def list_incidents(
    state: State, request: Asked, model: OfModel = None, limit: Limit = 50, cursor: Cursor = None
) -> IncidentPage:
    """List incidents inside the key's scope, newest first; `decision` says what is wrong and what to do."""
    scope = request.user.scope
    page = overview.incidents_page(
        _store(state), scope=scope, model=model, cursor=cursor, limit=limit
    )
    return IncidentPage(page.items, page.next)


@get("/incidents/{incident:str}", sync_to_thread=True)
def get_incident(state: State, request: Asked, incident: FromPath[str]) -> IncidentDetail:
    """Get an incident: the decision with its diagnosis, transitions."""
    found = agent.get_incident(_store(state), incident)
    allow(request.user, _store(state), found.model)
    return IncidentDetail(found, agent.transitions_of(_store(state), "incident", incident))


@get("/runs", sync_to_thread=True)
def list_runs(
    state: State, request: Asked, model: OfModel = None, limit: Limit = 50, cursor: Cursor = None
) -> RunPage:
    """List retraining runs inside the key's scope, newest first."""
    scope = request.user.scope
    page = overview.runs_page(_store(state), scope=scope, model=model, cursor=cursor, limit=limit)
    return RunPage(page.items, page.next)


@get("/runs/{run:str}", sync_to_thread=True)
def get_run(state: State, request: Asked, run: FromPath[str]) -> RunDetail:
    """Get a run: data, search, gate, transitions."""
    found = agent.get_run(_store(state), run)
    allow(request.user, _store(state), found.model)
    return RunDetail(found, agent.transitions_of(_store(state), "run", run))


@get("/rollouts", sync_to_thread=True)
def list_rollouts(
    state: State, request: Asked, model: OfModel = None, limit: Limit = 50, cursor: Cursor = None
) -> RolloutPage:
    """List rollouts inside the key's scope, newest first."""
    scope = request.user.scope
    page = overview.rollouts_page(
        _store(state), scope=scope, model=model, cursor=cursor, limit=limit
    )
    return RolloutPage(page.items, page.next)


@get("/rollouts/{rollout:str}", sync_to_thread=True)
def get_rollout(state: State, request: Asked, rollout: FromPath[str]) -> RolloutDetail:
    """Get a rollout: steps, evidence, transitions."""
    found = agent.get_rollout(_store(state), rollout)
    allow(request.user, _store(state), found.model)
    return RolloutDetail(found, agent.transitions_of(_store(state), "rollout", rollout))


# --- house ----------------------------------------------------------------------------------------


@get("/ledger", sync_to_thread=True, everything=True)
def get_ledger(state: State) -> Ledger:
    """Get both ledgers of every partition, and whether they balance."""
    lines = overview.ledger_lines(_store(state))
    problems = [text for line in lines for text in line.problems]
    return Ledger(not problems, problems, lines)


@get("/keys", sync_to_thread=True, role=Role.ADMIN, everything=True)
def get_keys(state: State) -> list[Key]:
    """List the API keys, without their secrets."""
    return [
        Key(
            id=key.id,
            name=key.name,
            role=key.role.name.lower(),
            scope=key.scope,
            created_ms=key.created_ms,
            revoked_ms=key.revoked_ms,
        )
        for key in list_keys(_store(state))
    ]


@get("/audit", sync_to_thread=True, role=Role.ADMIN, everything=True)
def get_audit(state: State, limit: Limit = 100, cursor: Cursor = None) -> AuditPage:
    """List who did what, newest first."""
    if cursor is not None and not cursor.isdigit():
        raise TrimtabError(f"{cursor!r} is no cursor. Use `next` of the page before.")
    items = list_audit(_store(state), limit, None if cursor is None else int(cursor))
    return AuditPage(items, str(items[-1].id) if len(items) == limit else None)


reading = Router(
    "/",
    route_handlers=[
        list_models,
        get_model,
        get_status,
        list_contracts,
        get_detector,
        list_baselines,
        get_series,
        get_history,
        list_windows,
        get_window,
        list_verdicts,
        list_alerts,
        stream_alerts,
        get_one_alert,
        list_incidents,
        get_incident,
        list_runs,
        get_run,
        list_rollouts,
        get_rollout,
        get_ledger,
        get_keys,
        get_audit,
    ],
)
