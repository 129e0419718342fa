"""Policies of values through a real server: what is changed, flagged and refused, and what the metrics say of it."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.engine.call import Call
from app.engine.execution import Execution, Part
from app.engine.lane import Work
from app.errors import RegistryError
from app.metrics import Metrics
from app.registry.servables.loading import load_servable
from app.registry.servables.servable import Content, Item
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.runtimes.base import Cancellation
from tests.fixtures_models import write_composition, write_model, write_release
from tests.running import PATIENCE_SECONDS, running_server

ROW = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
RAW = {"content-type": "application/octet-stream"}
RANGE = {"low": [0, 0, 0], "high": [1, 2, 3]}
OUTLIERS = {"mean": [0, 0, 0], "std": 1, "z": 2}
POLICIES: dict[str, dict[str, Any]] = {
    "missing-reject": {"missing": {"action": "reject"}},
    "missing-impute": {"missing": {"action": "impute", "fill": [1, 2, 3]}},
    "missing-flag": {"missing": {"action": "flag"}},
    "range-reject": {"range": RANGE | {"action": "reject"}},
    "range-clip": {"range": RANGE | {"action": "clip"}},
    "range-flag": {"range": RANGE | {"action": "flag"}},
    "outlier-reject": {"outliers": OUTLIERS | {"action": "reject"}},
    "outlier-clip": {"outliers": OUTLIERS | {"action": "clip"}},
    "outlier-flag": {"outliers": OUTLIERS | {"action": "flag"}},
}


def _with_values(root: Path, name: str, kind: str, values: dict[str, Any], **overrides: Any) -> Path:
    return write_model(root, name, kind=kind, inputs=[ROW | {"values": values}], **overrides)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """One worker: `sum` with each policy and with none, scores, colour and lookup."""
    root = tmp_path_factory.mktemp("models")
    for name, values in POLICIES.items():
        _with_values(root, name, "sum", values)
    write_model(root, "plain", kind="sum")
    _with_values(root, "split", "sum", POLICIES["range-clip"], batch={"max_size": 2})
    write_model(root, "scores", answer={"low_confidence": 0.6})
    write_model(root, "colour", kind="colour")
    entry = {"name": "at", "datatype": "INT64", "shape": [-1]}
    values = {"missing": {"action": "impute", "fill": 0}, "range": {"action": "clip", "low": 0, "high": 2}}
    write_model(root, "lookup", kind="lookup", inputs=[entry | {"values": values}])
    for path in list(root.iterdir()):
        write_release(root, path.name, "1.0.0")
    log = tmp_path_factory.mktemp("tiny") / "log"
    with (
        running_server(log, workers=1, HEADWAY_MODELS=str(root)) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client,
    ):
        yield client


def _ask(client: httpx.Client, model: str, rows: Any, **more: Any) -> httpx.Response:
    return client.post("/predict", json={"inputs": rows, "model": model, **more})


def _value_of(client: httpx.Client, name: str, **labels: str) -> float:
    """Of a metric now; 0 where it is not there."""
    for line in client.get("/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}{{(.*)}} (\S+)", line)
        if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1])).items():
            return float(found[2])
    return 0.0


def _violations(client: httpx.Client, model: str, kind: str, action: str) -> float:
    labels = {"model": model, "version": "1.0.0", "kind": kind, "action": action}
    return _value_of(client, "headway_input_violations_total", **labels)


PLACE = "input 'x', row 1, column 1 (counted from 0): "
WORDS = {
    "missing": "the value is missing (null or NaN)",
    "range": "9 is out of range; allowed is 0 to 2",
    "outlier": "9 is an outlier; allowed is -2 to 2 (2 standard deviations around the mean)",
}
DONE = {"impute": "imputed", "clip": "clipped", "flag": "taken as it is"}


@pytest.mark.parametrize("way", ["json", "raw"])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_end_to_end(tiny: httpx.Client, name: str, way: str) -> None:
    """The second of three rows is bad in its second column; the others are answered as ever."""
    problem, action = name.split("-")
    kind = "out_of_range" if problem == "range" else problem
    before = _violations(tiny, name, kind, action)
    bad = None if problem == "missing" else 9
    rows = [[1, 1, 1], [1, bad, 1], [0, 0, 1]]
    if way == "json":
        answer = _ask(tiny, name, rows)
    else:
        answer = tiny.post("/predict", params={"model": name}, content=np.array(rows, "<f4").tobytes(), headers=RAW)
    body = answer.json()
    if action == "reject":
        assert (answer.status_code, body["code"]) == (400, "bad_tensor")
        assert body["error"] == PLACE + WORDS[problem] + ("; send a number" if problem == "missing" else "")
    else:
        assert answer.status_code == 200
        second = {"missing-flag": None, "range-flag": 11, "outlier-flag": 11}.get(name, 4)
        assert [result["value"] for result in body["results"]] == [3, second, 1]
        warning = f"{PLACE}{WORDS[problem]}; {DONE[action]}"
        assert body["warnings"][0] == warning
        assert len(body["warnings"]) == (2 if name == "missing-flag" else 1)  # the sum of NaN is NaN, and says so
    assert _violations(tiny, name, kind, action) == before + 1


def test_rows_within_bounds_have_no_warnings(tiny: httpx.Client) -> None:
    for name in [*POLICIES, "plain"]:
        body = _ask(tiny, name, [[1, 1, 1]]).json()
        assert body["results"][0]["value"] == 3
        assert "warnings" not in body


def test_null_is_refused_as_ever_without_a_policy_for_missing(tiny: httpx.Client) -> None:
    for name in ("plain", "range-clip", "outlier-flag"):
        answer = _ask(tiny, name, [[1, None, 1]])
        assert answer.status_code == 400
        assert answer.json()["error"] == "input 'x' takes numbers of datatype FP32, without null or text"


def test_integers_are_imputed_and_clipped(tiny: httpx.Client) -> None:
    """Without the range the run would fail: there is no place 7."""
    body = _ask(tiny, "lookup", [1, None, 7]).json()
    assert body["outputs"] == {"found": [20, 10, 30]}
    assert body["warnings"] == [
        "input 'at', row 1 (counted from 0): the value is missing (null or NaN); imputed",
        "input 'at', row 2 (counted from 0): 7 is out of range; allowed is 0 to 2; clipped",
    ]


def test_a_call_that_is_split_has_its_warnings_once(tiny: httpx.Client) -> None:
    body = _ask(tiny, "split", [[0, 0, 0], [0, 0, 1], [1, 2, 9], [-1, 0, 0], [1, 1, 1]]).json()
    assert [result["value"] for result in body["results"]] == [0, 1, 6, 0, 3]
    assert body["warnings"] == [
        "input 'x', row 2, column 2 (counted from 0): 9 is out of range; allowed is 0 to 3; there are 2 such values; "
        "clipped"
    ]


def test_low_confidence_counts_rows(tiny: httpx.Client) -> None:
    labels = {"model": "scores", "version": "1.0.0"}
    before = _value_of(tiny, "headway_low_confidence_total", **labels)
    rows = [[0.6, 0.4, 0], [0.5, 0.5, 0], [0.1, 0.3, 0.59], [0, 0, 1]]
    assert _ask(tiny, "scores", rows, top_k=1).status_code == 200
    assert _value_of(tiny, "headway_low_confidence_total", **labels) == before + 2
    text = tiny.get("/metrics").text
    assert 'headway_low_confidence_total{model="colour"' not in text  # its model.yaml says no low_confidence


def test_undecodable_images_are_counted(tiny: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    good, bad = (base64.b64encode(data).decode() for data in (buffer.getvalue(), b"no image"))

    def count(model: str) -> float:
        return _value_of(tiny, "headway_undecodable_images_total", model=model)

    before, unknown = count("colour"), count("unknown")
    assert tiny.post("/predict", json={"model": "colour", "image": good}).status_code == 200
    assert count("colour") == before
    assert tiny.post("/predict", json={"model": "colour", "image": bad}).status_code == 400
    assert count("colour") == before + 1
    assert tiny.post("/predict", json={"model": "colour", "images": [bad, good, "!!!"]}).status_code == 200
    assert count("colour") == before + 3
    assert tiny.post("/predict", json={"model": "colour", "image": "!!!"}).status_code == 400
    assert (count("colour"), count("unknown")) == (before + 3, unknown + 1)


def test_neighbours_in_one_run_are_untouched(tmp_path: Path) -> None:
    """Calls that share one run: each has its own warnings, and its own numbers."""
    values = {"missing": {"action": "impute", "fill": [5, 6, 7]}, "range": {"action": "clip", "low": -100, "high": 100}}
    servable = load_servable(_with_values(tmp_path, "sum", "sum", values, batch={"max_size": 64}), threads=1)
    execution = Execution(servable, Metrics())
    random = np.random.default_rng(0)
    calls = [random.uniform(-120, 120, (random.integers(1, 4), 3)).astype(np.float32) for _ in range(20)]
    for rows in calls[::3]:
        rows[0, 1] = np.nan
    copies = [rows.copy() for rows in calls]
    works = [work for rows in calls for work in execution.works(Call({"x": rows}, time.monotonic() + 60))]
    runnable = [work for work in works if isinstance(work, Work)]
    assert len({work.signature for work in runnable}) == 1
    parts = execution.run(runnable, [0.0] * len(runnable), Cancellation())
    servable.close()
    assert [part.run_rows for part in parts] == [sum(map(len, calls)), *[None] * (len(calls) - 1)]
    for rows, copy, part in zip(calls, copies, parts, strict=True):
        assert isinstance(part, Part)
        np.testing.assert_array_equal(rows, copy)
        expected = np.where(np.isnan(rows), [5, 6, 7], np.clip(rows, -100, 100)).sum(1)
        items = [item.value for item in part.items or () if isinstance(item, Item)]
        np.testing.assert_allclose(items, expected, rtol=1e-5, atol=1e-4)
        wrong = {"missing": np.isnan(rows).sum(), "out_of_range": (np.abs(rows) > 100).sum()}
        assert {one.kind: one.count for one in part.violations} == {kind: n for kind, n in wrong.items() if n}


def test_a_composition_leaves_policies_to_its_steps(tmp_path: Path) -> None:
    root = tmp_path / "models"
    write_model(root, "scores")
    write_release(root, "scores", "1.0.0")
    entry = ROW | {"values": POLICIES["range-clip"]}
    write_composition(root, "both", "average", ["scores@1.0.0"] * 2, inputs=[entry], labels=["low", "middle", "high"])
    registry = Registry(Store(root))
    registry.load()
    try:
        with pytest.raises(RegistryError, match="a composition has no values; write them in model"):
            load_servable(root / "both" / "1.0.0", 1, steps=(Store(root), lambda ref, key: registry.resolve(ref, key)))
    finally:
        registry.close()


def test_content_of_json_is_held_against_the_policy_without_a_server(tmp_path: Path) -> None:
    servable = load_servable(_with_values(tmp_path, "sum", "sum", POLICIES["missing-impute"]), threads=1)
    (work,) = Execution(servable).works(Call(Content("tensor", ([[0, None, 0]],)), float("inf")))
    assert isinstance(work, Work)
    assert work.content.item["x"].tolist() == [[0, 2, 0]]
    servable.close()
