"""The training loop: its losses beside numpy's, the same bits for the same seed, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from app.errors import InvalidContent
from app.optimize.examples import Examples
from app.optimize.networks.fine_tune import (
    EpochLoss,
    Recipe,
    Rows,
    answers,
    fine_tune,
    parent_loss,
    reproducible,
    to_logits,
)
from app.tensors import Array, Tensors

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(50, 4)).astype(np.float32)
CLASSES = (INPUTS[:, 0] > 0).astype(int) + (INPUTS[:, 1] > 0)


def examples(inputs: Array = INPUTS, classes: Sequence[int] | None = CLASSES.tolist(), bad: int = -1) -> Examples:
    def read(number: int) -> Tensors:
        if number == bad:
            raise InvalidContent("is no row")
        return {"x": inputs[number : number + 1]}

    return Examples("rows", len(inputs), lambda number: f"row {number}", read, classes)


def rows(**changes: object) -> Rows:
    return Rows(examples(**changes), ["x"], range(50))  # type: ignore[arg-type]


def train(
    recipe: Recipe, data: Rows | None = None, parent: torch.Tensor | None = None
) -> tuple[Array, list[EpochLoss]]:
    with reproducible():
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        data = data or rows()
        parent = parent if parent is not None else torch.from_numpy(np.eye(3, dtype=np.float32)[CLASSES] * 4)
        losses = fine_tune(network, list(network.parameters()), data, parent, recipe)
    return network.weight.detach().numpy(), losses


def test_parent_loss_is_the_tempered_cross_entropy() -> None:
    own, parent = GENERATOR.normal(size=(2, 7, 5)) * 3
    expected = -(softmax(parent / 2.5, 1) * log_softmax(own / 2.5, 1)).sum(1).mean() * 2.5**2
    assert float(parent_loss(torch.tensor(own), torch.tensor(parent), 2.5)) == pytest.approx(expected, abs=1e-9)


def test_logits_of_probabilities_differ_by_one_number_a_row() -> None:
    logits = GENERATOR.normal(size=(6, 5))
    back = to_logits(torch.from_numpy(softmax(logits, 1)), True).numpy() - logits
    assert np.ptp(back, axis=1) == pytest.approx(0, abs=1e-9)
    assert torch.isfinite(to_logits(torch.tensor([[0.0, 1.0]]), True)).all()
    assert to_logits(torch.ones(1, 2), False).tolist() == [[1, 1]]


def test_first_losses_are_those_of_numpy() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.0, batch_size=16, alpha=0.5, temperature=3)
    parent = torch.from_numpy(GENERATOR.normal(size=(50, 3)).astype(np.float32))
    weight, (loss,) = train(recipe, parent=parent)
    torch.manual_seed(0)
    logits = INPUTS @ weight.T + nn.Linear(4, 3).bias.detach().numpy()
    towards = -(softmax(parent.numpy() / 3, 1) * log_softmax(logits / 3, 1)).sum(1).mean() * 9
    assert loss.parent == pytest.approx(towards, rel=1e-5)
    assert loss.labels == pytest.approx(-log_softmax(logits, 1)[np.arange(50), CLASSES].mean(), rel=1e-5)


def test_same_seed_same_bits_and_it_learns() -> None:
    recipe = Recipe(epochs=20, learning_rate=0.05, batch_size=16)
    (first, losses), (again, _) = train(recipe), train(recipe)
    assert first.tobytes() == again.tobytes()
    other, _ = train(Recipe(epochs=20, learning_rate=0.05, batch_size=16, seed=1))
    assert first.tobytes() != other.tobytes()
    assert [loss.parent for loss in losses] == sorted((loss.parent for loss in losses), reverse=True)


def test_before_step_is_told_the_share_that_is_done() -> None:
    shares: list[float] = []
    network, data = nn.Linear(4, 3), rows()
    recipe = Recipe(epochs=2, batch_size=20)
    fine_tune(network, list(network.parameters()), data, torch.zeros(50, 3), recipe, shares.append)
    assert shares == pytest.approx([step / 6 for step in range(6)])


def test_labels_are_needed_unless_alpha_is_0() -> None:
    data = rows(classes=None)
    with pytest.raises(InvalidContent, match="with --alpha 0 the parent's answers alone"):
        train(Recipe(epochs=1), data)
    _, (loss,) = train(Recipe(epochs=1, alpha=0), data)
    assert loss.labels is None


def test_a_loss_that_runs_away_is_an_error() -> None:
    with pytest.raises(InvalidContent, match="take a smaller --learning-rate"):
        train(Recipe(epochs=2), rows(inputs=INPUTS * np.float32(1e38)))


def test_rows_that_cannot_be_read_are_left_out() -> None:
    data = rows(bad=3)
    assert (len(data), data.skipped) == (49, ["row 3: is no row"])
    classes = data.classes
    assert classes is not None
    assert classes.tolist() == np.delete(CLASSES, 3).tolist()
    (batch,) = data.batch([2, 3])
    assert batch.numpy().tolist() == INPUTS[[2, 4]].tolist()
    with pytest.raises(InvalidContent, match="rows: no input can be used; the first: row 3"):
        Rows(examples(bad=3), ["x"], [3])


def test_answers_are_those_of_all_rows_however_many_fit() -> None:
    network = nn.Linear(4, 3)
    expected = network(torch.from_numpy(INPUTS)).detach().numpy()
    one_by_one = Rows(examples(), ["x"], range(50), most=1)
    assert answers(network, one_by_one).numpy() == pytest.approx(expected, abs=1e-5)
    assert answers(network, rows()).numpy() == pytest.approx(expected, abs=1e-5)


def test_what_was_set_before_comes_back() -> None:
    threads, is_strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with reproducible(threads + 1):
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads + 1, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (threads, is_strict)
