"""The pictures of a comparison, as PNG and SVG: accuracy against response time, F1, confusion matrices.

The only module that imports Matplotlib, and with figures of its own, no state of pyplot. The same comparison gives the
same bytes. Colours are told apart by colour-blind readers: Okabe and Ito's (https://jfly.uni-koeln.de/color), viridis.
"""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from matplotlib import color_sequences, colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from matplotlib.transforms import Bbox, BboxBase

from app.optimize.compare import Comparison, Figures, format_bytes
from app.tensors import Array

MOST_CLASSES = 30
_F1_CLASSES = 10
_LARGEST_BUBBLE = 1400.0  # points²
_LONGEST_LABEL = 28
_GREY, _DARK = "#b5b5b5", "#333333"
_VIRIDIS = colormaps["viridis"]
_HORIZONTAL: Mapping[int, Literal["center", "left", "right"]] = {0: "center", 1: "left", -1: "right"}
_VERTICAL: Mapping[int, Literal["center", "bottom", "top"]] = {0: "center", 1: "bottom", -1: "top"}
Colour: TypeAlias = "str | tuple[float, float, float, float]"
_SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.8), (-0.7, 0.8), (0.7, -0.8), (-0.7, -0.8)]


def draw_charts(comparison: Comparison) -> dict[str, bytes]:
    """Pictures by file name: accuracy-latency, f1 and a confusion-NAME@VERSION for each version, as .png and .svg."""
    style = rc_context(
        {
            "svg.hashsalt": "headway",
            "text.parse_math": False,  # a label may hold a dollar sign
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
        }
    )
    with style, warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; the rest of the picture is right.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        classes = shown_classes(comparison)
        figures = {"accuracy-latency": draw_accuracy(comparison), "f1": draw_f1(comparison)}
        for version in comparison.versions:
            figures[f"confusion-{version.name}"] = draw_confusion(comparison, version, classes)
        return {f"{name}.{kind}": _render(figure, kind) for name, figure in figures.items() for kind in ("png", "svg")}


