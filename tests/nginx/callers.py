"""Callers on keep-alive connections, who note every answer and never send a request twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tests.running import PATIENCE_SECONDS


def build_request(path: str, content: Any, *lines: str) -> bytes:
    """A POST with a JSON body; `lines` are further headers."""
    body = json.dumps(content).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "host: t",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *lines,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Callers:
    """`outcomes` counts statuses, and what was raised where no answer came."""

    def __init__(self, port: int, requests: Iterable[bytes], count: int, pause_seconds: float) -> None:
        self.outcomes: Counter[int | str] = Counter()
        self._port = port
        self._requests = iter(requests)
        self._count = count
        self._pause_seconds = pause_seconds
        self._is_over = False

    @property
    def answered(self) -> int:
        return self.outcomes.total()

    def finish(self) -> None:
        self._is_over = True

    def run(self) -> None:
        """Until all requests are answered, or `finish`."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        await asyncio.gather(*(self._call() for _ in range(self._count)))

    async def _call(self) -> None:
        while not self._is_over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                await self._use(reader, writer)
                writer.close()
                if not self._is_over:
                    return  # all requests are sent
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
                self.outcomes[repr(exc)] += 1

    async def _use(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for request in self._requests:
            async with asyncio.timeout(PATIENCE_SECONDS):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
            self.outcomes[int(head.split(None, 2)[1])] += 1
            if self._is_over:
                return
            await asyncio.sleep(random.uniform(0.5, 1.5) * self._pause_seconds)


@contextlib.contextmanager
def calling(port: int, request: bytes, count: int = 64, pause_seconds: float = 0.15) -> Iterator[Callers]:
    """As long as the block runs."""

    def repeat() -> Iterator[bytes]:
        while True:
            yield request

    callers = Callers(port, repeat(), count, pause_seconds)
    thread = threading.Thread(target=callers.run)
    thread.start()
    try:
        yield callers
    finally:
        callers.finish()
        thread.join()
