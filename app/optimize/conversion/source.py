"""What every form of trained network gives to be converted: its inputs, its answers, and a file of another form."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from app.errors import InvalidContent
from app.tensors import DATATYPES, NUMPY_DTYPES, Tensors, TensorSpec

Target = Literal["onnx", "tflite"]
_DATATYPE_OF = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Given:
    """What the owner says beside the source.

    `inputs` and `examples` are for sources that do not say what they take; `examples` is a row or more of each input,
    by name. `converter_python` is of the environment with the target's converter, where that is not this one.
    `may_unpickle`: a pickle runs what code it holds when it is opened.
    """

    weights: Path | None = None
    inputs: tuple[TensorSpec, ...] = ()
    examples: Tensors = field(default_factory=dict)
    output_names: tuple[str, ...] = ()
    converter_python: Path | None = None
    may_unpickle: bool = False


class Source(ABC):
    """An opened source. `labels` are its classes where it knows them, and then its one output is their probabilities.

    `kind` is its row in the table of pairs.
    """

    kind: str
    inputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] | None = None

    @abstractmethod
    def run(self, tensors: Tensors) -> Tensors:
        """Its own answer, by the names that the outputs will have. Raises InvalidContent."""

    @abstractmethod
    def convert(self, target: Target, path: Path) -> Mapping[str, str]:
        """Write the file; returns the versions of the libraries that made it. Raises InvalidContent, which names an
        operator that has no translation, with its layer."""


def parse_input(text: str) -> TensorSpec:
    """`NAME:DATATYPE:n,SIZE,…`, as `image:FP32:n,1,28,28`. Raises InvalidContent."""
    name, _, rest = text.partition(":")
    datatype, _, sizes = rest.partition(":")
    first, *others = sizes.split(",")
    if (
        not name
        or datatype not in DATATYPES
        or first != "n"
        or not all(size.isdigit() and int(size) for size in others)
    ):
        raise InvalidContent(
            f"--input {text}: write NAME:DATATYPE:n,SIZE,… with n for the rows, as image:FP32:n,1,28,28; datatypes are "
            f"{', '.join(DATATYPES)}"
        )
    return TensorSpec(name, datatype, (-1, *map(int, others)))


def specs_of(examples: Tensors) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype_of(a.dtype.name, name), (-1, *a.shape[1:])) for name, a in examples.items())


def datatype_of(numpy_name: str, where: str) -> str:
    """The datatype of a tensor of numpy's `float32` and so on. Raises InvalidContent."""
    found = next((name for dtype, name in _DATATYPE_OF.items() if dtype.name == numpy_name), None)
    if found is None:
        raise InvalidContent(f"{where}: is of {numpy_name}, which no tensor of a served model can be")
    return found


def versions_of(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in packages}


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a directory, of its files with their names, in order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        whole.update(f"{file.relative_to(path)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
