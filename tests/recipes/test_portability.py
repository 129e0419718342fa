from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.processing.image import ImageProcessing
from app.registry.manifest import read_manifest
from recipes import photos, portability
from tests.recipes.foolbox_photos import foolbox_photos

MODEL = Path(__file__).parents[2] / "models/efficientnet-lite0/1.1.0"


def test_missing_emulator_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install qemu-user-static"):
        portability.compare(MODEL / "model.onnx", np.zeros((1, 224, 224, 3), np.uint8))


@pytest.mark.slow
def test_same_answers_without_vnni() -> None:
    """Needs qemu-user-static."""
    paths = foolbox_photos()
    processing = read_manifest(MODEL).processing
    assert isinstance(processing, ImageProcessing)
    result = portability.compare(MODEL / "model.onnx", photos.read_pixels(paths, processing))
    assert (result.n, result.equal) == (20, 20)
    assert result.largest_difference < 1e-4
