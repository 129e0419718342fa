"""The peers' own virtual environments in .venv-peers/, each made once for each content of its requirements file.

As in scripts/setup.sh an environment records the digest of what it holds last of all, so that an interrupted call
is repaired by the next.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.workloads import ROOT

FOLDER = ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "peers/requirements"
_RECORD = ".headway-peer"


def prepare_environment(name: str, folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of the environment of peer `name`, which is made anew where its requirements have changed."""
    wanted, directory = requirements / f"{name}.txt", folder / name
    python = directory / "bin/python"
    if not is_current(directory, wanted):
        print(f"Setting up {directory} (once; some minutes) …", file=sys.stderr, flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "--requirement", wanted], check=True)
        (directory / _RECORD).write_text(find_digest(wanted), encoding="utf-8")
    return python


def is_current(directory: Path, wanted: Path) -> bool:
    record = directory / _RECORD
    return record.exists() and record.read_text(encoding="utf-8") == find_digest(wanted)


def find_digest(wanted: Path) -> str:
    """Of the requirements and of the Python that the environment is made with."""
    return hashlib.sha256(f"{sys.version_info[:2]}".encode() + wanted.read_bytes()).hexdigest()


def find_versions(python: Path) -> dict[str, str]:
    """Every package that the environment holds, by name."""
    listing = [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    found = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    return {package["name"]: package["version"] for package in json.loads(found)}
