"""The attacks, by the Adversarial Robustness Toolbox (ART) over our engine. All are untargeted and bounded in L∞.

    fgsm         one step of ε by the sign of the gradient. Goodfellow et al., Explaining and Harnessing Adversarial
                 Examples, ICLR 2015
    pgd          ten steps of ε / 4 from a random start, each back into the ball. Madry et al., Towards Deep Learning
                 Models Resistant to Adversarial Attacks, ICLR 2018
    square       random squares that are kept where confidence falls: needs confidences only, of photos. Andriushchenko
                 et al., Square Attack, ECCV 2020
    hopskipjump  from a sample with another label back along the boundary: needs labels only, of rows. Chen et al.,
                 HopSkipJumpAttack, IEEE S&P 2020

Import after `require_art`, which keeps ART out of the home directory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from art.attacks.evasion.fast_gradient import FastGradientMethod
from art.attacks.evasion.hop_skip_jump import HopSkipJump
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_numpy import (
    ProjectedGradientDescentNumpy,
)
from art.attacks.evasion.square_attack import SquareAttack
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin, NeuralNetworkMixin

from app.optimize.robustness.engine import Engine
from app.optimize.robustness.gradients import Gradients
from app.tensors import Array

PGD_STEPS = 10
_PGD_STEP = 1 / 4
_SQUARE_SHARE = 0.8
_LARGEST_SEED = 2**32


def fgsm(engine: Engine, gradients: Gradients, values: Array, labels: Array, strength: float) -> Array:
    """Samples [n, …] no further than `strength` from `values`, for each of which the loss of its label is higher."""
    attack = FastGradientMethod(_Estimator(engine, gradients), eps=strength, eps_step=strength, batch_size=len(values))
    moved: Array = attack.generate(values, _one_hot(labels, engine.classes))
    return moved


def pgd(engine: Engine, gradients: Gradients, values: Array, labels: Array, strength: float, seed: int) -> Array:
    attack = ProjectedGradientDescentNumpy(
        _Estimator(engine, gradients),
        eps=strength,
        eps_step=strength * _PGD_STEP,
        max_iter=PGD_STEPS,
        num_random_init=1,
        batch_size=len(values),
        verbose=False,
    )
    with _seeded(seed):
        moved: Array = attack.generate(values, _one_hot(labels, engine.classes))
    return moved


def square(engine: Engine, values: Array, labels: Array, strength: float, seed: int, queries: int) -> Array:
    """Of photos, [n, height, width, channels]. About `queries` answers are asked for each."""
    # ART places a square at a random number below the side less its own: it must be smaller than the picture.
    side = min(values.shape[1:3])
    share = min(_SQUARE_SHARE, ((side - 1) / side) ** 2)
    attack = SquareAttack(
        _Estimator(engine, None, values.shape[1:]),
        eps=strength,
        max_iter=queries,
        p_init=share,
        batch_size=len(values),
        verbose=False,
    )
    with _seeded(seed):
        moved: Array = attack.generate(values, _one_hot(labels, engine.classes))
    return moved


def hopskipjump(engine: Engine, values: Array, labels: Array, starts: Array, seed: int, queries: int) -> Array:
    """For each row the nearest one with another label of all that were tried, NaN where none was found.

    `starts` are rows where a search may begin: those with another label than the row's. At most `queries` answers are
    asked for each row.
    """
    low, high = float(starts.min()), float(starts.max())
    nearest = np.full_like(values, np.nan)
    start_labels = engine.labels(starts)
    for number, (row, label) in enumerate(zip(values, labels, strict=True)):
        others = starts[start_labels != label]
        if not len(others) or not low < high:
            continue
        start = others[np.abs(others - row).max(axis=1).argmin()]
        search = _Search(engine, row, int(label), low, high, queries)
        with _seeded(seed + number):
            search.run(start)
        nearest[number] = search.nearest
    return nearest


class _Estimator(NeuralNetworkMixin, LossGradientsMixin, ClassifierMixin, BaseEstimator):
    """A version as ART wants it: confidences from our engine, gradients from wherever they come."""

    def __init__(self, engine: Engine, gradients: Gradients | None, shape: tuple[int, ...] = ()) -> None:
        space = engine.space
        low, high = space.low, space.high
        # ART refuses a range of one value; `hold` keeps to it all the same.
        bounds = (low, high) if low is not None and high is not None and np.all(low < high) else None
        super().__init__(model=None, clip_values=bounds, channels_first=False)
        self.engine = engine
        self.nb_classes = engine.classes
        self._gradients = gradients
        self._shape = shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._shape

    def predict(self, x: Array, batch_size: int = 0, **_: Any) -> Array:  # noqa: ARG002
        return self.engine.confidences(x).astype(np.float32)

    def loss_gradient(self, x: Array, y: Array, **_: Any) -> Array:
        assert self._gradients is not None
        return self._gradients.of(x, y.argmax(axis=1))

    def fit(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a published version is not trained")

    def get_activations(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("the engine gives no activations")

    def save(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a version is in its registry")


class _EnoughAsked(Exception):
    """The queries of a sample are used up: ART's loops end on an answer only."""


class _Search(ClassifierMixin, BaseEstimator):
    """HopSkipJump on one row, scaled to 0…1, where FP32 is fine enough for its steps. It keeps the nearest row with
    another label of all that are tried."""

    def __init__(self, engine: Engine, row: Array, label: int, low: float, high: float, queries: int) -> None:
        super().__init__(model=None, clip_values=(0.0, 1.0))
        self.nb_classes = engine.classes
        self.nearest = np.full_like(row, np.nan)
        self._engine, self._row, self._label, self._left = engine, row, label, queries
        self._low, self._scale = low, high - low
        self._distance = math.inf

    @property
    def input_shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self._row.shape
        return shape

    def run(self, start: Array) -> None:
        attack = HopSkipJump(self, norm=np.inf, max_iter=PGD_STEPS * 10, verbose=False)
        first = self._scaled(start)[np.newaxis]
        # ART's own loop would wait for ever for a point that is no longer there: queries end it. And from a start with
        # the row's own label, which rounding may give, it would go on by a generator that cannot be seeded.
        with contextlib.suppress(_EnoughAsked):
            if int(self.predict(first).argmax()) != self._label:
                attack.generate(self._scaled(self._row)[np.newaxis], x_adv_init=first)

    def predict(self, x: Array, batch_size: int = 0, **_: Any) -> Array:  # noqa: ARG002
        if self._left < len(x):
            raise _EnoughAsked
        self._left -= len(x)
        values = (x * self._scale + self._low).astype(np.float32)
        held = self._engine.space.hold(values, self._row[np.newaxis], math.inf)
        confidences = self._engine.confidences(held)
        distances = np.where(confidences.argmax(axis=1) != self._label, np.abs(held - self._row).max(axis=1), math.inf)
        best = int(distances.argmin())
        if distances[best] < self._distance:
            self._distance, self.nearest = float(distances[best]), held[best]
        return confidences.astype(np.float32)

    def fit(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a published version is not trained")

    def save(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a version is in its registry")

    def _scaled(self, row: Array) -> Array:
        return ((row - self._low) / self._scale).clip(0, 1).astype(np.float32)


def _one_hot(labels: Array, classes: int) -> Array:
    return np.eye(classes, dtype=np.float32)[labels]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ART draws from numpy's global generator; what others draw from it goes on as if nothing had been."""
    state = np.random.get_state()
    np.random.seed(seed % _LARGEST_SEED)
    try:
        yield
    finally:
        np.random.set_state(state)
