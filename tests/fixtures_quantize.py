"""A version of the digits with a layer that does not bear few bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import yaml
from onnx import numpy_helper

from app.registry.drafting.draft import write_manifest
from tests.running import ROOT

# Pixels 0 and 32 are white in every picture, so that their weights change no answer.
_WHITE = (0, 32)


def write_brittle(root: Path, version: str = "1.1.0") -> Path:
    """digits 1.1.0 with large weights in each block of 32 of its first layer: in 4 bits its others become 0."""
    directory = root / "digits" / version
    shutil.copytree(ROOT / "models" / "digits" / "1.1.0", directory)
    model = onnx.load(directory / "model.onnx")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "coefficient")
    weights = numpy_helper.to_array(tensor).copy()
    weights[list(_WHITE)] = 100.0
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, directory / "model.onnx")
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    write_manifest(directory, content | {"version": version})
    return directory
