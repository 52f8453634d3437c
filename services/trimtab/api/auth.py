"""Who asks, and what they may: API keys as bearer tokens, logins of the dashboard as cookies.

A guard runs before every handler that is not marked `open`. It finds the key, then checks the route's
role and, where the path names a model, the key's scope. A handler that finds its model later calls
`allow`.
"""

from typing import Any
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers import BaseRouteHandler

from trimtab.clock import now_ms
from trimtab.records import Role
from trimtab.store import keys
from trimtab.store.engine import Store
from trimtab.store.keys import KeyRow

COOKIE = "trimtab_session"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

Asked = Request[KeyRow, Any, Any]


async def authorize(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Let a request pass or raise: 401 without a valid key, 403 beyond its role or scope."""
    if handler.opt.get("open") or (handler.opt.get("metrics") and _metrics_open(connection)):
        return
    store: Store = connection.app.state.store
    key = await run_sync(_key_of, connection, store)
    if key is None:
        raise NotAuthorizedException(
            "This needs an API key: Authorization: Bearer KEY. Make one: trimtab key create NAME."
        )
    connection.scope["user"] = key
    connection.scope["auth"] = None
    role: Role = handler.opt.get("role", Role.VIEWER)
    if key.role < role:
        raise PermissionDeniedException(
            f"This needs the role {role.name.lower()}; your key has {key.role.name.lower()}."
        )
    if handler.opt.get("everything") and key.scope != keys.EVERYTHING:
        raise PermissionDeniedException(
            f"This concerns every model; your key's scope is {key.scope}."
        )
    model = connection.path_params.get("model")
    if model is not None:
        await run_sync(allow, key, store, str(model))


def allow(key: KeyRow, store: Store, model: str) -> None:
    """Raise unless the key's scope covers the model; an unknown model is outside every narrow scope."""
    if key.scope == keys.EVERYTHING:
        return
    if not key.allows(model, keys.team_of(store, model) or ""):
        raise PermissionDeniedException(
            f"Your key's scope is {key.scope}; {model!r} is outside it."
        )


def _key_of(connection: ASGIConnection[Any, Any, Any, Any], store: Store) -> KeyRow | None:
    header = connection.headers.get("authorization", "")
    scheme, _, secret = header.partition(" ")
    if header:
        return keys.authenticate(store, secret.strip()) if scheme.lower() == "bearer" else None
    token = connection.cookies.get(COOKIE)
    if not token or len(token) > 100:
        return None
    if connection.scope.get("method") not in _SAFE and not _same_origin(connection):
        raise PermissionDeniedException("A change by cookie must come from this site's own pages.")
    return keys.session_key(store, token, now_ms())


def _same_origin(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    """Whether a browser says that the request comes from our own page."""
    site = connection.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = connection.headers.get("origin", "")
    return bool(origin) and urlsplit(origin).netloc == connection.headers.get("host")


def _metrics_open(connection: ASGIConnection[Any, Any, Any, Any]) -> bool:
    return bool(connection.app.state.settings.api.open_metrics)
