"""Tiny real ONNX models with their model.yaml, whose answers can be worked out by hand.

kind          input                     answer
scores        x FP32 [n, 3]             classification: the input itself; labels low, middle, high
sum           x FP32 [n, 3]             regression: the sum of the row
colour        image UINT8 [n, 4, 4, 3]  classification: mean of each channel / 255; labels red, green, blue
mood          text BYTES [n]            classification: "good" is good to 0.75, "bad" to 0.25, all else to 0.5
two_inputs    a, b FP32 [n, 2]          tensor: total = a + b
echo          text BYTES [n]            tensor: echoed = the text twice, one after the other
double        x FP32 []                 tensor: twice = 2 x
transpose     x FP32 [2, 3]             tensor: turned [3, 2]; no batch axis
positive      x FP32 [n, 3]             tensor: is_positive BOOL [n, 3]
lookup        at INT64 [n]              tensor: found FP32 [n] = [10, 20, 30][at]; the run fails beyond 2
same          text BYTES [n]            tensor: copy = the text
one_row       x FP32 [1, 3]             regression: the sum of the row; the file takes one row a run
scaled        x FP32 [n, 2], by FP32 [] tensor: product = x times by, which all rows of a call share
centred       x FP32 [n, 3]             tensor: away = x minus the mean of each column: rows depend on each other
count         to INT64 []               tensor: steps INT64 [] = the number counted to, one by one: takes its time
cube          side INT64 []             tensor: steps INT64 [] = side³, in one node that cannot be ended: 3000 takes
                                        many seconds
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from app.tensors import NUMPY_DTYPES

SCORES_LABELS = ("low", "middle", "high")
COLOUR_LABELS = ("red", "green", "blue")
# For write_model: a golden request of `scores`, which makes the version verified.
GOLDEN: Mapping[str, Any] = {
    "files": {
        "golden.json": b'{"requests": [{"inputs": [[0, 0, 1]], "top": [{"index": 2, "confidence": 1}]}]}',
    },
    "golden": {"file": "golden.json", "tolerance": 0.01},
}
_TYPES = {
    name: TensorProto.STRING if name == "BYTES" else helper.np_dtype_to_tensor_dtype(dtype)
    for name, dtype in NUMPY_DTYPES.items()
}
_COLOUR_PROCESSING = {
    "type": "image", "resize": 4, "crop": 4, "filter": "bilinear",
    "colour": "RGB", "layout": "NHWC", "normalise": "in_graph",
}  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """An input named in `shared` has no rows."""

    task: str
    inputs: list[tuple[str, str, list[int]]]
    outputs: list[tuple[str, str, list[int]]]
    nodes: list[onnx.NodeProto]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    processing: Mapping[str, Any] = field(default_factory=lambda: {"type": "tensor"})
    batch: Mapping[str, Any] = field(default_factory=lambda: {"axis": 0})
    shared: tuple[str, ...] = ()


def _counting() -> list[onnx.NodeProto]:
    """A loop of as many steps as the input says; each adds one."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["total_in", "one"], ["total_out"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_in", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_out", TensorProto.INT64, []),
        ],
    )
    return [helper.make_node("Loop", ["to", "", "zero"], ["steps"], body=body)]


