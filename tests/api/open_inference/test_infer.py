"""infer with any model: every datatype and shape, in JSON, in binary and mixed, gives the answer worked out by hand."""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import threading
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from PIL import Image

from app.tensors import NUMPY_DTYPES
from tests.fixtures_odd_models import SAME
from tests.infer_wire import LENGTH, Wire, encode, make_request, read_answer, texts
from tests.running import PATIENCE_SECONDS, RunningServer

ALL_BINARY = {"binary_data_output": True}
RED, BLUE = (255, 0, 0), (0, 0, 255)


def post(client: httpx.Client, model: str, wire: Wire, **headers: str) -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", content=wire.content, headers={**wire.headers, **headers})


def ask(client: httpx.Client, model: str, inputs: dict[str, np.ndarray], **how: Any) -> dict[str, np.ndarray]:
    return read_answer(post(client, model, make_request(inputs, **how)))[1]


def refusal(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    text = answer.json()["error"]
    assert isinstance(text, str)
    return text


def photo(colour: tuple[int, int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, kind)
    return file.getvalue()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_datatype_there_and_back(odd: httpx.Client, data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(sorted(SAME)))
    shape = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    sends_binary, gets_binary = data.draw(st.booleans()), data.draw(st.booleans())
    if SAME[model] == "BYTES":
        size = shape[0] * shape[1]
        words = data.draw(st.lists(st.text(max_size=5), min_size=size, max_size=size))
        array = texts(*(word.replace("\0", "0").encode() for word in words), shape=shape)
    else:
        array = data.draw(numpy_strategies.arrays(NUMPY_DTYPES[SAME[model]], shape))
    how = {"binary": ["x"] if sends_binary else [], "nested": data.draw(st.booleans())}
    body, found = read_answer(
        post(odd, model, make_request({"x": array}, parameters={"binary_data_output": gets_binary}, **how))
    )
    assert body["outputs"][0]["datatype"] == SAME[model]
    if array.dtype.kind == "f" and not gets_binary:
        array = np.where(np.isfinite(array), array, np.nan).astype(array.dtype)
    assert found["y"].shape == array.shape
    np.testing.assert_array_equal(found["y"], array)


@pytest.mark.parametrize("binary", [[], ["number", "flag", "text"], ["flag"], ["number", "text"]])
def test_three_datatypes_in_one_request_p7(odd: httpx.Client, binary: list[str]) -> None:
    inputs = {
        "number": np.array([1, -(2**31)], np.int32),
        "flag": np.array([True, False]),
        "text": texts("Grüße".encode(), b""),
    }
    outputs = [{"name": "copy", "parameters": {"binary_data": True}}, {"name": "next"}, {"name": "other"}]
    wire = make_request(inputs, binary=binary, outputs=outputs, id="seven")
    body, found = read_answer(post(odd, "three", wire))
    assert body["id"] == "seven"
    assert (body["model_name"], body["model_version"]) == ("three", "1.0.0")
    assert list(found) == ["copy", "next", "other"]
    assert found["copy"].tolist() == ["Grüße".encode(), b""]
    assert found["next"].tolist() == [2, 1 - 2**31]
    assert found["other"].tolist() == [False, True]


def test_json_has_true_and_false_and_exact_integers_p28(odd: httpx.Client) -> None:
    numbers = [2**53 + 1, -(2**63), 2**63 - 1, 0]
    body, _ = read_answer(post(odd, "same-int64", make_request({"x": np.array([numbers])})))
    assert body["outputs"][0]["data"] == numbers
    large = [2**64 - 1, 2**63, 1, 0]
    body, _ = read_answer(post(odd, "same-uint64", make_request({"x": np.array([large], np.uint64)})))
    assert body["outputs"][0]["data"] == large
    answer = post(odd, "same-bool", make_request({"x": np.array([[True, False]])}))
    assert b'"data":[true,false]' in answer.content


def test_integers_among_whole_floats_stay_exact_p28(odd: httpx.Client) -> None:
    entry = {"name": "x", "shape": [1, 3], "datatype": "INT64", "data": [2**53 + 1, 1.0, -(2**63)]}
    body, _ = read_answer(odd.post("/v2/models/same-int64/infer", json={"inputs": [entry]}))
    assert body["outputs"][0]["data"] == [2**53 + 1, 1, -(2**63)]


@pytest.mark.parametrize("model", ["same-fp16", "same-fp32", "same-fp64"])
def test_nan_and_infinities_both_ways_p27(odd: httpx.Client, model: str) -> None:
    array = np.array([[np.nan, np.inf, -np.inf, 1.5]], NUMPY_DTYPES[SAME[model]])
    for binary in ([], ["x"]):
        found = ask(odd, model, {"x": array}, binary=binary, parameters=ALL_BINARY)
        np.testing.assert_array_equal(found["y"], array)
        body, _ = read_answer(post(odd, model, make_request({"x": array}, binary=binary)))
        assert body["outputs"][0]["data"] == [None, None, None, 1.5]
        assert "not finite" in body["parameters"]["warnings"]


def test_too_large_for_its_datatype_is_not_infinite_p27(odd: httpx.Client) -> None:
    for model, number in (("same-fp16", 1e6), ("same-fp32", 1e39), ("same-fp64", 10**400), ("same-fp32", 10**50)):
        entry = {"name": "x", "shape": [1, 2], "datatype": SAME[model], "data": [1, number]}
        answer = odd.post(f"/v2/models/{model}/infer", json={"inputs": [entry]})
        assert "'x' has a value that is too large" in refusal(answer)


def test_bytes_that_are_no_utf8_are_refused_by_a_model_of_strings_p28(odd: httpx.Client) -> None:
    answer = post(odd, "same-bytes", make_request({"x": texts(b"\xff\xfe", shape=(1, 1))}, binary=["x"]))
    assert "'x'" in refusal(answer)
    assert "UTF-8" in refusal(answer)


@pytest.mark.parametrize("binary", [[], ["x"]])
@pytest.mark.parametrize(
    ("model", "array", "output", "expected"),
    [
        ("double", np.array(21, "<f4"), "twice", np.array(42, "<f4")),
        ("transpose", np.array([[1, 2, 3], [4, 5, 6]], "<f4"), "turned", np.array([[1, 4], [2, 5], [3, 6]], "<f4")),
        ("total", np.array([[1, 2, 3], [4, 5, 6]], "<f4"), "total", np.array(21, "<f4")),
        ("wide", np.array([[1, 2], [4, 5], [7, 8]], "<f4"), "columns", np.array([12, 15], "<f4")),
        ("one-row", np.array([[1, 2, 3]], "<f4"), "y", np.array([[1, 2, 3]], "<f4")),
        ("one-row", np.array([[1, 2, 3], [4, 5, 6]], "<f4"), "y", np.array([[1, 2, 3], [4, 5, 6]], "<f4")),
        ("unnamed", np.array([[1, 2, 3, 4]], "<f4"), "y", np.array([[1, 2, 3, 4]], "<f4")),
        ("sum", np.array([[1, 2, 3], [4, 5, 6]], "<f4"), "total", np.array([[6], [15]], "<f4")),
    ],
)
def test_shapes(
    odd: httpx.Client, model: str, array: np.ndarray, output: str, expected: np.ndarray, binary: list[str]
) -> None:
    found = ask(odd, model, {"x": array}, binary=binary, parameters={"binary_data_output": bool(binary)})
    assert found[output].shape == expected.shape
    np.testing.assert_array_equal(found[output], expected)


@pytest.mark.parametrize("binary", [False, True])
def test_tflite_models(odd: httpx.Client, binary: bool) -> None:
    def ask_for(model: str, **inputs: np.ndarray) -> list[Any]:
        how: dict[str, Any] = {"binary": list(inputs) if binary else [], "parameters": {"binary_data_output": binary}}
        (found,) = ask(odd, f"tflite-{model}", inputs, **how).values()
        values: list[Any] = found.tolist()
        return values

    two = np.array([[1, 2], [3, 4]], "<f4")
    assert ask_for("two-inputs", a=two, b=two) == [[2, 4], [6, 8]]
    assert ask_for("two-inputs", a=two[:0], b=two[:0]) == []
    assert ask_for("double", x=np.array(21, "<f4")) == 42
    assert ask_for("positive", x=np.array([[1, -1, 0]], "<f4")) == [[True, False, False]]
    assert ask_for("one-row", x=np.array([[1, 2, 3], [4, 5, 6]], "<f4")) == [[6], [15]]
    assert ask_for("one-row", x=np.zeros((0, 3), "<f4")) == []


def test_odd_names(odd: httpx.Client) -> None:
    inputs = {"a b/ü": np.array([1, 2]), "input:0": np.array([0.5, 0.25], "<f4")}
    found = ask(odd, "odd-names", inputs, binary=["a b/ü"], outputs=[{"name": "out put:0"}])
    assert found["out put:0"].tolist() == [1.5, 2.25]


def test_an_input_that_all_rows_share(odd: httpx.Client) -> None:
    inputs = {"x": np.array([[1, 2], [3, 4]], "<f4"), "by": np.array(10, "<f4")}
    assert ask(odd, "scaled", inputs)["product"].tolist() == [[10, 20], [30, 40]]


@pytest.mark.parametrize(
    ("model", "inputs", "shapes"),
    [
        ("pair", {"a": (0, 2), "b": (0, 2)}, {"total": (0, 2), "difference": (0, 2)}),
        ("scores", {"x": (0, 3)}, {"scores": (0, 3)}),
        ("sum", {"x": (0, 3)}, {"total": (0, 1)}),
        ("one-row", {"x": (0, 3)}, {"y": (0, 3)}),
        ("total", {"x": (0, 3)}, {"total": ()}),
        ("wide", {"x": (0, 3)}, {"columns": (3,)}),
        ("unnamed", {"x": (2, 0)}, {"y": (2, 0)}),
        ("colour", {"image": (0, 4, 4, 3)}, {"scores": (0, 3)}),
    ],
)
def test_empty_batch_is_answered_p28(
    odd: httpx.Client, model: str, inputs: dict[str, tuple[int, ...]], shapes: dict[str, tuple[int, ...]]
) -> None:
    dtype = "u1" if model == "colour" else "<f4"
    arrays = {name: np.zeros(shape, dtype) for name, shape in inputs.items()}
    for binary in ([], list(arrays)):
        found = ask(odd, model, arrays, binary=binary, parameters={"binary_data_output": bool(binary)})
        assert {name: array.shape for name, array in found.items()} == shapes


def test_requested_order_is_kept_and_each_output_as_asked_p11(odd: httpx.Client) -> None:
    inputs = {"b": np.array([[3, 4]], "<f4"), "a": np.array([[1, 2]], "<f4")}
    for binary in ([], ["difference"], ["total"], ["difference", "total"]):
        outputs = [{"name": name, "parameters": {"binary_data": name in binary}} for name in ("difference", "total")]
        body, found = read_answer(post(odd, "pair", make_request(inputs, outputs=outputs)))
        assert list(found) == ["difference", "total"]
        assert found["difference"].tolist() == [[-2, -2]]
        assert found["total"].tolist() == [[4, 6]]
        assert [output["name"] for output in body["outputs"] if "data" not in output] == binary
    body, found = read_answer(post(odd, "pair", make_request(inputs, outputs=[{"name": "difference"}])))
    assert list(found) == ["difference"]
    assert list(read_answer(post(odd, "pair", make_request(inputs, outputs=[])))[1]) == ["total", "difference"]


def test_a_flag_of_one_output_overrides_that_of_all_p4(odd: httpx.Client) -> None:
    inputs = {"a": np.array([[3, 4]], "<f4"), "b": np.array([[1, 2]], "<f4")}
    outputs = [{"name": "total", "parameters": {"binary_data": False}}, {"name": "difference"}]
    body, found = read_answer(post(odd, "pair", make_request(inputs, outputs=outputs, parameters=ALL_BINARY)))
    assert ["data" in output for output in body["outputs"]] == [True, False]
    assert found["difference"].tolist() == [[2, 2]]


def test_blob_of_no_bytes_has_size_0_p6(odd: httpx.Client) -> None:
    wire = make_request({"x": np.zeros((0, 3), "<f4")}, binary=["x"], parameters=ALL_BINARY)
    answer = post(odd, "unnamed", wire)
    assert answer.headers[LENGTH] == answer.headers["content-length"]
    body, _ = read_answer(answer)
    assert body["outputs"][0]["parameters"] == {"binary_data_size": 0}


def test_json_is_answered_with_json_p5(odd: httpx.Client) -> None:
    answer = post(odd, "pair", make_request({"a": np.ones((1, 2), "<f4"), "b": np.ones((1, 2), "<f4")}))
    assert answer.headers["content-type"] == "application/json"
    assert LENGTH not in answer.headers
    assert [output["data"] for output in answer.json()["outputs"]] == [[2, 2], [0, 0]]


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/plain; x=é"])
def test_any_content_type_is_taken_p1(odd: httpx.Client, content_type: str | None) -> None:
    wire = make_request({"x": np.ones((1, 2), "<f4")}, binary=["x"])
    headers = {} if content_type is None else {"content-type": content_type.encode("latin-1").decode("latin-1")}
    if content_type is not None and not content_type.isascii():
        headers = {"content-type": "text/plain"}
    assert read_answer(post(odd, "unnamed", wire, **headers))[1]["y"].tolist() == [[1, 1]]


def test_a_version_and_an_alias_in_the_path(odd: httpx.Client) -> None:
    wire = make_request({"x": np.array(1, "<f4")})
    for version, alias in (("1.0.0", None), ("stable", "stable")):
        answer = odd.post(f"/v2/models/double/versions/{version}/infer?ignored=1", content=wire.content)
        assert answer.json()["model_version"] == "1.0.0"
        assert answer.json()["parameters"].get("alias") == alias
    assert "9" in refusal(odd.post("/v2/models/double/versions/9/infer", content=wire.content), 404)
    assert "resnet" in refusal(post(odd, "resnet", wire), 404)
    assert "names no model" in refusal(post(odd, "Res%20Net", wire))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_both_ways_p8(odd: httpx.Client, encoding: str) -> None:
    array = np.arange(2000, dtype="<f4").reshape(20, 100)
    wire = make_request({"x": array}, binary=["x"], parameters=ALL_BINARY)
    packed = gzip.compress(wire.content) if encoding == "gzip" else zlib.compress(wire.content)
    headers = wire.headers | {"content-encoding": encoding, "accept-encoding": encoding}
    answer = odd.post("/v2/models/unnamed/infer", content=packed, headers=headers)
    assert answer.headers["content-encoding"] == encoding
    np.testing.assert_array_equal(read_answer(answer)[1]["y"], array)


def test_raw_binary_request(odd: httpx.Client) -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]], "<f4")
    answer = odd.post("/v2/models/sum/infer", content=encode(array), headers={LENGTH: "0"})
    assert LENGTH in answer.headers
    assert read_answer(answer)[1]["total"].tolist() == [[6], [15]]
    answer = odd.post("/v2/models/double/infer", content=encode(np.array(4, "<f4")), headers={LENGTH: "0"})
    assert read_answer(answer)[1]["twice"] == 8
    answer = odd.post("/v2/models/colour/infer", content=photo(BLUE), headers={LENGTH: "0"})
    assert read_answer(answer)[1]["scores"].tolist() == [[0, 0, 1]]
    answer = odd.post("/v2/models/same-bytes/infer", content=encode(texts(b"all of it")), headers={LENGTH: "0"})
    assert read_answer(answer)[1]["y"].tolist() == [[b"all of it"]]
    for model, words in (("pair", "the inputs a, b"), ("unnamed", "free sizes"), ("sum", "takes 12 bytes a row")):
        answer = odd.post(f"/v2/models/{model}/infer", content=b"\0" * 8, headers={LENGTH: "0"})
        assert words in refusal(answer)


