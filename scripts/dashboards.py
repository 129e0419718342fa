"""Write grafana/dashboards/*.json; a test holds them equal to this file, and each query against a real Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_MODEL = 'model=~"$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are PromQL with the legend of each series; `unit` is one of Grafana's; `kind` its panel type."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    description: str = ""


_BY_VERSION = "{{model}}@{{version}}"
SERVICE = (
    Panel(
        "Requests",
        [(f"sum by (model, version) (rate(headway_requests_total{{{_MODEL}}}[$__rate_interval]))", _BY_VERSION)],
        "reqps",
    ),
    Panel(
        "Errors of the server",
        [
            (
                f'sum by (model, code) (rate(headway_requests_total{{{_MODEL},code=~"5.."}}[$__rate_interval]))',
                "{{model}} {{code}}",
            )
        ],
        "reqps",
        description="5xx; a refusal under overload is one, and burns the error budget.",
    ),
    Panel(
        "Latency of successful answers",
        [
            (
                f"histogram_quantile({quantile}, sum by (model, version, le) "
                f"(rate(headway_request_duration_seconds_bucket{{{_MODEL}}}[$__rate_interval])))",
                f"{_BY_VERSION} p{round(quantile * 100)}",
            )
            for quantile in (0.5, 0.95, 0.99)
        ],
        "s",
    ),
    Panel(
        "Where the time goes",
        [
            (
                f"sum by (stage) (rate(headway_stage_duration_seconds_sum{{{_MODEL}}}[$__rate_interval])) / "
                f"sum by (stage) (rate(headway_stage_duration_seconds_count{{{_MODEL}}}[$__rate_interval]))",
                "{{stage}}",
            )
        ],
        "s",
        description="Mean of each stage of a prediction.",
    ),
    Panel(
        "Refused",
        [
            (
                f"sum by (model, reason) (rate(headway_rejected_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}} {{reason}}",
            )
        ],
        "reqps",
    ),
    Panel(
        "Versions",
        [(f"sum by (model, version, state) (headway_model_state{{{_MODEL}}}) > 0", f"{_BY_VERSION} {{{{state}}}}")],
        kind="stat",
        description="Workers in which a version is in this state.",
    ),
    Panel(
        "Error budget: share of 5xx, one hour",
        [(f"model:headway_errors:ratio_rate1h{{{_MODEL}}}", "{{model}}")],
        "percentunit",
    ),
    Panel(
        "Latency budget: share over one second, one hour",
        [(f"model:headway_slow:ratio_rate1h{{{_MODEL}}}", "{{model}}")],
        "percentunit",
    ),
    Panel(
        "Time to load",
        [(f"max by (model, version) (headway_model_load_seconds{{{_MODEL}}})", _BY_VERSION)],
        "s",
        "stat",
    ),
)
CAPACITY = (
    Panel(
        "Threads at work",
        [
            (
                "sum by (model) (rate(headway_stage_duration_seconds_sum{"
                f'{_MODEL},stage=~"preprocess|inference|postprocess"}}[$__rate_interval]))',
                "{{model}}",
            )
        ],
        description="Seconds of work a second: as many threads are busy on average.",
    ),
    Panel("Waiting for a thread", [(f"model:headway_queue_depth:sum{{{_MODEL}}}", "{{model}}")]),
    Panel("In flight", [(f"sum by (model) (headway_in_flight_requests{{{_MODEL}}})", "{{model}}")]),
    Panel(
        "Share refused",
        [
            (
                "sum by (model) (rate(headway_rejected_total{"
                f'{_MODEL},reason=~"overload|deadline"}}[$__rate_interval])) / '
                f"sum by (model) (rate(headway_requests_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Rows in a run",
        [
            (
                f"sum by (model, version) (rate(headway_batch_size_sum{{{_MODEL}}}[$__rate_interval])) / "
                f"sum by (model, version) (rate(headway_batch_size_count{{{_MODEL}}}[$__rate_interval]))",
                _BY_VERSION,
            )
        ],
    ),
    Panel(
        "Wait in the queue, p99",
        [
            (
                "histogram_quantile(0.99, sum by (model, le) (rate(headway_stage_duration_seconds_bucket{"
                f'{_MODEL},stage="queue"}}[$__rate_interval])))',
                "{{model}}",
            )
        ],
        "s",
    ),
)
_WINDOW = f'{_MODEL},window="1d"'
_BY_ALIAS = "{{model}}@{{version}} ({{alias}})"
QUALITY = (
    *(
        Panel(
            f"{title} of a day",
            [(f"max by (model, version, alias) (headway_{name}_ratio{{{_WINDOW}}})", _BY_ALIAS)],
            "percentunit",
        )
        for title, name in (("Accuracy", "accuracy"), ("Precision", "precision"), ("Recall", "recall"), ("F1", "f1"))
    ),
    Panel(
        "Accuracy against the evaluation",
        [
            (
                f"max by (model, version, alias) (headway_accuracy_ratio{{{_WINDOW}}}) - on (model, version) "
                f"group_left () max by (model, version) (headway_recorded_accuracy_ratio{{{_MODEL}}})",
                _BY_ALIAS,
            )
        ],
        "percentunit",
    ),
    Panel(
        "Labelled answers of a day",
        [(f"max by (model, version, alias) (headway_labelled_answers{{{_WINDOW}}})", _BY_ALIAS)],
    ),
    Panel(
        "Feedback",
        [
            (
                f"sum by (model, version, outcome) (rate(headway_feedback_total{{{_MODEL}}}[$__rate_interval]))",
                "{{model}}@{{version}} {{outcome}}",
            )
        ],
        "reqps",
    ),
)
DASHBOARDS = {
    "service": ("Service", SERVICE),
    "capacity": ("Capacity", CAPACITY),
    "quality": ("Model quality", QUALITY),
}


def render(name: str) -> str:
    title, panels = DASHBOARDS[name]
    content = {
        "uid": f"headway-{name}",
        "title": f"Headway: {title}",
        "tags": ["headway"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_variable(), _model_variable()]},
        "panels": [_render_panel(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(content, indent=1) + "\n"


def _render_panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0} if panel.unit != "percentunit" else {"unit": panel.unit}
        },
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _model_variable() -> dict[str, Any]:
    return {
        "name": "model",
        "type": "query",
        "label": "Model",
        "datasource": _SOURCE,
        "query": {"query": "label_values(headway_model_info, model)", "refId": "model"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(render(name), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
