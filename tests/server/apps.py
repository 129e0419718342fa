"""Small ASGI applications that the servers under test run, named by "module:factory"."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from app.server.options import ConfigurationError, WorkerContext

LARGE_BYTES = 200_000
FLAGS = Path(os.environ.get("TEST_FLAGS", "."))


def make_app(context: WorkerContext) -> Any:
    """The plain one: what it does is in the path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        else:
            await answer(context, scope, receive, send)

    return app


async def run_lifespan(receive: Any, send: Any) -> None:
    await receive()
    if (FLAGS / "fail-start").exists():
        raise RuntimeError("the registry is gone")
    if (FLAGS / "wrong-setting-late").exists():
        raise SystemExit(3)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    (FLAGS / f"flushed-{os.getpid()}").touch()
    await send({"type": "lifespan.shutdown.complete"})


async def answer(context: WorkerContext, scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"]
    status = 200
    if path == "/ready":
        status = 503 if context.draining.is_set() else 200
    elif path == "/early":
        status = 413
    elif path.startswith("/sleep/"):
        await asyncio.sleep(float(path[7:]))
    elif path.startswith("/block/"):
        time.sleep(float(path[7:]))
    elif path.startswith("/crash/"):
        await asyncio.to_thread(CRASHES[path[7:]])
    elif path == "/bug":
        raise RuntimeError("a bug")
    body, parts = b"", 0
    while path != "/early":
        message = await receive()
        parts += 1
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    content = json.dumps(
        {"slot": context.slot, "pid": os.getpid(), "path": path, "bytes": len(body), "parts": parts}
    ).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if path == "/early":
        headers.append((b"connection", b"close"))
    elif path == "/split":
        headers.append((b"x-name", b"value\r\nset-cookie: stolen"))
    elif path == "/short":
        headers[1] = (b"content-length", str(len(content) + 1).encode())
    elif path == "/large":
        content = content.ljust(LARGE_BYTES)
        headers[1] = (b"content-length", str(LARGE_BYTES).encode())
    if path == "/pieces":
        await send({"type": "http.response.start", "status": status, "headers": headers[:1]})
        for piece in (b"", content[:5], b"", content[5:]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _crash_in_python_thread() -> None:
    (FLAGS / "crashing-thread").write_text(str(threading.get_ident()))
    ctypes.string_at(0)


def _crash_in_native_thread() -> None:
    """As in a runtime's own thread pool: Python knows nothing of it."""
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.abort, None)
    time.sleep(30)


CRASHES = {"python": _crash_in_python_thread, "native": _crash_in_native_thread}


def make_misconfigured(_: WorkerContext) -> Any:
    raise ConfigurationError("HEADWAY_MODELS names no directory: set it to one")


def make_broken(context: WorkerContext) -> Any:
    """The factory itself fails while the flag is there."""
    if (FLAGS / "fail-start").exists():
        raise OSError("the disk is gone")
    return make_app(context)
