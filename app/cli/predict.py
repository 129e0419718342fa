"""`headway predict`: one answer, in process."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from app.cli.console import JsonOption, ModelsOption, emit, failing_cleanly, read_settings
from app.errors import InvalidContent
from app.processing.tensor import tensors_to_json


def predict(
    model: Annotated[str, typer.Argument(help="name, name@version or name@alias")],
    content: Annotated[
        Path | None, typer.Argument(help="An image, a text, or a JSON file of rows of numbers; - reads stdin.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="A text, for a model of texts.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many labels to show.")] = 5,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer one photo or text, or rows of numbers, with a model of the registry; no server is needed."""
    from app.library import load
    from app.processing.classification import Prediction

    if (content is None) == (text is None):
        raise typer.BadParameter("say what shall be answered: a file, or --text", param_hint="CONTENT")
    settings = read_settings(models=models)
    with failing_cleanly():
        loaded = load(model, models=settings.models)
        if content is None:
            if loaded.kind != "text":
                raise InvalidContent(f"{loaded.name} takes no texts: give it the path of a file")
            given: Any = text
        else:
            data = _read(content)
            given = _rows(data, content) if loaded.kind == "tensor" else data
        result = loaded.predict(given, top_k)
        is_plural = isinstance(result, list) and not any(isinstance(row, Prediction) for row in result)
        rows: list[Any] = result if is_plural else [result]  # type: ignore[assignment]
        answer = {"model": loaded.name, "version": loaded.version, "results": [_plain(row) for row in rows]}
        emit(as_json, answer, lambda: _table(answer))


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc


def _rows(data: bytes, path: Path) -> Any:
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidContent(f"{path}: this model takes numbers: a JSON file like [[0, 1, 2]] ({exc})") from exc
    return loaded.get("inputs", loaded) if isinstance(loaded, dict) else loaded


def _plain(row: Any) -> Any:
    if isinstance(row, list):
        return [asdict(prediction) for prediction in row]
    if isinstance(row, dict):
        return tensors_to_json(row)[0]
    return row if math.isfinite(row) else None  # JSON has no NaN


def _table(answer: dict[str, Any]) -> Table:
    table = Table(title=f"{answer['model']}@{answer['version']}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    results = answer["results"]
    if len(results) > 1:
        table.add_column("row", justify="right")
    if not results or not isinstance(results[0], list):
        table.add_column("answer")
    else:
        table.add_column("label")
        table.add_column("confidence", justify="right")
        table.add_column("")
    for number, result in enumerate(results):
        prefix = [str(number)] if len(results) > 1 else []
        if not isinstance(result, list):
            table.add_row(*prefix, escape(str(result)))
            continue
        for prediction in result:
            confidence = prediction["confidence"]
            share = f"{confidence:.1%}" if confidence is not None else "not finite"
            table.add_row(*prefix, escape(prediction["label"]), share, "█" * round(30 * (confidence or 0)))
    return table
