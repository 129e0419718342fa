"""Baselines of photos and of rows: against NumPy's deciles, through the path that serves, and what is left out."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.engine.inference import Inference
from app.errors import InvalidContent, RegistryError
from app.optimize.baseline import Measured, find_carrier, find_inputs, measure, next_patch, write_carrier
from app.registry.baseline import PHOTO_FEATURES, load_baseline
from app.registry.manifest import read_manifest
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store, verify_files
from app.registry.storing.recycle_bin import RecycleBin
from app.registry.versions import ModelRef
from tests.fixtures_models import GOLDEN, onnx_file, write_composition, write_model, write_release


def _measure(root: Path, source: Path, model: str = "scores@1.0.0") -> Measured:
    registry = Registry(Store(root))
    resolved = registry.open(ModelRef.parse(model))
    return measure(Inference(registry), resolved, find_inputs(resolved.servable, source), "reference")


def _shares(n: int = 60, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([1, 2, 3], n).astype(np.float32)


def _save(path: Path, rows: Any, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        np.savez(path, rows, **arrays)
    return path


def _write_csv(path: Path, *lines: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 photos in two folders, of 20, 30, … 50 pixels a side; red goes from 0 to 236, the rest is 100."""
    folder = tmp_path / "photos"
    for number in range(60):
        path = folder / ("odd" if number % 2 else "even") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number % 4 * 10, 20), (4 * number, 100, 100)).save(path)
    return folder


def test_rows_in_deciles_of_an_independent_method(tmp_path: Path) -> None:
    write_model(tmp_path)
    rows = _shares(203)
    measured = _measure(tmp_path, _save(tmp_path / "rows.npy", rows))
    taken = measured.baseline
    assert (taken.n, taken.data, measured.skipped, measured.columns) == (203, "reference", (), 3)
    assert list(taken.features) == ["x[0]", "x[1]", "x[2]"]
    deciles = np.arange(0.1, 0.95, 0.1)
    highest = rows.max(axis=1)
    for bins, values in (*zip(taken.features.values(), rows.T, strict=True), (taken.confidence, highest)):
        assert bins is not None
        assert bins.edges == pytest.approx(np.quantile(values, deciles, method="inverted_cdf"), abs=0)
    assert taken.classes is not None
    best = dict(zip(*np.unique(rows.argmax(axis=1), return_counts=True), strict=True))
    assert {index: taken.classes.counts[place] for place, index in enumerate(taken.classes.classes)} == best
    assert taken.entropy is not None
    expected = -(rows * np.log2(rows.astype(np.float64))).sum(axis=1) / rows.sum(axis=1)
    assert taken.entropy.edges[4] == pytest.approx(np.quantile(expected, 0.5, method="inverted_cdf"), abs=1e-5)
    assert taken.value is None


def test_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    write_model(tmp_path)
    rows = _shares()
    as_array = _measure(tmp_path, _save(tmp_path / "rows.npy", rows))
    again = _measure(tmp_path, _save(tmp_path / "rows.npz", rows))
    as_text = _measure(tmp_path, _write_csv(tmp_path / "rows.csv", *rows.tolist()))
    assert as_array.baseline.to_json() == again.baseline.to_json() == as_text.baseline.to_json()


def test_csv_with_names_of_features_and_rows_that_cannot_be_used(tmp_path: Path) -> None:
    write_model(tmp_path, "sum", kind="sum")
    rows = _shares().tolist()
    odd = [[1, 2], [1, "two", 3], [1, 2, "1e40"], [1, "1_0", 3], [1, 2, 3, 4]]
    path = _write_csv(tmp_path / "rows.csv", ["width", "height (cm)", " depth "], *rows, *odd, ["", " ", "nan"])
    measured = _measure(tmp_path, path, "sum@1.0.0")
    taken = measured.baseline
    assert list(taken.features) == ["width", "height (cm)", "depth"]
    assert taken.n == 61
    assert [bins.missing for bins in taken.features.values()] == [1, 1, 1]
    assert sorted(measured.skipped) == [
        f"{path}, line 62: has 2 cells, not 3",
        f"{path}, line 63: 'two' is not a number",
        f"{path}, line 64: has a value that FP32 cannot hold",
        f"{path}, line 65: '1_0' is not a number",
        f"{path}, line 66: has 4 cells, not 3",
    ]
    assert taken.value is not None
    assert (taken.value.missing, taken.classes, taken.confidence, taken.entropy) == (1, None, None, None)


