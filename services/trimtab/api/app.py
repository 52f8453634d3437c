"""The API process: routes, guards and limits in one place, and uvicorn under it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from litestar import Litestar, Request, Response, Router, get
from litestar.config.response_cache import ResponseCacheConfig
from litestar.datastructures import State
from litestar.enums import MediaType
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Redirect
from litestar.static_files import create_static_files_router
from litestar.template.config import TemplateConfig
from sqlalchemy.exc import SQLAlchemyError

from trimtab import __version__, structs
from trimtab.api import problems
from trimtab.api.acts import acting
from trimtab.api.auth import Asked, authorize
from trimtab.api.feature_pages import feature_pages
from trimtab.api.features import featuring
from trimtab.api.metrics import scrape
from trimtab.api.middleware import careful_headers, entity_tags, time_limit
from trimtab.api.pages import environment, or_page, pages, wants_page
from trimtab.api.report_routes import reporting
from trimtab.api.reports import Reports
from trimtab.api.routes import reading
from trimtab.errors import TrimtabError
from trimtab.ports import check_port
from trimtab.settings import Settings
from trimtab.store import migrate
from trimtab.store.engine import Store, open_store
from trimtab.store.keys import EVERYTHING

_STATIC = Path(__file__).parent / "static"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@get("/healthz", open=True, sync_to_thread=False, media_type="text/plain")
def healthz() -> str:
    """Say that this process answers."""
    return "ok"


@get("/readyz", open=True, sync_to_thread=True, media_type="text/plain")
def readyz(state: State) -> Response[str]:
    """Say whether the store can be used; 503 while it cannot."""
    try:
        migrate.check(state.store)
    except (TrimtabError, SQLAlchemyError):
        return Response("the store cannot be used now", status_code=503, media_type="text/plain")
    return Response("ready", media_type="text/plain")


@get("/metrics", metrics=True, sync_to_thread=True, media_type=METRICS_TYPE)
def metrics(state: State, request: Asked) -> bytes:
    """Get the fleet's figures for Prometheus."""
    key = request.scope.get("user")
    return scrape(state.store, key.scope if key is not None else EVERYTHING)


def _or_login(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """Send a browser without a login to the login page; tell others in their language."""
    if error.status_code == 401 and wants_page(request) and request.method == "GET":
        return Redirect("/login")
    return or_page(request, problems.of_http(request, error))


def _of_trimtab(request: Request[Any, Any, Any], error: TrimtabError) -> Response[Any]:
    return or_page(request, problems.of_trimtab(request, error))


def _of_anything(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    return or_page(request, problems.of_anything(request, error))


class _Routes(OpenAPIRenderPlugin):
    """The routes as a page of our own: Litestar's come from another site, which our headers forbid."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the page."""
        template = environment().get_template("schema.html")
        context = {"key": request.user, "paths": sorted(openapi_schema["paths"].items())}
        return template.render(**context).encode()


def create_app(store: Store, settings: Settings) -> Litestar:
    """Put the API and the dashboard together over a store whose schema is in place."""
    api = Router(
        "/v1",
        route_handlers=[reading, featuring, acting, reporting],
        security=[{"key": []}],
        tags=["trimtab"],
    )
    static = create_static_files_router("/static", [_STATIC], opt={"open": True}, name="static")
    return Litestar(
        [healthz, readyz, metrics, api, pages, feature_pages, static],
        guards=[authorize],
        middleware=[careful_headers, time_limit(settings.api.request_timeout_s), entity_tags],
        exception_handlers={
            HTTPException: _or_login,
            TrimtabError: _of_trimtab,
            Exception: _of_anything,
        },
        state=State({"store": store, "settings": settings, "reports": Reports(settings)}),
        template_config=TemplateConfig(
            instance=JinjaTemplateEngine.from_environment(environment())
        ),
        request_max_body_size=settings.api.max_body_bytes,
        response_cache_config=ResponseCacheConfig(default_expiration=None),
        openapi_config=_openapi(),
        debug=False,
        logging_config=None,
    )


def _openapi() -> OpenAPIConfig:
    scheme = SecurityScheme(type="http", scheme="bearer", description="An API key of trimtab.")
    return OpenAPIConfig(
        title="trimtab",
        version=__version__.split("+")[0],
        description="Drift verdicts, alerts, retraining runs and rollouts of models in production.",
        components=Components(security_schemes={"key": scheme}),
        path="/v1/schema",
        render_plugins=[_Routes(path="/", media_type=MediaType.HTML), JsonRenderPlugin()],
        use_handler_docstrings=True,
    )


def run_api(
    settings: Settings, stop: threading.Event, ready: Callable[..., None] | None = None
) -> None:
    """Serve until `stop` is set. `ready` is called with the address once it answers.

    Raises TrimtabError at once when the port is taken.
    """
    structs.prepare()
    check_port("api", settings.api.host, settings.api.port)
    store = open_store(settings.store.url)
    migrate.upgrade(store)
    config = uvicorn.Config(
        create_app(store, settings),
        host=settings.api.host,
        port=settings.api.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=5,
        limit_concurrency=500,
        h11_max_incomplete_event_size=64 * 1024,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(config), stop, ready))
    finally:
        store.close()


async def _serve(
    server: uvicorn.Server, stop: threading.Event, ready: Callable[..., None] | None
) -> None:
    # Signals are the command's, which sets `stop`: uvicorn must not take them over.
    serving = asyncio.create_task(server._serve())  # noqa: SLF001 - `serve` installs signal handlers
    told = ready is None
    while not serving.done():
        if server.started and not told and ready is not None:
            told = True
            host, port = server.servers[0].sockets[0].getsockname()[:2]
            ready(f"http://{host}:{port}")
        if stop.is_set():
            server.should_exit = True
        await asyncio.sleep(0.05)
    await serving
