"""What is kept of the inputs and answers of a version that has a baseline, until they are counted in its bins.

Keeping costs a microsecond; counting is done later, elsewhere (app/engine/counting.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from app.processing.classification import Classification
from app.processing.image import ImageProcessing, ImageProcessor
from app.registry.baseline import (
    ANSWER_PREFIX,
    PHOTO_FEATURES,
    Baseline,
    answer_features,
    megapixels,
    photo_features,
)
from app.registry.manifest import Manifest
from app.tensors import NUMPY_DTYPES, Array, Tensors

# Each second in each worker. The features of a photo take 0.3 ms, those of a row some microseconds.
PHOTOS_A_SECOND = 20
ROWS_A_SECOND = 1000
# As many prepared photos take as long as one that is to be decoded, too.
_ENCODED_COSTS = 10
# So long the requests of the worker go first, between two photos.
_PAUSE_SECONDS = 0.001


class BinSample:
    """`offer_*` may be called in any thread, and keep nothing until `refill` was called; `take` in one thread."""

    def __init__(self, manifest: Manifest, classification: Classification | None, baseline: Baseline) -> None:
        self.baseline = baseline
        self._manifest = manifest
        self._classification = classification
        self._is_photo = manifest.content_kind == "image"
        self._output: str | None = getattr(manifest.answer, "output", None)
        self._photos: list[tuple[Array, float]] = []
        self._encoded: list[bytes] = []
        self._rows: list[Any] = []
        self._answers: list[Array] = []
        self._inputs_left = self._answers_left = 0

    def refill(self) -> None:
        """For the next second."""
        self._inputs_left = self._answers_left = PHOTOS_A_SECOND if self._is_photo else ROWS_A_SECOND

    def offer_photo(self, tensor: Array, photo: bytes) -> None:
        """A prepared photo, [1, …], and the encoded one."""
        if self._inputs_left > 0:
            self._inputs_left -= 1
            self._photos.append((tensor, megapixels(photo)))

    def offer_encoded(self, photo: bytes) -> None:
        """A photo that was answered and is not at hand as this version would prepare it."""
        if self._inputs_left > 0:
            self._inputs_left -= _ENCODED_COSTS
            self._encoded.append(photo)

    def offer_rows(self, rows: Any) -> None:
        """What a caller sent and the model took, before value policies: an array or nested lists, or those by name."""
        if self._inputs_left <= 0:
            return
        if isinstance(rows, Mapping):
            (rows,) = rows.values()
        # Evenly over the call, whose rows may be in an order.
        kept = rows[:: _step(len(rows), self._inputs_left)]
        self._inputs_left -= len(kept)
        # Of an array a copy: it may be a view of a large body.
        self._rows.append(kept[:, : len(self.baseline.features)].copy() if isinstance(kept, np.ndarray) else kept)

    def offer_answer(self, outputs: Tensors) -> None:
        """The outputs of a run, or one caller's rows of them."""
        if self._answers_left <= 0 or self._output is None or self._output not in outputs:
            return
        values = outputs[self._output]
        rows = values.reshape(-1, values.shape[-1] if self._classification is not None else 1)
        kept = rows[:: _step(len(rows), self._answers_left)]
        self._answers_left -= len(kept)
        self._answers.append(kept)

    def take(self) -> dict[str, Array]:
        """The counts of each feature, by the names of `Baseline.all_bins`: its bins, and last what is missing.

        Features of which there was nothing are left out.
        """
        # What a thread adds meanwhile to the list that it has in hand is in it, or lost: it is a sample.
        photos, self._photos = self._photos, []
        encoded, self._encoded = self._encoded, []
        rows, self._rows = self._rows, []
        answers, self._answers = self._answers, []
        values = self._photo_values(photos, encoded) if self._is_photo else self._row_values(rows)
        values |= self._answer_values(answers)
        return {name: bins.count(values[name]) for name, bins in self.baseline.all_bins.items() if name in values}

    def _photo_values(self, photos: Sequence[tuple[Array, float]], encoded: Sequence[bytes]) -> dict[str, Array]:
        processing = self._manifest.processing
        assert isinstance(processing, ImageProcessing)
        prepare = ImageProcessor(processing).prepare
        rows = []
        for tensor, size in chain(photos, ((prepare(photo), megapixels(photo)) for photo in encoded)):
            rows.append(photo_features(tensor, processing, size))
            time.sleep(_PAUSE_SECONDS)
        return {name: np.array([row[name] for row in rows]) for name in PHOTO_FEATURES} if rows else {}

    def _row_values(self, kept: Sequence[Any]) -> dict[str, Array]:
        """Numbers as the model takes them, None and NaN alike missing."""
        features = self.baseline.features
        dtype = NUMPY_DTYPES[self._manifest.inputs[0].datatype]
        parts = [np.asarray(rows, np.float64)[:, : len(features)] for rows in kept]
        # A model may take rows of any length, and these are others.
        parts = [part for part in parts if part.shape[1] == len(features)]
        if not parts:
            return {}
        with np.errstate(over="ignore"):  # of FP16 and FP32, which have infinities
            rows = np.concatenate(parts)
            rows = rows.astype(dtype).astype(np.float64) if dtype.kind == "f" else rows
        return dict(zip(features, rows.T, strict=True))

    def _answer_values(self, answers: Sequence[Array]) -> dict[str, Array]:
        if not answers or self._output is None:
            return {}
        outputs = {self._output: np.concatenate(answers)}
        found = answer_features(self._manifest, self._classification, outputs)
        return {ANSWER_PREFIX + name: values for name, values in found.items()}


def _step(rows: int, room: int) -> int:
    return max(1, -(-rows // room))
