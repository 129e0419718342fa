"""The float model of workload (d) is the shipped one: the same photo gives the same answer, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from app.registry.servables.loading import load_servable
from bench.tensor_body import (
    EMPTY,
    IN_FLOATS,
    KEY,
    LIMIT,
    NAME,
    VERSION,
    take_floats,
    tensor,
    tensor_page,
    write_float_model,
)
from bench.workloads import PHOTO_MODEL, photo


def test_float_model_answers_as_the_shipped_one(tmp_path: Path) -> None:
    write_float_model(tmp_path)
    floats = load_servable(tmp_path / NAME / VERSION, threads=1)
    shipped = load_servable(PHOTO_MODEL, threads=1)
    pixels = tensor()
    assert pixels.nbytes == 602_112
    assert pixels.dtype == np.dtype("<f4")
    ours, theirs = floats.run({"image": pixels}), shipped.run(shipped.prepare("image", photo()))
    assert (ours["probabilities"] == theirs["probabilities"]).all()


def test_network_in_floats_is_the_shipped_one_without_its_rounding(tmp_path: Path) -> None:
    write_float_model(tmp_path, IN_FLOATS)
    network = onnx.load(tmp_path / IN_FLOATS / VERSION / "model.onnx")
    assert not [node.op_type for node in network.graph.node if "Quantize" in node.op_type]
    floats = load_servable(tmp_path / IN_FLOATS / VERSION, threads=1).run({"image": tensor()})["probabilities"]
    shipped = load_servable(PHOTO_MODEL, threads=1)
    rounded = shipped.run(shipped.prepare("image", photo()))["probabilities"]
    assert floats.argmax() == rounded.argmax()
    assert np.abs(floats - rounded).max() < 0.05


def test_another_beginning_is_refused() -> None:
    from onnx import GraphProto, helper

    graph = GraphProto(node=[helper.make_node("Cast", ["image"], ["floats"], to=1)])
    with pytest.raises(ValueError, match="no longer begins"):
        take_floats(graph)


@pytest.mark.parametrize(("overhead", "verdict"), [(1.3, "reached"), (1.31, "**missed**")])
def test_page_says_whether_the_bar_is_reached(overhead: float, verdict: str) -> None:
    row = {"per_second": 300.0, "cpu_us": 5000.0}
    figures = {
        "Headway": {KEY: row | {"overhead_us": 600.0, "overhead_ratio": overhead}},
        LIMIT: {KEY: row},
        EMPTY: {KEY: row},
    }
    assert f"at most 1.3 ×, {verdict}" in "\n".join(tensor_page(figures))
