"""The application without a server: the short way gives what the router gives; requests that waited in the loop."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from app.api.context import READ_KEY
from app.main import create_app
from app.settings import Settings
from tests.fixtures_models import write_model, write_yaml

pytestmark = pytest.mark.anyio

GOOD = b'{"inputs": [[1, 2, 3]]}'
TENSORS = b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'
REQUESTS: tuple[tuple[str, str, bytes, dict[str, str]], ...] = (
    ("POST", "/predict", GOOD, {}),
    ("POST", "/predict", GOOD, {"headway-timeout-ms": "x"}),
    ("POST", "/predict", b"{", {}),
    ("POST", "/predict", b'{"inputs": [[1]], "model": "none"}', {}),
    ("POST", "/predict", GOOD, {"content-type": "text/html"}),
    ("GET", "/predict", b"", {}),
    ("HEAD", "/predict", b"", {}),
    ("OPTIONS", "/predict", b"", {}),
    ("DELETE", "/predict", b"", {}),
    ("POST", "/predict/", GOOD, {}),
    ("POST", "/v2/models/scores/infer", TENSORS, {}),
    ("POST", "/v2/models/scores/versions/1.0.0/infer", TENSORS, {}),
    ("POST", "/v2/models/none/infer", TENSORS, {}),
    ("POST", "/v2/models/a b@c/infer", TENSORS, {}),
    ("POST", "/v2/models//infer", TENSORS, {}),
    ("POST", "/v2/models/scores/infer/", TENSORS, {}),
    ("POST", "/v2/models/scores/infer\n", TENSORS, {}),
    ("GET", "/v2/models/scores/infer", b"", {}),
    ("POST", "/v1/models/scores:predict", b'{"instances": [[1, 2, 3]]}', {}),
    ("GET", "/v1/models/scores:predict", b"", {}),
    ("GET", "/models", b"", {}),
    ("GET", "/nowhere", b"", {}),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _ask(
    app: Any, method: str, path: str, body: bytes, headers: dict[str, str], root_path: str = "", **extra: Any
) -> list[Message]:
    given = {"content-type": "application/json", "x-request-id": "one", **headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
        "path": root_path + path, "raw_path": (root_path + path).encode(), "query_string": b"", "root_path": root_path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}, **extra,
    }  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    for message in sent:  # what differs from one run to the next
        message["headers"] = [
            pair for pair in message.get("headers", ()) if pair[0] not in (b"server-timing", b"headway-prediction-id")
        ]
        if "body" in message:
            message["body"] = re.sub(rb'"prediction_id":"[\w-]+"', b'"prediction_id":"one"', message["body"])
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


@pytest.mark.parametrize(
    ("lag", "timeout_ms", "status"), [(0.2, "10000", 200), (0.2, "1000", 503), (0.02, "100", 200), (0.7, None, 503)]
)
async def test_what_waited_too_long_to_be_looked_at_is_refused(
    tmp_path: Path, lag: float, timeout_ms: str | None, status: int
) -> None:
    """Long is a sixteenth of a request's time (10 s by default): those behind it, still unread, wait longer."""
    write_model(tmp_path, "scores")
    write_yaml(tmp_path / "registry.yaml", {"schema": 1, "defaults": {"tensor": "scores"}})
    app = create_app(Settings(models=tmp_path, access_log_sample=0))
    headers = {"headway-timeout-ms": timeout_ms} if timeout_ms else {}
    async with app.router.lifespan_context(app):
        extra = {READ_KEY: time.monotonic() - lag}
        start, *rest = await _ask(app, "POST", "/predict", GOOD, headers, **extra)
    assert start["status"] == status
    if status == 503:
        answer = json.loads(b"".join(message["body"] for message in rest))
        assert answer["code"] == "overloaded"
        assert "s behind with requests that came before" in answer["error"]
        assert (b"retry-after", b"1") in start["headers"]
        assert (b"connection", b"close") not in start["headers"]
