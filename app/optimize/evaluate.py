"""Accuracy and latency of a version on labelled data, through the same path that serves it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.engine.call import Call
from app.engine.inference import Inference
from app.errors import HeadwayError, InvalidContent
from app.monitoring.quality import score_classes
from app.optimize.labels_file import LABELS_FILE, read_labels
from app.registry.servables.composed import Composed
from app.registry.servables.servable import Content, Item, Servable
from app.registry.serving.lifecycle import Resolved
from app.tensors import Array

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled image, or, with `text`, one that stands at `line` of the file `path`."""

    path: Path
    class_index: int
    text: str | None = None
    line: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.text is None else f"{self.path}, line {self.line}"

    def read(self) -> Content:
        """Raises OSError."""
        return Content("image", (self.path.read_bytes(),)) if self.text is None else Content("text", (self.text,))


@dataclass(frozen=True, slots=True)
class Confusion:
    """How often inputs of class `actual` were taken for `predicted`."""

    actual: str
    predicted: str
    count: int


@dataclass(frozen=True, slots=True)
class StepUse:
    """Of a cascade's step: the share of the images that it was run on, and of those whose answer was its own."""

    step: str
    ran: float
    answered: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Ratios in 0…1. Macro figures are over the classes that occur as actual or as predicted (as scikit-learn's
    are), with 0 where a class was never predicted. Latency is of the whole path from an image or text in memory to its
    labels, one at a time, warm. What one costs is `mean_cpu_ms`: CPU time of all threads. `steps` is empty
    where the version is no cascade."""

    model: str
    version: str
    n: int
    unreadable: tuple[str, ...]
    top1: float
    top5: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    latency_ms: dict[str, float]
    mean_ms: float
    mean_cpu_ms: float
    confusions: tuple[Confusion, ...]
    steps: tuple[StepUse, ...] = ()


def find_samples(folder: Path, labels: Sequence[str]) -> list[Sample]:
    """Labelled images: labels.csv with the columns filename and class_index, or one folder a class.

    A class folder is named by the label or by its index. Raises InvalidContent with the line or folder.
    """
    if not folder.is_dir():
        raise InvalidContent(f"{folder}: is not a folder of labelled images")
    table = folder / LABELS_FILE
    samples = list(_from_table(table, len(labels)) if table.is_file() else _from_folders(folder, labels))
    if not samples:
        raise InvalidContent(f"{folder}: holds no labelled images; it needs {LABELS_FILE} or one folder a class")
    return samples


def find_readable(inference: Inference, version: Resolved, samples: Sequence[Sample]) -> Path:
    """The first image that a version can answer. Raises InvalidContent where there is none."""
    first = ""
    for sample in samples:
        try:
            predict_image(inference, version, sample.path.read_bytes())
        except (InvalidContent, OSError) as exc:
            first = first or f"{sample.path}: {exc}"
        else:
            return sample.path
    raise InvalidContent(f"none of the {len(samples)} images could be read; the first: {first}")


def evaluate(
    inference: Inference,
    resolved: Resolved,
    samples: Sequence[Sample],
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Predict every sample and compare. Unreadable images are listed, not counted as wrong."""
    return evaluate_together(inference, [resolved], samples, progress)[0]


def evaluate_together(
    inference: Inference,
    versions: Sequence[Resolved],
    samples: Sequence[Sample],
    progress: Callable[[], None] = lambda: None,
) -> list[Evaluation]:
    """As `evaluate`, each image with all versions in turn: what else the machine does, it does to all of them."""
    return [record.summarise() for record in record_together(inference, versions, samples, progress)]


def record_together(
    inference: Inference,
    versions: Sequence[Resolved],
    samples: Sequence[Sample],
    progress: Callable[[], None] = lambda: None,
) -> list[Record]:
    """What each version answers to each sample. The version that is asked first is another for each image: the caches
    are as cold for all of them."""
    records = [Record(resolved) for resolved in versions]
    for number, sample in enumerate(samples):
        first = number % len(records)
        try:
            content = sample.read()
        except OSError as exc:
            for record in records:
                record.skip(sample, exc)
        else:
            for record in (*records[first:], *records[:first]):
                record.add(inference, number, sample, content)
        progress()
    return records


