"""The root of the command line. Commands import what they need when they run: `headway --help` stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

import app as package
from app.cli import (
    baseline,
    compare,
    convert,
    db,
    distill,
    drift,
    evaluate,
    models,
    models_add,
    models_change,
    plan,
    predict,
    profile,
    prune,
    quality,
    quantize,
    release,
    release_compare,
    robustness,
    serve,
)

cli = typer.Typer(
    name="headway",
    help="A model server: from a trained model to a watched, versioned production service.",
    no_args_is_help=True,
    add_completion=False,
    # Otherwise Rich takes "[default: 5]" for a colour, and leaves it out.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
cli.command("serve")(serve.serve)
cli.command("predict")(predict.predict)
cli.command("evaluate")(evaluate.evaluate)
cli.command("compare")(compare.compare)
cli.command("baseline")(baseline.baseline)
cli.command("quantize")(quantize.quantize)
cli.command("prune")(prune.prune)
cli.command("convert")(convert.convert)
cli.command("distill")(distill.distill)
cli.command("robustness")(robustness.robustness)
cli.command("drift")(drift.drift)
cli.command("quality")(quality.quality)
models.cli.command("add")(models_add.add)
for command in (
    models_change.diff,
    models_change.remove,
    models_change.undelete,
    models_change.backup,
    models_change.restore,
):
    models.cli.command()(command)
cli.add_typer(models.cli, name="models")
release.cli.command("compare")(release_compare.compare)
cli.add_typer(release.cli, name="release")
cli.add_typer(db.cli, name="db")
cli.add_typer(plan.cli, name="plan")
cli.add_typer(profile.cli, name="profile")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headway {package.__version__}")
        raise typer.Exit


@cli.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Every command takes --help."""


if __name__ == "__main__":
    cli()
