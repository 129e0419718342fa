"""`headway release compare` against a real server with a shadow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from onnx import helper

from app.cli.release_compare import summarise
from app.errors import ModelNotFound
from tests.fixtures_models import onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, running_server

COMMAND = [sys.executable, "-m", "app.cli.main", "release", "compare"]


def test_compare(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_model(root, "m")
    nodes = [helper.make_node("Neg", ["x"], ["scores"])]
    data = onnx_file(nodes, [("x", "FP32", [-1, 3])], [("scores", "FP32", [-1, 3])])
    write_model(root, "m", "2.0.0", files={"model.onnx": data})
    write_release(root, "m", "1.0.0", shadow={"version": "2.0.0", "share": 100})
    with running_server(tmp_path / "log", workers=1, HEADWAY_MODELS=str(root)) as server:

        def read() -> dict[str, Any]:
            printed = subprocess.run([*COMMAND, "m", "--url", server.url, "--json"], capture_output=True, check=True)
            found: dict[str, Any] = json.loads(printed.stdout)
            return found

        for inputs in ([[0, 0, 0]], [[1, 0, 0]], [[0, 0, 0]]):
            assert httpx.post(f"{server.url}/predict", json={"model": "m", "inputs": inputs}).status_code == 200
            time.sleep(0.1)
        httpx.post(f"{server.url}/predict", json={"model": "m", "inputs": [[1]]})
        limit = time.monotonic() + PATIENCE_SECONDS
        while not (shadows := read()["shadows"]) or shadows[0]["compared"] < 3:
            assert time.monotonic() < limit
        assert shadows == [
            {
                "version": "1.0.0",
                "shadow": "2.0.0",
                "compared": 3,
                "agreement_ratio": pytest.approx(2 / 3),
                "mean_difference": pytest.approx(2 / 3),
                "failed": 0,
                "dropped": 0,
            }
        ]
        (version,) = read()["versions"]
        assert (version["version"], version["requests"], version["server_error_ratio"]) == ("1.0.0", 4, 0)
        table = subprocess.run([*COMMAND, "m", "--url", server.url], capture_output=True, check=True, text=True).stdout
        assert "66.7%" in table
        assert "1.0.0" in table


def test_compare_of_what_was_never_asked() -> None:
    with pytest.raises(ModelNotFound, match="has counted nothing of a model 'm' yet"):
        summarise("m", 'headway_requests_total{model="other",version="1",protocol="predict",code="200"} 1\n')


def test_compare_without_a_server() -> None:
    ended = subprocess.run([*COMMAND, "m", "--url", "http://127.0.0.1:9"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "name the server with --url" in ended.stderr
