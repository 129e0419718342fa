"""LitServe: one LitAPI a model. Its documentation: on a CPU as many workers as cores, and the fast queue (ZeroMQ) above
100 requests a second; as many HTTP servers as workers.
"""

import base64
import os
import sys
from typing import Any

import litserve

from bench.peers.classifiers import PhotoClassifier, TinyClassifier


class PhotoAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        self.classifier = PhotoClassifier()

    def decode_request(self, request) -> bytes:  # type: ignore[no-untyped-def]  # any type here is one of FastAPI's
        return base64.b64decode(request["image"])

    def predict(self, x: bytes) -> list[dict[str, Any]]:
        return self.classifier.classify(x)

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"predictions": output}


class TinyAPI(PhotoAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.classifier = TinyClassifier()

    def decode_request(self, request) -> Any:  # type: ignore[no-untyped-def]
        return request["inputs"]


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    server = litserve.LitServer(
        [PhotoAPI(api_path="/photo"), TinyAPI(api_path="/tiny")],
        accelerator="cpu",
        workers_per_device=workers,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=workers,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
