"""`python -m bench.hand_over`: what handing a run to a thread costs, against running it in the event loop (ADR 0014).

Matrix products of growing size, 16 callers in one event loop, one thread; no HTTP. Figures are medians of interleaved
rounds; the loop is held up for the length of the run where it runs in it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.engine.batcher import Batcher
from app.engine.lane import Work
from app.runtimes.base import Cancellation
from app.runtimes.onnx import OnnxRuntime

WIDTHS = (16, 128, 384, 640, 1024, 1536)
CALLERS = 16
ROUNDS = 7
ROUND_SECONDS = 0.3


class Product:
    """One row times a square matrix."""

    model = "product"
    queue_limit = 1000
    max_rows = 1
    max_wait_seconds = 0.0
    max_runs = None
    max_run_seconds = 30.0
    guess_seconds = 1e-6
    is_steady = True

    def __init__(self, width: int, folder: Path) -> None:
        path = folder / f"{width}.onnx"
        onnx.save(_product(width), path)
        self._runtime = OnnxRuntime(path, threads=1)
        self._row = np.ones((1, width), np.float32)

    def run(self, works: Sequence[Work], _waited: Sequence[float], cancellation: Cancellation) -> list[Any]:
        return [self._runtime.run({"x": self._row}, None, cancellation) for _ in works]


def main() -> None:
    print("run alone   in the loop            in a thread            thread / loop")
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            product = Product(width, Path(folder))
            rounds = [(_alone(product), *asyncio.run(_measure(product))) for _ in range(ROUNDS)]
            alone, here, here_cpu, there, there_cpu = (
                statistics.median(column) * 1e6 for column in zip(*rounds, strict=True)
            )
            print(
                f"{alone:7.0f} µs  {here:7.0f} µs (CPU {here_cpu:5.0f})   {there:7.0f} µs (CPU {there_cpu:5.0f})"
                f"   {there / here:5.2f}, CPU {there_cpu / here_cpu:5.2f}"
            )


def _alone(product: Product) -> float:
    work, cancellation = [Work(None)], Cancellation()
    return min(_timed(lambda: product.run(work, [0.0], cancellation)) for _ in range(50))


def _timed(function: Any) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


async def _measure(product: Product) -> tuple[float, float, float, float]:
    """Seconds, and seconds of CPU time, of a call: in the loop, in a thread."""
    batcher = Batcher(1)

    async def here() -> None:
        batcher.can_run_here(product, [Work(None)])
        batcher.run_here(product, Work(None), time.monotonic() + 10)
        await asyncio.sleep(0)

    async def there() -> None:
        await batcher.submit(product, [Work(None)], time.monotonic() + 10)[0]

    try:
        return (*await _callers(here), *await _callers(there))
    finally:
        batcher.close()


async def _callers(call: Any) -> tuple[float, float]:
    count, end = 0, time.perf_counter() + ROUND_SECONDS

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call()
            count += 1

    started, cpu_started = time.perf_counter(), time.process_time()
    await asyncio.gather(*[caller() for _ in range(CALLERS)])
    return (time.perf_counter() - started) / count, (time.process_time() - cpu_started) / count


def _product(width: int) -> onnx.ModelProto:
    weights = np.full((width, width), 1 / width, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()
