"""`headway plan hpa`: what the Horizontal Pod Autoscaler would do over a day, without a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from app.cli.console import MISUSE, JsonOption, emit, failing_cleanly, print_error
from app.errors import Conflict, InvalidContent

if TYPE_CHECKING:
    from app.optimize.planning.hpa import Hpa
    from app.optimize.planning.replay_summary import Period, Summary
    from app.optimize.planning.service_model import ServiceModel
    from app.optimize.planning.traffic import Traffic

cli = typer.Typer(help="Plan a deployment: what would happen, without a cluster.", no_args_is_help=True)

_MANIFEST = Path("k8s/base/hpa.yaml")
_MOST_REPLICAS, _MOST_SECONDS = 1000, 3600
# The day of the default traffic asks for 0.58 of what the least replicas can answer, its afternoon for all of it.
_DAY_SHARE = 0.58


@cli.command("hpa")
def hpa(
    traffic: Annotated[
        Path | None,
        typer.Option("--traffic", help="CSV of time (seconds or ISO), requests per second. [default: a day made up]"),
    ] = None,
    service_ms: Annotated[
        float | None, typer.Option("--service-ms", help="A thread's time for one request. [default: 5.83, a photo]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=64, help="Threads of a pod over all workers. [default: 2]")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", help="Time that callers give a request. [default: 10000]")
    ] = None,
    start_seconds: Annotated[
        float, typer.Option("--start-seconds", help="From the decision until a new pod is ready.")
    ] = 30,
    target_ms: Annotated[
        float | None, typer.Option("--target-ms", help="Target of the mean response time in place of the manifest's.")
    ] = None,
    least: Annotated[
        int | None, typer.Option("--min", min=1, max=_MOST_REPLICAS, help="In place of the manifest's minReplicas.")
    ] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=1, max=_MOST_REPLICAS, help="In place of the manifest's maxReplicas.")
    ] = None,
    manifest: Annotated[Path, typer.Option("--hpa", help="Manifest of the HPA.")] = _MANIFEST,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write the day as SVG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the HPA's algorithm over a day's traffic: replicas, refusals, response times, each scale event."""
    _check_times(("--service-ms", service_ms), ("--deadline-ms", deadline_ms), ("--target-ms", target_ms))
    if not 0 <= start_seconds <= _MOST_SECONDS:
        print_error(f"--start-seconds: must be from 0 to {_MOST_SECONDS} (it says {start_seconds:g})")
        raise typer.Exit(MISUSE)
    with failing_cleanly():
        from app.optimize.planning.hpa_file import read_hpa
        from app.optimize.planning.replay import replay
        from app.optimize.planning.replay_summary import summarize

        chart = _prepare_picture(picture) if picture is not None else None
        scaler = _set_target(read_hpa(manifest, least, most), target_ms)
        service = _make_service(service_ms, threads, deadline_ms)
        day = _make_traffic(traffic, scaler.min_replicas * service.capacity)
        played = replay(scaler, service, day, start_seconds)
        summary = summarize(played)
        data = {"settings": _settings(traffic, manifest, scaler, service, start_seconds), **summary.describe()}
        if chart is not None and picture is not None:
            target = data["settings"]["target_ms"]
            _write_file(picture, chart.draw_replay(played, data, target_ms=target, capacity=service.capacity))
        emit(as_json, data, lambda: _report(summary, data["settings"]))


def _check_times(*options: tuple[str, float | None]) -> None:
    for name, milliseconds in options:
        if milliseconds is not None and not 0.01 <= milliseconds <= _MOST_SECONDS * 1000:
            print_error(f"{name}: must be from 0.01 to {_MOST_SECONDS * 1000} ms (it says {milliseconds:g})")
            raise typer.Exit(MISUSE)


def _set_target(scaler: Hpa, target_ms: float | None) -> Hpa:
    from app.optimize.planning.replay import SUCCESS

    if target_ms is None:
        return scaler
    if all(metric.name != SUCCESS for metric in scaler.metrics):
        raise InvalidContent(f"--target-ms is the target of {SUCCESS}, which the manifest does not look at")
    metrics = (
        replace(metric, target=target_ms / 1e3) if metric.name == SUCCESS else metric for metric in scaler.metrics
    )
    return replace(scaler, metrics=tuple(metrics))


