"""Requests that lie: each is refused at once, with the field named, and takes no memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
import threading
import tracemalloc
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from app.api.open_inference.request import read_request
from app.errors import HeadwayError, InvalidTensor
from app.processing.tensor import array_from_json, tensors_from_json
from app.tensors import TensorSpec
from tests.infer_wire import LENGTH, make_request, read_answer
from tests.running import PATIENCE_SECONDS, RunningServer, rss_bytes

X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
# What a request that is refused may take besides its own size.
_SPARE_BYTES = 4_000_000


def with_x(**changes: Any) -> bytes:
    entry = {key: value for key, value in (X | changes).items() if value is not ...}
    return json.dumps({"inputs": [entry]}).encode()


def beside(**others: Any) -> bytes:
    return json.dumps({"inputs": [X], **others}).encode()


def nested(depth: int) -> bytes:
    return with_x(data=0).replace(b'"data": 0', b'"data": ' + b"[" * depth + b"]" * depth)


def output(**entry: Any) -> bytes:
    return beside(outputs=[{"name": "y", **entry}])


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the body is not valid JSON"),
    "no JSON": (b"\xff\xfe", "the body is not valid JSON"),
    "a list": (b"[]", "JSON object"),
    "null": (b"null", "JSON object"),
    "a string": (b'"inputs"', "JSON object"),
    "no inputs": (b"{}", "inputs"),
    "inputs null": (b'{"inputs": null}', "inputs"),
    "inputs empty": (b'{"inputs": []}', "inputs"),
    "inputs an object": (b'{"inputs": {"x": [1]}}', "inputs"),
    "an input a number": (b'{"inputs": [1]}', "inputs.0"),
    "name missing": (with_x(name=...), "inputs.0.name"),
    "name a number": (with_x(name=1), "inputs.0.name"),
    "name long": (with_x(name="n" * 10_000), "inputs.0.name"),
    "shape missing": (with_x(shape=...), "inputs.0.shape"),
    "shape null": (with_x(shape=None), "inputs.0.shape"),
    "shape a number": (with_x(shape=2), "inputs.0.shape"),
    "shape an object": (with_x(shape={"0": 2}), "inputs.0.shape"),
    "shape of 33 sizes": (with_x(shape=[1] * 32 + [2]), "inputs.0.shape"),
    "size negative": (with_x(shape=[-1, 2]), "inputs.0.shape.0"),
    "both sizes negative": (with_x(shape=[-1, -2]), "inputs.0.shape.0"),
    "size a bool": (with_x(shape=[True, 2]), "inputs.0.shape.0"),
    "size a float": (with_x(shape=[1.0, 2]), "inputs.0.shape.0"),
    "size text": (with_x(shape=["1", 2]), "inputs.0.shape.0"),
    "size null": (with_x(shape=[None, 2]), "inputs.0.shape.0"),
    "size NaN": (with_x(shape=[float("nan"), 2]), "inputs.0.shape.0"),
    "size a list": (with_x(shape=[[1], 2]), "inputs.0.shape.0"),
    "size 10¹²": (with_x(shape=[10**12, 2]), "input 'x' says shape"),
    "size 2⁶³": (with_x(shape=[2**63, 2]), "inputs.0.shape.0"),
    "size of 4,000 digits": (with_x(shape=[10**4000, 2]), "inputs.0.shape.0"),
    "32 sizes of 10¹⁸": (with_x(shape=[10**18] * 32), "input 'x' says shape"),
    "no rows of 10¹² columns": (with_x(shape=[0, 10**12], data=[]), "input 'x' has an impossible shape"),
    "datatype missing": (with_x(datatype=...), "inputs.0.datatype"),
    "datatype unknown": (with_x(datatype="FP31"), "'FP31', which is none of BOOL"),
    "datatype in small letters": (with_x(datatype="fp32"), "'fp32'"),
    "datatype a number": (with_x(datatype=32), "inputs.0.datatype"),
    "datatype BF16": (with_x(datatype="BF16"), "'BF16'"),
    "another datatype": (with_x(datatype="FP64"), "input 'x' is of datatype FP64; it takes FP32"),
    "no data": (with_x(data=...), "input 'x' has no data"),
    "data null": (with_x(data=None), "input 'x' has no data"),
    "data text": (with_x(data="1, 2"), "input 'x' takes numbers"),
    "data an object": (with_x(data={"0": 1}), "input 'x' takes numbers"),
    "data nulls": (with_x(data=[None, 1]), "input 'x' takes numbers"),
    "data bools": (with_x(data=[True, False]), "input 'x' takes FP32, not bool"),
    "data a bool among numbers": (with_x(data=[True, 1.5]), "input 'x' has true or false among other values"),
    "a bool among numbers, nested": (with_x(data=[[1, False]]), "input 'x' has true or false among other values"),
    "data in shared memory": (with_x(parameters={"shared_memory_region": "a"}, data=...), "'x' is in shared memory"),
    "data text among numbers": (with_x(data=[1, "2"]), "input 'x' takes numbers"),
    "data objects": (with_x(data=[{}, {}]), "input 'x' takes numbers"),
    "data ragged": (with_x(data=[[1], [2, 3]]), "input 'x' is ragged"),
    "data half a list": (with_x(data=[[1], 2]), "input 'x' is ragged"),
    "data too few": (with_x(data=[1]), "input 'x' says shape [1, 2], which is 2 values, and has 1"),
    "data too many": (with_x(data=[1, 2, 3]), "input 'x' says shape"),
    "data of another shape": (with_x(data=[[1], [2]]), "input 'x' says shape [1, 2]"),
    "data too large": (with_x(data=[1e39, 0]), "input 'x' has a value that is too large"),
    "wrong rank": (with_x(shape=[2]), "input 'x' has shape [2]; it takes [n, n]"),
    "twice": (json.dumps({"inputs": [X, X]}).encode(), "input 'x' stands twice"),
    "unknown": (with_x(name="z"), "input 'x' is missing; there is no input 'z'"),
    "unknown besides": (json.dumps({"inputs": [X, X | {"name": "z"}]}).encode(), "there is no input 'z'"),
    "size without bytes": (with_x(parameters={"binary_data_size": 8}, data=...), "input 'x': binary_data_size is 8"),
    "size negative in bytes": (with_x(parameters={"binary_data_size": -8}, data=...), "binary_data_size is -8"),
    "size of bytes 10¹²": (with_x(parameters={"binary_data_size": 10**12}, data=...), "'x': binary_data_size is 10000"),
    "size of bytes a bool": (with_x(parameters={"binary_data_size": True}, data=...), "binary_data_size is True"),
    "size of bytes text": (with_x(parameters={"binary_data_size": "8"}, data=...), "'x': binary_data_size is 8"),
    "size and data": (with_x(parameters={"binary_data_size": 0}), "input 'x' has both data and binary_data_size"),
    "parameters a list": (with_x(parameters=[1]), "inputs.0.parameters"),
    "parameters of all a list": (beside(parameters=[1]), "parameters"),
    "id a number": (beside(id=1), "id"),
    "id long": (beside(id="i" * 1000), "id"),
    "timeout negative": (beside(parameters={"timeout": -1}), "timeout"),
    "timeout text": (beside(parameters={"timeout": "1"}), "timeout"),
    "timeout a bool": (beside(parameters={"timeout": True}), "timeout"),
    "timeout NaN": (beside(parameters={"timeout": float("nan")}), "timeout"),
    "routing_key an object": (beside(parameters={"routing_key": {}}), "routing_key"),
    "sequence_id": (beside(parameters={"sequence_id": 7}), "sequence_id"),
    "binary_data_output text": (beside(parameters={"binary_data_output": "true"}), "binary_data_output"),
    "outputs an object": (beside(outputs={"name": "y"}), "outputs"),
    "an output text": (beside(outputs=["y"]), "outputs.0"),
    "an output without name": (beside(outputs=[{}]), "outputs.0.name"),
    "an unknown output": (beside(outputs=[{"name": "z"}]), "there is no output 'z'; same-fp32 has y"),
    "an output twice": (beside(outputs=[{"name": "y"}, {"name": "y"}]), "output 'y' stands twice"),
    "binary_data a number": (output(parameters={"binary_data": 1}), "output 'y': binary_data is true or false"),
    "classification negative": (output(parameters={"classification": -1}), "output 'y': classification"),
    "classification a bool": (output(parameters={"classification": True}), "output 'y': classification"),
    "classification 1.5": (output(parameters={"classification": 1.5}), "output 'y': classification"),
    "an output in shared memory": (output(parameters={"shared_memory_region": "a"}), "output 'y' is wanted in shared"),
    "10,000 deep": (nested(10_000), "the body is not valid JSON"),
    "100 deep": (nested(100), "'x'"),
    "a million inputs": (b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}", "inputs"),
    "200,000 outputs": (beside(outputs=[{"name": "y"}])[:-2] + b',{"name":"y"}' * 200_000 + b"]}", "outputs"),
    "a million keys": (b'{"inputs": [1],' + b'"a":1,' * 1_000_000 + b'"b":1}', "inputs.0"),
    "text that swells": (with_x(data=["w" * 4_000_000, *[""] * 400_000]), "input 'x' takes numbers"),
    "text that swells inside": (with_x(data=[["w" * 4_000_000], *[[""]] * 200_000]), "input 'x' takes numbers"),
}


def infer(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    return client.post("/v2/models/same-fp32/infer", content=body, headers=headers)


def assert_refused(answer: httpx.Response, words: str) -> None:
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error", "code", "request_id"}
    assert words in answer.json()["error"]
    assert len(answer.content) < 2000


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_with_the_field_named_p11(odd: httpx.Client, case: str) -> None:
    body, words = HOSTILE[case]
    assert_refused(infer(odd, body), words)


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_is_allocated(case: str) -> None:
    """The parsed JSON apart, which is some times as large as its text."""
    body, _ = HOSTILE[case]
    tracemalloc.start()
    try:
        with contextlib.suppress(HeadwayError):
            read_request(body, None)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(body) + _SPARE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("length", "words"),
    [
        ("-1", "got: -1"), ("1e3", "got: 1e3"), ("abc", "got: abc"), ("", "got: "), ("+5", "got: +5"),
        ("0x10", "got: 0x10"), ("9" * 30, "got: 999"), ("999999", "got: 999999"), ("5, 5", "got: 5, 5"),
        ("10", "not valid JSON"),
    ],
)  # fmt: skip
def test_header_length_that_lies(odd: httpx.Client, length: str, words: str) -> None:
    answer = infer(odd, with_x(), **{LENGTH: length})
    assert_refused(answer, words)
    if "got" in words:
        assert "Unable to parse Inference-Header-Content-Length" in answer.json()["error"]


@pytest.mark.parametrize(
    ("lengths", "status"), [(["{} \t"], 200), (["{}", "{}"], 200), (["{}", "10"], 400), (["10", "{}"], 400)]
)
def test_header_length_around_and_twice(odd: httpx.Client, lengths: list[str], status: int) -> None:
    """Spaces around a value are not of it. Of two values no one knows which is meant: a proxy may take the other."""
    body = with_x()
    connection = http.client.HTTPConnection(odd.base_url.host, odd.base_url.port, timeout=PATIENCE_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v2/models/same-fp32/infer")
        for length in lengths:
            connection.putheader(LENGTH, length.format(len(body)))
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
    assert answer.status == status, content
    if status == 400:
        assert b"sent twice, with different values" in content


@pytest.mark.parametrize(
    ("shape", "datatype", "data", "size", "words"),
    [
        ([1, 2], "FP32", b"\0" * 7, 7, "input 'x' has 7 bytes; FP32 of shape [1, 2] is 8"),
        ([1, 2], "FP32", b"\0" * 8, 4, "input 'x' has 4 bytes"),
        ([1, 2], "FP32", b"\0" * 9, 8, "1 bytes of the body belong to no input"),
        ([1, 2], "FP32", b"", 8, "'x': binary_data_size is 8, and 0 bytes are left"),
        ([10**12, 10**6], "FP32", b"\0" * 8, 8, "input 'x' has 8 bytes"),
        ([0, 10**15], "FP32", b"", 0, "input 'x' has an impossible shape"),
        ([0, 10**15], "BYTES", b"", 0, "input 'x' has an impossible shape"),
        ([10**12], "BYTES", b"\0" * 8, 8, "input 'x' has 8 bytes, too few for the lengths"),
        ([1], "BYTES", struct.pack("<I", 2**32 - 1), 4, "input 'x': element 0 is longer"),
        ([1, 2], "BOOL", b"\0\2", 2, "input 'x' takes BOOL"),
    ],
)
def test_bytes_that_lie(odd: httpx.Client, shape: list[int], datatype: str, data: bytes, size: int, words: str) -> None:
    head = with_x(shape=shape, datatype=datatype, data=..., parameters={"binary_data_size": size})
    assert_refused(infer(odd, head + data, **{LENGTH: str(len(head))}), words)


@pytest.mark.parametrize(
    "values",
    [["w" * 1_000_000, *[""] * 100_000], [[["w" * 1_000_000]], *[[[1.0]]] * 20_000], [10**400, *["w"] * 100_000]],
)
def test_text_among_numbers_takes_no_memory(values: Any) -> None:
    """numpy would give each element the room of the longest: here 400 GB."""
    spec = TensorSpec("x", "FP32", (-1,))
    for read in (lambda: array_from_json(values, spec), lambda: tensors_from_json(values, [spec])):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidTensor, match="takes numbers"):
                read()
            assert tracemalloc.get_traced_memory()[1] < _SPARE_BYTES
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bomb_is_refused_p8(odd: httpx.Client, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(50)) + packer.flush()
    assert len(bomb) < 100_000
    answer = infer(odd, bomb, **{"content-encoding": encoding})
    assert answer.status_code == 413
    assert "once it is unpacked" in answer.json()["error"]
    for body, status in ((b"no such stream", 400), (packed(encoding)[:-3], 400), (packed(encoding) + b"more", 400)):
        answer = infer(odd, body, **{"content-encoding": encoding})
        assert answer.status_code == status
        assert encoding in answer.json()["error"]
    answer = infer(odd, packed(encoding), **{"content-encoding": "br"})
    assert answer.status_code == 415
    assert "br" in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "status"), [("x-gzip", 200), ("identity, gzip", 200), ("identity", 400), ("gzip, gzip", 415)]
)
def test_names_of_encodings(odd: httpx.Client, header: str, status: int) -> None:
    assert infer(odd, packed("gzip"), **{"content-encoding": header}).status_code == status


def packed(encoding: str) -> bytes:
    packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
    return packer.compress(with_x()) + packer.flush()


def test_a_barrage_leaves_the_server_as_it_was(odd_server: RunningServer, odd: httpx.Client) -> None:
    """All of it from two sides, with a good caller in between: his answers are right; the worker keeps its size."""
    (worker,) = odd_server.worker_pids()
    bodies = [body for body, _ in HOSTILE.values()]
    infer(odd, max(bodies, key=len))
    before = rss_bytes(worker)

    def attack() -> None:
        with httpx.Client(base_url=odd_server.url, timeout=60) as client:
            for body in bodies:
                infer(client, body)

    threads = [threading.Thread(target=attack) for _ in range(2)]
    for thread in threads:
        thread.start()
    rows = np.array([[3, 4]], "<f4")
    while any(thread.is_alive() for thread in threads):
        answer = odd.post("/v2/models/same-fp32/infer", content=make_request({"x": rows}).content)
        if answer.status_code == 503:  # while a large one is parsed, for up to half a second
            assert answer.json()["code"] == "overloaded"
        else:
            assert read_answer(answer)[1]["y"].tolist() == [[3, 4]]
    assert read_answer(infer(odd, with_x()))[1]["y"].tolist() == [[1, 2]]
    assert odd_server.worker_pids() == [worker]
    assert rss_bytes(worker) < before + 200_000_000


@pytest.mark.parametrize("rows", [1025, 2**16, 2**24])
def test_rows_without_bytes_are_refused_before_they_are_runs(
    odd: httpx.Client, odd_server: RunningServer, rows: int
) -> None:
    """The model takes any number of columns, so also none, and a row of them costs its caller nothing."""
    (pid,) = odd_server.worker_pids()
    before = rss_bytes(pid)
    answer = odd.post("/v2/models/unnamed/infer", json={"inputs": [X | {"shape": [rows, 0], "data": []}]})
    assert answer.status_code == (413 if rows <= 2**16 else 400), answer.text
    assert "input 'x' has" in answer.json()["error"]
    assert rss_bytes(pid) - before < _SPARE_BYTES
    assert odd_server.worker_pids() == [pid]


def test_small_gzip_of_many_rows_is_refused(odd: httpx.Client) -> None:
    body = zlib.compress(
        json.dumps({"inputs": [X | {"shape": [100_000, 2], "data": [0] * 200_000}]}).encode(), wbits=31
    )
    assert len(body) < 2_000
    answer = infer(odd, body, **{"content-encoding": "gzip"})
    assert answer.status_code == 413
    assert "has 100,000 rows; send at most 1,024: 1,024 runs of 1, which is batch.max_size" in answer.json()["error"]
