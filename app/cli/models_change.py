"""`headway models diff | remove | undelete | backup | restore`: versions compared, taken out, brought back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from app.cli.console import (
    JsonOption,
    Misuse,
    ModelsOption,
    emit,
    failing_cleanly,
    open_store,
    read_settings,
    receiving_store,
)
from app.errors import RegistryError, VersionNotFound
from app.registry.drafting.difference import Bump, Change, Content, compare, needed_bump
from app.registry.store import Store
from app.registry.storing.backup import Restored, restore_backup, write_backup
from app.registry.storing.intake import Intake
from app.registry.versions import ModelRef, Version, is_version

TargetArgument = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="name@version")]
_MAX_LABELS_SHOWN = 10


def diff(
    old: Annotated[str, typer.Argument(metavar="MODEL@OLD", help="name@version")],
    new: Annotated[str, typer.Argument(metavar="MODEL@NEW", help="name@version")],
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What differs between two versions, and whether that is a patch, a minor or a major step."""
    with failing_cleanly():
        store = open_store(read_settings(models=models))
        changes = compare(_content(store, old), _content(store, new))
        data = {"old": old, "new": new, "bump": str(needed_bump(changes)), "changes": [_plain(one) for one in changes]}
        emit(as_json, data, lambda: _diff_table(old, new, changes))


def remove(
    target: TargetArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also the version that serves because there is no release.yaml.")
    ] = False,
    models: ModelsOption = None,
) -> None:
    """Move a version that no release names to the bin, from where it can be had again for HEADWAY_BIN_DAYS days."""
    settings = read_settings(models=models)
    with failing_cleanly():
        name, version = _exact(target)
        intake = Intake(open_store(settings), bin_days=settings.bin_days)
        intake.remove(name, version, force=force)
        intake.sweep(time.time())
    days = f"{settings.bin_days:g} days"
    typer.echo(f"removed {target}; for {days} `headway models undelete {target}` brings it back")


def undelete(target: TargetArgument, models: ModelsOption = None) -> None:
    """Bring a removed version back from the bin."""
    with failing_cleanly():
        name, version = _exact(target)
        Intake(open_store(read_settings(models=models))).undelete(name, version)
    typer.echo(f"{target} is back")


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="The archive to write.")],
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Names; all models if left out.")
    ] = None,
    models: ModelsOption = None,
) -> None:
    """Every version with its release, and the digest of each file, in one archive."""
    with failing_cleanly():
        versions = write_backup(open_store(read_settings(models=models)), file, only or ())
    typer.echo(f"{file}: {', '.join(versions)}")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar.gz", help="What headway models backup wrote.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a release.yaml or registry.yaml that differs.")
    ] = False,
    models: ModelsOption = None,
) -> None:
    """Bring back what a backup holds. All of it is verified first; a published version is never replaced."""
    settings = read_settings(models=models)
    with failing_cleanly(), receiving_store(settings) as store:
        restored = restore_backup(store, file, force=force)
    typer.echo(_describe(restored))


def _describe(restored: Restored) -> str:
    releases = f"; releases: {', '.join(restored.releases)}" if restored.releases else ""
    return f"restored {', '.join(restored.versions) or 'no version: all were there'}{releases}"


def _exact(target: str) -> tuple[str, str]:
    try:
        ref = ModelRef.parse(target)
    except ValueError as exc:
        raise Misuse(f"{target!r}: {exc}") from exc
    if ref.tag is None or not is_version(ref.tag):
        raise Misuse(f"{target!r}: name the exact version, as {ref.name}@1.0.0")
    return ref.name, ref.tag


def _content(store: Store, target: str) -> Content:
    name, text = _exact(target)
    found = store.version(name, Version.parse(text))
    if not found.path.is_dir():
        known = ", ".join(map(str, store.version_names(name))) or "none"
        raise VersionNotFound(f"model {name!r} has no version {text} in {store.root}; it has {known}")
    if found.manifest is None:
        raise RegistryError(found.error or f"{found.path}: cannot be read")
    return Content.read(found.path, found.manifest)


def _plain(change: Change) -> dict[str, Any]:
    return {
        "section": change.section,
        "key": change.key,
        "old": change.old,
        "new": change.new,
        "bump": str(change.bump),
    }


def _diff_table(old: str, new: str, changes: list[Change]) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("section", "key", old, new, "step"):
        table.add_column(escape(column), overflow="fold")
    labels = 0
    for change in changes:
        labels += change.section == "labels"
        if change.section == "labels" and labels > _MAX_LABELS_SHOWN:
            continue
        table.add_row(
            change.section, escape(change.key), escape(change.old or "-"), escape(change.new or "-"), str(change.bump)
        )
    if labels > _MAX_LABELS_SHOWN:
        table.add_row("labels", f"and {labels - _MAX_LABELS_SHOWN} more", "", "", str(Bump.MAJOR))
    bump = needed_bump(changes)
    return Group(table, "nothing differs" if bump is Bump.NONE else f"at least a {bump} step")
