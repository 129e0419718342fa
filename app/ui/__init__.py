"""The page at `/`: three files of ours, no outside request."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import RouteNotFound

_FOLDER = Path(__file__).parent
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
}
# The page needs nothing from elsewhere; this says so to the browser.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class UiApi:
    def __init__(self) -> None:
        self._files = {name: (_FOLDER / name).read_bytes() for name in _TYPES}

    def add_routes(self, router: APIRouter) -> None:
        router.add_api_route("/", self.page, include_in_schema=False)
        router.add_api_route("/ui/{name}", self.asset, include_in_schema=False)

    async def page(self, request: Request) -> Response:
        """The page for browsers; others learn that the server lives, which clients of KServe's version 1 ask here."""
        if "text/html" in request.headers.get("accept", ""):
            return self._respond("index.html")
        return JSONResponse({"status": "alive"}, headers={"vary": "accept"})

    async def asset(self, name: str) -> Response:
        if name not in self._files:
            raise RouteNotFound(f"there is no /ui/{name}; the page is at /")
        return self._respond(name)

    def _respond(self, name: str) -> Response:
        headers = {
            "content-type": _TYPES[name],
            "content-security-policy": _POLICY,
            "cache-control": "no-cache",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "vary": "accept",
        }
        return Response(self._files[name], headers=headers)
