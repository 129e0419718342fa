"""PyTorch as a source: a program of torch.export, or a module by its factory with weights, or out of a pickle."""

from __future__ import annotations

import inspect
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import InvalidContent
from app.optimize.conversion.environment import LITERT, run_converter
from app.optimize.conversion.samples import random_samples
from app.optimize.conversion.source import Given, Source, Target, datatype_of, specs_of, versions_of
from app.optimize.conversion.weights import load_weights, read_pickled
from app.optimize.networks import torch_export
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

if TYPE_CHECKING:
    import torch


class TorchSource(Source):
    """A trace, and the module that it is a trace of: answers are the module's own."""

    def __init__(
        self,
        kind: str,
        program: torch.export.ExportedProgram,
        module: torch.nn.Module,
        input_names: tuple[str, ...],
        given: Given,
    ) -> None:
        """Raises InvalidContent where the trace takes or gives what is no tensor, or the names are too few."""
        self.kind = kind
        self._program = program
        self._module = module
        signature = program.graph_signature
        self.inputs = _specs(program, signature.user_inputs, input_names)
        self._python = given.converter_python
        self._outputs = given.output_names or _names_by(program.call_spec.out_spec, len(signature.user_outputs))
        if len(self._outputs) != len(signature.user_outputs):
            raise InvalidContent(
                f"--output-name: the network has {len(signature.user_outputs)} outputs, and {len(self._outputs)} names "
                "are given"
            )

    def run(self, tensors: Tensors) -> Tensors:
        import torch

        flat = [torch.from_numpy(np.ascontiguousarray(tensors[spec.name])) for spec in self.inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, self._program.call_spec.in_spec)
        try:
            with torch_export.quietly(), torch.no_grad():
                found = self._module(*args, **kwargs)
        except Exception as exc:  # the user's own code
            raise InvalidContent(
                f"the source fails on samples ({type(exc).__name__}: {exc}); name such as it takes with --samples"
            ) from exc
        leaves = torch.utils._pytree.tree_leaves(found)
        return {name: leaf.detach().cpu().numpy() for name, leaf in zip(self._outputs, leaves, strict=True)}

    def convert(self, target: Target, path: Path) -> Mapping[str, str]:
        if target == "tflite":
            return program_to_tflite(self._program, self.inputs, self._outputs, path, self._python)
        names = [spec.name for spec in self.inputs]
        path.write_bytes(
            torch_export.program_to_onnx(self._program, input_names=names, output_names=list(self._outputs))
        )
        return versions_of("torch", "onnxscript")


def open_program(path: Path, given: Given) -> TorchSource:
    """A .pt2 file of torch.export.save. Raises InvalidContent."""
    import torch

    if not given.may_unpickle:
        _refuse_pickles(path)
    try:
        with torch_export.quietly():
            program = torch.export.load(path)
            module = program.module()
    except Exception as exc:  # a file that is damaged fails in many ways
        raise InvalidContent(f"{path}: is no program of torch.export.save ({type(exc).__name__}: {exc})") from exc
    return TorchSource("PyTorch program", program, module, (), given)


def open_factory(spec: str, given: Given) -> TorchSource:
    """`module:factory`, and its weights. Raises InvalidContent."""
    module = torch_export.load_factory(spec)
    if given.weights is not None:
        load_weights(module, given.weights, may_unpickle=given.may_unpickle)
    elif not _same_weights(module, torch_export.load_factory(spec)):
        raise InvalidContent(f"{spec}: draws other weights at each call, so it is not trained: say --weights FILE")
    return _trace("PyTorch module:factory", module, given)


def open_pickled(path: Path, given: Given) -> TorchSource:
    """A whole module of torch.save. Raises InvalidContent."""
    import torch

    found = read_pickled(path, may_unpickle=given.may_unpickle)
    if isinstance(found, torch.jit.ScriptModule):
        raise InvalidContent(f"{path}: is TorchScript; save the module with torch.export.save(torch.export.export(…))")
    if not isinstance(found, torch.nn.Module):
        raise InvalidContent(
            f"{path}: holds weights, and not the module that they are for; name that: module:factory --weights {path}"
        )
    return _trace("PyTorch pickle", found, given)


