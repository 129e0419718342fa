"""`python -m bench.through_nginx`: what nginx/ costs before one server, against asking the server itself.

Interleaved rounds of the closed loop over the same server: straight, through nginx, and through nginx with TLS. The
files of nginx/ are those that users get, with wider limits. Writes docs/benchmarks/nginx.md: medians over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.load import closed_loop, require
from bench.report import FOLDER
from bench.run import CONNECTIONS
from bench.targets import Running, Target, headway, running
from bench.workloads import Workload, workloads, write_registry
from tests.nginx.balancer import Nginx, list_replicas, make_certificates, raise_limits, running_nginx

_WAYS = ("straight", "nginx", "nginx with TLS")
_KEYS = ("a", "c")
_COLUMNS = ("per_second", "p50_ms", "p99_ms", "server_us", "nginx_us")
Figures = dict[tuple[str, str], dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    require("nginx")
    cases = {key: case for key, case in workloads().items() if key in _KEYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "models").mkdir()
        write_registry(root / "models")
        (root / "tls").mkdir()
        certificates = make_certificates(root / "tls")
        os.environ["SSL_CERT_FILE"] = str(certificates / "ca.pem")  # for the one answer that is looked at
        with running(headway(root / "models", HEADWAY_ACCESS_LOG_SAMPLE="0"), root / "log") as server:
            changes = list_replicas([server.url.removeprefix("http://")]) | raise_limits()
            with (
                running_nginx(root / "plain", changes) as plain,
                running_nginx(root / "secure", changes, certificates) as secure,
            ):
                figures = _measure(server, plain, secure, cases, options)
    page = _page(figures, cases, options)
    (FOLDER / "nginx.md").write_text(page, encoding="utf-8")
    print(page)


def _measure(
    server: Running, plain: Nginx, secure: Nginx, cases: dict[str, Workload], options: argparse.Namespace
) -> Figures:
    found: Figures = defaultdict(lambda: defaultdict(list))
    ways: list[tuple[str, str, Nginx | None]] = [
        (_WAYS[0], server.url, None),
        (_WAYS[1], plain.url, plain),
        (_WAYS[2], f"https://127.0.0.1:{secure.port}", secure),
    ]
    for number in range(options.rounds):
        for way, url, nginx in ways if number % 2 == 0 else ways[::-1]:
            for key, case in cases.items():
                proxy = Running(Target("nginx", lambda _: []), nginx.process, url, 0) if nginx is not None else None
                before = server.cpu_seconds(), proxy.cpu_seconds() if proxy else 0.0
                result = closed_loop(url, case.path, case, CONNECTIONS, options.seconds)
                after = server.cpu_seconds(), proxy.cpu_seconds() if proxy else 0.0
                assert result.errors == 0, f"{result.errors} requests failed {way}"
                spent = [(end - begin) / result.requests * 1e6 for begin, end in zip(before, after, strict=True)]
                values = (result.per_second, result.p50_ms, result.p99_ms, *spent)
                for column, value in zip(_COLUMNS, values, strict=True):
                    found[key, way][column].append(value)
                print(f"round {number + 1}: ({key}) {way}: {result.per_second:.0f}/s", flush=True)
    return found


def _page(figures: Figures, cases: dict[str, Workload], options: argparse.Namespace) -> str:
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    version = re.search(r"nginx/(\S+)", said)
    assert version is not None
    lines = [
        "# What nginx costs",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, {len(os.sched_getaffinity(0))} cores, nginx {version[1]}. "
        f"Medians of {options.rounds} interleaved rounds of {options.seconds:g} s, {CONNECTIONS} connections; server, "
        "nginx and wrk share the cores, so nginx takes from the server what it uses itself. Anew: "
        "`python -m bench.through_nginx`.",
    ]
    for key, case in cases.items():
        straight = statistics.median(figures[key, _WAYS[0]]["per_second"])
        lines += [
            "",
            f"## ({key}) {case.title}",
            "",
            "| | requests/s | of straight | p50 | p99 | CPU of the server | CPU of nginx |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for way in _WAYS:
            row = {column: statistics.median(values) for column, values in figures[key, way].items()}
            lines.append(
                f"| {way} | {row['per_second']:.0f} | {row['per_second'] / straight:.2f} × | {row['p50_ms']:.1f} ms "
                f"| {row['p99_ms']:.1f} ms | {row['server_us']:.0f} µs | {row['nginx_us']:.0f} µs |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