def _make_service(service_ms: float | None, threads: int | None, deadline_ms: float | None) -> ServiceModel:
    from app.optimize.planning.service_model import ServiceModel

    given: dict[str, Any] = {}
    if service_ms is not None:
        given["service_seconds"] = service_ms / 1e3
    if threads is not None:
        given["threads"] = threads
    if deadline_ms is not None:
        given["deadline_seconds"] = deadline_ms / 1e3
    return ServiceModel(**given)


def _make_traffic(path: Path | None, capacity: float) -> Traffic:
    from app.optimize.planning.traffic import make_day, read_traffic

    return read_traffic(path) if path is not None else make_day(_DAY_SHARE * capacity)


def _settings(
    traffic: Path | None, manifest: Path, scaler: Hpa, service: ServiceModel, start_seconds: float
) -> dict[str, Any]:
    from app.optimize.planning.replay import SUCCESS

    targets = {metric.name: metric.target for metric in scaler.metrics}
    return {
        "traffic": str(traffic) if traffic is not None else None,
        "hpa": str(manifest),
        "targets": targets,
        "target_ms": targets[SUCCESS] * 1e3 if SUCCESS in targets else None,
        "min_replicas": scaler.min_replicas,
        "max_replicas": scaler.max_replicas,
        "service_ms": service.service_seconds * 1e3,
        "threads": service.threads,
        "deadline_ms": service.deadline_seconds * 1e3,
        "start_seconds": start_seconds,
        "pod_capacity_per_second": service.capacity,
    }


def _prepare_picture(path: Path) -> ModuleType:
    """Before the work: what draws is there, and the folder. Returns app.optimize.planning.replay_chart."""
    try:
        from app.optimize.planning import replay_chart
    except ImportError as exc:
        raise InvalidContent(f"--picture draws with Matplotlib ({exc}): pip install 'headway[compare]'") from exc
    if not path.parent.is_dir() or path.is_dir():
        raise InvalidContent(f"{path}: name a file in a folder that exists, as day.svg, with --picture")
    return replay_chart


def _write_file(path: Path, data: bytes) -> None:
    """Takes its place whole."""
    try:
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as staging:
            part = Path(staging, "picture.svg")
            part.write_bytes(data)
            os.replace(part, path)
    except OSError as exc:
        raise Conflict(f"{path}: cannot be written ({exc.strerror}); name another file with --picture") from exc


def _report(summary: Summary, settings: dict[str, Any]) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("req/s", "peak", "refused", "pods", "most", "p50 ms", "mean ms", "p99 ms", "up", "down")
    for name in ("hour", *names):
        table.add_column(name, justify="left" if name == "hour" else "right", overflow="fold")
    for period in (*summary.hours, summary.total):
        table.add_row(*_row(period), end_section=period is summary.hours[-1])
    of_pod = f"{settings['pod_capacity_per_second']:.0f} requests/s a pod"
    limits = f"{settings['min_replicas']} to {settings['max_replicas']} replicas"
    parts: list[Table | str] = [f"{limits}, {of_pod}, {summary.pod_hours:.1f} pod hours", "", table]
    if summary.events:
        parts += ["", _events(summary, summary.hours[0].name)]
    return Group(*parts)


def _row(period: Period) -> Sequence[str]:
    return [
        period.name,
        f"{period.mean_per_second:.0f}",
        f"{period.peak_per_second:.0f}",
        f"{period.refused_ratio:.2%}",
        f"{period.mean_replicas:.1f}",
        str(period.max_replicas),
        *("-" if value is None else f"{value:.1f}" for value in (period.p50_ms, period.mean_ms, period.p99_ms)),
        str(period.scaled_up),
        str(period.scaled_down),
    ]


def _events(summary: Summary, begin: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"scale events, since {begin}", title_justify="left")
    for name, justify in (("after", "right"), ("replicas", "left"), ("most was asked by", "left")):
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    for event in summary.events:
        minutes, seconds = divmod(int(event.seconds), 60)
        after = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        table.add_row(after, f"{event.before} → {event.after}", event.cause)
    return table
