"""`headway models add`: a version from a bare model file, or from a directory that has its model.yaml."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli.console import JsonOption, ModelsOption, emit, failing_cleanly, open_store, read_settings
from app.errors import InvalidContent, VersionRefused
from app.registry.archive import Limits
from app.registry.difference import Bump, bumped
from app.registry.intake import Intake, Published, Staged
from app.registry.store import Store
from app.registry.versions import MODEL_NAME, Version
from app.settings import Settings

_FIRST_VERSION = "1.0.0"
# The directory is the user's own: the disk is limit enough.
_NO_LIMITS = Limits(max_bytes=1 << 62, max_files=1_000_000)
_PHOTO, _ANSWER, _GOLDEN = "Photos", "Answer", "Golden requests"


def add(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A model file, or a version's directory.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Its version. [default: 1.0.0 for a new model]")
    ] = None,
    bump: Annotated[
        Literal["major", "minor", "patch"] | None, typer.Option("--bump", help="The step from the newest version.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the weights.")] = "unknown",
    labels: Annotated[
        Path | None, typer.Option("--labels", help="One label a line: a classifier.", rich_help_panel=_ANSWER)
    ] = None,
    activation: Annotated[
        Literal["none", "softmax", "sigmoid"] | None,
        typer.Option("--activation", help="What makes the scores probabilities.", rich_help_panel=_ANSWER),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="The output that is the answer.", rich_help_panel=_ANSWER)
    ] = None,
    task: Annotated[
        Literal["image-classification", "text-classification", "tabular-classification", "regression", "tensor"] | None,
        typer.Option("--task", help="What the model does, where the rest does not tell.", rich_help_panel=_ANSWER),
    ] = None,
    content: Annotated[
        Literal["image", "tensor"] | None,
        typer.Option("--content", help="What callers send.", rich_help_panel=_PHOTO),
    ] = None,
    resize: Annotated[
        int | None, typer.Option("--resize", help="Length of the shorter side.", rich_help_panel=_PHOTO)
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option("--crop", help="Side of the centre crop. [default: the input's]", rich_help_panel=_PHOTO),
    ] = None,
    filter_: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
        typer.Option("--filter", help="Of the resize.", rich_help_panel=_PHOTO),
    ] = None,
    colour: Annotated[
        Literal["RGB", "BGR", "GRAY"] | None,
        typer.Option("--colour", help="Order of the channels.", rich_help_panel=_PHOTO),
    ] = None,
    layout: Annotated[
        Literal["NHWC", "NCHW"] | None,
        typer.Option("--layout", help="Order of the axes. [default: the input's]", rich_help_panel=_PHOTO),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            "--normalise",
            help="in_graph, or MEAN/SCALE for (x - mean) / scale with x in 0…255, as 127/128 or "
            "123.7,116.3,103.5/58.4,57.1,57.4.",
            rich_help_panel=_PHOTO,
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            "--golden",
            help="Directory: golden.json and its images, or photos or JSON files whose answers are recorded now.",
            rich_help_panel=_GOLDEN,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference of an answer.", rich_help_panel=_GOLDEN)
    ] = 0.01,
    batch_axis: Annotated[
        Literal["auto", "0", "none"], typer.Option("--batch-axis", help="Whether each row has its own answer.")
    ] = "auto",
    shared: Annotated[
        list[str] | None, typer.Option("--shared", help="An input that all rows of a call share; may be repeated.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option("--max-batch-size", min=1, help="Rows of one run.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model.yaml, and add nothing.")] = False,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a version: described, tried as the server would load it, and published whole. No traffic goes to it yet."""
    settings = read_settings(models=models)
    with failing_cleanly():
        store = open_store(settings)
        intake = Intake(store, bin_days=settings.bin_days)
        intake.sweep(time.time())
        if source.is_dir():
            _refuse_flags(
                labels=labels,
                activation=activation,
                output=output,
                task=task,
                content=content,
                resize=resize,
                crop=crop,
                filter=filter_,
                colour=colour,
                layout=layout,
                normalise=normalise,
                golden=golden,
                shared=shared or None,
            )
            staged = intake.copy_in(source, _NO_LIMITS)
            _check_directory(staged, name, version)
            if bump is not None:
                _check_bump(store, staged, bump)
        else:
            staged = _draft(
                intake,
                source,
                name=_name(name),
                version=_version(store, _name(name), version, bump),
                labels=labels,
                task=task,
                output=output,
                activation=activation,
                content=content,
                image=_image(
                    resize=resize, crop=crop, filter=filter_, colour=colour, layout=layout, normalise=normalise
                ),
                batch_axis=batch_axis,
                shared=tuple(shared or ()),
                max_batch_size=max_batch_size,
                golden=golden,
                tolerance=tolerance,
                licence=licence,
            )
        with staged:
            if dry_run:
                typer.echo((staged.directory / "model.yaml").read_text(encoding="utf-8"), nl=False)
                return
            published = intake.publish(staged)
    emit(as_json, _plain(published), lambda: _sentence(published, settings, store))


