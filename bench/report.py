"""The medians of a run as Markdown, JSON and an SVG chart in docs/benchmarks/."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.overload import overload_pages
from bench.targets import Target
from bench.tensor_body import tensor_page
from bench.workloads import ROOT, workloads

FOLDER = ROOT / "docs/benchmarks"
_PACKAGES = ("onnxruntime", "numpy", "pillow", "fastapi", "uvicorn", "gunicorn", "pybase64", "pydantic")
# A row with `void` has no figures but the reason.
VOID = "void"
Figures = dict[str, dict[str, dict[str, Any]]]


def write_report(name: str, medians: Figures, options: argparse.Namespace, targets: Sequence[Target] = ()) -> None:
    """`targets` are those whose full configuration is to stand in the report."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = _about(options)
    data = {"about": about, "medians": medians, "configurations": {one.name: describe_target(one) for one in targets}}
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (FOLDER / f"{name}.svg").write_text(_chart(medians), encoding="utf-8")
    page = _page(name, about, medians) + render_settings(targets)
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


def describe_target(target: Target) -> dict[str, Any]:
    """How a target is started, in words that hold on any machine: the port, this directory and the models by name."""
    models = target.environment.get("BENCH_MODELS") or target.environment["HEADWAY_MODELS"]

    def portable(text: str) -> str:
        return (
            text.replace(sys.executable, "python")
            .replace(models, "$MODELS")
            .replace(f"{ROOT}/", "")
            .replace(str(ROOT), ".")
        )

    wires = target.wires or {}
    return {
        "command": [portable(argument).replace("65535", "$PORT") for argument in target.command(65535)],
        "environment": {name: portable(value) for name, value in target.environment.items()},
        "wires": {key: {"path": wire.path, "content_type": wire.content_type} for key, wire in wires.items()},
        "settings": target.settings,
        "versions": dict(target.versions),
    }


def render_settings(targets: Sequence[Target]) -> str:
    described = [f"- {target.settings}" for target in targets if target.settings]
    return "\n".join(["", "## Settings", "", *described, ""]) if described else ""


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
    lines += [*tensor_page(medians), *overload_pages(medians["Headway"])]
    lines += ["", "## Process", "", "| server | ready after | largest process |", "| --- | ---: | ---: |"]
    for target, figures in medians.items():
        if "process" in figures:
            process = figures["process"]
            lines.append(f"| {target} | {process['ready_seconds']:.2f} s | {process['worker_mb']:.0f} MB |")
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    voids = {target: figures[VOID] for target, figures in rows.items() if VOID in figures}
    rows = {target: figures for target, figures in rows.items() if target not in voids}
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
    return lines + [f"| {target} | void: {reason} | – | – | – | – | – | – |" for target, reason in voids.items()]


def _chart(medians: Figures) -> str:
    """Bars of requests a second for each workload, each scaled to its own largest."""
    bars: list[str] = []
    y = 20
    start = max(150, 20 + 8 * max(len(target) for target in medians))
    for key, case in workloads().items():
        rows = [
            (target, figures[key]["per_second"])
            for target, figures in medians.items()
            if key in figures and VOID not in figures[key]
        ]
        largest = max(value for _, value in rows)
        bars.append(f'<text x="10" y="{y}" class="title">({key}) {escape(case.title)}</text>')
        for target, value in sorted(rows, key=lambda row: -row[1]):
            y += 24
            colour = "#2f6f4f" if target == "Headway" else "#9aa5a0"
            width = 380 * value / largest
            bars.append(f'<text x="10" y="{y + 4}">{escape(target)}</text>')
            bars.append(f'<rect x="{start}" y="{y - 9}" width="{width:.1f}" height="18" fill="{colour}"/>')
            bars.append(f'<text x="{start + 8 + width:.1f}" y="{y + 4}">{value:.0f}/s</text>')
        y += 40
    whole = f'viewBox="0 0 {start + 470} {y}" role="img" aria-label="requests a second"'
    style = "text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {whole}>'
        f'<style>{style}</style><rect width="{start + 470}" height="{y}" fill="#fff"/>{"".join(bars)}</svg>\n'
    )