def test_classification(odd: httpx.Client) -> None:
    array = np.array([[0.125, 0.5, 0.25], [1, 0, 0]], "<f4")
    for count, binary in ((2, False), (2, True), (99, False)):
        outputs = [{"name": "scores", "parameters": {"classification": count, "binary_data": binary}}]
        body, found = read_answer(post(odd, "scores", make_request({"x": array}, outputs=outputs)))
        assert body["outputs"][0]["datatype"] == "BYTES"
        assert found["scores"].shape == (2, min(count, 3))
        assert found["scores"][:, 0].tolist() == [b"0.500000:1:middle", b"1.000000:0:low"]
    outputs = [{"name": "difference", "parameters": {"classification": 1}}]
    inputs = {"a": np.array([[1, 2]], "<f4"), "b": np.array([[3, 3]], "<f4")}
    assert ask(odd, "pair", inputs, outputs=outputs)["difference"].tolist() == [[b"-1.000000:1"]]


@pytest.mark.parametrize(
    ("model", "array", "output", "words"),
    [
        ("same-bytes", texts(b"a", shape=(1, 1)), "y", "no classes"),
        ("double", np.array(1, "<f4"), "twice", "no classes"),
        ("same-bool", np.array([[True]]), "y", "no classes"),
    ],
)
def test_classification_of_what_has_no_classes(
    odd: httpx.Client, model: str, array: np.ndarray, output: str, words: str
) -> None:
    outputs = [{"name": output, "parameters": {"classification": 1}}]
    assert words in refusal(post(odd, model, make_request({"x": array}, outputs=outputs)))


