"""`headway models list | show | verify`: the registry directory, without a server. models_*.py change it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from app.cli.console import FAILURE, JsonOption, Misuse, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.errors import HeadwayError, ModelNotFound, RegistryError, VersionNotFound
from app.registry.releases.release import Release
from app.registry.store import Store
from app.registry.versions import ModelRef, Version, is_version

cli = typer.Typer(
    help="List, show, verify, add, compare and remove the models of a registry directory.", no_args_is_help=True
)


@cli.command("list")
def list_models(models: ModelsOption = None, as_json: JsonOption = False) -> None:
    """Every version of every model, in semantic order, and what its release gives it."""
    store = _store(models)
    rows = [row for name in store.model_names() for row in _rows(store, name)]
    emit(as_json, rows, lambda: _list_table(rows))


@cli.command()
def show(
    model: Annotated[str, typer.Argument(help="name or name@version")],
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a version says of itself; without a version, the stable one."""
    store = _store(models)
    with failing_cleanly():
        name, version = _choose(store, model)
        found = store.version(name, version)
        if found.manifest is None:
            raise RegistryError(found.error or f"{found.path}: cannot be read")
        data = found.manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
        emit(as_json, data, lambda: _detail(data))


@cli.command()
def verify(
    model: Annotated[str | None, typer.Argument(help="name or name@version; all models if left out")] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load every version as the server would: digests, signature, labels, golden tests. Exit code 1 if one fails."""
    store = _store(models)
    with failing_cleanly():
        targets = _targets(store, model)
    results = [_verify(store, name, version) for name, version in targets]
    emit(as_json, results, lambda: _verify_table(results))
    if any(result["error"] for result in results):
        raise typer.Exit(FAILURE)


def _store(models: Any) -> Store:
    with failing_cleanly():
        return open_store(read_settings(models=models))


def _choose(store: Store, text: str) -> tuple[str, Version]:
    try:
        ref = ModelRef.parse(text)
    except ValueError as exc:
        raise Misuse(f"{text!r}: {exc}") from exc
    versions = store.version_names(ref.name)
    if ref.name not in store.model_names():
        raise ModelNotFound(f"there is no model {ref.name!r} in {store.root}; it has {', '.join(store.model_names())}")
    tag = ref.tag
    if tag is None or not is_version(tag):
        release, _ = store.release(ref.name)
        entry = release.aliases.get(tag or "stable") if release else None
        tag = entry.version if entry else tag
    for version in versions:
        if version.text == tag:
            return ref.name, version
    raise VersionNotFound(f"model {ref.name!r} has no version {tag}; it has {', '.join(map(str, versions)) or 'none'}")


def _targets(store: Store, model: str | None) -> list[tuple[str, Version]]:
    if model is not None and "@" in model:
        return [_choose(store, model)]
    if model is not None:
        _choose(store, model)
    names = [model] if model is not None else store.model_names()
    return [(name, version) for name in names for version in store.version_names(name)]


def _rows(store: Store, name: str) -> list[dict[str, Any]]:
    release: Release | None = None
    try:
        release, _ = store.release(name)
        error = None
    except RegistryError as exc:
        error = str(exc)
    rows: list[dict[str, Any]] = []
    for version in store.version_names(name):
        found = store.version(name, version)
        manifest = found.manifest
        rows.append(
            {
                "model": name,
                "version": version.text,
                "released": _released(release, version.text),
                "task": manifest.task if manifest else None,
                "runtime": manifest.runtime if manifest else None,
                "bytes": sum(entry.bytes for entry in manifest.files.values()) if manifest else None,
                "error": found.error or error,
            }
        )
    return rows


def _released(release: Release | None, version: str) -> list[str]:
    if release is None:
        return []
    aliases = [alias for alias, entry in release.aliases.items() if entry.version == version]
    return aliases or (["served"] if version in release.also_serve else [])


def _list_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "version", "released", "task", "runtime", "size"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for row in rows:
        size = f"{row['bytes'] / 1e6:.1f} MB" if row["bytes"] is not None else ""
        released = ", ".join(row["released"]) or "-"
        table.add_row(row["model"], row["version"], released, row["task"] or "", row["runtime"] or "", size)
        if row["error"]:
            table.add_row("", f"[red]{escape(row['error'])}[/]")
    return table


def _detail(data: dict[str, Any]) -> Group:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in data.items():
        for number, line in enumerate(_lines(value)):
            table.add_row(key if number == 0 else "", escape(line))
    return Group(table)


def _lines(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}: {_inline(item)}" for key, item in value.items()]
    if isinstance(value, list):
        return [_inline(item) for item in value]
    return [str(value)]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    return str(value)


def _verify(store: Store, name: str, version: Version) -> dict[str, Any]:
    from app.registry.servables.opening import Opener

    error = None
    try:
        Opener(store).open_directory(store.root / name / version.text).close()
    except (HeadwayError, OSError) as exc:
        error = str(exc)
    except Exception as exc:  # as Registry: a backend may raise anything on a damaged file
        error = f"{type(exc).__name__}: {exc}"
    return {"model": name, "version": version.text, "ok": error is None, "error": error}


def _verify_table(results: list[dict[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for result in results:
        state = "[green]ok[/]" if result["ok"] else f"[red]{escape(result['error'])}[/]"
        table.add_row(f"{result['model']}@{result['version']}", state)
    return table
