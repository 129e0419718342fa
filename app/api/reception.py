"""What every prediction protocol does around its own wire format: receive under limits, resolve, answer in time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from app.api.body import BodyReader
from app.api.context import READ_KEY, RequestContext, context_of
from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.engine.lane import Priority
from app.errors import HeadwayError, MalformedRequest, ModelNotReady, Overloaded
from app.metrics import Metrics
from app.registry.servables.servable import Content, ContentKind
from app.registry.serving.lifecycle import Resolved
from app.registry.versions import ModelRef
from app.tensors import Tensors

# In a request's scope: what the server calls when the client leaves (app/server/protocol.py).
LEAVE_KEY = "headway.leave"
_LOOK_AGAIN_SECONDS = 0.05
# As a share of a request's time. What comes while others are refused waits several times as long in its socket, where
# nobody sees it: refusing takes time too.
_MOST_LAG = 1 / 16
_UNFELT_SECONDS = 0.05

# The model and the kind of content that a body seems to be for, guessed without parsing it.
Peek = Callable[[Request, bytes], tuple[ModelRef | None, ContentKind]]


@dataclass(slots=True)
class Arrival:
    """A request whose body is there. `arrived` is time.monotonic() of its last byte, and its time runs from then.

    `on_admitted` is the `Call`'s.
    """

    context: RequestContext
    arrived: float
    deadline_ms: float
    priority: Priority
    routing_key: bytes | None
    on_admitted: Callable[[Callable[[], None]], None] | None

    @property
    def deadline(self) -> float:
        return self.arrived + self.deadline_ms / 1e3

    def shorten(self, milliseconds: float | None) -> None:
        """The caller's own time, where it gives one that is shorter: what it misses speaks against no version."""
        if milliseconds is not None and milliseconds < self.deadline_ms:
            self.context.has_own_deadline = True
            self.deadline_ms = milliseconds


