"""Deadlines, callers that leave, too many at once, keys, and what is counted of them."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages
from tests.api.open_inference_grpc.conftest import (
    INFER,
    OPTIONS,
    Invoke,
    address_of,
    counting,
    in_flight,
    inferring,
    request,
    wait_until,
)
from tests.api.open_inference_grpc.test_health import CHECK, check
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

FOR_EVER = 10**12
KEY = "a key of ours"


@pytest.fixture(scope="module")
def busy(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One worker with one thread, whose deadline is far away."""
    log = tmp_path_factory.mktemp("busy") / "log"
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_DEADLINE_MS": "60000", "HEADWAY_TRUST_PRIORITY": "true"}
    with running_server(log, "--grpc-port", "0", "--threads", "1", workers=1, **environment) as server:
        yield server


@pytest.fixture
def ask(busy: RunningServer) -> Iterator[Invoke]:
    with grpc.insecure_channel(address_of(busy), OPTIONS) as channel:
        yield inferring(channel)


def failure(invoke: Invoke, message: Any, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        invoke(message, **{"timeout": PATIENCE_SECONDS, **options})
    return caught.value


def metric(server: RunningServer, start: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(start))


def logged(server: RunningServer, request_id: str) -> dict[str, Any]:
    def find() -> list[str]:
        return [line for line in server.log.read_text().splitlines() if f'"request_id": "{request_id}"' in line]

    wait_until(lambda: bool(find()), "a line in the access log")
    line: dict[str, Any] = json.loads(find()[0])
    return line


def test_the_callers_own_deadline_holds_p16(ask: Invoke, busy: RunningServer) -> None:
    error = failure(ask, counting(FOR_EVER), timeout=0.3, metadata=[("x-request-id", "own-deadline")])
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert logged(busy, "own-deadline")["error_code"] == "deadline_exceeded"
    wait_until(lambda: in_flight(busy) == 0, "the run was ended")


def test_a_deadline_in_the_metadata_holds_p16(ask: Invoke, busy: RunningServer) -> None:
    error = failure(ask, counting(FOR_EVER), metadata=[("headway-timeout-ms", "200"), ("x-request-id", "too-late")])
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert dict(error.trailing_metadata())["headway-error-code"] == "deadline_exceeded"
    line = logged(busy, "too-late")
    assert (line["status"], line["path"], line["error_code"]) == (504, INFER, "deadline_exceeded")


def test_the_timeout_parameter_holds_p16(ask: Invoke) -> None:
    message = counting(FOR_EVER)
    message.parameters["timeout"].int64_param = 200_000
    assert failure(ask, message).code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "metadata", [("headway-timeout-ms", "soon"), ("headway-timeout-ms", "99999999"), ("headway-priority", "urgent")]
)
def test_bad_metadata(ask: Invoke, metadata: tuple[str, str]) -> None:
    error = failure(ask, request("scores"), metadata=[metadata])
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert metadata[0].removeprefix("headway-") in error.details().lower()


def test_a_caller_that_cancels_frees_its_place_p16(ask: Invoke, busy: RunningServer) -> None:
    before = metric(busy, 'headway_rejected_total{model="count",reason="disconnected"')
    with grpc.insecure_channel(address_of(busy), OPTIONS) as channel:
        running = inferring(channel).future(counting(FOR_EVER), timeout=PATIENCE_SECONDS)
        wait_until(lambda: in_flight(busy) == 1, "it runs")
        waiting = [inferring(channel).future(counting(FOR_EVER), timeout=PATIENCE_SECONDS) for _ in range(2)]
        wait_until(lambda: in_flight(busy) == 3, "the others wait")
        behind = ask.future(counting(5), timeout=PATIENCE_SECONDS)  # type: ignore[attr-defined]
        wait_until(lambda: in_flight(busy) == 4, "one more waits")
        for call in (*waiting, running):
            assert call.cancel()
            assert call.code() is grpc.StatusCode.CANCELLED
        assert behind.result().raw_output_contents == [(5).to_bytes(8, "little")]
    wait_until(lambda: in_flight(busy) == 0, "all have gone")
    assert metric(busy, 'headway_rejected_total{model="count",reason="disconnected"') == before + 3
    assert metric(busy, 'headway_requests_total{code="499",model="count",protocol="v2_grpc"') >= 3


