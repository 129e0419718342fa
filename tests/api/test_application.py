"""The short way to the prediction routes gives what the router gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from app.main import create_app
from app.settings import Settings
from tests.fixtures_models import write_model, write_yaml

pytestmark = pytest.mark.anyio

GOOD = b'{"inputs": [[1, 2, 3]]}'
REQUESTS: tuple[tuple[str, str, bytes, dict[str, str]], ...] = (
    ("POST", "/predict", GOOD, {}),
    ("POST", "/predict", GOOD, {"headway-timeout-ms": "x"}),
    ("POST", "/predict", b"{", {}),
    ("POST", "/predict", b'{"inputs": [[1]], "model": "none"}', {}),
    ("POST", "/predict", GOOD, {"content-type": "text/plain"}),
    ("GET", "/predict", b"", {}),
    ("HEAD", "/predict", b"", {}),
    ("OPTIONS", "/predict", b"", {}),
    ("DELETE", "/predict", b"", {}),
    ("POST", "/predict/", GOOD, {}),
    ("GET", "/models", b"", {}),
    ("GET", "/nowhere", b"", {}),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _ask(app: Any, method: str, path: str, body: bytes, headers: dict[str, str], root_path: str) -> list[Message]:
    given = {"content-type": "application/json", "x-request-id": "one", **headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
        "path": root_path + path, "raw_path": (root_path + path).encode(), "query_string": b"", "root_path": root_path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    for message in sent:  # what differs from one run to the next
        message["headers"] = [pair for pair in message.get("headers", ()) if pair[0] != b"server-timing"]
    return sent


@pytest.mark.parametrize(("method", "path", "body", "headers"), REQUESTS)
async def test_short_way_equals_the_router(
    tmp_path: Path, method: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Below a root path the router is asked."""
    write_model(tmp_path, "scores")
    write_yaml(tmp_path / "registry.yaml", {"schema": 1, "defaults": {"tensor": "scores"}})
    app = create_app(Settings(models=tmp_path, access_log_sample=0))
    async with app.router.lifespan_context(app):
        short = await _ask(app, method, path, body, headers, "")
        routed = await _ask(app, method, path, body, headers, "/below")
    for message in routed:
        if "body" in message:
            message["body"] = message["body"].replace(b"/below", b"")
            message["headers"] = []
        else:
            message["headers"] = [pair for pair in message["headers"] if pair[0] != b"content-length"]
    for message in short:
        message["headers"] = [pair for pair in message["headers"] if pair[0] != b"content-length"]
    assert short == routed
