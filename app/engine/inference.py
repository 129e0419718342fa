"""Resolve, queue, process, run, answer: what every protocol and the command line call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.engine.batcher import Batcher, Priority
from app.engine.call import Answer, Call, Timings
from app.errors import ClientClosed, HeadwayError, InvalidContent
from app.metrics import Metrics
from app.registry.lifecycle import Registry, Resolved
from app.registry.servable import Content, ContentKind, Item, Servable
from app.registry.versions import ModelRef
from app.tensors import Tensors


@dataclass(frozen=True, slots=True)
class _Part:
    """The result of one work: the rows of one item of content, or of one call of tensors."""

    items: tuple[Item, ...] | None
    tensors: Tensors
    rows: int
    timings: Timings


class Inference:
    """`predict` for servers, `predict_now` without one: the same steps, in a thread of the batcher or in this one."""

    def __init__(self, registry: Registry, batcher: Batcher | None = None, metrics: Metrics | None = None) -> None:
        self.registry = registry
        self._batcher = batcher
        self._metrics = metrics

    def resolve(self, ref: ModelRef | None, kind: ContentKind, routing_key: bytes | None = None) -> Resolved:
        """Which version answers; without `ref` the default model for this kind. Raises ModelNotFound and its kin."""
        return self.registry.resolve(ref or self.registry.default_for(kind), routing_key)

    async def predict(self, call: Call, resolved: Resolved) -> Answer:
        """Answer a call with the version that `resolve` gave for it.

        Raises Overloaded, DeadlineExceeded, InvalidContent and its kin; of a call with several items only the
        failed ones carry an error.
        """
        if self._batcher is None:
            raise RuntimeError("this Inference was made without a batcher; use predict_now")
        servable = resolved.servable
        works = _works(servable, call)
        futures = self._batcher.submit(
            servable.name,
            works,
            call.deadline,
            servable.manifest.limits.queue,
            priority=call.priority,
            guess_seconds=servable.warm_seconds,
        )
        if call.on_admitted is not None:
            call.on_admitted(partial(_give_up, futures))
        results = await asyncio.gather(*futures, return_exceptions=True)
        if self._metrics is not None:
            batch_size = self._metrics.model(servable.name, servable.version).batch_size
            for result in results:
                if isinstance(result, _Part):
                    batch_size.observe(result.rows)
        return _assemble(call, resolved, results)

    @property
    def is_busy(self) -> bool:
        """Whether anything waits for a thread."""
        return self._batcher is not None and self._batcher.is_busy

    def check_room(self, resolved: Resolved, seconds: float, priority: Priority = Priority.NORMAL) -> None:
        """Raises Overloaded where a call with so many seconds left would be refused; for a look before parsing."""
        if self._batcher is not None:
            servable = resolved.servable
            self._batcher.check_room(servable.name, seconds, servable.manifest.limits.queue, priority)

    def predict_now(self, call: Call, resolved: Resolved) -> Answer:
        """Answer a call in this thread, with no queue."""
        results: list[_Part | BaseException] = []
        for work in _works(resolved.servable, call):
            try:
                results.append(work(0.0))
            except HeadwayError as exc:
                results.append(exc)
        return _assemble(call, resolved, results)


def _give_up(futures: list[asyncio.Future[_Part]]) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(ClientClosed("the caller left before its answer was ready"))


def _works(servable: Servable, call: Call) -> list[Callable[[float], _Part]]:
    if isinstance(call.inputs, Content):
        if call.is_plural and servable.manifest.answer.type == "tensor":
            raise InvalidContent(
                f"{servable.name} answers with tensors, for one {servable.kind} a request; send it alone"
            )
        return [partial(_compute, servable, call, item) for item in call.inputs.items]
    servable.check(call.inputs)
    return [partial(_compute, servable, call, call.inputs)]


def _compute(servable: Servable, call: Call, item: Any, waited: float) -> _Part:
    if isinstance(item, HeadwayError):
        raise item
    started = time.perf_counter()
    tensors = servable.prepare(call.inputs.kind, item) if isinstance(call.inputs, Content) else item
    prepared = time.perf_counter()
    outputs = servable.run(tensors, call.outputs)
    ran = time.perf_counter()
    items = servable.answer(outputs, call.top_k) if call.outputs is None else None
    timings = Timings(
        queue=waited,
        preprocess=prepared - started,
        inference=ran - prepared,
        postprocess=time.perf_counter() - ran,
    )
    return _Part(items, outputs, len(items) if items is not None else 1, timings)


def _assemble(call: Call, resolved: Resolved, results: list[_Part | BaseException]) -> Answer:
    """One answer from the results of its works."""
    timings = Timings()
    items: list[Item | HeadwayError] = []
    tensors: Tensors | None = None
    for result in results:
        if isinstance(result, _Part):
            timings.add(result.timings)
            items.extend(result.items or ())
            tensors = result.tensors
        elif isinstance(result, HeadwayError) and call.is_plural:
            items.append(result)
        else:
            raise result
    servable = resolved.servable
    has_items = servable.manifest.answer.type != "tensor" and call.outputs is None
    return Answer(
        model=servable.name,
        version=servable.version,
        alias=resolved.alias,
        items=tuple(items) if has_items else None,
        tensors=tensors if len(results) == 1 else None,
        timings=timings,
    )
