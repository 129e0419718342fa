"""What a model version says of itself: `model.yaml`, validated, unknown keys refused.

The reference of every key is docs/reference/model-yaml.md.
"""

from __future__ import annotations

import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.errors import RegistryError
from app.processing.consistency import InputCheck
from app.processing.image import ImageProcessing
from app.processing.tensor import TensorProcessing
from app.processing.text import TextProcessing, takes_text
from app.processing.value_policy import ValuePolicy
from app.registry.robustness_gate import RobustnessGates
from app.registry.steps import Composition
from app.registry.versions import MODEL_NAME, Version
from app.registry.yaml import read_yaml
from app.runtimes.packed import SUFFIX as PACKED
from app.tensors import Datatype, TensorSpec

SCHEMA = 1
MODEL_FILES = {"onnx": "model.onnx", "tflite": "model.tflite"}
COMPOSITION = "composition"
Task = Literal["image-classification", "text-classification", "tabular-classification", "regression", "tensor"]
_SHA256 = r"[0-9a-f]{64}"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Section):
    """`unpacked_bytes` is of a model file that is kept compressed."""

    sha256: str = Field(pattern=f"^{_SHA256}$")
    bytes: int = Field(ge=0)
    unpacked_bytes: int | None = Field(default=None, ge=0)


class TensorEntry(_Section):
    """`values` is for inputs."""

    name: str = Field(min_length=1, max_length=256)
    datatype: Datatype
    shape: tuple[Annotated[int, Field(ge=-1)], ...]
    batched: bool = True
    values: ValuePolicy | None = None

    @model_validator(mode="after")
    def _fitting_values(self) -> TensorEntry:
        if self.values is not None:
            InputCheck(self.spec, self.values)
        return self

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, self.shape)


class Batch(_Section):
    """`axis: null` means that the model is called once for each call."""

    axis: Literal[0] | None = 0
    max_size: int = Field(default=1, ge=1, le=4096)
    max_wait_ms: float = Field(default=0, ge=0, le=1000)

    @field_validator("axis", mode="before")
    @classmethod
    def _axis_number(cls, value: object) -> object:
        return 0 if value == "0" else value


class Limits(_Section):
    """`instances`: sessions in each worker, each with one run at a time; null: one session for all threads."""

    queue: int = Field(default=64, ge=1, le=100_000)
    instances: int | None = Field(default=None, ge=1, le=64)
    max_run_seconds: float = Field(default=30, gt=0, le=3600)
    deadline_ms: int | None = Field(default=None, ge=1, le=3_600_000)


class ClassificationAnswer(_Section):
    """`activation` says whether the output is logits: none (already probabilities), softmax or sigmoid.

    Answers whose first confidence is below `low_confidence` are counted.
    """

    type: Literal["classification"]
    output: str
    activation: Literal["none", "softmax", "sigmoid"]
    labels: str
    low_confidence: float | None = Field(default=None, ge=0, le=1)


class RegressionAnswer(_Section):
    type: Literal["regression"]
    output: str
    unit: str | None = None


class TensorAnswer(_Section):
    type: Literal["tensor"]


class Golden(_Section):
    """Requests with their answers, run on this machine's CPU before the version serves."""

    file: str
    top1: Literal["equal"] | None = None
    tolerance: float = Field(ge=0, description="largest difference of a confidence or value")


class Training(_Section):
    algorithm: str
    data: str
    parameters: dict[str, str] = {}


class Evaluation(_Section):
    """What was measured, on what data, on which machine. `rss_mb` is what loading the version adds."""

    data: str
    n: int = Field(ge=1)
    top1: float | None = Field(default=None, ge=0, le=1)
    top5: float | None = Field(default=None, ge=0, le=1)
    macro_f1: float | None = Field(default=None, ge=0, le=1)
    latency_ms: dict[str, float] = {}
    rss_mb: float | None = Field(default=None, ge=0)
    threads: int | None = Field(default=None, ge=1)
    cpu: str | None = None
    cpu_features: tuple[str, ...] = ()
    libraries: dict[str, str] = {}
    date: datetime.date | None = None
    note: str | None = None


class ParentFigure(_Section):
    """A figure of the version and, where it has one, of its parent, on the same inputs in one run."""

    name: str = Field(min_length=1)
    parent: float | None = None
    version: float


class Parent(_Section):
    """What a version was made from: `how` for people, the command's `method` and `parameters`, and what it changed."""

    version: str
    how: str
    name: str | None = None
    method: str | None = None
    parameters: dict[str, str] = {}
    figures: tuple[ParentFigure, ...] = ()


