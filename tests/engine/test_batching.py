"""Rows of several callers in one run, rows of one caller in several: everyone gets what he would get alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine.batcher import Batcher
from app.engine.call import Answer, Call
from app.engine.execution import Execution
from app.engine.inference import Inference
from app.engine.lane import Work
from app.errors import InvalidTensor, RegistryError, RunFailed
from app.metrics import Metrics
from app.registry.servables.loading import load_servable
from app.registry.servables.servable import Content, Item
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.runtimes.pool import RuntimePool
from app.tensors import Tensors, object_array
from tests.engine.executors import PATIENCE_SECONDS, Functions, Gate
from tests.fixtures_models import edit_manifest, write_model

pytestmark = pytest.mark.anyio
KINDS = ("scores", "two_inputs", "same", "double", "one_row", "transpose", "scaled", "lookup", "echo", "centred")


class Bench:
    """An inference whose one thread can be held, so that what comes meanwhile waits together."""

    def __init__(self, registry: Registry) -> None:
        self.metrics = Metrics()
        self._batcher = Batcher(1, self.metrics)
        self.inference = Inference(registry, self._batcher, self.metrics)
        self._gate = Gate()

    async def hold(self) -> None:
        self._gate = Gate()
        self._batcher.submit(Functions("gate"), [Work(self._gate)], time.monotonic() + PATIENCE_SECONDS)
        await asyncio.to_thread(self._gate.entered.wait, PATIENCE_SECONDS)

    async def predict(self, model: str, tensors: Tensors, outputs: tuple[str, ...] | None = None) -> Answer:
        call = Call(tensors, time.monotonic() + PATIENCE_SECONDS, outputs)
        return await self.inference.predict(call, self.inference.resolve(ModelRef(model), "tensor"))

    async def together(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Answers, or exceptions, of calls that all wait before the first is run."""
        await self.hold()
        tasks = [asyncio.create_task(self.predict(*call)) for call in calls]
        await asyncio.sleep(0.05)
        self._gate.open()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def runs(self, model: str) -> dict[str, float]:
        """How many runs there were, and of how many rows together."""
        self.metrics.deferred.flush()
        samples = next(iter(self.metrics.batch_size.collect())).samples
        return {
            sample.name.removeprefix("headway_batch_size_"): sample.value
            for sample in samples
            if sample.labels["model"] == model and sample.name.endswith(("_count", "_sum"))
        }

    def close(self) -> None:
        self._batcher.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for kind in KINDS:
        may_share = kind in ("scores", "two_inputs", "same", "scaled", "lookup")
        write_model(tmp_path, kind, kind=kind, **({"batch": {"max_size": 8}} if may_share else {}))
        edit_manifest(tmp_path / kind / "1.0.0", limits={"queue": 1000})
    registry = Registry(Store(tmp_path))
    registry.load()
    for servable in [status.servable for model in registry.models.values() for status in model.versions.values()]:
        assert servable is not None
        servable.warm_seconds = 0.0  # unknown: nothing is run in the event loop
    bench = Bench(registry)
    yield bench
    bench.close()
    registry.close()


def _floats(*values: Any) -> Any:
    return np.array(values, np.float32)


async def test_rows_of_many_callers_equal_each_alone(bench: Bench) -> None:
    random_rows = np.random.default_rng(5)
    order = random.Random(6)
    calls: list[tuple[str, Tensors]] = []
    for _ in range(100):
        rows = order.randrange(1, 5)
        model = order.choice(["scores", "two_inputs"])
        names = ("x",) if model == "scores" else ("a", "b")
        width = 3 if model == "scores" else 2
        calls.append((model, {name: random_rows.normal(size=(rows, width)).astype(np.float32) for name in names}))
    answers = await bench.together(*calls)
    for (model, tensors), answer in zip(calls, answers, strict=True):
        if model == "scores":
            np.testing.assert_array_equal(answer.tensors["scores"], tensors["x"])
            assert len(answer.items) == len(tensors["x"])
        else:
            np.testing.assert_array_equal(answer.tensors["total"], tensors["a"] + tensors["b"])
    for model in ("scores", "two_inputs"):
        rows = sum(len(next(iter(tensors.values()))) for name, tensors in calls if name == model)
        assert bench.runs(model)["sum"] == rows
        assert bench.runs(model)["count"] <= rows / 4


