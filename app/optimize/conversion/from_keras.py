"""Keras as a source: .keras and .h5, opened with the PyTorch backend and traced as a PyTorch module.

So one library translates both, and TensorFlow is not needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import InvalidContent
from app.optimize.conversion.from_torch import program_to_tflite
from app.optimize.conversion.samples import random_samples
from app.optimize.conversion.source import Given, Source, Target, datatype_of, versions_of
from app.optimize.networks import torch_export
from app.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    import torch

_BACKEND = "torch"


class KerasSource(Source):
    kind = "Keras"

    def __init__(self, model: Any, given: Given) -> None:
        """Raises InvalidContent where the model does not say what it takes."""
        self._model = model
        self.inputs = _specs(model)
        self._outputs = given.output_names or _output_names(model)
        if len(self._outputs) != len(model.outputs):
            raise InvalidContent(
                f"--output-name: the network has {len(model.outputs)} outputs, and {len(self._outputs)} names are given"
            )
        self._python = given.converter_python

    def run(self, tensors: Tensors) -> Tensors:
        import torch

        try:
            with torch_export.quietly(), torch.no_grad():
                found = _flat_call(self._model, [tensors[spec.name] for spec in self.inputs])
        except Exception as exc:  # Keras and its layers raise any
            raise InvalidContent(
                f"the source fails on samples ({type(exc).__name__}: {exc}); name such as it takes with --samples"
            ) from exc
        return {name: _to_numpy(value) for name, value in zip(self._outputs, found, strict=True)}

    def convert(self, target: Target, path: Path) -> Mapping[str, str]:
        names = [spec.name for spec in self.inputs]
        try:
            program = _trace(self._model, self.inputs)
            if target == "tflite":
                libraries = program_to_tflite(program, self.inputs, self._outputs, path, self._python)
            else:
                path.write_bytes(
                    torch_export.program_to_onnx(program, input_names=names, output_names=list(self._outputs))
                )
                libraries = versions_of("torch", "onnxscript")
        except InvalidContent as exc:
            missing = exc.__cause__
            layer = self._failing_layer(missing) if isinstance(missing, torch_export.NoTranslation) else None
            raise InvalidContent(f"{exc} (Keras layer {layer})" if layer else str(exc)) from exc
        return {**versions_of("keras"), **libraries}

    def _failing_layer(self, missing: torch_export.NoTranslation) -> str | None:
        """Keras leaves no mark in a trace, so each layer is traced alone until one has the operator."""
        for layer in self._model._flatten_layers(include_self=False):
            try:
                program = _trace(layer, _specs(layer))
                if torch_export.find_node(program, missing) is not None:
                    return f"{layer.name} ({type(layer).__name__})"
            except (AttributeError, ValueError, InvalidContent):
                continue  # a layer that is called twice, or by another one, has no inputs of its own
        return None


def open_keras(path: Path, given: Given) -> KerasSource:
    """Raises InvalidContent; a Lambda layer is Python's own code, and is opened only where that is allowed."""
    keras = _import_keras()
    try:
        with torch_export.quietly():
            model = keras.saving.load_model(path, compile=False, safe_mode=not given.may_unpickle)
    except Exception as exc:  # a file that is damaged fails in many ways
        text = str(exc)
        if isinstance(exc, ImportError):
            raise InvalidContent(f"{path}: {_first_line(text)} pip install 'headway[training]'") from exc
        if "safe_mode" in text or "unsafe_deserialization" in text:
            raise InvalidContent(
                f"{path}: has a Lambda layer, whose code is kept as a pickle and runs when it is opened; write it as "
                "a layer, or say --trust-pickle if you know who made it"
            ) from exc
        if "Could not locate" in text:
            raise InvalidContent(
                f"{path}: {text.strip().splitlines()[0]} Layers of your own are not known here: save it as a "
                "SavedModel, with model.export(DIRECTORY)"
            ) from exc
        raise InvalidContent(f"{path}: Keras cannot open it ({type(exc).__name__}: {_first_line(text)})") from exc
    if not getattr(model, "inputs", None):
        raise InvalidContent(
            f"{path}: is no Sequential or functional model, so it does not say what it takes; save it as a SavedModel, "
            "with model.export(DIRECTORY)"
        )
    return KerasSource(model, given)


def _import_keras() -> Any:
    loaded = sys.modules.get("keras")
    os.environ["KERAS_BACKEND"] = _BACKEND
    try:
        with torch_export.quietly():
            import keras
    except ImportError as exc:
        raise InvalidContent(f"Keras or its backend is missing ({exc}): pip install 'headway[training]'") from exc
    if loaded is not None and keras.config.backend() != _BACKEND:
        raise InvalidContent(f"Keras runs with {keras.config.backend()} in this process; it must be {_BACKEND}")
    return keras


def _trace(model: Any, specs: tuple[TensorSpec, ...]) -> torch.export.ExportedProgram:
    import torch

    class Flat(torch.nn.Module):
        """Tensors in the order of `specs` to a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            return tuple(_flat_call(self.network, list(tensors)))

    (run, *_) = random_samples(specs, 0).runs
    return torch_export.export_program(Flat(), [run[spec.name] for spec in specs])


def _flat_call(model: Any, tensors: list[Any]) -> list[Any]:
    import keras

    given = keras.tree.pack_sequence_as(_structure(model, "input"), tensors)
    return list(keras.tree.flatten(model(given, training=False) if _trains(model) else model(given)))


def _structure(layer: Any, what: str) -> Any:
    """How inputs or outputs are nested. A Sequential that was loaded has only the flat list."""
    nested = getattr(layer, f"_{what}s_struct", None)
    if nested is not None:
        return nested
    flat = getattr(layer, f"{what}s", None)
    return flat[0] if flat else getattr(layer, what)


def _trains(layer: Any) -> bool:
    return bool(getattr(layer, "_call_has_training_arg", False))


def _specs(layer: Any) -> tuple[TensorSpec, ...]:
    import keras

    return tuple(
        TensorSpec(
            tensor.name,
            datatype_of(tensor.dtype, f"input {tensor.name!r}"),
            tuple(-1 if size is None else size for size in tensor.shape),
        )
        for tensor in keras.tree.flatten(_structure(layer, "input"))
    )


def _output_names(model: Any) -> tuple[str, ...]:
    """The keys of a dict, else the layers that give the outputs."""
    import keras

    output = _structure(model, "output")
    if isinstance(output, dict):
        return tuple(map(str, keras.tree.flatten({key: key for key in output})))
    layers = [tensor._keras_history.operation.name for tensor in keras.tree.flatten(output)]
    return tuple(layers) if len(set(layers)) == len(layers) else tuple(f"output_{i}" for i in range(len(layers)))


def _to_numpy(value: Any) -> Any:
    return np.asarray(value.detach().cpu().numpy())


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no message")
