"""What all commands share: settings from flags, tables and JSON on stdout, errors on stderr with an exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from app.errors import HeadwayError, InvalidContent, ModelNotFound
from app.registry.store import Store
from app.registry.storing.locking import sync_directory, writing
from app.settings import Settings

MISUSE, FAILURE = 2, 1

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

ModelsOption = Annotated[
    Path | None, typer.Option("--models", help="Registry directory. [env: HEADWAY_MODELS; default: models]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_settings(**flags: Any) -> Settings:
    """Settings from the environment with the flags that were given on top; a wrong value ends with exit code 2."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as exc:
        for problem in exc.errors(include_url=False):
            name = str(problem["loc"][0]).lower() if problem["loc"] else ""
            where = f"--{name.replace('_', '-')}" if name in given else f"HEADWAY_{name.upper()}" if name else ""
            value = f" (it says {problem['input']!r})" if problem["loc"] else ""
            print_error(f"{where}: {problem['msg'].removeprefix('Value error, ')}{value}".removeprefix(": "))
        raise typer.Exit(MISUSE) from exc


def open_store(settings: Settings) -> Store:
    """Raises InvalidContent where there is no such directory."""
    if not settings.models.is_dir():
        raise InvalidContent(f"{settings.models}: there is no such registry directory; name it with --models")
    return Store(settings.models, settings.releases)


@contextmanager
def receiving_store(settings: Settings) -> Iterator[Store]:
    """For what brings versions in: a registry directory that is not there yet is made, and taken away if nothing came.

    Raises InvalidContent where there is no directory to make it in, RegistryReadOnly.
    """
    root = settings.models
    is_made = not os.path.lexists(root)
    if is_made:
        if not root.parent.is_dir():
            raise InvalidContent(f"{root}: there is no such registry directory, and no {root.parent} to make it in")
        with writing(root.parent):
            root.mkdir(exist_ok=True)
            sync_directory(root.parent)
    try:
        yield open_store(settings)
    finally:
        if is_made:
            with suppress(OSError):  # it is not empty
                root.rmdir()
            if root.is_dir():
                err.print(f"made the registry directory {root}", markup=False)


def print_error(message: str) -> None:
    err.print("[bold red]error:[/]", end=" ")
    err.print(message, markup=False)


class Misuse(Exception):
    """What was typed cannot be meant: options that do not go together, or a value that is none."""


@contextmanager
def failing_cleanly() -> Iterator[None]:
    """Expected failures become one line on stderr and exit code 1; misuse becomes 2, as of options that are unknown."""
    try:
        yield
    except Misuse as exc:
        print_error(str(exc))
        raise typer.Exit(MISUSE) from exc
    except HeadwayError as exc:
        print_error(str(exc))
        raise typer.Exit(FAILURE) from exc
    except KeyboardInterrupt as exc:
        raise typer.Exit(130) from exc


def emit(as_json: bool, data: Any, table: Callable[[], object]) -> None:
    """Print `data` as JSON, or what `table` makes of it for people."""
    if as_json:
        typer.echo(json.dumps(data, ensure_ascii=False, indent=2))
    else:
        out.print(table())


def model_not_found(store: Store, model: str) -> ModelNotFound:
    """The refusal of a name that the registry does not have."""
    hint = "; name a version with --version" if "@" in model else ""
    known = ", ".join(store.model_names()) or "none"
    return ModelNotFound(f"there is no model {model!r} in {store.root}; it has {known}{hint}")
