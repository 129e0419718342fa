"""What is known of one request while it is answered; made by the middleware, filled on the way, recorded after it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Scope

from app.engine.call import Timings

SCOPE_KEY = "headway"
# In a request's scope: time.monotonic() when the server had read its last byte (app/server/protocol.py).
READ_KEY = "headway.read"
# Ids go into logs and headers: nothing that could break a line of either.
_SAFE_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class RequestContext:
    """`protocol` is set by prediction routes and says that the request is counted as a prediction.

    `headers` are by lower-case name; of one that is sent twice the last counts. `is_drawn`: the alias was chosen
    by its weight, not by the caller. `is_management`: it came in by the management listener, with the token. `read_at`:
    time.monotonic() of the body's last byte, None where that is not known. `has_own_deadline`: the caller waits less
    than the server would.
    """

    request_id: str
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    method: str = ""
    path: str = ""
    trace_id: str | None = None
    started: float = field(default_factory=time.perf_counter)
    read_at: float | None = None
    protocol: str | None = None
    model: str | None = None
    version: str | None = None
    alias: str | None = None
    is_drawn: bool = False
    key_id: str | None = None
    has_own_deadline: bool = False
    is_management: bool = False
    error_code: str | None = None
    status: int = 499
    body_bytes: int = 0
    answer_bytes: int = 0
    timings: Timings | None = None


def new_context(scope: Scope) -> RequestContext:
    return make_context(dict(scope["headers"]), scope["method"], scope["path"])


def make_context(headers: Mapping[bytes, bytes], method: str, path: str) -> RequestContext:
    """Take the caller's X-Request-ID where it is safe, else make one. `headers` are by lower-case name."""
    request_id = trace_id = None
    given = headers.get(b"x-request-id")
    if given is not None and _SAFE_ID.fullmatch(given):
        request_id = given.decode("ascii")
    parent = headers.get(b"traceparent")
    if parent is not None and (match := _TRACEPARENT.fullmatch(parent)):
        trace_id = match[1].decode("ascii")
    return RequestContext(request_id or f"{random.getrandbits(128):032x}", headers, method, path, trace_id)


def context_of(scope: Scope) -> RequestContext:
    context: RequestContext = scope[SCOPE_KEY]
    return context
