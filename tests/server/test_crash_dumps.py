"""The master learns from a dead worker which thread crashed, and writes where it was into the log, once."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from app.server.crash_dumps import find_crashed_thread


def crash(server: Any, how: str) -> str:
    """What the master learnt of the crash."""
    before = len(find_lines(server.read_out(), "CRASH"))
    with server.connect() as client:
        client.ask(f"/crash/{how}")
        with pytest.raises(EOFError):
            client.read()
    lines: list[str] = server.wait_for(lambda: find_lines(server.read_out(), "CRASH")[before:], "the worker's end")
    return lines[0]


def find_lines(text: str, beginning: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(beginning)]


def test_crashed_thread_is_known(start: Any) -> None:
    server = start()
    for number in range(1, 4):
        told = crash(server, "python")
        thread = (server.flags / "crashing-thread").read_text()
        assert told == f"CRASH 0 thread {thread} aborted False"
        assert server.read_err().count("in _crash_in_python_thread") == number
        assert f"EXIT 0 {-signal.SIGSEGV}" in server.read_out()
        server.wait_for_slots(1 + number)
    assert "worker 0 (pid " in server.read_err()
    assert "Extension modules" not in server.read_err()


def test_crashed_thread_that_is_not_pythons_is_not_known(start: Any) -> None:
    server = start()
    assert crash(server, "native") == "CRASH 0 thread None aborted False"
    assert "Fatal Python error: Aborted" in server.read_err()
    assert f"EXIT 0 {-signal.SIGABRT}" in server.read_out()


def test_killed_worker_has_no_dump(start: Any) -> None:
    server = start(workers=2)
    crash(server, "python")
    server.wait_for_slots(3)
    for pid in server.list_workers():
        os.kill(pid, signal.SIGKILL)
    server.wait_for(lambda: len(find_lines(server.read_out(), "CRASH")) == 3, "their ends")
    assert all("thread None" in line for line in find_lines(server.read_out(), "CRASH")[1:])
    assert server.read_err().count("was here as it ended") == 1


def test_hung_worker_is_told_apart(start: Any) -> None:
    server = start(worker_timeout_seconds=2)
    with server.connect() as client:
        client.ask("/block/30")
        lines = server.wait_for(lambda: find_lines(server.read_out(), "CRASH"), "the end of the worker")
    assert lines[0].endswith("aborted True")
    assert "in answer" in server.read_err()


@pytest.mark.parametrize(
    ("dump", "thread"),
    [
        ("", None),
        ("Fatal Python error: Aborted\n\nThread 0x00007f19 (most recent call first):\n  File …", None),
        (
            "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f9dc49ff6c0 (most recent call",
            0x7F9DC49FF6C0,
        ),
        ("Thread 0x01 (most…\n\nCurrent thread 0x02 [worker-1] (most recent call first):\n", 2),
    ],
)
def test_find_crashed_thread(dump: str, thread: int | None) -> None:
    assert find_crashed_thread(dump) == thread
