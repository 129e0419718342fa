"""TensorFlow as a source: a SavedModel's directory, opened and translated in an environment of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidContent
from app.optimize.conversion.environment import TENSORFLOW, run_converter
from app.optimize.conversion.source import Given, Source, Target, datatype_of
from app.optimize.networks import onnx_graph as graphs
from app.optimize.networks.torch_export import NoTranslation
from app.tensors import Array, Tensors, TensorSpec, object_array

_GRAPH_NAME = "network"


class SavedModelSource(Source):
    """Its signature `serving_default`. Each call starts the other Python: a few seconds."""

    kind = "TensorFlow SavedModel"

    def __init__(self, directory: Path, python: Path | None) -> None:
        """Raises InvalidContent."""
        self._directory = directory
        self._python = python
        self.inputs = tuple(_spec(entry) for entry in self._ask("describe")["inputs"])

    def run(self, tensors: Tensors) -> Tensors:
        with tempfile.TemporaryDirectory(prefix="headway-convert-") as folder:
            given, answers = Path(folder, "tensors.npz"), Path(folder, "answers.npz")
            np.savez(given, allow_pickle=False, **{name: _plain(array) for name, array in tensors.items()})
            self._ask("run", tensors=str(given), answers=str(answers))
            with np.load(answers) as found:
                return {name: _own(found[name]) for name in found.files}

    def convert(self, target: Target, path: Path) -> Mapping[str, str]:
        import onnx

        try:
            answer = self._ask(target, target=str(path))
        except NoTranslation as exc:
            kind = "ONNX" if target == "onnx" else "TFLite"
            raise InvalidContent(f"operator {exc.operator} in layer {exc.place} has no {kind} translation") from exc
        if target == "onnx":
            path.write_bytes(graphs.to_bytes(onnx.load(path), _GRAPH_NAME))
        libraries: Mapping[str, str] = answer["libraries"]
        return libraries

    def _ask(self, do: str, **more: str) -> dict[str, Any]:
        return run_converter(TENSORFLOW, self._python, {"source": str(self._directory.resolve()), "do": do, **more})


def open_saved_model(directory: Path, given: Given) -> SavedModelSource:
    """Raises InvalidContent."""
    return SavedModelSource(directory, given.converter_python)


def _spec(entry: dict[str, Any]) -> TensorSpec:
    name = entry["name"]
    if entry["shape"] is None:
        raise InvalidContent(f"input {name!r} has no rank; save the SavedModel with a signature that says its sizes")
    datatype = "BYTES" if entry["dtype"] == "object" else datatype_of(entry["dtype"], f"input {name!r}")
    return TensorSpec(name, datatype, tuple(entry["shape"]))


def _plain(array: Array) -> Array:
    return array.astype("S") if array.dtype == object else array


def _own(array: Array) -> Array:
    return object_array(array.ravel().tolist(), array.shape) if array.dtype.kind == "S" else array
