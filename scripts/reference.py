"""Writes what the reference says of settings, errors and metrics, and .env.example, from the code itself.

`python scripts/reference.py` writes; a test holds the files equal to what it would write.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from prometheus_client.metrics import MetricWrapperBase  # noqa: E402

from app import errors  # noqa: E402
from app.metrics import Metrics  # noqa: E402
from app.settings import Settings  # noqa: E402


def render_settings() -> str:
    lines = [
        "# Settings",
        "",
        "Environment variables, or lines of a file `.env` in the working directory. `headway serve` has flags for the",
        "first; a flag wins over the environment. A wrong value ends the start with the variable's name.",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
    ]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `HEADWAY_{name.upper()}` | {_default(field.default) or '–'} | {field.description} |")
    return "\n".join(lines) + "\n"


def render_env_example() -> str:
    lines = ["# Copy to .env and change what you need; every line shows its default.", ""]
    for name, field in Settings.model_fields.items():
        lines += [f"# {field.description}", f"# HEADWAY_{name.upper()}={_default(field.default)}", ""]
    return "\n".join(lines)


def render_errors() -> str:
    lines = [
        "# Errors",
        "",
        '`{"error": "<what is wrong and what to do>", "code": "…", "request_id": "…"}` on every route. A 500 is a bug.',
        "",
        "| code | HTTP status | gRPC status | Retry-After |",
        "| --- | --- | --- | --- |",
    ]
    classes = {cls.code: cls for _, cls in inspect.getmembers(errors, _is_answer)}
    for code, cls in sorted(classes.items(), key=lambda item: (item[1].status, item[0])):
        lines.append(f"| `{code}` | {cls.status} | {cls.grpc} | {cls.retry_after_seconds or '–'} |")
    return "\n".join(lines) + "\n"


def render_metrics() -> str:
    lines = [
        "# Metrics",
        "",
        "Summed over all workers of one server. Labels come from the registry, never from a request: another model is",
        "`unknown`. Refusals never enter `headway_request_duration_seconds`.",
        "",
        "| name | type | labels | meaning |",
        "| --- | --- | --- | --- |",
    ]
    found = [part for member in vars(Metrics()).values() for part in _parts(member)]
    for metric in found:
        name = metric._name + ("_total" if metric._type == "counter" else "")
        labels = ", ".join(metric._labelnames) or "–"
        lines.append(f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |")
    return "\n".join(lines) + "\n"


def _parts(member: object) -> list[MetricWrapperBase]:
    """A metric, or the metrics of a mapping."""
    members = member.values() if isinstance(member, dict) else [member]
    return [one for one in members if isinstance(one, MetricWrapperBase)]


FILES = {
    ".env.example": render_env_example,
    "docs/reference/settings.md": render_settings,
    "docs/reference/errors.md": render_errors,
    "docs/reference/metrics.md": render_metrics,
}


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_answer(member: object) -> bool:
    if not inspect.isclass(member) or not issubclass(member, errors.HeadwayError):
        return False
    return member not in (errors.HeadwayError, errors.RuntimeLoadError)


if __name__ == "__main__":
    for path, render in FILES.items():
        (ROOT / path).write_text(render(), encoding="utf-8")
