"""Bad input gets the right status, our one error shape and a sentence that helps; never a 500, never a hang."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
import zlib
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.running import RunningServer, rss_bytes, running_server


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that is nothing but its promise."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def assert_error(answer: httpx.Response, status: int, code: str, *words: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == code
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == body["request_id"]
    for word in words:
        assert word in body["error"]


ROW = [0.0] * 64
CASES: dict[str, tuple[Any, int, str, str]] = {
    "not base64": ({"image": "this is no base64!"}, 400, "bad_image", "not base64"),
    "empty image": ({"image": ""}, 400, "bad_image", "empty"),
    "empty data url": ({"image": "data:image/png;base64,"}, 400, "bad_image", "empty"),
    "data url without base64": ({"image": "data:text/plain,hello"}, 400, "bad_image", "data: URL"),
    "a text file": ({"image": encode(b"I am a text file")}, 400, "bad_image", "JPEG, PNG"),
    "a huge PNG": ({"image": encode(png_header(50_000, 50_000))}, 413, "image_too_large", "50000 × 50000"),
    "wrong shape": ({"inputs": [[0.0] * 63]}, 400, "bad_tensor", "[1, 63]; it takes [n, 64]"),
    "too deep": ({"inputs": [[ROW]]}, 400, "bad_tensor", "[1, 1, 64]"),
    "a number": ({"inputs": {"pixels": 5}}, 400, "bad_tensor", "shape []"),
    "ragged": ({"inputs": [ROW, [1.0]]}, 400, "bad_tensor", "ragged"),
    "text for numbers": ({"inputs": [["a"] * 64]}, 400, "bad_tensor", "FP32"),
    "null for a number": ({"inputs": [[None] * 64]}, 400, "bad_tensor", "null"),
    "true for a number": ({"inputs": [[True] * 64]}, 400, "bad_tensor", "bool"),
    "true among numbers": ({"inputs": {"pixels": [[True, *ROW[1:]]]}}, 400, "bad_tensor", "input 'pixels' has true or"),
    "too large for FP32": ({"inputs": [[1e39] * 64]}, 400, "bad_tensor", "too large"),
    "unknown input": ({"inputs": {"pixel": [ROW]}}, 400, "bad_tensor", "'pixels' is missing"),
    "unknown model": ({"inputs": [ROW], "model": "resnet"}, 404, "model_not_found", "digits"),
    "unknown version": ({"inputs": [ROW], "model": "digits@9.9.9"}, 404, "version_not_found", "1.1.0"),
    "unknown alias": ({"inputs": [ROW], "model": "digits@canary"}, 404, "version_not_found", "stable"),
    "no reference": ({"inputs": [ROW], "model": "Digits!"}, 422, "malformed_request", "name@version"),
    "image to a tensor model": ({"image": encode(png_header(1, 1)), "model": "digits"}, 400, "bad_content", "numbers"),
    "numbers to an image model": ({"inputs": [ROW], "model": "efficientnet-lite0"}, 400, "bad_content", "images"),
    "unknown key": ({"image": "AAAA", "modle": "x"}, 422, "malformed_request", "'modle'"),
    "two contents": ({"image": "AAAA", "inputs": [ROW]}, 422, "malformed_request", "exactly one"),
    "no content": ({"model": "digits"}, 422, "malformed_request", "exactly one"),
    "top_k zero": ({"inputs": [ROW], "top_k": 0}, 422, "malformed_request", "top_k"),
    "top_k text": ({"inputs": [ROW], "top_k": "many"}, 422, "malformed_request", "top_k"),
    "a list": ([1, 2], 422, "malformed_request", "JSON object"),
    "no images": ({"images": []}, 422, "malformed_request", "images"),
    "too many images": ({"images": ["AAAA"] * 65}, 413, "body_too_large", "at most 64"),
    "parameters": ({"inputs": [ROW], "parameters": {"x": 1}}, 422, "malformed_request", "'x'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_json_content_is_refused(client: httpx.Client, case: str) -> None:
    body, status, code, words = CASES[case]
    assert_error(client.post("/predict", json=body), status, code, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b'{"image": "abc', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "recursion"),
        (b'{"inputs": [[' + b"9" * 5000 + b"]]}", ""),
    ],
    ids=["empty", "cut off", "unterminated", "not UTF-8", "10,000 deep", "5,000 digits"],
)
def test_malformed_json_is_refused(client: httpx.Client, body: bytes, words: str) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert words in answer.json()["error"]


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_values_that_are_not_finite_are_refused(client: httpx.Client, token: str) -> None:
    body = f'{{"inputs": [[{", ".join([token] + ["0"] * 63)}]]}}'
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("bad_tensor", "malformed_request")


def test_a_truncated_jpeg_is_refused(client: httpx.Client, cat: bytes) -> None:
    answer = client.post("/predict", content=cat[: len(cat) // 2], headers={"content-type": "image/jpeg"})
    assert_error(answer, 400, "bad_image", "cut off")


def test_an_empty_raw_body_is_refused(client: httpx.Client) -> None:
    assert_error(client.post("/predict", headers={"content-type": "image/jpeg"}), 400, "bad_image", "empty")


@pytest.mark.parametrize("content_type", ["text/html", "application/x-www-form-urlencoded", "video/mp4", ""])
def test_a_wrong_content_type_is_refused(client: httpx.Client, content_type: str) -> None:
    answer = client.post("/predict", content=b"x", headers={"content-type": content_type})
    assert_error(answer, 415, "unsupported_media_type", "image/*")


def test_a_compressed_body_is_refused(client: httpx.Client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert_error(client.post("/predict", content=b"x", headers=headers), 415, "unsupported_media_type", "compressed")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_refused(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/predict")
    assert_error(answer, 405, "method_not_allowed", "POST")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/models/x/y/z", "/ui/../settings.py", "/%00"])
def test_an_unknown_route_is_refused(client: httpx.Client, path: str) -> None:
    assert_error(client.get(path), 404, "not_found", "/docs")


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "99999999"])
def test_a_bad_timeout_header_is_refused(client: httpx.Client, value: str) -> None:
    answer = client.post("/predict", json={"inputs": [ROW]}, headers={"headway-timeout-ms": value})
    assert_error(answer, 422, "malformed_request", "Headway-Timeout-Ms")


def test_a_bad_query_is_refused(client: httpx.Client, cat: bytes) -> None:
    headers = {"content-type": "image/jpeg"}
    answer = client.post("/predict", params={"modell": "x"}, content=cat, headers=headers)
    assert_error(answer, 422, "malformed_request", "'modell'")
    answer = client.post("/predict", params={"top_k": "-1"}, content=cat, headers=headers)
    assert_error(answer, 422, "malformed_request", "top_k")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nno disposition\r\n--b--"),
        ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="image"\r\n\r\nx\r\n--b--'),
        ("multipart/form-data; boundary=b", b"garbage"),
    ],
)
def test_a_bad_multipart_body_is_refused(client: httpx.Client, content_type: str, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": content_type})
    assert_error(answer, 422, "malformed_request")


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One worker that takes bodies of 1 MB, 8 MB at one time, and 3 seconds for each, however slowly it comes."""
    limits = {
        "HEADWAY_MAX_BODY_BYTES": "1000000",
        "HEADWAY_MAX_INFLIGHT_BYTES": "8000000",
        "HEADWAY_BODY_TIMEOUT_SECONDS": "3",
        "HEADWAY_BODY_MIN_BYTES_PER_SECOND": "0",
    }
    with running_server(tmp_path_factory.mktemp("small") / "log", workers=1, **limits) as server:
        yield server


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused_and_the_answer_arrives(small_server: RunningServer, chunked: bool) -> None:
    data = b"x" * 5_000_000
    content = (data[start : start + 65536] for start in range(0, len(data), 65536)) if chunked else data
    with httpx.Client() as client:
        answer = client.post(f"{small_server.url}/predict", content=content, headers={"content-type": "image/jpeg"})
        assert_error(answer, 413, "body_too_large", "1,000,000")


