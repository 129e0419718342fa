"""A version beside the one it was made from, on the same inputs in one run: accuracy, agreement, time, size, memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.errors import InvalidContent, RunFailed
from app.optimize.compare import mcnemar_p_value
from app.optimize.examples import Examples
from app.optimize.footprint import measure_footprint
from app.registry.manifest import TensorAnswer
from app.registry.servables.composed import Composed
from app.registry.servables.loading import weights_beside
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.tensors import Array, Tensors

# Rounds in turn, so that a noisy moment hits both; the first runs of a round refill the caches and do not count.
_ROUNDS, _RUNS, _COLD_RUNS = 10, 25, 5
_TIMING_SECONDS = 20.0
_TIMED_INPUTS = 32


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one version. `run_ms`: the model alone, one row, one thread. `size_bytes` is of the model's own files."""

    top1: float | None
    run_ms: dict[str, float]
    size_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """`agreement` is the share of inputs with the same best class, None for what is no classifier; `p_value` McNemar's,
    of versions that err equally often. `largest_difference` is of any number of the answer, `sqnr_db` its
    signal-to-quantisation-noise ratio, 10 log₁₀(Σ y² / Σ (y - ŷ)²) over all inputs; None where nothing differs."""

    data: str
    n: int
    skipped: tuple[str, ...]
    before: Figures
    after: Figures
    agreement: float | None
    largest_difference: float
    sqnr_db: float | None
    p_value: float | None

    @property
    def lost_points(self) -> float | None:
        """Of top-1 accuracy, in percent of all inputs; negative where the new version is better."""
        if self.before.top1 is None or self.after.top1 is None:
            return None
        return round((self.before.top1 - self.after.top1) * 100, 4)

    @property
    def times_smaller(self) -> float:
        return self.before.size_bytes / self.after.size_bytes

    @property
    def times_faster(self) -> float:
        return self.before.run_ms["p50"] / self.after.run_ms["p50"]

    def figures(self) -> list[dict[str, Any]]:
        """For `parent.figures` of model.yaml: ratios in 0…1, milliseconds, bytes, decibels, as the names say."""
        pairs: list[tuple[str, float | None, float | None]] = [
            ("top1", self.before.top1, self.after.top1),
            ("agreement", None, self.agreement),
            ("largest_difference", None, self.largest_difference if self.agreement is None else None),
            ("sqnr_db", None, self.sqnr_db),
            ("model_bytes", self.before.size_bytes, self.after.size_bytes),
            ("run_p50_ms", self.before.run_ms["p50"], self.after.run_ms["p50"]),
            ("run_p95_ms", self.before.run_ms["p95"], self.after.run_ms["p95"]),
            ("loaded_bytes", self.before.memory_bytes, self.after.memory_bytes),
        ]
        return [figure(name, before, after) for name, before, after in pairs if after is not None]

    def loss(self, max_drop: float) -> str | None:
        """Why it is not registered where more than `max_drop` points of top-1 are lost; else None."""
        if self.lost_points is None or self.lost_points <= max_drop:
            return None
        return (
            f"not registered: it loses {self.lost_points:.2f} points of top-1 on {self.n} inputs, and --max-drop is "
            f"{max_drop:g} (p = {self.p_value:.3f} that both err equally often)"
        )

    def rows(self) -> list[tuple[str, str, str, str]]:
        """What, before, after, difference: for people."""
        before, after = self.before, self.after
        rows = []
        if before.top1 is not None and after.top1 is not None:
            change = f"{0.0 - (self.lost_points or 0.0):+.1f} points"
            rows.append(("top-1 accuracy", f"{before.top1:.1%}", f"{after.top1:.1%}", change))
        if self.agreement is not None:
            rows.append(("same answer as the parent", "", f"{self.agreement:.1%}", ""))
        else:
            rows.append(("largest difference of the answer", "", f"{self.largest_difference:.3g}", ""))
        if self.sqnr_db is not None:
            rows.append(("SQNR of the answer", "", f"{self.sqnr_db:.1f} dB", ""))
        rows.append(
            (
                "model file",
                _size(before.size_bytes),
                _size(after.size_bytes),
                _times(self.times_smaller, "smaller", "larger"),
            )
        )
        faster = _times(self.times_faster, "faster", "slower")
        rows.append(("one run, one thread, p50", f"{before.run_ms['p50']} ms", f"{after.run_ms['p50']} ms", faster))
        rows.append(("one run, one thread, p95", f"{before.run_ms['p95']} ms", f"{after.run_ms['p95']} ms", ""))
        if before.memory_bytes is not None and after.memory_bytes is not None:
            less = _times(max(1, before.memory_bytes) / max(1, after.memory_bytes), "less", "more")
            rows.append(("memory that loading adds", _size(before.memory_bytes), _size(after.memory_bytes), less))
        return rows


