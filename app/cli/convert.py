"""`headway convert`: a version from a trained network of PyTorch, Keras, TensorFlow, scikit-learn or ONNX."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.console import JsonOption, ModelsOption, emit, failing_cleanly, read_settings, receiving_store
from app.cli.derive import check_place, progress_bars, stdout_kept, temporary_directory
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
    describe_published,
    print_manifest,
    published_text,
    read_image,
    read_name,
    read_version,
)
from app.errors import InvalidContent, VersionRefused
from app.registry.storing.intake import Intake, Published

if TYPE_CHECKING:
    from app.optimize.conversion.source import Given, Target
    from app.optimize.conversion.version import Conversion

_SOURCE = "Source"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A .pt2, module:factory (imported from the current directory), .keras, .h5, SavedModel directory, "
            ".pkl, .joblib or .onnx.",
        ),
    ],
    to: Annotated[Literal["onnx", "tflite"], typer.Option("--to", help="Form of the new file.")] = "onnx",
    name: Annotated[str | None, typer.Option("--name", help="Name of the model.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Its version. [default: 1.0.0 for a new model]")
    ] = None,
    bump: BumpOption = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="The .safetensors or .pt file of module:factory.", rich_help_panel=_SOURCE),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME:DATATYPE:n,SIZE,…",
            help="Where the source does not say what it takes; may be repeated.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    output_names: Annotated[
        list[str] | None,
        typer.Option("--output-name", help="Name of an output, in order; may be repeated.", rich_help_panel=_SOURCE),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Open pickles, which runs what code they hold.", rich_help_panel=_SOURCE),
    ] = False,
    converter_python: Annotated[
        Path | None,
        typer.Option(
            "--converter-python",
            envvar="HEADWAY_CONVERTER_PYTHON",
            help="Python of the environment that has the converter, where it needs one of its own.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="Inputs to compare on: .npy or .npz. [default: random rows]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the random rows.")] = 0,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest difference from the source's answers.")
    ] = 1e-4,
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
    golden_tolerance: Annotated[
        float,
        typer.Option(
            "--golden-tolerance", min=0, help="Largest difference of an answer.", rich_help_panel=GOLDEN_PANEL
        ),
    ] = 0.01,
    batch_axis: BatchAxisOption = "auto",
    shared: SharedOption = None,
    max_batch_size: MaxBatchSizeOption = 1,
    dry_run: DryRunOption = False,
    models: ModelsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a trained network, hold its answers against the source's, and add it as a version."""
    settings = read_settings(models=models)
    with failing_cleanly(), receiving_store(settings) as store:
        check_place(store)
        intake = Intake(store, bin_days=settings.bin_days)
        intake.sweep(time.time())
        wishes = {
            "name": read_name(name),
            "version": read_version(store, read_name(name), version, bump),
            "labels": labels,
            "task": task,
            "output": output,
            "activation": activation,
            "content": content,
            "image": read_image(
                resize=resize, crop=crop, filter=filter_, colour=colour, layout=layout, normalise=normalise
            ),
            "batch_axis": batch_axis,
            "shared": tuple(shared or ()),
            "max_batch_size": max_batch_size,
            "golden": golden,
            "tolerance": golden_tolerance,
            "licence": licence,
        }
        given = _given(weights, inputs, output_names, trust_pickle, converter_python, samples)
        command = _command(source, to, wishes, weights, inputs, output_names, trust_pickle)
        with temporary_directory() as folder, progress_bars() as progress:
            with stdout_kept():
                conversion = _convert(source, to, given, command, samples, seed, tolerance, folder, progress)
            staged = _stage(intake, conversion, wishes)
            with staged:
                if dry_run:
                    print_manifest(staged, as_json)
                    return
                advance = progress("trying", 1)
                published = intake.publish(staged)
                advance()
    emit(
        as_json,
        _plain(published, conversion),
        lambda: "\n".join([_sentence(conversion), published_text(published, settings, store)]),
    )


@contextmanager
def _naming_extra() -> Iterator[None]:
    """Around imports. Raises InvalidContent with what to install."""
    try:
        yield
    except ImportError as exc:
        raise InvalidContent(
            f"convert needs a package that is missing ({exc}): pip install 'headway[optimize]'"
        ) from exc


def _given(
    weights: Path | None,
    inputs: list[str] | None,
    output_names: list[str] | None,
    trust_pickle: bool,
    python: Path | None,
    samples: Path | None,
) -> Given:
    with _naming_extra():
        from app.optimize.conversion.samples import read_arrays
        from app.optimize.conversion.source import Given, parse_input
    return Given(
        weights=weights,
        inputs=tuple(parse_input(text) for text in inputs or ()),
        examples=read_arrays(samples) if samples is not None else {},
        output_names=tuple(output_names or ()),
        converter_python=python,
        may_unpickle=trust_pickle,
    )


def _convert(
    source: str,
    target: Target,
    given: Given,
    command: str,
    samples: Path | None,
    seed: int,
    tolerance: float,
    folder: Path,
    progress: Callable[[str, int], Callable[[], None]],
) -> Conversion:
    with _naming_extra():
        from app.optimize.conversion.forms import open_source
        from app.optimize.conversion.samples import given_samples, random_samples
        from app.optimize.conversion.version import convert_source, origin_of
    advance = progress("opening", 1)
    opened = open_source(source, target, given)
    advance()
    rows = given_samples(samples, given.examples, opened.inputs) if samples else random_samples(opened.inputs, seed)
    origin = origin_of(source, given.weights, target, command)
    return convert_source(opened, origin, rows, folder, tolerance, progress)


def _stage(intake: Intake, conversion: Conversion, wishes: dict[str, Any]) -> Any:
    from app.optimize.conversion.version import write_version
    from app.registry.drafting.draft import Wishes

    try:
        return intake.build(
            wishes["name"], wishes["version"], lambda directory: write_version(directory, conversion, Wishes(**wishes))
        )
    except VersionRefused as exc:
        raise InvalidContent(f"{conversion.origin.source}: {exc}") from exc


def _command(
    source: str,
    to: str,
    wishes: dict[str, Any],
    weights: Path | None,
    inputs: list[str] | None,
    output_names: list[str] | None,
    trust_pickle: bool,
) -> str:
    """What makes such a file again, for its card. Files are named without where they lie on this machine."""
    words = ["headway", "convert", Path(source).resolve().name if Path(source).exists() else source, "--to", to]
    words += ["--weights", weights.resolve().name] if weights is not None else []
    words += [word for text in inputs or () for word in ("--input", text)]
    words += [word for text in output_names or () for word in ("--output-name", text)]
    words += ["--trust-pickle"] if trust_pickle else []
    return shlex.join([*words, "--name", wishes["name"], "--version", wishes["version"]])


def _plain(published: Published, conversion: Conversion) -> dict[str, Any]:
    origin = conversion.origin
    return describe_published(published) | {
        "source": origin.source,
        "form": origin.form,
        "target": origin.target,
        "digests": dict(origin.digests),
        "libraries": dict(conversion.libraries),
        "samples": conversion.samples,
        "agreement": asdict(conversion.agreement),
    }


def _sentence(conversion: Conversion) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in conversion.libraries.items())
    origin = conversion.origin
    return (
        f"converted {origin.source} ({origin.form}) to {origin.target} by {libraries}\n"
        f"{conversion.agreement}, on {conversion.samples}"
    )
