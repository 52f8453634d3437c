"""What surrounds every answer: a time limit, entity tags, and headers that keep browsers careful."""

import asyncio
import hashlib
from typing import Any

import msgspec
from litestar.datastructures import MutableScopeHeaders
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from trimtab.api.problems import MEDIA_TYPE, Problem

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
_ENDLESS = "/v1/alerts/stream"


def careful_headers(app: ASGIApp) -> ASGIApp:
    """Add the security headers that an answer does not set itself."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableScopeHeaders.from_message(message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await app(scope, receive, add if scope["type"] == ScopeType.HTTP else send)

    return middleware


def time_limit(limit_s: float) -> Any:
    """Answer 503 when a handler takes longer than `limit_s`; the endless stream is left alone."""

    def wrap(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != ScopeType.HTTP or scope["path"] == _ENDLESS:
                await app(scope, receive, send)
                return
            begun = False

            async def watch(message: Message) -> None:
                nonlocal begun
                begun = True
                await send(message)

            try:
                async with asyncio.timeout(limit_s):
                    await app(scope, receive, watch)
            except TimeoutError:
                if begun:  # too late to change the answer: end the connection
                    raise
                await _too_slow(send, limit_s)

        return middleware

    return wrap


async def _too_slow(send: Send, limit_s: float) -> None:
    detail = f"This took longer than {limit_s:g} s and was stopped. Ask for less at a time."
    body = msgspec.json.encode(Problem("Too slow", 503, detail))
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"retry-after", b"5")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def entity_tags(app: ASGIApp) -> ASGIApp:
    """Give JSON answers of `/v1` an ETag, and answer 304 to whoever has that one."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP or not _tagged(scope):
            await app(scope, receive, send)
            return
        start: Message | None = None
        parts: list[bytes] = []

        async def hold(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body" or start is None:
                await send(message)
                return
            parts.append(message["body"])
            if not message.get("more_body"):
                await _send_tagged(scope, start, b"".join(parts), send)

        await app(scope, receive, hold)

    return middleware


def _tagged(scope: HTTPScope) -> bool:
    path = scope["path"]
    return scope["method"] == "GET" and path.startswith("/v1/") and path != _ENDLESS


async def _send_tagged(scope: HTTPScope, start: Any, body: bytes, send: Send) -> None:
    if start["status"] == 200:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        given = dict(scope["headers"]).get(b"if-none-match", b"").decode("latin-1")
        kept = [(k, v) for k, v in start["headers"] if k.lower() not in (b"etag", b"cache-control")]
        fresh = [(b"etag", tag.encode()), (b"cache-control", b"private, no-cache")]
        start = {**start, "headers": [*kept, *fresh]}
        if tag in {entry.strip().removeprefix("W/") for entry in given.split(",")}:
            unsized = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
            start, body = {**start, "status": 304, "headers": unsized}, b""
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
