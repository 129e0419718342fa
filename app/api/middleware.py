"""Around every request: its id, the API key, the one error shape, and the record made after the answer."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.admin import ADMIN_KEY_ID, AdminToken, ManagementListener
from app.api.context import READ_KEY, SCOPE_KEY, RequestContext, new_context
from app.api.framework_errors import FRAMEWORK_ERRORS, translate
from app.errors import ClientClosed, HeadwayError, Internal, Unauthorized, error_headers, render

logger = logging.getLogger(__name__)

# Open without a key: probes, scrapes, the page and the documentation. Everything else needs one where keys are set.
OPEN_PATHS = frozenset({"/", "/docs", "/redoc", "/openapi.json", "/metrics"})
OPEN_PREFIXES = ("/health/", "/v2/health/", "/ui/")


class KeyRing:
    """The API keys, compared in constant time. `identify` returns a short id of the key for logs.

    An `admin` token that is given here opens what a key opens.
    """

    def __init__(self, keys: Sequence[str], admin: AdminToken | None = None) -> None:
        self._admin = admin
        self._keys = tuple((key.encode(), hashlib.sha256(key.encode()).hexdigest()[:8]) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def identify(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Raises Unauthorized where the request carries no key of ours."""
        given = b""
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            elif name == b"x-api-key":
                given = value
        found = None
        for key, key_id in self._keys:  # all of them: stopping early would tell which was close
            if hmac.compare_digest(key, given):
                found = key_id
        if found is None and self._admin is not None and self._admin.is_in(headers):
            return ADMIN_KEY_ID
        if found is None:
            raise Unauthorized("send a valid key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        return found


class RequestMiddleware:
    """Plain ASGI. `record` is called once a request is over, with its context; it must not raise."""

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        root_path: str,
        record: Callable[[RequestContext], None],
        management: ManagementListener | None = None,
    ) -> None:
        """`management` is None where that is closed."""
        self._app = app
        self._keys = keys
        self._management = management
        self._root_path = root_path
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope[SCOPE_KEY] = new_context(scope)
        if self._root_path:
            scope["root_path"] = self._root_path
        request_id = (b"x-request-id", context.request_id.encode("ascii"))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message.get("headers", ()), request_id]
            else:
                context.answer_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id, context)
        finally:
            context.read_at = scope.get(READ_KEY)
            self._record(context)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        try:
            if self._management is not None and self._management.owns(scope):
                self._management.admit(scope)
                context.is_management = True
                context.key_id = ADMIN_KEY_ID
            elif self._keys and needs_key(scope):
                context.key_id = self._keys.identify(scope["headers"])
            await self._app(scope, receive, send)
        except ClientClosed as exc:
            context.error_code = exc.code
        except HeadwayError as exc:
            await send_error(exc, send, context)
        except FRAMEWORK_ERRORS as exc:
            await send_error(translate(exc, scope), send, context)
        except Exception:
            logger.exception("request %s failed: this is a bug", context.request_id)
            if context.status != 499:
                raise  # the answer has begun; the server closes the connection
            await send_error(Internal("an internal error; report it with the request_id"), send, context)


def needs_key(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return not (path in OPEN_PATHS or path.startswith(OPEN_PREFIXES) or scope["method"] == "OPTIONS")


async def send_error(error: HeadwayError, send: Send, context: RequestContext) -> None:
    context.error_code = error.code
    body = render(error, context.request_id)
    headers = [(name.encode(), value.encode()) for name, value in error_headers(error)]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
