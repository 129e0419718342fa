"""`python -m bench.run [--quick]`: interleaved rounds over all targets and workloads, one run on one machine.

Writes docs/benchmarks/<name>.md, .json and .svg. Figures are medians over the rounds; compare the ratios, which hold
while the machine's speed drifts, rather than the absolute figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx

from bench.answers import find_fault
from bench.limit import measure_limit
from bench.load import closed_loop
from bench.overload import measure_overloads
from bench.peer_targets import peer_targets
from bench.report import VOID, Figures, write_report
from bench.targets import NotReady, Running, Target, headway, plain_fastapi, running
from bench.tensor_body import measure_tensor_body
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
        cores = len(os.sched_getaffinity(0))
        # As all the others are run: without a line in a log for each request.
        own = headway(root, HEADWAY_ACCESS_LOG_SAMPLE="0")
        targets = [own, plain_fastapi(root, cores), *(peer_targets(root, cores) if options.peers else ())]
        for number in range(options.rounds):
            # In turn, first one way, then the other: who goes last finds a warmer machine.
            ordered = targets if number % 2 == 0 else targets[::-1]
            rounds.append({target.name: _measure(target, cases, options.seconds, root) for target in ordered})
            rounds[-1][LIMIT] = _limit(root, cases, options.seconds)
            if not (options.quick or options.peers):
                _add(rounds[-1], measure_tensor_body(root, options.seconds))
                _add(rounds[-1], {"Headway": measure_overloads(root, cases, options.seconds)})
            _say(number, rounds[-1])
        write_report(options.name, summarise(rounds), options, targets if options.peers else ())


def summarise(rounds: list[dict[str, Any]]) -> Figures:
    """The median over the rounds of each figure, by target and workload; what is void in one round is void."""
    voids: dict[tuple[str, str], str] = {}
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for single in rounds:
        for target, by_workload in single.items():
            for workload, figures in by_workload.items():
                if VOID in figures:
                    voids.setdefault((target, workload), figures[VOID])
                for name, value in figures.items():
                    values[target, workload, name].append(value)
    medians: Figures = defaultdict(lambda: defaultdict(dict))
    for (target, workload, name), found in values.items():
        if (target, workload) in voids:
            medians[target][workload] = {VOID: voids[target, workload]}
        else:
            medians[target][workload][name] = statistics.median(found)
    return medians


def _measure(target: Target, cases: dict[str, Workload], seconds: float, root: Path) -> dict[str, Any]:
    """Figures by workload; of a server other than Headway, `void` and why where it does not start or answer rightly."""
    adapted = {key: own for key, case in cases.items() if (own := target.adapt(case)) is not None}
    figures: dict[str, Any] = {}
    try:
        with running(target, root / "log") as server:
            for key, case in adapted.items():
                measure = _measure_workload if target.wires is None else _measure_or_void
                figures[key] = measure(server, case, seconds)
            figures["process"] = {"ready_seconds": server.ready_seconds, "worker_mb": _largest_mb(server)}
    except NotReady as exc:
        if target.wires is None:
            raise
        print(exc, file=sys.stderr)
        return {key: {VOID: "does not become ready"} for key in adapted}
    return figures


def _measure_or_void(server: Running, case: Workload, seconds: float) -> dict[str, Any]:
    """The figures, or why there are none: wrong answers, or errors under load."""
    wire = (server.target.wires or {})[case.key]
    try:
        if (fault := find_fault(server.url, wire, case.key)) is not None:
            return {VOID: fault}
        figures = _measure_workload(server, case, seconds)
    except (RuntimeError, httpx.HTTPError) as exc:
        print(f"{server.target.name}: {exc!r}", file=sys.stderr)
        return {VOID: "stops answering"}
    return {VOID: f"{figures['errors']} requests failed"} if figures["errors"] else figures


def _measure_workload(server: Running, case: Workload, seconds: float) -> dict[str, Any]:
    closed_loop(server.url, case.path, case, CONNECTIONS, max(1.0, seconds / 4))
    before = server.cpu_seconds()
    result = closed_loop(server.url, case.path, case, CONNECTIONS, seconds)
    cpu = server.cpu_seconds() - before
    return {
        "per_second": result.per_second,
        "p50_ms": result.p50_ms,
        "p95_ms": result.p95_ms,
        "p99_ms": result.p99_ms,
        "errors": result.errors,
        "cpu_us": cpu / result.requests * 1e6,
    }


def _largest_mb(server: Running) -> float:
    return max(server.rss_bytes().values()) / 1e6


def _limit(root: Path, cases: dict[str, Workload], seconds: float) -> dict[str, dict[str, float]]:
    per_second, cpu_seconds = measure_limit(root / "efficientnet-lite0/1.1.0", "image", cases["b"].body, seconds)
    figures = {"per_second": per_second, "cpu_us": cpu_seconds * 1e6}
    return {"a": figures, "b": figures}


def _add(figures: dict[str, Any], more: dict[str, Any]) -> None:
    for target, by_workload in more.items():
        figures.setdefault(target, {}).update(by_workload)


def _say(number: int, figures: dict[str, Any]) -> None:
    for target, by_workload in figures.items():
        text = ", ".join(
            f"{key} void: {values[VOID]}" if VOID in values else f"{key} {values['per_second']:.0f}/s"
            for key, values in by_workload.items()
            if VOID in values or "per_second" in values
        )
        print(f"round {number + 1}: {target:<30} {text}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds: under three minutes")
    parser.add_argument("--peers", action="store_true", help="with LitServe, BentoML, MLServer, KServe and Ray Serve")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=None, help="length of one measurement")
    parser.add_argument("--name", default=None, help="name of the report in docs/benchmarks/")
    options = parser.parse_args()
    options.seconds = options.seconds or (4.0 if options.quick else 10.0)
    options.name = options.name or ("peers" if options.peers else "quick" if options.quick else "benchmark")
    return options


if __name__ == "__main__":
    main()
