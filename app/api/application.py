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

from app.api.openapi import path_parameters
from app.errors import MethodNotAllowed

RawEndpoint = Callable[[Request], Awaitable[Response]]


class RawRoute(APIRoute):
    """A route whose endpoint takes the request and gives the response: no dependencies, no models, no exit stacks.

    It stands in the OpenAPI document like any other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allowed = frozenset(self.methods or ())
        if self.param_convertors:
            self.openapi_extra = {"parameters": path_parameters(self.param_convertors), **(self.openapi_extra or {})}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in self.allowed:
            allow = ", ".join(sorted(self.allowed))
            raise MethodNotAllowed(f"{scope['path']} does not take {scope['method']}; use {allow}", allow)
        endpoint: RawEndpoint = self.endpoint
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


class _ShortWay:
    """Leads to the RawRoutes by their paths, to all others by the router, which takes 15 µs longer."""

    def __init__(self, app: ASGIApp, routes: Sequence[RawRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if not route.param_convertors}
        self._patterns = [route for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Below a root path the router takes it off; in a trace it names the route.
        if scope["type"] != "http" or scope.get("root_path") or "fastapi.telemetry" in scope:
            await self._app(scope, receive, send)
            return
        route = self._routes.get(scope["path"]) or self._match(scope)
        await (self._app if route is None else route.handle)(scope, receive, send)

    def _match(self, scope: Scope) -> RawRoute | None:
        """With another method than the route's, another route may match."""
        for route in self._patterns:
            if scope["method"] in route.allowed and (match := route.path_regex.match(scope["path"])):
                scope["path_params"] = {
                    name: route.param_convertors[name].convert(text) for name, text in match.groupdict().items()
                }
                return route
        return None


class Application(FastAPI):
    """Errors of every kind are rendered by RequestMiddleware; the framework's own layers for them, and for limits and
    telemetry of exceptions, are left out.

    `beside` holds servers of other protocols; the process layer runs them (app/server/options.py).
    """

    beside: tuple[Any, ...] = ()

    def build_middleware_stack(self) -> ASGIApp:
        raw_routes = [route for route in self.router.routes if isinstance(route, RawRoute)]
        app: ASGIApp = _ShortWay(AsyncExitStackMiddleware(self.router), raw_routes)
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app
