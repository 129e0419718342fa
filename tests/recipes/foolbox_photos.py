"""The 20 labelled ImageNet photos that the package foolbox carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def foolbox_photos() -> list[Path]:
    """Files named imagenet_<number>_<class index>.jpg. The package is not imported: it brings a world of its own."""
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None, "foolbox is missing; install the extra `test`"
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.joinpath("data").glob("imagenet_*.jpg"))
