"""A shadow version gets copies of requests, is compared, and never fails or delays a caller."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from app.engine.batcher import Batcher
from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.engine.lane import Work
from app.engine.shadow import QUEUE_LENGTH, compare
from app.metrics import Metrics
from app.processing.classification import Prediction
from app.registry.servables.servable import Item
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.engine.executors import PATIENCE_SECONDS, Functions, Gate
from tests.fixtures_models import onnx_file, write_model, write_release

pytestmark = pytest.mark.anyio


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """m 1.0.0 gives the input, its shadow 2.0.0 the input with the sign changed."""
    write_model(tmp_path, "m")
    nodes = [helper.make_node("Neg", ["x"], ["scores"])]
    data = onnx_file(nodes, [("x", "FP32", [-1, 3])], [("scores", "FP32", [-1, 3])])
    write_model(tmp_path, "m", "2.0.0", files={"model.onnx": data})
    write_release(tmp_path, "m", "1.0.0", shadow={"version": "2.0.0", "share": 100})
    registry = Registry(Store(tmp_path))
    registry.load()
    yield registry
    registry.close()


class Bench:
    def __init__(self, registry: Registry) -> None:
        self.metrics = Metrics()
        self.batcher = Batcher(1, self.metrics)
        self.inference = Inference(registry, self.batcher, self.metrics)

    async def predict(self, *rows: list[float]) -> Answer:
        resolved = self.inference.resolve(ModelRef("m"), "tensor")
        call = Call({"x": np.array(rows, np.float32)}, time.monotonic() + PATIENCE_SECONDS)
        return await self.inference.predict(call, resolved)

    def outcomes(self) -> dict[str, float]:
        samples = next(iter(self.metrics.shadow_requests.collect())).samples
        return {
            sample.labels["outcome"]: sample.value
            for sample in samples
            if sample.name.endswith("_total") and sample.value
        }

    async def wait_for(self, claim: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE_SECONDS
        while not claim():
            assert time.monotonic() < limit, self.outcomes()
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.inference.close()
        self.batcher.close()


@pytest.fixture
def bench(registry: Registry) -> Iterator[Bench]:
    bench = Bench(registry)
    yield bench
    bench.close()


async def test_shadow_is_compared_with_what_was_answered(bench: Bench) -> None:
    answer = await bench.predict([0, 0, 0])
    assert answer.version == "1.0.0"
    await bench.wait_for(lambda: bench.outcomes() == {"agreed": 1})
    await bench.predict([1, 0, 0], [0, 0, 0])
    await bench.wait_for(lambda: bench.outcomes() == {"agreed": 1, "disagreed": 1})


async def test_share_is_of_requests(bench: Bench, registry: Registry, tmp_path: Path) -> None:
    write_release(tmp_path, "m", "1.0.0", shadow={"version": "2.0.0", "share": 1e-6})
    registry.reconcile()
    for _ in range(50):
        await bench.predict([1, 2, 3])
    await asyncio.sleep(0.1)
    assert bench.outcomes() == {}


async def test_shadow_waits_while_anything_runs_and_drops_what_finds_no_room(bench: Bench) -> None:
    gate = Gate()
    bench.batcher.submit(Functions("busy"), [Work(gate)], time.monotonic() + PATIENCE_SECONDS)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    for _ in range(30):
        await bench.predict([0, 0, 0])  # run in the event loop
    await asyncio.sleep(0.1)
    before = bench.outcomes()
    assert set(before) == {"dropped"}
    assert 30 - QUEUE_LENGTH - 1 <= before["dropped"] <= 30 - QUEUE_LENGTH
    gate.open()
    await bench.wait_for(lambda: sum(bench.outcomes().values()) == 30)


async def test_shadow_that_fails_harms_nobody(bench: Bench, registry: Registry) -> None:
    shadow = registry.shadow_of("m")
    assert shadow is not None

    class Broken:
        inputs, outputs = shadow[0].runtime.inputs, shadow[0].runtime.outputs

        def run(self, *_: Any) -> Any:
            raise ZeroDivisionError("a bug")

        def close(self) -> None: ...

    shadow[0].runtime = Broken()
    assert (await bench.predict([1, 2, 3])).version == "1.0.0"
    await bench.wait_for(lambda: bench.outcomes() == {"failed": 1})
    assert (await bench.predict([1, 2, 3])).version == "1.0.0"


async def test_close_ends_the_thread(registry: Registry) -> None:
    before = set(threading.enumerate())
    bench = Bench(registry)
    await bench.predict([1, 2, 3])
    bench.close()
    assert set(threading.enumerate()) <= before


def _answer(*items: Item, **tensors: np.ndarray) -> Answer:
    return Answer("m", "1", None, items or None, tensors or None)


def _labels(**confidences: float) -> Item:
    return Item(predictions=tuple(Prediction(label, 0, value) for label, value in confidences.items()))


def test_compare() -> None:
    found = compare(_answer(_labels(a=0.9, b=0.1)), _answer(_labels(b=0.6, a=0.4)))
    assert (found.agrees, found.difference) == (False, pytest.approx(0.5))
    found = compare(_answer(_labels(a=0.9), _labels(b=0.5)), _answer(_labels(a=0.7), _labels(b=0.5)))
    assert (found.agrees, found.difference) == (True, pytest.approx(0.1))
    found = compare(_answer(Item(value=2.0)), _answer(Item(value=2.5)))
    assert (found.agrees, found.difference) == (False, 0.5)
    found = compare(_answer(y=np.array([1.0, 2.0])), _answer(y=np.array([1.0, 2.0001])))
    assert found.agrees
    assert compare(_answer(y=np.zeros(2)), _answer(y=np.zeros(3))).difference == float("inf")
    with pytest.raises(ValueError, match="tensors"):
        compare(_answer(Item(value=1.0)), _answer(y=np.zeros(1)))
