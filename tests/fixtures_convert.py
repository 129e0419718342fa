"""Small trained networks in every form that is converted, as other libraries write them."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.tensors import Array
from tests.running import ROOT

LITERT_PYTHON = ROOT / ".venv-conversion" / "bin" / "python"
TENSORFLOW_PYTHON = ROOT / ".venv-tensorflow" / "bin" / "python"
needs_litert = pytest.mark.skipif(
    not LITERT_PYTHON.exists(), reason="there is no .venv-conversion: VENV=.venv-conversion scripts/setup.sh conversion"
)
needs_tensorflow = pytest.mark.skipif(
    not TENSORFLOW_PYTHON.exists(), reason="there is no .venv-tensorflow with requirements/tensorflow.in"
)
# What a user has in a file beside his weights.
NETS = """
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + x)

def digits():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), Residual(8), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(), nn.Linear(128, 10),
    )

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.head = nn.Linear(7, 3)

    def forward(self, values, ids):
        scores = self.head(torch.cat([values, self.words(ids).mean(1)], 1))
        return {"scores": scores, "score": scores.sum(1)}

class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)

def lacking():
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Bessel()))

class TwoRows(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)

class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand(3)

def failing():
    raise RuntimeError("no such dataset")

number = 3
"""


def images(rows: int = 4) -> Array:
    return np.random.default_rng(5).standard_normal((rows, 1, 8, 8)).astype(np.float32)


def write_nets(folder: Path) -> dict[str, Any]:
    """nets.py in `folder`; returns its names. Batch normalisation has statistics that are not those of a new one."""
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    names: dict[str, Any] = {"__name__": "nets"}
    exec(NETS, names)
    return names


def trained(names: dict[str, Any]) -> torch.nn.Module:
    """The digits' network after two steps on noise, for its weights and statistics."""
    torch.manual_seed(0)
    network: torch.nn.Module = names["digits"]()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for seed in range(2):
        rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((8, 1, 8, 8)).astype(np.float32))
        optimizer.zero_grad()
        network(rows).square().mean().backward()
        optimizer.step()
    return network.eval()


def save_program(path: Path, module: torch.nn.Module, *example: Array, free: bool = True) -> None:
    """As a user does, with torch.export; with any number of rows, or those of the example."""
    rows = tuple(torch.from_numpy(array) for array in example)
    shapes = tuple({0: torch.export.Dim("rows")} for _ in rows) if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its tree of arguments
        torch.export.save(torch.export.export(module, rows, dynamic_shapes=shapes), path)


def import_keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    return keras


def keras_network(keras: Any) -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )
    model.layers[1].set_weights([np.full(4, value, np.float32) for value in (1.5, 0.2, -0.3, 0.7)])
    return model


def save_keras(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        # Keras 3.15 reads its own weights in a way that numpy 2.4 deprecates; and says that .h5 is the older form.
        warnings.simplefilter("ignore")
        model.save(path)


def fit(estimator: Any, classes: int = 3, names: Any = None) -> Any:
    """On blobs that are not quite apart; seven features."""
    random = np.random.default_rng(3)
    labels = random.integers(0, classes, 120)
    rows = (random.standard_normal((120, 7)) + 2 * labels[:, None] * np.linspace(-1, 1, 7)).astype(np.float32)
    return estimator.fit(rows, labels if names is None else np.array(names)[labels])


def write_pickle(path: Path, value: Any) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path
