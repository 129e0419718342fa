"""How the server ends, told by signals to its master."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

NO_DRAIN: dict[str, Any] = {"workers": 2, "drain_seconds": 0.0}
# Long enough for whatever a busy machine does in between; the tests end it themselves.
LONG_DRAIN: dict[str, Any] = {"workers": 2, "drain_seconds": 25.0, "graceful_timeout_seconds": 100}
QUICK_SECONDS = 5


def count_flushed(server: Any) -> int:
    return len(list(server.flags.glob("flushed-*")))


def wait_until_draining(server: Any) -> None:
    server.wait_for(lambda: "stopping" in server.read_err(), "the drain")


def test_sigterm_answers_what_is_running(start: Any) -> None:
    server = start(**NO_DRAIN)
    clients = [server.connect() for _ in range(8)]
    for client in clients:
        client.get("/")
        client.ask("/sleep/1.5")
    time.sleep(0.3)
    server.tell(signal.SIGTERM)
    answers = [client.read() for client in clients]
    assert [answer.status for answer in answers] == [200] * 8
    assert {answer.headers["connection"] for answer in answers} == {"close"}
    assert server.wait() == 0
    assert count_flushed(server) == 2
    assert "Traceback" not in server.read_err()


def test_drain_still_accepts_but_is_not_ready(start: Any) -> None:
    server = start(**LONG_DRAIN)
    used = server.connect()
    assert "connection" not in used.get("/ready").headers
    server.tell(signal.SIGTERM)
    server.wait_for(lambda: server.get("/ready").status == 503, "not ready")

    def all_close() -> bool:
        answers = [server.get("/other") for _ in range(10)]
        assert {answer.status for answer in answers} == {200}
        return all(answer.headers.get("connection") == "close" for answer in answers)

    server.wait_for(all_close, "each worker has heard of it, and closes")
    answer = used.get("/")
    assert answer.headers["connection"] == "close"
    assert used.is_closed_by_server()
    server.tell(signal.SIGTERM)  # the second one ends the window
    assert server.wait() == 0
    with pytest.raises(OSError):  # noqa: PT011 - refused, or reset while the last listener closes
        server.get("/")


def test_drain_answers_whole_pipeline(start: Any) -> None:
    server = start(**LONG_DRAIN)
    client = server.connect()
    client.ask("/sleep/1")
    time.sleep(0.2)
    server.tell(signal.SIGTERM)
    wait_until_draining(server)
    time.sleep(0.3)
    client.ask("/two")
    client.ask("/three")
    answers = [client.read() for _ in range(3)]
    assert [answer.json["path"] for answer in answers] == ["/sleep/1", "/two", "/three"]
    assert ["connection" in answer.headers for answer in answers] == [False, False, True]


def test_silent_connection_may_send_after_listener_closed(start: Any) -> None:
    server = start(**NO_DRAIN)
    clients = [server.connect() for _ in range(4)]
    time.sleep(0.1)
    server.tell(signal.SIGTERM)
    wait_until_draining(server)
    time.sleep(0.3)
    for client in clients:
        client.ask("/late")
    assert [client.read().status for client in clients] == [200] * 4
    assert server.wait() == 0


def test_connections_in_the_queue_are_answered(start: Any) -> None:
    """Those that the kernel has accepted, and a blocked worker has not."""
    server = start(drain_seconds=0.0)
    blocker = server.connect()
    blocker.ask("/block/1")
    time.sleep(0.2)
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.ask("/queued")
    server.tell(signal.SIGTERM)
    assert [client.read().status for client in [blocker, *clients]] == [200] * 21
    assert server.wait() == 0


def test_silent_connections_do_not_hold_up_the_end(start: Any) -> None:
    server = start(**NO_DRAIN)
    silent, half, idle = server.connect(), server.connect(), server.connect()
    idle.get("/")
    half.send(b"GET / HT")
    server.tell(signal.SIGTERM)
    assert server.wait(8) == 0
    assert silent.is_closed_by_server()
    assert idle.is_closed_by_server()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("path", [None, "/sleep/60"], ids=["idle", "running"])
def test_sigint_and_sigquit_to_master_end_quickly(start: Any, number: int, path: str | None) -> None:
    server = start(**LONG_DRAIN)
    client = server.connect()
    client.get("/")
    if path:
        client.ask(path)
        time.sleep(0.1)
    server.tell(number)
    assert server.wait(QUICK_SECONDS) == 0
    assert count_flushed(server) == 2
    if path:
        answer = client.read()
        assert (answer.status, answer.json["code"]) == (503, "draining")
    assert "Traceback" not in server.read_err()


def test_sigint_to_whole_group_ends_quickly(start: Any) -> None:
    """Ctrl-C on a terminal."""
    server = start(**LONG_DRAIN)
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.wait(QUICK_SECONDS) == 0
    assert count_flushed(server) == 2


def test_sigint_ends_a_drain(start: Any) -> None:
    server = start(**LONG_DRAIN)
    server.tell(signal.SIGTERM)
    wait_until_draining(server)
    server.tell(signal.SIGINT)
    assert server.wait(QUICK_SECONDS) == 0


def test_sigterm_to_whole_group_opens_the_drain(start: Any) -> None:
    """Some supervisors tell every process at once."""
    server = start(**LONG_DRAIN)
    for pid in server.list_workers():
        os.kill(pid, signal.SIGTERM)
    server.tell(signal.SIGTERM)
    time.sleep(1.5)
    assert server.get("/ready").status == 503
    server.tell(signal.SIGTERM)
    assert server.wait() == 0


def test_blocked_worker_is_killed(start: Any) -> None:
    server = start(drain_seconds=0.0)
    server.connect().ask("/block/60")
    time.sleep(0.3)
    server.tell(signal.SIGINT)
    assert server.wait(QUICK_SECONDS) == 0
    assert "did not end in time" in server.read_err()


def test_unix_socket_is_there_until_the_end(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = start(uds=str(path), **LONG_DRAIN)
    assert server.get("/").status == 200
    server.tell(signal.SIGTERM)
    server.wait_for(lambda: server.get("/ready").status == 503, "not ready")
    assert path.exists()
    server.tell(signal.SIGTERM)
    assert server.wait() == 0
    assert not path.exists()
