"""What the commands share that make a version of a bare model file: its number, and what the file cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.cli.console import Misuse
from app.errors import InvalidContent, VersionRefused
from app.registry.drafting.difference import Bump, bumped
from app.registry.store import Store
from app.registry.storing.intake import Intake, Published, Staged
from app.registry.versions import MODEL_NAME, Version
from app.settings import Settings

_FIRST_VERSION = "1.0.0"
_PHOTO, _ANSWER, GOLDEN_PANEL = "Photos", "Answer", "Golden requests"

LicenceOption = Annotated[str, typer.Option("--licence", help="Licence of the weights.")]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", help="One label a line: a classifier.", rich_help_panel=_ANSWER)
]
ActivationOption = Annotated[
    Literal["none", "softmax", "sigmoid"] | None,
    typer.Option("--activation", help="What makes the scores probabilities.", rich_help_panel=_ANSWER),
]
OutputOption = Annotated[
    str | None, typer.Option("--output", help="The output that is the answer.", rich_help_panel=_ANSWER)
]
TaskOption = Annotated[
    Literal["image-classification", "text-classification", "tabular-classification", "regression", "tensor"] | None,
    typer.Option("--task", help="What the model does, where the rest does not tell.", rich_help_panel=_ANSWER),
]
ContentOption = Annotated[
    Literal["image", "text", "tensor"] | None,
    typer.Option("--content", help="What callers send.", rich_help_panel=_PHOTO),
]
ResizeOption = Annotated[
    int | None, typer.Option("--resize", help="Length of the shorter side.", rich_help_panel=_PHOTO)
]
CropOption = Annotated[
    int | None,
    typer.Option("--crop", help="Side of the centre crop. [default: the input's]", rich_help_panel=_PHOTO),
]
FilterOption = Annotated[
    Literal["nearest", "bilinear", "bicubic", "lanczos"] | None,
    typer.Option("--filter", help="Of the resize.", rich_help_panel=_PHOTO),
]
ColourOption = Annotated[
    Literal["RGB", "BGR", "GRAY"] | None,
    typer.Option("--colour", help="Order of the channels.", rich_help_panel=_PHOTO),
]
LayoutOption = Annotated[
    Literal["NHWC", "NCHW"] | None,
    typer.Option("--layout", help="Order of the axes. [default: the input's]", rich_help_panel=_PHOTO),
]
NormaliseOption = Annotated[
    str | None,
    typer.Option(
        "--normalise",
        help="in_graph, or MEAN/SCALE for (x - mean) / scale with x in 0…255, as 127/128 or "
        "123.7,116.3,103.5/58.4,57.1,57.4.",
        rich_help_panel=_PHOTO,
    ),
]
GoldenOption = Annotated[
    Path | None,
    typer.Option(
        "--golden",
        help="Directory: golden.json and its images, or photos, texts or JSON files to record answers to.",
        rich_help_panel=GOLDEN_PANEL,
    ),
]
BatchAxisOption = Annotated[
    Literal["auto", "0", "none"], typer.Option("--batch-axis", help="Whether each row has its own answer.")
]
SharedOption = Annotated[
    list[str] | None, typer.Option("--shared", help="An input that all rows of a call share; may be repeated.")
]
MaxBatchSizeOption = Annotated[int, typer.Option("--max-batch-size", min=1, help="Rows of one run.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the model.yaml (as JSON with --json), and add nothing.")
]
BumpOption = Annotated[
    Literal["major", "minor", "patch"] | None, typer.Option("--bump", help="The step from the newest version.")
]


def build_draft(intake: Intake, source: Path, **wishes: Any) -> Staged:
    from app.registry.drafting.draft import Draft, Wishes

    draft = Draft(source, Wishes(**wishes))
    try:
        return intake.build(wishes["name"], wishes["version"], draft.write)
    except VersionRefused as exc:
        raise InvalidContent(f"{source}: {exc}") from exc


def read_name(name: str | None) -> str:
    if name is None:
        raise Misuse("a model file needs a name: say --name")
    if not MODEL_NAME.fullmatch(name):
        raise Misuse(f"--name {name}: use a-z, 0-9, '.', '_' and '-', at most 63")
    return name


def parse_version(text: str) -> str:
    """The number of --version. Raises Misuse."""
    try:
        return Version.parse(text).text
    except ValueError as exc:
        raise Misuse(f"--version {exc}") from exc


def read_version(store: Store, name: str, version: str | None, bump: str | None) -> str:
    """The number that is said, or follows; that it fits the difference is held when the version is published."""
    if version is not None:
        if bump is not None:
            raise Misuse("say --version or --bump, not both")
        return parse_version(version)
    versions = store.version_names(name)
    if bump is None:
        if versions:
            raise InvalidContent(f"model {name!r} has {max(versions)} already: say --bump major, minor or patch")
        return _FIRST_VERSION
    newest = newest_version(store, name)
    if newest is None:
        raise InvalidContent(f"model {name!r} has no version that --bump could start from; say --version")
    return bumped(newest, Bump[bump.upper()]).text


def newest_version(store: Store, name: str) -> Version | None:
    return max((version for version in store.version_names(name) if version.is_final), default=None)


def read_image(normalise: str | None, **given: Any) -> dict[str, Any]:
    image = {key: value for key, value in given.items() if value is not None}
    if normalise is None:
        return image
    if normalise == "in_graph":
        return image | {"normalise": normalise}
    try:
        mean, scale = ([float(value) for value in part.split(",")] for part in normalise.split("/"))
    except ValueError as exc:
        raise Misuse(f"--normalise {normalise}: write in_graph, or MEAN/SCALE as 127/128") from exc
    return image | {"normalise": {"mean": mean, "scale": scale}}


def print_manifest(staged: Staged, as_json: bool) -> None:
    """What --dry-run shows: the model.yaml as it would be written, or the same as JSON."""
    if as_json:
        said = staged.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
        typer.echo(json.dumps(said, ensure_ascii=False, indent=2))
    else:
        typer.echo((staged.directory / "model.yaml").read_text(encoding="utf-8"), nl=False)


def describe_published(published: Published) -> dict[str, Any]:
    return {
        "model": published.name,
        "version": published.version,
        "new": published.is_new,
        "verified": published.is_verified,
    }


def published_text(published: Published, settings: Settings, store: Store) -> str:
    label = f"{published.name}@{published.version}"
    if not published.is_new:
        return f"{label} is in {settings.models} already, the same in every byte that is read"
    lines = [f"added {label} to {settings.models}"]
    if not published.is_verified:
        lines.append("it is unverified: without golden requests nothing holds it to its answers; see --golden")
    if store.release_path(published.name).exists():
        lines.append(f"no traffic goes to it yet: headway release canary {label}, or headway release promote {label}")
    return "\n".join(lines)
