"""`headway quality MODEL`: how right the answers were, from the feedback in the database."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from app.cli.console import (
    JsonOption,
    Misuse,
    ModelsOption,
    emit,
    failing_cleanly,
    model_not_found,
    open_store,
    read_settings,
)
from app.errors import InvalidContent
from app.settings import Settings

_SHOWN_CONFUSIONS = 5
_COLUMNS = (
    ("accuracy", "accuracy"),
    ("top5_accuracy", "top-5"),
    ("macro_precision", "precision"),
    ("macro_recall", "recall"),
    ("macro_f1", "F1"),
    ("expected_calibration_error", "ECE"),
)


def quality(
    model: Annotated[str, typer.Argument(help="The name of the model.")],
    last: Annotated[int | None, typer.Option("--last", min=1, help="The newest so many labelled answers.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", min=0.001, help="Feedback of the last hours; 24.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Only of this version.")] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Only of answers under this alias.")] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, precision, recall, F1 and calibration of each version and alias, from the feedback that came in."""
    with failing_cleanly():
        if last is not None and hours is not None:
            raise Misuse("give --last or --hours, not both")
        found = _describe(read_settings(models=models), model, last, hours, version, alias)
        emit(as_json, found, lambda: _show(found))


def _describe(
    settings: Settings, model: str, last: int | None, hours: float | None, version: str | None, alias: str | None
) -> dict[str, Any]:
    from app.monitoring.reports import QualityReports, Window
    from app.registry.answers import Answers
    from app.storage.database import open_configured
    from app.storage.feedback import FeedbackStore

    store = open_store(settings)
    is_there = model in store.model_names()
    window = Window(last=last) if last is not None else Window(hours=hours or 24)
    with open_configured(settings) as database:
        if not is_there and not database.exists():
            raise model_not_found(store, model)
        if not database.exists():
            raise InvalidContent(f"{database.location}: there is no database; feedback makes it (POST /feedback)")
        reports = QualityReports(FeedbackStore(database), Answers(store).labels_of)
        found = reports.describe(model, window, time.time_ns() // 1_000_000, version, alias)
    # Feedback on a model that was removed is kept for a while.
    if not is_there and not found["groups"]:
        raise model_not_found(store, model)
    return found


def _show(found: dict[str, Any]) -> Group:
    window = found["window"]
    span = f"the last {window['last']}" if "last" in window else f"the last {window['hours']:g} h"
    if not found["groups"]:
        return Group(f"no feedback for {found['model']}")
    parts: list[Any] = [f"{found['model']}, {span}", ""]
    classifiers = [group for group in found["groups"] if "classification" in group]
    if classifiers:
        parts.append(_classification_table(classifiers))
        parts += [line for group in classifiers for line in _confusions(group)]
    regressions = [group for group in found["groups"] if "regression" in group]
    if regressions:
        parts.append(_regression_table(regressions))
    rest = [group for group in found["groups"] if group["n"] == 0]
    parts += [f"{_name(group)}: no labelled answers in this window" for group in rest]
    return Group(*parts)


def _classification_table(groups: list[dict[str, Any]]) -> Table:
    table = Table("version", "alias", "n", *(title for _, title in _COLUMNS), box=None)
    for group in groups:
        figures = group["classification"]
        low, high = figures["accuracy_interval"]
        cells = [_ratio(figures[name]) for name, _ in _COLUMNS]
        cells[0] += f" ({low:.3f}–{high:.3f})"
        table.add_row(group["version"], group["alias"] or "–", str(group["n"]), *cells)
    return table


def _confusions(group: dict[str, Any]) -> list[str]:
    cells = [cell for cell in group["classification"]["confusion"] if cell["actual"] != cell["predicted"]]
    return [
        f"{_name(group)}: {cell['count']} × {cell['actual']} taken for {cell['predicted']}"
        for cell in cells[:_SHOWN_CONFUSIONS]
    ]


def _regression_table(groups: list[dict[str, Any]]) -> Table:
    table = Table("version", "alias", "n", "MAE", "RMSE", "R²", box=None)
    for group in groups:
        figures = [group["regression"][name] for name in ("mae", "rmse", "r2")]
        table.add_row(
            group["version"],
            group["alias"] or "–",
            str(group["n"]),
            *("–" if figure is None else f"{figure:.4g}" for figure in figures),
        )
    return table


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _name(group: dict[str, Any]) -> str:
    return f"{group['version']} ({group['alias'] or 'no alias'})"
