"""The dashboard: server-rendered pages, htmx for what changes, uPlot for charts. No build step.

Pages are read with a login's cookie; what they change goes through the same rules as the API. Every
value is escaped by the templates (autoescape), and no script is inline (Content-Security-Policy).
"""

from datetime import UTC, datetime
from typing import Annotated, Any

import jinja2
import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import Cookie, State
from litestar.enums import RequestEncodingType
from litestar.params import Body, FromPath, QueryParameter
from litestar.response import Redirect, Template

from trimtab import __version__
from trimtab.api.acts import who
from trimtab.api.auth import COOKIE, Asked, allow
from trimtab.api.links import columns_by_condition, columns_in, feature_path
from trimtab.api.problems import Problem
from trimtab.api.reports import Reports
from trimtab.clock import now_ms
from trimtab.errors import NotFoundError
from trimtab.records import Role
from trimtab.store import agent, alerts, keys, overview, verdicts
from trimtab.store.detector_view import detector_columns, detector_view, ranked
from trimtab.store.engine import Store
from trimtab.store.models import contract_history

PAGE_ROWS = 50
WINDOWS_LISTED = 30
FEATURES_LISTED = 25
"""Features on the model's page, most moved first; a window's page has them all."""


def environment() -> jinja2.Environment:
    """The templates with what they may call."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("trimtab.api"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "moment": moment,
        "clock": clock,
        "figure": figure,
        "percent": percent,
        "word": word,
        "thousands": thousands,
        "evalue": evalue,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    made.globals |= {
        "version": __version__.split("+")[0],
        "now_ms": now_ms,
        "feature_path": feature_path,
    }
    return made


def moment(ms: int | None) -> str:
    """A time with its date, UTC."""
    return (
        "–" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    )


def clock(ms: int | None) -> str:
    """A time of day, UTC."""
    return "–" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S")


def figure(value: Any, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{value:.{digits}%}"


def thousands(value: int | None) -> str:
    """A count."""
    return "–" if value is None else f"{value:,}"


def word(code: object) -> str:
    """A code as words."""
    return "" if code is None else str(code).replace("_", " ")


def evalue(log_e: Any) -> str:
    """An e-value from its natural logarithm, or the text that stands for an infinity."""
    if log_e is None:
        return "–"
    if isinstance(log_e, str):
        return "0" if log_e.startswith("-") else "∞"
    power = log_e / 2.302585092994046
    return f"{2.718281828459045**log_e:.3g}" if abs(power) < 5 else f"10^{power:.0f}"


# --- errors ---------------------------------------------------------------------------------------


def wants_page(request: Request[Any, Any, Any]) -> bool:
    """Whether a person's browser asks for a page, and no program for the API."""
    path = request.url.path
    return "text/html" in request.headers.get("accept", "") and not path.startswith("/v1/")


def or_page(request: Request[Any, Any, Any], said: Response[Problem]) -> Response[Any]:
    """The problem as a page with a way back, where a person asked; else as it is."""
    if not wants_page(request):
        return said
    problem = said.content
    model = request.path_params.get("model") if request.url.path.count("/") > 2 else None
    context: dict[str, Any] = {
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "model": model,
    }
    if request.scope.get("user") is not None:
        context["key"] = request.user
    return Template("error.html", context=context, status_code=problem.status)


# --- login ----------------------------------------------------------------------------------------


@get("/login", open=True, sync_to_thread=False)
def login_page() -> Template:
    """Show the login."""
    return Template("login.html", context={"said": ""})


@post("/login", open=True, sync_to_thread=True)
def login(
    state: State,
    data: Annotated[dict[str, str], Body(media_type=RequestEncodingType.URL_ENCODED)],
) -> Response[Any]:
    """Exchange an API key for a login: a cookie that scripts cannot read and other sites not send."""
    store: Store = state.store
    settings = state.settings.api
    key = keys.authenticate(store, data.get("key", "").strip())
    if key is None:
        said = "That is not a valid key. `trimtab key create NAME` makes one."
        return Template("login.html", context={"said": said}, status_code=401)
    age_s = round(settings.cookie_days * 86_400)
    token = keys.open_session(store, key.id, now_ms(), now_ms() + age_s * 1000)
    cookie = Cookie(
        COOKIE,
        value=token,
        path="/",
        max_age=age_s,
        httponly=True,
        secure=settings.secure_cookie,
        samesite="strict",
    )
    return Redirect("/", status_code=303, cookies=[cookie])


@post("/logout", sync_to_thread=True)
def logout(state: State, request: Asked) -> Redirect:
    """End the login."""
    keys.close_session(state.store, request.cookies.get(COOKIE, ""))
    gone = Cookie(COOKIE, value="", path="/", max_age=0, httponly=True, samesite="strict")
    return Redirect("/login", status_code=303, cookies=[gone])


