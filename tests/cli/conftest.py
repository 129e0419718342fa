"""The command line over a registry of tiny models."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.console import err, out
from app.cli.main import cli
from tests.fixtures_models import write_model, write_release
from tests.running import ROOT

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Headway = Callable[..., Done]


def environment(root: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    return env | {"HEADWAY_MODELS": str(root), "COLUMNS": "100", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """scores 1.9.0 (stable) and 1.10.0 (canary), sum, colour, two_inputs, echo, positive 1.0.0."""
    root = tmp_path / "models"
    for kind in ("sum", "colour", "two_inputs", "echo", "positive"):
        write_model(root, kind, kind=kind)
    for version in ("1.9.0", "1.10.0"):
        write_model(root, "scores", version)
    write_release(root, "scores", "1.9.0", aliases={"canary": {"version": "1.10.0", "weight": 5}})
    return root


@pytest.fixture
def working(tmp_path: Path) -> Path:
    """The directory that commands run in: empty."""
    working = tmp_path / "working"
    working.mkdir()
    return working


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """`serve` sends the log of its process to its stderr, which of a test is closed soon."""
    logger = logging.getLogger()
    level = logger.level
    yield
    logger.setLevel(level)
    for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    with _logging_kept():
        yield


@pytest.fixture
def headway(root: Path, working: Path) -> Headway:
    """Run `headway` with the given arguments in this process: a new one takes half a second for its imports."""

    def run(*arguments: Any, stdin: bytes = b"", **extra: str) -> Done:
        env = environment(root) | extra
        unset = {name: None for name in os.environ if name not in env}
        width = int(env["COLUMNS"])
        with contextlib.chdir(working), _logging_kept(), pytest.MonkeyPatch.context() as patch:
            for console in (out, err):
                patch.setattr(console, "_width", width)
            done = CliRunner().invoke(cli, [*map(str, arguments)], stdin, {**unset, **env}, catch_exceptions=False)
        return Done(done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def headway_process(root: Path, working: Path) -> Headway:
    """The same in a process of its own: where a command imports what a test wrote, or sets up all of its process."""

    def run(*arguments: Any, stdin: bytes = b"", **extra: str) -> Done:
        command = [sys.executable, "-m", "app.cli.main", *map(str, arguments)]
        env = environment(root) | extra
        done = subprocess.run(
            command, cwd=working, env=env, input=stdin, capture_output=True, timeout=PATIENCE_SECONDS, check=False
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
