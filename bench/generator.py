"""Builds and runs bench/generator.c, and reads what became of each request. Closed loops of a given time: load.py."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.load import require

SOURCE = Path(__file__).parent / "generator.c"
# What became of a request that got no answer; else its fate is the HTTP status.
CONNECT_ERROR, BROKEN, TIMED_OUT = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Traffic:
    """One entry a request, in the order in which they were due; all times in seconds since the start.

    `due` is when a request ought to have been sent, `sent` when it was begun. `dials` counts connections made.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    fate: NDArray[np.int64]
    seconds: float
    cpu_seconds: float
    dials: int

    def count(self, fate: int) -> int:
        return int((self.fate == fate).sum())


class Generator:
    """The compiled program. `folder` must outlive it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._program = folder / "generator"
        command = [require("cc", "gcc libc6-dev"), "-O2", "-std=gnu11", *flags, "-o", str(self._program), str(SOURCE)]
        subprocess.run([*command, "-lm"], check=True)

    def open_loop(
        self,
        url: str,
        bodies: Sequence[bytes],
        headers: Mapping[str, str],
        *,
        per_second: float,
        seconds: float,
        is_poisson: bool = False,
        connections: int = 2000,
        timeout_seconds: float = 30,
    ) -> Traffic:
        """`per_second` requests a second at times fixed beforehand, evenly spaced unless `is_poisson`."""
        schedule = ["-r", f"{per_second:.6f}", "-n", str(max(1, round(per_second * seconds)))]
        if is_poisson:
            schedule.append("-p")
        return self._run(url, bodies, headers, [*schedule, "-c", str(connections), "-t", str(timeout_seconds)])

    def closed_loop(
        self, url: str, bodies: Sequence[bytes], headers: Mapping[str, str], *, requests: int, connections: int
    ) -> Traffic:
        """Exactly so many requests, each connection sending its next when its last is answered."""
        return self._run(url, bodies, headers, ["-n", str(requests), "-c", str(connections)])

    def _run(self, url: str, bodies: Sequence[bytes], headers: Mapping[str, str], options: list[str]) -> Traffic:
        command = [str(self._program), *options]
        for name, value in headers.items():
            command += ["-H", f"{name}: {value}"]
        with tempfile.TemporaryDirectory() as folder:
            for number, body in enumerate(bodies):
                path = Path(folder, str(number))
                path.write_bytes(body)
                command += ["-b", str(path)]
            printed = subprocess.run([*command, url], capture_output=True, text=True, check=False)
        if printed.returncode != 0:
            raise RuntimeError(f"the load generator failed: {printed.stderr.strip()}")
        return read_traffic(printed.stdout)


def read_traffic(text: str) -> Traffic:
    """The generator's JSON: `requests` has [due, sent, done, fate] for each."""
    found = json.loads(text)
    due, sent, done, fate = np.array(found["requests"], np.float64).reshape(-1, 4).T
    return Traffic(due, sent, done, fate.astype(np.int64), found["seconds"], found["cpu_seconds"], found["dials"])
