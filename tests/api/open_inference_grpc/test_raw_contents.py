"""Large messages are read as protobuf reads them, without its copies."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from app.api.open_inference_grpc.raw_contents import parse_request
from app.api.open_inference_grpc.stubs import open_inference_pb2 as messages

LARGE = 40_000
FIELD_7 = b"\x3a"


def _request(*contents: bytes) -> messages.ModelInferRequest:
    made = messages.ModelInferRequest(model_name="m", id="7")
    for position in range(len(contents)):
        made.inputs.add(name=str(position), datatype="UINT8", shape=[len(contents[position])])
    made.raw_input_contents.extend(contents)
    made.parameters["timeout"].int64_param = 5
    return made


def test_contents_of_a_large_message_are_views_of_it() -> None:
    data = _request(b"a" * LARGE, b"", b"b").SerializeToString()
    request, contents = parse_request(data)
    assert [bytes(content) for content in contents] == [b"a" * LARGE, b"", b"b"]
    assert all(content.obj is data for content in contents)
    assert not request.raw_input_contents
    assert [one.name for one in request.inputs] == ["0", "1", "2"]
    assert request.parameters["timeout"].int64_param == 5


@pytest.mark.parametrize(
    "extra",
    [
        b"\x08\x01",  # an unknown field that is a number
        b"\xba\x00\x01x",  # field 7, its tag in two bytes
        FIELD_7 + b"\x81\x00x",  # a length in two bytes
        FIELD_7 + b"\x81\x80\x80\x80\x80\x00x",  # in six
        FIELD_7 + b"\xff\xff\xff\xff\x0f",  # 4 GiB that are not there
        FIELD_7 + b"\x05x",
        FIELD_7 + b"\x80",
        FIELD_7,
        b"\x7a\x01x" * 100,  # an unknown field, many times
        b"\x3b\x3c",  # a group
        b"\x00",
        b"\x12\x01\xff",  # a version that is no UTF-8
    ],
)
@pytest.mark.parametrize("is_last", [True, False])
def test_unusual_messages_are_read_as_protobuf_reads_them(extra: bytes, *, is_last: bool) -> None:
    data = _request(b"a" * LARGE).SerializeToString()
    _compare(data + extra if is_last else extra + data)


@given(
    contents=st.lists(st.binary(max_size=20) | st.integers(1, 255).map(lambda byte: bytes([byte]) * LARGE), max_size=4),
    at=st.integers(-80, 80),
    damage=st.none() | st.binary(max_size=3),
    cut=st.integers(0, 3),
)
def test_any_message_is_read_as_protobuf_reads_it(contents: list[bytes], at: int, damage: Any, cut: int) -> None:
    data = _request(*contents).SerializeToString()
    if damage is not None:
        begin = at % (len(data) + 1)  # where the fields are that say what follows
        data = data[:begin] + damage + data[begin + cut :]
    _compare(data)


def _compare(data: bytes) -> None:
    try:
        expected = messages.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_request(data)
        return
    request, contents = parse_request(data)
    assert [bytes(content) for content in contents] == list(expected.raw_input_contents)
    for either in (request, expected):
        del either.raw_input_contents[:]
    assert request == expected
