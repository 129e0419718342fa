"""Headway: a model server. `from app import load; load("digits").predict(x)` uses a model with no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.library import Model, load

__all__ = ["Model", "__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Importing ONNX Runtime takes 0.3 s: only for those who use it.
    if name in ("Model", "load"):
        from app import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