def test_classification_of_rows_without_classes(odd: httpx.Client) -> None:
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    for shape, expected in (((2, 0), (2, 0)), ((0, 4), (0, 2))):
        found = ask(odd, "unnamed", {"x": np.zeros(shape, "<f4")}, outputs=outputs)
        assert found["y"].shape == expected


@pytest.mark.parametrize("missing", [0, 1500])
def test_classification_of_wide_rows(odd: httpx.Client, missing: int) -> None:
    """The best are found before they are sorted: of equal values the first, and NaN last, as sorting all has them."""
    array = np.random.default_rng(0).integers(0, 400, (2, 2000)).astype("<f4")
    array[:, :missing] = np.nan
    outputs = [{"name": "y", "parameters": {"classification": 1000}}]
    wire = make_request({"x": array}, binary=["x"], outputs=outputs)
    found = read_answer(post(odd, "unnamed", wire))[1]["y"]
    best = np.argsort(-array, axis=1, kind="stable")[:, :1000]
    expected = [[f"{row[at]:f}:{at}".encode() for at in order] for row, order in zip(array, best, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("shape", [(1, 2**18 + 1), (1024, 257)])
def test_classification_of_too_many(odd: httpx.Client, shape: tuple[int, int]) -> None:
    outputs = [{"name": "y", "parameters": {"classification": 10**9}}]
    answer = post(odd, "unnamed", make_request({"x": np.zeros(shape, "<f4")}, binary=["x"], outputs=outputs))
    assert "classification 1000000000" in refusal(answer)
    assert "ask for at most 262,144 in all" in answer.json()["error"]


def test_large_answers_are_whole(odd: httpx.Client) -> None:
    """They are written in pieces, and apart from the event loop."""
    array = np.arange(200_002, dtype="<f4").reshape(2, -1) / 4
    for options in ({}, ALL_BINARY):
        wire = make_request({"x": array}, binary=["x"], parameters=options)
        body, found = read_answer(post(odd, "unnamed", wire))
        assert list(body) == ["model_name", "model_version", "parameters", "outputs"]
        np.testing.assert_array_equal(found["y"], array)
    answer = odd.post("/predict", json={"inputs": array.tolist(), "model": "same-fp32"})
    assert list(answer.json()) == ["outputs", "model", "version", "alias", "request_id"]
    np.testing.assert_array_equal(answer.json()["outputs"]["y"], array)


def test_prediction_id_is_taken_by_feedback(odd: httpx.Client) -> None:
    array = np.array([[0, 1, 0], [1, 0, 0]], "<f4")
    body, _ = read_answer(post(odd, "scores", make_request({"x": array})))
    ids = body["parameters"]["prediction_id"].split(",")
    assert len(ids) == 2
    answer = odd.post("/feedback", json={"feedback": [{"prediction_id": one, "label": "middle"} for one in ids]})
    assert [result["outcome"] for result in answer.json()["results"]] == ["correct", "incorrect"]


def test_timeout_and_routing_key_are_taken(odd: httpx.Client) -> None:
    inputs = {"x": np.array(1, "<f4")}
    for parameters in (
        {"timeout": 5_000_000, "routing_key": "me", "priority": 1, "sequence_id": 0, "triton_enable": True},
        {"timeout": 10**300, "routing_key": 17},
        {"timeout": 0, "routing_key": None, "sequence_id": ""},
    ):
        assert ask(odd, "double", inputs, parameters=parameters)["twice"] == 2
    answer = post(odd, "double", make_request(inputs, parameters={"timeout": 1}))
    assert refusal(answer, 504)


def test_what_other_clients_leave_empty_is_taken(odd: httpx.Client) -> None:
    entry = {"name": "x", "shape": [], "datatype": "FP32", "parameters": None, "data": [3]}
    body = {"id": None, "parameters": None, "outputs": None, "model_name": "double", "inputs": [entry]}
    found = read_answer(odd.post("/v2/models/double/infer", json=body))[1]
    assert found["twice"] == 6
    body = {"inputs": [entry], "outputs": [{"name": "twice", "parameters": None}]}
    assert read_answer(odd.post("/v2/models/double/infer", json=body))[1]["twice"] == 6


def images(*files: bytes, shape: tuple[int, ...] | None = None) -> dict[str, np.ndarray]:
    return {"image": texts(*files, shape=shape)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_encoded_images(odd: httpx.Client, kind: str) -> None:
    files = (photo(RED, kind), photo(BLUE, kind))
    for shape in ((2,), (2, 1)):
        found = ask(odd, "colour", images(*files, shape=shape), binary=["image"], parameters=ALL_BINARY)
        np.testing.assert_allclose(found["scores"], [[1, 0, 0], [0, 0, 1]], atol=0.02)
    coded = [base64.b64encode(file) for file in files]
    found = ask(odd, "colour", images(*coded))
    np.testing.assert_allclose(found["scores"], [[1, 0, 0], [0, 0, 1]], atol=0.02)


def test_an_image_model_takes_tensors_too(odd: httpx.Client) -> None:
    array = np.zeros((2, 4, 4, 3), "u1")
    array[1, :, :, 2] = 255
    for model, output, large in (("colour", "scores", 1.0), ("shades", "mean", 255.0)):
        found = ask(odd, model, {"image": array}, binary=["image"])
        assert found[output].tolist() == [[0, 0, 0], [0, 0, large]]
    assert ask(odd, "brightness", {"image": array[1:]})["mean"] == 85


def test_images_for_a_model_that_answers_with_tensors(odd: httpx.Client) -> None:
    found = ask(odd, "shades", images(photo(RED), photo(BLUE)), binary=["image"])
    assert found["mean"].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert ask(odd, "brightness", images(photo(RED)), binary=["image"])["mean"] == 85


def test_images_whose_answers_cannot_be_told_apart_come_one_at_a_time(odd: httpx.Client) -> None:
    answer = post(odd, "brightness", make_request(images(photo(RED), photo(BLUE)), binary=["image"]))
    assert "one image" in refusal(answer)


def test_images_that_cannot_be_taken(odd: httpx.Client) -> None:
    def said(*files: bytes, shape: tuple[int, ...] | None = None, status: int = 400, is_binary: bool = True) -> str:
        wire = make_request(images(*files, shape=shape), binary=["image"] if is_binary else [])
        return refusal(post(odd, "colour", wire), status)

    assert "image" in said(photo(RED), b"no image")
    assert "at most 8" in said(*[photo(RED)] * 9, status=413)
    assert "[n] or [n, 1]" in said(photo(RED), photo(RED), shape=(1, 2))
    assert "[n] or [n, 1]" in said()
    assert "base64" in said(b"no base64!", is_binary=False)
    wire = make_request({"picture": texts(photo(RED))}, binary=["picture"])
    assert "'image' is missing" in refusal(post(odd, "colour", wire))
    wire = make_request({"x": texts(photo(RED))}, binary=["x"])
    assert "input 'x' is of datatype BYTES; it takes FP32" in refusal(post(odd, "sum", wire))


def test_callers_of_one_batch_get_their_own_rows(odd_server: RunningServer) -> None:
    """Eight rows share a run here; every third caller sends something that fails or leaves before its answer."""
    wrong: list[str] = []

    def call(number: int) -> None:
        random = np.random.default_rng(number)
        with httpx.Client(base_url=odd_server.url, timeout=PATIENCE_SECONDS) as client:
            for _ in range(25):
                a, b = random.normal(size=(2, random.integers(1, 5), 2)).astype("<f4")
                is_binary = bool(random.integers(2))
                how: dict[str, Any] = {"binary": ["a"] if is_binary else [], "parameters": ALL_BINARY}
                if random.integers(3) == 0:
                    how["outputs"] = [{"name": "difference"}]
                wire = make_request({"a": a, "b": b}, **how)
                if number % 3 == 2:
                    disturb(odd_server, client, wire, leaves=bool(random.integers(2)))
                    continue
                found = read_answer(post(client, "pair", wire))[1]
                if not np.array_equal(found["difference"], a - b) or (
                    "outputs" not in how and not np.array_equal(found["total"], a + b)
                ):
                    wrong.append(f"caller {number}: {a}, {b} gave {found}")

    threads = [threading.Thread(target=call, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong, wrong[0]
    (stats,) = httpx.get(f"{odd_server.url}/v2/models/pair/stats").json()["model_stats"]
    assert stats["execution_count"] < stats["inference_stats"]["success"]["count"]  # they did share runs


def disturb(server: RunningServer, client: httpx.Client, wire: Wire, *, leaves: bool) -> None:
    """Send what fails, or leave without waiting for the answer."""
    if not leaves:
        bad = make_request({"a": np.ones((2, 2), "<f4"), "b": np.ones((1, 2), "<f4")})
        assert "same number of rows" in refusal(post(client, "pair", bad))
        return
    host, port = server.url.removeprefix("http://").split(":")
    lines = ["POST /v2/models/pair/infer HTTP/1.1", "host: t", f"content-length: {len(wire.content)}"]
    lines += [f"{name}: {value}" for name, value in wire.headers.items()]
    with socket.create_connection((host, int(port)), PATIENCE_SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + wire.content)


def test_the_json_of_an_answer_is_compact_and_in_order(odd: httpx.Client) -> None:
    body = {"id": "é", "inputs": [{"name": "x", "shape": [], "datatype": "FP32", "data": 0.5}]}
    answer = odd.post("/v2/models/double/infer", content=json.dumps(body))
    assert answer.json() == {
        "model_name": "double",
        "model_version": "1.0.0",
        "id": "é",
        "parameters": {"alias": "stable"},
        "outputs": [{"name": "twice", "shape": [], "datatype": "FP32", "data": [1.0]}],
    }