def draw_accuracy(comparison: Comparison) -> Figure:
    """Top-1 with its interval over the p50 response time; bubble area = size, colour = mean rating."""
    figure = Figure(figsize=(9.4, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, versions = figure.add_subplot(), comparison.versions
    times = [version.evaluation.latency_ms["p50"] for version in versions]
    accuracies = [version.evaluation.top1 * 100 for version in versions]
    largest = max(version.size_bytes for version in versions)
    areas = [_LARGEST_BUBBLE * version.size_bytes / largest for version in versions]
    bounds = 100 * np.array([version.top1_interval for version in versions]).T
    around = np.clip([accuracies - bounds[0], bounds[1] - accuracies], 0, None)
    colours = _rating_colours(figure, axes, versions)
    for place in sorted(range(len(versions)), key=lambda place: -areas[place]):  # the small ones on top
        point = times[place], accuracies[place]
        axes.scatter(*point, areas[place], color=colours[place], edgecolors=_DARK, linewidths=0.8, zorder=2)
    axes.errorbar(times, accuracies, around, fmt="o", ms=3, color=_DARK, elinewidth=0.8, capsize=4, zorder=3)
    if max(times) > 3 * min(times) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if max(times) < 20 * min(times) else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.4, 0.15)  # room for the names
    axes.invert_xaxis()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %" if 0 <= value <= 100 else ""))
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_xlabel("p50 response time in ms (axis reversed: quicker is further right)")
    axes.set_ylabel("top-1 accuracy, with its 95 % interval")
    axes.set_title(f"Accuracy and response time on {comparison.images} images", loc="left")
    axes.set_title("better ↗", loc="right", color=_DARK, style="italic")
    _add_sizes(figure, versions, areas)
    figure.draw_without_rendering()  # settles the layout
    _place_names(axes, versions, list(zip(times, accuracies, strict=True)), np.sqrt(np.array(areas) / math.pi))
    return figure


def draw_f1(comparison: Comparison) -> Figure:
    """Macro F1 of each version, and F1 of the classes where they differ most."""
    versions, differing = comparison.versions, _differing_classes(comparison)
    above = 0.3 * len(versions) + 0.2
    below = max(0.6, len(differing) * (0.12 * len(versions) + 0.14))
    figure = Figure(figsize=(8.6, above + below + 1.7), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[above, below], sharex=True)
    colours = _version_colours(len(versions))
    width = 0.8 / len(versions)
    for number, version in enumerate(versions):
        macro = version.evaluation.macro_f1
        top.barh(number, macro, 0.8, color=colours[number])
        top.text(macro + 0.01, number, f"{macro:.1%}", va="center", fontsize=9)
        places = np.arange(len(differing)) + (number - (len(versions) - 1) / 2) * width
        # Where F1 is 0, a stroke of its colour says that there is a bar.
        bottom.barh(places, [max(values[number], 0.004) for values in differing.values()], width, color=colours[number])
    top.set_title("Macro F1", loc="left")
    top.set_yticks(range(len(versions)), [version.name for version in versions])
    if differing:
        bottom.set_title("F1 of the classes where they differ most (in brackets: images of the class)", loc="left")
    else:
        bottom.set_title("F1 of each class is the same in all versions", loc="left")
    bottom.set_yticks(range(len(differing)), [_class_name(comparison, index) for index in differing])
    bottom.set(xlim=(0, 1.09), xticks=np.linspace(0, 1, 6), xlabel="F1 (longer is better; colours as above)")
    bottom.xaxis.set_major_formatter(PercentFormatter(1))
    for axes, rows in ((top, len(versions)), (bottom, len(differing))):
        axes.set_ylim(max(rows, 1) - 0.45, -0.55)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
        axes.tick_params(axis="y", length=0)
    return figure


def draw_confusion(comparison: Comparison, version: Figures, classes: Sequence[int]) -> Figure:
    """Counts in the cells, coloured by the share of the actual class's images. Answers beyond `classes`: one column."""
    result, names = version.evaluation, [_short(comparison.labels[index]) for index in classes]
    counts = _count_matrix(comparison, version, classes)
    totals = {score.index: score.support for score in version.classes}
    images = np.array([[max(1, totals.get(index, 0))] for index in classes])
    columns = [*names, "any other"] if counts.shape[1] > len(names) else names
    side = 0.5 if len(names) <= 12 else 0.3
    margin = 0.085 * max(map(len, columns)) + 0.7
    size = (max(side * len(columns) + margin + 1.2, 6.2), side * len(names) + margin + 0.8)
    figure = Figure(figsize=size, layout="compressed")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(counts / images, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.6)
    fontsize = min(9.0, 0.85 * side * 72 / (0.65 * len(str(counts.max()))))
    for row, column in np.argwhere(counts):
        colour = "white" if counts[row, column] / images[row, 0] > 0.55 else "black"
        text = axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:d}", fontsize=fontsize, color=colour)
        text.set(ha="center", va="center")
    for place in range(len(names)):
        axes.add_patch(Rectangle((place, place), 1, 1, fill=False, edgecolor="#8c8c8c", linewidth=0.8))
    turn = 90 if max(map(len, columns)) > 3 else 0
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=turn, fontsize=8.5)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8.5)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="actual", aspect="equal")
    present = len(_present_classes(comparison))
    part = f"\n{len(classes)} of {present} classes, chosen by their mistakes" if len(classes) < present else ""
    axes.set_title(f"{version.name}: top-1 {result.top1:.1%} of {result.n} images{part}", fontsize=11)
    figure.colorbar(
        mesh, ax=axes, shrink=0.7, format=lambda value, _: f"{value:.0%}", label="share of the actual class"
    )
    return figure


def shown_classes(comparison: Comparison) -> list[int]:
    """The classes of every matrix: all that occur, or those of the most frequent mistakes of all versions together."""
    present = _present_classes(comparison)
    if len(present) <= MOST_CLASSES:
        return present
    places = {label: index for index, label in enumerate(comparison.labels)}
    mistakes: Counter[tuple[int, int]] = Counter()
    for version in comparison.versions:
        for cell in version.matrix:
            if cell.actual != cell.predicted:
                mistakes[places[cell.actual], places[cell.predicted]] += cell.count
    chosen: list[int] = []
    for pair, _ in sorted(mistakes.items(), key=lambda entry: (-entry[1], entry[0])):
        new = [index for index in pair if index not in chosen]
        if len(chosen) + len(new) <= MOST_CLASSES:
            chosen += new
    return sorted(chosen or present[:MOST_CLASSES])


def _present_classes(comparison: Comparison) -> list[int]:
    return sorted({score.index for version in comparison.versions for score in version.classes})


