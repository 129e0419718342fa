"""One model version as the batcher runs it: calls to works, works that share a run, and each its own rows back."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from app.engine.call import Call, Timings
from app.engine.lane import Work
from app.errors import BodyTooLarge, HeadwayError, InvalidContent
from app.metrics import Metrics
from app.processing.consistency import Violation
from app.registry.servables.batch_axis import unstack
from app.registry.servables.servable import Content, ContentKind, Item, Servable
from app.runtimes.base import Cancellation
from app.tensors import Tensors

# Of one request: each is kept account of in the event loop, which all others wait for meanwhile.
MOST_RUNS = 1024


@dataclass(slots=True)
class Piece:
    """What one work computes: an encoded image or a text (`kind` is set), or rows of tensors.

    `violations` of a call stand in the first of its works.
    """

    kind: ContentKind | None
    item: Any
    outputs: tuple[str, ...] | None
    top_k: int
    violations: tuple[Violation, ...] = ()


@dataclass(slots=True)
class Part:
    """The result of one work. `run_rows` is the size of its run, None where a neighbour in that run says it."""

    items: tuple[Item, ...] | None
    tensors: Tensors
    timings: Timings
    run_rows: int | None
    answered_by: tuple[int, ...] | None = None
    violations: tuple[Violation, ...] = ()


class Execution:
    """The batcher's `Executor` for a servable. `works` is called in the event loop, `run` in any thread."""

    def __init__(self, servable: Servable, metrics: Metrics | None = None) -> None:
        limits, batch = servable.manifest.limits, servable.manifest.batch
        self._servable = servable
        self._metrics = metrics
        self.model = servable.name
        self.queue_limit = limits.queue
        self.max_rows = servable.max_batch_size
        self.max_wait_seconds = batch.max_wait_ms / 1e3
        self.max_runs = limits.instances
        self.max_run_seconds = limits.max_run_seconds
        self.guess_seconds = servable.warm_seconds
        axis = servable.batch_axis
        self.is_steady = axis is not None and not axis.has_free_size(servable.input_specs)

    def works(self, call: Call, most_runs: int | None = None) -> list[Work | HeadwayError]:
        """A work for each image or text, and for each `max_rows` rows of tensors; an item that is an error stays it.

        Raises InvalidContent and its kin, and BodyTooLarge for rows of more than `most_runs`.
        """
        servable = self._servable
        if not isinstance(call.inputs, Content) or call.inputs.kind == "tensor":
            return self._split(*self._check(call.inputs), call, most_runs)
        kind = call.inputs.kind
        if call.is_plural and servable.manifest.answer.type == "tensor":
            raise InvalidContent(
                f"{servable.name} answers with tensors, for one {servable.kind} a request; send it alone"
            )
        signature = (kind, call.outputs) if self.max_rows > 1 else None
        return [
            item
            if isinstance(item, HeadwayError)
            else Work(Piece(kind, item, call.outputs, call.top_k), signature=signature)
            for item in call.inputs.items
        ]

    def run(self, works: Sequence[Work], waited: Sequence[float], cancellation: Cancellation) -> list[Any]:
        """A Part, or the exception, for each work. One that fails does not spoil those that share its run."""
        results: list[Any] = [None] * len(works)
        timings = [Timings(queue=seconds) for seconds in waited]
        ready: list[tuple[int, Tensors]] = []
        for number, work in enumerate(works):
            started = time.perf_counter()
            try:
                ready.append((number, self._prepare(work.content)))
            except BaseException as exc:
                results[number] = exc
            timings[number].preprocess = time.perf_counter() - started
        if ready:
            self._run_together(works, ready, timings, results, cancellation)
        return results

    def _check(self, inputs: Content | Tensors) -> tuple[Tensors, tuple[Violation, ...]]:
        """The rows as the model gets them, and what the policies of the inputs found. Raises InvalidTensor."""
        found: list[Violation] = []
        try:
            if isinstance(inputs, Content):
                (sent,) = inputs.items
                tensors: Tensors = self._servable.prepare(inputs.kind, sent, found)
            else:
                sent = inputs
                tensors = self._servable.check(inputs, found)
        finally:
            if found and self._metrics is not None:
                bound = self._metrics.model(self.model, self._servable.version)
                for one in found:
                    bound.count_violation(one.input, one.kind, one.action, one.count)
        if self._servable.sample is not None:
            # Where nothing was changed the numbers as the model gets them are nearer at hand.
            self._servable.sample.offer_rows(tensors if self._servable.consistency is None else sent)
        return tensors, tuple(found)

    def _prepare(self, piece: Piece) -> Tensors:
        if piece.kind is None:
            tensors: Tensors = piece.item
            return tensors
        tensors = self._servable.prepare(piece.kind, piece.item)
        if self._servable.sample is not None and piece.kind == "image":
            (tensor,) = tensors.values()
            self._servable.sample.offer_photo(tensor, piece.item)
        return tensors

    def _run_together(
        self,
        works: Sequence[Work],
        ready: Sequence[tuple[int, Tensors]],
        timings: Sequence[Timings],
        results: list[Any],
        cancellation: Cancellation,
    ) -> None:
        started = time.perf_counter()
        pieces = [works[number].content for number, _ in ready]
        counts = [works[number].rows for number, _ in ready]
        try:
            shares = self._shares([tensors for _, tensors in ready], counts, pieces[0].outputs, cancellation)
        except BaseException as exc:
            if len(ready) > 1 and not cancellation.is_cancelled:
                for pair in ready:
                    self._run_together(works, [pair], timings, results, cancellation)
            else:
                for number, _ in ready:
                    results[number] = exc
            return
        ran = time.perf_counter()
        for (number, _), piece, share in zip(ready, pieces, shares, strict=True):
            begun = time.perf_counter()
            timings[number].inference = ran - started
            try:
                items = self._servable.answer(share, piece.top_k) if piece.outputs is None else None
            except BaseException as exc:
                results[number] = exc
                continue
            if self._servable.sample is not None:
                self._servable.sample.offer_answer(share)
            timings[number].postprocess = time.perf_counter() - begun
            run_rows = sum(counts) if number == ready[0][0] else None
            results[number] = Part(items, share, timings[number], run_rows, violations=piece.violations)

    def _shares(
        self,
        inputs: Sequence[Tensors],
        counts: Sequence[int],
        outputs: tuple[str, ...] | None,
        cancellation: Cancellation,
    ) -> list[Tensors]:
        """The outputs of each of `inputs`, all from one run."""
        axis = self._servable.batch_axis
        if len(inputs) == 1 or axis is None:
            (tensors,) = inputs
            return [self._servable.run(tensors, outputs, cancellation)]
        return unstack(self._servable.run(axis.stack(inputs), outputs, cancellation), counts)

    def _split(
        self, tensors: Tensors, found: tuple[Violation, ...], call: Call, most_runs: int | None
    ) -> list[Work | HeadwayError]:
        axis = self._servable.batch_axis
        rows = axis.count(tensors) if axis is not None else 1
        signature = self._signature(tensors, call.outputs)
        if axis is None or rows <= self.max_rows:
            return [Work(Piece(None, tensors, call.outputs, call.top_k, found), rows, signature)]
        if most_runs is not None and rows > self.max_rows * most_runs:
            raise BodyTooLarge(
                f"input {axis.names[0]!r} has {rows:,} rows; send at most {self.max_rows * most_runs:,}: "
                f"{most_runs:,} runs of {self.max_rows}, which is batch.max_size of {self._servable.name}"
            )
        parts = [axis.take(tensors, first, first + self.max_rows) for first in range(0, rows, self.max_rows)]
        return [
            Work(Piece(None, part, call.outputs, call.top_k, () if number else found), axis.count(part), signature)
            for number, part in enumerate(parts)
        ]

    def _signature(self, tensors: Tensors, outputs: tuple[str, ...] | None) -> Hashable:
        """Equal for tensors that may stand in one run; None for those that may not share one."""
        axis = self._servable.batch_axis
        if self.max_rows == 1 or axis is None or len(axis.names) < len(tensors):
            return None
        return outputs, tuple((name, tensors[name].shape[1:]) for name in axis.names)