# --- pages ----------------------------------------------------------------------------------------


@get("/", sync_to_thread=True)
def fleet_page(
    state: State,
    request: Asked,
    after: Annotated[str, QueryParameter(max_length=200)] = "",
    search: Annotated[str, QueryParameter(max_length=200)] = "",
) -> Template:
    """Show the fleet, a page at a time."""
    scope = request.user.scope
    found = overview.fleet(
        state.store, after=after, limit=PAGE_ROWS + 1, scope=scope, search=search
    )
    shown = found[:PAGE_ROWS]
    context = {
        "key": request.user,
        "models": shown,
        "own_alerts": alerts.open_alerts(state.store, "") if scope == keys.EVERYTHING else [],
        "next": shown[-1].model if len(found) > PAGE_ROWS else None,
        "after": after,
        "search": search,
    }
    partial = request.headers.get("hx-target") == "fleet"
    return Template("fleet_rows.html" if partial else "fleet.html", context=context)


@get("/models/{model:str}", sync_to_thread=True)
def model_page(state: State, request: Asked, model: FromPath[str]) -> Template:
    """Show one model: charts over one time axis, alerts, agent, ledger."""
    return Template("model.html", context=_model(state, request, model))


@get("/models/{model:str}/panel", sync_to_thread=True)
def model_panel(state: State, request: Asked, model: FromPath[str]) -> Template:
    """The parts of the model's page that change, for htmx."""
    return Template("model_panel.html", context=_model(state, request, model))


def _model(state: State, request: Asked, model: str) -> dict[str, Any]:
    store: Store = state.store
    status = overview.model_status(store, model)
    history = contract_history(store, model)
    newest = verdicts.latest_verdicts(store, model, WINDOWS_LISTED)
    runs = agent.list_runs(store, model, 3)
    rollouts = agent.list_rollouts(store, model, 3)
    incident = agent.active_incident(store, model) or next(
        iter(agent.list_incidents(store, model, 1)), None
    )
    last = newest[0].verdict if newest else None
    tree = last.figures if last else {}
    detector = (
        None if status.retired else detector_view(store, model, state.settings.alarms.false_alarms)
    )
    features = _most_moved(tree)
    return {
        "key": request.user,
        "may_act": request.user.role >= Role.OPERATOR,
        "status": status,
        "contract": history[-1].contract if history else None,
        "newest": last,
        "windows": newest,
        "tiles": _tiles(status, tree),
        **_estimate(tree),
        "detector": detector,
        "columns": detector.columns if detector else {},
        "about": columns_by_condition(last, detector.columns if detector else {}),
        "features": features[:FEATURES_LISTED],
        "more_features": max(0, len(features) - FEATURES_LISTED),
        "alerts": alerts.open_alerts(store, model),
        "past_alerts": [
            alert for alert in alerts.alerts_of(store, model, 6) if alert.state == "resolved"
        ][:3],
        "incident": incident,
        "runs": runs,
        "rollouts": rollouts,
        "steps": agent.transitions_of(store, "rollout", rollouts[0].id) if rollouts else [],
        "ledger": _ledger(store) if request.user.scope == keys.EVERYTHING else None,
    }


