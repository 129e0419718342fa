"""A version that is a composition: other versions answer, and it combines what they say.

Here its steps run in one thread, for golden requests and use without a server; app/engine/composition.py runs them in
the lanes of a server. Which versions the steps are is asked anew for each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import HeadwayError, InvalidContent, ModelFailed, ModelNotReady, RegistryError, RunFailed, StepNotReady
from app.registry.manifest import ClassificationAnswer, Manifest
from app.registry.servables.servable import Content, ContentKind, Resolved, Servable
from app.registry.steps import Composition, Plan, StepRun
from app.registry.versions import ModelRef
from app.runtimes.base import Cancellation
from app.tensors import NUMPY_DTYPES, Array, Tensors, TensorSpec

MAX_DEPTH = 4

ResolveStep = Callable[[ModelRef, bytes | None], Resolved]


@dataclass(frozen=True, slots=True)
class Combined:
    """The outputs of a composition. `answered_by`: of a cascade the number of the step that answered each row."""

    tensors: Tensors
    answered_by: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LeasedStep:
    """What answers for a step in this call. `takes_tensors`: what the composition makes of content fits it as it is.

    `lease` is set where the step is a composition itself.
    """

    resolved: Resolved
    takes_tensors: bool
    lease: Lease | None

    @property
    def servable(self) -> Servable:
        return self.resolved.servable

    @property
    def output(self) -> str:
        answer = self.servable.manifest.answer
        assert isinstance(answer, ClassificationAnswer)
        return answer.output

    def rename(self, tensors: Tensors, rows: Array | None) -> Tensors:
        """The composition's tensors (of these rows) by the names that the step has for them."""
        specs = self.servable.input_specs
        if len(specs) == 1:
            tensors = {specs[0].name: next(iter(tensors.values()))}
        return tensors if rows is None else {name: array[rows] for name, array in tensors.items()}

    def confidences(self, outputs: Tensors) -> Array:
        """[rows, classes], float64."""
        classification = self.servable.classification
        assert classification is not None
        return classification.confidences(outputs[self.output].reshape(-1, len(classification.labels)))


@dataclass(frozen=True, slots=True)
class Lease:
    """A composition with the versions that answer for its steps in one call; they stay loaded as long as it is held."""

    servable: Composed
    steps: tuple[LeasedStep, ...]

    @property
    def takes_tensors(self) -> bool:
        return all(step.takes_tensors for step in self.steps)

    @property
    def shares_preparation(self) -> bool:
        """Whether content that is prepared once serves more than one step."""
        return sum(step.takes_tensors for step in self.steps) > 1

    def leaves(self) -> list[LeasedStep]:
        """The steps that are no compositions, of all levels."""
        return [leaf for step in self.steps for leaf in (step.lease.leaves() if step.lease is not None else [step])]

    def run(self, piece: Content | Tensors, cancellation: Cancellation | None = None) -> Combined:
        """Answer one image, or rows of tensors, in this thread."""
        if isinstance(piece, Content) and self.shares_preparation:
            prepared: Tensors | None = self.servable.prepare(piece.kind, piece.items[0])
        else:
            prepared = None if isinstance(piece, Content) else piece
        plan = self.servable.plan(self.servable.count(piece))
        while plan.runs:
            plan.take([self._run_step(run, piece, prepared, cancellation) for run in plan.runs])
        return self.servable.combined(plan.confidences, plan.answered_by)

    def inputs_of(self, run: StepRun, piece: Content | Tensors, prepared: Tensors | None) -> Content | Tensors:
        """What a step of a plan gets: tensors where it takes those that there are, else the content itself."""
        step = self.steps[run.number]
        if prepared is not None and step.takes_tensors:
            return step.rename(prepared, run.rows)
        if isinstance(piece, Content):
            return piece
        raise InvalidContent(
            f"{self.servable.name} combines models that prepare an image in different ways; send the image, not tensors"
        )

    def _run_step(
        self, run: StepRun, piece: Content | Tensors, prepared: Tensors | None, cancellation: Cancellation | None
    ) -> Array:
        step = self.steps[run.number]
        inputs = self.inputs_of(run, piece, prepared)
        if step.lease is not None:
            return step.confidences(step.lease.run(inputs, cancellation).tensors)
        if isinstance(inputs, Content):
            inputs = step.servable.prepare(inputs.kind, inputs.items[0])
        return step.confidences(step.servable.run(inputs, (step.output,), cancellation))


