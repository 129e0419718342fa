"""Calls of compositions: their steps as calls of their own lanes, so that batching, fairness and metrics of each hold.

A call is admitted as a whole, where every step could answer in time; then its steps are not asked again. They have its
deadline, priority and request id, and are given up with it. The versions are chosen once, and held until the end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import Counter

from app.engine.batcher import Batcher, give_up
from app.engine.call import Answer, Call, Timings
from app.engine.execution import Part
from app.engine.lane import Executor, Priority, Work
from app.errors import HeadwayError
from app.metrics import Metrics
from app.registry.servables.bin_sample import BinSample
from app.registry.servables.composed import Combined, Composed, Lease
from app.registry.servables.servable import Content, Resolved, Servable
from app.registry.steps import StepRun
from app.runtimes.base import Cancellation
from app.tensors import Array, Tensors

AnswerStep = Callable[[Call, Resolved], Awaitable[Answer]]


class Composer:
    """`answer_step` answers the call of a step in its lane with no look for room; `executor_of` is that lane's."""

    def __init__(
        self,
        batcher: Batcher,
        answer_step: AnswerStep,
        executor_of: Callable[[Servable], Executor],
        metrics: Metrics | None,
    ) -> None:
        self._batcher = batcher
        self._answer_step = answer_step
        self._executor_of = executor_of
        self._metrics = metrics
        self._preparations: dict[Servable, Preparation] = {}
        self._answers: dict[tuple[str, str, int], Counter] = {}

    async def run(self, call: Call, composed: Composed) -> list[Part | BaseException]:
        """A result for each item of a plural call, in order; else one. Raises ModelFailed, Overloaded and its kin."""
        lease = composed.lease(call.routing_key)
        self._note_fallbacks(lease)
        started = time.perf_counter()
        pieces = pieces_of(call, composed)
        prepared = time.perf_counter()
        self._check_room(lease, call.deadline - time.monotonic(), call.priority)
        works = _Works()
        if call.on_admitted is not None:
            call.on_admitted(works.give_up)
        results: list[Part | BaseException]
        if len(pieces) == 1 and not isinstance(pieces[0], HeadwayError):
            results = [await self._part(lease, pieces[0], call, works)]
        else:
            runnable = [piece for piece in pieces if not isinstance(piece, HeadwayError)]
            parts = [self._part(lease, piece, call, works) for piece in runnable]
            found = iter(await asyncio.gather(*parts, return_exceptions=True))
            results = [piece if isinstance(piece, HeadwayError) else next(found) for piece in pieces]
        for result in results[:1]:
            if isinstance(result, Part):
                result.timings.preprocess += prepared - started
        return results

    def check_room(self, composed: Composed, seconds: float, priority: Priority) -> None:
        """As `Batcher.check_room`, for all steps."""
        self._check_room(composed.lease(), seconds, priority)

    def forget(self, servable: Servable) -> None:
        preparation = self._preparations.pop(servable, None)
        if preparation is not None:
            self._batcher.forget(preparation)

    def _check_room(self, lease: Lease, seconds: float, priority: Priority) -> None:
        executors: list[Executor] = [self._executor_of(leaf.servable) for leaf in lease.leaves()]
        if lease.servable.kind == "image" and lease.shares_preparation:
            executors.append(self._preparation(lease.servable))
        self._batcher.check_rooms(list(dict.fromkeys(executors)), seconds, priority)

    async def _part(self, lease: Lease, piece: Content | Tensors, call: Call, works: _Works) -> Part:
        timings = Timings()
        combined = await self._combine(lease, piece, call, works, timings)
        started = time.perf_counter()
        composed = lease.servable
        items = composed.answer(combined.tensors, call.top_k) if call.outputs is None else None
        self._count(composed, combined)
        if composed.sample is not None:
            _offer(composed.sample, piece, combined.tensors, is_prepared=lease.shares_preparation)
        timings.postprocess += time.perf_counter() - started
        return Part(items, combined.tensors, timings, None, combined.answered_by)

    async def _combine(
        self, lease: Lease, piece: Content | Tensors, call: Call, works: _Works, timings: Timings
    ) -> Combined:
        """As `Lease.run`, with the steps of one turn side by side."""
        prepared: Tensors | None = None
        if not isinstance(piece, Content):
            prepared = piece
        elif lease.shares_preparation:
            prepared = await self._prepare(lease.servable, piece, call, works, timings)
        plan = lease.servable.plan(lease.servable.count(piece))
        while plan.runs:
            turn = Timings()
            steps = [self._run_step(lease, run, piece, prepared, call, works, turn) for run in plan.runs]
            # Not gather for one: it would make a task of it.
            found = [await steps[0]] if len(steps) == 1 else await asyncio.gather(*steps, return_exceptions=True)
            plan.take([_get(one) for one in found])
            waited = timings.queue
            timings.add(turn)
            timings.queue = waited + turn.queue  # one turn waits after the other
        return lease.servable.combined(plan.confidences, plan.answered_by)

    async def _run_step(
        self,
        lease: Lease,
        run: StepRun,
        piece: Content | Tensors,
        prepared: Tensors | None,
        call: Call,
        works: _Works,
        timings: Timings,
    ) -> Array:
        step = lease.steps[run.number]
        inputs = lease.inputs_of(run, piece, prepared)
        if step.lease is not None:
            inner = Timings()
            combined = await self._combine(step.lease, inputs, call, works, inner)
            timings.add(inner)
            return step.confidences(combined.tensors)
        answer = await self._answer_step(_step_call(call, inputs, step.output, works), step.resolved)
        timings.add(answer.timings)
        self._observe(step.servable, answer.timings)
        assert answer.tensors is not None
        return step.confidences(answer.tensors)

    async def _prepare(
        self, composed: Composed, piece: Content, call: Call, works: _Works, timings: Timings
    ) -> Tensors:
        """Decode an image once for all steps that take the same."""
        work = Work((piece.kind, piece.items[0]))
        (future,) = self._batcher.submit(
            self._preparation(composed), (work,), call.deadline, call.priority, is_admitted=True
        )
        works.add([future])
        tensors: Tensors
        tensors, found = await future
        timings.add(found)
        return tensors

    def _preparation(self, composed: Composed) -> Preparation:
        preparation = self._preparations.get(composed)
        if preparation is None:
            preparation = self._preparations[composed] = Preparation(composed)
        return preparation

    def _note_fallbacks(self, lease: Lease) -> None:
        if self._metrics is None:
            return
        for step in lease.leaves():
            if step.resolved.fallback_from is not None:
                self._metrics.canary_fallback.labels(step.servable.name, step.resolved.fallback_from).inc()

    def _observe(self, step: Servable, timings: Timings) -> None:
        if self._metrics is not None:
            bound = self._metrics.model(step.name, step.version)
            for stage, seconds in timings.stages():
                if stage != "decode":
                    bound.observe_stage(stage, seconds)

    def _count(self, composed: Composed, combined: Combined) -> None:
        if self._metrics is None or combined.answered_by is None:
            return
        for number in combined.answered_by:
            key = (composed.name, composed.version, number)
            counter = self._answers.get(key)
            if counter is None:
                step = composed.composition.steps[number].model
                counter = self._answers[key] = self._metrics.cascade_answers.labels(*key[:2], step)
            counter.inc()


