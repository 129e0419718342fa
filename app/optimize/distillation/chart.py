"""The picture of a distillation, as SVG: both terms of the loss, and the accuracy, by epoch. Imports Matplotlib.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color). The same epochs give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from app.optimize.distillation.training import Epoch

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#777777"


def draw_epochs(epochs: Sequence[Epoch], *, least: float, until_accuracy: float | None) -> bytes:
    """`least` is the smallest that the teacher's term can be."""
    style = rc_context(
        {
            "svg.hashsalt": "headway",
            "svg.fonttype": "none",  # text as text: a fifth of the bytes
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        }
    )
    with style:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        numbers = [epoch.number for epoch in epochs]
        left.plot(numbers, [epoch.from_teacher for epoch in epochs], color=_BLUE, label="teacher, H(q, p)·T²")
        labelled = [(epoch.number, epoch.from_labels) for epoch in epochs if epoch.from_labels is not None]
        if labelled:
            left.plot(*zip(*labelled, strict=True), color=_ORANGE, label="labels, H(q, y)")
        left.axhline(least, color=_GREY, linewidth=0.8, linestyle="--", label="least of the teacher's")
        left.set_ylim(bottom=0)
        left.set_title("Loss", loc="left")
        left.legend(frameon=False)
        known = [(epoch.number, epoch.accuracy * 100) for epoch in epochs if epoch.accuracy is not None]
        if known:
            right.plot(*zip(*known, strict=True), color=_GREEN)
        if until_accuracy is not None:
            right.axhline(until_accuracy * 100, color=_GREY, linewidth=0.8, linestyle="--")
        right.set_title("Top-1 accuracy on what is held out, %", loc="left")
        for axes in (left, right):
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(color="#e6e6e6", linewidth=0.7)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        return buffer.getvalue()
