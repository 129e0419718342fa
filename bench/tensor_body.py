"""Workload (d): a tensor as the bytes of a body, and what taking it costs beside a server that only reads it.

`python -m bench.tensor_body` measures it alone, `bench.run` as part of every round. The model is the shipped INT8
network, made here to take float32 NCHW, so that its run is long and its body large.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from bench.limit import TENSORS, measure_limit
from bench.load import closed_loop
from bench.targets import Target, headway, running
from bench.workloads import PHOTO_LABEL, PHOTO_MODEL, Workload, photo

KEY = "d"
TITLE = "float32 tensor, 3 × 224 × 224 (602,112 bytes), as an octet-stream body"
NAME, VERSION = "efficientnet-lite0-float", "1.0.0"
IN_FLOATS = "efficientnet-lite0-fp32"
CONNECTIONS = 16
MOST_OVERHEAD = 1.3
EMPTY = "empty ASGI application"
LIMIT = "in-process limit"

Figures = dict[str, dict[str, Any]]


def measure_tensor_body(root: Path, seconds: float) -> dict[str, Figures]:
    """By target, the figures of (d). `overhead_ratio` is the CPU of a request to Headway above that of the run in
    process, as a multiple of what the empty application uses to read the same body."""
    models = root / "float-models"
    if not models.exists():
        write_float_model(models)
    pixels = tensor()
    case = Workload(KEY, TITLE, f"/predict?model={NAME}", "application/octet-stream", pixels.tobytes(), PHOTO_LABEL)
    figures = {
        "Headway": {KEY: _measure(headway(models), case, seconds, root / "log")},
        EMPTY: {KEY: _measure(empty_asgi(), replace(case, expects=""), seconds, root / "log")},
    }
    per_second, cpu_seconds = measure_limit(models / NAME / VERSION, TENSORS, {"image": pixels}, seconds)
    figures[LIMIT] = {KEY: {"per_second": per_second, "cpu_us": cpu_seconds * 1e6}}
    ours = figures["Headway"][KEY]
    ours["overhead_us"] = ours["cpu_us"] - cpu_seconds * 1e6
    ours["overhead_ratio"] = ours["overhead_us"] / figures[EMPTY][KEY]["cpu_us"]
    return figures


def tensor() -> np.ndarray:
    """The benchmark's photo as the float network takes it: (x - 127) / 128, NCHW."""
    pixels = load_servable(PHOTO_MODEL, threads=1).prepare("image", photo())["image"]
    return np.ascontiguousarray((pixels.astype("<f4") - 127).transpose(0, 3, 1, 2) / 128)


def write_float_model(models: Path, name: str = NAME) -> None:
    """The shipped INT8 network with a float32 NCHW input, which its first node quantises as the pixels were.

    As IN_FLOATS it is computed in float32 as a whole.
    """
    directory = models / name / VERSION
    directory.mkdir(parents=True)
    model = onnx.load(PHOTO_MODEL / "model.onnx")
    take_floats(model.graph)
    if name == IN_FLOATS:
        compute_in_floats(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, directory / "model.onnx")
    (directory / "labels.txt").write_bytes((PHOTO_MODEL / "labels.txt").read_bytes())
    shipped = read_manifest(PHOTO_MODEL)
    manifest = {
        "schema": 1,
        "name": name,
        "version": VERSION,
        "task": shipped.task,
        "runtime": "onnx",
        "files": {name: _entry(directory / name) for name in ("model.onnx", "labels.txt")},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 1000]}],
        "batch": {"axis": 0, "max_size": shipped.batch.max_size},
        "processing": {"type": "tensor"},
        "answer": {"type": "classification", "output": "probabilities", "activation": "none", "labels": "labels.txt"},
        "licence": shipped.licence,
    }
    (directory / "model.yaml").write_text(json.dumps(manifest))  # JSON is YAML


