"""More than the server can do, and callers that leave: refused or dropped at once, counted, and no harm to others."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.api.peek import peek_json
from app.registry.versions import ModelRef
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

ROW = [0.0] * 64


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One worker with one thread: its capacity is soon used up."""
    with running_server(tmp_path_factory.mktemp("single") / "log", "--threads", "1", workers=1) as server:
        yield server


def rejected(server: RunningServer, reason: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines()
    wanted = f'reason="{reason}"'
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("headway_rejected_total{") and wanted in line
    )


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream"])
def test_what_cannot_be_answered_in_time_is_refused_at_once(
    single: RunningServer, cat: bytes, content_type: str
) -> None:
    """40 callers want an answer within 100 ms: what is let in is answered, the rest is told when to come back."""
    url = f"{single.url}/predict?model=efficientnet-lite0"
    content = cat if content_type == "image/jpeg" else bytes(224 * 224 * 3)
    answers: Counter[int] = Counter()
    refusals: list[httpx.Response] = []
    lock = threading.Lock()
    gate = threading.Barrier(40)

    def ask() -> None:
        headers = {"content-type": content_type, "headway-timeout-ms": "100"}
        with httpx.Client(timeout=PATIENCE_SECONDS) as client:
            gate.wait(PATIENCE_SECONDS)
            for _ in range(5):
                answer = client.post(url, content=content, headers=headers)
                with lock:
                    answers[answer.status_code] += 1
                    if answer.status_code == 503:
                        refusals.append(answer)

    before = rejected(single, "overload")
    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sum(answers.values()) == 200
    assert set(answers) <= {200, 503, 504}
    assert answers[200] > 0
    assert refusals
    for refusal in refusals:
        assert refusal.json()["code"] == "overloaded"
        assert int(refusal.headers["retry-after"]) >= 1
        assert refusal.headers.get("connection", "close") == "close"
    assert rejected(single, "overload") - before == len(refusals)


def test_callers_that_leave_a_queue_are_dropped_and_harm_nobody(single: RunningServer, cat: bytes) -> None:
    """Of 60 callers in one queue two thirds leave: the others get what they get alone."""
    host, port = single.url.removeprefix("http://").split(":")
    head = f"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: image/jpeg\r\ncontent-length: {len(cat)}\r\n\r\n"
    before = rejected(single, "disconnected")
    connections = [socket.create_connection((host, int(port)), PATIENCE_SECONDS) for _ in range(60)]
    try:
        for connection in connections:
            connection.sendall(head.encode() + cat)
        for number, connection in enumerate(connections):
            if number % 3:
                connection.close()
        answers = [read_answer(connection) for connection in connections[::3]]
    finally:
        for connection in connections:
            connection.close()
    assert [status for status, _ in answers] == [200] * 20
    alone = httpx.post(f"{single.url}/predict", content=cat, headers={"content-type": "image/jpeg"}).json()
    assert {json.dumps(body["predictions"]) for _, body in answers} == {json.dumps(alone["predictions"])}
    limit = time.monotonic() + PATIENCE_SECONDS
    while rejected(single, "disconnected") == before and time.monotonic() < limit:
        time.sleep(0.05)
    assert rejected(single, "disconnected") > before
    assert '\nheadway_queue_depth{model="efficientnet-lite0"} 0.0' in httpx.get(f"{single.url}/metrics").text


def read_answer(connection: socket.socket) -> tuple[int, Any]:
    response = http.client.HTTPResponse(connection, method="POST")
    response.begin()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("value", ["urgent", "", "1"])
def test_a_bad_priority_is_refused(client: httpx.Client, value: str) -> None:
    answer = client.post("/predict", json={"inputs": [ROW]}, headers={"headway-priority": value})
    assert answer.status_code == 422
    assert "Headway-Priority" in answer.json()["error"]


@pytest.mark.parametrize("value", ["high", "normal", "HIGH"])
def test_a_priority_is_taken(client: httpx.Client, value: str) -> None:
    answer = client.post("/predict", json={"inputs": [ROW]}, headers={"headway-priority": value})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"image": "' + b"A" * 5000 + b'", "model": "a@1.0.0"}', (ModelRef("a", "1.0.0"), "image")),
        (b'{"model":"b","image":"' + b"A" * 5000 + b'"}', (ModelRef("b"), "image")),
        (b'{"inputs": [[1, 2]]}', (None, "tensor")),
        (b'{"images": []}', (None, "image")),
        (b"", (None, "image")),
        (b'{"model": "NOT A NAME!"}', (None, "image")),
    ],
)
def test_peek_json_finds_the_model_at_either_end(body: bytes, expected: tuple[ModelRef | None, str]) -> None:
    assert peek_json(body) == expected
