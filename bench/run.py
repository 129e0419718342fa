"""`python -m bench.run [--quick]`: interleaved rounds over all targets and workloads, one run on one machine.

Writes docs/benchmarks/<name>.md, .json and .svg. Figures are medians over the rounds; compare the ratios, which hold
while the machine's speed drifts, rather than the absolute figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.limit import measure_limit
from bench.load import closed_loop
from bench.report import write_report
from bench.targets import Running, Target, headway, plain_fastapi, running
from bench.workloads import Workload, workloads, write_registry

CONNECTIONS = 16
LIMIT = "in-process limit"


def main() -> None:
    options = _parse()
    cases = workloads()
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_registry(root)
        targets = [headway(root), plain_fastapi(root, len(os.sched_getaffinity(0)))]
        for number in range(options.rounds):
            # In turn, first one way, then the other: who goes last finds a warmer machine.
            ordered = targets if number % 2 == 0 else targets[::-1]
            rounds.append({target.name: _measure(target, cases, options.seconds, root) for target in ordered})
            rounds[-1][LIMIT] = _limit(root, cases, options.seconds)
            _say(number, rounds[-1])
    write_report(options.name, summarise(rounds), options)


def summarise(rounds: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """The median over the rounds of each figure, by target and workload."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for single in rounds:
        for target, by_workload in single.items():
            for workload, figures in by_workload.items():
                for name, value in figures.items():
                    values[target, workload, name].append(value)
    medians: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (target, workload, name), found in values.items():
        medians[target][workload][name] = statistics.median(found)
    return medians


def _measure(target: Target, cases: dict[str, Workload], seconds: float, root: Path) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    with running(target, root / "log") as server:
        for key, case in cases.items():
            path = target.paths.get(key, case.path)
            closed_loop(server.url, path, case, CONNECTIONS, max(1.0, seconds / 4))
            before = server.cpu_seconds()
            result = closed_loop(server.url, path, case, CONNECTIONS, seconds)
            cpu = server.cpu_seconds() - before
            figures[key] = {
                "per_second": result.per_second,
                "p50_ms": result.p50_ms,
                "p95_ms": result.p95_ms,
                "p99_ms": result.p99_ms,
                "errors": result.errors,
                "cpu_us": cpu / result.requests * 1e6,
            }
        figures["process"] = {"ready_seconds": server.ready_seconds, "worker_mb": _largest_mb(server)}
    return figures


def _largest_mb(server: Running) -> float:
    return max(server.rss_bytes().values()) / 1e6


def _limit(root: Path, cases: dict[str, Workload], seconds: float) -> dict[str, dict[str, float]]:
    per_second, cpu_seconds = measure_limit(root / "efficientnet-lite0/1.1.0", "image", cases["b"].body, seconds)
    figures = {"per_second": per_second, "cpu_us": cpu_seconds * 1e6}
    return {"a": figures, "b": figures}


def _say(number: int, figures: dict[str, Any]) -> None:
    for target, by_workload in figures.items():
        text = ", ".join(
            f"{key} {values['per_second']:.0f}/s" for key, values in by_workload.items() if "per_second" in values
        )
        print(f"round {number + 1}: {target:<18} {text}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds: under three minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=None, help="length of one measurement")
    parser.add_argument("--name", default=None, help="name of the report in docs/benchmarks/")
    options = parser.parse_args()
    options.seconds = options.seconds or (4.0 if options.quick else 10.0)
    options.name = options.name or ("quick" if options.quick else "benchmark")
    return options


if __name__ == "__main__":
    main()
