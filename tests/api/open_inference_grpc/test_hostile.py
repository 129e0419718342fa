"""Messages that no decent client sends: refused at once, naming what is wrong, and nothing is allocated for them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.api.open_inference_grpc.infer import read_message
from app.api.open_inference_grpc.raw_contents import parse_request
from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages
from app.errors import InvalidContent
from app.processing.tensor_bytes import array_to_bytes
from tests.api.open_inference_grpc.conftest import INFER, Invoke, request
from tests.running import PATIENCE_SECONDS, RunningServer, rss_bytes

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def refusal(infer: Invoke, message: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        infer(message, timeout=PATIENCE_SECONDS)
    return caught.value.code(), caught.value.details()


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    made = messages.ModelInferRequest(model_name=f"same-{datatype.lower()}")
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.SetInParent()
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return made


@pytest.mark.parametrize(
    ("datatype", "field", "values", "raw"),
    [
        ("BOOL", "bool_contents", [True, False], b"\1\0"),
        ("INT8", "int_contents", [-128, 127], struct.pack("<2b", -128, 127)),
        ("INT16", "int_contents", [-32768, 1], struct.pack("<2h", -32768, 1)),
        ("INT32", "int_contents", [-(2**31), 1], struct.pack("<2i", -(2**31), 1)),
        ("INT64", "int64_contents", [2**63 - 1, -1], struct.pack("<2q", 2**63 - 1, -1)),
        ("UINT8", "uint_contents", [0, 255], b"\0\xff"),
        ("UINT16", "uint_contents", [0, 65535], b"\0\0\xff\xff"),
        ("UINT32", "uint_contents", [0, 2**32 - 1], struct.pack("<2I", 0, 2**32 - 1)),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], struct.pack("<2Q", 0, 2**64 - 1)),
        ("FP32", "fp32_contents", [1.5, float("inf")], struct.pack("<2f", 1.5, float("inf"))),
        ("FP64", "fp64_contents", [0.1, -float("inf")], struct.pack("<2d", 0.1, -float("inf"))),
        ("BYTES", "bytes_contents", [b"a", b""], b"\1\0\0\0a\0\0\0\0"),
    ],
)
def test_typed_contents_are_as_good_as_raw_ones_p15(
    infer: Invoke, datatype: str, field: str, values: list[Any], raw: bytes
) -> None:
    by_type = infer(typed(datatype, [1, 2], **{field: values}))
    by_bytes = infer(request(f"same-{datatype.lower()}", "x", datatype, [1, 2], raw))
    assert by_type.raw_output_contents == by_bytes.raw_output_contents == [raw]


def _both() -> Any:
    made = typed("FP32", [1, 2], fp32_contents=[1, 2])
    made.raw_input_contents.append(bytes(8))
    return made


def _neither() -> Any:
    made = messages.ModelInferRequest(model_name="same-fp32")
    made.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return made


def _twice() -> Any:
    made = request("scores")
    made.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    made.raw_input_contents.append(bytes(12))
    return made


def _with(change: Callable[[Any], Any]) -> Any:
    made = request("scores")
    change(made)
    return made


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (_both(), "'x' has contents beside raw_input_contents"),
        (_neither(), "'x' has no contents"),
    ],
)
def test_both_or_neither_kind_of_contents_p15(infer: Invoke, message: Any, says: str) -> None:
    code, details = refusal(infer, message)
    assert code is INVALID
    assert says in details


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (messages.ModelInferRequest(), "names no model"),
        (messages.ModelInferRequest(model_name="a b"), "names no model"),
        (messages.ModelInferRequest(model_name="scores", model_version="../1"), "names no model"),
        (messages.ModelInferRequest(model_name="scores"), "0 inputs"),
        (_twice(), "'x' stands twice"),
        (_with(lambda made: made.raw_input_contents.append(b"")), "1 inputs and 2 raw_input_contents"),
        (request("scores", "y"), "there is no input 'y'"),
        (request("scores", raw=bytes(11)), "'x' has 11 bytes"),
        (request("scores", shape=[1, 4], raw=bytes(16)), "'x' has shape [1, 4]"),
        (request("scores", shape=[3]), "'x' has shape [3]"),
        (request("scores", shape=[-1, 3]), "sizes are not negative"),
        (request("scores", shape=[10**12, 3]), "'x' has 12 bytes"),
        (request("scores", shape=[2**62, 2**62, 2**62]), "'x' has 12 bytes"),
        (request("scores", shape=[0, 2**62, 2**62], raw=b""), "'x'"),
        (request("scores", shape=[1] * 33, raw=bytes(4)), "33 dimensions"),
        (request("scores", datatype="FP31"), "'FP31'"),
        (request("scores", datatype="BF16"), "'BF16'"),
        (request("scores", datatype="FP64", shape=[1, 3], raw=bytes(24)), "FP64"),
        (request("scores", name="x" * 300), "300 characters"),
        (request("same-bytes", datatype="BYTES", shape=[1, 1], raw=b"\xff\xff\xff\xffa"), "longer than the bytes"),
        (request("same-bytes", datatype="BYTES", shape=[10**12], raw=b"\0\0\0\0"), "too few"),
        (request("same-bool", datatype="BOOL", shape=[1, 1], raw=b"\2"), "0 or 1"),
        (typed("FP32", [1, 2], fp64_contents=[1, 2]), "send fp32_contents"),
        (typed("FP32", [1, 2], fp32_contents=[1]), "2 values"),
        (typed("FP32", [10**12], fp32_contents=[1]), "values"),
        (typed("INT8", [1, 1], int_contents=[128]), "-128 to 127"),
        (typed("UINT16", [1, 1], uint_contents=[65536]), "0 to 65535"),
        (typed("FP16", [1, 1], fp32_contents=[1]), "send raw_input_contents"),
        (_with(lambda made: made.outputs.add(name="nothing")), "there is no output 'nothing'"),
        (_with(lambda made: [made.outputs.add(name="scores") for _ in range(2)]), "stands twice"),
        (_with(lambda made: [made.outputs.add(name=str(each)) for each in range(257)]), "at most 256"),
        (_with(lambda made: setattr(made.parameters["sequence_id"], "int64_param", 7)), "sequence_id"),
        (_with(lambda made: setattr(made.parameters["timeout"], "string_param", "soon")), "timeout"),
        (_with(lambda made: setattr(made.inputs[0].parameters["shared_memory_region"], "string_param", "a")), "shared"),
        (
            _with(
                lambda made: setattr(made.outputs.add(name="y").parameters["shared_memory_region"], "string_param", "a")
            ),
            "output 'y' is wanted in shared memory",
        ),
    ],
)
def test_what_is_wrong_is_named_p16(infer: Invoke, message: Any, says: str) -> None:
    code, details = refusal(infer, message)
    assert code is INVALID, details
    assert says in details


def test_unknown_models_and_versions_are_not_found_p16(infer: Invoke) -> None:
    for name, version in (("nothing", ""), ("scores", "9.9.9"), ("scores", "canary")):
        message = request(name)
        message.model_version = version
        code, details = refusal(infer, message)
        assert (code, details != "") == (MISSING, True)


def test_calls_that_are_not_here_are_unimplemented(channel: Any) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/SystemSharedMemoryStatus")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_message(channel: Any) -> None:
    call = channel.unary_unary(INFER)
    for message in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe", bytes(1000)):
        code, _ = refusal(call, message)
        assert code is INVALID


def test_bytes_that_are_no_message_in_streams(channel: Any, grpc_server: RunningServer) -> None:
    stream = channel.stream_stream(INFER.replace("ModelInfer", "ModelStreamInfer"))
    messages_sent = [b"\xff", request("nothing").SerializeToString(), request("scores").SerializeToString()]
    answers = [
        messages.ModelStreamInferResponse.FromString(answer)
        for answer in stream(iter(messages_sent), timeout=PATIENCE_SECONDS)
    ]
    assert [bool(answer.error_message) for answer in answers] == [True, True, False]
    others = (
        channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff", timeout=PATIENCE_SECONDS),
        channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(
            iter([b"\xff"]), timeout=PATIENCE_SECONDS
        ),
    )
    for answers_of_it in others:
        with pytest.raises(grpc.RpcError) as caught:
            next(answers_of_it)
        assert caught.value.code() is INVALID
    assert "Traceback" not in grpc_server.log.read_text()


def test_claims_cost_no_memory(infer: Invoke, grpc_server: RunningServer) -> None:
    before = max(rss_bytes(pid) for pid in grpc_server.worker_pids())
    for shape in ([2**40, 3], [2**31, 2**31], [1, 2**62]):
        for datatype in ("FP32", "FP64", "BYTES", "INT8"):
            refusal(infer, request("scores", datatype=datatype, shape=shape))
    assert max(rss_bytes(pid) for pid in grpc_server.worker_pids()) - before < 50_000_000


@settings(max_examples=300, deadline=None)
@given(
    datatype=st.sampled_from(["FP32", "INT8", "BOOL", "BYTES", "FP16", "UINT64", "", "fp32"]),
    shape=st.lists(st.integers(-2, 4) | st.sampled_from([2**31, 2**62, -(2**63)]), max_size=4),
    raw=st.none() | st.binary(max_size=40),
    contents=st.fixed_dictionaries(
        {},
        optional={
            "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5),
            "fp32_contents": st.lists(st.floats(width=32), max_size=5),
            "bytes_contents": st.lists(st.binary(max_size=5), max_size=5),
        },
    ),
)
def test_whatever_is_read_has_its_shape(datatype: str, shape: list[int], raw: bytes | None, contents: Any) -> None:
    """Fuzzed: either a refusal of ours, or an array of exactly what the message says."""
    made = messages.ModelInferRequest(model_name="m")
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        made.raw_input_contents.append(raw)
    try:
        content = read_message(*parse_request(made.SerializeToString()))
    except InvalidContent:
        return
    ((spec, array),) = content.tensors.values()
    assert array.shape == tuple(shape) == spec.shape
    if raw is not None:
        assert bytes(array_to_bytes(array)) == raw
