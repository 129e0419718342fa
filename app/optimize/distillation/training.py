"""A small network taught by a large one: the loss of its answers, and the training, the same for the same seed.

G. Hinton, O. Vinyals, J. Dean, 2015, Distilling the Knowledge in a Neural Network, arXiv:1503.02531. Imports PyTorch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from app.errors import InvalidContent
from app.optimize.distillation.teacher import Lessons
from app.optimize.networks.fine_tune import parent_loss
from app.tensors import Array

_EVALUATED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Plan:
    """`alpha` weighs the labels. `until_accuracy` (0…1) ends the training early, on the inputs that are held out.
    The same seed gives the same weights for the same number of threads: it decides in which order sums are made."""

    alpha: float = 0.5
    temperature: float = 4.0
    max_epochs: int = 100
    until_accuracy: float | None = None
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Epoch:
    """Means over the epoch, as the network was at each step. `loss` = `from_teacher` + alpha · `from_labels`, where
    `from_teacher` is H(q, p)·T² over all inputs and `from_labels` is H(q, y) over those with a label, None where there
    is none. `accuracy` (0…1) is that at its end, on what is held out."""

    number: int
    loss: float
    from_teacher: float
    from_labels: float | None
    accuracy: float | None


def loss_terms(
    student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """H(q, p)·T² and H(q, y) of logits [n, classes] and the right classes [n], -1 where not known; means over n, and
    over those that are known (0 where none is).

    q is what the student says, p what the teacher says, y the label; H(q, p) = - Σ p log q is the cross-entropy of what
    is said, q, for what is true, p. In the first term both are softmax(logits / T), and T² keeps its gradients as large
    as those of the second (Hinton et al., section 2); in the second q is at T = 1.
    """
    return parent_loss(student, teacher, temperature), label_loss(student, classes)


def label_loss(student: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """H(q, y) alone, of which the label-only twin of a student learns."""
    known = classes >= 0
    if not bool(known.any()):
        return student.sum() * 0
    return torch.nn.functional.cross_entropy(student[known], classes[known])


def least_loss(logits: Array, temperature: float) -> float:
    """What H(q, p)·T² cannot fall below: T² times the teacher's own entropy, where the student says the same."""
    log_p = torch.log_softmax(torch.from_numpy(logits).double() / temperature, dim=1)
    return float(-(log_p.exp() * log_p).sum(dim=1).mean()) * temperature**2


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn within, by a student's own code too, comes from `seed`; after it all is as before."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[1])
            random.setstate(states[0])


def train(
    student: torch.nn.Module,
    lessons: Lessons,
    plan: Plan,
    held_out: Lessons | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> list[Epoch]:
    """Change the weights of `student`, which gives logits [n, classes]; it is left in eval mode.

    AdamW, with a learning rate that falls to 0 as a cosine over `max_epochs`; each epoch takes all inputs once, in an
    order that `seed` draws, in batches of almost one size. Without the teacher's logits it learns from the labels
    alone. Call it within `seeded` and `reproducible`. Raises InvalidContent where the loss is no longer finite.
    """
    batches = -(-len(lessons.inputs) // plan.batch_size)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, plan.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.max_epochs * batches)
    generator = np.random.default_rng(plan.seed)
    epochs: list[Epoch] = []
    for number in range(1, plan.max_epochs + 1):
        student.train()
        terms = _Terms(plan.alpha)
        for rows in np.array_split(generator.permutation(len(lessons.inputs)), batches):
            loss = terms.add(student, lessons, rows, plan.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        epochs.append(terms.close(number, measure_accuracy(student, held_out) if held_out is not None else None))
        on_epoch(epochs[-1])
        if is_reached(plan, epochs[-1]):
            break
    student.eval()
    return epochs


def is_reached(plan: Plan, epoch: Epoch) -> bool:
    return plan.until_accuracy is not None and epoch.accuracy is not None and epoch.accuracy >= plan.until_accuracy


def measure_accuracy(student: torch.nn.Module, held_out: Lessons) -> float:
    """The share of inputs whose largest score is that of the right class. Leaves the network in eval mode."""
    student.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, len(held_out.inputs), _EVALUATED_AT_ONCE):
            rows = slice(first, first + _EVALUATED_AT_ONCE)
            best = student(torch.from_numpy(held_out.inputs[rows])).argmax(dim=1).numpy()
            right += int(np.count_nonzero(best == held_out.classes[rows]))
    return right / len(held_out.inputs)


class _Terms:
    """Of one epoch: each batch weighs as much as it has inputs, or labels."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._sums = np.zeros(2)
        self._counts = np.zeros(2, np.int64)

    def add(self, student: torch.nn.Module, lessons: Lessons, rows: Array, temperature: float) -> torch.Tensor:
        """The loss of a batch."""
        said, classes = student(torch.from_numpy(lessons.inputs[rows])), torch.from_numpy(lessons.classes[rows])
        if lessons.logits is not None:
            from_teacher, from_labels = loss_terms(said, torch.from_numpy(lessons.logits[rows]), classes, temperature)
        else:
            from_teacher, from_labels = torch.zeros(()), label_loss(said, classes)
        counts = np.array([len(rows), int((classes >= 0).sum())])
        self._counts += counts
        self._sums += counts * [float(from_teacher.detach()), float(from_labels.detach())]
        return from_teacher + self._alpha * from_labels

    def close(self, number: int, accuracy: float | None) -> Epoch:
        """Raises InvalidContent where the loss is not finite."""
        from_teacher = float(self._sums[0] / self._counts[0])
        from_labels = float(self._sums[1] / self._counts[1]) if self._counts[1] else None
        loss = from_teacher + self._alpha * (from_labels or 0.0)
        if not np.isfinite(loss):
            raise InvalidContent(
                f"the loss is no longer finite in epoch {number}: lower --learning-rate, and see that the student "
                "scales its inputs"
            )
        return Epoch(number, loss, from_teacher, from_labels, accuracy)
