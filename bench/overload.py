"""Part (e): what is answered in time when more is asked than can be done, and how soon the rest is refused.

`python -m bench.overload` measures it alone, `bench.run` as part of every round. Open loop: requests come evenly
spaced at a multiple of the capacity, which the closed loop has found just before.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.generator import Generator, Traffic
from bench.load import closed_loop
from bench.targets import Running, headway, running
from bench.workloads import Workload, workloads, write_registry

# The bars are for the photo: to refuse four floats costs as much as to answer them.
REPORTED = {"a": True, "c": False}
MULTIPLES = (0.5, 1.0, 2.0, 3.0)
# Above what a full queue of the shipped limits takes here (0.6 s), so that both limits are at work, the queue's and
# the deadline's; the default of 10 s would never be felt, and a caller who waits for a photo's label has left by then.
DEADLINE_MS = 1000
# Until the queues are as full as they will be.
SETTLE_SECONDS = 2.0
CAPACITY_CONNECTIONS = 16
# The access log writes every 0.2 s.
LOG_SECONDS = 0.5
# A generator that is itself so late says more of the machine than of the server.
MOST_LAG_MS = 50.0
LEAST_RATIO = 0.95
MOST_REFUSAL_MS = 5.0

Figures = dict[str, float]


def measure_overloads(root: Path, cases: Mapping[str, Workload], seconds: float) -> dict[str, Figures]:
    """Headway, started for this, with each workload that the report has under overload."""
    generator, log, figures = Generator(root), root / "log", {}
    with running(headway(root), log) as server:
        for key in REPORTED:
            figures |= measure_overload(generator, server, log, cases[key], seconds)
    return figures


def measure_overload(
    generator: Generator, server: Running, log: Path, case: Workload, seconds: float, deadline_ms: int = DEADLINE_MS
) -> dict[str, Figures]:
    """The figures of each multiple, by `name_level`; and by `name_summary` the capacity and what the bars ask for."""
    capacity = closed_loop(server.url, case.path, case, CAPACITY_CONNECTIONS, seconds / 2).per_second
    headers = {"content-type": case.content_type, "headway-timeout-ms": str(deadline_ms)}
    levels: dict[str, Figures] = {}
    for multiple in MULTIPLES:
        time.sleep(LOG_SECONDS)
        offset = log.stat().st_size
        before = server.cpu_seconds()
        traffic = generator.open_loop(
            server.url + case.path,
            [case.body],
            headers,
            per_second=multiple * capacity,
            seconds=seconds + SETTLE_SECONDS,
        )
        figures = describe_level(traffic, deadline_ms / 1e3, SETTLE_SECONDS, seconds + SETTLE_SECONDS)
        figures["server_cores"] = (server.cpu_seconds() - before) / traffic.seconds
        time.sleep(LOG_SECONDS)
        with log.open("rb") as file:
            file.seek(offset)
            refusals = read_refusals(file)
        levels[name_level(case.key, multiple)] = figures | percentiles("server_refusal", refusals)
    levels[name_summary(case.key)] = {"capacity": capacity} | summarise_levels(case.key, levels)
    return levels


def name_level(key: str, multiple: float) -> str:
    return f"overload {key} {multiple:g}"


def name_summary(key: str) -> str:
    return f"overload {key}"


def describe_level(traffic: Traffic, deadline_seconds: float, begin: float, end: float) -> Figures:
    """Rates are of what was done from `begin` to `end`, or the backlog at the end would count as work of that time;
    latencies (ms, from the intended time) are of what was due in it. Accepted is what was not refused: 200 and 504."""
    latency = traffic.done - traffic.due
    was_done = (traffic.done >= begin) & (traffic.done < end)
    was_due = (traffic.due >= begin) & (traffic.due < end)
    is_good = (traffic.fate == 200) & (latency <= deadline_seconds)
    is_expired = traffic.fate == 504
    is_refused = traffic.fate == 503
    is_accepted = (traffic.fate == 200) | is_expired
    window = end - begin
    return {
        "offered": ((traffic.sent >= begin) & (traffic.sent < end)).sum() / window,
        "goodput": (is_good & was_done).sum() / window,
        "late": ((traffic.fate == 200) & ~is_good & was_done).sum() / window,
        "expired": (is_expired & was_done).sum() / window,
        "refused": (is_refused & was_done).sum() / window,
        "failed": float((~is_accepted & ~is_refused).sum()),
        "generator_cpu_us": traffic.cpu_seconds / len(traffic.due) * 1e6,
        "generator_cores": traffic.cpu_seconds / traffic.seconds,
        **percentiles("accepted", latency[is_accepted & was_due] * 1e3),
        **percentiles("refusal", latency[is_refused & was_due] * 1e3),
        **percentiles("lag", (traffic.sent - traffic.due)[was_due] * 1e3),
    }


def percentiles(name: str, milliseconds: Sequence[float] | NDArray[np.float64]) -> Figures:
    """`name`_p50, _p95 and _p99; nothing where there is nothing to rank."""
    if not len(milliseconds):
        return {}
    found = np.percentile(milliseconds, (50, 95, 99))
    return {f"{name}_p{rank}": float(value) for rank, value in zip((50, 95, 99), found, strict=True)}


def read_refusals(lines: Iterable[bytes]) -> list[float]:
    """From access log lines: how long (ms) each 503 took the server, from the last byte of its body to its answer."""
    found = []
    for line in lines:
        if b'"headway.access"' in line and b'"status": 503' in line:
            entry = json.loads(line)
            if entry["status"] == 503 and "after_body_ms" in entry:
                found.append(entry["after_body_ms"])
    return found


def summarise_levels(key: str, levels: Mapping[str, Figures]) -> Figures:
    """What the bars are about: goodput at the highest multiple as a ratio to that at 1 ×, and to the best of all.

    `ratio_of_own_cores` is the first for each core that the generator leaves: more load takes more of them, and callers
    have machines of their own.
    """
    most = levels[name_level(key, max(MULTIPLES))]
    once = levels[name_level(key, 1.0)]
    best = max(levels[name_level(key, multiple)]["goodput"] for multiple in MULTIPLES)
    cores = len(os.sched_getaffinity(0))
    ratio = most["goodput"] / once["goodput"]
    figures = {
        "ratio_to_once": ratio,
        "ratio_of_own_cores": ratio * (cores - once["generator_cores"]) / (cores - most["generator_cores"]),
        "ratio_to_best": most["goodput"] / best,
    }
    for name in ("accepted_p99", "server_refusal_p99"):
        if name in most:
            figures[name] = most[name]
    return figures


def overload_pages(figures: Mapping[str, Figures]) -> list[str]:
    """The sections of the report, from the medians over the rounds; nothing where it was not measured."""
    cases = workloads()
    measured = [key for key in REPORTED if name_summary(key) in figures]
    return [line for key in measured for line in overload_page(cases[key], figures)]


def overload_page(case: Workload, figures: Mapping[str, Figures]) -> list[str]:
    key, summary = case.key, figures[name_summary(case.key)]
    lines = [
        "",
        f"## (e) Overload with ({key}) {case.title}",
        "",
        f"Open loop, evenly spaced, at multiples of the capacity of {summary['capacity']:.0f}/s that the closed loop "
        f"found just before; each request may take {DEADLINE_MS} ms. Goodput is what got 200 within that, "
        "from the time it was due. Refusals: at the server from the last byte of the body to the answer; at the caller "
        "from the time it was due.",
        "",
        "| offered | goodput | accepted p50 | p95 | p99 | late or 504 | refused | at the server p50 | p99 "
        "| at the caller p99 | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_row(multiple, figures[name_level(key, multiple)]) for multiple in MULTIPLES]
    lines += [
        "",
        f"Goodput at {max(MULTIPLES):g} × is {summary['ratio_to_once']:.3f} of that at 1 ×, "
        f"{summary['ratio_to_best']:.3f} of the best of all, and {summary['ratio_of_own_cores']:.3f} of that at 1 × "
        "for each core that the generator leaves.",
    ]
    lag = max(figures[name_level(key, multiple)].get("lag_p99", 0.0) for multiple in MULTIPLES)
    if lag > MOST_LAG_MS:
        lines += [
            "",
            f"**The generator was {lag:.0f} ms late itself (p99): the machine was too busy for these figures.**",
        ]
    return [*lines, "", *_bars(summary)] if REPORTED[key] else lines


def _row(multiple: float, level: Figures) -> str:
    names = ("accepted_p50", "accepted_p95", "accepted_p99")
    accepted = [_milliseconds(level, name, 0) for name in names]
    refusals = [_milliseconds(level, name, 2) for name in ("server_refusal_p50", "server_refusal_p99", "refusal_p99")]
    cells = [
        f"{multiple:g} × = {level['offered']:.0f}/s",
        f"{level['goodput']:.0f}/s",
        *accepted,
        f"{level['late'] + level['expired']:.1f}/s",
        f"{level['refused']:.0f}/s",
        *refusals,
        f"{level['failed']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _milliseconds(figures: Figures, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f} ms" if name in figures else "–"


def _bars(summary: Figures) -> list[str]:
    most = max(MULTIPLES)
    bars = [
        (f"goodput at {most:g} × / at 1 ×", summary["ratio_to_once"], LEAST_RATIO, True),
        (f"p99 of what was accepted at {most:g} ×, ms", summary.get("accepted_p99"), DEADLINE_MS, False),
        (f"p99 of refusals at the server at {most:g} ×, ms", summary.get("server_refusal_p99"), MOST_REFUSAL_MS, False),
    ]
    lines = ["| bar | reached | asked |", "| --- | ---: | ---: |"]
    for name, value, asked, is_least in bars:
        word = "at least" if is_least else "under"
        reached = "–" if value is None else f"{value:.3f}" if is_least else f"{value:.2f}"
        lines.append(f"| {name} | {reached} {_verdict(value, asked, is_least)} | {word} {asked:g} |")
    return lines


def _verdict(value: float | None, asked: float, is_least: bool) -> str:
    if value is None:
        return "not measured"
    return "reached" if (value >= asked if is_least else value < asked) else "**missed**"


def main() -> None:
    options = _parse()
    cases = workloads()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_registry(root)
        generator, log = Generator(root), root / "log"
        with running(headway(root), log) as server:
            for key in options.workloads or ["a"]:
                figures = measure_overload(generator, server, log, cases[key], options.seconds, options.deadline_ms)
                print("\n".join(overload_page(cases[key], figures)), flush=True)
                if options.json:
                    print(json.dumps(figures, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one measurement")
    parser.add_argument("--deadline-ms", type=int, default=DEADLINE_MS)
    parser.add_argument("--json", action="store_true", help="every figure as well")
    parser.add_argument("--workload", dest="workloads", action="append", choices=REPORTED, help="a unless said")
    return parser.parse_args()


if __name__ == "__main__":
    main()
