"""The in-process limit: as many processes as cores, each decoding, preparing and running in memory, with no HTTP.

It starts from JPEG bytes and runs the product's own processing and session.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from app.registry.servables.loading import load_servable

# A kind of ours: the item is the model's inputs themselves, and nothing is prepared.
TENSORS = "tensors"


def measure_limit(directory: Path, kind: str, item: object, seconds: float) -> tuple[float, float]:
    """Runs a second over all processes, and CPU seconds a run. Raises EOFError where one of them dies."""
    context = multiprocessing.get_context("spawn")
    count = len(os.sched_getaffinity(0))
    barrier = context.Barrier(count)
    processes, receivers = [], []
    for _ in range(count):
        receiver, sender = context.Pipe(duplex=False)
        arguments = (directory, kind, item, seconds, barrier, sender)
        process = context.Process(target=_loop, args=arguments, daemon=True)
        process.start()
        sender.close()
        processes.append(process)
        receivers.append(receiver)
    results = [receiver.recv() for receiver in receivers]
    for process in processes:
        process.join()
    runs = sum(result[0] for result in results)
    return sum(result[0] / result[1] for result in results), sum(result[2] for result in results) / runs


def _loop(directory: Path, kind: str, item: object, seconds: float, barrier, sender) -> None:  # type: ignore[no-untyped-def]
    servable = load_servable(directory, threads=1)

    def answer_one() -> None:
        tensors = item if kind == TENSORS else servable.prepare(kind, item)  # type: ignore[arg-type]
        servable.answer(servable.run(tensors), 5)  # type: ignore[arg-type]

    answer_one()
    barrier.wait()
    runs, cpu, started = 0, time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        answer_one()
        runs += 1
    sender.send((runs, elapsed, time.process_time() - cpu))
