"""How each server wants the same content: the path, the content type and the body.

A wire takes a JPEG (workloads a and b) or four floats (c). A server without a wire for a workload has no row there.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Wire:
    path: str
    content_type: str
    encode: Callable[[Any], bytes]


Wires = Mapping[str, Wire]


def encode_json(content: object) -> bytes:
    return json.dumps(content).encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _as_is(data: bytes) -> bytes:
    return data


def _image(data: bytes) -> bytes:
    return encode_json({"image": _base64(data)})


def _rows(row: list[float]) -> bytes:
    return encode_json({"inputs": [row]})


def _v1_image(data: bytes) -> bytes:
    return encode_json({"instances": [{"image": {"b64": _base64(data)}}]})


def _v1_rows(row: list[float]) -> bytes:
    return encode_json({"instances": [row]})


def _v2_image(data: bytes) -> bytes:
    parameters = {"content_type": "base64"}
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters, "data": [_base64(data)]}
    return encode_json({"inputs": [tensor]})


def _v2_rows(row: list[float]) -> bytes:
    return encode_json({"inputs": [{"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}]})


HEADWAY: Wires = {
    "a": Wire("/predict", JSON, _image),
    "b": Wire("/predict", "image/jpeg", _as_is),
    "c": Wire("/predict", JSON, lambda row: encode_json({"inputs": [row], "model": "tiny"})),
}
PLAIN_FASTAPI: Wires = {**HEADWAY, "b": replace(HEADWAY["b"], path="/predict-raw")}
LITSERVE: Wires = {"a": Wire("/photo", JSON, _image), "c": Wire("/tiny", JSON, _rows)}
BENTOML: Wires = {
    "a": Wire("/classify", JSON, _image),
    "b": Wire("/classify_file", "image/jpeg", _as_is),
    "c": Wire("/classify_rows", JSON, _rows),
}
MLSERVER: Wires = {
    "a": Wire("/v2/models/photo/infer", JSON, _v2_image),
    "c": Wire("/v2/models/tiny/infer", JSON, _v2_rows),
}
KSERVE: Wires = {
    "a": Wire("/v1/models/photo:predict", JSON, _v1_image),
    "c": Wire("/v1/models/tiny:predict", JSON, _v1_rows),
}
RAY: Wires = {
    "a": Wire("/photo", JSON, _image),
    "b": Wire("/photo-raw", "image/jpeg", _as_is),
    "c": Wire("/tiny", JSON, _rows),
}
