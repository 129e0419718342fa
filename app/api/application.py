"""FastAPI without the layers that the request middleware makes superfluous; docs/decisions/0008 has the figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import MethodNotAllowed

RawEndpoint = Callable[[Request], Awaitable[Response]]


class RawRoute(APIRoute):
    """A route whose endpoint takes the request and gives the response: no dependencies, no models, no exit stacks.

    It stands in the OpenAPI document like any other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._allowed = frozenset(self.methods or ())

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self._allowed:
            allow = ", ".join(sorted(self._allowed))
            raise MethodNotAllowed(f"{scope['path']} does not take {scope['method']}; use {allow}", allow)
        endpoint: RawEndpoint = self.endpoint
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class _ShortWay:
    """Leads to the RawRoutes by their paths, which have no parameters; to all others by the router."""

    def __init__(self, app: ASGIApp, routes: Sequence[RawRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        # Below a root path the router takes it off; in a trace it names the route.
        if route is None or scope.get("root_path") or "fastapi.telemetry" in scope:
            await self._app(scope, receive, send)
        else:
            await route.handle(scope, receive, send)


class Application(FastAPI):
    """Errors of every kind are rendered by RequestMiddleware; the framework's own layers for them, and for limits and
    telemetry of exceptions, are left out."""

    def build_middleware_stack(self) -> ASGIApp:
        raw_routes = [route for route in self.router.routes if isinstance(route, RawRoute)]
        app: ASGIApp = _ShortWay(AsyncExitStackMiddleware(self.router), raw_routes)
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app
