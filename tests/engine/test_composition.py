"""Models combined, on models whose answers can be worked out by hand."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from app.engine.batcher import Batcher
from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.engine.lane import Priority, Work
from app.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidContent,
    InvalidImage,
    InvalidTensor,
    ModelFailed,
    Overloaded,
    RunFailed,
)
from app.metrics import Metrics
from app.registry.servables.servable import Content, Item, Servable
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.runtimes.base import Runtime
from app.tensors import Tensors
from tests.engine.executors import PATIENCE_SECONDS, Functions, Gate
from tests.fixtures_models import onnx_file, write_composition, write_model, write_release

pytestmark = pytest.mark.anyio

PAIR = ("plain@1.0.0", "mirror@1.0.0")
CASCADE = ({"model": "plain@1.0.0", "confidence": 0.5}, {"model": "mirror@1.0.0"})
SURE, UNSURE = [0.75, 0.25, 0.0], [0.375, 0.3125, 0.3125]


def _mirror(shape: list[int], axes: list[int] | None = None) -> bytes:
    """The columns of x, or of the channel means of an image, from the last to the first."""
    if axes is None:
        nodes, before, name = [], "x", "x"
    else:
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=1),
            helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=0),
            helper.make_node("Div", ["mean", "white"], ["scaled"]),
        ]
        before, name = "scaled", "image"
    nodes.append(helper.make_node("Gather", [before, "order"], ["scores"], axis=1))
    constants = {"order": np.array([2, 1, 0]), "white": np.array(255, np.float32)}
    return onnx_file(
        nodes, [(name, "FP32" if axes is None else "UINT8", shape)], [("scores", "FP32", [-1, 3])], constants
    )


class Bench:
    """A registry with plain (the input itself) and mirror (turned round), and the engine over it."""

    def __init__(self, root: Path, threads: int = 2) -> None:
        self.root = root
        self.metrics = Metrics()
        self.batcher = Batcher(threads, self.metrics)
        self.registry = Registry(Store(root))
        self.inference = Inference(self.registry, self.batcher, self.metrics)

    def servable(self, name: str) -> Servable:
        return self.registry.resolve(ModelRef.parse(name)).servable

    async def predict(self, model: str, *rows: list[float], **options: Any) -> Answer:
        return await self.call(model, Content("tensor", (list(rows),)), **options)

    async def show(self, model: str, *photos: Any, **options: Any) -> Answer:
        return await self.call(model, Content("image", photos), is_plural=len(photos) > 1, **options)

    async def call(self, model: str, inputs: Content | Tensors, **options: Any) -> Answer:
        options.setdefault("deadline", time.monotonic() + PATIENCE_SECONDS)
        resolved = self.inference.resolve(ModelRef.parse(model), "tensor")
        return await self.inference.predict(Call(inputs, **options), resolved)

    def now(self, model: str, inputs: Content | Tensors, **options: Any) -> Answer:
        resolved = self.inference.resolve(ModelRef.parse(model), "tensor")
        return self.inference.predict_now(Call(inputs, float("inf"), **options), resolved)

    def value(self, metric: str, **labels: str) -> float:
        self.metrics.deferred.flush()
        text, _ = self.metrics.render("")
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        for line in text.decode().splitlines():
            name, _, rest = line.partition("{")
            if name == metric and wanted <= set(rest.partition("}")[0].split(",")):
                return float(line.rpartition(" ")[2])
        return 0.0

    def keep_off_the_loop(self, *names: str) -> None:
        """Their run time is unknown, so they run in the threads."""
        for name in names:
            self.servable(name).warm_seconds = 0.0

    def close(self) -> None:
        self.inference.close()
        self.batcher.close()
        self.registry.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    write_model(root, "plain")
    write_model(root, "mirror", files={"model.onnx": _mirror([-1, 3])})
    return root


MakeBench = Callable[..., Bench]


@pytest.fixture
def open_bench(root: Path) -> Iterator[MakeBench]:
    opened: list[Bench] = []

    def make(threads: int = 2) -> Bench:
        opened.append(Bench(root, threads))
        opened[-1].registry.load()
        return opened[-1]

    yield make
    for bench in opened:
        bench.close()


def confidences(item: object) -> list[float | None]:
    """By label: low, middle, high, or red, green, blue."""
    assert isinstance(item, Item), item
    return [one.confidence for one in sorted(item.predictions, key=lambda one: one.index)]


def rows_of(answer: Answer) -> list[list[float | None]]:
    assert answer.items is not None
    return [confidences(item) for item in answer.items]


def photo(*colour: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


class Watched:
    """A runtime around another, which calls `before` and counts."""

    def __init__(self, inner: Runtime, before: Callable[[], Any] = lambda: None) -> None:
        self.inner, self.before = inner, before
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self.runs: list[Tensors] = []

    def run(self, tensors: Tensors, *rest: Any) -> Tensors:
        self.runs.append(tensors)
        self.before()
        return self.inner.run(tensors, *rest)

    def close(self) -> None:
        self.inner.close()


def watch(bench: Bench, name: str, before: Callable[[], Any] = lambda: None) -> Watched:
    servable = bench.servable(name)
    servable.runtime = watched = Watched(servable.runtime, before)
    return watched


def fail() -> None:
    raise RunFailed("broken")


# --- what is answered


async def test_average(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    write_composition(root, "mostly", "average", [{"model": "plain@1.0.0", "weight": 3}, "mirror"])
    bench = open_bench()
    answer = await bench.predict("both", [0.5, 0.25, 0.25], [1, 0, 0])
    assert (answer.model, answer.version, answer.alias) == ("both", "1.0.0", "stable")
    assert rows_of(answer) == [[0.375, 0.25, 0.375], [0.5, 0, 0.5]]
    assert rows_of(await bench.predict("mostly", [0.5, 0.25, 0.25])) == [[0.4375, 0.25, 0.3125]]
    assert answer.answered_by is None


async def test_vote(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "poll", "vote", [{"model": "plain", "weight": 2}, {"model": "mirror", "weight": 1}])
    write_composition(root, "tie", "vote", PAIR)
    bench = open_bench()
    assert rows_of(await bench.predict("poll", [0.5, 0.25, 0.25])) == [pytest.approx([2 / 3, 0, 1 / 3])]
    answer = await bench.predict("tie", [0.75, 0.125, 0.125], [0.1, 0.2, 0.7], top_k=1)
    assert answer.items is not None
    first = [item.predictions[0].label for item in answer.items if isinstance(item, Item)]
    assert first == ["low", "low"]  # votes and means are equal: the first label
    assert rows_of(answer) == [[pytest.approx(0.5)], [pytest.approx(0.5)]]


async def test_cascade_asks_the_next_only_for_what_is_not_sure(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench()
    dear = watch(bench, "mirror")
    assert rows_of(await bench.predict("steps", SURE)) == [SURE]
    assert dear.runs == []
    answer = await bench.predict("steps", SURE, UNSURE, [0.5, 0.25, 0.25], [0.25, 0.375, 0.375])
    assert rows_of(answer) == [SURE, UNSURE[::-1], [0.5, 0.25, 0.25], [0.375, 0.375, 0.25]]
    assert answer.answered_by == (0, 1, 0, 1)
    assert [len(run["x"]) for run in dear.runs] == [1, 1]  # of the unsure rows, one a run: max_size is 1
    assert bench.value("headway_cascade_answers_total", model="steps", version="1.0.0", step="plain@1.0.0") == 3
    assert bench.value("headway_cascade_answers_total", model="steps", version="1.0.0", step="mirror@1.0.0") == 2


async def test_cascade_does_not_believe_what_is_not_finite(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "steps", "cascade", CASCADE)
    rows = np.array([[np.nan, 1, 0], SURE], np.float32)
    answer = await open_bench().call("steps", {"x": rows})
    assert answer.answered_by == (1, 0)
    assert rows_of(answer) == [[0, 1, None], SURE]


async def test_cascade_of_three(root: Path, open_bench: MakeBench) -> None:
    write_model(root, "flat", files={"model.onnx": _constant()})
    write_composition(root, "steps", "cascade", [*CASCADE[:1], {"model": "mirror", "confidence": 0.4}, "flat"])
    bench = open_bench()
    answer = await bench.predict("steps", SURE, [0.25, 0.3125, 0.4375], UNSURE)
    assert answer.answered_by == (0, 1, 2)
    assert rows_of(answer) == [SURE, [0.4375, 0.3125, 0.25], [0, 1, 0]]


def _constant() -> bytes:
    nodes = [
        helper.make_node("Mul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "middle"], ["scores"]),
    ]
    constants = {"zero": np.array(0, np.float32), "middle": np.array([[0, 1, 0]], np.float32)}
    return onnx_file(nodes, [("x", "FP32", [-1, 3])], [("scores", "FP32", [-1, 3])], constants)


async def test_steps_are_confidences_after_their_own_activation(root: Path, open_bench: MakeBench) -> None:
    write_model(root, "logits", answer={"activation": "softmax"})
    write_composition(root, "both", "average", ["plain", "logits"])
    answer = await open_bench().predict("both", [0, 0, 0.75])
    e = np.exp(0.75)
    assert rows_of(answer) == [pytest.approx([0.5 / (2 + e), 0.5 / (2 + e), 0.375 + 0.5 * e / (2 + e)])]


async def test_composition_of_compositions(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "a-both", "average", ["steps@1.0.0", "plain"])  # loaded after what it names
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench()
    answer = await bench.predict("a-both", SURE, [0.25, 0.3125, 0.4375])
    assert rows_of(answer) == [SURE, [0.34375, 0.3125, 0.34375]]
    assert bench.now("a-both", Content("tensor", ([SURE],))).items == (answer.items or ())[:1]


async def test_tensors_of_a_protocol(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    bench = open_bench()
    rows = np.array([[1, 0, 0]], np.float32)
    answer = await bench.call("both", {"x": rows}, outputs=("scores",))
    assert answer.items is None
    assert answer.tensors is not None
    assert answer.tensors["scores"].dtype == np.float32
    np.testing.assert_array_equal(answer.tensors["scores"], [[0.5, 0, 0.5]])
    with pytest.raises(InvalidTensor, match="shape"):
        await bench.predict("both", [1, 0])
    with pytest.raises(RunFailed, match="the only output is 'scores'; other was asked for"):
        await bench.call("both", {"x": rows}, outputs=("other",))
    with pytest.raises(InvalidContent, match="both takes numbers"):
        await bench.show("both", photo(1, 2, 3))


@pytest.mark.parametrize("type", ["average", "vote", "cascade"])
async def test_row_of_a_batch_equals_the_row_alone_and_without_a_queue(
    root: Path, open_bench: MakeBench, type: str
) -> None:
    write_composition(root, "m", type, CASCADE if type == "cascade" else PAIR)
    bench = open_bench()
    rows = np.random.default_rng(3).dirichlet(np.ones(3), 30).tolist()
    together = await bench.predict("m", *rows)
    alone = await asyncio.gather(*[bench.predict("m", row) for row in rows])
    assert [answer.items for answer in alone] == [(item,) for item in together.items or ()]
    assert bench.now("m", Content("tensor", (rows,))).items == together.items


# --- images


def write_photo_models(root: Path) -> None:
    """colour: the channel means; turned: from blue to red; large: the same, of 8 pixels a side."""
    write_model(root, "colour", kind="colour")
    write_model(root, "turned", kind="colour", files={"model.onnx": _mirror([-1, 4, 4, 3], [1, 2])})
    large = {"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}
    files = {"model.onnx": _mirror([-1, 8, 8, 3], [1, 2])}
    write_model(root, "large", kind="colour", files=files, inputs=[large], processing={"resize": 8, "crop": 8})
    write_composition(root, "pair", "average", ["colour", "turned"], kind="colour")
    write_composition(root, "sizes", "average", ["colour", "large"], kind="colour")
    steps = [{"model": "colour", "confidence": 0.9}, "large"]
    write_composition(root, "zoom", "cascade", steps, kind="colour")


async def test_photos(root: Path, open_bench: MakeBench) -> None:
    write_photo_models(root)
    bench = open_bench()
    for model in ("pair", "sizes"):
        assert rows_of(await bench.show(model, photo(255, 51, 0))) == [pytest.approx([0.5, 0.2, 0.5])]
    red, dim, refused = photo(255, 0, 0), photo(102, 51, 0), InvalidImage("not base64")
    for answer in (
        await bench.show("zoom", red, b"no image", dim, refused),
        bench.now("zoom", Content("image", (red, b"no image", dim, refused)), is_plural=True),
    ):
        assert answer.items is not None
        assert confidences(answer.items[0]) == [1, 0, 0]
        assert isinstance(answer.items[1], InvalidImage)
        assert confidences(answer.items[2]) == pytest.approx([0, 0.2, 0.4])
        assert answer.items[3] is refused
        assert answer.answered_by == (0, 1)


async def test_photo_is_decoded_once_for_steps_that_take_the_same(root: Path, open_bench: MakeBench) -> None:
    write_photo_models(root)
    bench = open_bench()
    prepared = {
        name: _count_preparations(bench.servable(name)) for name in ("pair", "sizes", "colour", "turned", "large")
    }
    await bench.show("pair", photo(1, 2, 3))
    bench.now("pair", Content("image", (photo(1, 2, 3),)))
    await bench.show("sizes", photo(1, 2, 3))
    counts = {name: len(calls) for name, calls in prepared.items()}
    assert counts == {"pair": 2, "sizes": 0, "colour": 1, "turned": 0, "large": 1}


def _count_preparations(servable: Servable) -> list[bytes]:
    images = servable._images
    assert images is not None
    calls: list[bytes] = []

    class Counting(type(images)):  # type: ignore[misc]
        def prepare(self, data: bytes) -> Any:
            calls.append(data)
            return super().prepare(data)

    servable._images = Counting(images.parameters)
    return calls


@pytest.mark.parametrize("model", ["pair", "sizes", "zoom"])
async def test_single_photo_that_cannot_be_read_raises(root: Path, open_bench: MakeBench, model: str) -> None:
    write_photo_models(root)
    bench = open_bench()
    with pytest.raises(InvalidImage):
        await bench.show(model, b"no image")
    with pytest.raises(InvalidImage):
        bench.now(model, Content("image", (b"no image",)))


async def test_tensors_of_images_only_where_all_steps_take_the_same(root: Path, open_bench: MakeBench) -> None:
    write_photo_models(root)
    bench = open_bench()
    pixels = {"image": np.zeros((1, 4, 4, 3), np.uint8)}
    assert rows_of(await bench.call("pair", pixels)) == [[0, 0, 0]]
    for call in (lambda: bench.call("sizes", pixels), lambda: asyncio.to_thread(bench.now, "sizes", pixels)):
        with pytest.raises(InvalidContent, match="sizes combines models that prepare an image in different ways"):
            await call()


# --- how it runs


async def test_steps_of_an_average_run_side_by_side(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    bench = open_bench(threads=2)
    barrier = threading.Barrier(2, timeout=PATIENCE_SECONDS)  # passed by two at one time only
    for name in ("plain", "mirror"):
        watch(bench, name, barrier.wait)
    bench.keep_off_the_loop("plain", "mirror")
    assert rows_of(await bench.predict("both", SURE)) == [[0.375, 0.25, 0.375]]


async def test_quick_steps_run_in_the_event_loop(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    bench = open_bench(threads=1)
    threads: list[int] = []
    for name in ("plain", "mirror"):
        bench.servable(name).warm_seconds = 1e-5
        watch(bench, name, lambda: threads.append(threading.get_ident()))
    await bench.predict("both", SURE)
    assert threads == [threading.get_ident()] * 2


async def test_calls_of_a_composition_share_the_runs_of_its_steps(root: Path, open_bench: MakeBench) -> None:
    write_model(root, "plain", "2.0.0", batch={"max_size": 8})
    write_release(root, "plain", "2.0.0", also_serve=["1.0.0"])
    write_composition(root, "both", "average", ["plain@2.0.0", "mirror"])
    bench = open_bench(threads=1)
    bench.keep_off_the_loop("plain", "mirror")
    gate = Gate()
    (busy,) = bench.batcher.submit(Functions("busy"), [Work(gate)], time.monotonic() + PATIENCE_SECONDS)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    calls = [asyncio.create_task(bench.predict("both", [n, 0, 0])) for n in range(5)]
    await asyncio.sleep(0.05)
    gate.open()
    answers = await asyncio.gather(*calls, busy)
    assert [rows_of(answer) for answer in answers[:5]] == [[[n / 2, 0, n / 2]] for n in range(5)]
    for key, expected in (("sum", 5), ("count", 1)):
        assert bench.value(f"headway_batch_size_{key}", model="plain", version="2.0.0") == expected


async def test_metrics_of_the_steps_are_their_own(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench()
    await bench.predict("steps", SURE)
    await bench.predict("steps", UNSURE)
    for name, count in (("plain", 2), ("mirror", 1), ("steps", 0)):
        found = bench.value("headway_stage_duration_seconds_count", model=name, version="1.0.0", stage="inference")
        assert found == count, name
    assert bench.value("headway_requests_total", model="plain") == 0


async def test_timings_cover_the_steps(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    bench = open_bench()
    for name in ("plain", "mirror"):
        watch(bench, name, lambda: time.sleep(0.02))
    timings = (await bench.predict("both", SURE)).timings
    assert timings.inference >= 0.04


async def test_deadline_holds_for_every_step(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench(threads=1)
    gate = Gate()
    dear = watch(bench, "mirror", lambda: gate(0.0))
    bench.keep_off_the_loop("plain", "mirror")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await bench.predict("steps", UNSURE, deadline=started + 0.2)
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    assert len(dear.runs) == 1
    gate.open()
    with pytest.raises(DeadlineExceeded):
        await bench.predict("steps", SURE, deadline=time.monotonic() - 1)


@pytest.mark.parametrize("type", ["average", "cascade"])
async def test_caller_that_leaves_frees_what_waits(root: Path, open_bench: MakeBench, type: str) -> None:
    write_composition(root, "m", type, CASCADE if type == "cascade" else PAIR)
    bench = open_bench(threads=1)
    bench.keep_off_the_loop("plain", "mirror")
    steps = [watch(bench, "plain"), watch(bench, "mirror")]
    gate = Gate()
    (busy,) = bench.batcher.submit(Functions("busy"), [Work(gate)], time.monotonic() + PATIENCE_SECONDS)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    leave: list[Callable[[], None]] = []
    leaver = asyncio.create_task(bench.predict("m", UNSURE, on_admitted=leave.append))
    cancelled = asyncio.create_task(bench.predict("m", UNSURE))
    stayer = asyncio.create_task(bench.predict("m", [0, 1, 0]))
    await asyncio.sleep(0.02)
    leave[0]()
    with pytest.raises(ClientClosed):
        await leaver
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    gate.open()
    await busy
    assert rows_of(await stayer) == [[0, 1, 0]]
    assert [len(step.runs) for step in steps] == ([1, 0] if type == "cascade" else [1, 1])


async def test_what_is_given_up_between_two_steps_goes_no_further(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench(threads=1)
    leave: list[Callable[[], None]] = []
    bench.servable("plain").warm_seconds = 1e-5  # run in the event loop, where the caller is told of then
    watch(bench, "plain", lambda: leave[0]())
    bench.keep_off_the_loop("mirror")
    dear = watch(bench, "mirror")
    with pytest.raises(ClientClosed):
        await bench.predict("steps", UNSURE, on_admitted=leave.append)
    assert dear.runs == []


async def test_step_that_fails_fails_the_call(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    write_composition(root, "steps", "cascade", CASCADE)
    bench = open_bench()
    watch(bench, "mirror", fail)
    for model in ("both", "steps"):
        with pytest.raises(RunFailed, match="broken"):
            await bench.predict(model, UNSURE)
        with pytest.raises(RunFailed, match="broken"):
            bench.now(model, Content("tensor", ([UNSURE],)))
    assert rows_of(await bench.predict("steps", SURE)) == [SURE]


async def test_photo_whose_step_fails_fails_alone(root: Path, open_bench: MakeBench) -> None:
    write_photo_models(root)
    bench = open_bench()
    watch(bench, "large", fail)
    answer = await bench.show("zoom", photo(255, 0, 0), photo(9, 9, 9), photo(0, 255, 0))
    assert answer.items is not None
    assert confidences(answer.items[0]) == [1, 0, 0]
    assert isinstance(answer.items[1], RunFailed)
    assert confidences(answer.items[2]) == [0, 1, 0]


async def test_admission_is_for_the_whole(root: Path, open_bench: MakeBench) -> None:
    """The cheap step of a cascade is not run where the dear one has no room."""
    write_model(root, "dear", limits={"queue": 1})
    write_composition(root, "steps", "cascade", [CASCADE[0], "dear"])
    bench = open_bench(threads=1)
    bench.keep_off_the_loop("plain", "dear")
    cheap, gate = watch(bench, "plain"), Gate()
    (busy,) = bench.batcher.submit(Functions("busy"), [Work(gate)], time.monotonic() + PATIENCE_SECONDS)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    admitted = [asyncio.create_task(bench.predict("steps", UNSURE)) for _ in range(3)]
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(bench.predict("dear", SURE))  # now its queue is full
    await asyncio.sleep(0.02)
    with pytest.raises(Overloaded, match="1 requests already wait for 'dear'"):
        await bench.predict("steps", SURE, priority=Priority.HIGH)
    with pytest.raises(Overloaded):
        bench.inference.check_room(bench.registry.resolve(ModelRef("steps")), 1.0)
    assert cheap.runs == []
    gate.open()
    await busy
    assert [rows_of(answer) for answer in await asyncio.gather(*admitted)] == [[UNSURE]] * 3  # not asked again
    assert rows_of(await waiting) == [SURE]


# --- which versions


async def test_step_by_alias_moves_with_it(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "moves", "average", ["plain@stable", "plain"])
    write_composition(root, "stays", "average", ["plain@1.0.0", "plain@1.0.0"])
    write_release(root, "plain", "1.0.0")
    bench = open_bench()
    gate = Gate()
    watch(bench, "plain", lambda: gate(0.0))
    bench.keep_off_the_loop("plain")
    under_way = asyncio.create_task(bench.predict("moves", SURE))
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    write_model(root, "plain", "2.0.0", files={"model.onnx": _mirror([-1, 3])})
    write_release(root, "plain", "2.0.0", also_serve=["1.0.0"])
    assert bench.registry.reconcile() == []
    gate.open()
    assert rows_of(await under_way) == [SURE]  # all of it from the versions that it began with
    assert rows_of(await bench.predict("moves", SURE)) == [SURE[::-1]]
    assert rows_of(await bench.predict("stays", SURE)) == [SURE]


async def test_step_without_a_tag_is_routed_as_the_call(root: Path, open_bench: MakeBench) -> None:
    write_model(root, "plain", "2.0.0", files={"model.onnx": _mirror([-1, 3])})
    write_release(root, "plain", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 50}})
    write_composition(root, "both", "average", ["plain", "plain"])
    bench = open_bench()
    seen = set()
    for number in range(40):
        (row,) = rows_of(await bench.predict("both", SURE, routing_key=str(number).encode()))
        seen.add(tuple(row))
    assert seen == {tuple(SURE), tuple(SURE[::-1])}  # both steps of a call by its one key


async def test_step_that_is_withdrawn(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    write_release(root, "mirror", "1.0.0")
    bench = open_bench()
    write_model(root, "mirror", "2.0.0")
    write_release(root, "mirror", "2.0.0")
    bench.registry.reconcile()
    with pytest.raises(ModelFailed, match=r"step mirror@1\.0\.0 of both@1\.0\.0: .*not released"):
        await bench.predict("both", SURE)
    with pytest.raises(ModelFailed):
        bench.now("both", Content("tensor", ([SURE],)))


async def test_step_whose_new_version_does_not_fit(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", ["plain", "mirror"])
    write_release(root, "mirror", "1.0.0")
    bench = open_bench()
    write_model(root, "mirror", "2.0.0", files={"labels.txt": b"low\nhigh\nmiddle\n"})
    write_release(root, "mirror", "2.0.0")
    bench.registry.reconcile()
    with pytest.raises(ModelFailed, match="has the label 'high' at index 1, where this version has 'middle'"):
        await bench.predict("both", SURE)


async def test_circle_that_is_closed_by_aliases_is_seen_when_called(root: Path, open_bench: MakeBench) -> None:
    """Each version was loaded while there was none."""
    write_model(root, "b")
    write_release(root, "b", "1.0.0")
    write_composition(root, "a", "average", ["b@stable", "plain"])
    write_composition(root, "b", "average", ["a", "plain"], "2.0.0")
    write_release(root, "b", "1.0.0", also_serve=["2.0.0"])
    bench = open_bench()
    assert rows_of(await bench.predict("b@2.0.0", SURE)) == [SURE]
    write_release(root, "b", "2.0.0", also_serve=["1.0.0"])
    bench.registry.reconcile()
    with pytest.raises(ModelFailed, match="must not name each other in a circle"):
        await bench.predict("b", SURE)
    with pytest.raises(ModelFailed, match="must not name each other in a circle"):
        bench.now("a", Content("tensor", ([SURE],)))


async def test_shadow_of_a_composition(root: Path, open_bench: MakeBench) -> None:
    write_composition(root, "both", "average", PAIR)
    write_composition(root, "both", "average", ["mirror", "mirror"], "2.0.0")
    write_release(root, "both", "1.0.0", shadow={"version": "2.0.0", "share": 100})
    bench = open_bench()
    await bench.predict("both", SURE)
    limit = time.monotonic() + PATIENCE_SECONDS
    labels = {"model": "both", "version": "1.0.0", "shadow": "2.0.0"}
    while not bench.value("headway_shadow_requests_total", **labels, outcome="disagreed"):
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)
