"""Statistics: every field, and figures that are the caller's own, whichever workers answered."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from prometheus_client.samples import Sample

from app.api.open_inference.statistics import gather_figures
from tests.running import PATIENCE_SECONDS, RunningServer

DURATIONS = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


def read(client: httpx.Client, path: str) -> dict[str, Any]:
    (found,) = client.get(path).json()["model_stats"]
    return dict(found)


def counts(found: dict[str, Any]) -> dict[str, int]:
    """All counts and times of one version, by name."""
    return {
        "rows": found["inference_count"],
        "runs": found["execution_count"],
        **{name: one["count"] for name, one in found["inference_stats"].items()},
        **{f"{name}_ns": one["ns"] for name, one in found["inference_stats"].items()},
    }


def infer(url: str, model: str, rows: int, width: int = 3) -> httpx.Response:
    """Over a connection of its own, so that both workers get some."""
    tensor = {"name": "x", "shape": [rows, width], "datatype": "FP32", "data": [0] * rows * width}
    return httpx.post(f"{url}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=PATIENCE_SECONDS)


def settled(client: httpx.Client, path: str, requests: int, failed: int) -> dict[str, Any]:
    """The statistics once they tell of so many requests: the last is counted when its answer is on its way."""
    limit = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = read(client, path)
        stats = found["inference_stats"]
        if (stats["success"]["count"], stats["fail"]["count"]) == (requests, failed):
            return found
        assert stats["success"]["count"] <= requests
        assert time.monotonic() < limit, found


def test_counts_are_those_of_the_caller_over_two_workers_p24(v2: httpx.Client, spoken: RunningServer) -> None:
    before = counts(read(v2, "/v2/models/one_row/stats"))
    began_ms = time.time_ns() // 1_000_000
    for number in range(30):
        assert infer(spoken.url, "one_row", 1 + number % 3).status_code == 200
    for _ in range(4):
        assert infer(spoken.url, "one_row", 1, width=2).status_code == 400
    found = settled(v2, "/v2/models/one_row/stats", before["success"] + 30, before["fail"] + 4)
    after = counts(found)
    grown = {name: after[name] - before[name] for name in after}
    assert (grown["rows"], grown["runs"]) == (60, 60)  # the file takes one row a run
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert grown[name] == 30, name
    parts = [grown[f"{name}_ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert all(part >= 0 for part in parts)
    assert grown["compute_infer_ns"] > 0
    assert 0 < sum(parts) <= grown["success_ns"]
    assert grown["fail_ns"] > 0
    assert began_ms <= found["last_inference"] <= time.time_ns() // 1_000_000
    (batch,) = found["batch_stats"]
    assert batch["batch_size"] == 1
    assert batch["compute_infer"] == found["inference_stats"]["compute_infer"]


def test_rows_of_batches_p24(v2: httpx.Client) -> None:
    before = counts(read(v2, "/v2/models/scores/versions/2.0.0/stats"))
    for _ in range(3):
        tensor = {"name": "x", "shape": [20, 3], "datatype": "FP32", "data": [0] * 60}
        answer = v2.post("/v2/models/scores/versions/canary/infer", json={"inputs": [tensor]})
        assert answer.json()["model_version"] == "2.0.0"
    path = "/v2/models/scores/versions/canary/stats"
    after = counts(settled(v2, path, before["success"] + 3, before["fail"]))
    assert after["rows"] - before["rows"] == 60
    assert after["runs"] - before["runs"] == 9  # 8 + 8 + 4 rows, three times


@pytest.mark.parametrize("path", ["/v2/models/stats", "/v2/models/stats/", "/v2/models/scores/stats"])
def test_every_field_is_there_and_unsigned_p24(v2: httpx.Client, path: str) -> None:
    listed = v2.get(path).json()["model_stats"]
    named = {(one["name"], one["version"]) for one in listed}
    assert {("scores", "1.0.0"), ("scores", "2.0.0")} <= named
    assert (("double", "1.0.0") in named) == ("scores" not in path)
    for one in listed:
        assert {"last_inference", "inference_count", "execution_count", "batch_stats"} <= set(one)
        assert set(one["inference_stats"]) == DURATIONS
        numbers = [value for duration in one["inference_stats"].values() for value in duration.values()]
        numbers += [one["last_inference"], one["inference_count"], one["execution_count"]]
        assert all(type(value) is int and value >= 0 for value in numbers)


def test_no_gpu_is_told_of_p25(v2: httpx.Client) -> None:
    """Clients that ask for GPU figures find none by these names, and say so."""
    assert "nv_gpu" not in v2.get("/metrics").text


def test_protocols_and_codes_are_added_up() -> None:
    labels = {"model": "m", "version": "1"}
    requests = [("v2", "200", 3), ("predict", "200", 4), ("v2", "400", 1), ("v2", "503", 2)]
    figures = gather_figures(
        [
            *(
                Sample("headway_requests_total", labels | {"protocol": protocol, "code": code}, count)
                for protocol, code, count in requests
            ),
            Sample("headway_batch_size_sum", labels, 9),
            Sample("headway_queue_depth", {"model": "m"}, 5),
            Sample("headway_stage_duration_seconds_sum", labels | {"stage": "queue"}, 0.5),
        ]
    )
    assert figures == {
        ("m", "1"): {
            "headway_requests_totalok": 7,
            "headway_requests_totalfailed": 3,
            "headway_batch_size_sum": 9,
            "headway_stage_duration_seconds_sumqueue": 0.5,
        }
    }