def _most_moved(tree: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Features with their figures, largest PSI first."""
    features: dict[str, dict[str, Any]] = tree.get("features") or {}
    return sorted(features.items(), key=lambda entry: -(entry[1].get("psi") or 0.0))


def _estimate(tree: dict[str, Any]) -> dict[str, Any]:
    """What `estimate.html` shows: the estimate, and beside it the figures of the same version's labels."""
    judged = (tree.get("performance") or {}).get(tree.get("judged_version"), {})
    return {"estimated": tree.get("estimated") or {}, "realised": judged.get("figures") or {}}


def _ledger(store: Store) -> dict[str, Any]:
    """The monitor's ledger in one line; it is not a model's own, so only a key of every model sees it."""
    lines = overview.ledger_lines(store, "monitor")
    return {
        "partitions": len(lines),
        "rows": sum(line.rows for line in lines),
        "lost": sum(line.lost for line in lines),
        "unread": sum(line.unread or 0 for line in lines),
        "problems": [problem for line in lines for problem in line.problems],
    }


def labelled(judged: dict[str, Any]) -> str:
    """What share of the rows that labels are kept for has one."""
    said = f"{percent(judged.get('labelled_share'))} labelled"
    sampled = judged.get("sampled_share")
    return said if sampled is None else f"{said}, of a sample of {percent(sampled)}"


def _latency(found: dict[str, Any]) -> tuple[str, str]:
    """p99 and median with their unit, or a dash and why."""
    if found.get("p99") is None:
        return "–", "no latencies yet"
    return f"{figure(found['p99'])} ms", f"median {figure(found.get('p50'))} ms"


def _tiles(status: overview.ModelStatus, tree: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the figures that people look for first."""
    judged = (tree.get("performance") or {}).get(tree.get("judged_version"), {})
    figures = judged.get("figures", {})
    quality = next((name for name in ("accuracy", "mae", "rmse") if name in figures), None)
    drift = tree.get("drift") or {}
    latency = tree.get("latency_ms") or {}
    reference = tree.get("baseline") or {}
    tiles = [
        (
            word(quality or "accuracy"),
            figure(figures.get(quality or "", {}).get("value")),
            labelled(judged) if judged else "no labels yet",
        ),
        ("largest PSI", figure(drift.get("max_psi")), str(drift.get("max_psi_feature") or "")),
        ("p99 latency", *_latency(latency)),
        ("errors", percent(tree.get("error_rate"), 2), "of requests"),
        ("rows", thousands(tree.get("rows")), "in the latest window"),
    ]
    if status.baseline:  # number 0 is the draft that traffic still fills
        tiles.append(("baseline", f"№ {status.baseline}", f"{status.baseline_windows} windows"))
    else:
        tiles.append(("baseline", "none yet", str(reference.get("reason") or "calibrating")))
    return tiles


@get("/models/{model:str}/windows/{start_ms:int}", sync_to_thread=True)
def window_page(
    state: State, request: Asked, model: FromPath[str], start_ms: FromPath[int]
) -> Template:
    """Show a window: findings, figures per feature, evidence, revisions."""
    store: Store = state.store
    status = overview.model_status(store, model)
    history = verdicts.verdict_history(store, model, start_ms)
    if not history:
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    last = history[-1].verdict
    columns: dict[str, str] = {}
    if not status.retired:
        columns = detector_columns(store, model, last.figures.get("detector") or {})
    reports: Reports = state.reports
    context = {
        "key": request.user,
        "may_act": request.user.role >= Role.OPERATOR,
        "status": status,
        "verdict": last,
        "verdict_id": history[-1].id,
        "history": history,
        "findings": [(one, columns_in(one, last.figures, columns)) for one in last.findings],
        "columns": columns,
        "ranking": ranked(last.figures.get("detector") or {}),
        "segments": (last.figures.get("detector") or {}).get("segments", []),
        "evidence_share": (last.figures.get("detector") or {}).get("evidence"),
        "features": _most_moved(last.figures),
        "prediction": last.figures.get("prediction") or {},
        "performance": last.figures.get("performance") or {},
        **_estimate(last.figures),
        "evidence": msgspec.to_builtins(last.evidence),
        "report": reports.state(model, start_ms),
    }
    return Template("window.html", context=context)


# --- acts of the page -----------------------------------------------------------------------------


@post("/models/{model:str}/alerts/{alert:str}/{act:str}", sync_to_thread=True, role=Role.OPERATOR)
def act_on_alert(
    state: State, request: Asked, model: FromPath[str], alert: FromPath[str], act: FromPath[str]
) -> Redirect:
    """Acknowledge or resolve an alert from the page."""
    store: Store = state.store
    found = alerts.get_alert(store, alert)
    allow(request.user, store, found.model)
    by = who(request.user)
    if act == "ack":
        alerts.acknowledge(store, alert, by, now_ms())
    elif act == "resolve":
        alerts.resolve(store, alert, by, "", now_ms())
    else:
        raise NotFoundError(f"Nothing is called {act!r} here.")
    with store.write() as connection:
        keys.audit(connection, by, f"alert.{act}", f"alert:{alert}", {}, now_ms())
    return Redirect(f"/models/{model}", status_code=303)


@post(
    "/models/{model:str}/rollouts/{rollout:str}/{act:str}", sync_to_thread=True, role=Role.OPERATOR
)
def act_on_rollout(
    state: State, request: Asked, model: FromPath[str], rollout: FromPath[str], act: FromPath[str]
) -> Redirect:
    """Approve, pause, resume or abort a rollout from the page."""
    store: Store = state.store
    found = agent.get_rollout(store, rollout)
    allow(request.user, store, found.model)
    agent.request(store, "rollout", rollout, act, who(request.user), now_ms())
    return Redirect(f"/models/{model}", status_code=303)


@post("/models/{model:str}/windows/{start_ms:int}/report", sync_to_thread=True, role=Role.OPERATOR)
def act_on_report(state: State, model: FromPath[str], start_ms: FromPath[int]) -> Redirect:
    """Begin a window's report from the page."""
    if not verdicts.verdict_history(state.store, model, start_ms):
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    reports: Reports = state.reports
    reports.start(model, start_ms)
    return Redirect(f"/models/{model}/windows/{start_ms}", status_code=303)


pages = Router(
    "/",
    include_in_schema=False,
    route_handlers=[
        login_page,
        login,
        logout,
        fleet_page,
        model_page,
        model_panel,
        window_page,
        act_on_alert,
        act_on_rollout,
        act_on_report,
    ],
)