class Record:
    """What one version gave. `predicted` is its best class by the number of the sample, of those that it could read."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved = resolved
        self.predicted: dict[int, int] = {}
        self._actual: list[int] = []
        self._ranked: list[list[int]] = []
        self._latencies: list[float] = []
        self._cpu_seconds = 0.0
        self._unreadable: list[str] = []
        self._answered_by: list[int] = []

    def add(self, inference: Inference, number: int, sample: Sample, content: Content) -> None:
        try:
            if not self.predicted:
                predict_content(inference, self.resolved, content)  # the first counts from its second run on
            started, cpu_started = time.perf_counter(), time.process_time()
            predicted, answered_by = predict_content(inference, self.resolved, content)
        except InvalidContent as exc:
            self.skip(sample, exc)
            return
        self._latencies.append(time.perf_counter() - started)
        self._cpu_seconds += time.process_time() - cpu_started
        self.predicted[number] = predicted[0]
        self._actual.append(sample.class_index)
        self._ranked.append(predicted)
        self._answered_by += answered_by

    def skip(self, sample: Sample, reason: Exception) -> None:
        self._unreadable.append(f"{sample}: {reason}")

    def summarise(self) -> Evaluation:
        servable = self.resolved.servable
        if not self._actual:
            raise InvalidContent(
                f"none of the {len(self._unreadable)} {servable.kind}s could be read; the first: {self._unreadable[0]}"
            )
        labels = servable.classification.labels if servable.classification else ()
        summary = _summarise(
            self.resolved, labels, self._actual, self._ranked, self._latencies, self._cpu_seconds, self._unreadable
        )
        return replace(summary, steps=_step_uses(servable, self._answered_by))


def macro_scores(actual: Array, predicted: Array) -> tuple[float, float, float]:
    """Macro precision, recall and F1 over the classes that occur; 0 where a ratio is undefined."""
    scores = score_classes(predicted, actual)
    precision, recall, f1 = np.mean([(score.precision, score.recall, score.f1) for score in scores], axis=0)
    return float(precision), float(recall), float(f1)


def _step_uses(servable: Servable, answered_by: Sequence[int]) -> tuple[StepUse, ...]:
    if not answered_by or not isinstance(servable, Composed):
        return ()
    numbers = np.array(answered_by)
    return tuple(
        StepUse(step.model, float(np.mean(numbers >= number)), float(np.mean(numbers == number)))
        for number, step in enumerate(servable.composition.steps)
    )


def predict_image(inference: Inference, resolved: Resolved, image: bytes) -> tuple[list[int], tuple[int, ...]]:
    """As `predict_content`, of an encoded image."""
    return predict_content(inference, resolved, Content("image", (image,)))


def predict_content(inference: Inference, resolved: Resolved, content: Content) -> tuple[list[int], tuple[int, ...]]:
    """The five best classes, and of a cascade the number of the step that answered. Raises InvalidContent and kin."""
    answer = inference.predict_now(Call(content, deadline=float("inf"), top_k=5), resolved)
    item = (answer.items or ())[0]
    if isinstance(item, HeadwayError):
        raise item
    assert isinstance(item, Item)
    return [prediction.index for prediction in item.predictions], answer.answered_by or ()


def _summarise(
    resolved: Resolved,
    labels: Sequence[str],
    actual: list[int],
    ranked: list[list[int]],
    latencies: list[float],
    cpu_seconds: float,
    unreadable: list[str],
) -> Evaluation:
    truth, first = np.array(actual), np.array([row[0] for row in ranked])
    precision, recall, f1 = macro_scores(truth, first)
    wrong = Counter((a, p) for a, p in zip(actual, first.tolist(), strict=True) if a != p)
    percentiles = np.percentile(np.array(latencies) * 1e3, (50, 95, 99))
    return Evaluation(
        model=resolved.servable.name,
        version=resolved.servable.version,
        n=len(actual),
        unreadable=tuple(unreadable),
        top1=float(np.mean(truth == first)),
        top5=float(np.mean([a in row for a, row in zip(actual, ranked, strict=True)])),
        macro_precision=precision,
        macro_recall=recall,
        macro_f1=f1,
        latency_ms={
            name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), percentiles, strict=True)
        },
        mean_ms=round(float(np.mean(latencies)) * 1e3, 3),
        mean_cpu_ms=round(cpu_seconds / len(actual) * 1e3, 3),
        confusions=tuple(Confusion(labels[a], labels[p], count) for (a, p), count in wrong.most_common(10)),
    )


def _from_table(table: Path, classes: int) -> Iterator[Sample]:
    for place, path, index in read_labels(table):
        if not (index.isascii() and index.isdigit()) or int(index) >= classes:
            raise InvalidContent(f"{place}: class_index {index!r} is not in 0…{classes - 1}")
        yield Sample(path, int(index))


def _from_folders(folder: Path, labels: Sequence[str]) -> Iterator[Sample]:
    by_name = {label: index for index, label in enumerate(labels)}
    for directory in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        index = by_name.get(directory.name)
        if (
            index is None
            and directory.name.isascii()
            and directory.name.isdigit()
            and int(directory.name) < len(labels)
        ):
            index = int(directory.name)
        if index is None:
            raise InvalidContent(f"{directory}: is named neither like a label of the model nor like a class index")
        for path in sorted(directory.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield Sample(path, index)