class Preparation:
    """The `Executor` that makes tensors of a composition's images; it has a lane beside those of the steps."""

    max_rows = 1
    max_wait_seconds = 0.0
    max_runs: int | None = None
    guess_seconds = 0.0
    is_steady = False

    def __init__(self, composed: Composed) -> None:
        self._composed = composed
        self.model = composed.name
        self.queue_limit = composed.manifest.limits.queue
        self.max_run_seconds = composed.manifest.limits.max_run_seconds

    def run(self, works: Sequence[Work], waited: Sequence[float], _: Cancellation) -> list[Any]:
        return [self._prepare(work, seconds) for work, seconds in zip(works, waited, strict=True)]

    def _prepare(self, work: Work, waited: float) -> tuple[Tensors, Timings] | BaseException:
        started = time.perf_counter()
        try:
            tensors = self._composed.prepare(*work.content)
        except BaseException as exc:
            return exc
        kind, item = work.content
        if self._composed.sample is not None and kind == "image":
            (tensor,) = tensors.values()
            self._composed.sample.offer_photo(tensor, item)
        return tensors, Timings(queue=waited, preprocess=time.perf_counter() - started)


class _Works:
    """What one call has in the queues. What is added after it was given up is given up at once."""

    def __init__(self) -> None:
        self._ends: list[Callable[[], None]] = []
        self._is_given_up = False

    def add(self, futures: list[asyncio.Future[Any]]) -> None:
        self.hold(partial(give_up, futures))

    def hold(self, end: Callable[[], None]) -> None:
        if self._is_given_up:
            end()
        else:
            self._ends.append(end)

    def give_up(self) -> None:
        self._is_given_up = True
        for end in self._ends:
            end()


