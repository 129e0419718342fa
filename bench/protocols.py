"""`python -m bench.protocols`: large tensors through each protocol, and JSON against binary by size.

One run, interleaved rounds, the closed loop of wrk for HTTP and h2load's for gRPC (both compiled). Every answer must be
200, as the server itself counted. Writes docs/benchmarks/protocols.md: medians over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper

from app.api.open_inference_grpc.stubs.open_inference_pb2 import ModelInferRequest
from bench.limit import TENSORS, measure_limit
from bench.load import closed_loop, require
from bench.report import FOLDER
from bench.targets import Running, headway, running
from bench.tensor_body import IN_FLOATS, NAME, VERSION, tensor, write_float_model
from bench.workloads import PHOTO_LABEL, Workload

CONNECTIONS = 16
LEAST = 0.7
SIZES_KB = (1, 10, 100, 1000)
_COLUMNS = 256  # of FP32: 1 kB a row, as binary
_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Way:
    """`measure(seconds)` gives requests a second; all through one server, whose CPU is counted beside."""

    name: str
    measure: Callable[[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        for name in _LARGE:
            write_float_model(models, name)
        _write_sums(models)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        target = headway(models, HEADWAY_ACCESS_LOG_SAMPLE="0", HEADWAY_GRPC_PORT=str(port))
        with running(target, Path(folder, "log")) as server:
            tables = {
                name: _measure(server, _large_ways(server.url, port, Path(folder), name), options, models / name)
                for name in _LARGE
            }
            tables[_SIZES] = _measure(server, _sized_ways(server.url), options)
    page = _page(tables, options)
    (FOLDER / "protocols.md").write_text(page, encoding="utf-8")
    print(page)


_LARGE = {
    IN_FLOATS: "A float tensor of 3 × 224 × 224 (602,112 bytes), EfficientNet-Lite0 in floats",
    NAME: "The same, EfficientNet-Lite0 in 8 bits",
}
_SIZES = "A tensor of FP32, its rows summed"
_LIMIT = "in-process limit"
Figures = dict[str, tuple[float, float]]  # requests a second, CPU µs of the server for each


def _measure(server: Running, ways: list[Way], options: argparse.Namespace, limited: Path | None = None) -> Figures:
    """`limited`: the model whose in-process limit is measured in each round, too."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(options.rounds):
        if limited is not None:
            limit, cpu = measure_limit(limited / VERSION, TENSORS, {"image": tensor()}, options.seconds)
            found[_LIMIT].append((limit, cpu * 1e6))
            print(f"round {number + 1}: {_LIMIT}: {limit:.0f}/s", flush=True)
        for way in ways if number % 2 == 0 else ways[::-1]:
            answered, cpu = _count(server.url), server.cpu_seconds()
            per_second = way.measure(options.seconds)
            answered = _count(server.url) - answered
            found[way.name].append((per_second, (server.cpu_seconds() - cpu) / answered * 1e6))
            print(f"round {number + 1}: {way.name}: {per_second:.0f}/s", flush=True)
    return {
        name: (statistics.median(one for one, _ in rows), statistics.median(cpu for _, cpu in rows))
        for name, rows in found.items()
    }


def _count(url: str) -> int:
    """Requests that were answered with 200, of all protocols; raises where one failed."""
    counts = dict[str, float]()
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("headway_requests_total{"):
            code = re.search(r'code="(\d+)"', line)
            assert code is not None
            counts[code[1]] = counts.get(code[1], 0) + float(line.split()[-1])
    if set(counts) - {"200", "499"}:  # the generator leaves in the middle of a request
        raise RuntimeError(f"not every request was answered with 200: {counts}")
    return int(counts.get("200", 0))


def _large_ways(url: str, grpc_port: int, folder: Path, model: str) -> list[Way]:
    pixels = tensor()
    octets = Workload("", "", f"/predict?model={model}", "application/octet-stream", pixels.tobytes(), PHOTO_LABEL)
    head, binary = _binary({"image": pixels}, is_binary_answer=True)
    rest = Workload("", "", f"/v2/models/{model}/infer", "application/octet-stream", binary, "", {_LENGTH: str(head)})
    message = ModelInferRequest(model_name=model)
    message.inputs.add(name="image", datatype="FP32", shape=pixels.shape)
    message.raw_input_contents.append(pixels.tobytes())
    data = message.SerializeToString()
    message_file = folder / model
    message_file.write_bytes(struct.pack(">BI", 0, len(data)) + data)
    return [
        Way("POST /predict, the tensor as the body", lambda seconds: _wrk(url, octets, seconds)),
        Way("V2 over HTTP, binary", lambda seconds: _wrk(url, rest, seconds)),
        Way("V2 over gRPC", lambda seconds: _h2load(grpc_port, message_file, seconds)),
    ]


