"""What the master does when workers die, cannot start, or are to be replaced."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest


def kill_worker(server: Any) -> int:
    """Kill one worker; returns its process id."""
    pid: int = server.get("/").json["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def count_exits(server: Any, status: int) -> int:
    lines = server.read_out().splitlines()
    return sum(line.startswith("EXIT ") and line.endswith(f" {status}") for line in lines)


def test_taken_port_is_one_clear_line(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start(wait=False, port=port)
        assert server.wait() == 1
    expected = f"headway: port {port} on 127.0.0.1 is taken: stop the other server or choose another with --port"
    assert server.read_err().splitlines() == [expected]


@pytest.mark.parametrize("workers", [1, 3])
def test_wrong_setting_ends_the_first_start(start: Any, workers: int) -> None:
    server = start(wait=False, app="apps:make_misconfigured", workers=workers)
    assert server.wait() == 1
    assert server.read_err().count("HEADWAY_MODELS names no directory: set it to one") == 1
    assert "Traceback" not in server.read_err()


@pytest.mark.parametrize(
    ("app", "reason"),
    [("no_such_module:make", "no module named no_such_module"), ("apps:none", "apps has no function none")],
)
def test_missing_application_is_one_clear_line(start: Any, app: str, reason: str) -> None:
    server = start(wait=False, app=app)
    assert server.wait() == 1
    assert len(server.read_err().splitlines()) == 1
    assert reason in server.read_err()


@pytest.mark.parametrize(
    ("app", "flag", "trace"),
    [
        ("apps:make_app", "fail-start", "the registry is gone"),
        ("apps:make_broken", "fail-start", "the disk is gone"),
        ("apps:make_app", "wrong-setting-late", "SystemExit: 3"),
    ],
    ids=["lifespan", "factory", "exit"],
)
def test_failing_start_is_tried_again(start: Any, app: str, flag: str, trace: str) -> None:
    path = start.directory / flag
    path.touch()
    server = start(wait=False, app=app, workers=2)
    server.wait_for(lambda: count_exits(server, 1) >= 5, "some failed starts")
    assert "Traceback" in server.read_err()
    assert trace in server.read_err()
    path.unlink()
    server.wait_until_ready()
    assert server.get("/").status == 200
    assert server.read_out().count("READY") == 1


def test_failing_respawn_leaves_the_others_alone(start: Any) -> None:
    server = start(workers=2)
    path = start.directory / "fail-start"
    path.touch()
    killed = kill_worker(server)
    server.wait_for(lambda: count_exits(server, 1) >= 3, "some failed respawns")
    for _ in range(20):
        assert server.get("/").status == 200
    path.unlink()
    server.wait_for_slots(3)
    server.wait_for(lambda: {server.get("/").json["slot"] for _ in range(10)} == {0, 1}, "both slots")
    assert killed not in server.list_workers()
    server.tell(signal.SIGTERM)
    assert server.wait() == 0


def test_killed_worker_is_replaced_in_its_slot(start: Any) -> None:
    server = start(workers=2)
    for killed in range(1, 5):
        kill_worker(server)
        server.wait_for_slots(2 + killed)
    slots = {server.get("/").json["slot"] for _ in range(20)}
    assert slots == {0, 1}
    assert count_exits(server, -signal.SIGKILL) == 4
    assert "SIGKILL" in server.read_err()


def test_workers_leave_when_master_was_killed(start: Any) -> None:
    server = start(workers=2)
    workers = server.list_workers()
    server.tell(signal.SIGKILL)
    server.wait()
    server.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no workers")
    assert len(list(server.flags.glob("flushed-*"))) == 2


def test_reload_replaces_the_workers_and_loses_nothing(start: Any) -> None:
    """Also for clients that keep their connection."""
    server = start(workers=2)
    before = set(server.list_workers())
    statuses: list[int] = []
    failures: list[Exception] = []
    is_over = threading.Event()

    def ask() -> None:
        client = server.connect()
        while not is_over.is_set():
            try:
                answer = client.get("/")
            except (OSError, EOFError) as exc:
                failures.append(exc)
                return
            statuses.append(answer.status)
            if "connection" in answer.headers:
                client.socket.close()
                client = server.connect()

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.tell(signal.SIGHUP)
    server.wait_for_slots(4)
    server.wait_for(lambda: count_exits(server, 0) == 2, "the old ones are gone")
    is_over.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert set(statuses) == {200}
    after = set(server.list_workers())
    assert len(after) == 2
    assert not before & after


def test_failing_reload_leaves_the_old_workers(start: Any) -> None:
    server = start(workers=2)
    before = server.list_workers()
    path = start.directory / "fail-start"
    path.touch()
    server.tell(signal.SIGHUP)
    server.wait_for(lambda: count_exits(server, 1) >= 3, "some failed starts")
    assert server.get("/ready").json["pid"] in before
    path.unlink()
    server.wait_for(lambda: count_exits(server, 0) == 2, "the old ones are gone")
    assert server.get("/ready").status == 200


def test_more_and_fewer_workers_by_signal(start: Any) -> None:
    server = start(workers=1)
    server.tell(signal.SIGTTIN)
    server.wait_for_slots(2)
    server.tell(signal.SIGTTOU)
    server.wait_for(lambda: count_exits(server, 0) == 1, "one worker fewer")
    assert server.get("/ready").status == 200


def test_second_listener(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start(also_bind=[["127.0.0.1", port]])
    assert server.get("/").status == 200
    server.address = ("127.0.0.1", port)
    assert server.get("/").status == 200


def test_unusable_certificate_is_one_clear_line(start: Any, tmp_path: Path) -> None:
    server = start(wait=False, certfile=str(tmp_path / "none.pem"))
    assert server.wait() == 1
    assert len(server.read_err().splitlines()) == 1
    assert "cannot use the TLS certificate" in server.read_err()
