"""`python -m bench.decoders [--photos FOLDER]`: what could read requests, for docs/decisions/0011 and 0012.

JSON with base64 to what the engine takes, an answer to JSON, and a JPEG to the model's tensor: CPU time of one, all
contenders in turn, medians over rounds. With a folder of labelled photos also how many each pipeline has right.
A body is also read right after a run of the photo model, which leaves the processor's caches as a server finds them.
Contenders are no dependencies of ours: those that are not installed are left out, each with a line that says so.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pybase64
from pydantic import ConfigDict, TypeAdapter
from pydantic_core import from_json, to_json

from app.api.schemas import PredictRequest
from bench.contenders import Contenders, cold_microseconds, cpu_microseconds, optional
from bench.image_pipelines import image_pipelines, photo_run, rank_photos
from bench.workloads import photo, workloads

# What an answer to (a) holds.
ANSWER = {
    "predictions": [{"label": "tiger cat", "index": 282, "confidence": 0.6612345}] * 5,
    "model": "efficientnet-lite0",
    "version": "1.1.0",
    "alias": "stable",
    "request_id": "3f0c6d1be2f94a3f8a3c2f6f0d9b7a55",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decoders")
    parser.add_argument("--photos", type=Path, help="labelled photos, as for `headway evaluate`")
    folder = parser.parse_args().photos
    cases, readers, writers, images = workloads(), json_readers(), json_writers(), image_pipelines()
    photos, floats = (cpu_microseconds(readers, cases[key].body) for key in "ac")
    cold = cold_microseconds(readers, cases["a"].body, photo_run())
    cells = {name: f"{photos[name]:.1f} µs | {cold[name]:.0f} µs | {floats[name]:.1f} µs" for name in readers}
    _print_table("JSON and base64 to a request | (a) | (a) after a run | (c)", cells)
    answers = cpu_microseconds(writers, ANSWER)
    _print_table("an answer to JSON | CPU", {n: f"{answers[n]:.2f} µs" for n in writers})
    tensors = cpu_microseconds(images, photo())
    cells = {name: f"{tensors[name]:.0f} µs" for name in images}
    heading = "a JPEG of 500 × 375 to the tensor | CPU"
    if folder is not None:
        ranked, n = rank_photos(images, folder)
        heading += f" | right of {n} | answers as today"
        cells = {name: f"{cells[name]} | {right} | {same}" for name, (right, same) in ranked.items()}
    _print_table(heading, cells)


def _print_table(heading: str, cells: Mapping[str, str]) -> None:
    print(f"\n| {heading} |\n| --- |{' ---: |' * heading.count(' | ')}")
    for name, text in cells.items():
        print(f"| {name} | {text} |")


class _BytesRequest(PredictRequest):
    """base64 decoded by pydantic-core itself."""

    model_config = ConfigDict(extra="forbid", val_json_bytes="base64")

    image: bytes | None = None  # type: ignore[assignment]


def json_readers() -> Contenders:
    adapter, bytes_adapter = TypeAdapter(PredictRequest), TypeAdapter(_BytesRequest)

    def stdlib(body: bytes) -> bytes | None:
        text = adapter.validate_python(json.loads(body)).image
        return base64.b64decode(text, validate=True) if text is not None else None

    found: Contenders = {
        "pydantic-core, pybase64 (today)": lambda body: _decode(adapter.validate_json(body).image),
        "pydantic-core in two steps, pybase64": lambda body: _decode(adapter.validate_python(from_json(body)).image),
        "pydantic-core with its own base64": bytes_adapter.validate_json,
    }
    if msgspec := optional("msgspec"):
        by_image = {kind: _struct_decoder(msgspec, kind) for kind in (str, bytes)}
        found["msgspec, pybase64"] = lambda body: _decode(by_image[str](body).image)
        found["msgspec with its own base64"] = by_image[bytes]
    if orjson := optional("orjson"):
        found["orjson, pydantic, pybase64"] = lambda body: _decode(adapter.validate_python(orjson.loads(body)).image)
    return found | {"json, pydantic, base64": stdlib}


def json_writers() -> Contenders:
    found: Contenders = {"pydantic-core (today)": to_json}
    if orjson := optional("orjson"):
        found["orjson"] = orjson.dumps
    if msgspec := optional("msgspec"):
        found["msgspec"] = msgspec.json.Encoder().encode
    return found | {"json": lambda content: json.dumps(content).encode()}


def _decode(text: str | None) -> bytes | None:
    return pybase64.b64decode(text, validate=True) if text is not None else None


def _struct_decoder(msgspec: Any, image: type) -> Callable[[bytes], Any]:
    """The keys of PredictRequest, without the rules that join several keys."""
    fields = [
        ("image", image | None, None),
        ("images", list[image] | None, None),  # type: ignore[valid-type]
        ("inputs", list[Any] | dict[str, Any] | None, None),
        ("model", str | None, None),
        ("top_k", int, 5),
        ("parameters", dict[str, Any] | None, None),
    ]
    struct = msgspec.defstruct("Request", fields, forbid_unknown_fields=True)
    decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
    return decode


if __name__ == "__main__":
    main()
