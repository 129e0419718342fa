"""What a teacher says of each input, as logits: any version that classifies, run as it is served."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidContent, RunFailed
from app.optimize.distillation.data import UNKNOWN
from app.optimize.examples import Examples
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.servable import Servable
from app.tensors import Array, Tensors

# Probabilities in 8 bits add up to 1 within half a step a class.
_SUM_TOLERANCE = 0.1
_LEAST = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Lessons:
    """`inputs` [n, …] as the model takes them; `logits` [n, classes] FP32, the teacher's, None where it is not asked;
    `classes` [n] INT64, UNKNOWN where there is no label. `skipped` names what could not be used, and why; `shared`
    counts inputs that were left out because they are in other data, too."""

    inputs: Array
    classes: Array
    logits: Array | None = None
    skipped: tuple[str, ...] = ()
    shared: int = 0

    @property
    def labelled(self) -> int:
        return int(np.count_nonzero(self.classes != UNKNOWN))

    def keys(self) -> frozenset[bytes]:
        return frozenset(row.tobytes() for row in self.inputs)


def gather(
    examples: Examples,
    teacher: Servable,
    progress: Callable[[], None] = lambda: None,
    *,
    is_asked: bool = True,
    without: Container[bytes] = frozenset(),
) -> Lessons:
    """Read every input, once, and ask the teacher where `is_asked`; all of it is kept in memory. Inputs in `without`
    (`Lessons.keys` of other data) are left out. Raises InvalidContent where nothing is left, and for scores that are no
    logits and no probabilities."""
    inputs: list[Array] = []
    logits: list[Array] = []
    numbers: list[int] = []
    skipped, shared = [], 0
    for number in range(examples.count):
        try:
            tensors = examples.read(number)
            (row,) = tensors.values()
            _check_input(row, inputs)
            if row.tobytes() in without:
                shared += 1
            else:
                logits += [read_logits(teacher, teacher.run(tensors))] if is_asked else []
                inputs.append(row)
                numbers.append(number)
        except (InvalidContent, RunFailed, OSError) as exc:
            skipped.append(f"{examples.where(number)}: {exc}")
        progress()
    if not inputs:
        reason = f"the first: {skipped[0]}" if skipped else f"{shared} are in the other data, too"
        raise InvalidContent(f"{examples.data}: none of its {examples.count} inputs can be used; {reason}")
    classes = np.array(examples.classes if examples.classes is not None else [UNKNOWN] * examples.count, np.int64)
    stacked = np.concatenate(logits) if is_asked else None
    return Lessons(np.concatenate(inputs), classes[numbers], stacked, tuple(skipped), shared)


def read_logits(teacher: Servable, outputs: Tensors) -> Array:
    """[n, classes] FP32: the output itself where model.yaml says that they are logits; of probabilities p log p, which
    are the logits but for a constant of each row, that a softmax of any temperature takes out again.

    A probability of 0, as quantised ones often are, stays one at each temperature. Raises InvalidContent.
    """
    answer = teacher.manifest.answer
    assert isinstance(answer, ClassificationAnswer)
    scores = outputs[answer.output]
    scores = np.asarray(scores.reshape(-1, scores.shape[-1]), np.float32)
    if not np.all(np.isfinite(scores)):
        raise InvalidContent("the teacher's scores are not finite")
    if answer.activation == "softmax":
        return scores
    logits: Array = np.log(np.maximum(scores, _LEAST))
    return logits


def check_teacher(teacher: Servable, outputs: Tensors) -> None:
    """Hold the answer to some inputs against what a student can be taught. Raises InvalidContent."""
    answer, label = teacher.manifest.answer, f"{teacher.name}@{teacher.version}"
    assert isinstance(answer, ClassificationAnswer)
    scores = np.asarray(outputs[answer.output], np.float64)
    is_share = bool(np.all(scores >= 0)) and bool(np.all(np.abs(scores.sum(axis=-1) - 1) <= _SUM_TOLERANCE))
    if answer.activation == "sigmoid" or (answer.activation == "none" and not is_share):
        raise InvalidContent(
            f"{label}: its scores do not add up to 1 over the classes, each stands for itself; distillation takes a "
            "teacher that chooses one class of several (softmax)"
        )


def _check_input(row: Array, others: list[Array]) -> None:
    if row.dtype.kind == "f" and not np.all(np.isfinite(row)):
        raise InvalidContent("has values that are missing or not finite, and a network learns nothing from them")
    if others and row.shape != others[0].shape:
        raise InvalidContent(f"is of shape {list(row.shape)}, others are of {list(others[0].shape)}")