async def test_strings_of_many_callers_equal_each_alone(bench: Bench) -> None:
    texts = [object_array([f"text {n}".encode(), b"\xc3\xa4"], (2,)) for n in range(9)]
    answers = await bench.together(*[("same", {"text": text}) for text in texts])
    assert [answer.tensors["copy"].tolist() for answer in answers] == [text.tolist() for text in texts]
    assert bench.runs("same") == {"count": 3, "sum": 18}


async def test_call_larger_than_a_run_is_split_and_put_together(bench: Bench) -> None:
    rows = np.arange(63, dtype=np.float32).reshape(21, 3)
    answer = await bench.predict("scores", {"x": rows})
    np.testing.assert_array_equal((answer.tensors or {})["scores"], rows)
    assert [item.predictions[0].confidence for item in answer.items or () if isinstance(item, Item)] == rows[
        :, 2
    ].tolist()
    assert bench.runs("scores") == {"count": 3, "sum": 21}


async def test_only_calls_for_the_same_outputs_share(bench: Bench) -> None:
    row = {"x": _floats([1, 2, 3])}
    answers = await bench.together(*[("scores", row, outputs) for outputs in (None, ("scores",), None, ("scores",))])
    assert [answer.items is None for answer in answers] == [False, True, False, True]
    assert bench.runs("scores")["count"] == 4


async def test_one_that_fails_does_not_spoil_those_that_share_its_run(bench: Bench) -> None:
    answers = await bench.together(*[("lookup", {"at": np.array([at])}) for at in (0, 1, 9, 2)])
    assert isinstance(answers[2], RunFailed)
    assert [answers[n].tensors["found"].tolist() for n in (0, 1, 3)] == [[10], [20], [30]]


async def test_caller_that_leaves_does_not_spoil_those_that_share_its_run(bench: Bench) -> None:
    await bench.hold()
    tasks = [asyncio.create_task(bench.predict("scores", {"x": _floats([n, 0, 0])})) for n in range(4)]
    await asyncio.sleep(0.02)
    tasks[1].cancel()
    bench._gate.open()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    for n in (0, 2, 3):
        answer = answers[n]
        assert isinstance(answer, Answer)
        assert (answer.tensors or {})["scores"].tolist() == [[n, 0, 0]]
    assert bench.runs("scores") == {"count": 1, "sum": 3}


async def test_scalar_input_is_one_run_a_call(bench: Bench) -> None:
    answers = await bench.together(*[("double", {"x": np.array(n, np.float32)}) for n in range(5)])
    assert [answer.tensors["twice"].item() for answer in answers] == [0, 2, 4, 6, 8]
    assert bench.runs("double")["count"] == 5


async def test_model_without_batch_axis_is_one_run_a_call(bench: Bench) -> None:
    given = [_floats([n, 1, 2], [3, 4, 5]) for n in range(4)]
    answers = await bench.together(*[("transpose", {"x": tensor}) for tensor in given])
    for tensor, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer.tensors["turned"], tensor.T)
    with pytest.raises(InvalidTensor, match="shape"):
        await bench.predict("transpose", {"x": _floats([1, 2, 3])})


async def test_file_that_takes_one_row_takes_any_number_of_them(bench: Bench) -> None:
    rows = _floats([1, 2, 3], [4, 5, 6], [0, 0, 0.5])
    answer = await bench.predict("one_row", {"x": rows})
    assert answer.items == (Item(value=6), Item(value=15), Item(value=0.5))
    many = await bench.together(*[("one_row", {"x": rows[n : n + 1]}) for n in range(3)])
    assert [one.items[0].value for one in many] == [6, 15, 0.5]
    call = Call(Content("tensor", ([[1, 1, 1], [2, 2, 2]],)), float("inf"))
    now = bench.inference.predict_now(call, bench.inference.resolve(ModelRef("one_row"), "tensor"))
    assert now.items == (Item(value=3), Item(value=6))
    assert (await bench.predict("one_row", {"x": np.zeros((0, 3), np.float32)})).items == ()