def _sized_ways(url: str) -> list[Way]:
    ways = []
    for size in SIZES_KB:
        rows = np.random.default_rng(size).normal(size=(size, _COLUMNS)).astype(np.float32)
        head, binary = _binary({"x": rows}, is_binary_answer=True)
        path = "/v2/models/sums/infer"
        sent = {"name": "x", "datatype": "FP32", "shape": list(rows.shape), "data": rows.reshape(-1).tolist()}
        plain = json.dumps({"inputs": [sent]}).encode()
        for name, work in (
            (f"{size:,} kB, binary", Workload("", "", path, "", binary, "", {_LENGTH: str(head)})),
            (f"{size:,} kB, JSON ({len(plain) / 1000:,.0f} kB)", Workload("", "", path, "application/json", plain, "")),
        ):
            ways.append(Way(name, lambda seconds, work=work: _wrk(url, work, seconds)))  # type: ignore[misc]
    return ways


def _binary(arrays: dict[str, np.ndarray], *, is_binary_answer: bool) -> tuple[int, bytes]:
    """A request with binary tensors, and the length of its JSON."""
    inputs = [
        {
            "name": name,
            "datatype": "FP32",
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": is_binary_answer}}).encode()
    return len(head), head + b"".join(array.tobytes() for array in arrays.values())


def _wrk(url: str, work: Workload, seconds: float) -> float:
    result = closed_loop(url, work.path, work, CONNECTIONS, seconds)
    if result.errors:
        raise RuntimeError(f"{result.errors} requests failed")
    return result.per_second


def _h2load(port: int, message: Path, seconds: float) -> float:
    command = [
        require("h2load", "nghttp2-client"),
        f"--clients={CONNECTIONS}",
        "--max-concurrent-streams=1",
        f"--duration={int(seconds)}",
        "--warm-up-time=1",
        f"--data={message}",
        "--header=content-type: application/grpc",
        "--header=te: trailers",
        f"http://127.0.0.1:{port}/inference.GRPCInferenceService/ModelInfer",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", printed)
    if found is None:
        raise RuntimeError(f"h2load printed no result:\n{printed}")
    return float(found[1])


def _write_sums(models: Path) -> None:
    """FP32 rows to their sums: a model that costs next to nothing."""
    directory = models / "sums/1.0.0"
    directory.mkdir(parents=True)
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=1)],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", _COLUMNS])],
        [helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), directory / "model.onnx"
    )
    data = (directory / "model.onnx").read_bytes()
    manifest = {
        "schema": 1,
        "name": "sums",
        "version": "1.0.0",
        "task": "tensor",
        "runtime": "onnx",
        "files": {"model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, _COLUMNS]}],
        "outputs": [{"name": "sums", "datatype": "FP32", "shape": [-1, 1]}],
        "batch": {"axis": 0, "max_size": max(SIZES_KB)},
        "processing": {"type": "tensor"},
        "answer": {"type": "tensor"},
        "licence": "Apache-2.0",
    }
    (directory / "model.yaml").write_text(json.dumps(manifest))  # JSON is YAML


def _page(tables: dict[str, Figures], options: argparse.Namespace) -> str:
    lines = [
        "# Protocols",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, {len(os.sched_getaffinity(0))} cores. Medians of "
        f"{options.rounds} interleaved rounds of {options.seconds:g} s, {CONNECTIONS} connections, wrk (HTTP) and "
        "h2load (gRPC) on the same cores, all through one server. Anew: `python -m bench.protocols`.",
    ]
    for model, title in _LARGE.items():
        limit, limit_cpu = tables[model][_LIMIT]
        lines += ["", f"## {title}", ""]
        lines += [f"| | requests/s | of the limit (asked: {LEAST}) | CPU of the server | of the limit's CPU |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        for name, (per_second, cpu) in tables[model].items():
            lines.append(
                f"| {name} | {per_second:.0f} | {per_second / limit:.2f} | {cpu:.0f} µs | {cpu / limit_cpu:.2f} × |"
            )
    lines += ["", f"## {_SIZES}", "", "| | requests/s | CPU of the server |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {per_second:.0f} | {cpu:.0f} µs |" for name, (per_second, cpu) in tables[_SIZES].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
