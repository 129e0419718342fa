"""What the inputs and answers of a version look like on reference data: `baseline.json`, which a version may carry.

`headway baseline` measures it; what is counted later is counted in its bins, of the numbers that are taken here.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from app.errors import RegistryError
from app.monitoring.binning import Bins, ClassBins
from app.monitoring.features import image_features, output_features
from app.processing.classification import Classification
from app.processing.image import FORMATS, ImageProcessing
from app.registry.manifest import ClassificationAnswer, Manifest, RegressionAnswer
from app.tensors import Array, Tensors

BASELINE_FILE = "baseline.json"
MAX_FEATURES = 64
PHOTO_FEATURES = ("brightness", "contrast", "sharpness", "colour", "size")
ANSWER_FEATURES = {
    "classification": ("classes", "confidence", "entropy"),
    "regression": ("value",),
    "tensor": (),
}
ANSWER_PREFIX = "answer:"
_MAX_FILE_BYTES = 1_000_000
_MAX_NAME = 128
_REQUIRED = ("schema", "data", "n", "order", "features")
_ANSWERS: Mapping[str, type[Bins | ClassBins]] = {
    "classes": ClassBins,
    "confidence": Bins,
    "entropy": Bins,
    "value": Bins,
}


@dataclass(frozen=True, slots=True)
class Baseline:
    """`n` inputs of `data` with their answers, in bins.

    `features`: of photos PHOTO_FEATURES, of a table the first 64 columns in their order. A classifier has `classes`
    (the best one of each input), `confidence` (the highest) and `entropy` (bits), a regression has `value`.
    """

    schema: ClassVar[int] = 1

    data: str
    n: int
    features: Mapping[str, Bins]
    classes: ClassBins | None = None
    confidence: Bins | None = None
    entropy: Bins | None = None
    value: Bins | None = None

    @classmethod
    def from_dict(cls, document: object, where: str) -> Self:
        """What `to_dict` gave. Raises RegistryError; `where` names the file for it."""
        found = _check_keys(document, where)
        if type(found["schema"]) is not int or found["schema"] != cls.schema:
            raise RegistryError(
                f"{where}: schema: this Headway reads {cls.schema}, not {found['schema']!r}; measure anew"
            )
        data, n, order, features = (found[key] for key in _REQUIRED[1:])
        if not is_name(data):
            raise RegistryError(f"{where}: data: must be the name of the data, of 1 to {_MAX_NAME} visible characters")
        if type(n) is not int or n < 1:
            raise RegistryError(f"{where}: n: must be the number of inputs, 1 or more")
        if not isinstance(features, dict) or not 1 <= len(features) <= MAX_FEATURES:
            raise RegistryError(f"{where}: features: must be an object with 1 to {MAX_FEATURES} features by name")
        for name in features:
            if not is_name(name):
                raise RegistryError(f"{where}: features: {name!r} is no name of 1 to {_MAX_NAME} visible characters")
            if name.startswith(ANSWER_PREFIX):
                raise RegistryError(
                    f"{where}: features: {name!r} may not begin with {ANSWER_PREFIX}; rename the column"
                )
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            raise RegistryError(f"{where}: order: must be the list of the features' names")
        if sorted(order) != sorted(features):
            raise RegistryError(f"{where}: order: must name each of the features once, and nothing else")
        bins = {name: Bins.from_dict(features[name], f"{where}: features.{name}") for name in order}
        answers = {key: kind.from_dict(found[key], f"{where}: {key}") for key, kind in _ANSWERS.items() if key in found}
        for key, one in ({f"features.{name}": one for name, one in bins.items()} | answers).items():
            if sum(one.counts) + one.missing != n:
                raise RegistryError(f"{where}: {key}: counts {sum(one.counts) + one.missing} inputs, but n is {n}")
        return cls(data, n, bins, **answers)  # type: ignore[arg-type]

    @property
    def all_bins(self) -> dict[str, Bins | ClassBins]:
        """By the names that counts have everywhere: those of answers begin with ANSWER_PREFIX and come first."""
        return {ANSWER_PREFIX + key: bins for key, bins in self.answers.items()} | dict(self.features)

    @property
    def answers(self) -> dict[str, Bins | ClassBins]:
        """Those of classes, confidence, entropy and value that there are."""
        return {key: bins for key in _ANSWERS if (bins := getattr(self, key)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """For JSON. `order` holds the names of the features in the order of the columns."""
        return {
            "schema": self.schema,
            "data": self.data,
            "n": self.n,
            "order": list(self.features),
            "features": {name: bins.to_dict() for name, bins in self.features.items()},
            **{key: bins.to_dict() for key, bins in self.answers.items()},
        }

    def to_json(self) -> bytes:
        """The same bytes for the same figures; each number with as many digits as it takes to be read back."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def read_baseline(path: Path) -> Baseline:
    """Raises RegistryError with the file and the field."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise RegistryError(f"{path}: cannot be read ({exc.strerror}); check that it exists and its rights") from exc
    if len(data) > _MAX_FILE_BYTES:
        raise RegistryError(f"{path}: is larger than {_MAX_FILE_BYTES} bytes; this cannot be a baseline")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RegistryError(f"{path}: is not JSON ({' '.join(str(exc).split())}); measure the baseline anew") from exc
    return Baseline.from_dict(document, str(path))


def load_baseline(directory: Path, manifest: Manifest) -> Baseline | None:
    """The baseline of the version in `directory`; None where it has none.

    Raises RegistryError where it is damaged, or is not of what the version takes and answers.
    """
    if manifest.baseline is None:
        return None
    path = directory / manifest.baseline
    baseline = read_baseline(path)
    for problem in _misfits(baseline, manifest):
        raise RegistryError(f"{path}: {problem}; it is of another model: measure the baseline anew")
    return baseline


def is_name(text: object) -> bool:
    """Whether this can be the name of a feature or of data: 1 to 128 visible characters."""
    return isinstance(text, str) and bool(text.strip()) and len(text) <= _MAX_NAME and text.isprintable()


def megapixels(photo: bytes) -> float:
    """The size of an encoded photo that could be prepared, from its header."""
    with Image.open(io.BytesIO(photo), formats=FORMATS) as image:
        return image.width * image.height / 1e6


def photo_pixels(tensor: Array, processing: ImageProcessing) -> Array:
    """The pixels that a model's input was made of, before normalisation: uint8 [crop, crop, 3], RGB.

    `tensor` is what `ImageProcessor.prepare` gave, [1, …]. A grey photo has three equal channels.
    """
    pixels: Array = tensor[0].transpose(1, 2, 0) if processing.layout == "NCHW" else tensor[0]
    if processing.normalise != "in_graph":
        mean, scale = (np.array(values) for values in (processing.normalise.mean, processing.normalise.scale))
        with np.errstate(invalid="ignore"):
            levels = np.rint(pixels.astype(np.float64) * scale + mean)
        pixels = np.nan_to_num(levels).clip(0, 255).astype(np.uint8)
    if processing.colour == "GRAY":
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, ::-1] if processing.colour == "BGR" else pixels


def photo_features(tensor: Array, processing: ImageProcessing, size: float = np.nan) -> dict[str, float]:
    """PHOTO_FEATURES of a model's input (see `photo_pixels`); `size` is in megapixels, NaN where it is not known."""
    return image_features(photo_pixels(tensor, processing), size)


