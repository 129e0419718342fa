"""Versions and stacks measured in turn in one run: time, rows a second, accuracy, memory, and what a row costs."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.engine.cpu import cpu_allowance
from app.errors import HeadwayError, InvalidContent, RunFailed
from app.optimize.footprint import measure_memory
from app.optimize.machine import describe_machine
from app.optimize.profiling.counts import Counts, count_onnx
from app.optimize.profiling.counts_tflite import count_tflite
from app.optimize.profiling.inputs import Contents, find_contents
from app.optimize.profiling.records import Accuracy, Hardware, MemoryUse, Percentiles, Profile, Throughput
from app.optimize.profiling.stack import Opened, libraries_of
from app.registry.servables.servable import Servable
from app.registry.store import Store
from app.tensors import Tensors

# Rounds in turn, so that a noisy moment hits all; the first runs of a round refill the caches and do not count.
_ROUNDS, _RUNS, _COLD_RUNS = 20, 30, 5
_TIMING_SECONDS = 15.0
_CPU_RUNS, _CPU_SECONDS = 200, 3.0
_BATCH_ROUNDS, _BATCH_SECONDS = 9, 0.05
_MOST_ROWS = 64

Action = Callable[[int], object]
Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class _Subject:
    opened: Opened
    contents: Contents
    rows: Sequence[Tensors]

    @property
    def servable(self) -> Servable:
        return self.opened.servable


def describe_hardware() -> Hardware:
    machine = describe_machine(())
    return Hardware(
        cpu=machine["cpu"],
        architecture=platform.machine(),
        cpu_features=tuple(machine["cpu_features"]),
        cpus=cpu_allowance().cpus,
    )


def measure(
    store: Store, opened: Sequence[Opened], threads: int, data: Path | None, progress: Progress
) -> list[Profile]:
    """One profile for each of `opened`, which were opened for `threads` threads.

    Raises InvalidContent for data that does not fit, RunFailed where a version fails on its inputs or its memory cannot
    be measured.
    """
    subjects = [_prepare(one, data) for one in opened]
    runs = [_model_action(subject) for subject in subjects]
    wholes = [_whole_action(subject) for subject in subjects]
    advance = progress("times", 2 * _ROUNDS + _BATCH_ROUNDS)
    run_ms, whole_ms = _time(runs, advance), _time(wholes, advance)
    cpu_ms = [_time_cpu(action) for action in runs]
    throughputs = _measure_throughputs(subjects, advance)
    measured = zip(subjects, run_ms, cpu_ms, whole_ms, throughputs, strict=True)
    return [
        _describe(store, subject, threads, progress, run_ms=run, run_cpu_ms=cpu, whole_ms=whole, throughput=throughput)
        for subject, run, cpu, whole, throughput in measured
    ]


def _describe(store: Store, subject: _Subject, threads: int, progress: Progress, **times: Any) -> Profile:
    """`times` are the profile's fields that were measured in turn with others."""
    stack, unknown = subject.opened.stack, dict[str, str]()
    accuracy = _accuracy(subject, unknown, progress)
    memory = _memory(store, subject, threads, unknown)
    counts = _count(subject, unknown)
    return Profile(
        hardware=describe_hardware(),
        stack=stack,
        threads=threads,
        date=datetime.date.today(),
        libraries=describe_machine(libraries_of(stack.runtime))["libraries"],
        inputs=f"{len(subject.contents.items)} of {subject.contents.data}",
        accuracy=accuracy,
        memory=memory,
        flops=counts.flops,
        parameters=counts.parameters,
        golden=subject.opened.golden,
        unknown=unknown,
        **times,
    )


def _prepare(opened: Opened, data: Path | None) -> _Subject:
    contents = find_contents(opened.servable, data)
    rows = [opened.servable.prepare(contents.kind, item) for item in contents.items]
    return _Subject(opened, contents, rows)


def _model_action(subject: _Subject) -> Action:
    servable, rows = subject.servable, subject.rows
    return lambda number: servable.run(rows[number % len(rows)])


def _whole_action(subject: _Subject) -> Action:
    servable, contents = subject.servable, subject.contents

    def answer(number: int) -> object:
        return servable.answer(servable.run_item(contents.kind, contents.items[number % len(contents.items)]), 5)

    return answer


def _time(actions: Sequence[Action], advance: Callable[[], None]) -> list[Percentiles]:
    times: list[list[float]] = [[] for _ in actions]
    started = time.monotonic()
    for number in range(_ROUNDS):
        if not number or time.monotonic() - started < _TIMING_SECONDS:
            for action, spent in zip(actions, times, strict=True):
                spent += [_time_one(action, number * _RUNS + run) for run in range(_RUNS)][_COLD_RUNS:]
        advance()
    return [Percentiles(**{f"p{p}": round(float(np.percentile(spent, p)), 4) for p in (50, 95, 99)}) for spent in times]


