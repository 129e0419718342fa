"""What a measurement was made on (CPU, its features, library versions), and what a loaded version costs in memory."""

from __future__ import annotations

from pathlib import Path

from app.optimize.footprint import measure_footprint
from app.optimize.machine import describe_machine
from app.registry.store import Store

__all__ = ["describe_machine", "loaded_rss_mb"]


def loaded_rss_mb(models: Path, ref: str) -> float:
    """Megabytes that loading and warming `ref` (name@version) adds to a fresh process (Linux)."""
    name, _, version = ref.partition("@")
    added = measure_footprint(models / name / version, Store(models))
    assert added is not None, "memory is measured where there is /proc"
    return round(added / 1e6, 1)
