"""A seeded training loop for a network that was changed: it learns the answers of the one it came from, and labels.

The same data, recipe and start give the same weights, bit for bit, on one machine with one number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from app.errors import InvalidContent
from app.optimize.examples import Examples
from app.tensors import Tensors

# Photos of 224 × 224 in bytes: 3,500 of them. Beyond it they are read anew each time.
_KEPT_BYTES = 1 << 29
_READ_AT_ONCE = 32


class Rows:
    """Examples as batches for a network; what cannot be read is left out, and named in `skipped`.

    `names` are the network's inputs in its order; `numbers` says which of the examples; `most` is how many rows the
    network takes at once, None: any. Raises InvalidContent where none can be read.
    """

    def __init__(
        self, examples: Examples, names: Sequence[str], numbers: Sequence[int], most: int | None = None
    ) -> None:
        self.most = most
        self.data = examples.data
        self.skipped: list[str] = []
        self._examples = examples
        self._names = names
        self._kept: dict[int, Tensors] = {}
        self._numbers: list[int] = []
        self._room = _KEPT_BYTES
        for number in numbers:
            try:
                self._keep(number, examples.read(number))
            except (InvalidContent, OSError) as exc:
                self.skipped.append(f"{examples.where(number)}: {exc}")
            else:
                self._numbers.append(number)
        if not self._numbers:
            first = self.skipped[0] if self.skipped else "there are none"
            raise InvalidContent(f"{examples.data}: no input can be used; the first: {first}")

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def classes(self) -> torch.Tensor | None:
        """The right answers, int64 [rows]."""
        known = self._examples.classes
        return None if known is None else torch.tensor([known[number] for number in self._numbers])

    def batch(self, places: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """One tensor for each input, of the rows at these places."""
        read = [self._read(self._numbers[place]) for place in places]
        return tuple(torch.from_numpy(np.concatenate([row[name] for row in read])) for name in self._names)

    def batches(self, size: int = _READ_AT_ONCE) -> Iterator[tuple[range, tuple[torch.Tensor, ...]]]:
        """All rows in order, with their places, at most `size` at once."""
        size = min(size, self.most or size)
        for start in range(0, len(self), size):
            places = range(start, min(start + size, len(self)))
            yield places, self.batch(places)

    def _read(self, number: int) -> Tensors:
        kept = self._kept.get(number)
        return kept if kept is not None else self._examples.read(number)

    def _keep(self, number: int, tensors: Tensors) -> None:
        size = sum(tensors[name].nbytes for name in self._names)
        if size <= self._room:
            self._room -= size
            self._kept[number] = tensors


@dataclass(frozen=True, slots=True)
class Recipe:
    """Adam, its learning rate falling to 0 along a cosine. The loss is `T²·H(q, p) + alpha·H(y, p)`: p the network's
    distribution, q the parent's, both at temperature T in the first term, and y the label (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531). With `alpha` 0 labels are not needed."""

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 32
    alpha: float = 1.0
    temperature: float = 2.0
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class EpochLoss:
    """Means over an epoch, in nats: the first term as it stands in the loss, the second before `alpha`."""

    parent: float
    labels: float | None


@contextmanager
def reproducible(threads: int = 1) -> Iterator[None]:
    """torch on so many threads, with algorithms that give the same bits each time; what was set before comes back."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def to_logits(answer: torch.Tensor, is_probability: bool) -> torch.Tensor:
    """Logits [n, classes] of a network's answer. The logarithm of a softmax is its logits but for one number a row,
    which neither loss sees."""
    return answer.clamp(min=torch.finfo(answer.dtype).tiny).log() if is_probability else answer


def parent_loss(logits: torch.Tensor, parent: torch.Tensor, temperature: float) -> torch.Tensor:
    """`T²·H(q, p)`, the mean over rows: cross-entropy of the tempered distributions."""
    scaled = functional.log_softmax(logits / temperature, 1)
    return functional.cross_entropy(scaled, (parent / temperature).softmax(1)) * temperature**2


def answers(
    network: Callable[..., torch.Tensor], rows: Rows, advance: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """What `network` gives for all rows, in one tensor."""
    found = []
    with torch.no_grad():
        for places, inputs in rows.batches():
            found.append(network(*inputs))
            for _ in places:
                advance()
    return torch.cat(found)


def fine_tune(
    network: Callable[..., torch.Tensor],
    weights: Sequence[torch.nn.Parameter],
    rows: Rows,
    parent: torch.Tensor,
    recipe: Recipe,
    before_step: Callable[[float], None] = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> list[EpochLoss]:
    """Train `weights` of `network`, which gives logits, on `rows`; `parent` holds the parent's logits for them.

    The network's mode stays: in eval mode batch normalisation keeps its statistics. `before_step` is told the share of
    the steps that are done, 0 ≤ share < 1; `advance` is called after each row. Raises InvalidContent where labels are
    needed that are not there, or where the loss is no longer a number.
    """
    classes = rows.classes
    if classes is None and recipe.alpha:
        raise InvalidContent(f"{rows.data} has no labels: with --alpha 0 the parent's answers alone are learnt from")
    optimiser = torch.optim.Adam(weights, lr=recipe.learning_rate)
    order = torch.Generator().manual_seed(recipe.seed)
    size = min(recipe.batch_size, rows.most or recipe.batch_size)
    steps = recipe.epochs * math.ceil(len(rows) / size)
    done, losses = 0, []
    for _ in range(recipe.epochs):
        sums = torch.zeros(2, dtype=torch.float64)
        for places in torch.randperm(len(rows), generator=order).split(size):
            before_step(done / steps)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * done / steps)) / 2
            logits = network(*rows.batch(places.tolist()))
            terms = [parent_loss(logits, parent[places], recipe.temperature)]
            terms += [functional.cross_entropy(logits, classes[places])] if classes is not None else []
            loss = _total(terms, recipe)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            sums[: len(terms)] += torch.stack(terms).detach().double() * len(places)
            done += 1
            for _ in places:
                advance()
        mean = (sums / len(rows)).tolist()
        losses.append(EpochLoss(mean[0], mean[1] if classes is not None else None))
    return losses


def _total(terms: Sequence[torch.Tensor], recipe: Recipe) -> torch.Tensor:
    """Raises InvalidContent where it is no number."""
    loss = terms[0] + recipe.alpha * terms[1] if recipe.alpha else terms[0]
    if not torch.isfinite(loss):
        raise InvalidContent("fine-tuning has run away (the loss is not finite): take a smaller --learning-rate")
    return loss
