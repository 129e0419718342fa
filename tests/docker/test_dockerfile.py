"""docker/Dockerfile and .dockerignore: a linter's opinion, and what the app and the lock file say."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from app.settings import Settings
from tests.running import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text()
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()


def test_linter_finds_no_fault() -> None:
    command = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [command, "--failure-threshold", "warning", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_variables_are_settings() -> None:
    names = re.findall(r"HEADWAY_(\w+)=", TEXT)
    assert len(names) > 2
    assert {name.lower() for name in names} <= Settings.model_fields.keys()


def test_port_and_user() -> None:
    assert re.findall(r"^EXPOSE (.+)$", TEXT, re.MULTILINE) == [f"{Settings.model_fields['port'].default} 9000"]
    assert re.findall(r"^USER (\S+)$", TEXT, re.MULTILINE) == ["10001:10001"]
    assert TEXT.count("headway:x:10001:") == 2  # passwd and group


def test_base_is_a_python_that_the_project_supports() -> None:
    minor = re.search(r"^ARG BASE_IMAGE=python:3\.(\d+)-", TEXT, re.MULTILINE)
    assert minor
    assert f">=3.{minor[1]}" == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]


def test_dependencies_are_locked() -> None:
    """Whatever is installed is in the lock file, with its digest, or is the project itself."""
    installs = re.findall(r"install --quiet \\\n\s+(.*)", TEXT)
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--no-index" in installs[1]
    assert "apt-get" not in TEXT


def test_server_is_the_default_and_gets_signals_itself() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", TEXT, re.MULTILINE)
    assert stages[-1] == "server"
    assert "lite" in stages
    assert re.findall(r"^CMD (.*)$", TEXT, re.MULTILINE) == ['["headway", "serve"]']
    assert "ENTRYPOINT" not in TEXT


def test_what_is_copied_is_there_and_in_the_context() -> None:
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", TEXT, re.MULTILINE) for source in line.split()
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert is_in_context(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", ".env", "data/secret", "tests/conftest.py", "bench/run.py", "docs/x"]
)
def test_secrets_and_ballast_stay_out(path: str) -> None:
    assert not is_in_context(path)


@pytest.mark.parametrize(
    "path", ["app/__pycache__/main.pyc", "models/.bin/m/model.onnx", "models/.staging-1/x", "models/m/.lock"]
)
def test_leftovers_stay_out(path: str) -> None:
    assert not is_in_context(path)


def test_labels_are_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'image.description="{project["description"]}"' in TEXT
    assert f'image.licenses="{project["license"]}"' in TEXT


def is_in_context(path: str) -> bool:
    """The last line that matches a path, or a directory above it, decides."""
    candidates = [PurePosixPath(path), *PurePosixPath(path).parents][:-1]
    found = True
    for line in IGNORED:
        pattern = line.removeprefix("!").rstrip("/")
        if line and not line.startswith("#") and any(matches(one, pattern) for one in candidates):
            found = line.startswith("!")
    return found


def matches(path: PurePosixPath, pattern: str) -> bool:
    """Go's filepath.Match, as far as our lines go; `**/` is any number of directories."""
    parts = "".join(
        ".*" if part == "**/" else "[^/]*" if part == "*" else re.escape(part)
        for part in re.split(r"(\*\*/|\*)", pattern)
    )
    return re.fullmatch(parts, str(path)) is not None
