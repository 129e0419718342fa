"""`raw_input_contents` of a ModelInferRequest, read where they lie: protobuf would hold each tensor twice more.

The wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from app.api.open_inference_grpc.stubs.open_inference_pb2 import ModelInferRequest

_RAW_INPUT_CONTENTS = ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_LENGTH_DELIMITED = 2
# Below, copies cost less than a loop over the fields; and of many fields protobuf makes shorter work.
_LEAST_BYTES = 1 << 15
_MAX_FIELDS = 64
_MOST_LENGTH_BYTES = 5


def parse_request(message: bytes) -> tuple[ModelInferRequest, list[memoryview]]:
    """The request, and its raw contents in their order, which of a large message are views. Raises DecodeError."""
    if len(message) >= _LEAST_BYTES and (split := _split(message)) is not None:
        rest, contents = split
        return ModelInferRequest.FromString(rest), contents
    request = ModelInferRequest.FromString(message)
    return request, [memoryview(content) for content in request.raw_input_contents]


def _split(message: bytes) -> tuple[bytes, list[memoryview]] | None:
    """The message without its raw contents, and those; None where it is not written as clients do."""
    view = memoryview(message)
    rest: list[memoryview] = []
    contents: list[memoryview] = []
    begin = 0
    for _ in range(_MAX_FIELDS):
        if begin == len(message):
            return b"".join(rest), contents
        field, wire_type = divmod(message[begin], 8)
        found = _read_length(message, begin + 1)
        if found is None or wire_type != _LENGTH_DELIMITED or sum(found) > len(message):
            return None
        length, at = found
        if field == _RAW_INPUT_CONTENTS:
            contents.append(view[at : at + length])
        else:
            rest.append(view[begin : at + length])
        begin = at + length
    return None


def _read_length(message: bytes, at: int) -> tuple[int, int] | None:
    """A length, and where it ends."""
    length = 0
    for position, byte in enumerate(message[at : at + _MOST_LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return length, at + position + 1
    return None