def test_rows_that_the_model_fails_on_are_left_out(tmp_path: Path) -> None:
    nodes, table = _lookup()
    data = onnx_file(nodes, [("at", "INT64", [-1, 1])], [("found", "FP32", [-1, 1])], {"table": table})
    write_model(
        tmp_path, "lookup", kind="lookup", files={"model.onnx": data},
        inputs=[{"name": "at", "datatype": "INT64", "shape": [-1, 1]}],
        outputs=[{"name": "found", "datatype": "FP32", "shape": [-1, 1]}],
    )  # fmt: skip
    rows = [[number % 3] for number in range(60)]
    path = _write_csv(tmp_path / "rows.csv", *rows, [7], [1.5], [""], [-1e30], ["inf"])
    measured = _measure(tmp_path, path, "lookup@1.0.0")
    assert measured.baseline.n == 60
    assert measured.baseline.answers == {}
    assert len(measured.skipped) == 5
    assert [line for line in range(61, 66) if any(f"line {line}: " in one for one in measured.skipped)] == [
        *range(61, 66)
    ]


def _lookup() -> tuple[list[Any], np.ndarray]:
    from onnx import helper

    return [helper.make_node("Gather", ["table", "at"], ["found"])], np.array([10, 20, 30], np.float32)


def test_only_the_first_64_columns_are_kept(tmp_path: Path) -> None:
    write_model(
        tmp_path, "wide", kind="sum",
        files={"model.onnx": onnx_file(*_sum_of(70))},
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 70]}],
    )  # fmt: skip
    rows = np.arange(60 * 70, dtype=np.float32).reshape(60, 70)
    measured = _measure(tmp_path, _save(tmp_path / "rows.npy", rows), "wide@1.0.0")
    assert list(measured.baseline.features) == [f"x[{number}]" for number in range(64)]
    assert measured.columns == 70


def _sum_of(columns: int) -> tuple[Any, ...]:
    from onnx import helper

    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)]
    return nodes, [("x", "FP32", [-1, columns])], [("total", "FP32", [-1, 1])], {"axes": np.array([1], np.int64)}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.csv", b"", "a baseline needs 50 inputs or more, and here are 0"),
        ("rows.csv", b"1,2,3\n" * 49, "a baseline needs 50 inputs or more, and here are 49"),
        ("rows.csv", b"1,2,3,cat\n" * 60, "has 4 columns"),
        ("rows.csv", b"a,b,c,label\n" + b"1,2,3,0\n" * 60, "has 4 columns, and the model takes 3 numbers a row"),
        ("rows.csv", b"a,b,a\n" + b"1,2,3\n" * 60, "the first line names the features, each once"),
        ("rows.csv", b"a,,c\n" + b"1,2,3\n" * 60, "it says ''"),
        ("rows.csv", b"\xff\xff", "is not a CSV file in UTF-8"),
        ("rows.csv", b'"' + b"1" * 200_000, "is not a CSV file in UTF-8"),
        ("rows.csv", b"a,b,c\n" + b"1,x,3\n" * 60, "60 could not be used, the first: "),
        ("rows.npy", b"no array", "is no array of numbers that can be read"),
        ("rows.npy", b"\x93NUMPY\x01\x00", "is no array of numbers that can be read"),
        ("rows.npz", b"PK\x03\x04 no zip", "is no array of numbers that can be read"),
        ("rows.txt", b"1,2,3\n" * 60, "is no file of rows"),
        ("gone.csv", None, "is no file of rows"),
    ],
)
def test_bad_table_is_refused(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    write_model(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidContent) as refusal:
        _measure(tmp_path, tmp_path / name)
    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros(60), "it holds 60 of float64"),
        (np.zeros((60, 3, 1)), "it holds 60 × 3 × 1 of float64"),
        (np.zeros((60, 3), complex), "of complex128"),
        (np.full((60, 3), "a"), "of <U1"),
        (np.array([[{}] * 3] * 60, dtype=object), "is no array of numbers that can be read"),
        (np.zeros((60, 2)), "has 2 columns, and the model takes 3"),
        (np.zeros((0, 3)), "here are 0"),
    ],
)
def test_bad_array_is_refused(tmp_path: Path, rows: np.ndarray, says: str) -> None:
    write_model(tmp_path)
    with pytest.raises(InvalidContent) as refusal:
        _measure(tmp_path, _save(tmp_path / "rows.npy", rows))
    assert says in str(refusal.value)


def test_npz_of_several_arrays(tmp_path: Path) -> None:
    write_model(tmp_path)
    named = _save(tmp_path / "named.npz", np.zeros(3), x=_shares())
    assert _measure(tmp_path, named).baseline.n == 60
    with pytest.raises(InvalidContent, match="holds several arrays, or none; call the one with the rows 'x'"):
        _measure(tmp_path, _save(tmp_path / "odd.npz", np.zeros(3), y=_shares()))


