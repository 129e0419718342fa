"""The answers of a version to attacked samples, by the path that serves it."""

from __future__ import annotations

import hashlib

import numpy as np

from app.optimize.robustness.space import Space
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.servable import Servable
from app.tensors import Array

# Of so many answers at most; black-box attacks ask for the same sample several times in a row.
_MOST_KEPT = 4096


class Engine:
    """A classifier, of photos or of rows of numbers. Not thread-safe. `queries` counts runs of a sample."""

    def __init__(self, servable: Servable, space: Space) -> None:
        assert servable.classification is not None
        assert isinstance(servable.manifest.answer, ClassificationAnswer)
        self.servable = servable
        self.space = space
        self.classification = servable.classification
        self.classes = len(servable.classification.labels)
        self.queries = 0
        self._input = servable.input_specs[0].name
        self._output = servable.manifest.answer.output
        self._known: dict[bytes, Array] = {}

    def confidences(self, values: Array) -> Array:
        """Of samples [n, …] in the units of the space: [n, classes], float64; -1 where a score is not finite.

        As many rows share a run as in service.
        """
        tensor = self.space.tensor(values)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in tensor]
        if len(self._known) + len(keys) > _MOST_KEPT:
            self._known.clear()
        unknown = list({key: number for number, key in enumerate(keys) if key not in self._known}.items())
        most = self.servable.max_batch_size
        for start in range(0, len(unknown), most):
            chosen = unknown[start : start + most]
            scores = self._run(tensor[[number for _, number in chosen]])
            self._known.update({key: row for (key, _), row in zip(chosen, scores, strict=True)})
        return np.stack([self._known[key] for key in keys])

    def labels(self, values: Array) -> Array:
        """The number of the best class of each sample: as the engine ranks them, the first of equals."""
        best: Array = self.confidences(values).argmax(axis=1)
        return best

    def _run(self, tensor: Array) -> Array:
        self.queries += len(tensor)
        tensors = {self._input: tensor}
        if self.servable.kind == "tensor":
            tensors = dict(self.servable.check(tensors))
        scores = self.servable.run(tensors)[self._output]
        confidences = self.classification.confidences(scores.reshape(-1, scores.shape[-1]))
        return np.where(np.isfinite(confidences), confidences, -1.0)
