"""The network that is taught: whether it fits the place of its teacher, its ONNX file, and its part of model.yaml."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from app.errors import HeadwayError, InvalidContent
from app.optimize.distillation.teacher import Lessons, check_teacher
from app.optimize.examples import Examples
from app.optimize.networks.torch_export import export_onnx
from app.registry.manifest import COMPOSITION, ClassificationAnswer
from app.registry.servables.servable import Servable
from app.tensors import Array, Tensors


def check_student(student: torch.nn.Module, teacher: Servable, examples: Examples) -> None:
    """Before the hours of work: whether the teacher can teach, the student takes its input, and can be exported.

    Raises InvalidContent.
    """
    tensors = _first_answered(teacher, examples)
    (row,) = tensors.values()
    rows = np.concatenate([row, row])
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise InvalidContent("the student has no parameters that could be trained")
    student.eval()
    try:
        with torch.no_grad():
            said = student(torch.from_numpy(rows))
    except Exception as exc:  # the user's own code
        raise InvalidContent(
            f"the student does not take the teacher's input, {rows.dtype} {list(rows.shape)}: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    wanted = [len(rows), count_classes(teacher)]
    if not isinstance(said, torch.Tensor) or list(said.shape) != wanted or said.dtype != torch.float32:
        what = f"{said.dtype} {list(said.shape)}" if isinstance(said, torch.Tensor) else f"a {type(said).__name__}"
        raise InvalidContent(f"the student gives {what} for {len(rows)} inputs; it must give logits, float32 {wanted}")
    export(student, teacher, rows)


def export(student: torch.nn.Module, teacher: Servable, rows: Array) -> bytes:
    """An ONNX file with the names of the teacher's tensors; with a softmax, where the teacher gives probabilities."""
    answer = _answer(teacher)
    network = student
    if answer.activation == "none":
        network = torch.nn.Sequential(OrderedDict(student=student, probabilities=torch.nn.Softmax(dim=-1)))
    (spec,) = teacher.input_specs
    return export_onnx(network, rows, input_names=[spec.name], output_names=[answer.output])


def describe_student(teacher: Servable, kind: str, lessons: Lessons, data: str) -> Mapping[str, Any]:
    """What is not as the teacher's model.yaml has it: an ONNX file, for any number of rows, with one output."""
    (entry,) = teacher.manifest.inputs
    shape = [-1, *lessons.inputs.shape[1:]]
    content: dict[str, Any] = {
        "runtime": "onnx",
        "inputs": [entry.model_dump(mode="json", exclude_unset=True) | {"shape": shape}],
        "outputs": [{"name": _answer(teacher).output, "datatype": "FP32", "shape": [-1, count_classes(teacher)]}],
        "training": {
            "algorithm": f"{kind}, distilled from {teacher.name} {teacher.version}",
            "data": f"{len(lessons.inputs)} inputs of {data}, {lessons.labelled} of them labelled",
        },
    }
    return content | ({"composition": None} if teacher.manifest.runtime == COMPOSITION else {})


def count_parameters(student: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def count_classes(teacher: Servable) -> int:
    assert teacher.classification is not None
    return len(teacher.classification.labels)


def _first_answered(teacher: Servable, examples: Examples) -> Tensors:
    """The first input that the teacher can answer, the answer being one that can be taught."""
    first: Exception | None = None
    for number in range(examples.count):
        try:
            tensors = examples.read(number)
            outputs = teacher.run(tensors)
        except (HeadwayError, OSError) as exc:
            first = first or exc
        else:
            check_teacher(teacher, outputs)
            return tensors
    if first is None:
        raise InvalidContent(f"{examples.data}: holds no inputs")
    raise InvalidContent(f"{examples.data}: none of its {examples.count} inputs can be used; the first: {first}")


def _answer(teacher: Servable) -> ClassificationAnswer:
    answer = teacher.manifest.answer
    assert isinstance(answer, ClassificationAnswer)
    return answer