def test_a_stream_that_is_cancelled_frees_all_its_places_p16(busy: RunningServer) -> None:
    with grpc.insecure_channel(address_of(busy), OPTIONS) as channel:
        stream = channel.stream_stream(
            INFER.replace("ModelInfer", "ModelStreamInfer"), messages.ModelInferRequest.SerializeToString
        )
        answers = stream(iter([counting(FOR_EVER)] * 3), timeout=PATIENCE_SECONDS)
        wait_until(lambda: in_flight(busy) == 3, "all are there")
        answers.cancel()
    wait_until(lambda: in_flight(busy) == 0, "all have gone")
    assert "Traceback" not in busy.log.read_text()


def test_what_has_no_place_is_told_when_to_come_back_p16(busy: RunningServer) -> None:
    """The queue of count holds four."""
    refused: queue.Queue[Any] = queue.Queue()
    with grpc.insecure_channel(address_of(busy), OPTIONS) as channel:
        invoke = inferring(channel)
        calls = [invoke.future(counting(FOR_EVER), timeout=PATIENCE_SECONDS) for _ in range(12)]  # type: ignore[attr-defined]
        for call in calls:
            call.add_done_callback(refused.put)
        for _ in range(6):
            call = refused.get(timeout=PATIENCE_SECONDS)
            assert call.code() is grpc.StatusCode.UNAVAILABLE
            trailing = dict(call.trailing_metadata())
            assert trailing["headway-error-code"] == "overloaded"
            assert int(trailing["retry-after"]) >= 1
        for call in calls:
            call.cancel()
    wait_until(lambda: in_flight(busy) == 0, "all have gone")


def test_answers_carry_the_id_and_the_times(ask: Invoke, busy: RunningServer) -> None:
    before = metric(busy, 'headway_requests_total{code="200",model="scores",protocol="v2_grpc"')
    _, call = ask.with_call(  # type: ignore[attr-defined]
        request("scores"),
        metadata=[("x-request-id", "mine-1"), ("headway-routing-key", "a"), ("headway-priority", "high")],
    )
    trailing = dict(call.trailing_metadata())
    assert trailing["x-request-id"] == "mine-1"
    assert "inference;dur=" in trailing["server-timing"]
    line = logged(busy, "mine-1")
    assert (line["status"], line["path"], line["model"], line["version"]) == (200, INFER, "scores", "1.0.0")
    assert line["bytes_in"] == len(request("scores").SerializeToString())
    wait_until(
        lambda: metric(busy, 'headway_requests_total{code="200",model="scores",protocol="v2_grpc"') == before + 1,
        "it is counted",
    )


def test_keys(models: Path, tmp_path: Path) -> None:
    """Everything but probes and reflection wants one."""
    environment = {"HEADWAY_MODELS": str(models), "HEADWAY_API_KEYS": KEY}
    with (
        running_server(tmp_path / "log", "--grpc-port", "0", workers=1, **environment) as server,
        grpc.insecure_channel(address_of(server), OPTIONS) as channel,
    ):
        assert check(channel, "") == 1, CHECK
        invoke = inferring(channel)
        for metadata in ([], [("authorization", "Bearer wrong")], [("x-api-key", "wrong")]):
            assert failure(invoke, request("scores"), metadata=metadata).code() is grpc.StatusCode.UNAUTHENTICATED
        for metadata in ([("authorization", f"Bearer {KEY}")], [("x-api-key", KEY)]):
            assert invoke(request("scores"), metadata=metadata).model_name == "scores"
        stream = channel.stream_stream(
            INFER.replace("ModelInfer", "ModelStreamInfer"),
            messages.ModelInferRequest.SerializeToString,
            messages.ModelStreamInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(stream(iter([request("scores")]), timeout=PATIENCE_SECONDS))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        (answer,) = stream(iter([request("scores")]), metadata=[("x-api-key", KEY)], timeout=PATIENCE_SECONDS)
        assert answer.infer_response.model_name == "scores"
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert messages.ServerLiveResponse.FromString(live(b"")).live


def test_many_threads_of_one_client(infer: Invoke) -> None:
    def ask(number: int) -> bool:
        raw = bytes([number] * 4) * 3
        return bool(infer(request("same-fp32", raw=raw)).raw_output_contents == [raw])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))
