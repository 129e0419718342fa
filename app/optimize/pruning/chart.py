"""The picture of a pruning, as SVG: accuracy against what goes, and what each layer would lose alone.

Imports Matplotlib, with a figure of its own, no state of pyplot. Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from app.optimize.pruning.sensitivity import LayerReport, Sensitivity

_BLUE, _ORANGE, _DARK = "#0072b2", "#d55e00", "#333333"
_MOST_LAYERS = 40
_LONGEST_NAME = 32


def draw_pruning(sensitivity: Sensitivity, layers: Sequence[LayerReport], gone: float, structure: str) -> bytes:
    """An SVG, the same bytes for the same figures; `gone` is the share of weights or channels (`structure`)."""
    shown = sorted((one for one in layers if one.top1 is not None), key=lambda one: one.top1 or 0.0)[:_MOST_LAYERS]
    style = rc_context(
        {
            "svg.hashsalt": "headway",
            "svg.fonttype": "none",  # a third of the size
            "text.parse_math": False,  # a name may hold a dollar sign
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        }
    )
    with style:
        height = max(4.2, 0.22 * len(shown) + 1.4)
        figure = Figure(figsize=(12.6, height), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw_curve(left, sensitivity, gone, structure)
        _draw_layers(right, shown, sensitivity.whole, len(layers))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        return buffer.getvalue()


def _draw_curve(axes: Axes, sensitivity: Sensitivity, gone: float, structure: str) -> None:
    shares, accuracies = zip((0.0, sensitivity.whole), *sensitivity.curve, strict=True)
    axes.plot(shares, accuracies, "o-", ms=4, color=_BLUE, label="without fine-tuning")
    axes.axhline(sensitivity.whole, color=_DARK, linewidth=0.8, linestyle="--", label="parent")
    axes.plot([gone], [sensitivity.pruned], "D", ms=8, color=_ORANGE, label="this version", zorder=3)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_xlabel(f"share of {structure}s that is gone")
    axes.set_ylabel("top-1 accuracy")
    axes.set_title(f"Accuracy on {sensitivity.n} inputs of {sensitivity.data}", loc="left")
    axes.legend(frameon=False, loc="lower left")


def _draw_layers(axes: Axes, shown: Sequence[LayerReport], whole: float, count: int) -> None:
    places = range(len(shown))
    axes.barh(places, [one.top1 or 0.0 for one in shown], 0.75, color=_BLUE)
    axes.axvline(whole, color=_DARK, linewidth=0.8, linestyle="--")
    axes.set_yticks(places, [one.name[-_LONGEST_NAME:] for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("top-1 accuracy when this layer alone is pruned")
    what = "Layers" if len(shown) == count else f"The {len(shown)} of {count} layers that hurt most"
    axes.set_title(f"{what}, without fine-tuning", loc="left")