def answer_features(manifest: Manifest, classification: Classification | None, outputs: Tensors) -> dict[str, Array]:
    """What ANSWER_FEATURES names, of all rows of a run: [rows] each. A class is -1 where no score is finite."""
    answer = manifest.answer
    if isinstance(answer, RegressionAnswer):
        return {"value": outputs[answer.output].reshape(-1).astype(np.float64)}
    if not isinstance(answer, ClassificationAnswer) or classification is None:
        return {}
    scores = outputs[answer.output]
    confidences = classification.confidences(scores.reshape(-1, scores.shape[-1]))
    is_finite = np.isfinite(confidences)
    best = np.where(is_finite, confidences, -np.inf).argmax(axis=1)
    return {"classes": np.where(is_finite.any(axis=1), best, -1), **output_features(confidences)}


def _check_keys(document: object, where: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise RegistryError(f"{where}: must be an object with the keys {', '.join(_REQUIRED)}")
    for key in _REQUIRED:
        if key not in document:
            raise RegistryError(f"{where}: {key}: is missing; measure the baseline anew")
    for key in document:
        if key not in _REQUIRED and key not in _ANSWERS:
            raise RegistryError(f"{where}: {key}: unknown key; measure the baseline anew")
    return document


def _misfits(baseline: Baseline, manifest: Manifest) -> Iterator[str]:
    """What says that a baseline is of another model."""
    names, shape = set(baseline.features), manifest.inputs[0].shape
    if manifest.content_kind == "image" and names != set(PHOTO_FEATURES):
        yield f"features: of photos they are {', '.join(PHOTO_FEATURES)}, but they are {', '.join(baseline.features)}"
    if manifest.content_kind == "tensor":
        columns = shape[1] if len(shape) == 2 and len(manifest.inputs) == 1 else 0
        if columns != -1 and len(names) != min(columns, MAX_FEATURES):
            yield f"features: has {len(names)}, but the version takes {columns} numbers a row"
    if manifest.content_kind == "text":
        yield "features: those of texts are not counted"
    wanted = ANSWER_FEATURES[manifest.answer.type]
    for key in _ANSWERS:
        if (key in wanted) != (key in baseline.answers):
            yield f"{key}: {'is missing' if key in wanted else 'stands there'}, and the version answers with " + (
                "a value" if wanted == ("value",) else "classes" if wanted else "tensors"
            )
    if isinstance(manifest.answer, ClassificationAnswer) and baseline.classes is not None:
        output = next(entry for entry in manifest.outputs if entry.name == manifest.answer.output)
        classes = output.shape[-1] if output.shape else -1
        if classes != -1 and max(baseline.classes.classes, default=0) >= classes:
            yield f"classes: names the class {max(baseline.classes.classes)}, but the version has {classes}"
