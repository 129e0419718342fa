"""Around every call: its id, the API key, the status of an error, and the record made after the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from app.api.body import BodyReader
from app.api.context import RequestContext, make_context
from app.api.middleware import KeyRing
from app.api.reception import server_timing
from app.errors import ClientClosed, DeadlineExceeded, Draining, HeadwayError, Internal, InvalidContent

logger = logging.getLogger(__name__)

# Of one stream: messages that are read and not yet answered. They run side by side, and so fill batches.
_WINDOW = 16
# A caller's clock began before ours, by the time that its message took.
_ON_THE_WAY_SECONDS = 0.1
# Longer details would not fit into the headers that a client takes.
_MAX_DETAILS = 2000


@dataclass(slots=True)
class Incoming:
    """One message. `seconds` is how long its caller waits for the answer, None where it does not say."""

    context: RequestContext
    message: bytes
    seconds: float | None


# Bytes in, bytes out: what cannot be answered is not even parsed. Raises HeadwayError, or DecodeError.
Answerer = Callable[[Incoming], Awaitable[bytes]]


class Calls:
    """Makes gRPC's handlers of answerers. `record` is called once a request is over; it must not raise.

    `leaving` is set when the worker takes no more calls. While `answering` is not, answers are held back.
    """

    def __init__(self, keys: KeyRing, bodies: BodyReader, record: Callable[[RequestContext], None]) -> None:
        self.leaving = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        self._keys = keys
        self._bodies = bodies
        self._record = record

    def unary(self, path: str, answer: Answerer, *, is_open: bool = False) -> Any:
        """A handler of one message and one answer. `is_open`: without a key."""

        async def handle(message: bytes, call: Any) -> bytes:
            incoming = _receive(call, path, message)
            error: HeadwayError | None = None
            reply = b""
            try:
                reply = await self._answer(answer, incoming, is_open=is_open)
            except HeadwayError as exc:
                error = exc
            if not self.answering.is_set():
                await self.answering.wait()
            if error is not None:
                await _abort(call, incoming.context, error)
            call.set_trailing_metadata(_describe(incoming.context))
            return reply

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(self, path: str, answer: Answerer, explain: Callable[[bytes, HeadwayError], bytes]) -> Any:
        """A handler of many messages, each answered by one, in their order; `explain` makes an answer of an error.

        Before the worker ends, what was read is answered, and then the stream ends with UNAVAILABLE.
        """

        async def answer_one(message: bytes, call: Any) -> bytes:
            try:
                return await self._answer(answer, _receive(call, path, message))
            except HeadwayError as exc:
                return explain(message, exc)

        async def handle(_: Any, call: Any) -> None:
            opening = _receive(call, path, b"")
            try:
                self._check_key(opening.context)
            except HeadwayError as exc:
                self._record(opening.context)
                await _abort(call, opening.context, exc)
            await _answer_in_order(call, answer_one, self.leaving)
            if self.leaving.is_set():
                error = Draining("the server is shutting down; open the stream anew")
                await _abort(call, opening.context, error)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _check_key(self, context: RequestContext) -> None:
        if self._keys:
            try:
                context.key_id = self._keys.identify(context.headers.items())
            except HeadwayError as exc:
                raise _note(context, exc) from None

    async def _answer(self, answer: Answerer, incoming: Incoming, *, is_open: bool = False) -> bytes:
        """Raises HeadwayError, whatever goes wrong; recorded in each case."""
        context = incoming.context
        try:
            if not is_open:
                self._check_key(context)
            self._bodies.hold(context, len(incoming.message))
            reply = await answer(incoming)
            context.status, context.answer_bytes = 200, len(reply)
            return reply
        except asyncio.CancelledError:
            _note(context, _why_cancelled(incoming))
            raise
        except HeadwayError as exc:
            raise _note(context, exc) from exc.__cause__
        except DecodeError as exc:
            raise _note(context, InvalidContent(f"the message is none that {context.path} takes")) from exc
        except Exception as exc:
            logger.exception("call %s failed: this is a bug", context.request_id)
            raise _note(context, Internal("an internal error; report it with the x-request-id")) from exc
        finally:
            self._record(context)


async def _answer_in_order(
    call: Any, answer_one: Callable[[bytes, Any], Awaitable[bytes]], leaving: asyncio.Event
) -> None:
    answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_WINDOW)
    async with asyncio.TaskGroup() as group:

        async def read() -> None:
            async for message in _messages(call, leaving):
                await answers.put(group.create_task(_run(answer_one(message, call))))
            await answers.put(None)

        group.create_task(read())
        while (task := await answers.get()) is not None:
            await call.write(await task)


async def _run(answer: Awaitable[bytes]) -> bytes:
    return await answer


async def _messages(call: Any, leaving: asyncio.Event) -> AsyncIterator[bytes]:
    """Until the caller sends no more, or the worker is leaving."""
    left = asyncio.ensure_future(leaving.wait())
    read: asyncio.Future[Any] | None = None
    try:
        while not left.done():
            read = asyncio.ensure_future(call.read())
            await asyncio.wait((read, left), return_when=asyncio.FIRST_COMPLETED)
            if not read.done() or (message := read.result()) is grpc.aio.EOF:
                return
            yield message
    finally:
        left.cancel()
        if read is not None:
            read.cancel()


def _receive(call: Any, path: str, message: bytes) -> Incoming:
    headers: dict[bytes, bytes] = {}
    for name, value in call.invocation_metadata() or ():
        headers[name.encode()] = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
    context = make_context(headers, "POST", path)
    context.read_at = time.monotonic()
    return Incoming(context, message, call.time_remaining())


def _why_cancelled(incoming: Incoming) -> HeadwayError:
    """A caller's deadline that passes, and a caller who leaves, both cancel the task."""
    assert incoming.context.read_at is not None
    waited = time.monotonic() - incoming.context.read_at
    if incoming.seconds is not None and waited >= incoming.seconds - _ON_THE_WAY_SECONDS:
        incoming.context.has_own_deadline = True
        return DeadlineExceeded("the caller's deadline has passed")
    return ClientClosed("the caller left before its answer was ready")


def _note(context: RequestContext, error: HeadwayError) -> HeadwayError:
    context.error_code, context.status = error.code, error.status
    return error


def _describe(context: RequestContext, error: HeadwayError | None = None) -> tuple[tuple[str, str], ...]:
    """The trailing metadata: what HTTP answers have as headers."""
    described = [("x-request-id", context.request_id)]
    if context.timings is not None:
        described.append(("server-timing", server_timing(context).decode("ascii")))
    if error is not None:
        described.append(("headway-error-code", error.code))
        if error.retry_after_seconds is not None:
            described.append(("retry-after", str(error.retry_after_seconds)))
    return tuple(described)


async def parse(kind: Any, message: bytes, call: Any) -> Any:
    """For handlers that are not made here: a message of a kind, or the end of the call."""
    try:
        return kind.FromString(message)
    except DecodeError:
        await call.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {kind.DESCRIPTOR.full_name}")


async def _abort(call: Any, context: RequestContext, error: HeadwayError) -> NoReturn:
    """Ends the call: `abort` raises."""
    await call.abort(grpc.StatusCode[error.grpc], str(error)[:_MAX_DETAILS], _describe(context, error))
    raise AssertionError("unreachable")
