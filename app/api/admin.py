"""The management listener: which requests came in by it, who may use it; the routes that are there only; and who may
load and unload models elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.types import Message, Receive, Scope, Send

from app.api.context import RequestContext, context_of
from app.errors import BodyTimeout, BodyTooLarge, ClientClosed, Forbidden, RouteNotFound, Unauthorized

# Probes and scrapes, as on the public listener.
_OPEN_PREFIXES = ("/health/", "/v2/health/", "/metrics")
_PREFIXES = ("/models", "/update", "/openapi.json", "/v2")
_MAX_JSON_BYTES = 1_000_000
_WILDCARDS = frozenset({"", "0.0.0.0", "::"})
# In the access log, of what came with the admin token.
ADMIN_KEY_ID = "admin"


class AdminToken:
    """Compared in constant time."""

    def __init__(self, token: str) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises Unauthorized where `authorization` is not it."""
        if not self.is_in(headers):
            raise Unauthorized("send the admin token (HEADWAY_ADMIN_TOKEN) as 'Authorization: Bearer TOKEN'")

    def is_in(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        return hmac.compare_digest(hashlib.sha256(_bearer(headers)).digest(), self._digest)


class ManagementListener:
    """Known by the address that a connection was accepted at, which no header can change."""

    def __init__(self, address: tuple[str, int], token: AdminToken) -> None:
        """`address` is the one that was bound, with the port that was found."""
        self._host, self._port = address
        self._token = token

    def owns(self, scope: Scope) -> bool:
        server = scope.get("server")
        return server is not None and server[1] == self._port and (self._host in _WILDCARDS or server[0] == self._host)

    def admit(self, scope: Scope) -> None:
        """Raises Unauthorized without the token, RouteNotFound for what is not here, such as predictions."""
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        if path.startswith(_OPEN_PREFIXES):
            return
        self._token.check(scope["headers"])
        if not path.startswith(_PREFIXES) or (path.endswith("/infer") and scope["method"] == "POST"):
            raise RouteNotFound(f"there is no {scope['path']} on the management listener; predictions are on the other")


class RepositoryCalls:
    """Who may load and unload models: on the management listener whoever was let in there; elsewhere, where that is
    open, who has the admin token, or everybody where there is none."""

    def __init__(self, *, are_open: bool = False, token: AdminToken | None = None) -> None:
        self.are_open = are_open
        self.token = token if are_open else None

    def admit(self, context: RequestContext) -> None:
        """Raises Forbidden or Unauthorized."""
        if context.is_management:
            return
        if not self.are_open:
            raise Forbidden(
                "models are loaded and unloaded on the management listener (HEADWAY_MANAGEMENT_BIND), over HTTP with "
                "the admin token; point this client there, or set HEADWAY_REPOSITORY_CALLS=true"
            )
        if self.token is not None:
            self.token.check(context.headers.items())
            context.key_id = ADMIN_KEY_ID


class ManagementRoute(APIRoute):
    """404 on the public listener, whatever the method. Bodies are small and come at once."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not context_of(scope).is_management:
            raise RouteNotFound(f"there is no {scope['path']}; the routes are listed at /docs")
        await super().handle(scope, await self._prepare(receive), send)

    async def _prepare(self, receive: Receive) -> Receive:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientClosed("the caller left before its body was complete")
            body += message.get("body", b"")
            check_json_size(len(body))
            if not message.get("more_body"):
                return _replaying(bytes(body), receive)


class UploadRoute(ManagementRoute):
    """The body is as large as a model; it must not stand still."""

    stall_seconds = 30.0

    async def _prepare(self, receive: Receive) -> Receive:
        async def receive_in_time() -> Message:
            try:
                async with asyncio.timeout(self.stall_seconds):
                    message = await receive()
            except TimeoutError as exc:
                raise BodyTimeout(f"nothing of the body came for {self.stall_seconds:g} s; send it again") from exc
            if message["type"] == "http.disconnect":
                raise ClientClosed("the caller left before its body was complete")
            return message

        return receive_in_time


def check_json_size(size: int) -> None:
    if size > _MAX_JSON_BYTES:
        raise BodyTooLarge(
            f"the body is larger than {_MAX_JSON_BYTES:,} bytes; send an archive by its own Content-Type"
        )


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:].strip())
    return b""


def _replaying(body: bytes, receive: Receive) -> Receive:
    """The body once more for the framework, which reads it itself."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
