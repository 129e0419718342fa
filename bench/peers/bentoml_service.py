"""BentoML: one service with three APIs and a worker process a core, without access log."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from bench.peers.classifiers import PhotoClassifier, TinyClassifier


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]), logging={"access": {"enabled": False}})
class Peer:
    def __init__(self) -> None:
        self.photo, self.tiny = PhotoClassifier(), TinyClassifier()

    @bentoml.api
    def classify(self, image: str) -> dict[str, Any]:
        return {"predictions": self.photo.classify(base64.b64decode(image))}

    @bentoml.api
    def classify_file(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        return {"predictions": self.photo.classify(image.read_bytes())}

    @bentoml.api
    def classify_rows(self, inputs: list[list[float]]) -> dict[str, Any]:
        return {"predictions": self.tiny.classify(inputs)}
