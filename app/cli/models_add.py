"""`headway models add`: a version from a bare model file, or from a directory that has its model.yaml."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.console import JsonOption, Misuse, ModelsOption, emit, failing_cleanly, read_settings, receiving_store
from app.cli.draft_options import (
    GOLDEN_PANEL,
    ActivationOption,
    BatchAxisOption,
    BumpOption,
    ColourOption,
    ContentOption,
    CropOption,
    DryRunOption,
    FilterOption,
    GoldenOption,
    LabelsOption,
    LayoutOption,
    LicenceOption,
    MaxBatchSizeOption,
    NormaliseOption,
    OutputOption,
    ResizeOption,
    SharedOption,
    TaskOption,
    build_draft,
    describe_published,
    newest_version,
    print_manifest,
    published_text,
    read_image,
    read_name,
    read_version,
)
from app.errors import InvalidContent
from app.registry.drafting.difference import Bump, bumped
from app.registry.store import Store
from app.registry.storing.archive import NO_LIMITS
from app.registry.storing.intake import Intake, Staged


def add(
    source: Annotated[Path, typer.Argument(metavar="FILE_OR_DIR", help="A model file, or a version's directory.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the model.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Its version. [default: 1.0.0 for a new model]")
    ] = None,
    bump: BumpOption = None,
    licence: LicenceOption = "unknown",
    labels: LabelsOption = None,
    activation: ActivationOption = None,
    output: OutputOption = None,
    task: TaskOption = None,
    content: ContentOption = None,
    resize: ResizeOption = None,
    crop: CropOption = None,
    filter_: FilterOption = None,
    colour: ColourOption = None,
    layout: LayoutOption = None,
    normalise: NormaliseOption = None,
    golden: GoldenOption = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference of an answer.", rich_help_panel=GOLDEN_PANEL)
    ] = 0.01,
    batch_axis: BatchAxisOption = "auto",
    shared: SharedOption = None,
    max_batch_size: MaxBatchSizeOption = 1,
    dry_run: DryRunOption = False,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a version: described, tried as the server would load it, and published whole. No traffic goes to it yet."""
    settings = read_settings(models=models)
    with failing_cleanly(), receiving_store(settings) as store:
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
            staged = intake.copy_in(source, NO_LIMITS)
            _check_directory(staged, name, version)
            if bump is not None:
                _check_bump(store, staged, bump)
        else:
            staged = build_draft(
                intake,
                source,
                name=read_name(name),
                version=read_version(store, read_name(name), version, bump),
                labels=labels,
                task=task,
                output=output,
                activation=activation,
                content=content,
                image=read_image(
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
                print_manifest(staged, as_json)
                return
            published = intake.publish(staged)
    emit(as_json, describe_published(published), lambda: published_text(published, settings, store))


def _refuse_flags(**flags: Any) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise Misuse(f"--{flag} is for a bare model file; a directory says it in its model.yaml")


def _check_directory(staged: Staged, name: str | None, version: str | None) -> None:
    for key, said, found in (("name", name, staged.manifest.name), ("version", version, staged.manifest.version)):
        if said is not None and said != found:
            staged.discard()
            raise InvalidContent(f"--{key} is {said}, but model.yaml says {found}; correct one of them")


def _check_bump(store: Store, staged: Staged, bump: str) -> None:
    newest = newest_version(store, staged.manifest.name)
    expected = bumped(newest, Bump[bump.upper()]).text if newest is not None else None
    if expected != staged.manifest.version:
        staged.discard()
        raise InvalidContent(
            f"--bump {bump} is {expected or 'for a model that has a version'}, but model.yaml says "
            f"{staged.manifest.version}; correct one of them"
        )
