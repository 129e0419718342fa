"""The medians of a run as Markdown, JSON and an SVG chart in docs/benchmarks/."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.workloads import ROOT, workloads

FOLDER = ROOT / "docs/benchmarks"
_PACKAGES = ("onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "gunicorn", "pybase64", "pydantic")
Figures = dict[str, dict[str, dict[str, float]]]


def write_report(name: str, medians: Figures, options: argparse.Namespace) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = _about(options)
    data = {"about": about, "medians": medians}
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (FOLDER / f"{name}.svg").write_text(_chart(medians), encoding="utf-8")
    page = _page(name, about, medians)
    (FOLDER / f"{name}.md").write_text(page, encoding="utf-8")
    print(page)


def _about(options: argparse.Namespace) -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def _page(name: str, about: dict[str, Any], medians: Figures) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [
        f"# Benchmark: {name}",
        "",
        f"{about['date']}, {about['cores']} cores of {about['cpu']}, Python {about['python']}, {versions}. Medians of "
        f"{about['rounds']} interleaved rounds of {about['seconds']:g} s, 16 connections, wrk on the same cores. "
        "The machine is shared: compare ratios.",
        "",
        f"![requests a second]({name}.svg)",
    ]
    for key, case in workloads().items():
        rows = {target: figures[key] for target, figures in medians.items() if key in figures}
        lines += ["", f"## ({key}) {case.title}", "", *_table(rows)]
    lines += ["", "## Process", "", "| server | ready after | largest process |", "| --- | ---: | ---: |"]
    for target, figures in medians.items():
        if "process" in figures:
            process = figures["process"]
            lines.append(f"| {target} | {process['ready_seconds']:.2f} s | {process['worker_mb']:.0f} MB |")
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    own = rows["Headway"]["per_second"]
    lines = [
        "| server | requests/s | Headway is | p50 | p95 | p99 | CPU a request | errors |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for target, figures in sorted(rows.items(), key=lambda row: -row[1]["per_second"]):
        latencies = [f"{figures[name]:.1f} ms" if name in figures else "–" for name in ("p50_ms", "p95_ms", "p99_ms")]
        errors = f"{figures['errors']:.0f}" if "errors" in figures else "–"
        lines.append(
            f"| {target} | {figures['per_second']:.0f} | {own / figures['per_second']:.2f} × | {' | '.join(latencies)} "
            f"| {figures['cpu_us']:.0f} µs | {errors} |"
        )
    return lines


def _chart(medians: Figures) -> str:
    """Bars of requests a second for each workload, each scaled to its own largest."""
    bars: list[str] = []
    y = 20
    for key, case in workloads().items():
        rows = [(target, figures[key]["per_second"]) for target, figures in medians.items() if key in figures]
        largest = max(value for _, value in rows)
        bars.append(f'<text x="10" y="{y}" class="title">({key}) {escape(case.title)}</text>')
        for target, value in sorted(rows, key=lambda row: -row[1]):
            y += 24
            colour = "#2f6f4f" if target == "Headway" else "#9aa5a0"
            width = 380 * value / largest
            bars.append(f'<text x="10" y="{y + 4}">{escape(target)}</text>')
            bars.append(f'<rect x="150" y="{y - 9}" width="{width:.1f}" height="18" fill="{colour}"/>')
            bars.append(f'<text x="{158 + width:.1f}" y="{y + 4}">{value:.0f}/s</text>')
        y += 40
    style = "text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 {y}" role="img" aria-label="requests a second">'
        f'<style>{style}</style><rect width="620" height="{y}" fill="#fff"/>{"".join(bars)}</svg>\n'
    )