def _time_one(action: Action, number: int) -> float:
    started = time.perf_counter()
    action(number)
    return (time.perf_counter() - started) * 1e3


def _time_cpu(action: Action) -> float:
    started, cpu_started, runs = time.monotonic(), time.process_time(), 0
    while not runs or (runs < _CPU_RUNS and time.monotonic() - started < _CPU_SECONDS):
        action(runs)
        runs += 1
    return round((time.process_time() - cpu_started) * 1e3 / runs, 4)


def _measure_throughputs(subjects: Sequence[_Subject], advance: Callable[[], None]) -> list[Throughput]:
    """The median over rounds, in batches as large as the version allows."""
    batches = [_batch(subject) for subject in subjects]
    rates: list[list[float]] = [[] for _ in subjects]
    for _ in range(_BATCH_ROUNDS):
        for subject, (batch, size), found in zip(subjects, batches, rates, strict=True):
            action = partial(subject.servable.run, batch)
            action()
            started, runs = time.perf_counter(), 0
            while not runs or time.perf_counter() - started < _BATCH_SECONDS:
                action()
                runs += 1
            found.append(runs * size / (time.perf_counter() - started))
        advance()
    return [
        Throughput(rows_per_second=round(float(np.median(found)), 1), batch_size=size)
        for found, (_, size) in zip(rates, batches, strict=True)
    ]


def _batch(subject: _Subject) -> tuple[Tensors, int]:
    """Rows one after the other, and how many there are."""
    axis, rows = subject.servable.batch_axis, subject.rows
    if axis is None:
        return rows[0], 1
    singles = [axis.take(row, 0, 1) for row in rows]
    size = min(subject.servable.max_batch_size, _MOST_ROWS)
    return axis.stack([singles[number % len(singles)] for number in range(size)]), size


def _accuracy(subject: _Subject, unknown: dict[str, str], progress: Progress) -> Accuracy | None:
    labelled = subject.contents.labelled
    if labelled is None:
        return _stated_accuracy(subject, unknown)
    classes = labelled.classes
    assert classes is not None
    advance = progress(f"accuracy, {subject.opened.stack}", labelled.count)
    hits, first = [], ""
    for number in range(labelled.count):
        try:
            (item,) = subject.servable.answer(subject.servable.run(labelled.read(number)), 1) or ()
            hits.append(item.predictions[0].index == classes[number])
        except (InvalidContent, RunFailed, OSError) as exc:
            first = first or f"{labelled.where(number)}: {exc}"
        advance()
    if not hits:
        raise InvalidContent(f"none of the {labelled.count} inputs could be answered; the first: {first}")
    if first:
        unknown["skipped"] = f"{labelled.count - len(hits)} inputs could not be answered; the first: {first}"
    return Accuracy(top1=float(np.mean(hits)), n=len(hits), data=labelled.data, is_measured=True)


def _stated_accuracy(subject: _Subject, unknown: dict[str, str]) -> Accuracy | None:
    manifest = subject.servable.manifest
    stated = [entry for entry in manifest.evaluation if entry.top1 is not None][-1:]
    if subject.opened.stack.runtime != manifest.runtime:
        unknown["accuracy"] = "the version's own evaluation is of another runtime; say --data"
    elif not stated:
        unknown["accuracy"] = "the version's own evaluation has none; say --data"
    else:
        top1 = stated[0].top1
        assert top1 is not None
        return Accuracy(top1=top1, n=stated[0].n, data=stated[0].data, is_measured=False)
    return None


def _memory(store: Store, subject: _Subject, threads: int, unknown: dict[str, str]) -> MemoryUse | None:
    runtime = subject.opened.stack.runtime
    memory = measure_memory(subject.servable.directory, store, threads=threads, runtime=runtime)
    if memory is None:
        unknown["memory"] = "this system has no /proc"
        return None
    return MemoryUse(**asdict(memory))


def _count(subject: _Subject, unknown: dict[str, str]) -> Counts:
    manifest = subject.servable.manifest
    path = subject.servable.directory / manifest.model_file
    if manifest.runtime == "tflite":
        counts = count_tflite(path)
    else:
        axis, row = subject.servable.batch_axis, subject.rows[0]
        one = axis.take(row, 0, 1) if axis is not None else row
        try:
            counts = count_onnx(path, {name: np.asarray(array).shape for name, array in one.items()})
        except HeadwayError as exc:  # the package onnx is an extra
            counts = Counts(None, None, {"flops": str(exc), "parameters": str(exc)})
    unknown |= counts.unknown
    return counts
