"""The figures of prometheus/drift.rules.yml are those of app.monitoring.distances, on random counts of random bins."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from app.monitoring.binning import ReferenceCounts
from app.monitoring.distances import jensen_shannon_distance, population_stability_index
from app.monitoring.drift_figures import chance_index
from tests.running import ROOT
from tests.tools import require_command

Array = npt.NDArray[Any]
RULES = ROOT / "prometheus/drift.rules.yml"
# 40 s do not divide the hour, so that increase() has to extrapolate.
SCRAPE_SECONDS, SCRAPES, ASKED_AT, WINDOW_SECONDS = 40, 121, 4740, 3600


@dataclass(frozen=True, slots=True)
class Feature:
    """Of a version of its own. `steps` is what came before each scrape, [instances, scrapes, bins], missing last.

    None came before the first.
    """

    name: str
    reference: ReferenceCounts
    steps: Array

    def series(self) -> Iterator[dict[str, str]]:
        shares = {str(number): share for number, share in enumerate(self.reference.shares)}
        shares["missing"] = self.reference.missing_share
        version = f'model="m",version="{self.name}"'
        inputs = sum(self.reference.counts) + self.reference.missing
        yield {"series": f"headway_drift_reference_inputs{{{version}}}", "values": f"{inputs}x{SCRAPES}"}
        for instance, steps in zip("ab", self.steps, strict=True):
            for (name, share), counted in zip(shares.items(), steps.cumsum(axis=0).T, strict=True):
                labels = f'{{instance="{instance}",{version},feature="{self.name}",bin="{name}"}}'
                yield {"series": f"headway_input_bin_total{labels}", "values": " ".join(map(str, counted))}
                yield {"series": f"headway_drift_reference_ratio{labels}", "values": f"{share!r}x{SCRAPES}"}

    def expected(self, first: int, last: int, window: str) -> dict[str, float]:
        """What is recorded of the inputs that came after scrape `first` and up to `last`."""
        *rest, missing = self.steps[:, first + 1 : last + 1].sum(axis=(0, 1))
        counts, reference, n = np.array(rest), np.array(self.reference.counts), int(sum(rest))
        level = "model_version_feature"
        return {
            f"{level}:headway_drift_inputs:increase{window}": n,
            f"{level}_bin:headway_input_bin:ratio_increase{window}": 1.0,  # their sum
            f"{level}:headway_missing:ratio_increase{window}": float(missing / (n + missing)),
            f"{level}:headway_drift:psi_{window}": population_stability_index(reference, counts),
            f"{level}:headway_drift:jensen_shannon_{window}": jensen_shannon_distance(reference, counts),
            f"{level}:headway_drift:chance_psi_{window}": chance_index(reference, counts) or 0.0,
        }


@pytest.fixture(autouse=True)
def _promtool() -> None:
    require_command("promtool", "prometheus")


def _feature(name: str, reference: Array, steps: Array) -> Feature:
    steps[:, 0] = 0
    *counts, missing = reference.tolist()
    return Feature(name, ReferenceCounts(tuple(counts), missing), steps)


def _random_feature(random: np.random.Generator, number: int) -> Feature:
    """2 to 21 bins, of which some are empty in the reference, some are not met, and some both; many inputs or few."""
    bins = int(random.integers(2, 22))
    shares, moved = random.dirichlet(np.ones(bins)), random.dirichlet(np.ones(bins))
    empty, unmet = random.random(bins) < 0.15, random.random(bins) < 0.15
    empty[0] = unmet[-1] = False
    reference = random.multinomial(730, shares) * ~empty + (np.arange(bins) == 0)
    rates = np.append((shares + moved) * ~unmet * random.choice([2.0, 30.0]), random.random())
    steps = random.poisson(rates, (2, SCRAPES, bins + 1))
    return _feature(f"feature {number}", np.append(reference, random.integers(0, 90)), steps)


def _steady_feature(name: str, reference: list[int], step: list[int]) -> Feature:
    return _feature(name, np.array(reference), np.tile(step, (2, SCRAPES, 1)))


def _run(folder: Path, rules: Path, features: list[Feature], expressions: list[str]) -> None:
    """Asks promtool whether each expression is true at ASKED_AT."""
    case = {
        "interval": f"{SCRAPE_SECONDS}s",
        "input_series": [series for feature in features for series in feature.series()],
        "promql_expr_test": [
            {"expr": text, "eval_time": f"{ASKED_AT}s", "exp_samples": [{"labels": "{}", "value": 1}]}
            for text in expressions
        ],
    }
    groups = [group["name"] for group in yaml.safe_load(rules.read_text())["groups"]]
    document = {
        "rule_files": [str(rules)],
        "evaluation_interval": "60s",
        "group_eval_order": groups,
        "tests": [case],
    }
    path = folder / "random.test.yml"
    path.write_text(yaml.safe_dump(document, width=10**6))
    done = subprocess.run(["promtool", "test", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _is_near(record: str, feature: str, expected: float, relative: float, absolute: float = 0.0) -> str:
    """A query that is 1 where the sum of what is recorded of this feature is near `expected`."""
    return f'abs(sum({record}{{feature="{feature}"}}) - {expected!r}) <= bool {relative * abs(expected) + absolute!r}'


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ratios_of_the_counters_are_those_of_distances(tmp_path: Path, seed: int) -> None:
    """Without increase(), of all that was ever counted, the figures are the same to 1e-9."""
    random = np.random.default_rng(seed)
    features = [_random_feature(random, number) for number in range(12)]
    features.append(_steady_feature("same", [50, 0, 30, 20, 10], [5, 0, 3, 2, 1]))
    features.append(_steady_feature("rare", [999_990, 10, 0, 0], [1, 99_999, 0, 0]))
    features.append(_steady_feature("apart", [50, 50, 0, 0, 0], [0, 0, 1, 3, 0]))
    rules = tmp_path / "instant.rules.yml"
    text, replaced = re.subn(r"increase\((\w+)\[\w+\]\)", r"\1", RULES.read_text())
    assert replaced == 2
    rules.write_text(text)
    checks = [
        # Near 0 the root of a rounding error is 1e-8.
        _is_near(record, feature.name, value, 1e-9, 1e-7 if feature.name == "same" else 0.0)
        for feature in features
        for window in ("1h", "1d")
        for record, value in feature.expected(0, ASKED_AT // SCRAPE_SECONDS, window).items()
    ]
    _run(tmp_path, rules, features, checks)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_of_an_hour_are_near_those_of_distances(tmp_path: Path, seed: int) -> None:
    """increase() guesses what came between the window's ends and the scrapes next to them, here 40 s of the hour."""
    random = np.random.default_rng(seed)
    features = [_random_feature(random, number) for number in range(12)]
    first, last = -((WINDOW_SECONDS - ASKED_AT) // SCRAPE_SECONDS), ASKED_AT // SCRAPE_SECONDS
    checks = [
        _is_near(record, feature.name, value, 0.02 if "inputs" in record or "chance" in record else 0.01)
        for feature in features
        for record, value in feature.expected(first, last, "1h").items()
    ]
    _run(tmp_path, RULES, features, checks)


def test_feature_that_was_missing_in_the_whole_reference_has_no_distance(tmp_path: Path) -> None:
    feature = _steady_feature("gone", [0, 0, 40], [1, 1, 1])
    _run(tmp_path, RULES, [feature], [_is_absent("headway_drift:.+")])


def test_feature_without_inputs_has_no_distance(tmp_path: Path) -> None:
    feature = _steady_feature("quiet", [5, 5, 0], [0, 0, 0])
    _run(tmp_path, RULES, [feature], [_is_absent("headway_drift:.+"), _is_absent("headway_missing:.+")])


def _is_absent(names: str) -> str:
    return f'absent({{__name__=~"model_version_feature:{names}"}})'


def test_rules_of_a_day_are_those_of_an_hour() -> None:
    hour, day = yaml.safe_load(RULES.read_text())["groups"]
    (_, *rules) = hour["rules"]  # without the reference's shares
    assert yaml.safe_load(yaml.safe_dump(rules).replace("1h", "1d")) == day["rules"]