@pytest.mark.parametrize("kind", ["two_inputs", "echo", "double", "transpose", "lookup", "centred"])
def test_model_without_rows_of_numbers_is_refused(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path, "other", kind=kind)
    with pytest.raises(InvalidContent, match="this is for models of photos, or of one input of numbers"):
        _measure(tmp_path, tmp_path, "other@1.0.0")


@pytest.mark.parametrize("dtype", [np.uint64, np.int8, np.float16, ">f8", bool])
def test_arrays_of_other_datatypes(tmp_path: Path, dtype: Any) -> None:
    write_model(tmp_path, "sum", kind="sum")
    rows = np.random.default_rng(2).integers(0, 2, (60, 3)).astype(dtype)
    taken = _measure(tmp_path, _save(tmp_path / "rows.npy", rows), "sum@1.0.0").baseline
    assert taken.value is not None
    assert taken.value.count(rows.astype(np.float64).sum(axis=1)).tolist() == [*taken.value.counts, 0]


def test_data_needs_a_name(tmp_path: Path) -> None:
    write_model(tmp_path)
    registry = Registry(Store(tmp_path))
    resolved = registry.open(ModelRef.parse("scores@1.0.0"))
    inputs = find_inputs(resolved.servable, _save(tmp_path / "rows.npy", _shares()))
    with pytest.raises(InvalidContent, match="cannot be the name of the data"):
        measure(Inference(registry), resolved, inputs, "\udcff")


def test_photos_of_all_folders(tmp_path: Path, photos: Path) -> None:
    write_model(tmp_path, "colour", kind="colour")
    (photos / "odd" / "broken.jpg").write_bytes(b"no image")
    (photos / "odd" / "notes.txt").write_text("no photo")
    (photos / "odd" / "._01.png").write_bytes(b"of another system")
    (photos / ".cache").mkdir()
    (photos / ".cache" / "x.png").write_bytes(b"hidden")
    os.symlink(photos / "gone.png", photos / "dangling.png")
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(b"no image")
    measured = _measure(tmp_path, photos, "colour@1.0.0")
    taken = measured.baseline
    assert (taken.n, tuple(taken.features)) == (60, PHOTO_FEATURES)
    assert [one.split(": ")[0] for one in measured.skipped] == [
        str(photos / "dangling.png"),
        str(photos / "odd" / "broken.jpg"),
        rf"{photos}/\udcff.png",
    ]
    assert "(No such file or directory)" in measured.skipped[0]
    assert taken.classes is not None
    # Of equal means the first label counts: from 4 × 25 on it is red.
    assert (taken.classes.classes, taken.classes.counts) == ((0, 1), (35, 25, 0))
    highest = [max(4 * number, 100) / 255 for number in range(60)]
    assert taken.confidence is not None
    assert taken.confidence.edges[-1] == pytest.approx(np.quantile(highest, 0.9, method="inverted_cdf"))
    luma = [round(0.299 * 4 * number + 70.1) for number in range(60)]
    assert taken.features["brightness"].edges[4] == pytest.approx(np.quantile(luma, 0.5), abs=1.01)
    sizes = np.array([(20 + number % 4 * 10) * 20 / 1e6 for number in range(60)])
    assert taken.features["size"].count(sizes).tolist() == [*taken.features["size"].counts, 0]
    assert set(taken.features["size"].edges) >= {0.0004, 0.0006, 0.0008}


def test_photos_of_a_table(tmp_path: Path, photos: Path) -> None:
    write_model(tmp_path, "colour", kind="colour")
    lines = [["filename", "class_index"], *([f"even/{number:02}.png", 0] for number in range(0, 60, 2))]
    _write_csv(photos / "labels.csv", *lines)
    with pytest.raises(InvalidContent, match="here are 30"):
        _measure(tmp_path, photos, "colour@1.0.0")


def test_grey_photos_and_folders_without_any(tmp_path: Path, photos: Path) -> None:
    write_model(tmp_path, "colour", kind="colour")
    for path in photos.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    taken = _measure(tmp_path, photos, "colour@1.0.0").baseline
    assert taken.features["colour"].edges[-1] == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidContent, match="here are 0"):
        _measure(tmp_path, tmp_path / "empty", "colour@1.0.0")
    with pytest.raises(InvalidContent, match="is not a folder of images"):
        _measure(tmp_path, tmp_path / "gone", "colour@1.0.0")


def test_composition_has_a_baseline(tmp_path: Path, photos: Path) -> None:
    write_model(tmp_path, "colour", kind="colour")
    write_model(tmp_path, "other", kind="colour", processing={"filter": "nearest"})
    write_composition(tmp_path, "both", "average", ["colour@1.0.0", "other@1.0.0"], kind="colour")
    both, one = (_measure(tmp_path, photos, f"{name}@1.0.0").baseline for name in ("both", "colour"))
    assert both.classes == one.classes


