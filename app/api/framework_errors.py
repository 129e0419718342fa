"""Errors that the framework raises by itself, as errors of ours."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.errors import (
    BodyTooLarge,
    HeadwayError,
    Internal,
    MalformedRequest,
    MethodNotAllowed,
    RouteNotFound,
    Unauthorized,
    UnsupportedMediaType,
)

FRAMEWORK_ERRORS = (HTTPException, RequestValidationError)
_BY_STATUS: dict[int, type[HeadwayError]] = {
    400: MalformedRequest,
    401: Unauthorized,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def translate(exc: Exception, scope: Scope) -> HeadwayError:
    """The error of ours that says the same; `exc` is one of FRAMEWORK_ERRORS."""
    if isinstance(exc, RequestValidationError):
        problem = exc.errors()[0]
        return MalformedRequest(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}")
    assert isinstance(exc, HTTPException)
    if exc.status_code == 404:
        return RouteNotFound(f"there is no {scope['path']}; the routes are listed at /docs")
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{scope['path']} does not take {scope['method']}; use {allow}", allow)
    return _BY_STATUS.get(exc.status_code, Internal)(str(exc.detail))