def run_now(call: Call, composed: Composed) -> list[Part | BaseException]:
    """As `Composer.run`, in this thread and with no queue."""
    lease = composed.lease(call.routing_key)
    return [
        piece if isinstance(piece, HeadwayError) else _run_now(lease, piece, call)
        for piece in pieces_of(call, composed)
    ]


def _run_now(lease: Lease, piece: Content | Tensors, call: Call) -> Part | BaseException:
    started = time.perf_counter()
    try:
        combined = lease.run(piece)
        ran = time.perf_counter()
        items = lease.servable.answer(combined.tensors, call.top_k) if call.outputs is None else None
    except HeadwayError as exc:
        return exc
    timings = Timings(inference=ran - started, postprocess=time.perf_counter() - ran)
    return Part(items, combined.tensors, timings, None, combined.answered_by)


def pieces_of(call: Call, composed: Composed) -> list[Content | Tensors | HeadwayError]:
    """Each image of a call, each text as tensors, or all its rows. Raises InvalidContent and its kin."""
    composed.check_names(call.outputs)
    if not isinstance(call.inputs, Content):
        composed.check(call.inputs)
        pieces: list[Content | Tensors | HeadwayError] = [call.inputs]
    elif call.inputs.kind == "image" == composed.kind:
        return [item if isinstance(item, HeadwayError) else Content("image", (item,)) for item in call.inputs.items]
    elif call.inputs.kind == "text" == composed.kind:
        return [_prepare_text(composed, item) for item in call.inputs.items]
    else:
        pieces = [composed.prepare(call.inputs.kind, call.inputs.items[0])]
    composed.count(pieces[0])  # type: ignore[arg-type]
    return pieces


def _prepare_text(composed: Composed, text: Any) -> Tensors | HeadwayError:
    try:
        return composed.prepare("text", text)
    except HeadwayError as exc:
        return exc


def _offer(sample: BinSample, piece: Content | Tensors, outputs: Tensors, *, is_prepared: bool) -> None:
    """What a composition answered; a photo that was prepared for its steps is there already."""
    if not isinstance(piece, Content):
        sample.offer_rows(piece)
    elif not is_prepared:
        sample.offer_encoded(piece.items[0])
    sample.offer_answer(outputs)


def _step_call(call: Call, inputs: Content | Tensors, output: str, works: _Works) -> Call:
    return Call(
        inputs=inputs,
        deadline=call.deadline,
        outputs=(output,),
        routing_key=call.routing_key,
        request_id=call.request_id,
        priority=call.priority,
        on_admitted=works.hold,
    )


def _get(found: Array | BaseException) -> Array:
    if isinstance(found, BaseException):
        raise found
    return found