def take_floats(graph: onnx.GraphProto) -> None:
    """Quantise where the pixels were transposed: what follows is the same, bit for bit."""
    (first,) = [node for node in graph.node if "image" in node.input]
    if first.op_type != "Transpose":
        raise ValueError(
            "the shipped model no longer begins with the transposition of its pixels; see recipes/graph.py"
        )
    parameters = ["image", "pixel_scale", "pixel_zero_point"]
    first.CopyFrom(helper.make_node("QuantizeLinear", parameters, first.output, name=first.name))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224]))


def compute_in_floats(graph: onnx.GraphProto) -> None:
    """Weights as the values that they stand for; where activations were rounded they are only clipped, as rounding to
    8 bits does."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    taken: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
        if node.op_type == "QuantizeLinear":
            _, scale, zero = (stored.get(name) for name in node.input)
            ends = (np.array([0, 255]) - zero.item()) * scale.item()
            for end, value in zip(("low", "high"), ends, strict=True):
                graph.initializer.append(numpy_helper.from_array(np.float32(value), f"{node.name} {end}"))
            clipped = [node.input[0], f"{node.name} low", f"{node.name} high"]
            nodes.append(helper.make_node("Clip", clipped, node.output, name=node.name))
        elif node.op_type == "DequantizeLinear" and node.input[0] in stored:
            value, scale, zero = (stored[name] for name in node.input)
            axis = {one.name: one.i for one in node.attribute}.get("axis", 1)
            along = [-1 if place == axis else 1 for place in range(value.ndim)] if scale.ndim else []
            floats = (value.astype(np.float32) - zero.reshape(along)) * scale.reshape(along)
            graph.initializer.append(numpy_helper.from_array(floats.astype(np.float32), node.output[0]))
        elif node.op_type == "DequantizeLinear":
            taken[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def empty_asgi() -> Target:
    """uvicorn with what Headway runs on, and a process a core as well."""
    workers = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "uvicorn", "bench.servers.empty_asgi:app", "--workers", workers]
    command += ["--loop", "uvloop", "--http", "httptools", "--log-level", "warning", "--no-access-log"]
    return Target(EMPTY, lambda port: [*command, "--port", str(port)])


def tensor_page(figures: Mapping[str, Figures]) -> list[str]:
    """A section of the report, from the medians over the rounds; nothing where it was not measured."""
    if KEY not in figures["Headway"]:
        return []
    ours = figures["Headway"][KEY]
    lines = ["", f"## ({KEY}) {TITLE}", "", "| what | requests/s | CPU a request |", "| --- | ---: | ---: |"]
    for target in ("Headway", LIMIT, EMPTY):
        row = figures[target][KEY]
        lines.append(f"| {target} | {row['per_second']:.0f} | {row['cpu_us']:.0f} µs |")
    verdict = "reached" if ours["overhead_ratio"] <= MOST_OVERHEAD else "**missed**"
    return [
        *lines,
        "",
        f"Above the run in process a request costs {ours['overhead_us']:.0f} µs, {ours['overhead_ratio']:.2f} × what "
        f"the empty application uses to read the same body (asked: at most {MOST_OVERHEAD:g} ×, {verdict}).",
    ]


def _measure(target: Target, case: Workload, seconds: float, log: Path) -> dict[str, float]:
    with running(target, log) as server:
        closed_loop(server.url, case.path, case, CONNECTIONS, max(1.0, seconds / 4))
        before = server.cpu_seconds()
        result = closed_loop(server.url, case.path, case, CONNECTIONS, seconds)
        cpu_us = (server.cpu_seconds() - before) / result.requests * 1e6
    return {"per_second": result.per_second, "p99_ms": result.p99_ms, "errors": result.errors, "cpu_us": cpu_us}


def _entry(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure_tensor_body(Path(folder), options.seconds) for _ in range(options.rounds)]
    medians = {
        target: {KEY: {name: statistics.median(one[target][KEY][name] for one in rounds) for name in row[KEY]}}
        for target, row in rounds[0].items()
    }
    print("\n".join(tensor_page(medians)))


if __name__ == "__main__":
    main()
