"""Errors that the framework raises by itself, as errors of ours; all of them go to the middleware's one renderer."""

from __future__ import annotations

from typing import NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

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


def install_error_handlers(application: FastAPI) -> None:
    application.add_exception_handler(HTTPException, _on_http_exception)
    application.add_exception_handler(RequestValidationError, _on_validation_error)


async def _on_http_exception(request: Request, exc: Exception) -> NoReturn:
    assert isinstance(exc, HTTPException)
    raise _translate(request, exc) from exc


async def _on_validation_error(_: Request, exc: Exception) -> NoReturn:
    assert isinstance(exc, RequestValidationError)
    problem = exc.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    raise MalformedRequest(f"{field}: {problem['msg']}") from exc


def _translate(request: Request, exc: HTTPException) -> HeadwayError:
    path, method = request.url.path, request.method
    if exc.status_code == 404:
        return RouteNotFound(f"there is no {path}; the routes are listed at /docs")
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{path} does not take {method}; use {allow}", allow)
    known = {413: BodyTooLarge, 415: UnsupportedMediaType, 401: Unauthorized, 400: MalformedRequest}
    return known.get(exc.status_code, Internal)(str(exc.detail))
