"""Resolve, queue, process, run, answer: what every protocol and the command line call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from app.engine.batcher import Batcher, give_up
from app.engine.call import Answer, Call, Timings
from app.engine.composition import Composer, run_now
from app.engine.execution import MOST_RUNS, Execution, Part
from app.engine.lane import Priority, Work
from app.engine.shadow import Shadow
from app.errors import HeadwayError, ImageTooLarge, InvalidContent, InvalidImage
from app.metrics import Metrics
from app.processing.consistency import Violation
from app.registry.manifest import ClassificationAnswer
from app.registry.servables.batch_axis import join
from app.registry.servables.composed import Composed
from app.registry.servables.servable import Content, ContentKind, Item, Servable
from app.registry.serving.lifecycle import Registry, Resolved
from app.registry.versions import ModelRef
from app.runtimes.base import Cancellation
from app.tensors import Tensors


class Inference:
    """`predict` for servers, `predict_now` without one: the same steps, in a thread of the batcher or in this one."""

    def __init__(self, registry: Registry, batcher: Batcher | None = None, metrics: Metrics | None = None) -> None:
        self.registry = registry
        self._batcher = batcher
        self._metrics = metrics
        self._executions: dict[Servable, Execution] = {}
        self._shadow: Shadow | None = None
        self._composer: Composer | None = None
        if batcher is not None:
            self._composer = Composer(batcher, partial(self._answer, is_admitted=True), self._execution, metrics)
        if batcher is not None and metrics is not None:
            self._shadow = Shadow(self.predict_now, lambda: batcher.is_idle, metrics)

    def resolve(self, ref: ModelRef | None, kind: ContentKind, routing_key: bytes | None = None) -> Resolved:
        """Which version answers; without `ref` the default model for this kind. Raises ModelNotFound and its kin."""
        resolved = self.registry.resolve(ref or self.registry.default_for(kind), routing_key)
        if resolved.fallback_from is not None and self._metrics is not None:
            self._metrics.canary_fallback.labels(resolved.servable.name, resolved.fallback_from).inc()
        return resolved

    async def predict(self, call: Call, resolved: Resolved) -> Answer:
        """Answer a call with the version that `resolve` gave for it.

        Raises Overloaded, DeadlineExceeded, InvalidContent and its kin; of a call with several items only the
        failed ones carry an error.
        """
        if self._composer is None:
            raise RuntimeError("this Inference was made without a batcher; use predict_now")
        servable = resolved.servable
        try:
            if isinstance(servable, Composed):
                answer = _assemble(call, resolved, await self._composer.run(call, servable))
            else:
                answer = await self._answer(call, resolved)
        except InvalidImage:
            if self._metrics is not None:
                self._metrics.undecodable_images.labels(servable.name).inc()
            raise
        if self._metrics is not None:
            _count_items(self._metrics, servable, answer)
        if self._shadow is not None and (shadow := self.registry.shadow_of(servable.name)) is not None:
            self._shadow.offer(*shadow, call, answer)
        return answer

    async def _answer(self, call: Call, resolved: Resolved, *, is_admitted: bool = False) -> Answer:
        """Answer with one version in its lane. `is_admitted`: as a step of a call that was."""
        servable = resolved.servable
        execution = self._execution(servable)
        started = time.perf_counter()
        works = execution.works(call, MOST_RUNS)
        prepared = time.perf_counter()
        results = await self._run(execution, works, call, is_admitted=is_admitted)
        answer = _assemble(call, resolved, results)
        answer.timings.preprocess += prepared - started
        if self._metrics is not None:
            bound = self._metrics.model(servable.name, servable.version)
            for result in results:
                if isinstance(result, Part) and result.run_rows is not None:
                    bound.observe_batch(result.run_rows)
        return answer

    @property
    def is_busy(self) -> bool:
        """Whether anything waits for a thread."""
        return self._batcher is not None and self._batcher.is_busy

    def check_room(self, resolved: Resolved, seconds: float, priority: Priority = Priority.NORMAL) -> None:
        """Raises Overloaded where a call with so many seconds left would be refused; for a look before parsing."""
        if self._batcher is None or self._composer is None:
            return
        if isinstance(resolved.servable, Composed):
            self._composer.check_room(resolved.servable, seconds, priority)
        else:
            self._batcher.check_room(self._execution(resolved.servable), seconds, priority)

    def close(self) -> None:
        """Runs nothing in the shadow any more."""
        if self._shadow is not None:
            self._shadow.close()

    def forget(self, servable: Servable) -> None:
        """The version is unloaded and has no calls any more."""
        if self._composer is not None:
            self._composer.forget(servable)
        execution = self._executions.pop(servable, None)
        if execution is not None and self._batcher is not None:
            self._batcher.forget(execution)

    def predict_now(self, call: Call, resolved: Resolved) -> Answer:
        """Answer a call in this thread, with no queue."""
        if isinstance(resolved.servable, Composed):
            return _assemble(call, resolved, run_now(call, resolved.servable))
        execution = self._execution(resolved.servable)
        results = [
            work if isinstance(work, HeadwayError) else execution.run((work,), (0.0,), Cancellation())[0]
            for work in execution.works(call)
        ]
        return _assemble(call, resolved, results)

    async def _run(
        self, execution: Execution, works: list[Work | HeadwayError], call: Call, *, is_admitted: bool
    ) -> list[Part | BaseException]:
        """Here where that is quicker, else in the threads; results in the order of `works`."""
        batcher = self._batcher
        assert batcher is not None
        runnable = [work for work in works if isinstance(work, Work)]
        if not runnable:
            return [work for work in works if isinstance(work, HeadwayError)]
        if batcher.can_run_here(execution, runnable):
            result = batcher.run_here(execution, runnable[0], call.deadline)
            if result is not None:
                return [work if isinstance(work, HeadwayError) else result for work in works]
        futures = batcher.submit(execution, runnable, call.deadline, call.priority, is_admitted=is_admitted)
        if call.on_admitted is not None:
            call.on_admitted(partial(give_up, futures))
        if len(works) == 1:
            return [await futures[0]]
        results = iter(await asyncio.gather(*futures, return_exceptions=True))
        return [work if isinstance(work, HeadwayError) else next(results) for work in works]

    def _execution(self, servable: Servable) -> Execution:
        execution = self._executions.get(servable)
        if execution is None:
            execution = self._executions[servable] = Execution(servable, self._metrics)
        return execution


def _assemble(call: Call, resolved: Resolved, results: Sequence[Part | BaseException]) -> Answer:
    """One answer from the results of its works."""
    if len(results) == 1 and isinstance(results[0], Part):
        part = results[0]
        return _answer_of(
            call, resolved, part.items or (), part.tensors, part.timings, part.answered_by, part.violations
        )
    timings = Timings()
    items: list[Item | HeadwayError] = []
    outputs: list[Tensors] = []
    answered_by: list[int] = []
    violations: tuple[Violation, ...] = ()
    for result in results:
        if isinstance(result, Part):
            timings.add(result.timings)
            items.extend(result.items or ())
            outputs.append(result.tensors)
            answered_by.extend(result.answered_by or ())
            violations += result.violations
        elif isinstance(result, HeadwayError) and call.is_plural:
            items.append(result)
        elif isinstance(result, InvalidImage | ImageTooLarge) and len(results) > 1:
            raise type(result)(f"image {len(outputs) + 1} of {len(results)}: {result}") from result
        else:
            raise result
    tensors = None if call.is_plural else _join(call, resolved, outputs)
    return _answer_of(call, resolved, tuple(items), tensors, timings, tuple(answered_by) or None, violations)


def _join(call: Call, resolved: Resolved, outputs: Sequence[Tensors]) -> Tensors:
    """Raises InvalidContent for images whose answers could not be told apart."""
    if isinstance(call.inputs, Content) and call.inputs.kind == "image":
        wrong = [name for output in outputs for name, array in output.items() if array.shape[:1] != (1,)]
        if wrong:
            raise InvalidContent(
                f"{resolved.servable.name} gives {wrong[0]!r} not as one row for each image; send one image a request"
            )
    return join(outputs)


def _answer_of(
    call: Call,
    resolved: Resolved,
    items: tuple[Item | HeadwayError, ...],
    tensors: Tensors | None,
    timings: Timings,
    answered_by: tuple[int, ...] | None,
    violations: tuple[Violation, ...],
) -> Answer:
    servable = resolved.servable
    has_items = servable.manifest.answer.type != "tensor" and call.outputs is None
    return Answer(
        model=servable.name,
        version=servable.version,
        alias=resolved.alias,
        items=items if has_items else None,
        tensors=None if call.is_plural else tensors,
        timings=timings,
        answered_by=answered_by,
        violations=violations,
    )


def _count_items(metrics: Metrics, servable: Servable, answer: Answer) -> None:
    """Of an answer: images that could not be decoded, and items that the version is not sure of."""
    kind = servable.manifest.answer
    least = kind.low_confidence if isinstance(kind, ClassificationAnswer) else None
    if answer.items is None or (least is None and servable.kind != "image"):
        return
    undecodable = sum(isinstance(item, InvalidImage) for item in answer.items)
    if undecodable:
        metrics.undecodable_images.labels(servable.name).inc(undecodable)
    if least is not None:
        firsts = (item.predictions[0].confidence for item in answer.items if isinstance(item, Item))
        metrics.model(servable.name, servable.version).count_low_confidence(
            sum(first is None or first < least for first in firsts)
        )
