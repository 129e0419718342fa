"""An HPA as a manifest of Kubernetes (autoscaling/v2) says it, with the defaults of the API."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import InvalidContent
from app.optimize.planning.hpa import DEFAULT_DOWN, DEFAULT_UP, TOLERANCE, Hpa, Metric, Policy, ScalingRules
from app.registry.yaml import read_yaml

MOST_REPLICAS = 1000
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})(n|u|m|k|M|G|Ki|Mi|Gi)?")
_SCALES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Target(_Section):
    type: Literal["Utilization", "AverageValue"]
    averageUtilization: int | None = Field(default=None, ge=1, le=10_000)
    averageValue: str | None = None


class _Resource(_Section):
    name: str
    target: _Target


class _MetricName(_Section):
    name: str = Field(min_length=1)
    selector: Any = None


class _PodsMetric(_Section):
    metric: _MetricName
    target: _Target


class _MetricEntry(_Section):
    type: str
    resource: _Resource | None = None
    pods: _PodsMetric | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> _MetricEntry:
        if self.type == "Resource" and self.resource is not None:
            wanted = self.resource.target.type == "Utilization" and self.resource.target.averageUtilization
            if self.resource.name == "cpu" and wanted:
                return self
        if self.type == "Pods" and self.pods is not None and self.pods.target.type == "AverageValue":
            parse_quantity(self.pods.target.averageValue or "")
            return self
        raise ValueError(
            "only type Resource of cpu with an averageUtilization and type Pods with an averageValue can be replayed"
        )

    def read(self) -> Metric:
        if self.resource is not None:
            return Metric("cpu", (self.resource.target.averageUtilization or 0) / 100)
        assert self.pods is not None
        return Metric(self.pods.metric.name, parse_quantity(self.pods.target.averageValue or ""))


class _Policy(_Section):
    type: Literal["Pods", "Percent"]
    value: int = Field(ge=1, le=1_000_000)
    periodSeconds: int = Field(ge=1, le=1800)


class _Rules(_Section):
    stabilizationWindowSeconds: int | None = Field(default=None, ge=0, le=3600)
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: list[_Policy] | None = Field(default=None, min_length=1)
    tolerance: str | None = None

    @model_validator(mode="after")
    def _check_tolerance(self) -> _Rules:
        if self.tolerance is not None and self.tolerance != "0":
            parse_quantity(self.tolerance)
        return self

    def read(self, default: ScalingRules) -> ScalingRules:
        window = self.stabilizationWindowSeconds
        given = [Policy(policy.type, policy.value, policy.periodSeconds) for policy in self.policies or ()]
        tolerance = TOLERANCE if self.tolerance is None else 0.0 if self.tolerance == "0" else None
        return ScalingRules(
            default.window_seconds if window is None else window,
            tuple(given) or default.policies,
            self.selectPolicy,
            parse_quantity(self.tolerance or "") if tolerance is None else tolerance,
        )


class _Behavior(_Section):
    scaleUp: _Rules = _Rules()
    scaleDown: _Rules = _Rules()


class _Spec(_Section):
    scaleTargetRef: dict[str, Any]
    minReplicas: int = Field(default=1, ge=1, le=MOST_REPLICAS)
    maxReplicas: int = Field(ge=1, le=MOST_REPLICAS)
    metrics: list[_MetricEntry] = Field(min_length=1)
    behavior: _Behavior = _Behavior()


class _Manifest(_Section):
    apiVersion: Literal["autoscaling/v2"]
    kind: Literal["HorizontalPodAutoscaler"]
    metadata: dict[str, Any] = {}
    spec: _Spec
    status: Any = None


def read_hpa(path: Path, min_replicas: int | None = None, max_replicas: int | None = None) -> Hpa:
    """The HPA of one manifest, with other limits where they are given.

    Raises RegistryError, which names the file and the field, and InvalidContent where the limits contradict.
    """
    spec = read_yaml(path, _Manifest).spec
    least, most = min_replicas or spec.minReplicas, max_replicas or spec.maxReplicas
    if least > most:
        raise InvalidContent(f"the HPA would have at least {least} and at most {most} replicas; set --min and --max")
    metrics = tuple(entry.read() for entry in spec.metrics)
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise InvalidContent(f"{path}: a metric stands twice: {', '.join(names)}; remove one")
    up, down = spec.behavior.scaleUp.read(DEFAULT_UP), spec.behavior.scaleDown.read(DEFAULT_DOWN)
    return Hpa(metrics, least, most, up, down)


def parse_quantity(text: str) -> float:
    """0.6 of `600m`, as Kubernetes writes numbers. Raises ValueError where it is none, or not above 0."""
    found = _QUANTITY.fullmatch(text)
    value = float(found[1]) * _SCALES.get(found[2], 1.0) if found is not None else math.nan
    if not value > 0:
        raise ValueError(f"write a quantity above 0, as 600m or 0.6, in place of {text!r}")
    return value
