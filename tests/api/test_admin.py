"""Which requests belong to the management listener: told by the socket, not by what the caller says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI

from app.api.admin import AdminToken, ManagementListener, UploadRoute
from app.errors import BodyTimeout, RouteNotFound, Unauthorized


def scope(server: tuple[str, int | None] | None, path: str = "/models", **headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "server": server, "path": path, "headers": raw}


@pytest.mark.parametrize(
    ("bound", "server", "expected"),
    [
        (("127.0.0.1", 8001), ("127.0.0.1", 8001), True),
        (("127.0.0.1", 8001), ("127.0.0.1", 8000), False),
        (("127.0.0.1", 8000), ("10.0.0.1", 8000), False),
        (("0.0.0.0", 8001), ("10.0.0.1", 8001), True),
        (("::", 8001), ("::1", 8001), True),
        (("127.0.0.1", 8001), ("/run/headway.sock", None), False),
        (("127.0.0.1", 8001), None, False),
    ],
)
def test_owns(bound: tuple[str, int], server: tuple[str, int | None] | None, expected: bool) -> None:
    assert ManagementListener(bound, AdminToken("t")).owns(scope(server)) is expected


def test_admit() -> None:
    listener = ManagementListener(("127.0.0.1", 8001), AdminToken("tökén"))
    for path in ("/health/live", "/metrics"):
        listener.admit(scope(None, path))
    listener.admit(scope(None, authorization="Bearer tökén"))
    listener.admit(scope(None, authorization="bearer  tökén "))
    listener.admit(scope(None, "/ml/update", authorization="Bearer tökén") | {"root_path": "/ml"})
    for given in ("tökén", "Bearer ", "Bearer tök", "Bearer tökénn"):
        with pytest.raises(Unauthorized):
            listener.admit(scope(None, authorization=given))
    with pytest.raises(RouteNotFound):
        listener.admit(scope(None, "/predict", authorization="Bearer tökén"))


class ImpatientRoute(UploadRoute):
    stall_seconds = 0.01


def test_upload_that_stands_still_is_ended() -> None:
    app = FastAPI()
    app.router.add_api_route("/up", lambda: None, methods=["POST"], route_class_override=ImpatientRoute)
    (route,) = [route for route in app.routes if isinstance(route, ImpatientRoute)]

    async def read() -> None:
        receive = await route._prepare(asyncio.Event().wait)  # type: ignore[arg-type]
        await receive()

    with pytest.raises(BodyTimeout, match=r"nothing of the body came for 0\.01 s"):
        asyncio.run(read())
