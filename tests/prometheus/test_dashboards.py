"""Each panel of each dashboard has data: a real Prometheus that scraped a real server of two workers under traffic."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.fixtures_models import write_model, write_release
from tests.running import CAT, MODELS, PATIENCE_SECONDS, ROOT, RunningServer, running_server
from tests.tools import require_command

SCRIPT = ROOT / "scripts/dashboards.py"
ROWS = np.random.default_rng(4).dirichlet([1, 2, 3], 60).astype(np.float32)
DASHBOARDS = sorted((ROOT / "grafana/dashboards").glob("*.json"))


def _panels(path: Path) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(path.read_text())["panels"]
    return panels


QUERIES = [
    pytest.param(target["expr"], id=f"{path.stem}: {panel['title']}: {target['refId']}")
    for path in DASHBOARDS
    for panel in _panels(path)
    for target in panel["targets"]
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two workers with the shipped models and one of rows, which has a baseline, a value policy and a canary."""
    folder = tmp_path_factory.mktemp("watched")
    root = folder / "models"
    shutil.copytree(MODELS, root)
    values = {"missing": {"action": "impute", "fill": 0.5}}
    write_model(root, "rows", inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 3], "values": values}])
    np.save(folder / "rows.npy", ROWS)
    command = [sys.executable, "-m", "app.cli.main", "baseline", "rows", str(folder / "rows.npy")]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"HEADWAY_MODELS": str(root)})
    canary = {"version": "1.0.0", "weight": 20}
    write_release(root, "rows", "1.0.1", aliases={"stable": {"version": "1.0.1"}, "canary": canary})
    with running_server(folder / "log", "--threads", "1", HEADWAY_MODELS=str(root)) as server:
        yield server


