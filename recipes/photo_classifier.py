"""What every recipe of a photo classifier writes down: golden answers, the evaluation, the rows of its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import load
from recipes import machine, photos, registry
from recipes.measure import Figures

DATA = "NIPS 2017 adversarial competition development set, {n} clean photographs"
GOLDEN = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.05}
LARGEST_LOSS = 0.01
LIMITS = """\
One label for everyday objects and animals in a photo. It knows its 1000 classes and nothing else, neither people nor
text; a photo of anything else still gets a label, often with little confidence. Confidences are not calibrated.
Close relatives are confused: for the striped cat in `golden/cat.jpg` the confidence is split among tiger cat, Egyptian
cat and tabby cat, as it is by the float32 parent."""


def record_golden(directory: Path) -> None:
    """What the version in `directory` answers to the free photos, through the served path."""
    model = load(f"{directory.parent.name}@{directory.name}", models=directory.parent.parent)
    requests = []
    for name in photos.FREE_PHOTOS:
        path = directory / "golden" / name
        photos.write_free_photo(name, path)
        requests.append({"image": name, "top": registry.top_of(model.predict(path))})
    registry.write_golden(directory, requests)


def refuse_loss(figures: Figures) -> None:
    lost = figures.fp32.top1 - figures.int8.top1
    if lost > LARGEST_LOSS:
        raise SystemExit(f"INT8 loses {lost:.2%} top-1 against float32; at most {LARGEST_LOSS:.0%} may be lost")


def evaluation(figures: Figures, date: str, served_with: Sequence[str], *notes: str) -> dict[str, Any]:
    """The entry of model.yaml; `served_with` are the packages whose versions it names."""
    int8 = figures.int8
    latency = {"p50": int8.latency_ms["p50"], "p95": int8.latency_ms["p95"]}
    latency |= {f"run_{name}": value for name, value in figures.int8_run_ms.items()}
    return {
        "data": DATA.format(n=int8.n),
        "n": int8.n,
        "top1": round(int8.top1, 4),
        "top5": round(int8.top5, 4),
        "macro_f1": round(int8.macro_f1, 4),
        "latency_ms": latency,
        "rss_mb": figures.rss_mb,
        "threads": 1,
        **machine.describe_machine(served_with),
        "date": date,
        "note": _note(figures, notes),
    }


def card_rows(figures: Figures) -> list[tuple[str, object]]:
    int8, fp32 = figures.int8, figures.fp32
    made = machine.describe_machine(())
    return [
        ("Data", DATA.format(n=int8.n) + "; easier than the ImageNet validation set"),
        ("Top-1, top-5", f"{int8.top1:.1%}, {int8.top5:.1%}"),
        ("Top-1, top-5 of the float32 parent in the same run", f"{fp32.top1:.1%}, {fp32.top5:.1%}"),
        ("Top-1 with plain image processing", f"{figures.plain_top1:.1%}"),
        ("The model alone, one thread", f"p50 {figures.int8_run_ms['p50']} ms"),
        ("The float32 parent alone, one thread", f"p50 {figures.fp32_run_ms['p50']} ms"),
        ("With decoding and processing", f"p50 {int8.latency_ms['p50']} ms, p95 {int8.latency_ms['p95']} ms"),
        ("Memory that loading adds", f"{figures.rss_mb} MB"),
        ("CPU", f"{made['cpu']} ({', '.join(made['cpu_features'])})"),
        ("Portability", figures.portability or "not measured"),
    ]


def card_licence() -> str:
    photographers = ", ".join(f"{name} by {author}" for name, (_, author) in photos.FREE_PHOTOS.items())
    return f"Apache-2.0; the photos in golden/ are CC0, carried by scikit-image: {photographers}"


def report(figures: Figures) -> str:
    return "\n".join(
        [
            f"top-1 of {figures.int8.n}: INT8 {figures.int8.top1:.2%}, float32 {figures.fp32.top1:.2%}, "
            f"INT8 with plain image processing {figures.plain_top1:.2%}",
            f"model alone, one thread: INT8 {figures.int8_run_ms} ms, float32 {figures.fp32_run_ms} ms",
            f"with decoding: {figures.int8.latency_ms} ms; loading adds {figures.rss_mb} MB",
            f"portability: {figures.portability or 'not measured'}",
        ]
    )


def _note(figures: Figures, notes: Sequence[str]) -> str:
    parts = [
        f"latency_ms p50, p95: decoding and processing with the model; run_p50, run_p95: the model alone; "
        f"float32 parent in the same run: top1 {figures.fp32.top1:.4f}, "
        f"run_p50 {figures.fp32_run_ms['p50']} ms; top1 with plain image processing {figures.plain_top1:.4f}",
        *notes,
    ]
    if figures.portability:
        parts.append(str(figures.portability))
    return "; ".join(parts)
