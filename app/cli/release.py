"""`headway release …`: which version gets which traffic. Works on the directory itself; running servers follow it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.registry.releases.changes import (
    AlsoServe,
    Change,
    Drop,
    Promote,
    Rollback,
    SetAlias,
    SetAnalysis,
    SetLoad,
    SetShadow,
)
from app.registry.releases.editor import CurrentRelease, Note, ReleaseEditor, user_name
from app.registry.releases.release import CANARY, HistoryEntry, Load, Release
from app.registry.versions import MODEL_NAME, ModelRef

cli = typer.Typer(help="Change which version of a model gets which traffic, and take it back.", no_args_is_help=True)

TargetArgument = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="name@version; an alias will do.")]
ModelArgument = Annotated[str, typer.Argument(help="The name of the model.")]
WhyOption = Annotated[str | None, typer.Option("--why", help="The reason, for the history.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Who makes the change. [default: your user name]")]
UnverifiedOption = Annotated[
    bool, typer.Option("--unverified", help="Also a version without golden requests may become stable.")
]


@cli.command()
def status(
    model: Annotated[str | None, typer.Argument(help="One model, with its history; all models if left out.")] = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is released: each alias with its version and its share of the traffic."""
    editor = _editor(models)
    with failing_cleanly():
        names = [_name(model)] if model is not None else editor.list_models()
        found = [editor.read(name) for name in names]
    data = [current.describe() for current in found]
    if model is not None:
        emit(as_json, data[0], lambda: Group(_table(found), "", _history_table(found[0].release)))
    else:
        emit(as_json, data, lambda: _table(found))