@pytest.fixture(scope="module")
def prometheus(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus with our configuration, but for the target, which has been scraped under traffic."""
    folder = tmp_path_factory.mktemp("prometheus")
    program = require_command("prometheus", "prometheus")
    configuration = yaml.safe_load((ROOT / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(ROOT / pattern) for pattern in configuration["rule_files"]]
    del configuration["alerting"]
    (job,) = (job for job in configuration["scrape_configs"] if job["job_name"] == "headway")
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    configuration["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *flags, "--web.listen-address", address], stdout=log, stderr=log)
    try:
        url = f"http://{address}"
        _wait_until_scraped(url, process)
        _make_traffic(server)
        _wait_for_value(url, 'headway_requests_total{code="503"}')
        _make_traffic(server)
        # Counts come to the database within 10 s, and from there back into gauges.
        _wait_for_value(url, 'headway_drift_psi{window="1d"}')
        _wait_for_value(url, "headway_canary_should_roll_back")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)


def _ask(url: str, query: str) -> list[float]:
    response = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=PATIENCE_SECONDS).raise_for_status()
    answer = response.json()
    assert answer["status"] == "success", answer
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def _wait_until_scraped(url: str, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < limit:
        assert process.poll() is None, "Prometheus has ended"
        try:
            if _ask(url, "up == 1"):
                return
        except (httpx.TransportError, httpx.HTTPStatusError):  # it answers 503 while it reads its data
            pass
        time.sleep(0.1)
    raise AssertionError("Prometheus has not scraped the server")


def _wait_for_value(url: str, query: str) -> None:
    limit = time.monotonic() + PATIENCE_SECONDS
    while not _ask(url, query):
        assert time.monotonic() < limit, f"no series: {query}"
        time.sleep(0.1)


def _make_traffic(server: RunningServer) -> None:
    """Answers, refusals (more photos at once than can be answered in 60 ms) and feedback."""
    photo = CAT.read_bytes()
    with httpx.Client(timeout=PATIENCE_SECONDS) as client:
        for label in ("tabby cat", "tiger cat", "tiger cat"):
            answer = client.post(f"{server.url}/predict", content=photo, headers={"content-type": "image/jpeg"})
            feedback = {"prediction_id": answer.json()["prediction_id"], "label": label, "rating": 4}
            assert client.post(f"{server.url}/feedback", json=feedback).status_code == 200
        content = {"inputs": [[0.0] * 64], "model": "digits"}
        assert client.post(f"{server.url}/predict", json=content).status_code == 200
        for row in [*ROWS.tolist(), [None, 0.5, 0.1]]:
            answer = client.post(f"{server.url}/predict", json={"inputs": [row], "model": "rows"})
            assert answer.status_code == 200, answer.text
        content = {"image": base64.b64encode(photo[:1000]).decode(), "model": "efficientnet-lite0"}
        assert client.post(f"{server.url}/predict", json=content).json()["code"] == "bad_image"
    refused = 0
    while not refused:
        refused = _overload(server, photo)


def _overload(server: RunningServer, photo: bytes) -> int:
    """Sends 60 photos at once; returns how many were refused."""
    head = f"POST /predict HTTP/1.1\r\nhost: t\r\ncontent-type: image/jpeg\r\ncontent-length: {len(photo)}\r\n"
    request = (head + "headway-timeout-ms: 60\r\n\r\n").encode() + photo
    address = httpx.URL(server.url)
    connections = [socket.create_connection((address.host, address.port or 0)) for _ in range(60)]
    try:
        for connection in connections:
            connection.settimeout(PATIENCE_SECONDS)
            connection.sendall(request)
        return sum(connection.recv(12).endswith(b"503") for connection in connections)
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("name", [path.stem for path in DASHBOARDS])
def test_dashboard_is_current(name: str) -> None:
    assert (ROOT / f"grafana/dashboards/{name}.json").read_text() == runpy.run_path(str(SCRIPT))["render"](name), (
        "run scripts/dashboards.py"
    )


def test_panels_do_not_hide_that_they_have_no_data() -> None:
    for query in QUERIES:
        assert "vector(" not in query.values[0]
        assert "absent" not in query.values[0]


@pytest.mark.parametrize("query", QUERIES)
def test_panel_has_data(prometheus: str, query: str) -> None:
    query = query.replace("$__rate_interval", "5m").replace("$model", ".*")
    query = re.sub(r'="\$(version|feature)"', '=~".+"', query)
    limit = time.monotonic() + PATIENCE_SECONDS
    while not any(math.isfinite(value) for value in _ask(prometheus, query)):
        assert time.monotonic() < limit, f"no data: {query}"
        time.sleep(0.2)


def _ask_by_feature(url: str, query: str) -> dict[str, float]:
    response = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=PATIENCE_SECONDS).raise_for_status()
    return {series["metric"]["feature"]: float(series["value"][1]) for series in response.json()["data"]["result"]}


def _read_drift(server: RunningServer) -> dict[str, Any]:
    """The features of rows, by name."""
    answer = httpx.get(f"{server.url}/models/rows/drift", params={"version": "1.0.1"}, timeout=PATIENCE_SECONDS)
    (version,) = answer.raise_for_status().json()["versions"]
    return {feature["name"]: feature for feature in version["features"]}


# Of all that was ever counted, without increase(): shares of now and of the baseline, by feature and bin.
OF_ROWS = 'model="rows",version="1.0.1",bin!="missing"'
INPUTS = f"sum by (feature) (headway_input_bin_total{{{OF_ROWS}}})"
NOW = f"(sum by (feature, bin) (headway_input_bin_total{{{OF_ROWS}}}) / on (feature) group_left () {INPUTS})"
BASELINE = f"(max by (feature, bin) (headway_drift_reference_ratio{{{OF_ROWS}}}))"
DISTANCES = {
    "population_stability_index": f"sum by (feature) ((clamp_min({NOW}, 1e-4) - clamp_min({BASELINE}, 1e-4))"
    f" * ln(clamp_min({NOW}, 1e-4) / clamp_min({BASELINE}, 1e-4)))",
    # In bits; 1e-300 stands for 0, for 0 log 0 is 0.
    "jensen_shannon": f"sqrt(sum by (feature) ({BASELINE} * log2(clamp_min({BASELINE}, 1e-300))"
    f" + {NOW} * log2(clamp_min({NOW}, 1e-300))"
    f" - ({BASELINE} + {NOW}) * log2(clamp_min({BASELINE} + {NOW}, 1e-300) / 2)) / 2)",
}
RECORDED = {"population_stability_index": "psi_1h", "jensen_shannon": "jensen_shannon_1h"}


def test_drift_of_prometheus_is_that_of_the_database(prometheus: str, server: RunningServer) -> None:
    """The same counts went two ways: by the counters of two workers, and by the database."""
    limit = time.monotonic() + PATIENCE_SECONDS
    counted: dict[str, float] = {}
    while not counted or min(counted.values()) < len(ROWS) or counted != _ask_by_feature(prometheus, INPUTS):
        assert time.monotonic() < limit, "the counts do not agree"
        time.sleep(0.2)
        drift = _read_drift(server)
        counted = {name: feature["n"] for name, feature in drift.items()}
    assert {"x[0]", "answer:classes", "answer:confidence", "answer:entropy"} <= drift.keys()
    for distance, query in DISTANCES.items():
        expected = {name: feature["from_baseline"][distance] for name, feature in drift.items()}
        assert min(expected.values()) > 0
        assert _ask_by_feature(prometheus, query) == pytest.approx(expected, rel=1e-9)
        record = f'model_version_feature:headway_drift:{RECORDED[distance]}{{model="rows",version="1.0.1"}}'
        # Rules are evaluated once a second.
        while (recorded := _ask_by_feature(prometheus, record)) != pytest.approx(expected, rel=0.01):
            assert time.monotonic() < limit, (recorded, expected)
            time.sleep(0.2)
