"""Ray Serve: one FastAPI ingress deployment with a replica a core, started by its Python API.

Its guide to performance asks for RAY_SERVE_THROUGHPUT_OPTIMIZED and RAY_SERVE_ENABLE_HA_PROXY. The replicas get this
module by value, so that its annotations must not be strings.
"""

import base64
import os
import sys
from typing import Any

import ray
from fastapi import FastAPI, Request
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions

from bench.peers.classifiers import PhotoClassifier, TinyClassifier

WORKERS = int(os.environ["BENCH_WORKERS"])
app = FastAPI()


class PhotoBody(BaseModel):
    image: str


class RowsBody(BaseModel):
    inputs: list[list[float]]


@serve.deployment(num_replicas=WORKERS)
@serve.ingress(app)
class Peer:
    def __init__(self) -> None:
        self.photo, self.tiny = PhotoClassifier(), TinyClassifier()

    @app.post("/photo")
    def classify(self, body: PhotoBody) -> dict[str, Any]:
        return {"predictions": self.photo.classify(base64.b64decode(body.image))}

    @app.post("/photo-raw")
    async def classify_raw(self, request: Request) -> dict[str, Any]:
        return {"predictions": self.photo.classify(await request.body())}

    @app.post("/tiny")
    def classify_rows(self, body: RowsBody) -> dict[str, Any]:
        return {"predictions": self.tiny.classify(body.inputs)}

    @app.get("/ready")
    def ready(self) -> dict[str, Any]:
        return {}


if __name__ == "__main__":
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(sys.argv[1])))
    serve.run(Peer.bind(), blocking=True)