def _draft(intake: Intake, source: Path, **wishes: Any) -> Staged:
    from app.registry.draft import Draft, Wishes

    draft = Draft(source, Wishes(**wishes))
    try:
        return intake.build(wishes["name"], wishes["version"], draft.write)
    except VersionRefused as exc:
        raise InvalidContent(f"{source}: {exc}") from exc


def _name(name: str | None) -> str:
    if name is None:
        raise InvalidContent("a model file needs a name: say --name")
    if not MODEL_NAME.fullmatch(name):
        raise InvalidContent(f"--name {name}: use a-z, 0-9, '.', '_' and '-', at most 63")
    return name


def _version(store: Store, name: str, version: str | None, bump: str | None) -> str:
    """The number that is said, or follows; that it fits the difference is held when the version is published."""
    if version is not None:
        if bump is not None:
            raise InvalidContent("say --version or --bump, not both")
        try:
            return Version.parse(version).text
        except ValueError as exc:
            raise InvalidContent(f"--version {exc}") from exc
    versions = store.version_names(name)
    if bump is None:
        if versions:
            raise InvalidContent(f"model {name!r} has {max(versions)} already: say --bump major, minor or patch")
        return _FIRST_VERSION
    newest = _newest(store, name)
    if newest is None:
        raise InvalidContent(f"model {name!r} has no version that --bump could start from; say --version")
    return bumped(newest, Bump[bump.upper()]).text


def _newest(store: Store, name: str) -> Version | None:
    return max((version for version in store.version_names(name) if version.is_final), default=None)


def _image(normalise: str | None, **given: Any) -> dict[str, Any]:
    image = {key: value for key, value in given.items() if value is not None}
    if normalise is None:
        return image
    if normalise == "in_graph":
        return image | {"normalise": normalise}
    try:
        mean, scale = ([float(value) for value in part.split(",")] for part in normalise.split("/"))
    except ValueError as exc:
        raise InvalidContent(f"--normalise {normalise}: write in_graph, or MEAN/SCALE as 127/128") from exc
    return image | {"normalise": {"mean": mean, "scale": scale}}


def _refuse_flags(**flags: Any) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise InvalidContent(f"--{flag} is for a bare model file; a directory says it in its model.yaml")


def _check_directory(staged: Staged, name: str | None, version: str | None) -> None:
    for key, said, found in (("name", name, staged.manifest.name), ("version", version, staged.manifest.version)):
        if said is not None and said != found:
            staged.discard()
            raise InvalidContent(f"--{key} is {said}, but model.yaml says {found}; correct one of them")


def _check_bump(store: Store, staged: Staged, bump: str) -> None:
    newest = _newest(store, staged.manifest.name)
    expected = bumped(newest, Bump[bump.upper()]).text if newest is not None else None
    if expected != staged.manifest.version:
        staged.discard()
        raise InvalidContent(
            f"--bump {bump} is {expected or 'for a model that has a version'}, but model.yaml says "
            f"{staged.manifest.version}; correct one of them"
        )


def _plain(published: Published) -> dict[str, Any]:
    return {
        "model": published.name,
        "version": published.version,
        "new": published.is_new,
        "verified": published.is_verified,
    }


def _sentence(published: Published, settings: Settings, store: Store) -> str:
    label = f"{published.name}@{published.version}"
    if not published.is_new:
        return f"{label} is in {settings.models} already, the same in every byte that is read"
    lines = [f"added {label} to {settings.models}"]
    if not published.is_verified:
        lines.append("it is unverified: without golden requests nothing holds it to its answers; see --golden")
    if store.release_path(published.name).exists():
        lines.append(f"no traffic goes to it yet: headway release canary {label}, or headway release promote {label}")
    return "\n".join(lines)
