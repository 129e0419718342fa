"""Callers on keep-alive connections, in a process of their own until SIGTERM: `python -m tests.slow.callers URL FILE`.

A line for each request: when it was sent and answered (time.monotonic(), which all processes of a machine share), the
status (0: none came, then what was raised), model, version and first label. No request is sent a second time.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import IO

from tests.running import CAT, PATIENCE_SECONDS

ROW_CALLERS, PHOTO_CALLERS = 60, 4
ROW_PAUSE_SECONDS, PHOTO_PAUSE_SECONDS = 0.06, 0.2


class Caller:
    """One connection, which sends the same request again and again, with pauses in between."""

    def __init__(self, host: str, port: int, request: bytes, pause_seconds: float, file: IO[str]) -> None:
        self._address = host, port
        self._request = request
        self._pause_seconds = pause_seconds
        self._file = file

    async def run(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            sent = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection(*self._address)
                while not is_over.is_set():
                    sent = time.monotonic()
                    writer.write(self._request)
                    async with asyncio.timeout(PATIENCE_SECONDS):
                        words = await read_answer(reader)
                    self._note(sent, words)
                    await asyncio.sleep(random.uniform(0.5, 1.5) * self._pause_seconds)
                writer.close()
            except (OSError, TimeoutError, asyncio.IncompleteReadError, LookupError, ValueError) as exc:
                self._note(sent, f"0 {exc!r}")
                await asyncio.sleep(self._pause_seconds)

    def _note(self, sent: float, words: str) -> None:
        self._file.write(f"{sent:.6f} {time.monotonic():.6f} {words}\n")


async def read_answer(reader: asyncio.StreamReader) -> str:
    """The status, and what the answer says."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
    status, body = int(head.split(None, 2)[1]), await reader.readexactly(length)
    if status != 200:
        return f"{status} {body!r}"
    answer = json.loads(body)
    (found,) = answer.get("results", [answer])  # one photo's answer stands for itself
    return f"200 {answer['model']} {answer['version']} {found['predictions'][0]['label']}"


def build_request(target: str, content_type: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nhost: t\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def call(url: str, file: IO[str]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    row = build_request("/predict", "application/json", b'{"model": "m", "inputs": [[0, 0, 1]]}')
    photo = build_request("/predict", "image/jpeg", CAT.read_bytes())
    callers = [Caller(host, int(port), row, ROW_PAUSE_SECONDS, file) for _ in range(ROW_CALLERS)]
    callers += [Caller(host, int(port), photo, PHOTO_PAUSE_SECONDS, file) for _ in range(PHOTO_CALLERS)]
    is_over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, is_over.set)
    await asyncio.gather(*(caller.run(is_over) for caller in callers))


if __name__ == "__main__":
    with Path(sys.argv[2]).open("w") as lines:
        asyncio.run(call(sys.argv[1], lines))
