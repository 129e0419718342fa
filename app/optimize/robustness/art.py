"""The Adversarial Robustness Toolbox (ART), which the attacks are: imported when they run, and nowhere else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import InvalidContent


def require_art() -> None:
    """Import ART and torch. Raises InvalidContent that names the extra where one is missing."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401

        with _home_elsewhere():
            import art  # noqa: F401
    except ImportError as exc:
        raise InvalidContent(f"robustness needs a package ({exc}): pip install 'headway[robustness]'") from exc


@contextmanager
def _home_elsewhere() -> Iterator[None]:
    """ART writes ~/.art when it is imported, for data sets that are not loaded here."""
    home = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="headway-") as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home
