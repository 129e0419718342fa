"""A drift report as JSON: of GET /models/{name}/drift and `headway drift --json`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from app.monitoring.binning import Bins, ClassBins
from app.monitoring.drift_figures import (
    Comparison,
    FeatureDrift,
    FeatureStep,
    FirstHours,
    StabilityIndex,
    Step,
    VersionDrift,
)


def describe_version(
    model: str, drift: VersionDrift, name_classes: Callable[[ClassBins], Sequence[str]]
) -> dict[str, Any]:
    """`name_classes` gives the labels of the classes that have bins of their own."""
    baseline = drift.baseline
    content: dict[str, Any] = {
        "version": drift.version,
        "counted": drift.is_counted,
        "n": drift.n,
        "baseline": None if baseline is None else {"data": baseline.data, "n": baseline.n},
        "first_hours": None if drift.first_hours is None else _describe_first_hours(drift.first_hours),
        "features": [_describe_feature(feature, name_classes) for feature in drift.features],
        "series": [_describe_step(step) for step in drift.series],
    }
    if baseline is None:
        content["how"] = _tell_how(f"{model}@{drift.version}", drift)
    return content


def iso_time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _tell_how(label: str, drift: VersionDrift) -> str:
    """Why there is no baseline, and what to do."""
    if drift.fault is not None:
        return f"the baseline of {label} cannot be used: {drift.fault}"
    if drift.is_counted:
        return (
            f"the baseline that {label} was counted with is no longer there; if the version was removed, "
            f"headway models undelete {label} brings it back"
        )
    return (
        f"{label} has no baseline to count and compare with; publish a version that has one: "
        f"headway baseline {label} DATA"
    )


def _describe_first_hours(first: FirstHours) -> dict[str, Any]:
    return {
        "from": iso_time(first.from_ms),
        "until": iso_time(first.until_ms),
        "n": first.n,
        "running": first.is_running,
    }


def _describe_feature(feature: FeatureDrift, name_classes: Callable[[ClassBins], Sequence[str]]) -> dict[str, Any]:
    known = feature.bins
    bins: dict[str, Any] = {}
    if isinstance(known, Bins):
        bins["edges"] = list(known.edges)
    elif known is not None:
        bins["classes"] = list(known.classes)
        bins["labels"] = list(name_classes(known))
    return {
        "name": feature.name,
        "n": feature.n,
        "missing": {
            "n": feature.counts[-1],
            "reference": None if known is None else known.missing_share,
            "current": feature.missing_share,
        },
        "bins": bins | {"reference": None if known is None else list(known.shares), "current": list(feature.shares)},
        "from_baseline": _describe_comparison(feature.from_baseline),
        "from_release": _describe_comparison(feature.from_release),
    }


def _describe_comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return asdict(comparison.distances) | {"expected_by_chance": comparison.expected_by_chance}


def _describe_step(step: Step) -> dict[str, Any]:
    return {
        "from": iso_time(step.from_ms),
        "n": step.n,
        "features": {name: _describe_feature_step(feature) for name, feature in step.features.items()},
    }


def _describe_feature_step(feature: FeatureStep) -> dict[str, Any]:
    return {
        "n": feature.n,
        "from_baseline": _describe_index(feature.from_baseline),
        "from_release": _describe_index(feature.from_release),
    }


def _describe_index(index: StabilityIndex | None) -> dict[str, float] | None:
    if index is None:
        return None
    return {"population_stability_index": index.value, "expected_by_chance": index.expected_by_chance}
