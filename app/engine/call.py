"""What goes through the engine: the call that every protocol ends in, and its answer.

Values, to be treated as frozen. They are not: a frozen dataclass takes four times as long to make, and a request makes
a dozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from app.engine.lane import Priority
from app.errors import HeadwayError
from app.processing.consistency import Violation
from app.registry.servables.servable import Content, Item
from app.tensors import Tensors


@dataclass(slots=True)
class Timings:
    """Seconds spent in each stage of a call; of an answer to several items, the sum over the items.

    decode: wire format to content. preprocess: content to tensors, JPEG decoding included.
    """

    decode: float = 0.0
    queue: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0

    def stages(self) -> tuple[tuple[str, float], ...]:
        """Name and seconds, in the order of a call's way."""
        return (
            ("decode", self.decode),
            ("queue", self.queue),
            ("preprocess", self.preprocess),
            ("inference", self.inference),
            ("postprocess", self.postprocess),
        )

    def add(self, other: Timings) -> None:
        self.queue = max(self.queue, other.queue)  # items wait side by side
        self.preprocess += other.preprocess
        self.inference += other.inference
        self.postprocess += other.postprocess


@dataclass(slots=True)
class Call:
    """`on_admitted` is called with a function that gives the call up: what has not begun is not computed.

    `deadline` is in time.monotonic() seconds. `outputs` None asks for all, and for labels where there are any.

    Of a plural call an item that fails is its error in the answer; else the error is raised.
    """

    inputs: Content | Tensors
    deadline: float
    outputs: tuple[str, ...] | None = None
    is_plural: bool = False
    top_k: int = 5
    routing_key: bytes | None = None
    request_id: str = ""
    priority: Priority = Priority.NORMAL
    on_admitted: Callable[[Callable[[], None]], None] | None = None


@dataclass(slots=True)
class Answer:
    """`items` has one entry for each row, image or text of the call, in order; one that failed is its error.

    `tensors` is set for calls of tensors and for models whose answer is the tensors themselves. `answered_by`: of a
    cascade the number of the step that answered each row or image that has an answer. `violations`: what the policies
    of the inputs found, and changed or flagged.
    """

    model: str
    version: str
    alias: str | None
    items: tuple[Item | HeadwayError, ...] | None
    tensors: Tensors | None
    timings: Timings = field(default_factory=Timings)
    answered_by: tuple[int, ...] | None = None
    violations: tuple[Violation, ...] = ()
