"""The figures of the overload part, worked out from requests whose fate is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.generator import BROKEN, Traffic
from bench.overload import (
    MULTIPLES,
    describe_level,
    name_level,
    name_summary,
    overload_pages,
    percentiles,
    read_refusals,
    summarise_levels,
)


def traffic(*requests: tuple[float, float, int]) -> Traffic:
    """Each request as (due, latency, fate); all are sent 1 ms late."""
    due, latency, fate = (np.array(column) for column in zip(*requests, strict=True))
    return Traffic(due, due + 0.001, due + latency, fate, seconds=10, cpu_seconds=0.001 * len(due), dials=1)


def test_rates_are_of_what_was_done_in_the_window() -> None:
    figures = describe_level(
        traffic(
            (1.0, 0.5, 200),  # before the window
            (1.8, 0.4, 200),  # due before, done in it
            (3.0, 0.5, 200),
            (3.5, 1.5, 200),  # late
            (4.0, 1.0, 504),
            (5.0, 0.01, 503),
            (5.9, 0.2, 200),  # the backlog at the end is no work of this time
        ),
        deadline_seconds=1.0,
        begin=2.0,
        end=6.0,
    )
    assert figures["goodput"] == 2 / 4
    assert figures["late"] == 1 / 4
    assert figures["expired"] == 1 / 4
    assert figures["refused"] == 1 / 4
    assert figures["offered"] == 5 / 4
    assert figures["failed"] == 0
    assert figures["generator_cpu_us"] == pytest.approx(1000)
    assert figures["lag_p50"] == pytest.approx(1)


def test_latencies_are_of_what_was_due_in_the_window_and_accepted() -> None:
    figures = describe_level(
        traffic((0.0, 9.0, 200), (3.0, 0.1, 200), (4.0, 0.3, 200), (5.0, 0.5, 504), (5.5, 0.02, 503), (5.6, 0.04, 503)),
        deadline_seconds=1.0,
        begin=2.0,
        end=6.0,
    )
    assert figures["accepted_p50"] == pytest.approx(300)
    assert figures["accepted_p99"] == pytest.approx(496)
    assert figures["refusal_p50"] == pytest.approx(30)


def test_what_is_neither_answered_nor_refused_has_failed() -> None:
    figures = describe_level(traffic((3.0, 0.1, 500), (3.0, 0.1, BROKEN), (3.0, 0.1, 408)), 1.0, 2.0, 6.0)
    assert figures["failed"] == 3
    assert figures["goodput"] == 0
    assert "accepted_p50" not in figures


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles("refusal", []) == {}


def test_refusals_are_read_from_the_access_log() -> None:
    def line(**entry: object) -> bytes:
        return json.dumps({"logger": "headway.access"} | entry).encode() + b"\n"

    lines = [
        b"text that another server wrote, with 503\n",
        line(status=200, after_body_ms=7.0),
        line(status=503, after_body_ms=0.25),
        line(status=503),  # answered before its body was complete
        line(status=503, after_body_ms=0.5, request_id='"status": 200'),
        json.dumps({"logger": "headway.server", "status": 503, "after_body_ms": 9.0}).encode(),
    ]
    assert read_refusals(lines) == [0.25, 0.5]


def levels(*goodputs: float) -> dict[str, dict[str, float]]:
    """One goodput a multiple, all else the same."""
    rest = {"offered": 100.0, "late": 0.0, "expired": 0.0, "refused": 50.0, "failed": 0.0, "generator_cores": 0.0}
    rest |= {"accepted_p50": 300.0, "accepted_p95": 600.0, "accepted_p99": 700.0, "server_refusal_p99": 1.5}
    return {
        name_level("a", multiple): rest | {"goodput": goodput}
        for multiple, goodput in zip(MULTIPLES, goodputs, strict=True)
    }


def test_ratio_is_to_once_and_to_the_best() -> None:
    summary = summarise_levels("a", levels(50, 90, 100, 81))
    assert summary["ratio_to_once"] == pytest.approx(0.9)
    assert summary["ratio_to_best"] == pytest.approx(0.81)
    assert summary["ratio_of_own_cores"] == summary["ratio_to_once"]
    assert summary["accepted_p99"] == 700
    assert summary["server_refusal_p99"] == 1.5


@pytest.mark.parametrize(("goodput", "verdict"), [(95.0, "0.950 reached"), (94.9, "0.949 **missed**")])
def test_page_says_whether_the_bar_is_reached(goodput: float, verdict: str) -> None:
    figures = levels(50, 100, 100, goodput)
    figures[name_summary("a")] = {"capacity": 100.0} | summarise_levels("a", figures)
    page = "\n".join(overload_pages(figures))
    assert f"| {verdict} | at least 0.95 |" in page
    assert "| 700.00 reached | under 1000 |" in page
    assert "| 1.50 reached | under 5 |" in page
    assert "| 3 × = 100/s |" in page


def test_page_says_when_the_machine_was_too_busy() -> None:
    figures = levels(50, 100, 100, 95)
    figures[name_summary("a")] = {"capacity": 100.0} | summarise_levels("a", figures)
    assert "late itself" not in "\n".join(overload_pages(figures))
    figures[name_level("a", 2.0)]["lag_p99"] = 80.0
    assert "80 ms late itself" in "\n".join(overload_pages(figures))


def test_page_has_no_bars_for_the_tiny_model_and_nothing_that_was_not_measured() -> None:
    figures = {name.replace(" a", " c"): level for name, level in levels(50, 100, 100, 20).items()}
    figures[name_summary("c")] = {"capacity": 100.0} | summarise_levels("c", figures)
    page = "\n".join(overload_pages(figures))
    assert "0.200 of that at 1 ×" in page
    assert "asked" not in page
    assert overload_pages({}) == []