_KINDS = {
    "scores": _Kind(
        "tabular-classification",
        [("x", "FP32", [-1, 3])],
        [("scores", "FP32", [-1, 3])],
        [helper.make_node("Identity", ["x"], ["scores"])],
        labels=SCORES_LABELS,
    ),
    "sum": _Kind(
        "regression",
        [("x", "FP32", [-1, 3])],
        [("total", "FP32", [-1, 1])],
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)],
        {"axes": np.array([1], np.int64)},
    ),
    "colour": _Kind(
        "image-classification",
        [("image", "UINT8", [-1, 4, 4, 3])],
        [("scores", "FP32", [-1, 3])],
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Div", ["mean", "white"], ["scores"]),
        ],
        {"white": np.array(255, np.float32)},
        labels=COLOUR_LABELS,
        processing=_COLOUR_PROCESSING,
    ),
    "mood": _Kind(
        "text-classification",
        [("text", "BYTES", [-1])],
        [("scores", "FP32", [-1, 2])],
        [
            helper.make_node(
                "LabelEncoder",
                ["text"],
                ["flat"],
                domain="ai.onnx.ml",
                keys_strings=["good", "bad"],
                values_floats=[0.75, 0.25],
                default_float=0.5,
            ),
            helper.make_node("Reshape", ["flat", "column"], ["good"]),
            helper.make_node("Sub", ["one", "good"], ["bad"]),
            helper.make_node("Concat", ["bad", "good"], ["scores"], axis=1),
        ],
        {"column": np.array([-1, 1], np.int64), "one": np.array(1, np.float32)},
        labels=("bad", "good"),
        processing={"type": "text", "max_characters": 20},
    ),
    "two_inputs": _Kind(
        "tensor",
        [("a", "FP32", [-1, 2]), ("b", "FP32", [-1, 2])],
        [("total", "FP32", [-1, 2])],
        [helper.make_node("Add", ["a", "b"], ["total"])],
    ),
    "echo": _Kind(
        "tensor",
        [("text", "BYTES", [-1])],
        [("echoed", "BYTES", [-1])],
        [helper.make_node("Concat", ["text", "text"], ["echoed"], axis=0)],
    ),
    "double": _Kind(
        "tensor",
        [("x", "FP32", [])],
        [("twice", "FP32", [])],
        [helper.make_node("Mul", ["x", "two"], ["twice"])],
        {"two": np.array(2, np.float32)},
        batch={"axis": None},
    ),
    "transpose": _Kind(
        "tensor",
        [("x", "FP32", [2, 3])],
        [("turned", "FP32", [3, 2])],
        [helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0])],
        batch={"axis": None},
    ),
    "positive": _Kind(
        "tensor",
        [("x", "FP32", [-1, 3])],
        [("is_positive", "BOOL", [-1, 3])],
        [helper.make_node("Greater", ["x", "zero"], ["is_positive"])],
        {"zero": np.array(0, np.float32)},
    ),
    "lookup": _Kind(
        "tensor",
        [("at", "INT64", [-1])],
        [("found", "FP32", [-1])],
        [helper.make_node("Gather", ["table", "at"], ["found"])],
        {"table": np.array([10, 20, 30], np.float32)},
    ),
    "same": _Kind(
        "tensor",
        [("text", "BYTES", [-1])],
        [("copy", "BYTES", [-1])],
        [helper.make_node("Identity", ["text"], ["copy"])],
    ),
    "one_row": _Kind(
        "regression",
        [("x", "FP32", [1, 3])],
        [("total", "FP32", [1, 1])],
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)],
        {"axes": np.array([1], np.int64)},
    ),
    "scaled": _Kind(
        "tensor",
        [("x", "FP32", [-1, 2]), ("by", "FP32", [])],
        [("product", "FP32", [-1, 2])],
        [helper.make_node("Mul", ["x", "by"], ["product"])],
        shared=("by",),
    ),
    "centred": _Kind(
        "tensor",
        [("x", "FP32", [-1, 3])],
        [("away", "FP32", [-1, 3])],
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["away"]),
        ],
    ),
    "count": _Kind(
        "tensor",
        [("to", "INT64", [])],
        [("steps", "INT64", [])],
        _counting(),
        {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)},
        batch={"axis": None},
    ),
    "cube": _Kind(
        "tensor",
        [("side", "INT64", [])],
        [("steps", "INT64", [])],
        [
            helper.make_node("Expand", ["side", "two"], ["size"]),
            helper.make_node("Expand", ["one", "size"], ["square"]),
            helper.make_node("MatMul", ["square", "square"], ["product"]),
            helper.make_node("ReduceSum", ["product"], ["steps"], keepdims=0),
        ],
        {"two": np.array([2]), "one": np.array(1)},
        batch={"axis": None},
    ),
}


def onnx_bytes(kind: str) -> bytes:
    """The ONNX file of a kind."""
    made = _KINDS[kind]
    return onnx_file(made.nodes, made.inputs, made.outputs, made.constants)


