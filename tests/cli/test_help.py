"""`--help` of every command says all that is written there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.cli.main import cli


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in getattr(command, "commands", {}).items():
        yield from _commands(one, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


_COMMANDS = list(_commands(get_command(cli)))


@pytest.mark.parametrize(("words", "command"), _COMMANDS, ids=[" ".join(words) for words, _ in _COMMANDS])
def test_help_has_the_words_of_each_option(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], command: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = " ".join(CliRunner().invoke(cli, [*words, "--help"]).stdout.split())
    for option in command.params:
        assert " ".join((option.help or "").split()) in shown
