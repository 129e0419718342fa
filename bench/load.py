"""The load generator: wrk, compiled, in a closed loop."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.workloads import Workload

_SCRIPT = """
wrk.method = "POST"
{headers}
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
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


def require(command: str, packages: str = "") -> str:
    found = shutil.which(command)
    if found is None:
        raise SystemExit(f"{command} is missing; on Debian and Ubuntu: apt-get install {packages or command}")
    return found


def closed_loop(url: str, path: str, workload: Workload, connections: int, seconds: float) -> LoadResult:
    """`connections` callers, each sending its next request when the last is answered.

    One answer is looked at before: a server that answers wrongly has no row.
    """
    headers = {"content-type": workload.content_type, **workload.headers}
    answer = httpx.post(url + path, content=workload.body, headers=headers | {"accept-encoding": ""}, timeout=30)
    if answer.status_code != 200 or workload.expects not in answer.text:
        raise RuntimeError(f"{url}{path} answers {answer.status_code} {answer.text[:200]}")
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder, "body"), Path(folder, "script.lua")
        body.write_bytes(workload.body)
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
        script.write_text(_SCRIPT.replace("{headers}", lines).format(body=body), encoding="utf-8")
        command = [
            require("wrk"),
            "-t1",
            f"-c{connections}",
            f"-d{math.ceil(seconds)}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
        ]
        printed = subprocess.run([*command, url + path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)", printed)
    if found is None:
        raise RuntimeError(f"wrk printed no result:\n{printed}")
    requests, microseconds, errors = (int(found[i]) for i in (1, 2, 3))
    return LoadResult(requests, microseconds / 1e6, errors, *(float(found[i]) for i in (4, 5, 6)))