def onnx_file(
    nodes: list[onnx.NodeProto],
    inputs: Sequence[tuple[str, str, list[Any]]],
    outputs: Sequence[tuple[str, str, list[Any]]],
    constants: Mapping[str, np.ndarray] | None = None,
) -> bytes:
    """An ONNX file of these nodes; inputs and outputs are (name, datatype, shape), where a free size is its name or,
    without one, -1."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_value(*entry) for entry in inputs],
        [_value(*entry) for entry in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=_opsets(nodes))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _opsets(nodes: Sequence[onnx.NodeProto]) -> list[onnx.OperatorSetIdProto]:
    others = {node.domain for node in nodes if node.domain}
    return [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 3) for domain in sorted(others))]


def write_model(
    root: Path,
    name: str = "scores",
    version: str = "1.0.0",
    *,
    kind: str = "scores",
    files: Mapping[str, bytes] | None = None,
    **manifest_overrides: Any,
) -> Path:
    """Write `root`/`name`/`version` and return it.

    `files` adds files, or replaces model.onnx and labels.txt; the manifest lists them all with their digests. An
    override that is a mapping is laid over the section it names, None takes the section out, anything else replaces it.
    """
    made = _KINDS[kind]
    contents = {"model.onnx": onnx_bytes(kind)}
    if made.labels:
        contents["labels.txt"] = "".join(f"{label}\n" for label in made.labels).encode()
    contents |= files or {}
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": name,
        "version": version,
        "task": made.task,
        "runtime": "onnx",
        "files": {path: file_entry(data) for path, data in contents.items()},
        "inputs": [_entry(*entry) | ({"batched": False} if entry[0] in made.shared else {}) for entry in made.inputs],
        "outputs": [_entry(*entry) for entry in made.outputs],
        "batch": dict(made.batch),
        "processing": dict(made.processing),
        "answer": _answer(made),
        "licence": "CC0-1.0",
    }
    directory = root / name / version
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    write_yaml(directory / "model.yaml", _overlaid(manifest, manifest_overrides))
    return directory


def write_composition(
    root: Path,
    name: str,
    type: str,
    steps: Sequence[str | Mapping[str, Any]],
    version: str = "1.0.0",
    *,
    kind: str = "scores",
    labels: Sequence[str] | None = None,
    **manifest_overrides: Any,
) -> Path:
    """Write a composition of `steps` (references, or whole entries) that takes and gives what `kind` does."""
    entries = [{"model": step} if isinstance(step, str) else dict(step) for step in steps]
    files = {"labels.txt": "".join(f"{label}\n" for label in labels).encode()} if labels is not None else {}
    directory = write_model(
        root,
        name,
        version,
        kind=kind,
        files=files,
        runtime="composition",
        composition={"type": type, "steps": entries},
        **{"batch": None} | manifest_overrides,
    )
    path = directory / "model.yaml"
    manifest = yaml.safe_load(path.read_text())
    del manifest["files"]["model.onnx"]
    (directory / "model.onnx").unlink()
    write_yaml(path, manifest)
    return directory


def write_release(root: Path, name: str, stable: str, **sections: Any) -> Path:
    """Write `root`/`name`/release.yaml: `stable`, and the sections given (aliases are added to it)."""
    aliases = {"stable": {"version": stable}, **sections.pop("aliases", {})}
    path = root / name / "release.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_yaml(path, {"schema": 1, "aliases": aliases, **sections})


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def edit_manifest(directory: Path, **overrides: Any) -> None:
    """Lay overrides over a model.yaml that was written already, as `write_model` does."""
    path = directory / "model.yaml"
    write_yaml(path, _overlaid(yaml.safe_load(path.read_text()), overrides))


def file_entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _overlaid(manifest: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(manifest)
    for key, value in overrides.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = {**result[key], **value}
        else:
            result[key] = value
    return result


def _answer(made: _Kind) -> dict[str, Any]:
    output = made.outputs[0][0]
    if made.labels:
        return {"type": "classification", "output": output, "activation": "none", "labels": "labels.txt"}
    return {"type": "regression", "output": output} if made.task == "regression" else {"type": "tensor"}


def _entry(name: str, datatype: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape}


def _value(name: str, datatype: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _TYPES[datatype], [None if size == -1 else size for size in shape])