class Reception:
    """Used in the event loop's thread."""

    def __init__(
        self,
        inference: Inference,
        bodies: BodyReader,
        metrics: Metrics,
        *,
        deadline_ms: int,
        max_deadline_ms: int,
        trusts_priority: bool,
    ) -> None:
        self._inference = inference
        self._bodies = bodies
        self._metrics = metrics
        self._deadline_ms = deadline_ms
        self._max_deadline_ms = max_deadline_ms
        self._trusts_priority = trusts_priority

    async def receive(
        self, request: Request, protocol: str, peek: Peek, *, takes_compressed: bool = False
    ) -> tuple[Arrival, bytes]:
        """The body with what its headers ask for.

        Raises what BodyReader.read does, MalformedRequest for a header, and Overloaded for what cannot be answered in
        time, before it is parsed.
        """
        context = context_of(request.scope)
        context.protocol = protocol
        headers = context.headers
        deadline_ms = self.requested_ms(headers)
        _check_lag(request, deadline_ms / 1e3)
        body = await self._bodies.read(request, takes_compressed=takes_compressed)
        arrival = Arrival(
            context,
            # Where the event loop is behind, a request has waited before anybody looked at it.
            request.scope.get(READ_KEY) or time.monotonic(),
            deadline_ms,
            self.priority_of(headers),
            headers.get(b"headway-routing-key") or None,
            partial(request.scope.__setitem__, LEAVE_KEY),
        )
        if self._inference.is_busy:
            self._check_room(arrival, *peek(request, body))
        return arrival, body

    def admit(
        self,
        context: RequestContext,
        ref: ModelRef | None,
        kind: ContentKind,
        *,
        seconds: float | None,
    ) -> Arrival:
        """As `receive`, of a request that is there whole. `seconds` is how long its caller waits, where that is known.

        Who leaves cancels the task.
        """
        arrival = Arrival(
            context,
            time.monotonic(),
            self.requested_ms(context.headers),
            self.priority_of(context.headers),
            context.headers.get(b"headway-routing-key") or None,
            None,
        )
        arrival.shorten(max(0.0, seconds * 1e3) if seconds is not None else None)
        if self._inference.is_busy:
            self._check_room(arrival, ref, kind)
        return arrival

    async def resolve(self, ref: ModelRef | None, kind: ContentKind, arrival: Arrival) -> Resolved:
        """The version that answers; waits for one that is being loaded, as long as there is time."""
        while True:
            try:
                resolved = self._inference.resolve(ref, kind, arrival.routing_key)
                break
            except ModelNotReady:
                if time.monotonic() + _LOOK_AGAIN_SECONDS >= arrival.deadline:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        _note_model(arrival.context, resolved)
        return resolved

    async def answer(
        self,
        arrival: Arrival,
        resolved: Resolved,
        inputs: Content | Tensors,
        *,
        outputs: tuple[str, ...] | None = None,
        is_plural: bool = False,
        top_k: int = 5,
    ) -> Answer:
        """Run it, and note in the context how long each stage took; what came before this was decoding."""
        decoded = time.monotonic()
        servable, context = resolved.servable, arrival.context
        limit_ms = servable.manifest.limits.deadline_ms or arrival.deadline_ms
        call = Call(
            inputs=inputs,
            deadline=arrival.arrived + min(arrival.deadline_ms, limit_ms) / 1e3,
            outputs=outputs,
            is_plural=is_plural,
            top_k=top_k,
            routing_key=arrival.routing_key,
            request_id=context.request_id,
            priority=arrival.priority,
            on_admitted=arrival.on_admitted,
        )
        gauge = self._metrics.model(servable.name, servable.version).in_flight
        gauge.inc()
        try:
            answer = await self._inference.predict(call, resolved)
        finally:
            gauge.dec()
        answer.timings.decode = decoded - arrival.arrived
        context.timings = answer.timings
        return answer

    def priority_of(self, headers: Mapping[bytes, bytes]) -> Priority:
        text = headers.get(b"headway-priority", b"normal").lower()
        if text not in (b"high", b"normal"):
            raise MalformedRequest("Headway-Priority is high or normal")
        return Priority.HIGH if text == b"high" and self._trusts_priority else Priority.NORMAL

    def requested_ms(self, headers: Mapping[bytes, bytes]) -> int:
        text = headers.get(b"headway-timeout-ms")
        if text is None:
            return self._deadline_ms
        if not text.isdigit() or not 1 <= int(text) <= self._max_deadline_ms:
            raise MalformedRequest(f"Headway-Timeout-Ms must be a whole number from 1 to {self._max_deadline_ms}")
        return int(text)

    def _check_room(self, arrival: Arrival, ref: ModelRef | None, kind: ContentKind) -> None:
        """Refuse what cannot be answered in time; what cannot be told yet goes on."""
        try:
            resolved = self._inference.resolve(ref, kind, arrival.routing_key)
        except HeadwayError:
            return
        _note_model(arrival.context, resolved)
        self._inference.check_room(resolved, arrival.deadline - time.monotonic(), arrival.priority)


def server_timing(context: RequestContext) -> bytes:
    """https://www.w3.org/TR/server-timing/, milliseconds; `total` runs from the first byte of the request."""
    timings = context.timings
    assert timings is not None
    total = time.perf_counter() - context.started
    return (
        f"decode;dur={timings.decode * 1e3:.3f}, queue;dur={timings.queue * 1e3:.3f}, "
        f"preprocess;dur={timings.preprocess * 1e3:.3f}, inference;dur={timings.inference * 1e3:.3f}, "
        f"postprocess;dur={timings.postprocess * 1e3:.3f}, total;dur={total * 1e3:.3f}"
    ).encode("ascii")


def _check_lag(request: Request, seconds: float) -> None:
    """Raises Overloaded where the event loop is so far behind that requests which are still unread would be late."""
    lag = time.monotonic() - request.scope.get(READ_KEY, math.inf)
    if lag > max(seconds * _MOST_LAG, _UNFELT_SECONDS):
        raise Overloaded(
            f"the server is {lag:.1f} s behind with requests that came before; try again later", lag, may_close=False
        )


def _note_model(context: RequestContext, resolved: Resolved) -> None:
    context.model, context.version = resolved.servable.name, resolved.servable.version
    context.alias, context.is_drawn = resolved.alias, resolved.is_drawn
