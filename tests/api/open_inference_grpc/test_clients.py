"""tritonclient.grpc, sync and asyncio, as its users call it; and the same answers as over HTTP."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from app.tensors import NUMPY_DTYPES
from tests.api.open_inference_grpc.conftest import address_of
from tests.running import CAT, PATIENCE_SECONDS, RunningServer

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def client(grpc_server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address_of(grpc_server)) as client:
        yield client


def tensor(name: str, values: np.ndarray, datatype: str, kind: Any = triton) -> Any:
    made = kind.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def _sample(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([[b"a", b"\x00", "ü".encode()], [b"", b"0", b"long" * 100]], dtype=object)
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        return np.array([[0, 1.5, -np.inf], [np.nan, np.inf, -2]], dtype)
    if dtype.kind == "b":
        return np.array([[True, False, True], [False, False, True]])
    info = np.iinfo(dtype)
    return np.array([[info.min, 0, 1], [2, 3, info.max]], dtype)


@pytest.mark.parametrize("datatype", NUMPY_DTYPES)
def test_answers_are_raw_in_every_datatype_p14(client: triton.InferenceServerClient, datatype: str) -> None:
    sent = _sample(datatype)
    result = client.infer(f"same-{datatype.lower()}", [tensor("x", sent, datatype)])
    np.testing.assert_array_equal(result.as_numpy("y"), sent)
    answer = result.get_response()
    assert len(answer.raw_output_contents) == 1
    assert not answer.outputs[0].HasField("contents")
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (datatype, [2, 3])


def test_what_clients_ask_first(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("scores")
    assert client.is_model_ready("scores", "1.0.0")
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "headway"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("scores", "stable", as_json=True)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3"]}]
    assert model["platform"] == "onnxruntime_onnx"
    config = client.get_model_config("scores", as_json=True)["config"]
    assert config["max_batch_size"] > 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}]
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "scores", "version": "1.0.0", "state": "READY"} in index


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_models_are_changed_elsewhere(client: triton.InferenceServerClient, call: str) -> None:
    with pytest.raises(InferenceServerException, match="management listener") as caught:
        getattr(client, call)("scores")
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


@pytest.mark.parametrize(
    "call", ["is_model_ready", "get_model_metadata", "get_model_config", "get_inference_statistics"]
)
def test_an_unknown_model_is_not_found_p16(client: triton.InferenceServerClient, call: str) -> None:
    with pytest.raises(InferenceServerException, match="nothing") as caught:
        getattr(client, call)("nothing")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_statistics_are_those_of_both_workers_and_protocols(grpc_server: RunningServer) -> None:
    """A worker each for several channels, and HTTP: what the clients count is what is told."""
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    for _ in range(6):
        with triton.InferenceServerClient(
            address_of(grpc_server), channel_args=[("grpc.use_local_subchannel_pool", 1)]
        ) as client:
            for _ in range(3):
                client.infer("sum", [tensor("x", ROWS, "FP32")])
    for _ in range(4):
        assert httpx.post(f"{grpc_server.url}/v2/models/sum/infer", json=body).status_code == 200
    with triton.InferenceServerClient(address_of(grpc_server)) as client:
        (found,) = client.get_inference_statistics("sum").model_stats
    assert found.inference_stats.success.count == 22
    assert found.inference_count == 40
    assert found.inference_stats.success.ns > 0


def test_answers_equal_those_of_http(client: triton.InferenceServerClient, grpc_server: RunningServer) -> None:
    over_grpc = client.infer("scores", [tensor("x", ROWS, "FP32")], request_id="my id").get_response()
    body = {
        "id": "my id",
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": ROWS.tolist()}],
    }
    over_http = httpx.post(f"{grpc_server.url}/v2/models/scores/infer", json=body).json()
    assert over_grpc.id == over_http["id"] == "my id"
    assert (over_grpc.model_name, over_grpc.model_version) == (over_http["model_name"], over_http["model_version"])
    found = np.frombuffer(over_grpc.raw_output_contents[0], np.float32)
    assert found.tolist() == over_http["outputs"][0]["data"]
    assert set(over_grpc.parameters) == set(over_http["parameters"])
    prediction_id = over_grpc.parameters["prediction_id"].string_param.split(",")[0]
    feedback = httpx.post(
        f"{grpc_server.url}/feedback", json={"prediction_id": prediction_id, "label": "high"}, timeout=PATIENCE_SECONDS
    )
    assert feedback.status_code < 300, feedback.text


def test_outputs_come_in_the_order_they_are_asked_for(client: triton.InferenceServerClient) -> None:
    rows = np.ones((1, 2), np.float32)
    inputs = [tensor("b", rows * 2, "FP32"), tensor("a", rows * 5, "FP32")]
    for names in (["difference", "total"], ["total"]):
        result = client.infer("pair", inputs, outputs=[triton.InferRequestedOutput(name) for name in names])
        assert [output.name for output in result.get_response().outputs] == names
        assert result.as_numpy("total").tolist() == [[7, 7]]
    best = client.infer(
        "scores", [tensor("x", ROWS, "FP32")], outputs=[triton.InferRequestedOutput("scores", class_count=1)]
    )
    assert best.as_numpy("scores").tolist() == [[b"2.000000:2:high"], [b"5.000000:2:high"]]


def test_encoded_images_and_tensors(client: triton.InferenceServerClient) -> None:
    photo = np.array([CAT.read_bytes()], dtype=object)
    by_photo = client.infer("colour", [tensor("image", photo, "BYTES")]).as_numpy("scores")
    assert by_photo.shape == (1, 3)
    white = np.full((2, 4, 4, 3), 255, np.uint8)
    assert client.infer("colour", [tensor("image", white, "UINT8")]).as_numpy("scores").tolist() == [[1, 1, 1]] * 2


def test_scalars_and_empty_batches(client: triton.InferenceServerClient) -> None:
    assert client.infer("double", [tensor("x", np.array(21, np.float32), "FP32")]).as_numpy("twice") == 42
    empty = client.infer("scores", [tensor("x", np.empty((0, 3), np.float32), "FP32")])
    assert list(empty.get_response().outputs[0].shape) == [0, 3]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_channels_p17(client: triton.InferenceServerClient, algorithm: str) -> None:
    rows = np.zeros((5000, 3), np.float32)
    result = client.infer("scores", [tensor("x", rows, "FP32")], compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("scores"), rows)


def test_messages_far_above_the_usual_4_mb_p17(client: triton.InferenceServerClient) -> None:
    rows = np.arange(1_500_000, dtype=np.float32).reshape(1, -1)  # 6 MB, there and back
    np.testing.assert_array_equal(client.infer("same-fp32", [tensor("x", rows, "FP32")]).as_numpy("y"), rows)


def test_a_message_above_the_limit_is_refused_p17(client: triton.InferenceServerClient) -> None:
    rows = np.zeros((2_000_000, 3), np.float32)  # 24 MB; HEADWAY_MAX_BODY_BYTES is 20
    for algorithm in (None, "gzip"):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("same-fp32", [tensor("x", rows, "FP32")], compression_algorithm=algorithm)
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert client.is_server_ready()


def test_a_stream_answers_in_order_and_goes_on_after_errors(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(40):
        name = "nothing" if number % 7 == 3 else "scores"
        client.async_stream_infer(name, [tensor("x", ROWS + number, "FP32")], request_id=str(number))
    for number in range(40):
        result, error = answers.get(timeout=PATIENCE_SECONDS)
        if number % 7 == 3:
            assert "nothing" in str(error)
        else:
            assert error is None
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("scores"), ROWS + number)
    client.stop_stream()


def test_the_asyncio_client_and_many_callers_with_their_own_rows(grpc_server: RunningServer) -> None:
    """Rows of all callers share runs; each third caller leaves, and the others get their own."""

    async def ask(client: triton_aio.InferenceServerClient, number: int) -> bool:
        rows = np.full((1 + number % 3, 3), number, np.float32)
        asking = asyncio.ensure_future(client.infer("scores", [tensor("x", rows, "FP32", triton_aio)]))
        if number % 3 == 2:
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return True
        return np.array_equal((await asking).as_numpy("scores"), rows)

    async def run() -> list[bool]:
        async with triton_aio.InferenceServerClient(address_of(grpc_server)) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(*(ask(client, number) for number in range(300)))

    assert asyncio.run(run()) == [True] * 300
