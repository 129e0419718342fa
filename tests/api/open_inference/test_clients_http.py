"""The clients that people have, against real workers: tritonclient over HTTP, blocking and asyncio, and plain httpx."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.api.conftest import TOKEN
from tests.fixtures_models import write_model
from tests.running import PATIENCE_SECONDS, RunningServer, running_server

ROW = np.array([[1.5, -2.0, 3.25]], np.float32)
LENGTH = "inference-header-content-length"


def place(url: str) -> str:
    """Host and port: this client wants no scheme."""
    return url.partition("://")[2]


def tensor(name: str, array: np.ndarray, datatype: str = "FP32", *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def wanted(name: str, **how: Any) -> triton.InferRequestedOutput:
    return triton.InferRequestedOutput(name, **how)


@pytest.fixture
def client(spoken: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(place(spoken.url), concurrency=4) as client:
        yield client


@pytest.fixture
def manager(spoken: RunningServer) -> Iterator[Callable[..., Any]]:
    """Calls a method of a client of the management listener, with the token."""
    with triton.InferenceServerClient(place(spoken.management_url)) as client:
        yield lambda name, *args, **rest: getattr(client, name)(
            *args, headers={"authorization": f"Bearer {TOKEN}"}, **rest
        )


def test_all_calls_that_read(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "headway"
    assert client.get_model_metadata("scores", "2.0.0")["inputs"][0]["shape"] == [-1, 3]
    assert client.get_model_config("scores")["max_batch_size"] == 1024 * 8
    assert {"scores", "double"} <= {one["name"] for one in client.get_inference_statistics()["model_stats"]}
    (found,) = client.get_inference_statistics("scores", "2.0.0")["model_stats"]
    assert found["version"] == "2.0.0"


def test_readiness_is_a_status_p12(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scores")
    assert client.is_model_ready("scores", "canary")
    for name, version in (("nothing", ""), ("scores", "9.0.0"), ("broken", ""), ("Not A Name", "")):
        assert client.is_model_ready(name, version) is False


def test_readiness_by_asyncio_p12(spoken: RunningServer) -> None:
    async def ask(client: triton_aio.InferenceServerClient) -> list[bool]:
        return [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready("scores"),
            await client.is_model_ready("nothing"),
        ]

    assert with_asyncio(spoken, ask) == [True, True, True, False]


def with_asyncio(
    server: RunningServer, work: Callable[[triton_aio.InferenceServerClient], Awaitable[Any]], **how: Any
) -> Any:
    async def run() -> Any:
        async with triton_aio.InferenceServerClient(place(server.url), **how) as client:
            return await work(client)

    return asyncio.run(run())


def test_binary_is_the_default_both_ways_p4(client: triton.InferenceServerClient) -> None:
    result = client.infer("scores", [tensor("x", ROW)])
    np.testing.assert_array_equal(result.as_numpy("scores"), ROW)
    (output,) = result.get_response()["outputs"]
    assert output["parameters"] == {"binary_data_size": ROW.nbytes}
    assert "data" not in output


def test_json_where_binary_is_not_asked_for_p5(client: triton.InferenceServerClient) -> None:
    result = client.infer("scores", [tensor("x", ROW, binary=False)], outputs=[wanted("scores", binary_data=False)])
    (output,) = result.get_response()["outputs"]
    assert output["data"] == ROW.reshape(-1).tolist()
    np.testing.assert_array_equal(result.as_numpy("scores"), ROW)


@pytest.mark.parametrize("binary", [(True, False), (False, True), (True, True), (False, False)])
def test_one_input_binary_and_one_json_p7(client: triton.InferenceServerClient, binary: tuple[bool, bool]) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[10, 20]], np.float32)
    result = client.infer("two_inputs", [tensor("a", a, binary=binary[0]), tensor("b", b, binary=binary[1])])
    np.testing.assert_array_equal(result.as_numpy("total"), a + b)


@pytest.mark.parametrize("rows", [0, 3])
def test_size_and_order_of_blobs_p6(client: triton.InferenceServerClient, rows: int) -> None:
    result = client.infer("scores", [tensor("x", np.ones((rows, 3), np.float32))])
    (output,) = result.get_response()["outputs"]
    assert output["parameters"]["binary_data_size"] == rows * 12
    assert output["shape"] == [rows, 3]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_both_ways_p8(client: triton.InferenceServerClient, spoken: RunningServer, algorithm: str) -> None:
    rows = np.arange(3000, dtype=np.float32).reshape(-1, 3)
    how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    np.testing.assert_array_equal(client.infer("scores", [tensor("x", rows)], **how).as_numpy("scores"), rows)

    async def ask(one: triton_aio.InferenceServerClient) -> np.ndarray:
        return (await one.infer("scores", [tensor("x", rows)], **how)).as_numpy("scores")  # type: ignore[no-any-return]

    np.testing.assert_array_equal(with_asyncio(spoken, ask), rows)


def test_index_load_and_unload_p9(client: triton.InferenceServerClient, manager: Callable[..., Any]) -> None:
    assert {"name": "lookup", "version": "1.0.0", "state": "READY", "reason": ""} in client.get_model_repository_index()
    assert manager("unload_model", "lookup") is None
    try:
        assert not client.is_model_ready("lookup")
        with pytest.raises(InferenceServerException, match="unloaded by request") as refused:
            client.infer("lookup", [tensor("at", np.array([1]), "INT64")])
        assert refused.value.status() == "503"
    finally:
        assert manager("load_model", "lookup") is None
    assert client.is_model_ready("lookup")
    assert manager("is_model_ready", "lookup")
    np.testing.assert_array_equal(
        client.infer("lookup", [tensor("at", np.array([1]), "INT64")]).as_numpy("found"), [20]
    )


def test_load_and_unload_are_refused_in_public_p3(client: triton.InferenceServerClient) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="management listener") as refused:
            call("scores")
        assert refused.value.status() == "403"


def test_load_takes_no_files_p9(manager: Callable[..., Any]) -> None:
    with pytest.raises(InferenceServerException, match="POST /update") as refused:
        manager("load_model", "scores", config="{}", files={"file:1/model.onnx": b"x"})
    assert refused.value.status() == "400"


def test_success_is_exactly_200_p2(spoken: RunningServer) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    for path, sent in (("/v2/models/scores/infer", body), ("/v2/repository/index", None)):
        assert httpx.post(spoken.url + path, json=sent).status_code == 200
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = httpx.post(f"{spoken.management_url}/v2/repository/models/scores/load", headers=headers, timeout=60)
    assert answer.status_code == 200


def test_no_content_type_is_wanted_p1(spoken: RunningServer) -> None:
    content = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]})
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "application/octet-stream"}):
        answer = httpx.post(f"{spoken.url}/v2/models/scores/infer", content=content, headers=headers)
        assert answer.json()["outputs"][0]["data"] == [1, 2, 3]


def test_id_and_order_of_outputs_p11(client: triton.InferenceServerClient) -> None:
    result = client.infer("scores", [tensor("x", ROW)], request_id="mine-7", outputs=[wanted("scores")])
    assert result.get_response()["id"] == "mine-7"
    assert (result.get_response()["model_name"], result.get_response()["model_version"]) == ("scores", "1.0.0")


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        ([tensor("x", ROW)], [wanted("nothing")], "nothing"),
        ([tensor("y", ROW)], None, "y"),
        ([tensor("x", ROW), tensor("x", ROW)], None, "x"),
        ([tensor("x", ROW[:, :2])], None, "x"),
        ([tensor("x", ROW.astype(np.float64), "FP64")], None, "x"),
    ],
)
def test_refusals_name_the_tensor_p11(
    client: triton.InferenceServerClient, inputs: list[Any], outputs: list[Any] | None, named: str
) -> None:
    with pytest.raises(InferenceServerException, match=f"'{named}'") as refused:
        client.infer("scores", inputs, outputs=outputs)
    assert refused.value.status() == "400"


def test_base_path_and_query_parameters_p10(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    environment = {"HEADWAY_MODELS": str(tmp_path / "models"), "HEADWAY_ROOT_PATH": "/ml"}
    with (
        running_server(tmp_path / "log", workers=1, **environment) as server,
        triton.InferenceServerClient(f"{place(server.url)}/ml") as client,
    ):
        assert client.is_server_ready()
        assert client.get_model_config("scores", query_params={"a": ["b", "c"]})["name"] == "scores"
        result = client.infer("scores", [tensor("x", ROW)], query_params={"a": "b"})
        np.testing.assert_array_equal(result.as_numpy("scores"), ROW)


def test_many_at_once_over_kept_connections_p13(client: triton.InferenceServerClient, spoken: RunningServer) -> None:
    rows = [ROW + number for number in range(24)]
    pending = [client.async_infer("scores", [tensor("x", row)]) for row in rows]
    for row, one in zip(rows, pending, strict=True):
        np.testing.assert_array_equal(one.get_result().as_numpy("scores"), row)

    async def ask(one: triton_aio.InferenceServerClient) -> list[Any]:
        return await asyncio.gather(*(one.infer("scores", [tensor("x", row)]) for row in rows))

    for row, result in zip(rows, with_asyncio(spoken, ask, conn_limit=4), strict=True):
        np.testing.assert_array_equal(result.as_numpy("scores"), row)


def test_chunked_upload_p13(spoken: RunningServer) -> None:
    content = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
    answer = httpx.post(f"{spoken.url}/v2/models/scores/infer", content=iter([content[:20], content[20:]]))
    assert answer.json()["outputs"][0]["data"] == [1, 2, 3]


def test_what_kserve_reads_of_an_answer_p19(spoken: RunningServer) -> None:
    """`model_name` and `outputs`; of a binary answer the length of its JSON, which a response has in this header."""
    head = {
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}],
        "parameters": {"binary_data_output": True},
    }
    lead = json.dumps(head).encode()
    answer = httpx.post(
        f"{spoken.url}/v2/models/scores/infer", content=lead + ROW.tobytes(), headers={LENGTH: str(len(lead))}
    )
    length = int(answer.headers[LENGTH])
    content = json.loads(answer.content[:length])
    assert content["model_name"] == "scores"
    assert content["outputs"][0]["parameters"]["binary_data_size"] == 12
    np.testing.assert_array_equal(np.frombuffer(answer.content[length:], np.float32), ROW[0])


def test_values_that_are_not_finite_p27(client: triton.InferenceServerClient) -> None:
    row = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(client.infer("scores", [tensor("x", row)]).as_numpy("scores"), row)
    result = client.infer("scores", [tensor("x", row)], outputs=[wanted("scores", binary_data=False)])
    assert result.get_response()["outputs"][0]["data"] == [None, None, None]


def test_bytes_bools_and_an_empty_batch_p28(client: triton.InferenceServerClient) -> None:
    words = np.array([b"\xff\x00", "grün".encode()], dtype=object)
    assert client.infer("same", [tensor("text", words[1:], "BYTES")]).as_numpy("copy").tolist() == [words[1]]
    above = client.infer("positive", [tensor("x", ROW)], outputs=[wanted("is_positive", binary_data=False)])
    assert above.get_response()["outputs"][0]["data"] == [True, False, True]
    assert client.infer("positive", [tensor("x", ROW[:0])]).as_numpy("is_positive").shape == (0, 3)


def test_two_clients_get_equal_answers_while_a_third_leaves(
    client: triton.InferenceServerClient, spoken: RunningServer
) -> None:
    """One that leaves a batch harms no other."""

    def by_json(row: np.ndarray) -> list[float]:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": row.reshape(-1).tolist()}]}
        answer = httpx.post(f"{spoken.url}/v2/models/scores/infer", json=body, timeout=PATIENCE_SECONDS)
        return list(answer.json()["outputs"][0]["data"])

    rows = [ROW * number for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(by_json, row) for row in rows]
        for _ in range(10):
            leave(spoken)
        pending = [client.async_infer("scores", [tensor("x", row)]) for row in rows]
        for row, one, other in zip(rows, pending, asked, strict=True):
            assert one.get_result().as_numpy("scores").reshape(-1).tolist() == other.result() == row[0].tolist()


def leave(server: RunningServer) -> None:
    """Send a whole request, and close the connection with a reset before its answer."""
    host, _, port = place(server.url).partition(":")
    content = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [9, 9, 9]}]}).encode()
    head = f"POST /v2/models/scores/infer HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(content)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(head.encode() + content)
