"""Students for `headway distill`, named as callers name their own, and teachers of digits that are not ONNX files.

Small     pixels FP32 [n, 64] of digits to 10 logits, by two convolutions: 1446 parameters
Linear    the same by one layer
Photo     image UINT8 [n, 4, 4, 3] to 3 logits
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from app.registry.drafting.draft import write_manifest
from recipes.digits import CLASSES, PIXELS, Digits
from tests.fixtures_tflite import Network, Node, tflite_file

WHITE = 16


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(48, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixels.reshape(-1, 1, 8, 8) / WHITE).flatten(1))


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(PIXELS, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layer(pixels / WHITE)


class Photo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.float().mean(dim=(1, 2)) / 255)


def write_tflite_teacher(root: Path, digits: Digits) -> None:
    """digits-tflite 1.0.0: a linear discriminant, whose probabilities come in steps of 1/256."""
    weights, bias = _fit_discriminant(digits)
    network = Network(
        {"pixels": ("FP32", [-1, PIXELS]), "logits": ("FP32", [-1, CLASSES]), "shares": ("FP32", [-1, CLASSES]),
         "probabilities": ("UINT8", [-1, CLASSES])},
        ["pixels"], ["probabilities"],
        [Node("FULLY_CONNECTED", ["pixels", "weights", "bias"], ["logits"], {"type": "FullyConnectedOptions"}),
         Node("SOFTMAX", ["logits"], ["shares"], {"beta": 1.0}),
         Node("QUANTIZE", ["shares"], ["probabilities"])],
        {"weights": weights, "bias": bias},
        {"probabilities": (1 / 256, 0)},
    )  # fmt: skip
    directory = root / "digits-tflite" / "1.0.0"
    directory.mkdir(parents=True)
    (directory / "model.tflite").write_bytes(tflite_file(network))
    (directory / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)))
    write_manifest(
        directory,
        {
            "schema": 1,
            "name": "digits-tflite",
            "version": "1.0.0",
            "task": "tabular-classification",
            "runtime": "tflite",
            "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, PIXELS]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}],
            "processing": {"type": "tensor"},
            "answer": {
                "type": "classification",
                "output": "probabilities",
                "activation": "none",
                "labels": "labels.txt",
            },
            "licence": "Apache-2.0",
        },
    )


def _fit_discriminant(digits: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Weights [10, 64] and bias [10] of the logits x Σ⁻¹ µ - µ Σ⁻¹ µ / 2, with a variance of 1 added to each pixel."""
    means = np.array([digits.train_pixels[digits.train_digits == digit].mean(axis=0) for digit in range(CLASSES)])
    spread = digits.train_pixels - means[digits.train_digits]
    weights = np.linalg.solve(spread.T @ spread / len(spread) + np.eye(PIXELS), means.T).T
    return weights.astype(np.float32), (-(weights * means).sum(axis=1) / 2).astype(np.float32)
