"""The documentation is true: the reference equals the code, links lead somewhere, the README's commands work."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from typer.main import get_command

from app.cli.main import cli
from tests.running import ROOT, RunningServer

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "path", [".env.example", "docs/reference/settings.md", "docs/reference/errors.md", "docs/reference/metrics.md"]
)
def test_generated_reference_is_current(reference: ModuleType, path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == reference.FILES[path](), "run: python scripts/reference.py"


def test_every_route_is_documented(client: httpx.Client) -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page, path


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    for name, command in get_command(cli).commands.items():  # type: ignore[attr-defined]
        for path in [f"{name} {sub}" for sub in getattr(command, "commands", {})] or [name]:
            assert f"headway {path}" in page, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_readme_curl_line_names_the_animal(server: RunningServer) -> None:
    (line,) = re.findall(r"^curl .*--data-binary.*$", README, re.MULTILINE)
    line = line.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -s ")
    answer = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = re.findall(r'"label": "([^"]+)"', README)
    assert [prediction["label"] for prediction in json.loads(answer)["predictions"]][: len(shown)] == shown


def test_readme_commands_without_a_server_work() -> None:
    for line in re.findall(r"^\.venv/bin/.*$", README, re.MULTILINE):
        answer = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "tiger cat" in answer
