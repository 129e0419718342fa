"""A small convolutional network for 8 × 8 digits, trained in seconds, as version 1.0.0 of a model `cnn`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from app.optimize.networks.fine_tune import reproducible
from app.optimize.networks.torch_export import export_onnx
from app.registry.drafting.draft import write_manifest
from recipes.digits import Digits, split_digits

LABELS = "".join(f"{digit}\n" for digit in range(10))
_EPOCHS = 8


class Cnn(nn.Module):
    """Convolutions whose channels are coupled by a sum, one of them depthwise, and a linear layer; softmax inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 48, 3, padding=1)
        self.back = nn.Conv2d(48, 16, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        picture = self.stem(pixels.reshape(-1, 1, 8, 8) / 16).relu()
        picture = picture + self.back(self.wide(self.deep(picture).relu()).relu())
        return self.head(self.pool(picture.relu()).flatten(1)).softmax(1)


@cache
def trained() -> tuple[bytes, Digits]:
    """The ONNX file, and the data it was trained on."""
    digits = split_digits()
    pixels, classes = torch.from_numpy(digits.train_pixels), torch.from_numpy(digits.train_digits)
    with reproducible():
        torch.manual_seed(0)
        network = Cnn()
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(_EPOCHS):
            for places in torch.randperm(len(pixels)).split(32):
                loss = nn.functional.nll_loss(network(pixels[places]).clamp(min=1e-30).log(), classes[places])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        model = export_onnx(network, digits.train_pixels[:2], input_names=["pixels"], output_names=["scores"])
    return model, digits


def write_cnn(root: Path) -> Path:
    """Write `root`/cnn/1.0.0, and train.npz and test.npz with their labels beside `root`; returns the version."""
    model, digits = trained()
    directory = root / "cnn" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(model)
    (directory / "labels.txt").write_text(LABELS)
    write_manifest(
        directory,
        {
            "schema": 1,
            "name": "cnn",
            "version": "1.0.0",
            "task": "tabular-classification",
            "runtime": "onnx",
            "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
            "batch": {"axis": 0, "max_size": 32},
            "processing": {"type": "tensor"},
            "answer": {"type": "classification", "output": "scores", "activation": "none", "labels": "labels.txt"},
            "licence": "Apache-2.0",
        },
    )
    np.savez(root.parent / "train.npz", pixels=digits.train_pixels, class_index=digits.train_digits)
    np.savez(root.parent / "test.npz", pixels=digits.test_pixels, class_index=digits.test_digits)
    return directory


class Counter:
    """What was done, and how many steps of it."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def __call__(self, name: str, total: int) -> Callable[[], None]:
        count = self.steps.setdefault(name, [0, 0])
        count[1] += total

        def advance() -> None:
            count[0] += 1

        return advance
