"""What `headway quantize` does not measure of an INT8 image classifier: the path that serves it, its processing, other
CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.engine.inference import Inference
from app.optimize.evaluate import Evaluation, Sample, evaluate, find_samples
from app.processing.image import ImageProcessing
from app.registry.serving.lifecycle import Registry, Resolved
from app.registry.store import Store
from app.registry.versions import ModelRef
from recipes import photos, portability


@dataclass(frozen=True, slots=True)
class Figures:
    """`plain_top1`, in 0…1, is with photos that were processed without any haste."""

    served: Evaluation
    plain_top1: float
    portability: portability.Portability | None


def measure(models: Path, ref: str, folder: Path, portable: int) -> Figures:
    """Run the version `ref` ("name@version") on the labelled photos of `folder`.

    `portable` is how many of them are also run on an emulated CPU; 0 for none.
    """
    registry = Registry(Store(models), threads=1)
    resolved, samples = _open(registry, ref, folder)
    served = evaluate(Inference(registry), resolved, samples)
    manifest = resolved.servable.manifest
    assert isinstance(manifest.processing, ImageProcessing)
    file, paths = resolved.servable.directory / manifest.model_file, [sample.path for sample in samples]
    best = portability.answer(file, photos.read_plain_pixels(paths, manifest.processing)).argmax(axis=1)
    pixels = photos.read_pixels(paths[:portable], manifest.processing) if portable else None
    return Figures(
        served=served,
        plain_top1=float(np.mean(best == [sample.class_index for sample in samples])),
        portability=portability.compare(file, pixels) if pixels is not None else None,
    )


def evaluate_version(models: Path, ref: str, folder: Path) -> Evaluation:
    """`headway evaluate` on one thread."""
    registry = Registry(Store(models), threads=1)
    resolved, samples = _open(registry, ref, folder)
    return evaluate(Inference(registry), resolved, samples)


def _open(registry: Registry, ref: str, folder: Path) -> tuple[Resolved, list[Sample]]:
    resolved = registry.open(ModelRef.parse(ref))
    assert resolved.servable.classification is not None
    return resolved, find_samples(folder, resolved.servable.classification.labels)
