"""The pictures of a measurement of robustness: accuracy against strength, and a sheet of examples. PNG and SVG.

Matplotlib with figures of its own, no state of pyplot. The same outcome gives the same bytes. Colours are told apart
by colour-blind readers: Okabe and Ito's (https://jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import color_sequences, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from app.optimize.robustness.corruptions import CORRUPTIONS
from app.optimize.robustness.measure import CORRUPTED, Outcome
from app.optimize.robustness.tally import Example
from app.registry.robustness import Measurement
from app.tensors import Array

_MARKERS = "osD^vP*Xh<"
_LONGEST_LABEL = 30
_MOST_BARS = 64


def draw_pictures(title: str, outcome: Outcome) -> dict[str, bytes]:
    """By file name: curve.png, curve.svg and, where an attack changed a label, examples.png."""
    style = rc_context(
        {
            "svg.hashsalt": "headway",
            "text.parse_math": False,  # a label may hold a dollar sign
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    with style, warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; the rest of the picture is right.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        curve = draw_curve(title, outcome)
        pictures = {f"curve.{kind}": _render(curve, kind) for kind in ("png", "svg")}
        if outcome.examples:
            pictures["examples.png"] = _render(draw_examples(outcome), "png")
        return pictures


def draw_curve(title: str, outcome: Outcome) -> Figure:
    """Robust accuracy over strength, attacks left and corruptions right."""
    attacks = [one for one in outcome.measurements if one.attack not in (*CORRUPTIONS, CORRUPTED)]
    corrupted = [one for one in outcome.measurements if one.attack in (*CORRUPTIONS, CORRUPTED)]
    sides = [side for side in ((attacks, f"ε, {outcome.unit}"), (corrupted, "severity")) if side[0]]
    figure = Figure(figsize=(1 + 5 * len(sides), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    plots = figure.subplots(1, len(sides), squeeze=False)[0]
    for axes, (measurements, words) in zip(plots, sides, strict=True):
        _draw_lines(axes, measurements, outcome.accuracy)
        axes.set_xlabel(words)
    plots[0].set_ylabel("right before and after, %")
    figure.suptitle(f"{title}, {outcome.n} samples of {outcome.data}", fontsize=11)
    return figure


def draw_examples(outcome: Outcome) -> Figure:
    """For each attack a sample that it takes from right to wrong: before, after, and what was added; two in a row."""
    examples = outcome.examples
    beside = min(len(examples), 2)
    height = -(-len(examples) // beside)
    figure = Figure(figsize=(6.3 * beside, 2.5 * height), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(height, 3 * beside, squeeze=False).reshape(-1, 3)
    for left in places[len(examples) :].flat:
        left.set_axis_off()
    for row, example in zip(places, examples, strict=False):
        axes = list(row)
        draw = _draw_photos if example.before.ndim == 3 else _draw_numbers
        draw(axes, example)
        for one, label, confidence in zip(axes, example.labels, example.confidences, strict=False):
            one.set_title(f"{_short(label)}\n{confidence:.1%}", fontsize=9)
        axes[2].set_title(_added(example), fontsize=9)
    return figure


def _draw_lines(axes: Axes, measurements: Sequence[Measurement], accuracy: float) -> None:
    colours = color_sequences["okabe_ito"][1:]  # the first is black, which is the mean's
    for number, attack in enumerate(dict.fromkeys(one.attack for one in measurements)):
        ours = sorted((one for one in measurements if one.attack == attack), key=lambda one: one.strength)
        points = [(0.0, accuracy), *((one.strength, one.robust_accuracy) for one in ours)]
        is_mean = attack == CORRUPTED
        axes.plot(
            *zip(*((strength, 100 * share) for strength, share in points), strict=True),
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            color="black" if is_mean else colours[number % len(colours)],
            linewidth=2.4 if is_mean else 1.4,
            linestyle="dashed" if number >= len(colours) and not is_mean else "solid",
            label=f"{attack} (mean)" if is_mean else attack,
        )
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False, loc="best")


def _draw_photos(axes: Sequence[Axes], example: Example) -> None:
    step = example.after - example.before
    largest = float(np.abs(step).max()) or 1.0
    for one, pixels in zip(axes, (example.before, example.after, 127.5 + step / largest * 127.5), strict=True):
        one.imshow(_shown(pixels), interpolation="nearest")
        one.set_axis_off()


def _draw_numbers(axes: Sequence[Axes], example: Example) -> None:
    step = example.after - example.before
    for one, values in zip(axes, (example.before, example.after, step), strict=True):
        one.bar(range(min(len(values), _MOST_BARS)), values[:_MOST_BARS], color="#0072b2")
        one.tick_params(labelsize=7)


def _shown(pixels: Array) -> Array:
    return np.repeat(np.rint(pixels).clip(0, 255).astype(np.uint8), 4 - pixels.shape[2], axis=2)[:, :, :3]


def _added(example: Example) -> str:
    largest = float(np.abs(example.after - example.before).max())
    return f"{example.attack}, {example.strength:g}\nlargest change {largest:.3g}"


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _render(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=110, metadata=metadata)
    return buffer.getvalue()
