"""A loaded version: its runtime with the processing before and after it. Made by lifecycle, used by the engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from app.errors import InvalidContent, InvalidTensor, RegistryError
from app.processing.classification import Classification, Prediction
from app.processing.consistency import Consistency, Violation
from app.processing.image import ImageProcessing, ImageProcessor
from app.processing.tensor import check_tensors, tensors_from_json
from app.processing.text import TextProcessing, TextProcessor
from app.registry.manifest import ClassificationAnswer, Manifest, RegressionAnswer, TensorAnswer
from app.registry.servables.batch_axis import BatchAxis, join, mixes_rows
from app.registry.servables.bin_sample import BinSample
from app.registry.serving.quarantine import Marker
from app.registry.store import read_labels
from app.runtimes.base import Cancellation, Runtime
from app.tensors import NUMPY_DTYPES, Array, Tensors

ContentKind = Literal["image", "text", "tensor"]


@dataclass(slots=True)
class Content:
    """What a caller sends before processing.

    kind "image": each item the bytes of one encoded image. kind "text": each item a string, or its bytes in UTF-8.
    kind "tensor": one item, the nested lists (or a mapping of input name to nested lists) of one call. An item that
    could not be decoded is its HeadwayError, and is answered with it.
    """

    kind: ContentKind
    items: tuple[Any, ...]


@dataclass(slots=True)
class Item:
    """The answer to one row: labels for a classifier, a value for a regression, neither for plain tensors."""

    predictions: tuple[Prediction, ...] = ()
    value: float | None = None


@dataclass(slots=True)
class Resolved:
    """The version that answers a call, and the alias that led to it (None for an exact version).

    It keeps the version loaded as long as it is held. `fallback_from` is the alias whose turn it was, where its version
    is not there and stable answers instead. `is_drawn`: the alias' turn came by its weight, nobody named it.
    """

    servable: Servable
    alias: str | None
    fallback_from: str | None = None
    is_drawn: bool = False


class Servable:
    """One version, ready to run. All methods are thread-safe."""

    def __init__(self, manifest: Manifest, directory: Path, runtime: Runtime) -> None:
        """Raises RegistryError where the labels or the file's signature contradict the manifest."""
        self.manifest = manifest
        self.directory = directory
        self.runtime = runtime
        self.name = manifest.name
        self.version = manifest.version
        self.warm_seconds = 0.0  # of one run of the whole path once warm; set by warm-up
        self.sample: BinSample | None = None  # set by loading where the version has a baseline
        self.marker: Marker | None = None  # set by the registry where a crash is to be traced to its model
        self._check_signature()
        self.batch_axis = BatchAxis.of(manifest)
        axis = self.batch_axis
        self.input_specs = axis.free(manifest.input_specs) if axis is not None else manifest.input_specs
        self._only_input = manifest.inputs[0].name
        self._images = ImageProcessor(manifest.processing) if isinstance(manifest.processing, ImageProcessing) else None
        self._check_images()
        self._texts = self._text_processor()
        self.consistency = self._consistency()
        self.classification = self._classification()

    @property
    def kind(self) -> ContentKind:
        return self.manifest.content_kind

    @property
    def max_batch_size(self) -> int:
        return self.manifest.batch.max_size if self.batch_axis is not None and not self.batch_axis.is_one else 1

    def prepare(self, kind: ContentKind, item: Any, found: list[Violation] | None = None) -> dict[str, Array]:
        """One item of content to the model's inputs. Raises InvalidContent and its kin.

        What the policies of the inputs find is added to `found`, also where they reject it.
        """
        if kind != self.kind:
            raise InvalidContent(f"{self.name} takes {_KIND_WORDS[self.kind]}, not {_KIND_WORDS[kind]}")
        if self._images is not None:
            return {self._only_input: self._images.prepare(item)}
        if self._texts is not None:
            return {self._only_input: self._texts.prepare(item)}
        if self.consistency is not None:
            return self.consistency.read(item, self.input_specs, [] if found is None else found)
        return tensors_from_json(item, self.input_specs)

    def run_item(self, kind: ContentKind, item: Any) -> Tensors:
        """`prepare` and `run` of one item."""
        return self.run(self.prepare(kind, item))

    def check(self, tensors: Tensors, found: list[Violation] | None = None) -> Tensors:
        """What the model may be given of these: themselves, but for what the policies of the inputs change.

        Raises InvalidTensor. As to `found` see `prepare`.
        """
        if self.consistency is not None:
            return self.consistency.check(tensors, self.input_specs, [] if found is None else found)
        check_tensors(tensors, self.input_specs)
        if self._texts is not None:
            self._texts.check(tensors[self._only_input])
        return tensors

    def check_batch_axis(self) -> None:
        """Try whether rows are answered each for itself; where not, a call is one run. Raises RegistryError.

        Photos come one at a time, and two in a run take memory that one does not: tried only where they may share.
        """
        axis, may_share = self.batch_axis, self.max_batch_size > 1
        if axis is None or axis.is_one or (self.kind == "image" and not may_share):
            return
        if mixes_rows(axis, self.input_specs, self.run):
            if may_share:
                raise RegistryError(
                    f"{self.directory / 'model.yaml'}: batch: rows that share a run do not get the answers that they "
                    "get alone; say axis: null, or max_size: 1"
                )
            self.batch_axis = None

    def check_outputs(self, outputs: Tensors) -> None:
        """Hold the outputs of one row against `answer`. Raises RegistryError."""
        answer = self.manifest.answer
        if isinstance(answer, TensorAnswer):
            return
        shape = outputs[answer.output].shape
        if isinstance(answer, ClassificationAnswer) and self.classification is not None:
            labels, classes, shape = len(self.classification.labels), shape[-1:], shape[:-1]
            if classes != (labels,):
                raise RegistryError(
                    f"{self.directory / answer.labels}: has {labels} labels, but output {answer.output!r} gives "
                    f"{classes[0] if classes else 'no'} scores; write one label a line for each"
                )
        if self.input_specs[0].shape[:1] == (-1,) and math.prod(shape) != 1:
            raise RegistryError(
                f"{self.directory / 'model.yaml'}: answer.output: {answer.output!r} gives {math.prod(shape)} answers "
                "to one row; name an output with one, or say type: tensor"
            )

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        """Raises RunFailed, or InvalidTensor for rows that do not agree."""
        if self.marker is None:
            return self._run(tensors, outputs, cancellation)
        place = self.marker.enter()
        try:
            return self._run(tensors, outputs, cancellation)
        finally:
            self.marker.leave(place)

    def _run(self, tensors: Tensors, outputs: Sequence[str] | None, cancellation: Cancellation | None) -> Tensors:
        axis = self.batch_axis
        if axis is None:
            return self.runtime.run(tensors, outputs, cancellation)
        count = axis.count(tensors)
        if not count and (nothing := self._no_rows(outputs)) is not None:
            return nothing
        if not axis.is_one or count == 1:
            return self.runtime.run(tensors, outputs, cancellation)
        if not count:
            raise InvalidTensor("the inputs have no rows; send at least one")
        rows = [axis.take(tensors, number, number + 1) for number in range(count)]
        return join([self.runtime.run(row, outputs, cancellation) for row in rows])

    def _no_rows(self, outputs: Sequence[str] | None) -> Tensors | None:
        """The answer to no rows, where the file says how long a row is: not every kernel takes nothing."""
        specs = [spec for spec in self.manifest.output_specs if outputs is None or spec.name in outputs]
        if any(-1 in spec.shape[1:] for spec in specs):
            return None
        return {spec.name: np.empty((0, *spec.shape[1:]), NUMPY_DTYPES[spec.datatype]) for spec in specs}

    def answer(self, tensors: Tensors, top_k: int) -> tuple[Item, ...] | None:
        """Outputs to one item a row; None for models whose answer is the tensors themselves."""
        answer = self.manifest.answer
        if isinstance(answer, ClassificationAnswer):
            assert self.classification is not None
            scores = tensors[answer.output]
            ranked = self.classification.rank(scores.reshape(-1, scores.shape[-1]), top_k)
            return tuple(Item(predictions=tuple(row)) for row in ranked)
        if isinstance(answer, RegressionAnswer):
            return tuple(Item(value=float(value)) for value in tensors[answer.output].reshape(-1))
        return None

    def close(self) -> None:
        self.runtime.close()

    def _consistency(self) -> Consistency | None:
        """Raises RegistryError where `values` stands beside numbers that are not the caller's."""
        specs, path = {spec.name: spec for spec in self.input_specs}, self.directory / "model.yaml"
        policies = [(specs[entry.name], entry.values) for entry in self.manifest.inputs if entry.values is not None]
        if any(entry.values is not None for entry in self.manifest.outputs):
            raise RegistryError(f"{path}: outputs: values is for inputs; leave it out here")
        if not policies:
            return None
        if self.kind != "tensor":
            words = _KIND_WORDS[self.kind]
            raise RegistryError(f"{path}: inputs: values is for numbers of callers, and this version takes {words}")
        if self.manifest.composition is not None:
            raise RegistryError(f"{path}: inputs: a composition has no values; write them in model.yaml of its steps")
        return Consistency(policies)

    def _classification(self) -> Classification | None:
        answer = self.manifest.answer
        if not isinstance(answer, ClassificationAnswer):
            return None
        labels = read_labels(self.directory / answer.labels)
        output = next(spec for spec in self.manifest.output_specs if spec.name == answer.output)
        if output.shape[-1:] not in ((-1,), (len(labels),)):
            raise RegistryError(
                f"{self.directory / answer.labels}: has {len(labels)} labels, but output {answer.output!r} "
                f"has {output.shape[-1] if output.shape else 'no'} classes"
            )
        return Classification(labels, answer.activation)

    def _text_processor(self) -> TextProcessor | None:
        processing = self.manifest.processing
        return TextProcessor(processing, self.input_specs[0]) if isinstance(processing, TextProcessing) else None

    def _check_images(self) -> None:
        if self._images is None:
            return
        takes, gives = self.input_specs[0], self._images.spec
        if takes.datatype != gives.datatype or not _compatible(gives.shape, takes.shape):
            raise RegistryError(
                f"{self.directory / 'model.yaml'}: processing: makes {gives}, but the model takes {takes}; "
                "correct crop, colour, layout or normalise"
            )

    def _check_signature(self) -> None:
        path = self.directory / "model.yaml"
        pairs: Mapping[str, Any] = {
            "inputs": (self.manifest.input_specs, self.runtime.inputs),
            "outputs": (self.manifest.output_specs, self.runtime.outputs),
        }
        for field, (declared, actual) in pairs.items():
            by_name = {spec.name: spec for spec in actual}
            for spec in declared:
                found = by_name.pop(spec.name, None)
                if found is None:
                    names = ", ".join(other.name for other in actual)
                    raise RegistryError(f"{path}: {field}: the file has no {spec.name!r}; it has {names}")
                if found.datatype != spec.datatype or not _compatible(spec.shape, found.shape):
                    raise RegistryError(f"{path}: {field}: says {spec}, but the file says {found}; correct the former")
            if by_name and field == "inputs":
                raise RegistryError(f"{path}: inputs: the file also needs {', '.join(map(str, by_name.values()))}")


_KIND_WORDS = {"image": "images", "text": "texts (the key text)", "tensor": "numbers (the key inputs)"}


def _compatible(declared: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    """A declared size may be narrower than a free dimension of the file, never wider."""
    return len(declared) == len(actual) and all(have in (-1, want) for want, have in zip(declared, actual, strict=True))
