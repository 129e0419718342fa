"""The guides for those who come from other servers name only what exists: commands, flags, settings, routes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.main import get_command

from app.cli.main import cli
from app.settings import Settings
from tests.running import ROOT

# MLServer's, and one of the management listener.
_ELSEWHERE = {("GET", "/v2/docs"), ("POST", "/update")}
GUIDES = sorted((ROOT / "docs/guides").glob("migrating-from-*.md"))


def commands_of(page: str) -> list[list[str]]:
    """The words of every command of ours, in blocks and between words."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    lines = re.findall(r"^headway .*$", blocks, re.MULTILINE)
    prose = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    return [line.split() for line in [*lines, *re.findall(r"`(headway [^`]+)`", prose)]]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_commands_and_flags_exist(guide: Path) -> None:
    found = commands_of(guide.read_text(encoding="utf-8"))
    assert found
    for words in found:
        command: Any = get_command(cli)
        rest = words[1:]
        while hasattr(command, "commands") and rest:
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= flags, words


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_settings_exist(guide: Path) -> None:
    named = set(re.findall(r"HEADWAY_([A-Z_]+)", guide.read_text(encoding="utf-8")))
    assert named <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_routes_exist(client: httpx.Client, guide: Path) -> None:
    """Whatever such a route answers, the route is there: an unknown one is 404 `not_found`."""
    page = guide.read_text(encoding="utf-8")
    routes = re.findall(r"(GET|POST) (/[A-Za-z0-9/:._-]+)", page)
    routes += [("GET", path) for path in re.findall(r"127\.0\.0\.1:\d+(/[a-z0-9/_]+)$", page, re.MULTILINE)]
    for method, path in set(routes) - _ELSEWHERE:
        answer = client.request(method, path)
        assert answer.status_code != 405, (method, path)
        assert answer.status_code != 404 or answer.json()["code"] != "not_found", (method, path)