def figure(name: str, before: float | None, after: float) -> dict[str, Any]:
    """An entry of `parent.figures`. Numbers of the parent that are not known are left out."""
    known = {} if before is None else {"parent": _rounded(before)}
    return {"name": name, **known, "version": _rounded(after)}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


@dataclass(slots=True)
class _Answers:
    """What both versions gave, by the number of the input."""

    best: list[tuple[int, int]]
    right: list[int]
    largest_difference: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float | None:
        if not (self.signal and self.noise and math.isfinite(self.signal + self.noise)):
            return None
        return round(10 * math.log10(self.signal / self.noise), 2)


def measure(
    store: Store,
    before: Servable,
    after: Servable,
    examples: Examples,
    progress: Callable[[], None] = lambda: None,
) -> BeforeAfter:
    """Run both on every example. Raises InvalidContent where none can be answered, RunFailed where memory cannot be
    measured."""
    answers = _Answers([], [])
    skipped: list[str] = []
    kept: list[Tensors] = []
    for number in range(examples.count):
        try:
            tensors = examples.read(number)
            _add(answers, before, after, tensors)
        except (InvalidContent, RunFailed, OSError) as exc:
            skipped.append(f"{examples.where(number)}: {exc}")
        else:
            answers.right += [examples.classes[number]] if examples.classes is not None else []
            kept += [tensors] if len(kept) < _TIMED_INPUTS else []
        progress()
    if not kept:
        raise InvalidContent(f"none of the {len(skipped)} inputs could be used; the first: {(skipped or ['none'])[0]}")
    best = np.array(answers.best).reshape(-1, 2)
    hits = best == np.array(answers.right)[:, None] if answers.right else None
    times = _time_runs((before, after), kept)
    old, new = (_figures(store, version, hits, place, times) for place, version in enumerate((before, after)))
    return BeforeAfter(
        data=examples.data,
        n=examples.count - len(skipped),
        skipped=tuple(skipped),
        before=old,
        after=new,
        agreement=float(np.mean(best[:, 0] == best[:, 1])) if len(best) else None,
        largest_difference=answers.largest_difference,
        sqnr_db=answers.sqnr_db,
        p_value=_p_value(hits) if hits is not None else None,
    )


def _figures(
    store: Store, version: Servable, hits: Array | None, place: int, times: Sequence[dict[str, float]]
) -> Figures:
    return Figures(
        top1=float(hits[:, place].mean()) if hits is not None else None,
        run_ms=times[place],
        size_bytes=_model_bytes(version),
        memory_bytes=measure_footprint(version.directory, store),
    )


def _p_value(hits: Array) -> float:
    before, after = hits.T
    return mcnemar_p_value(int((before & ~after).sum()), int((after & ~before).sum()))


def _add(answers: _Answers, before: Servable, after: Servable, tensors: Tensors) -> None:
    outputs = [version.run(tensors) for version in (before, after)]
    kind = before.manifest.answer
    names = list(outputs[0]) if isinstance(kind, TensorAnswer) else [kind.output]
    for name in names:
        one, other = (np.asarray(each[name]) for each in outputs)
        if one.dtype.kind == "f" and one.shape == other.shape and one.size:
            exact = one.astype(np.float64)
            differences = exact - other.astype(np.float64)
            answers.largest_difference = max(answers.largest_difference, float(np.max(np.abs(differences))))
            answers.signal += float(np.sum(exact**2))
            answers.noise += float(np.sum(differences**2))
    if before.classification is not None:
        first, second = (
            (version.answer(each, 1) or ())[0] for version, each in zip((before, after), outputs, strict=True)
        )
        answers.best.append((first.predictions[0].index, second.predictions[0].index))


def _time_runs(versions: Sequence[Servable], inputs: Sequence[Tensors]) -> list[dict[str, float]]:
    """Percentiles in ms."""
    times: list[list[float]] = [[] for _ in versions]
    started = time.monotonic()
    for number in range(_ROUNDS):
        if number and time.monotonic() - started > _TIMING_SECONDS:
            break
        for version, spent in zip(versions, times, strict=True):
            spent += [_time_run(version, inputs[run % len(inputs)]) for run in range(_RUNS)][_COLD_RUNS:]
    return [{f"p{p}": round(float(np.percentile(spent, p)), 3) for p in (50, 95)} for spent in times]


def _time_run(version: Servable, tensors: Tensors) -> float:
    started = time.perf_counter()
    version.run(tensors)
    return (time.perf_counter() - started) * 1e3


def _model_bytes(version: Servable) -> int:
    """The model file, and what it keeps beside it; of a composition, those of its steps. Not labels, golden requests, a
    baseline or pictures."""
    if isinstance(version, Composed):
        return sum(_model_bytes(part) for part in {step.servable for step in version.lease().steps})
    manifest = version.manifest
    own = {manifest.model_file, *weights_beside(version.directory, manifest)}
    return sum(manifest.files[name].bytes for name in own)


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.2f} × {better}" if ratio >= 1 else f"{1 / ratio:.2f} × {worse}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
