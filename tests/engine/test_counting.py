"""Live inputs in the bins of a baseline: what serving counts of the reference data is what the baseline has."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engine.batcher import Batcher
from app.engine.call import Call
from app.engine.counting import MOST_EXPORTED, Counting
from app.engine.inference import Inference
from app.metrics import Metrics
from app.monitoring.tallies import Tallies
from app.optimize.baseline import find_inputs, measure, write_carrier
from app.registry.baseline import Baseline
from app.registry.servables.bin_sample import PHOTOS_A_SECOND, ROWS_A_SECOND
from app.registry.servables.servable import Content
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store
from app.registry.versions import ModelRef
from app.storage.counts import CountsStore
from app.storage.database import Database, open_database
from tests.fixtures_models import onnx_file, write_composition, write_model, write_release

NOW_MS = 1_800_000_000_000 // 60_000 * 60_000
MINUTE_MS = 60_000


class Served:
    """A model with its baseline, served as a worker does it, but for the threads that count."""

    def __init__(self, root: Path, name: str, database: Database) -> None:
        self.metrics = Metrics()
        self.registry = Registry(Store(root))
        self.registry.load()
        self.store = CountsStore(database)
        self.tallies = Tallies(self.store, "this")
        self.counting = Counting(self.registry, self.tallies, self.metrics)
        self.batcher = Batcher(1, self.metrics)
        self.inference = Inference(self.registry, self.batcher, self.metrics)
        self.resolved = self.registry.resolve(ModelRef.parse(name))
        sample = self.resolved.servable.sample
        assert sample is not None, self.registry.models[name]
        self.baseline = sample.baseline
        self.counting.look()

    def ask(self, contents: Sequence[Content]) -> None:
        async def send() -> None:
            for content in contents:
                await self.inference.predict(Call(content, deadline=float("inf")), self.resolved)

        asyncio.run(send())

    def counts(self) -> dict[str, list[int]]:
        """Of the metrics: bins and, last, missing values."""
        found: dict[str, dict[str, int]] = {}
        for family in self.metrics.input_bins.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found.setdefault(sample.labels["feature"], {})[sample.labels["bin"]] = int(sample.value)
        return {feature: [bins[number] for number in sorted(bins, key=_order)] for feature, bins in found.items()}

    def close(self) -> None:
        self.inference.close()
        self.batcher.close()
        self.registry.close()


def _order(number: str) -> float:
    return float("inf") if number == "missing" else int(number)


def _expected(baseline: Baseline) -> dict[str, list[int]]:
    return {name: [*bins.counts, bins.missing] for name, bins in baseline.all_bins.items()}


def _publish(root: Path, name: str, source: Path) -> None:
    """The next patch version with the baseline measured on `source`, released."""
    registry = Registry(Store(root))
    resolved = registry.open(ModelRef.parse(f"{name}@1.0.0"))
    measured = measure(Inference(registry), resolved, find_inputs(resolved.servable, source), "reference")
    target = root / name / "1.0.1"
    target.mkdir()
    write_carrier(target, resolved.servable.directory, resolved.servable.manifest, measured.baseline)
    write_release(root, name, "1.0.1")
    registry.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(None, tmp_path / "data") as database:
        yield database


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(3)
    for number in range(60):
        pixels = random.integers(0, 2 + 4 * number, (20 + number % 4 * 10, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def _ask_photos(served: Served, photos: Path) -> None:
    paths = sorted(photos.iterdir())
    for start in range(0, len(paths), PHOTOS_A_SECOND):
        served.ask([Content("image", (path.read_bytes(),)) for path in paths[start : start + PHOTOS_A_SECOND]])
        served.counting.look()


def test_photos_are_counted_as_their_baseline_was(tmp_path: Path, photos: Path, database: Database) -> None:
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    _publish(root, "colour", photos)
    served = Served(root, "colour", database)
    assert served.counts() == {name: [0] * len(counts) for name, counts in _expected(served.baseline).items()}
    _ask_photos(served, photos)
    assert served.counts() == _expected(served.baseline)
    served.tallies.write(NOW_MS)
    (kept,) = served.store.bins("colour", "1.0.1", NOW_MS, NOW_MS + MINUTE_MS)
    assert {name: list(counts) for name, counts in kept.bins.items()} == _expected(served.baseline)
    served.close()


@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
def test_photos_of_a_composition(tmp_path: Path, photos: Path, database: Database, filter: str) -> None:
    """Where its steps prepare photos alike, and where each does it for itself."""
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    write_model(root, "other", kind="colour", processing={"filter": filter})
    write_composition(root, "both", "average", ["colour@1.0.0", "other@1.0.0"], kind="colour")
    _publish(root, "both", photos)
    served = Served(root, "both", database)
    paths = sorted(photos.iterdir())
    for path in paths:
        served.ask([Content("image", (path.read_bytes(),))])
        served.counting.look()
    assert served.counts() == _expected(served.baseline)
    served.close()


def _save_rows(path: Path, rows: Any) -> Path:
    np.save(path, np.array(rows, np.float32))
    return path


@pytest.mark.parametrize("form", ["lists", "by name", "tensors", "tensors in parts"])
def test_rows_are_counted_as_their_baseline_was(tmp_path: Path, database: Database, form: str) -> None:
    """Missing values too, which a policy fills in."""
    root, rows = tmp_path / "models", np.random.default_rng(5).dirichlet([1, 2, 3], 90).astype(np.float32)
    rows[::7, 1] = np.nan
    write_model(root, "scores", inputs=[_filled_input()])
    _publish(root, "scores", _save_rows(tmp_path / "rows.npy", rows))
    served = Served(root, "scores", database)
    lists = [[None if np.isnan(value) else float(value) for value in row] for row in rows]
    by_form: dict[str, list[Any]] = {
        "lists": [Content("tensor", (lists,))],
        "by name": [Content("tensor", ({"x": lists},))],
        "tensors": [{"x": rows}],
        "tensors in parts": [{"x": part} for part in np.array_split(rows, 11)],
    }
    served.ask(by_form[form])
    served.counting.look()
    assert served.counts() == _expected(served.baseline)
    assert served.counts()["x[1]"][-1] == 13
    served.close()


def _filled_input() -> dict[str, Any]:
    missing = {"action": "impute", "fill": 0.5}
    return {"name": "x", "datatype": "FP32", "shape": [-1, 3], "values": {"missing": missing}}


def test_of_many_rows_some_are_counted_from_all_over(tmp_path: Path, database: Database) -> None:
    root, rows = tmp_path / "models", np.random.default_rng(5).dirichlet([1, 2, 3], 3 * ROWS_A_SECOND)
    rows = rows[np.argsort(rows[:, 0])]
    write_model(root, "scores", batch={"axis": 0, "max_size": 8})
    _publish(root, "scores", _save_rows(tmp_path / "rows.npy", rows))
    served = Served(root, "scores", database)
    served.ask([{"x": rows.astype(np.float32)}, {"x": rows.astype(np.float32)}])  # type: ignore[list-item]
    served.counting.look()
    assert served.counts()["x[0]"] == [100] * 10 + [0]
    served.ask([{"x": rows[:10].astype(np.float32)}])  # type: ignore[list-item]
    served.counting.look()
    assert served.counts()["x[0]"] == [110, *[100] * 9, 0]
    served.close()


def test_bins_of_at_most_32_features_are_exported(tmp_path: Path, database: Database) -> None:
    root, rows = tmp_path / "models", np.random.default_rng(5).random((60, 40))
    write_model(
        root, "wide", kind="sum", files={"model.onnx": onnx_file(*_sum_of(40))},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 40]}],
    )  # fmt: skip
    _publish(root, "wide", _save_rows(tmp_path / "rows.npy", rows))
    served = Served(root, "wide", database)
    served.ask([{"x": rows.astype(np.float32)}])  # type: ignore[list-item]
    served.counting.look()
    assert list(served.counts()) == list(_expected(served.baseline))[:MOST_EXPORTED]
    served.tallies.write(NOW_MS)
    (kept,) = served.store.bins("wide", "1.0.1", NOW_MS, NOW_MS + MINUTE_MS)
    assert {name: list(counts) for name, counts in kept.bins.items()} == _expected(served.baseline)
    served.close()


def _sum_of(columns: int) -> tuple[Any, ...]:
    from onnx import helper

    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)]
    return nodes, [("x", "FP32", [-1, columns])], [("total", "FP32", [-1, 1])], {"axes": np.array([1], np.int64)}


def test_reference_in_the_metrics(tmp_path: Path, photos: Path, database: Database) -> None:
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    _publish(root, "colour", photos)
    served = Served(root, "colour", database)
    shares: dict[str, float] = {}
    for family in served.metrics.drift_reference.collect():
        for sample in family.samples:
            if sample.labels["bin"] != "missing":
                feature = sample.labels["feature"]
                shares[feature] = shares.get(feature, 0.0) + sample.value
    assert shares == pytest.approx(dict.fromkeys(served.baseline.all_bins, 1.0))
    (inputs,) = next(iter(served.metrics.drift_reference_inputs.collect())).samples
    assert inputs.value == 60
    served.close()


def test_a_version_that_goes_takes_its_reference_along(tmp_path: Path, photos: Path, database: Database) -> None:
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    _publish(root, "colour", photos)
    served = Served(root, "colour", database)
    write_release(root, "colour", "1.0.0")
    served.registry.reconcile(lambda: None, contextlib.nullcontext)
    served.counting.look()
    shares = [sample.value for family in served.metrics.drift_reference.collect() for sample in family.samples]
    assert shares
    assert np.isnan(shares).all()
    served.close()


def test_one_sample_that_fails_does_not_spoil_the_others(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    root, rows = tmp_path / "models", np.random.default_rng(5).dirichlet([1, 2, 3], 60).astype(np.float32)
    for name in ("first", "second"):
        write_model(root, name)
        _publish(root, name, _save_rows(tmp_path / "rows.npy", rows))
    served = Served(root, "second", database)
    broken = served.registry.resolve(ModelRef.parse("first")).servable.sample
    assert broken is not None
    broken.offer_rows([["text", "is", "no number"]])
    served.ask([{"x": rows}])  # type: ignore[list-item]
    served.counting.look()
    assert sum(served.counts()["x[0]"]) == 60
    assert caplog.messages == ["inputs of first@1.0.1 could not be counted"]
    served.close()


def test_a_version_without_a_baseline_is_not_looked_at(tmp_path: Path) -> None:
    write_model(tmp_path, "scores")
    registry = Registry(Store(tmp_path))
    registry.load()
    assert registry.resolve(ModelRef.parse("scores")).servable.sample is None
    registry.close()


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def test_nothing_is_kept_where_nobody_counts(tmp_path: Path, photos: Path) -> None:
    """As in a program that uses a model without a server."""
    root = tmp_path / "models"
    write_model(root, "colour", kind="colour")
    _publish(root, "colour", photos)
    registry = Registry(Store(root))
    resolved = registry.open(ModelRef.parse("colour"))
    for _ in range(3):
        Inference(registry).predict_now(Call(Content("image", (_png(),)), deadline=float("inf")), resolved)
    assert resolved.servable.sample is not None
    assert resolved.servable.sample.take() == {}
    registry.close()