class Manifest(_Section):
    """One version of one model."""

    schema_: int = Field(alias="schema")
    name: str
    version: str
    serial: int | None = Field(default=None, ge=1)
    task: Task
    runtime: Literal["onnx", "tflite", "composition"]
    composition: Composition | None = None
    files: dict[str, FileEntry] = Field(min_length=1)
    inputs: tuple[TensorEntry, ...] = Field(min_length=1)
    outputs: tuple[TensorEntry, ...] = Field(min_length=1)
    batch: Batch = Batch()
    limits: Limits = Limits()
    processing: Annotated[ImageProcessing | TextProcessing | TensorProcessing, Field(discriminator="type")]
    answer: Annotated[ClassificationAnswer | RegressionAnswer | TensorAnswer, Field(discriminator="type")]
    golden: Golden | None = None
    baseline: str | None = None
    min_robust_accuracy: RobustnessGates = ()
    licence: str = Field(min_length=1)
    training: Training | None = None
    evaluation: tuple[Evaluation, ...] = ()
    parent: Parent | None = None

    @property
    def needed_bytes(self) -> int:
        """Memory that loading takes: as it was measured, else three times the files; for each instance."""
        measured = max((entry.rss_mb or 0 for entry in self.evaluation), default=0) * 1e6
        one = measured or 3 * sum(entry.unpacked_bytes or entry.bytes for entry in self.files.values())
        return int(one) * (self.limits.instances or 1)

    @field_validator("schema_")
    @classmethod
    def _known_schema(cls, value: int) -> int:
        if value != SCHEMA:
            raise ValueError(f"this Headway reads schema {SCHEMA}; a file of schema {value} needs a newer one")
        return value

    @field_validator("name")
    @classmethod
    def _good_name(cls, value: str) -> str:
        if not MODEL_NAME.fullmatch(value):
            raise ValueError(f"{value!r} is not a model name: use a-z, 0-9, '.', '_' and '-', at most 63")
        return value

    @field_validator("version")
    @classmethod
    def _good_version(cls, value: str) -> str:
        return Version.parse(value).text

    @field_validator("files")
    @classmethod
    def _relative_files(cls, value: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in value:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
                raise ValueError(f"{name!r} must be a relative path inside the version's directory")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        needed = [] if self.runtime == COMPOSITION else [self.model_file]
        if isinstance(self.answer, ClassificationAnswer):
            needed.append(self.answer.labels)
        if self.golden:
            needed.append(self.golden.file)
        if self.baseline is not None:
            needed.append(self.baseline)
        if {self.model_file, self.model_file.removesuffix(PACKED)} <= self.files.keys() and self.is_packed:
            raise ValueError("files has the model twice, compressed and not; leave one of them")
        if self.is_packed and self.files[self.model_file].unpacked_bytes is None:
            raise ValueError(f"files: {self.model_file} lacks unpacked_bytes, its size when it is unpacked")
        for name in needed:
            if name not in self.files:
                raise ValueError(f"files lacks {name!r}, which this version reads; add it with its sha256 and bytes")
        if not isinstance(self.answer, TensorAnswer):
            outputs = [entry.name for entry in self.outputs]
            if self.answer.output not in outputs:
                raise ValueError(f"answer.output is {self.answer.output!r}, but the outputs are {', '.join(outputs)}")
        if self.min_robust_accuracy and not isinstance(self.answer, ClassificationAnswer):
            raise ValueError("min_robust_accuracy is for classifiers; leave it out")
        if self.processing.type == "image" and len(self.inputs) != 1:
            raise ValueError("processing of type image needs exactly one input")
        if self.processing.type == "text" and not takes_text(self.input_specs):
            raise ValueError("processing of type text needs exactly one input, BYTES of the shape [-1] or [-1, 1]")
        self._check_composition()
        return self

    def _check_composition(self) -> None:
        """A composition says what its callers send and get, as any version; how it runs is the matter of its steps."""
        if (self.runtime == COMPOSITION) != (self.composition is not None):
            raise ValueError("runtime: composition and the section composition go together; write both, or neither")
        if self.composition is None:
            return
        if not isinstance(self.answer, ClassificationAnswer) or self.answer.activation != "none":
            raise ValueError(
                "a composition answers {type: classification, activation: none}: it combines confidences of classifiers"
            )
        if self.batch != Batch() or self.limits.instances is not None:
            raise ValueError("a composition takes no batch and no limits.instances; those of its steps hold")
        shape, dtype = self.outputs[0].shape, self.outputs[0].datatype
        if len(self.outputs) != 1 or len(shape) != 2 or shape[0] != -1 or dtype not in ("FP32", "FP64"):
            raise ValueError("a composition has one output, FP32 or FP64 of the shape [-1, number of labels]")
        if self.min_robust_accuracy:
            raise ValueError("a composition takes no min_robust_accuracy: write it in model.yaml of its steps")
        if any(entry.shape[:1] != (-1,) or not entry.batched for entry in self.inputs):
            raise ValueError("the inputs of a composition have a free first size (-1): its rows")

    @property
    def model_file(self) -> str:
        """The file that is the model, `….gz` where it is kept compressed; of a composition model.yaml itself."""
        name = MODEL_FILES.get(self.runtime, "model.yaml")
        return name + PACKED if name + PACKED in self.files else name

    @property
    def is_packed(self) -> bool:
        """Whether the model file is kept compressed."""
        return self.model_file.endswith(PACKED)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(entry.spec for entry in self.inputs)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        return tuple(entry.spec for entry in self.outputs)

    @property
    def content_kind(self) -> Literal["image", "text", "tensor"]:
        """Which kind of request content this model takes at /predict."""
        return self.processing.type


def read_manifest(directory: Path) -> Manifest:
    """Read `directory`/model.yaml and hold it against the directory's own name and its parent's."""
    path = directory / "model.yaml"
    manifest = read_yaml(path, Manifest)
    if manifest.name != directory.parent.name:
        raise RegistryError(f"{path}: name is {manifest.name!r}, but the directory is {directory.parent.name!r}")
    if manifest.version != directory.name:
        raise RegistryError(f"{path}: version is {manifest.version!r}, but the directory is {directory.name!r}")
    return manifest
