"""KServe's Python server: one custom Model a model over the V1 protocol, with a uvicorn worker a core."""

from __future__ import annotations

import base64
from functools import cached_property
from typing import Any

from kserve import Model, ModelServer

from bench.peers.classifiers import PhotoClassifier, TinyClassifier


class PhotoModel(Model):
    # With more than one worker KServe pickles its models for each; an ONNX Runtime session is made there.
    @cached_property
    def classifier(self) -> PhotoClassifier:
        return PhotoClassifier()

    def preprocess(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> list[bytes]:  # noqa: ARG002
        return [base64.b64decode(instance["image"]["b64"]) for instance in payload["instances"]]

    def predict(self, payload: list[bytes], headers: dict[str, str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        return {"predictions": [self.classifier.classify(data) for data in payload]}


class TinyModel(Model):
    @cached_property
    def classifier(self) -> TinyClassifier:
        return TinyClassifier()

    def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:  # noqa: ARG002
        return {"predictions": self.classifier.classify(payload["instances"])}


if __name__ == "__main__":
    models = [PhotoModel("photo"), TinyModel("tiny")]
    for model in models:
        model.load()
    ModelServer().start(models)
