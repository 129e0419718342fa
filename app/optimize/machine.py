"""What a measurement was made on: the CPU, its features, library versions."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from app.engine.cpu import cpu_features

# What decides which kernels run, and so how fast and, for INT8, how exactly.
KERNEL_FEATURES = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """The keys `cpu`, `cpu_features` and `libraries` of an evaluation in model.yaml."""
    features = cpu_features()
    kernels = [name for name in KERNEL_FEATURES if name in features]
    if "avx512_vnni" in kernels and "avx_vnni" in kernels:
        kernels.remove("avx_vnni")  # a CPU with the former runs these kernels as well without the latter
    libraries = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return {"cpu": _cpu_name(), "cpu_features": kernels, "libraries": libraries}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
