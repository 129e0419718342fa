"""`headway release compare MODEL`: what a running server has counted of a model's versions, and of its shadow."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table

from app.cli.console import JsonOption, emit, failing_cleanly
from app.errors import InvalidContent, ModelNotFound

UrlOption = Annotated[str, typer.Option("--url", help="Where the server is.", envvar="HEADWAY_URL")]


def compare(
    model: Annotated[str, typer.Argument(help="The name of the model.")],
    url: UrlOption = "http://127.0.0.1:8000",
    as_json: JsonOption = False,
) -> None:
    """Requests, errors and latency of each version since the server's start, and how far a shadow agrees."""
    with failing_cleanly():
        found = summarise(model, _scrape(url))
        emit(as_json, found, lambda: Group(_version_table(found["versions"]), "", _shadow_table(found["shadows"])))


def summarise(model: str, exposition: str) -> dict[str, Any]:
    """From the text of /metrics. Raises ModelNotFound where it has nothing of the model."""
    from prometheus_client.parser import text_string_to_metric_families

    codes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    durations: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    shadows: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            labels = sample.labels
            if labels.get("model") != model:
                continue
            if sample.name == "headway_requests_total":
                codes[labels["version"]][labels["code"]] += sample.value
            elif sample.name in ("headway_request_duration_seconds_sum", "headway_request_duration_seconds_count"):
                durations[labels["version"]][sample.name.rpartition("_")[2]] += sample.value
            elif sample.name == "headway_shadow_requests_total":
                shadows[labels["version"], labels["shadow"]][labels["outcome"]] += sample.value
            elif sample.name in ("headway_shadow_difference_sum", "headway_shadow_difference_count"):
                shadows[labels["version"], labels["shadow"]][sample.name.rpartition("_")[2]] += sample.value
    if not codes and not shadows:
        raise ModelNotFound(f"the server has counted nothing of a model {model!r} yet; send it a request")
    return {
        "model": model,
        "versions": [_describe_version(name, codes[name], durations[name]) for name in sorted(codes)],
        "shadows": [_describe_shadow(*pair, counts) for pair, counts in sorted(shadows.items())],
    }


def _scrape(url: str) -> str:
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/metrics", timeout=10)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise InvalidContent(f"{url}: cannot be asked ({exc}); name the server with --url") from exc
    return answer.text


def _describe_version(name: str, codes: dict[str, float], durations: dict[str, float]) -> dict[str, Any]:
    requests = sum(codes.values())
    failed = sum(count for code, count in codes.items() if code.startswith("5"))
    count = durations["count"]
    return {
        "version": name,
        "requests": int(requests),
        "server_error_ratio": failed / requests if requests else 0.0,
        "mean_ms": durations["sum"] / count * 1e3 if count else None,
    }


def _describe_shadow(version: str, shadow: str, counts: dict[str, float]) -> dict[str, Any]:
    compared = counts["agreed"] + counts["disagreed"]
    return {
        "version": version,
        "shadow": shadow,
        "compared": int(compared),
        "agreement_ratio": counts["agreed"] / compared if compared else None,
        "mean_difference": counts["sum"] / counts["count"] if counts["count"] else None,
        "failed": int(counts["failed"]),
        "dropped": int(counts["dropped"]),
    }


def _version_table(versions: list[dict[str, Any]]) -> Table:
    table = _table("version", "requests", "server errors", "mean")
    for entry in versions:
        mean = "-" if entry["mean_ms"] is None else f"{entry['mean_ms']:.2f} ms"
        table.add_row(entry["version"], f"{entry['requests']:,}", f"{entry['server_error_ratio']:.2%}", mean)
    return table


def _shadow_table(shadows: list[dict[str, Any]]) -> Table | str:
    if not shadows:
        return "no shadow has been compared; set one with: headway release shadow MODEL@VERSION --share 10"
    table = _table("version", "shadow", "compared", "same answer", "mean difference", "failed", "dropped")
    for entry in shadows:
        ratio, difference = entry["agreement_ratio"], entry["mean_difference"]
        table.add_row(
            entry["version"],
            entry["shadow"],
            f"{entry['compared']:,}",
            "-" if ratio is None else f"{ratio:.1%}",
            "-" if difference is None else f"{difference:.4f}",
            f"{entry['failed']:,}",
            f"{entry['dropped']:,}",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
