"""The examples run against a real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import httpx
import pytest

from tests.running import ROOT, RunningServer

EXAMPLES = ROOT / "examples"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_predict_json_names_the_animal(client: httpx.Client) -> None:
    body = (EXAMPLES / "predict.json").read_bytes()
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"}).json()
    assert answer["predictions"][0]["label"] == "tiger cat"
    assert len(answer["predictions"]) == 3


def test_client_prints_labels(server: RunningServer) -> None:
    result = run(sys.executable, "examples/client.py", "examples/cat.jpg", server.url)
    assert result.returncode == 0
    assert "tiger cat" in result.stdout.splitlines()[1]


def test_client_tells_an_error(server: RunningServer) -> None:
    result = run(sys.executable, "examples/client.py", "README.md", server.url)
    assert result.returncode == 1
    assert "400 bad_image" in result.stderr


def test_client_is_short() -> None:
    assert len((EXAMPLES / "client.py").read_text().splitlines()) <= 17


def test_fetch_prints_labels(server: RunningServer) -> None:
    node = shutil.which("node")
    if node is None:
        if os.environ.get("CI"):
            pytest.fail("node is missing")
        pytest.skip("node is not installed")
    result = run(node, "examples/fetch.mjs", "examples/cat.jpg", server.url)
    assert "tiger cat" in result.stdout