def test_a_body_that_stalls_is_refused_in_time(small_server: RunningServer) -> None:
    def stall() -> Any:
        yield b'{"image": "'
        time.sleep(4)
        yield b'"}'

    with httpx.Client(timeout=30) as client:
        try:
            answer = client.post(f"{small_server.url}/predict", content=stall())
        except httpx.TransportError:
            return  # the server has answered and closed while we were still sending
        assert_error(answer, 408, "body_timeout", "3 seconds")


def test_bodies_in_flight_are_held_within_their_memory(small_server: RunningServer) -> None:
    """40 bodies of 900 kB at one time do not fit into 8 MB: some are refused, and the worker stays small."""
    statuses: list[int] = []
    (pid,) = small_server.worker_pids()
    gate = threading.Barrier(40)

    def send() -> None:
        def body() -> Any:
            yield b"x" * 450_000
            gate.wait(30)
            yield b"x" * 450_000

        with httpx.Client(timeout=60) as client:
            try:
                answer = client.post(
                    f"{small_server.url}/predict", content=body(), headers={"content-type": "image/jpeg"}
                )
                statuses.append(answer.status_code)
            except httpx.TransportError:
                statuses.append(0)  # refused while it was still sending

    before = rss_bytes(pid)
    threads = [threading.Thread(target=send) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses) == 40
    assert set(statuses) <= {0, 400, 408, 503}
    assert {0, 503} & set(statuses)
    assert rss_bytes(pid) - before < 60_000_000
    with httpx.Client(timeout=60) as client:
        assert client.post(f"{small_server.url}/predict", json={"inputs": [ROW]}).status_code == 200


def test_a_barrage_of_bad_input_leaks_nothing_and_harms_no_neighbour(server: RunningServer, cat: bytes) -> None:
    stop = threading.Event()
    neighbour: list[int] = []

    def ask_properly() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                neighbour.append(client.post(f"{server.url}/predict", json={"inputs": [ROW]}).status_code)

    animated = io.BytesIO()
    frames = [Image.new("P", (64, 64), color) for color in range(200)]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    bad = [
        cat[:9000],
        b"\x89PNG\r\n\x1a\n",
        png_header(50_000, 50_000),
        b"II*\0" + b"\xff" * 4000,
        b"GIF89a" + b"\1" * 99,
    ]
    thread = threading.Thread(target=ask_properly)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:

            def barrage(rounds: int) -> None:
                for _ in range(rounds):
                    for data in bad:
                        answer = client.post("/predict", content=data, headers={"content-type": "image/jpeg"})
                        assert answer.status_code in (400, 413)
                    good = client.post("/predict", content=animated.getvalue(), headers={"content-type": "image/gif"})
                    assert good.status_code == 200
                    assert client.post("/predict", content=json.dumps({"image": "%"})).status_code == 400

            barrage(5)
            before = sum(map(rss_bytes, server.worker_pids()))
            barrage(40)
            assert sum(map(rss_bytes, server.worker_pids())) - before < 20_000_000
    finally:
        stop.set()
        thread.join(60)
    assert set(neighbour) == {200}