@pytest.mark.parametrize(
    ("versions", "of", "following"),
    [
        (["1.0.0"], "1.0.0", "1.0.1"),
        (["1.0.0", "1.0.9", "1.0.10", "1.1.0"], "1.0.0", "1.0.11"),
        (["1.0.0", "1.0.1-rc.1"], "1.0.0", "1.0.2"),
        (["3", "4"], "3", "3.0.1"),
    ],
)
def test_next_patch(tmp_path: Path, versions: list[str], of: str, following: str) -> None:
    for version in versions:
        write_model(tmp_path, version=version)
    assert next_patch(Store(tmp_path), "scores", of) == following


def test_next_patch_is_not_one_that_was_removed(tmp_path: Path) -> None:
    """Its counts are kept, and were made in other bins."""
    for version in ("1.0.0", "1.0.1"):
        write_model(tmp_path, version=version)
    store = Store(tmp_path)
    write_release(tmp_path, "scores", "1.0.0")
    RecycleBin(store).remove("scores", "1.0.1")
    assert next_patch(store, "scores", "1.0.0") == "1.0.2"


def test_pre_release_gets_no_final_version(tmp_path: Path) -> None:
    write_model(tmp_path, version="2.0.0-rc.1")
    with pytest.raises(InvalidContent, match="is a pre-release"):
        next_patch(Store(tmp_path), "scores", "2.0.0-rc.1")


def test_carrier_is_the_same_version_with_a_baseline(tmp_path: Path) -> None:
    root = tmp_path / "models"
    golden = {**GOLDEN, "files": {**GOLDEN["files"], "extra/more.bin": b"1234"}}
    directory = write_model(
        root, **golden, serial=3, limits={"instances": None, "queue": 7}, batch={"max_size": 4},
        parent={"version": "0.9.0", "how": "trained anew"},
        training={"algorithm": "a", "data": "b", "parameters": {"C": "1.10", "rows": "no"}},
        evaluation=[{"data": "d", "n": 3, "top1": 0.5, "date": "2026-11-21", "cpu_features": ["avx2"]}],
    )  # fmt: skip
    (directory / "README.md").write_text("the card")
    manifest = read_manifest(directory)
    baseline = _measure(root, _save(tmp_path / "rows.npy", _shares())).baseline
    store = Store(root)
    assert find_carrier(store, manifest, baseline) is None
    target = root / "scores" / "1.0.1"
    target.mkdir()
    write_carrier(target, directory, manifest, baseline)
    carrier = read_manifest(target)
    verify_files(target, carrier.files)
    assert load_baseline(target, carrier) == baseline
    assert (target / "README.md").read_text() == "the card"
    assert carrier.parent is not None
    assert (carrier.parent.version, carrier.serial) == ("1.0.0", None)
    assert carrier.parent.how == "the same, with a baseline of 60 inputs (reference)"
    changed = {"version", "parent", "files", "baseline", "serial"}
    assert carrier.model_dump(exclude=changed) == manifest.model_dump(exclude=changed)
    assert {name: entry for name, entry in carrier.files.items() if name != "baseline.json"} == manifest.files
    for source in (manifest, carrier):  # a second time, and of what carries it
        assert find_carrier(store, source, baseline) == "1.0.1"


def test_carrier_of_a_carrier_has_the_new_baseline_only(tmp_path: Path) -> None:
    root = tmp_path / "models"
    old, new = (
        _measure(root, _save(tmp_path / "rows.npy", _shares(seed=seed))).baseline
        for seed in (1, 2)
        if write_model(root)
    )
    directory = write_model(root, files={"old.json": old.to_json()}, baseline="old.json")
    manifest = read_manifest(directory)
    assert find_carrier(Store(root), manifest, new) is None
    assert find_carrier(Store(root), manifest, old) == "1.0.0"
    target = root / "scores" / "1.0.1"
    target.mkdir()
    write_carrier(target, directory, manifest, new)
    assert not (target / "old.json").exists()
    assert load_baseline(target, read_manifest(target)) == new


def test_carrier_is_not_made_of_a_version_that_was_damaged_meanwhile(tmp_path: Path) -> None:
    root = tmp_path / "models"
    directory = write_model(root)
    manifest = read_manifest(directory)
    baseline = _measure(root, _save(tmp_path / "rows.npy", _shares())).baseline
    (directory / "model.onnx").write_bytes(b"another")
    target = root / "scores" / "1.0.1"
    target.mkdir()
    with pytest.raises(RegistryError, match=r"1\.0\.0/model\.onnx: has 7 bytes"):
        write_carrier(target, directory, manifest, baseline)
