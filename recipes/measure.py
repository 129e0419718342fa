"""Accuracy, latency and memory of an INT8 image classifier beside its float32 parent, in one run and through the path
that serves them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.engine.inference import Inference
from app.optimize.evaluate import Evaluation, Sample, evaluate, find_samples
from app.processing.image import ImageProcessing
from app.registry.lifecycle import Registry, Resolved
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.tensors import Array
from recipes import machine, photos, portability

ROUNDS, RUNS_A_ROUND = 10, 25
Percentiles = dict[str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """Ratios in 0…1; times in ms on one thread, of the model alone (`run`) or of the whole path (`Evaluation`)."""

    int8: Evaluation
    fp32: Evaluation
    plain_top1: float
    int8_run_ms: Percentiles
    fp32_run_ms: Percentiles
    rss_mb: float
    model_bytes: int
    portability: portability.Portability | None


def measure(models: Path, int8: str, fp32: str, folder: Path, portable: int) -> Figures:
    """Compare the versions `int8` and `fp32` ("name@version") on the labelled photos of `folder`.

    `portable` is how many of them are also run on an emulated CPU; 0 for none.
    """
    small, large = _open(models, int8), _open(models, fp32)
    assert small.servable.classification is not None
    samples = find_samples(folder, small.servable.classification.labels)
    processing = small.servable.manifest.processing
    assert isinstance(processing, ImageProcessing)
    pixels = photos.read_pixels([sample.path for sample in samples], processing)
    int8_run_ms, fp32_run_ms = _time_runs([small, large], pixels)
    file = small.servable.directory / small.servable.manifest.model_file
    return Figures(
        int8=_evaluate(models, small, samples),
        fp32=_evaluate(models, large, samples),
        plain_top1=_plain_top1(small, samples, processing),
        int8_run_ms=int8_run_ms,
        fp32_run_ms=fp32_run_ms,
        rss_mb=machine.loaded_rss_mb(models, int8),
        model_bytes=file.stat().st_size,
        portability=portability.compare(file, pixels[:portable]) if portable else None,
    )


def _open(models: Path, ref: str) -> Resolved:
    return Registry(Store(models), threads=1).open(ModelRef.parse(ref))


def _evaluate(models: Path, resolved: Resolved, samples: Sequence[Sample]) -> Evaluation:
    return evaluate(Inference(Registry(Store(models), threads=1)), resolved, samples)


def _plain_top1(resolved: Resolved, samples: Sequence[Sample], processing: ImageProcessing) -> float:
    """What the fast image processing is held against."""
    pixels = photos.read_plain_pixels([sample.path for sample in samples], processing)
    hits = [_run(resolved, row).argmax() == sample.class_index for row, sample in zip(pixels, samples, strict=True)]
    return float(np.mean(hits))


def _time_runs(versions: Sequence[Resolved], pixels: Array) -> list[Percentiles]:
    """The versions take turns by rounds, so that a noisy moment hits all; a round's first runs refill the caches."""
    times: list[list[float]] = [[] for _ in versions]
    for _ in range(ROUNDS):
        for version, spent in zip(versions, times, strict=True):
            spent += [_time_run(version, pixels[run % len(pixels)]) for run in range(RUNS_A_ROUND)][5:]
    return [{f"p{p}": round(float(np.percentile(spent, p)), 2) for p in (50, 95)} for spent in times]


def _time_run(version: Resolved, photo: Array) -> float:
    started = time.perf_counter()
    _run(version, photo)
    return (time.perf_counter() - started) * 1e3


def _run(version: Resolved, photo: Array) -> Array:
    servable = version.servable
    name = servable.manifest.inputs[0].name
    return next(iter(servable.run({name: photo[np.newaxis]}).values()))[0]
