"""Golden tests: recorded requests must give their recorded answers on this machine before a version serves.

x86 CPUs without VNNI may saturate in the 16-bit accumulators of INT8 kernels and lose accuracy with no error;
this is where that is seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import HeadwayError, RegistryError
from app.processing.tensor import tensors_to_json
from app.registry.manifest import Golden
from app.registry.servables.servable import Servable
from app.tensors import Tensors


class Expected(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int = Field(ge=0)
    confidence: float


class GoldenRequest(BaseModel):
    """Exactly one of `image` (a file beside golden.json), `text` and `inputs`; `top`, `value` or `outputs` (tensors by
    name, of which some may be left out) is the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = None
    text: str | None = None
    inputs: Any = None
    top: tuple[Expected, ...] = ()
    value: float | None = None
    outputs: dict[str, Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _complete(self) -> GoldenRequest:
        if [self.image, self.text, self.inputs].count(None) != 2:
            raise ValueError("a request has either image, text or inputs")
        if [self.value is not None, bool(self.top), self.outputs is not None].count(True) != 1:
            raise ValueError("a request has either top, value or outputs, its recorded answer")
        return self


class GoldenFile(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    requests: tuple[GoldenRequest, ...] = Field(min_length=1)


def run_golden_tests(servable: Servable) -> int:
    """Run every golden request; return how many there were. Raises RegistryError with both figures on a difference."""
    golden = servable.manifest.golden
    if golden is None:
        return 0
    path = servable.directory / golden.file
    for number, request in enumerate(_read(path), 1):
        try:
            problem = _difference(servable, golden, request)
        except HeadwayError as exc:
            problem = str(exc)
        if problem:
            raise RegistryError(f"{path}: request {number} no longer gives its recorded answer: {problem}")
    return len(_read(path))


def _read(path: Path) -> tuple[GoldenRequest, ...]:
    try:
        return GoldenFile.model_validate(json.loads(path.read_bytes())).requests
    except (ValueError, ValidationError) as exc:
        raise RegistryError(f"{path}: is not a file of golden requests ({' '.join(str(exc).split())})") from exc


def _difference(servable: Servable, golden: Golden, request: GoldenRequest) -> str | None:
    if request.image is not None:
        name = (PurePosixPath(golden.file).parent / request.image).as_posix()
        if name not in servable.manifest.files:
            return f"its image {name!r} is not listed in model.yaml (files); add it with its sha256 and bytes"
        outputs = servable.run_item("image", (servable.directory / name).read_bytes())
    elif request.text is not None:
        outputs = servable.run_item("text", request.text)
    else:
        outputs = servable.run_item("tensor", request.inputs)
    if request.outputs is not None:
        return _difference_of_outputs(recorded_outputs(outputs), request.outputs, golden.tolerance)
    classes = len(servable.classification.labels) if servable.classification else 1
    items = servable.answer(outputs, classes)
    if not items:
        return "the model gave no answer"
    if len(items) != 1:
        return f"it has {len(items)} answers, and one is recorded; write a request for each row"
    if request.value is not None:
        found = items[0].value
        return None if found is not None and abs(found - request.value) <= golden.tolerance else f"value {found}"
    ranked = items[0].predictions
    if not ranked:
        return "the model gave no labels, recorded are some"
    if golden.top1 == "equal" and request.top and ranked[0].index != request.top[0].index:
        return f"the first label is {ranked[0].label!r} (index {ranked[0].index}), recorded is {request.top[0].index}"
    confidences = {prediction.index: prediction.confidence for prediction in ranked}
    for expected in request.top:
        found = confidences.get(expected.index)
        if found is None or abs(found - expected.confidence) > golden.tolerance:
            return f"the confidence of index {expected.index} is {found}, recorded is {expected.confidence}"
    return None


def recorded_outputs(outputs: Tensors) -> dict[str, Any]:
    """Tensors as golden.json holds them: nested lists by name; NaN and infinities are null."""
    return tensors_to_json(outputs)[0]


def _difference_of_outputs(found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> str | None:
    for name, values in expected.items():
        if name not in found:
            return f"there is no output {name!r}; the outputs are {', '.join(found)}"
        problem = _difference_of_values(found[name], values, tolerance, f"output {name!r}")
        if problem is not None:
            return problem
    return None


def _difference_of_values(found: Any, expected: Any, tolerance: float, place: str) -> str | None:
    """The first difference of nested lists; only values of floating point may differ, by `tolerance`."""
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{place} has {len(found)} values, recorded are {len(expected)}"
        pairs = enumerate(zip(found, expected, strict=True))
        parts = (_difference_of_values(*pair, tolerance, f"{place}[{number}]") for number, pair in pairs)
        return next((part for part in parts if part is not None), None)
    if isinstance(found, float) and type(expected) in (int, float) and abs(found - expected) <= tolerance:
        return None
    if type(found) is type(expected) and not isinstance(found, float) and found == expected:
        return None
    return f"{place} is {found}, recorded is {expected}"