class Composed(Servable):
    """`resolve_step` says who answers for a step at this moment; it raises HeadwayError where nobody does."""

    def __init__(self, manifest: Manifest, directory: Path, resolve_step: ResolveStep) -> None:
        """Raises RegistryError where the steps do not fit each other, StepNotReady where one cannot answer."""
        assert manifest.composition is not None
        assert isinstance(manifest.answer, ClassificationAnswer)
        self.composition: Composition = manifest.composition
        self.output = manifest.answer.output
        self._dtype = NUMPY_DTYPES[manifest.outputs[0].datatype]
        self._resolve_step = resolve_step
        self._refs = [step.ref for step in manifest.composition.steps]
        self._label = f"{manifest.name}@{manifest.version}"
        self._fits: weakref.WeakKeyDictionary[Servable, bool] = weakref.WeakKeyDictionary()
        super().__init__(manifest, directory, _Steps(self, manifest))
        self._check_steps()

    def lease(self, routing_key: bytes | None = None, trail: tuple[str, ...] = ()) -> Lease:
        """Who answers for the steps of one call. Raises ModelNotReady, ModelFailed."""
        label = self._label
        if label in trail or len(trail) >= MAX_DEPTH:
            raise ModelFailed(f"{' → '.join([*trail, label])}: compositions must not name each other in a circle")
        steps = []
        for number, ref in enumerate(self._refs):
            try:
                resolved = self._resolve_step(ref, routing_key)
                fits = self._fit(number, resolved.servable)
            except ModelNotReady as exc:
                raise ModelNotReady(f"step {ref} of {label}: {exc}") from exc
            except HeadwayError as exc:
                raise ModelFailed(f"step {ref} of {label}: {exc}") from exc
            servable = resolved.servable
            inner = servable.lease(routing_key, (*trail, label)) if isinstance(servable, Composed) else None
            steps.append(LeasedStep(resolved, fits and (inner is None or inner.takes_tensors), inner))
        return Lease(self, tuple(steps))

    def plan(self, rows: int) -> Plan:
        return self.composition.plan(rows)

    def count(self, piece: Content | Tensors) -> int:
        assert self.batch_axis is not None
        return 1 if isinstance(piece, Content) else self.batch_axis.count(piece)

    def combined(self, confidences: Array, answered_by: Array | None) -> Combined:
        tensors = {self.output: confidences.astype(self._dtype, copy=False)}
        return Combined(tensors, tuple(answered_by.tolist()) if answered_by is not None else None)

    def check_names(self, outputs: Sequence[str] | None) -> None:
        """Raises RunFailed where another output than the only one is asked for."""
        if outputs is not None and set(outputs) != {self.output}:
            raise RunFailed(f"the only output is {self.output!r}; {', '.join(outputs)} was asked for")

    def run_item(self, kind: ContentKind, item: Any) -> Tensors:
        if self._images is None:
            return super().run_item(kind, item)
        return self.lease().run(Content(kind, (item,))).tensors

    def check_batch_axis(self) -> None:
        """Its rows are those of its steps, which were tried."""

    def _check_steps(self) -> None:
        path = self.directory / "model.yaml"
        for number, ref in enumerate(self._refs):
            try:
                servable = self._resolve_step(ref, None).servable
            except HeadwayError as exc:
                raise StepNotReady(f"{path}: composition.steps[{number}]: {ref} cannot answer: {exc}") from exc
            if not self._fit(number, servable) and number == 0:
                raise RegistryError(
                    f"{path}: processing: is not that of the first step, {servable.name}@{servable.version}; write "
                    "processing and inputs as that has them"
                )

    def _fit(self, number: int, step: Servable) -> bool:
        """Whether a step takes the tensors that the composition makes. Raises RegistryError where it does not fit."""
        fits = self._fits.get(step)
        if fits is None:
            problem = self._problem(step)
            if problem is not None:
                where = f"{self.directory / 'model.yaml'}: composition.steps[{number}]"
                raise RegistryError(f"{where}: {step.name}@{step.version} {problem}")
            fits = self._fits[step] = self._takes_same(step)
        return fits

    def _problem(self, step: Servable) -> str | None:
        assert self.classification is not None
        if step.classification is None:
            return f"is no classifier (answer: {step.manifest.answer.type}); a composition combines confidences"
        if step.kind != self.kind:
            return f"takes content of kind {step.kind}, and this version {self.kind}; all steps take the same kind"
        if step.classification.labels != self.classification.labels:
            return _describe_labels(step.classification.labels, self.classification.labels)
        if step.batch_axis is None:
            return "does not answer each row for itself (batch.axis), so its rows cannot be combined"
        if self.kind != "image" and not self._takes_same(step):
            takes, gives = (", ".join(map(str, one.input_specs)) for one in (step, self))
            return f"takes {takes}, but inputs says {gives}; all steps take what the composition does"
        return None

    def _takes_same(self, step: Servable) -> bool:
        if self.kind == "image" and step.manifest.processing != self.manifest.processing:
            return False
        return _signature(step.input_specs) == _signature(self.input_specs)


class _Steps:
    """The `Runtime` of a composition: nothing is loaded for it."""

    def __init__(self, composed: Composed, manifest: Manifest) -> None:
        self._composed = weakref.ref(composed)
        self.inputs = manifest.input_specs
        self.outputs = manifest.output_specs

    def run(
        self, tensors: Tensors, outputs: Sequence[str] | None = None, cancellation: Cancellation | None = None
    ) -> Tensors:
        composed = self._composed()
        assert composed is not None
        composed.check_names(outputs)
        return composed.lease().run(tensors, cancellation).tensors

    def close(self) -> None:
        """The steps are closed by whoever loaded them."""


def _signature(specs: Sequence[TensorSpec]) -> set[tuple[str, str, tuple[int, ...]]]:
    """What tells tensors apart: of a single one the name does not."""
    return {(spec.name if len(specs) > 1 else "", spec.datatype, spec.shape) for spec in specs}


def _describe_labels(step: Sequence[str], own: Sequence[str]) -> str:
    if len(step) != len(own):
        return f"has {len(step)} labels, and labels says {len(own)}; all steps need the same labels in the same order"
    number = int(np.argmax([one != other for one, other in zip(step, own, strict=True)]))
    return (
        f"has the label {step[number]!r} at index {number}, where this version has {own[number]!r}; "
        "all steps need the same labels in the same order"
    )
