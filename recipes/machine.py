"""What a measurement was made on (CPU, its features, library versions), and what a loaded version costs in memory."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.engine.cpu import cpu_features

# What decides which kernels run, and so how fast and, for INT8, how exactly.
KERNEL_FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "asimd", "asimddp", "i8mm", "sve")


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """The keys `cpu`, `cpu_features` and `libraries` of an evaluation."""
    features = cpu_features()
    kernels = [name for name in KERNEL_FEATURES if name in features]
    if "avx_vnni" in features and "avx512_vnni" not in features:
        kernels.append("avx_vnni")
    libraries = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"cpu": _cpu_name(), "cpu_features": kernels, "libraries": libraries}


def loaded_rss_mb(models: Path, ref: str) -> float:
    """Megabytes that loading and warming `ref` adds to a fresh process (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_load_and_measure, (models, ref)))


def _load_and_measure(models: Path, ref: str) -> float:
    from app import load  # importing ONNX Runtime and NumPy is not the model's cost

    before = _rss_bytes()
    model = load(ref, models=models)
    after = _rss_bytes()
    del model
    return round((after - before) / 1e6, 1)


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
