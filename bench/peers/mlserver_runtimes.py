"""MLServer: one custom runtime a model, decoded and encoded by `decode_args`, in parallel workers (MLSERVER_…)."""

from typing import List, Tuple  # noqa: UP035 - the codecs are found by these types, not by list and tuple

import numpy as np
from mlserver import MLModel
from mlserver.codecs import decode_args

from bench.peers.classifiers import PhotoClassifier, TinyClassifier


class PhotoRuntime(MLModel):
    async def load(self) -> bool:
        self.classifier = PhotoClassifier()
        return True

    @decode_args
    async def predict(self, image: List[bytes]) -> Tuple[List[str], np.ndarray]:  # noqa: UP006
        found = [prediction for data in image for prediction in self.classifier.classify(data)]
        return [one["label"] for one in found], np.array([one["confidence"] for one in found])


class TinyRuntime(MLModel):
    async def load(self) -> bool:
        self.classifier = TinyClassifier()
        return True

    @decode_args
    async def predict(self, features: np.ndarray) -> Tuple[List[str], np.ndarray]:  # noqa: UP006
        found = self.classifier.classify(features)
        return [one["label"] for one in found], np.array([one["confidence"] for one in found])