def program_to_tflite(
    program: torch.export.ExportedProgram,
    inputs: tuple[TensorSpec, ...],
    output_names: tuple[str, ...],
    path: Path,
    python: Path | None,
) -> Mapping[str, str]:
    """A file of one row a run, the form in which TFLite plans its memory once. Raises InvalidContent."""
    import torch

    if any(size == -1 for spec in inputs for size in spec.shape[1:]):
        raise InvalidContent(
            f"TFLite needs every size but the rows, and the network leaves one free: {', '.join(map(str, inputs))}"
        )
    entries = [
        {"name": spec.name, "dtype": NUMPY_DTYPES[spec.datatype].name, "shape": [abs(size) for size in spec.shape]}
        for spec in inputs
    ]
    with tempfile.TemporaryDirectory(prefix="headway-convert-") as folder:
        saved = Path(folder, "network.pt2")
        with torch_export.quietly():
            torch.export.save(program, saved)
        request = {"program": str(saved), "inputs": entries, "outputs": list(output_names), "target": str(path)}
        try:
            answer = run_converter(LITERT, python, request)
        except torch_export.NoTranslation as exc:
            raise torch_export.refusal(exc, "TFLite", program) from exc
    libraries: Mapping[str, str] = answer["libraries"]
    return libraries


def _same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    import torch

    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _trace(kind: str, module: torch.nn.Module, given: Given) -> TorchSource:
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    examples = given.examples
    if set(examples) == {""} and names:
        examples = {names[0]: examples[""]}
    inputs = given.inputs or specs_of(examples)
    if not inputs:
        raise InvalidContent(
            f"a module does not say what it takes (forward has {', '.join(names) or 'no names'}): say --input "
            "NAME:DATATYPE:n,SIZE,… for each input, in order, or --samples FILE"
        )
    (run, *_) = random_samples(inputs, 0).runs
    arrays: list[Array] = [examples.get(spec.name, run[spec.name]) for spec in inputs]
    program = torch_export.export_program(module, arrays)
    module.eval()
    return TorchSource(kind, program, module, tuple(spec.name for spec in inputs), given)


def _specs(
    program: torch.export.ExportedProgram, found: tuple[Any, ...], names: tuple[str, ...]
) -> tuple[TensorSpec, ...]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for number, key in enumerate(found):
        value = values.get(key)
        if value is None or not hasattr(value, "dtype"):
            raise InvalidContent(f"input {number + 1} of the program is {key!r} and no tensor; export it without")
        name = names[number] if names else key
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name, datatype_of(str(value.dtype).removeprefix("torch."), f"input {name!r}"), shape))
    return tuple(specs)


def _names_by(spec: Any, count: int) -> tuple[str, ...]:
    """The keys of a dict that the module returns; else `output`, or `output_0` and so on."""
    if spec.type is dict and len(spec.context) == count:
        return tuple(map(str, spec.context))
    return ("output",) if count == 1 else tuple(f"output_{number}" for number in range(count))


def _refuse_pickles(path: Path) -> None:
    """torch.export.load opens what is marked as a pickle, and falls back to it for what is no plain tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {})
                    pickled = [entry for entry, how in entries.items() if how.get("use_pickle")]
                elif name.endswith(".pt"):
                    pickled = [] if _is_plain(archive, name) else [name]
                else:
                    pickled = [name] if name.endswith(".so") else []
                if pickled:
                    raise InvalidContent(
                        f"{path}: keeps {pickled[0]!r} in a form that runs what code it holds when it is opened; say "
                        "--trust-pickle if you know who made it"
                    )
    except (OSError, zipfile.BadZipFile, ValueError, AttributeError) as exc:
        raise InvalidContent(f"{path}: is no program of torch.export.save ({exc})") from exc


def _is_plain(archive: zipfile.ZipFile, name: str) -> bool:
    import torch

    data = archive.read(name)
    if not data:
        return True
    try:
        with torch_export.quietly():
            torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # of unpickling any
        return False
    return True
