"""Errors as `application/problem+json` (RFC 9457); an unexpected one tells nothing of the inside."""

from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from msgspec import Struct

from trimtab import logs
from trimtab.errors import ConflictError, ContractError, NotFoundError, TrimtabError

log = logs.get("api")
MEDIA_TYPE = "application/problem+json"
_TITLES = {
    400: "Bad request",
    401: "No valid API key",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Request too large",
    422: "Unprocessable",
    500: "Internal error",
    503: "Too slow",
}


class Problem(Struct, frozen=True, omit_defaults=True):
    """What a client reads when a request fails."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    errors: list[dict[str, Any]] = []


def problem(status: int, detail: str, **headers: str) -> Response[Problem]:
    """A problem response."""
    body = Problem(_TITLES.get(status, "Error"), status, detail)
    return Response(body, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def of_http(_request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """An error of the HTTP layer."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status_code == 401 else {}
    if isinstance(error, ValidationException):
        return problem(error.status_code, f"{error.detail} {error.extra}")
    return problem(error.status_code, str(error.detail), **headers)


def of_trimtab(_request: Request[Any, Any, Any], error: TrimtabError) -> Response[Problem]:
    """An error that trimtab can name."""
    by_type = ((NotFoundError, 404), (ConflictError, 409), (ContractError, 422))
    status = next((code for kind, code in by_type if isinstance(error, kind)), 400)
    return problem(status, str(error))


def of_anything(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """A defect: logged with its traceback, told without it."""
    log.error(
        "a request failed",
        action="request_failed",
        method=request.method,
        path=request.url.path,
        exc_info=error,
    )
    return problem(500, "Something went wrong here. The log of `trimtab api` has the details.")
