"""model.yaml: what is taken, and what is refused with the field and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.errors import RegistryError
from app.registry.manifest import read_manifest
from app.tensors import TensorSpec
from tests.fixtures_models import edit_manifest, write_model


def test_read_manifest(root: Path) -> None:
    directory = write_model(root, "sums", "1.10.0", kind="sum", serial=2, answer={"unit": "kg"})
    manifest = read_manifest(directory)
    assert (manifest.name, manifest.version, manifest.serial) == ("sums", "1.10.0", 2)
    assert manifest.input_specs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert manifest.output_specs == (TensorSpec("total", "FP32", (-1, 1)),)
    assert (manifest.model_file, manifest.content_kind, manifest.answer.type) == ("model.onnx", "tensor", "regression")
    assert (manifest.batch.axis, manifest.batch.max_size) == (0, 1)


def test_read_manifest_everything_written(root: Path) -> None:
    directory = write_model(
        root,
        kind="colour",
        name="colours",
        batch={"axis": 0, "max_size": 8, "max_wait_ms": 1.5},
        limits={"queue": 10, "deadline_ms": 500},
        processing={"normalise": {"mean": [1, 2, 3], "scale": [4, 5, 6]}},
        training={"algorithm": "none", "data": "none", "parameters": {"alpha": 0.1}},
        evaluation=[{"data": "a", "n": 3, "top1": 0.5, "latency_ms": {"p50": 1.0}, "date": "2026-11-21"}],
        parent={"version": "0.9.0", "how": "by hand"},
    )
    manifest = read_manifest(directory)
    assert manifest.batch.max_wait_ms == 1.5
    assert manifest.limits.deadline_ms == 500
    assert manifest.evaluation[0].top1 == 0.5
    assert manifest.training is not None
    assert manifest.training.parameters == {"alpha": "0.1"}


def test_read_manifest_integer_version(root: Path) -> None:
    assert read_manifest(write_model(root, version="3")).version == "3"


def test_read_manifest_without_batch_axis(root: Path) -> None:
    assert read_manifest(write_model(root, kind="transpose")).batch.axis is None


ENTRY = {"sha256": "0" * 64, "bytes": 1}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "newer schema": ({"schema": 2}, "schema: this Headway reads schema 1; a file of schema 2 needs a newer one"),
    "unknown key": ({"runtme": "onnx"}, "runtme: unknown key; did you mean 'runtime'?"),
    "unknown key in a section": ({"limits": {"que": 3}}, "limits.que: unknown key; did you mean 'queue'?"),
    "no licence": ({"licence": None}, "licence: is missing; add it"),
    "no inputs": ({"inputs": []}, "inputs: "),
    "another runtime": ({"runtime": "torch"}, "(it says 'torch')"),
    "another task": ({"task": "guessing"}, "task: "),
    "datatype": ({"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [-1, 3]}]}, "inputs[0].datatype: "),
    "size": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-2]}]}, "inputs[0].shape[0]: "),
    "digest": ({"files": {"model.onnx": {"sha256": "abc", "bytes": 1}}}, "files.model.onnx.sha256: "),
    "file outside": ({"files": {"../secret": ENTRY}}, "files: '../secret' must be a relative path inside"),
    "absolute file": ({"files": {"/etc/passwd": ENTRY}}, "files: '/etc/passwd' must be a relative path inside"),
    "odd path": ({"files": {"a//b": ENTRY}}, "files: 'a//b' must be a relative path"),
    "labels not listed": ({"answer": {"labels": "names.txt"}}, "files lacks 'names.txt', which this version reads"),
    "golden not listed": ({"golden": {"file": "golden.json", "tolerance": 0.1}}, "files lacks 'golden.json'"),
    "unknown output": ({"answer": {"output": "y"}}, "answer.output is 'y', but the outputs are scores"),
    "activation": ({"answer": {"activation": "relu"}}, "answer.activation: input should be"),
    "no such answer": ({"answer": {"type": "oracle"}}, "answer: "),
    "processing": ({"processing": {"type": "image"}}, "processing.resize: is missing; add it"),
    "batch axis": ({"batch": {"axis": 1}}, "batch.axis: "),
    "queue": ({"limits": {"queue": 0}}, "limits.queue: "),
}


@pytest.mark.parametrize("name", BAD)
def test_read_manifest_refuses(root: Path, name: str) -> None:
    overrides, message = BAD[name]
    directory = write_model(root)
    edit_manifest(directory, **overrides)
    with pytest.raises(RegistryError) as caught:
        read_manifest(directory)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{directory / 'model.yaml'}: ")


def test_read_manifest_two_inputs_for_an_image(root: Path) -> None:
    processing = {
        "type": "image", "resize": 4, "crop": 4, "filter": "bilinear",
        "colour": "RGB", "layout": "NHWC", "normalise": "in_graph",
    }  # fmt: skip
    directory = write_model(root, kind="two_inputs", processing=processing)
    with pytest.raises(RegistryError, match="exactly one input"):
        read_manifest(directory)


@pytest.mark.parametrize(("field", "value"), [("name", "other"), ("version", "2.0.0")])
def test_read_manifest_in_another_directory(root: Path, field: str, value: str) -> None:
    directory = write_model(root)
    edit_manifest(directory, **{field: value})
    with pytest.raises(RegistryError, match=f"{field} is '{value}', but the directory is"):
        read_manifest(directory)