def _count_matrix(comparison: Comparison, version: Figures, classes: Sequence[int]) -> Array:
    """[actual, predicted]; one column more where answers lie beyond `classes`."""
    places = {comparison.labels[index]: place for place, index in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for cell in version.matrix:
        if cell.actual in places:
            counts[places[cell.actual], places.get(cell.predicted, len(classes))] += cell.count
    return counts if counts[:, -1].any() else counts[:, :-1]


def _differing_classes(comparison: Comparison) -> dict[int, list[float]]:
    """F1 in each version, of the classes with the largest spread, that first; equal ones are left out."""
    tables = [{score.index: score.f1 for score in version.classes} for version in comparison.versions]
    values = {index: [table.get(index, 0.0) for table in tables] for index in _present_classes(comparison)}
    spreads = {index: max(of_class) - min(of_class) for index, of_class in values.items()}
    ranked = sorted(spreads, key=lambda index: (-spreads[index], index))
    return {index: values[index] for index in ranked[:_F1_CLASSES] if spreads[index] > 1e-12}


def _class_name(comparison: Comparison, index: int) -> str:
    images = (score.support for version in comparison.versions for score in version.classes if score.index == index)
    return f"{_short(comparison.labels[index])} ({max(images)})"


def _short(label: str) -> str:
    """Cut in the middle: long labels often begin alike."""
    half = _LONGEST_LABEL // 2
    return label if len(label) <= _LONGEST_LABEL else f"{label[:half].rstrip()}…{label[1 - half :].lstrip()}"


def _version_colours(count: int) -> list[Colour]:
    palette: list[Colour] = [to_rgba(colour) for colour in color_sequences["okabe_ito"]]
    palette.remove(to_rgba("black"))
    return palette[:count] if count <= len(palette) else [_VIRIDIS(number / (count - 1)) for number in range(count)]


def _rating_colours(figure: Figure, axes: Axes, versions: Sequence[Figures]) -> list[Colour]:
    """With a scale beside the axes where a version has a rating: 1 to 5 where all are in there, else what there is."""
    ratings = [version.rating for version in versions if version.rating is not None]
    if not ratings:
        return [_GREY] * len(versions)
    is_stars = min(ratings) >= 1 and max(ratings) <= 5
    scale = Normalize(1, 5) if is_stars else Normalize(min(ratings), max(ratings))
    missing = " (grey: none)" if len(ratings) < len(versions) else ""
    figure.colorbar(ScalarMappable(scale, _VIRIDIS), ax=axes, label=f"mean rating{missing}", shrink=0.6, anchor=(0, 0))
    return [_GREY if version.rating is None else _VIRIDIS(float(scale(version.rating))) for version in versions]


def _add_sizes(figure: Figure, versions: Sequence[Figures], areas: Sequence[float]) -> None:
    """The smallest and the largest bubble with what they stand for."""
    by_size = sorted(zip((version.size_bytes for version in versions), areas, strict=True))
    handles = [
        Line2D([], [], ls="", marker="o", mfc="white", mec=_DARK, ms=math.sqrt(area), label=format_bytes(size))
        for size, area in dict([by_size[0], by_size[-1]]).items()
    ]
    spacing = {"labelspacing": 3.4, "borderpad": 1.2, "handletextpad": 1.6, "handlelength": 2.4}
    figure.legend(handles=handles, loc="outside right upper", title="size of the files", frameon=False, **spacing)


def _place_names(axes: Axes, versions: Sequence[Figures], points: Sequence[tuple[float, float]], radii: Array) -> None:
    """Each name beside its bubble, on the side where it covers least of bubbles, intervals, other names and the border.

    `radii` in points.
    """
    pixels = axes.figure.dpi / 72
    centres = axes.transData.transform(np.array(points))
    reaches = radii[:, np.newaxis] * pixels
    taken = list(map(Bbox, np.stack([centres - reaches, centres + reaches], axis=1)))
    for version, (time, _) in zip(versions, points, strict=True):
        ends = axes.transData.transform([(time, 100 * end) for end in version.top1_interval])
        taken.append(Bbox(ends + np.array([[-4 * pixels, 0], [4 * pixels, 0]])))
    for version, point, radius in zip(versions, points, radii, strict=True):
        tries = [_annotate(axes, version.name, point, radius + 5, *side) for side in _SIDES]
        boxes = [name.get_window_extent() for name in tries]
        best = min(range(len(tries)), key=lambda number: (_covered(boxes[number], taken, axes.bbox), number))
        taken.append(boxes[best])
        for name in tries[:best] + tries[best + 1 :]:
            name.remove()


def _annotate(axes: Axes, name: str, point: tuple[float, float], distance: float, right: float, up: float) -> Text:
    """`name` so many points away from `point`, as two lines that are aligned towards it."""
    text = axes.annotate(
        name.replace("@", "\n@"),
        point,
        (right * distance, up * distance),
        textcoords="offset points",
        ha=_HORIZONTAL[int(np.sign(right))],
        va=_VERTICAL[int(np.sign(up))],
        fontsize=9,
        zorder=4,
    )
    text.set_in_layout(False)
    return text


def _covered(box: Bbox, taken: Sequence[Bbox], inside: BboxBase) -> float:
    """Pixels² of `box` that lie on what is taken, or outside."""
    shared = [Bbox.intersection(box, other) for other in (*taken, inside)]
    areas = [overlap.width * overlap.height if overlap is not None else 0.0 for overlap in shared]
    return sum(areas[:-1]) + box.width * box.height - areas[-1]


def _render(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format=kind, dpi=150, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None
    )
    return buffer.getvalue()
