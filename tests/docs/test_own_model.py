"""The commands of docs/guides/own-model.md work, one after the other, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.running import ROOT

GUIDE = ROOT / "docs" / "guides" / "own-model.md"


def test_commands_of_the_guide_work(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models")
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        done = subprocess.run(
            ["sh", "-e", "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), block
    assert (tmp_path / "numbers.tar.gz").exists()
    assert sorted(path.name for path in (tmp_path / "models" / "numbers").glob("[0-9]*")) == ["1.0.0", "1.1.0"]
