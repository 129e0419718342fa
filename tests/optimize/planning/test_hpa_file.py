"""k8s/base/hpa.yaml as the replay reads it, and manifests that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import HeadwayError, InvalidContent, RegistryError
from app.optimize.planning.hpa import DEFAULT_DOWN, DEFAULT_UP, Hpa, Metric, Policy, ScalingRules
from app.optimize.planning.hpa_file import parse_quantity, read_hpa
from tests.running import ROOT

SHIPPED = ROOT / "k8s/base/hpa.yaml"


def _manifest() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    return loaded


def test_shipped_manifest() -> None:
    assert read_hpa(SHIPPED) == Hpa(
        (
            Metric("cpu", 0.7),
            Metric("headway_demand_ratio", 0.6),
            Metric("headway_success_duration_seconds_mean", 0.1),
        ),
        3,
        20,
        ScalingRules(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)), "Max"),
        ScalingRules(300, (Policy("Percent", 10, 60),), "Max"),
    )
    assert _manifest()["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "headway"}


def test_limits_in_place_of_the_manifest_s() -> None:
    hpa = read_hpa(SHIPPED, 1, 1000)
    assert (hpa.min_replicas, hpa.max_replicas) == (1, 1000)
    with pytest.raises(InvalidContent, match="at least 30 and at most 20 replicas; set --min and --max"):
        read_hpa(SHIPPED, 30)


def test_defaults_of_the_api(tmp_path: Path) -> None:
    manifest = _manifest()
    del manifest["spec"]["behavior"], manifest["spec"]["minReplicas"]
    path = tmp_path / "hpa.yaml"
    path.write_text(yaml.safe_dump(manifest))
    hpa = read_hpa(path)
    assert (hpa.min_replicas, hpa.up, hpa.down) == (1, DEFAULT_UP, DEFAULT_DOWN)
    down = {"tolerance": "50m", "selectPolicy": "Min"}
    manifest["spec"]["behavior"] = {"scaleUp": {"tolerance": 0}, "scaleDown": down}
    path.write_text(yaml.safe_dump(manifest))
    hpa = read_hpa(path)
    assert hpa.up == ScalingRules(0, DEFAULT_UP.policies, "Max", 0.0)
    assert hpa.down == ScalingRules(300, DEFAULT_DOWN.policies, "Min", 0.05)


@pytest.mark.parametrize(
    ("text", "value"), [("600m", 0.6), ("0.6", 0.6), (".5", 0.5), ("2", 2), ("1k", 1000), ("1Ki", 1024), ("5u", 5e-6)]
)
def test_quantity(text: str, value: float) -> None:
    assert parse_quantity(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "0", "-1", "1mm", "m", "1e3x", "nan", "1 m"])
def test_quantity_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="write a quantity above 0, as 600m or 0"):
        parse_quantity(text)


WRONG = {
    "another version": (lambda it: it.update(apiVersion="autoscaling/v1"), "apiVersion"),
    "another kind": (lambda it: it.update(kind="Deployment"), "kind"),
    "a word misspelt": (lambda it: it["spec"].update(maxReplica=3), "unknown key"),
    "no metrics": (lambda it: it["spec"].update(metrics=[]), "metrics"),
    "too many replicas": (lambda it: it["spec"].update(maxReplicas=5000), "less than or equal to 1000"),
    "memory": (lambda it: it["spec"]["metrics"][0]["resource"].update(name="memory"), "can be replayed"),
    "no value": (lambda it: it["spec"]["metrics"][1]["pods"]["target"].pop("averageValue"), "write a quantity"),
    "an object": (lambda it: it["spec"]["metrics"][1].update(type="Object"), "can be replayed"),
    "twice": (lambda it: it["spec"]["metrics"].append(it["spec"]["metrics"][0]), "a metric stands twice"),
    "no period": (lambda it: it["spec"]["behavior"]["scaleUp"]["policies"][0].update(periodSeconds=0), "periodSeconds"),
    "a bad tolerance": (lambda it: it["spec"]["behavior"]["scaleUp"].update(tolerance="much"), "write a quantity"),
}


@pytest.mark.parametrize("name", WRONG)
def test_manifest_that_is_refused(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    manifest = _manifest()
    change(manifest)
    path = tmp_path / "hpa.yaml"
    path.write_text(yaml.dump(manifest, Dumper=_Plain))
    with pytest.raises(HeadwayError, match=message) as raised:
        read_hpa(path)
    assert str(path) in str(raised.value)


class _Plain(yaml.SafeDumper):
    """Writes what stands twice in full."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def test_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        read_hpa(tmp_path / "hpa.yaml")
    (tmp_path / "hpa.yaml").write_bytes(b"\xff{")
    with pytest.raises(RegistryError, match="is not valid YAML"):
        read_hpa(tmp_path / "hpa.yaml")
