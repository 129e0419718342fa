"""`python -m bench.session_options`: what ONNX Runtime's session options cost and give, for docs/decisions/0009.

Each combination in a process of its own, in turn, several rounds; medians of the CPU time a run and of the memory.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime as ort

MODEL = Path(__file__).parent.parent / "models/efficientnet-lite0/1.1.0/model.onnx"
LEVELS = ("ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
ROUNDS = 5


def main() -> None:
    found: dict[tuple[str, bool, bool], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(ROUNDS):
        for options in itertools.product(LEVELS, (True, False), (True, False)):
            command = [sys.executable, "-m", "bench.session_options", json.dumps(options)]
            milliseconds, megabytes = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            found[options].append((milliseconds, megabytes))
    print(
        "| graph optimisation | arena | memory pattern | CPU a run | memory added |\n| --- | --- | --- | ---: | ---: |"
    )
    for (level, arena, pattern), figures in found.items():
        milliseconds, megabytes = (statistics.median(column) for column in zip(*figures, strict=True))
        words = " | ".join("on" if flag else "off" for flag in (arena, pattern))
        print(f"| {level} | {words} | {milliseconds:.2f} ms | {megabytes:.0f} MB |")


def measure(level: str, arena: bool, pattern: bool) -> tuple[float, float]:
    """CPU milliseconds a run, and megabytes of resident memory that the session and its runs add."""
    before = _rss_mb()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = pattern
    session = ort.InferenceSession(str(MODEL), options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), dtype=np.uint8)
    for _ in range(20):
        session.run(None, {"image": image})
    times = []
    for _ in range(100):
        started = time.process_time()
        session.run(None, {"image": image})
        times.append(time.process_time() - started)
    return statistics.median(times) * 1e3, _rss_mb() - before


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
