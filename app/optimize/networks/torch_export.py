"""From a PyTorch module to the bytes of an ONNX file, the same bytes in every process; and modules by their factory.

torch.export traces the module, torch.onnx translates the trace and folds batch normalisation into convolutions. Needs
the extra `training`; app.optimize.conversion.forms gives the file its place in a registry.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import InvalidContent
from app.tensors import Array

if TYPE_CHECKING:
    import onnx
    import torch

# quantize takes it as it is: blocked 4-bit weights begin here.
OPSET = 21
_BATCH = "batch"
_INSTALL = "PyTorch is missing: pip install 'headway[training]'"
_GRAPH_NAME = "network"


def load_factory(spec: str) -> torch.nn.Module:
    """What `module:factory` returns, imported from the current directory or from what is installed: this runs its code.

    `factory` may be dotted, is called without arguments, and may be a class. Raises InvalidContent.
    """
    torch = _torch()
    module_name, _, path = spec.partition(":")
    if not module_name or not path or module_name.endswith(".py") or "/" in module_name:
        raise InvalidContent(
            f"{spec}: write module:factory as Python imports it, as nets.small:build for nets/small.py"
        )
    factory: Any = _import(spec, module_name)
    for part in path.split("."):
        try:
            factory = getattr(factory, part)
        except AttributeError as exc:
            raise InvalidContent(f"{spec}: there is no {part!r} in {module_name} ({factory!r})") from exc
    if isinstance(factory, torch.nn.Module) or not callable(factory):
        raise InvalidContent(
            f"{spec}: is a {type(factory).__name__}; name a function without arguments that returns the module"
        )
    try:
        module = factory()
    except (Exception, SystemExit) as exc:  # the user's own code
        raise InvalidContent(f"{spec}: fails with {type(exc).__name__}: {exc}; it is called without arguments") from exc
    if not isinstance(module, torch.nn.Module):
        raise InvalidContent(f"{spec}: returns a {type(module).__name__}, and a torch.nn.Module is needed")
    return module


def export_onnx(
    module: torch.nn.Module,
    example: Sequence[Array] | Array,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> bytes:
    """One file with its weights, operator set 21, the first axis of each input free under the name `batch`.

    `example` is one array for each input, of one or more rows. The module answers as in eval mode; its mode stays what
    it was. Raises InvalidContent where it cannot be traced for any number of rows, or an operator has no translation:
    that one is named with its layer.
    """
    return program_to_onnx(export_program(module, example), input_names=input_names, output_names=output_names)


def export_program(module: torch.nn.Module, example: Sequence[Array] | Array) -> torch.export.ExportedProgram:
    """The trace of `module` in eval mode, for any number of rows. Raises InvalidContent."""
    torch = _torch()
    inputs = tuple(torch.from_numpy(array) for array in _traceable(example))
    shapes = torch.export.ShapesCollection()
    free = torch.export.Dim(_BATCH)
    for tensor in inputs:
        shapes[tensor] = {0: free}
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with quietly(), torch.no_grad():
            return torch.export.export(module, inputs, dynamic_shapes=shapes)
    except Exception as exc:  # torch raises classes that share no base, and the module is the user's own code
        raise InvalidContent(f"the module cannot be traced: {_why_not_traced(exc)}") from exc
    finally:
        for part, mode in modes:
            part.training = mode


def program_to_onnx(
    program: torch.export.ExportedProgram, *, input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """As `export_onnx`, of a trace; sizes that it leaves free stay free. Raises InvalidContent."""
    torch = _torch()
    _check_names("input", input_names, program.graph_signature.user_inputs)
    _check_names("output", output_names, program.graph_signature.user_outputs)
    try:
        with quietly(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                verbose=False,
            )
    except Exception as exc:  # torch.onnx keeps its classes to itself
        text = "\n".join(str(one) for one in _chain(exc))
        missing = _missing_operator(text)
        if missing is not None:
            raise refusal(missing, "ONNX", program) from missing
        if any(isinstance(one, ImportError) for one in _chain(exc)):
            raise InvalidContent(f"a package is missing ({_last_line(exc)}): pip install 'headway[training]'") from exc
        raise InvalidContent(f"the network cannot be translated to ONNX: {_last_line(exc)}") from exc
    from app.optimize.networks import onnx_graph as graphs

    model = exported.model_proto
    if model.ByteSize() > graphs.MAX_BYTES:
        raise InvalidContent(f"the network has {model.ByteSize() / 1e9:.1f} GB; a file of ONNX holds up to 2 GB")
    _name_nodes(model.graph)
    _name_batch(model.graph)
    return graphs.to_bytes(model, _GRAPH_NAME)


class NoTranslation(Exception):
    """A converter cannot translate `operator`; `place` is the node of the trace, or what the converter calls it."""

    def __init__(self, operator: str, place: str) -> None:
        super().__init__(f"{operator} at {place}")
        self.operator = operator
        self.place = place


def refusal(missing: NoTranslation, target: str, program: torch.export.ExportedProgram) -> InvalidContent:
    """What is said of it, with the layer in whose forward it stands."""
    layer = layer_of(program, missing)
    where = f" in layer {layer}" if layer else ""
    return InvalidContent(
        f"operator {missing.operator}{where} has no {target} translation; write that layer with other operators"
    )


def layer_of(program: torch.export.ExportedProgram, missing: NoTranslation) -> str | None:
    """The path and class of a module, as `body.1 (Bessel)`; None where the trace does not tell."""
    node = find_node(program, missing)
    stack = list((node.meta.get("nn_module_stack") or {}).values()) if node is not None else []
    if not stack:
        return None
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    return f"{path or 'the module itself'} ({kind.rpartition('.')[2]})"


def find_node(program: torch.export.ExportedProgram, missing: NoTranslation) -> torch.fx.Node | None:
    """The first call of the operator in the trace."""
    for traced in _decomposed(program):
        for node in traced.graph.nodes:
            if node.op == "call_function" and missing.operator == str(node.target):
                return node
    return None


def _decomposed(program: torch.export.ExportedProgram) -> Iterator[torch.export.ExportedProgram]:
    """As it is, and in simpler and simpler operators: converters name what they were left with."""
    from torch._decomp import decomposition_table

    yield program
    with quietly():
        core = program.run_decompositions()
    yield core
    with quietly():
        whole = program.run_decompositions({op: by for op, by in decomposition_table.items() if hasattr(op, "_schema")})
    yield whole


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what torch and its exporters say of themselves: deprecations inside of them, packages that they miss,
    and the graphs that they print when they fail. stdout is left to the command's own answer."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.fx", "torch._export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    silence = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _torch() -> Any:
    try:
        import torch
    except ImportError as exc:
        raise InvalidContent(_INSTALL) from exc
    return torch


def _import(spec: str, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as exc:  # the user's own code, which may be a script
        raise InvalidContent(
            f"{spec}: {name} cannot be imported ({type(exc).__name__}: {exc}); it is looked for in {here} and in what "
            "is installed"
        ) from exc


def _traceable(example: Sequence[Array] | Array) -> list[Array]:
    """Two rows of each: a size of one would be traced as a constant, and more take longer."""
    arrays = [example] if isinstance(example, np.ndarray) else list(example)
    counts = {array.shape[:1] for array in arrays}
    if len(counts) != 1 or counts & {(), (0,)}:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise InvalidContent(f"the examples must have the same number of rows, at least one; they are {shapes}")
    return [np.concatenate([array, array])[:2] for array in arrays]


def _why_not_traced(exc: BaseException) -> str:
    text = str(exc)
    fixed = re.search(rf"{_BATCH} = (\d+)", text)
    if fixed and "specialized" in text:
        return f"it works for {fixed[1]} rows only: forward has their number in it; take it from x.shape[0]"
    place = re.search(r'File "([^"]+)", line (\d+), in (\w+)', text)
    where = f"; at {place[1]}:{place[2]}, in {place[3]}" if place else ""
    if "data-dependent" in text:
        return f"its way through the network depends on values, which no graph can follow (use torch.where){where}"
    return f"{_last_line(exc)}{where}"


def _missing_operator(text: str) -> NoTranslation | None:
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)', overload='(\w+)'\)>", text)
    node = re.search(r"Error when translating node %(\w+) .*?target=torch\.ops\.([\w.]+)\]", text)
    if missing is None and node is None:
        return None
    operator = f"{missing[1]}.{missing[2]}" if missing else node[2] if node else ""
    return NoTranslation(operator, node[1] if node else "")


def _check_names(what: str, names: Sequence[str], found: Sequence[Any]) -> None:
    if len(names) != len(found):
        raise InvalidContent(f"the network has {len(found)} {what}s, and {len(names)} names are given for them")


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _last_line(exc: BaseException) -> str:
    *_, root = _chain(exc)
    return f"{type(root).__name__}: {next(iter(str(root).strip().splitlines()), 'no message')}"


def _name_nodes(graph: onnx.GraphProto) -> None:
    """After the module that holds the weights, else after the one in whose forward the operator stands: what people
    know, and what `headway quantize --keep-float` takes. The exporter's own are counted on from network to network."""
    weights = {tensor.name for tensor in graph.initializer}
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
        path = (ast.literal_eval(scopes)[:-1] or [""])[-1] if scopes else ""
        path = "" if path.startswith("_") else path  # a hook of torch's own
        held = [name.rpartition(".")[0] for name in node.input if name in weights and name.endswith(".weight")]
        name = f"{held[0] if held else path or _GRAPH_NAME}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _name_batch(graph: onnx.GraphProto) -> None:
    """The trace calls a free size s77 or so."""
    found = [value.type.tensor_type.shape.dim[:1] for value in graph.input]
    symbols = {dim.dim_param for dims in found for dim in dims if dim.dim_param}
    if len(symbols) != 1:
        return
    pattern = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(_BATCH, dim.dim_param)
