"""The picture of a replay, as SVG: load, response time and replicas over time, with each scale event marked, and once
more the time with the most of them.

Imports Matplotlib, with a figure of its own, no state of pyplot. The figures of the replay stand as JSON in the file's
metadata. Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from app.optimize.planning.replay import Replay
from app.optimize.planning.traffic import STEP_SECONDS
from app.tensors import Array

_BLUE, _ORANGE, _GREEN, _GREY, _DARK = "#0072b2", "#d55e00", "#009e73", "#b5b5b5", "#333333"
_TITLES = ("Load", "Response time of answered requests", "Replicas")
_UNITS = ("requests a second", "ms, log scale", "pods")
_MOST_POINTS = 480
_ZOOM_STEPS, _LEAD_STEPS = 45 * 60 // STEP_SECONDS, 5 * 60 // STEP_SECONDS


def draw_replay(replay: Replay, description: dict[str, Any], *, target_ms: float | None, capacity: float) -> bytes:
    """An SVG. `description` goes into its metadata, `capacity` is that of one pod in requests a second."""
    style = rc_context(
        {"svg.hashsalt": "headway", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}
    )
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)  # nothing was answered then
        parts = [slice(0, len(replay.replicas)), *_find_busiest(replay)]
        figure = Figure(figsize=(7 + 3.6 * len(parts), 8.4), layout="constrained")
        FigureCanvasAgg(figure)
        ratios = {"width_ratios": [1.5, 1][: len(parts)], "height_ratios": [1, 1, 1.15]}
        columns = figure.subplots(3, len(parts), squeeze=False, sharex="col", sharey="row", gridspec_kw=ratios)
        for part, (load, response, replicas) in zip(parts, columns.T, strict=True):
            _draw_load(load, replay, part, capacity)
            _draw_response(response, replay, part, target_ms)
            _draw_replicas(replicas, replay, part)
            _set_hours(replicas, replay, part)
            for axes in (load, response, replicas):
                axes.grid(color="#e6e6e6", linewidth=0.7)
        for axes, name, unit in zip(columns[:, 0], _TITLES, _UNITS, strict=True):
            axes.set_title(name, loc="left")
            axes.set_ylabel(unit)
            axes.legend(frameon=False, loc="upper right")
        buffer = io.BytesIO()
        metadata = {"Date": None, "Description": json.dumps(description, allow_nan=False)}
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=metadata)
        return buffer.getvalue()


def _find_busiest(replay: Replay) -> list[slice]:
    """The steps around the most scale events, where all of the replay is much longer than they are."""
    if not replay.events or len(replay.replicas) < 3 * _ZOOM_STEPS:
        return []
    steps = np.array([event.seconds / STEP_SECONDS for event in replay.events])
    length = _ZOOM_STEPS - _LEAD_STEPS
    counts = [int(np.count_nonzero((steps >= step) & (steps < step + length))) for step in steps]
    begin = max(0, int(steps[int(np.argmax(counts))]) - _LEAD_STEPS)
    return [slice(begin, min(begin + _ZOOM_STEPS, len(replay.replicas)))]


def _draw_load(axes: Axes, replay: Replay, part: slice, capacity: float) -> None:
    series = (replay.traffic.per_second, replay.refused_per_second, replay.ready)
    hours, offered, refused, ready = _thin(part, *series)
    axes.plot(hours, offered, color=_BLUE, linewidth=1.1, label="requests")
    axes.fill_between(hours, refused, color=_ORANGE, linewidth=0, label="refused")
    axes.plot(hours, ready * capacity, color=_GREY, linewidth=1, label="capacity of the ready pods")
    axes.set_ylim(bottom=0)


def _draw_response(axes: Axes, replay: Replay, part: slice, target_ms: float | None) -> None:
    hours, mean, p99 = _thin(part, replay.mean_seconds * 1e3, replay.p99_seconds * 1e3)
    axes.plot(hours, p99, color=_ORANGE, linewidth=0.9, label="p99")
    axes.plot(hours, mean, color=_BLUE, linewidth=1.1, label="mean")
    if target_ms is not None:
        axes.axhline(
            target_ms, color=_DARK, linewidth=0.9, linestyle="--", label=f"target of the mean, {target_ms:g} ms"
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_replicas(axes: Axes, replay: Replay, part: slice) -> None:
    for name, series, colour in (("replicas", replay.replicas, _DARK), ("ready", replay.ready, _GREEN)):
        values = series[part]
        changes = np.concatenate([[0], np.flatnonzero(np.diff(values)) + 1, [len(values)]])
        levels = values[np.minimum(changes, len(values) - 1)]
        axes.step((part.start + changes) * STEP_SECONDS / 3600, levels, where="post", color=colour, label=name)
    for name, sign, marker, colour in (("scaled up", 1, "^", _ORANGE), ("scaled down", -1, "v", _BLUE)):
        moves = [event for event in replay.events if (event.after - event.before) * sign > 0]
        hours = [event.seconds / 3600 for event in moves]
        label = f"{name}, {len(moves)} times"
        axes.plot(hours, [event.after for event in moves], marker, color=colour, markersize=5, label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _set_hours(axes: Axes, replay: Replay, part: slice) -> None:
    """Clock times below the lowest panel."""
    begin = replay.traffic.start_seconds / 3600
    left, right = part.start * STEP_SECONDS / 3600, part.stop * STEP_SECONDS / 3600
    spacing = next((step for step in (1 / 12, 0.25, 0.5, 1, 2, 3, 6, 12) if (right - left) / step <= 9), 24)
    axes.xaxis.set_major_locator(MultipleLocator(spacing, offset=-(begin % spacing)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _clock(begin + value)))
    axes.set_xlim(left, right)
    axes.set_xlabel("time of day")


def _clock(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _thin(part: slice, *series: Array) -> Sequence[Array]:
    """Hours, and each series by the largest of as many steps as make it few enough to draw."""
    steps = part.stop - part.start
    width = -(-steps // _MOST_POINTS)
    points = -(-steps // width)
    blanks = np.full(points * width - steps, np.nan)
    padded = [np.append(values[part], blanks).reshape(points, width) for values in series]
    hours = (part.start + np.arange(points) * width) * STEP_SECONDS / 3600
    return [hours, *(np.nanmax(values, axis=1) for values in padded)]
