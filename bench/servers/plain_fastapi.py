"""FastAPI with ONNX Runtime as most people write it: a pydantic body, a plain function, the usual Pillow steps."""

from __future__ import annotations

import base64
import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from bench.peers.classifiers import choose_pixels

MODELS = os.environ["BENCH_MODELS"]
app = FastAPI()
photo = ort.InferenceSession(f"{MODELS}/efficientnet-lite0/1.1.0/model.onnx")
pixels = choose_pixels()
tiny = ort.InferenceSession(f"{MODELS}/tiny/1.0.0/model.onnx")
with open(f"{MODELS}/efficientnet-lite0/1.1.0/labels.txt") as file:
    photo_labels = file.read().splitlines()


class PredictBody(BaseModel):
    image: str | None = None
    inputs: list[list[float]] | None = None
    model: str | None = None


def classify(data: bytes) -> dict:  # type: ignore[type-arg]
    scores = photo.run(None, {"image": pixels(data)})[0][0]
    best = np.argsort(scores)[::-1][:5]
    return {"predictions": [{"label": photo_labels[i], "confidence": float(scores[i])} for i in best]}


@app.post("/predict")
def predict(body: PredictBody) -> dict:  # type: ignore[type-arg]
    if body.image is not None:
        return classify(base64.b64decode(body.image))
    scores = tiny.run(None, {"features": np.array(body.inputs, np.float32)})[0]
    labels = ("first", "second", "third")
    return {"results": [{"label": labels[int(row.argmax())], "confidence": float(row.max())} for row in scores]}


@app.post("/predict-raw")
async def predict_raw(request: Request) -> dict:  # type: ignore[type-arg]
    return await run_in_threadpool(classify, await request.body())


@app.get("/health/ready")
def ready() -> dict:  # type: ignore[type-arg]
    return {}
