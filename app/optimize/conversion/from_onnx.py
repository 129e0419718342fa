"""ONNX as a source: the same network in one file, in operators of a set that all our commands take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx import version_converter

from app.errors import InvalidContent, RunFailed, RuntimeLoadError
from app.optimize.conversion.source import Given, Source, Target, versions_of
from app.optimize.networks import onnx_graph as graphs
from app.optimize.networks.torch_export import OPSET
from app.runtimes.onnx import OnnxRuntime
from app.tensors import Tensors


class OnnxSource(Source):
    kind = "ONNX"

    def __init__(self, path: Path) -> None:
        """Raises InvalidContent where ONNX Runtime cannot open it; an operator that it lacks is named."""
        self._path = path
        try:
            self._runtime = OnnxRuntime(path, 1)
        except RuntimeLoadError as exc:
            raise InvalidContent(_unknown_operator(path) or str(exc)) from exc
        self.inputs = self._runtime.inputs

    def run(self, tensors: Tensors) -> Tensors:
        try:
            return self._runtime.run(tensors)
        except RunFailed as exc:
            raise InvalidContent(f"the source fails on samples ({exc}); name such as it takes with --samples") from exc

    def convert(self, target: Target, path: Path) -> Mapping[str, str]:  # noqa: ARG002
        model = onnx.load(self._path)
        if model.ByteSize() > graphs.MAX_BYTES:
            raise InvalidContent(f"{self._path.name} has {model.ByteSize() / 1e9:.1f} GB; one file of ONNX holds 2 GB")
        name = model.graph.name or "network"
        found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
        if found < OPSET:
            try:
                model = version_converter.convert_version(model, OPSET)
            except Exception as exc:  # the converter raises RuntimeError and others for operators that it does not know
                raise InvalidContent(
                    f"{self._path.name} cannot be brought from operator set {found} to {OPSET}: {exc}; add it as it "
                    "is, with headway models add"
                ) from exc
        path.write_bytes(graphs.to_bytes(model, name))
        return versions_of("onnx")


def open_onnx(path: Path, given: Given) -> OnnxSource:  # noqa: ARG001
    """Raises InvalidContent."""
    return OnnxSource(path)


def _unknown_operator(path: Path) -> str | None:
    """The first node of an operator that ONNX Runtime does not have."""
    try:
        nodes = onnx.load(path, load_external_data=False).graph.node
    except Exception:  # protobuf's own; the caller has said that it cannot be opened
        return None
    known = {(schema.domain, schema.name) for schema in ort.capi.onnxruntime_pybind11_state.get_all_operator_schema()}
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) not in known:
            full = f"{domain}.{node.op_type}" if domain else node.op_type
            place = node.name or f"that makes {', '.join(node.output)}"
            return f"operator {full} in layer {place} is not known to ONNX Runtime"
    return None
