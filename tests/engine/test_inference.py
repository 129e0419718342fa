"""The one path: content to answers, each item for itself."""

from __future__ import annotations

import asyncio
import io
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engine.batcher import Batcher
from app.engine.call import Answer, Call
from app.engine.inference import Inference
from app.engine.lane import Work
from app.engine.readiness import Readiness
from app.errors import (
    DeadlineExceeded,
    Draining,
    InvalidContent,
    InvalidImage,
    InvalidTensor,
    ModelNotReady,
    RunFailed,
    Unavailable,
)
from app.registry.servables.servable import Content, ContentKind, Item
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.engine.executors import PATIENCE_SECONDS, Functions, Gate
from tests.fixtures_models import edit_manifest, write_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def inference(registry: Registry) -> Iterator[Inference]:
    batcher = Batcher(2)
    yield Inference(registry, batcher)
    batcher.close()


def _photo(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


async def _predict(inference: Inference, model: str, kind: ContentKind, *items: Any, **options: Any) -> Answer:
    options.setdefault("deadline", time.monotonic() + PATIENCE_SECONDS)
    call = Call(Content(kind, items), is_plural=len(items) > 1, **options)
    return await inference.predict(call, inference.resolve(ModelRef.parse(model), kind))


def _confidences(item: object) -> dict[str, float | None]:
    assert isinstance(item, Item)
    return {prediction.label: prediction.confidence for prediction in item.predictions}


async def test_predict_rows(inference: Inference) -> None:
    answer = await _predict(inference, "scores", "tensor", [[0.5, 0.25, 0.125], [0, 0, 1]], top_k=2)
    assert (answer.model, answer.version, answer.alias) == ("scores", "1.0.0", "stable")
    assert answer.items is not None
    assert [_confidences(item) for item in answer.items] == [{"low": 0.5, "middle": 0.25}, {"high": 1.0, "low": 0.0}]


async def test_predict_regression(inference: Inference) -> None:
    answer = await _predict(inference, "sum", "tensor", [[1, 2, 3], [0.5, 0, 0]])
    assert answer.items == (Item(value=6.0), Item(value=0.5))


async def test_predict_plain_tensors(inference: Inference) -> None:
    answer = await _predict(inference, "two_inputs", "tensor", {"a": [[1, 2]], "b": [[3, 4]]})
    assert answer.items is None
    assert answer.tensors is not None
    assert answer.tensors["total"].tolist() == [[4, 6]]


async def test_predict_photo(inference: Inference) -> None:
    answer = await _predict(inference, "colour", "image", _photo(255, 51, 0))
    assert answer.items is not None
    assert _confidences(answer.items[0]) == pytest.approx({"red": 1.0, "green": 0.2, "blue": 0.0})


async def test_predict_tensors_of_a_protocol(inference: Inference) -> None:
    resolved = inference.resolve(ModelRef("scores"), "tensor")
    deadline = time.monotonic() + PATIENCE_SECONDS
    given = np.array([[1, 2, 3]], np.float32)
    answer = await inference.predict(Call({"x": given}, deadline, outputs=("scores",)), resolved)
    assert answer.items is None
    assert answer.tensors is not None
    np.testing.assert_array_equal(answer.tensors["scores"], given)
    with pytest.raises(InvalidTensor, match="datatype float64"):
        await inference.predict(Call({"x": given.astype(np.float64)}, deadline), resolved)


async def test_predict_by_alias_and_version(inference: Inference) -> None:
    for text, version, alias in (("scores@canary", "2.0.0", "canary"), ("scores@2.0.0", "2.0.0", None)):
        answer = await _predict(inference, text, "tensor", [[1, 0, 0]])
        assert (answer.version, answer.alias) == (version, alias)


async def test_predict_one_bad_image_does_not_spoil_its_neighbours(inference: Inference) -> None:
    refused = InvalidImage("not base64")
    answer = await _predict(
        inference, "colour", "image", _photo(255, 0, 0), b"no image", _photo(0, 0, 255), refused, b""
    )
    assert answer.items is not None
    red, text, blue, given, empty = answer.items
    assert _confidences(red)["red"] == 1.0
    assert _confidences(blue)["blue"] == 1.0
    assert isinstance(text, InvalidImage)
    assert given is refused
    assert isinstance(empty, InvalidImage)


async def test_predict_single_bad_image_raises(inference: Inference) -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        await _predict(inference, "colour", "image", b"no image")
    with pytest.raises(InvalidTensor, match="shape"):
        await _predict(inference, "scores", "tensor", [[1, 2]])


async def test_predict_several_photos_with_a_model_that_answers_with_tensors(registry: Registry) -> None:
    """There is no place for them in the answer, and less than all is none."""
    directory = write_model(registry.store.root, "embedding", kind="colour", answer=None)
    edit_manifest(directory, task="tensor", answer={"type": "tensor"})
    registry.load()
    batcher = Batcher(1)
    inference = Inference(registry, batcher)
    answer = await _predict(inference, "embedding", "image", _photo(255, 0, 0))
    assert answer.tensors is not None
    assert answer.tensors["scores"].tolist() == [[1, 0, 0]]
    with pytest.raises(InvalidContent, match="embedding answers with tensors, for one image a request; send it alone"):
        await _predict(inference, "embedding", "image", _photo(255, 0, 0), b"no image")
    batcher.close()


async def test_predict_wrong_kind_of_content(inference: Inference) -> None:
    with pytest.raises(InvalidContent, match=r"scores takes numbers \(the key inputs\), not images"):
        await _predict(inference, "scores", "image", _photo(1, 2, 3))
    with pytest.raises(InvalidContent, match="colour takes images, not numbers"):
        await _predict(inference, "colour", "tensor", [[1]])


async def test_predict_run_that_fails(inference: Inference) -> None:
    with pytest.raises(RunFailed, match="out of data bounds"):
        await _predict(inference, "lookup", "tensor", [9])
    answer = await _predict(inference, "lookup", "tensor", [1])
    assert answer.tensors is not None
    assert answer.tensors["found"].tolist() == [20]


async def test_row_of_a_batch_equals_the_input_alone(inference: Inference) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    together = await _predict(inference, "scores", "tensor", rows.tolist(), top_k=3)
    order = list(range(50))
    random.Random(2).shuffle(order)
    alone = await asyncio.gather(*[_predict(inference, "scores", "tensor", [rows[n].tolist()], top_k=3) for n in order])
    assert together.items is not None
    assert [answer.items for answer in alone] == [(together.items[n],) for n in order]


async def test_photo_among_others_equals_the_photo_alone(inference: Inference) -> None:
    photos = [_photo(n * 5, 255 - n * 3, n) for n in range(40)]
    together = await _predict(inference, "colour", "image", *photos)
    alone = await asyncio.gather(*[_predict(inference, "colour", "image", photo) for photo in photos])
    assert together.items == tuple(answer.items[0] for answer in alone if answer.items is not None)


async def test_predict_now_gives_the_same(inference: Inference) -> None:
    resolved = inference.resolve(ModelRef("scores"), "tensor")
    content = Content("tensor", ([[3, 1, 2], [0, 5, 5]],))
    queued = await inference.predict(Call(content, time.monotonic() + PATIENCE_SECONDS), resolved)
    now = inference.predict_now(Call(content, float("inf")), resolved)
    assert now.items == queued.items
    plural = Call(Content("image", (_photo(0, 255, 0), b"")), float("inf"), is_plural=True)
    good, bad = inference.predict_now(plural, inference.resolve(ModelRef("colour"), "image")).items or ()
    assert _confidences(good)["green"] == 1.0
    assert isinstance(bad, InvalidImage)


async def test_predict_after_the_deadline(inference: Inference) -> None:
    with pytest.raises(DeadlineExceeded):
        await _predict(inference, "scores", "tensor", [[1, 2, 3]], deadline=time.monotonic() - 1)


async def test_caller_that_leaves_cancels_its_works(registry: Registry) -> None:
    batcher, gate = Batcher(1), Gate()
    inference = Inference(registry, batcher)
    (busy,) = batcher.submit(Functions("busy"), [Work(gate)], time.monotonic() + PATIENCE_SECONDS)
    await asyncio.to_thread(gate.entered.wait, PATIENCE_SECONDS)
    inference.resolve(ModelRef("scores"), "tensor").servable.warm_seconds = 0.0  # unknown: not run in the event loop
    leaver = asyncio.create_task(_predict(inference, "scores", "tensor", [[1, 2, 3]]))
    stayer = asyncio.create_task(_predict(inference, "scores", "tensor", [[4, 2, 3]]))
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    gate.open()
    await busy
    assert (await stayer).items is not None
    batcher.close()


async def test_timings_are_of_this_call(inference: Inference) -> None:
    started = time.perf_counter()
    timings = (await _predict(inference, "colour", "image", _photo(1, 2, 3))).timings
    took = time.perf_counter() - started
    assert timings.preprocess > 0
    assert timings.inference > 0
    assert timings.queue + timings.preprocess + timings.inference + timings.postprocess <= took


async def test_predict_without_batcher_is_a_bug(registry: Registry) -> None:
    with pytest.raises(RuntimeError, match="use predict_now"):
        await _predict(Inference(registry), "scores", "tensor", [[1, 2, 3]])


def test_readiness(registry: Registry) -> None:
    draining = threading.Event()
    unloaded = Readiness(Registry(Store(registry.store.root)), draining, strict=False)
    with pytest.raises(ModelNotReady):
        unloaded.check_ready()
    for strict in (False, True):
        Readiness(registry, draining, strict=strict).check_ready()
    (write_model(registry.store.root, "broken") / "labels.txt").unlink()
    (registry.store.root / "empty").mkdir()
    registry.load()
    Readiness(registry, draining, strict=False).check_ready()
    with pytest.raises(Unavailable, match=r"broken@1\.0\.0, empty cannot be served"):
        Readiness(registry, draining, strict=True).check_ready()
    draining.set()
    with pytest.raises(Draining):
        Readiness(registry, draining, strict=False).check_ready()
    Readiness(registry, draining, strict=False).check_started()