@cli.command("set")
def set_alias(
    target: TargetArgument,
    alias: Annotated[str | None, typer.Option("--alias", help="The alias that shall name the version.")] = None,
    weight: Annotated[float | None, typer.Option(help="Its percentage of the traffic that names no version.")] = None,
    also_serve: Annotated[bool, typer.Option("--also-serve", help="Instead: addressable by its number only.")] = False,
    why: WhyOption = None,
    by: ByOption = None,
    unverified: UnverifiedOption = False,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias name a version."""
    name, version = _target(target)
    if (alias is None) == (not also_serve) or (also_serve and weight is not None):
        with failing_cleanly():
            raise Misuse("give either --alias, with or without --weight, or --also-serve")
    change: Change = AlsoServe(version) if alias is None else SetAlias(alias, version, weight)
    _change(models, name, change, why, by, as_json, unverified)


@cli.command()
def canary(
    target: TargetArgument,
    weight: Annotated[float, typer.Option(help="Its percentage of the traffic; 0: addressable only.")],
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a version a part of the traffic; the rest stays with stable."""
    name, version = _target(target)
    _change(models, name, SetAlias(CANARY, version, weight), why, by, as_json)


@cli.command()
def shadow(
    target: TargetArgument,
    share: Annotated[float, typer.Option(help="The percentage of the traffic of which a copy runs on it.")],
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a copy of a part of the traffic on a version, after the answer is sent. End it with: drop MODEL shadow."""
    name, version = _target(target)
    _change(models, name, SetShadow(version, share), why, by, as_json)


@cli.command()
def promote(
    target: TargetArgument,
    why: WhyOption = None,
    by: ByOption = None,
    unverified: UnverifiedOption = False,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version stable. A canary or shadow of that version ends."""
    name, version = _target(target)
    _change(models, name, Promote(version), why, by, as_json, unverified)


@cli.command()
def rollback(
    model: ModelArgument,
    to: Annotated[int | None, typer.Option(help="The revision to bring back; else the one before.")] = None,
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring back the aliases of the newest revision that had another stable version. A second one goes further back."""
    _change(models, model, Rollback(to), why, by, as_json)


@cli.command()
def drop(
    model: ModelArgument,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="An alias, 'shadow', or a version that is also served.")],
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an alias, the shadow, or a version that is also served out of the release."""
    _change(models, model, Drop(name), why, by, as_json)


@cli.command()
def load(
    model: ModelArgument,
    when: Annotated[Load, typer.Argument(help="eager: at start. lazy: by the first request. pinned: never unloaded.")],
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say when a model is loaded."""
    _change(models, model, SetLoad(when), why, by, as_json)


@cli.command()
def judge(
    model: ModelArgument,
    rollback: Annotated[
        bool | None,
        typer.Option("--rollback/--no-rollback", help="Whether a worse canary loses its traffic by itself."),
    ] = None,
    errors_margin: Annotated[float | None, typer.Option(help="By how much more it may fail, as 0.01.")] = None,
    latency_margin: Annotated[float | None, typer.Option(help="The same, of answers slower than a time.")] = None,
    accuracy_margin: Annotated[
        float | None, typer.Option(help="The same, of answers that feedback calls wrong.")
    ] = None,
    false_alarm: Annotated[float | None, typer.Option(help="Chance that one which is not worse is taken back.")] = None,
    min_requests: Annotated[int | None, typer.Option(help="Requests of each side before a verdict.")] = None,
    min_labelled: Annotated[int | None, typer.Option(help="Labelled answers of each side before a verdict.")] = None,
    why: WhyOption = None,
    by: ByOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how canaries of a model are held against stable. What is left out stays."""
    asked = {
        "rollback": rollback,
        "errors_margin": errors_margin,
        "latency_margin": latency_margin,
        "accuracy_margin": accuracy_margin,
        "false_alarm": false_alarm,
        "min_requests": min_requests,
        "min_labelled": min_labelled,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    _change(models, model, SetAnalysis(given), why, by, as_json)


def _change(
    models: Any, name: str, change: Change, why: str | None, by: str | None, as_json: bool, unverified: bool = False
) -> None:
    editor = _editor(models)
    with failing_cleanly():
        current = editor.change(_name(name), change, Note(by or user_name(), why), unverified=unverified)
    emit(as_json, current.describe(), lambda: Text(_sentence(current)))


def _editor(models: Any) -> ReleaseEditor:
    with failing_cleanly():
        return ReleaseEditor(open_store(read_settings(models=models)))


def _target(text: str) -> tuple[str, str]:
    with failing_cleanly():
        try:
            ref = ModelRef.parse(text)
        except ValueError as exc:
            raise Misuse(f"{text!r}: {exc}") from exc
        if ref.tag is None:
            raise Misuse(f"{text!r}: say which version, as {text}@1.2.0")
        return ref.name, ref.tag


def _name(text: str) -> str:
    if not MODEL_NAME.fullmatch(text):
        raise Misuse(f"{text!r}: write the model's name alone, as digits")
    return text


def _sentence(current: CurrentRelease) -> str:
    release = current.release
    assert release is not None
    weights = release.weights
    parts = [f"{alias} {entry.version} ({weights[alias]:g} %)" for alias, entry in release.aliases.items()]
    parts += [f"shadow {release.shadow.version} ({release.shadow.share:g} % copied)"] if release.shadow else []
    parts += [f"also served {', '.join(release.also_serve)}"] if release.also_serve else []
    return f"{current.model} is at revision {release.revision}: {', '.join(parts)}"


def _table(found: list[CurrentRelease]) -> Table:
    table = _new_table("model", "revision", "alias", "version", "traffic")
    for current in found:
        release = current.release
        if release is None:
            table.add_row(current.model, "-", "", "no final version to release", "")
            continue
        revision = str(release.revision) if current.is_explicit else "implicit"
        rows = [(alias, entry.version, f"{release.weights[alias]:g} %") for alias, entry in release.aliases.items()]
        rows += [("shadow", release.shadow.version, f"{release.shadow.share:g} % copied")] if release.shadow else []
        rows += [("-", version, "by number") for version in release.also_serve]
        for number, row in enumerate(rows):
            table.add_row(current.model if number == 0 else "", revision if number == 0 else "", *row)
    return table


def _history_table(release: Release | None) -> Table:
    table = _new_table("revision", "stable", "when", "by", "why")
    if release is None:
        return table
    changed = dict(release.changed) if release.changed is not None else {}
    now = HistoryEntry(revision=release.revision, aliases=release.aliases, **changed)
    for entry in (now, *release.history):
        stable = entry.aliases.get("stable")
        at = entry.at.strftime("%Y-%m-%d %H:%M") if entry.at is not None else "-"
        by, why = escape(entry.by or "-"), escape(entry.why or "-")
        table.add_row(str(entry.revision), stable.version if stable is not None else "-", at, by, why)
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column == "traffic" else "left")
    return table
