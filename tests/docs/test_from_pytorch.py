"""Every command of docs/guides/from-pytorch-to-a-canary.md works, in one shell, as it stands there."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from app.registry.manifest import read_manifest
from tests.running import ROOT

GUIDE = (ROOT / "docs" / "guides" / "from-pytorch-to-a-canary.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.xdist_group("from-pytorch")


def _blocks(language: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(GUIDE) if found == language]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_extras_that_are_installed_exist() -> None:
    (named,) = re.findall(r"pip install 'headway\[(.*?)\]'", GUIDE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(named.split(",")) <= set(extras)


def test_network_becomes_a_canary_by_the_commands_of_the_guide(tmp_path: Path) -> None:
    work = tmp_path / "scans"
    for text in _blocks("python"):
        name = text.split("\n", 1)[0].removeprefix("# ")
        (tmp_path / name).write_text(text, encoding="utf-8")
    script = "\n".join(_blocks("sh")).replace("8080", str(_free_port()))
    # The only line that is not run: these packages are here, and Headway itself is this tree.
    script, count = re.subn(r"^pip install .*\n", "", script, flags=re.MULTILINE)
    assert count == 1
    script = script.replace("mkdir scans && cd scans", "mkdir scans && mv *.py scans && cd scans")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "HEADWAY_DATA_DIR": str(tmp_path / "data"),
    }
    log = tmp_path / "printed"
    with log.open("wb") as printed:
        # -m: the server is a job, as in the shell of a reader.
        done = subprocess.run(
            ["bash", "-emo", "pipefail", "-c", script],
            cwd=tmp_path, env=env, stdout=printed, stderr=subprocess.STDOUT, timeout=400, check=False,
        )  # fmt: skip
    said = log.read_text(encoding="utf-8")
    assert done.returncode == 0, said
    versions = {path.name for path in (work / "models" / "scans").iterdir() if path.is_dir()}
    assert versions == {"1.0.0", "1.1.0", "1.2.0", "1.2.1"}, said
    parents = {name: read_manifest(work / "models" / "scans" / name).parent for name in versions - {"1.0.0"}}
    made = {name: (parent.version, parent.method) for name, parent in parents.items() if parent is not None}
    assert made == {"1.1.0": ("1.0.0", "prune"), "1.2.0": ("1.1.0", "quantize"), "1.2.1": ("1.2.0", None)}
    assert re.search(r'"version":\s*"1.0.0"', said)
    assert re.search(r'"version":\s*"1.2.1"', said)
    release = yaml.safe_load((work / "models" / "scans" / "release.yaml").read_text(encoding="utf-8"))
    assert release["aliases"] == {"stable": {"version": "1.2.1"}}
