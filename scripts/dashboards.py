"""Write grafana/dashboards/*.json; a test holds them equal to this file, and each query against a real Prometheus."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from panels import CAPACITY, DRIFT, QUALITY, SERVICE, Panel

FOLDER = Path(__file__).parent.parent / "grafana" / "dashboards"
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${source}"}
DASHBOARDS = {
    "service": ("Service", SERVICE),
    "capacity": ("Capacity", CAPACITY),
    "quality": ("Model quality", QUALITY),
    "drift": ("Drift", DRIFT),
}


def render(name: str) -> str:
    title, panels = DASHBOARDS[name]
    variables = _drift_variables() if name == "drift" else [_model_variable()]
    content = {
        "uid": f"headway-{name}",
        "title": f"Headway: {title}",
        "tags": ["headway"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_variable(), *variables]},
        "panels": [_render_panel(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(content, indent=1) + "\n"


def _render_panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, _COLUMNS)
    is_of_now = panel.kind == "barchart"
    rendered: dict[str, Any] = {
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
            | ({"format": "table", "instant": True, "range": False} if is_of_now else {})
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }
    if is_of_now:
        names = {f"Value #{target['refId']}": target["legendFormat"] for target in rendered["targets"]}
        rendered |= {"options": {"xField": "bin"}, "transformations": _join_by_bin(names)}
    return rendered


def _join_by_bin(names: dict[str, str]) -> list[dict[str, Any]]:
    """One row a bin, in the order of their numbers (joining sorts them), with a column a query under its name."""

    def to(kind: str) -> dict[str, Any]:
        conversions = [{"targetField": "bin", "destinationType": kind}]
        return {"id": "convertFieldType", "options": {"fields": {}, "conversions": conversions}}

    hidden = dict.fromkeys(("Time", "Time 1", "Time 2"), True)
    return [
        to("number"),
        {"id": "joinByField", "options": {"byField": "bin", "mode": "outer"}},
        to("string"),  # a bar chart's names are text
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": names}},
    ]


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _model_variable() -> dict[str, Any]:
    everything = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return _label_variable("model", "headway_model_info") | everything


def _drift_variables() -> list[dict[str, Any]]:
    """One model at a time, for bins are those of a version, and one version and feature for the bar chart."""
    return [
        _label_variable("model", "headway_drift_reference_inputs"),
        _label_variable("version", 'headway_drift_reference_inputs{model="$model"}'),
        _label_variable("feature", 'headway_drift_reference_ratio{model="$model",version="$version"}'),
    ]


def _label_variable(label: str, series: str) -> dict[str, Any]:
    return {
        "name": label,
        "type": "query",
        "label": label.capitalize(),
        "datasource": _SOURCE,
        "query": {"query": f"label_values({series}, {label})", "refId": label},
        "refresh": 2,
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(render(name), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
