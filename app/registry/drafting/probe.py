"""What a bare model file shows of itself when it is opened and run on trial rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from app.errors import RunFailed
from app.runtimes.base import Runtime
from app.runtimes.onnx import OnnxRuntime
from app.runtimes.tflite import TfliteRuntime
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

_TOLERANCE = 1e-3


def open_model_file(runtime: str, path: Path, takes_floats: bool) -> Runtime:
    """Quantised outputs as the values that they stand for, and so the inputs where it `takes_floats`."""
    if runtime == "onnx":
        return OnnxRuntime(path, 1)
    raw = TfliteRuntime(path, 1)
    inputs, outputs = ([spec.name for spec in specs] for specs in (raw.inputs, raw.outputs))
    raw.close()
    return TfliteRuntime(path, 1, inputs if takes_floats else (), outputs)


def try_one(runtime: Runtime) -> Tensors | None:
    """The outputs for some trial rows; None where the model takes neither random values nor zeros."""
    random = np.random.default_rng(0)
    for is_random in (True, False):
        tensors = {spec.name: _values(spec, random if is_random else None) for spec in runtime.inputs}
        try:
            return runtime.run(tensors)
        except RunFailed:
            continue
    return None


def _values(spec: TensorSpec, random: np.random.Generator | None) -> Array:
    sizes = [1 if size == -1 else size for size in spec.shape]
    if spec.datatype == "BYTES":
        return np.full(sizes, b"a" if random is not None else b"", dtype=object)
    dtype = NUMPY_DTYPES[spec.datatype]
    if random is None:
        return np.zeros(sizes, dtype)
    values = random.normal(size=sizes) * 3 if dtype.kind == "f" else random.integers(0, 2, size=sizes)
    return np.asarray(values).astype(dtype)


def photo_form(inputs: tuple[TensorSpec, ...]) -> tuple[str, int | None, str | None] | None:
    """(layout, side, colour) of the only input where it has the form of a photo; None for what the form leaves open."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].datatype == "BYTES":
        return None
    _, *sizes = inputs[0].shape
    for layout, (channels, *sides) in (("NHWC", (sizes[2], *sizes[:2])), ("NCHW", tuple(sizes))):
        if channels in (1, 3):
            side = sides[0] if sides[0] == sides[1] != -1 else None
            return layout, side, "GRAY" if channels == 1 else None
    return None


def last_size(spec: TensorSpec, sample: Tensors | None) -> int | None:
    if spec.datatype in ("BYTES", "BOOL") or not spec.shape:
        return None
    return sample[spec.name].shape[-1] if spec.shape[-1] == -1 and sample is not None else spec.shape[-1]


def are_probable(scores: Array) -> bool:
    return bool(np.all(scores >= -_TOLERANCE) and np.all(scores <= 1 + _TOLERANCE))


def are_shares(scores: Array) -> bool:
    return are_probable(scores) and bool(np.allclose(scores.sum(axis=-1), 1, atol=_TOLERANCE))
