"""KServe's own client, for `make verify`: it wants 40 packages of its own, so it gets an environment beside ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, RunningServer

pytestmark = pytest.mark.slow
_KSERVE = "kserve==0.21.0"


@pytest.fixture
def kserve_python(tmp_path: Path) -> str:
    """That of HEADWAY_KSERVE_PYTHON, else of an environment made for this."""
    given = os.environ.get("HEADWAY_KSERVE_PYTHON")
    if given:
        return given
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "kserve"], check=True)
    python = str(tmp_path / "kserve" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", _KSERVE], check=True)
    return python


def test_kserve_client_p18_p19_p20(spoken: RunningServer, kserve_python: str) -> None:
    command = [kserve_python, str(ROOT / "tests" / "kserve_client.py"), spoken.url]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    sys.stdout.write(f"what {_KSERVE} finds: {told.stdout}\n")
    assert (found["live"], found["ready"], found["model"], found["unknown"]) == (True, True, True, False)
    assert found["answer_False"] == found["answer_True"] == [1.5, -2.0, 3.25]
    assert "'x'" in found["error"]
    assert "400" in found["error"]
    assert (found["v1_live"], found["v1_model"]) == (True, True)
    assert found["v1_answer"]["predictions"] == [[1.5, -2.0, 3.25]]