async def test_input_without_rows_is_shared_by_nobody_else(bench: Bench) -> None:
    x = _floats([1, 2])
    answers = await bench.together(*[("scaled", {"x": x, "by": np.array(n, np.float32)}) for n in range(6)])
    assert [answer.tensors["product"].tolist() for answer in answers] == [[[n, 2 * n]] for n in range(6)]
    many = np.arange(40, dtype=np.float32).reshape(20, 2)
    split = await bench.predict("scaled", {"x": many, "by": np.array(3, np.float32)})
    np.testing.assert_array_equal((split.tensors or {})["product"], many * 3)


async def test_inputs_with_different_numbers_of_rows(bench: Bench) -> None:
    with pytest.raises(InvalidTensor, match="same number of rows: 'a' has 2, 'b' has 1"):
        await bench.predict("two_inputs", {"a": _floats([1, 2], [3, 4]), "b": _floats([1, 2])})


async def test_no_rows(bench: Bench) -> None:
    answer = await bench.predict("scores", {"x": np.zeros((0, 3), np.float32)})
    assert answer.items == ()


async def test_rows_that_depend_on_each_other_are_neither_shared_nor_split(bench: Bench) -> None:
    """Nothing in their graphs says so; they are tried at load."""
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    answers = await bench.together(("centred", {"x": rows}), ("centred", {"x": rows[:2]}))
    for given, answer in zip((rows, rows[:2]), answers, strict=True):
        np.testing.assert_allclose(answer.tensors["away"], given - given.mean(axis=0))
    text = object_array([b"a", b"b"], (2,))
    echoed = await bench.predict("echo", {"text": text})
    assert (echoed.tensors or {})["echoed"].tolist() == [b"a", b"b", b"a", b"b"]


@pytest.mark.parametrize(
    ("kind", "is_steady"),
    [("scores", True), ("one_row", True), ("scaled", True), ("double", False), ("centred", False)],
)
async def test_only_rows_of_one_size_may_be_run_in_the_event_loop(bench: Bench, kind: str, is_steady: bool) -> None:
    """A number that a caller sends may make a run as long as he likes where it is a size."""
    servable = bench.inference.resolve(ModelRef(kind), "tensor").servable
    assert Execution(servable).is_steady == is_steady


@pytest.mark.parametrize("kind", ["centred", "echo"])
async def test_rows_that_depend_on_each_other_may_not_be_declared_to_share(kind: str, tmp_path: Path) -> None:
    directory = write_model(tmp_path, kind, kind=kind, batch={"max_size": 4})
    with pytest.raises(RegistryError, match=r"model\.yaml: batch: .* say axis: null, or max_size: 1"):
        load_servable(directory, 1)


async def test_instances_run_side_by_side(tmp_path: Path) -> None:
    """Two runs of one model overlap in time, each in a session of its own."""
    directory = write_model(tmp_path, "scores", limits={"instances": 2})
    pool = load_servable(directory, 1).runtime
    assert isinstance(pool, RuntimePool)
    meeting = threading.Barrier(2)

    class Meeting:
        """Runs only while another does."""

        inputs, outputs = pool.inputs, pool.outputs

        def run(self, tensors: Tensors, *_: Any) -> Tensors:
            meeting.wait(PATIENCE_SECONDS)
            return {"scores": tensors["x"]}

        def close(self) -> None: ...

    registry = Registry(Store(tmp_path))
    registry.load()
    resolved = registry.resolve(ModelRef("scores"))
    resolved.servable.runtime = RuntimePool([Meeting(), Meeting()])
    batcher = Batcher(2)
    inference = Inference(registry, batcher)
    calls = [Call({"x": _floats([n, 0, 0])}, time.monotonic() + PATIENCE_SECONDS) for n in range(6)]
    resolved.servable.warm_seconds = 0.0
    answers = await asyncio.gather(*[inference.predict(call, resolved) for call in calls])
    assert [(answer.tensors or {})["scores"][0][0] for answer in answers] == list(range(6))
    batcher.close()
