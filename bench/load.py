"""The load generators, both compiled: wrk for a closed loop, hey at a fixed rate for an open one."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.workloads import Workload

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "{content_type}"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
local wrong = 0
function response(status, headers, body)
  if status ~= 200 or not body:find("{expects}", 1, true) then wrong = wrong + 1 end
end
function setup(thread) table.insert(threads, thread) end
threads = {{}}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %.3f %.3f %.3f\\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
"""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Latencies in milliseconds; `requests` were answered within `seconds`, `errors` were not answered with 200."""

    requests: int
    seconds: float
    errors: int
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return (self.requests - self.errors) / self.seconds


def require(command: str) -> str:
    found = shutil.which(command)
    if found is None:
        raise SystemExit(f"{command} is missing; on Debian and Ubuntu: apt-get install {command}")
    return found


def closed_loop(url: str, path: str, workload: Workload, connections: int, seconds: float) -> LoadResult:
    """`connections` callers, each sending its next request when the last is answered."""
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(workload.body)
        script.write_text(
            _SCRIPT.format(content_type=workload.content_type, body=body, expects=workload.expects), encoding="utf-8"
        )
        command = [require("wrk"), "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script)]
        printed = subprocess.run([*command, url + path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)", printed)
    if found is None:
        raise RuntimeError(f"wrk printed no result:\n{printed}")
    requests, microseconds, errors = (int(found[i]) for i in (1, 2, 3))
    return LoadResult(requests, microseconds / 1e6, errors, *(float(found[i]) for i in (4, 5, 6)))


@dataclass(frozen=True, slots=True)
class OpenLoopResult:
    """`offered` a second were sent; latencies of what was answered with 200, in milliseconds."""

    offered_per_second: float
    good: int
    refused: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def goodput_per_second(self) -> float:
        return self.good / self.seconds


def open_loop(
    url: str, path: str, workload: Workload, rate: float, seconds: float, *, connections: int = 256, timeout_ms: int
) -> OpenLoopResult:
    """A fixed rate, whatever the answers take, as long as fewer than `connections` are waited for."""
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(workload.body)
        command = [require("hey"), "-z", f"{seconds:g}s", "-c", str(connections), "-q", f"{rate / connections:.4f}"]
        command += ["-t", "30", "-m", "POST", "-T", workload.content_type, "-D", str(body), "-o", "csv"]
        command += ["-H", f"Headway-Timeout-Ms: {timeout_ms}"]
        printed = subprocess.run([*command, url + path], capture_output=True, text=True, check=True).stdout
    rows = [line.split(",") for line in printed.splitlines()[1:]]
    good = sorted(float(row[0]) * 1e3 for row in rows if row[6] == "200")
    refused = sum(row[6] == "503" for row in rows)
    return OpenLoopResult(
        offered_per_second=rate,
        good=len(good),
        refused=refused,
        errors=len(rows) - len(good) - refused,
        seconds=seconds,
        p50_ms=good[len(good) // 2] if good else 0.0,
        p99_ms=good[int(len(good) * 0.99)] if good else 0.0,
    )
