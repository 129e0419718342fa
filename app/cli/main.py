"""The root of the command line. Commands import what they need when they run: `headway --help` stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

import app as package
from app.cli import evaluate, models, predict, serve

cli = typer.Typer(
    name="headway",
    help="A model server: from a trained model to a watched, versioned production service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.command("serve")(serve.serve)
cli.command("predict")(predict.predict)
cli.command("evaluate")(evaluate.evaluate)
cli.add_typer(models.cli, name="models")


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


def main() -> None:
    cli()


if __name__ == "__main__":
    main()
