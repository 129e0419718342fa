"""Model files that are kept compressed are served as the others, and damaged ones are named."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from app import load
from app.errors import RegistryError, RuntimeLoadError
from app.registry.drafting.draft import write_manifest
from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from app.runtimes.onnx_file import external_locations
from app.runtimes.packed import pack, read_model_file, unpacked_size
from tests.running import ROOT

pytest.importorskip("ai_edge_litert")


def _packed(root: Path, name: str, version: str, file: str) -> Path:
    directory = root / name / version
    shutil.copytree(ROOT / "models" / name / version, directory)
    (directory / f"{file}.gz").write_bytes(pack((directory / file).read_bytes()))
    (directory / file).unlink()
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    write_manifest(directory, content)
    return directory


def test_onnx_version_answers_as_the_one_that_is_not_packed(tmp_path: Path) -> None:
    directory = _packed(tmp_path, "digits", "1.1.0", "model.onnx")
    manifest = read_manifest(directory)
    assert (manifest.model_file, manifest.is_packed) == ("model.onnx.gz", True)
    size = (ROOT / "models" / "digits" / "1.1.0" / "model.onnx").stat().st_size
    assert manifest.files["model.onnx.gz"].unpacked_bytes == size
    rows = np.random.default_rng(0).uniform(0, 16, (5, 64)).astype(np.float32)
    versions = (load("digits@1.1.0", models=root) for root in (tmp_path, ROOT / "models"))
    one, other = ([answer[0].confidence for answer in version.predict(rows, top_k=1)] for version in versions)
    assert one == other


def test_tflite_version_passes_its_golden_requests(tmp_path: Path) -> None:
    directory = _packed(tmp_path, "efficientnet-lite0-tflite", "1.0.0", "model.tflite")
    load_servable(directory, 1).close()


def test_same_content_gives_the_same_bytes_and_comes_back(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000) + bytes(9000)
    path = tmp_path / "model.onnx.gz"
    path.write_bytes(pack(content))
    assert pack(content) == path.read_bytes()
    assert path.stat().st_size < 1200
    assert (unpacked_size(path), read_model_file(path)) == (10_000, content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:10], "too short"),
        (lambda data: data[:-9] + data[-8:], "damaged|does not hold"),
        (lambda data: data[:40] + b"\0\0\0\0" + data[44:], "damaged|does not hold"),
        (lambda data: data[:-4] + (9).to_bytes(4, "little"), "damaged|does not hold the 9 bytes"),
        (lambda data: data[:-4] + b"\xff\xff\xff\xff", "at most 2,147,483,648"),
        (lambda data: data + data, "does not hold"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, damage: object, said: str) -> None:
    path = tmp_path / "model.onnx.gz"
    assert callable(damage)
    path.write_bytes(damage(pack(np.random.default_rng(0).bytes(1000))))
    with pytest.raises(RuntimeLoadError, match=said):
        read_model_file(path)


def test_more_than_model_yaml_says_is_not_unpacked(tmp_path: Path) -> None:
    directory = _packed(tmp_path, "digits", "1.1.0", "model.onnx")
    bomb = gzip.compress(bytes(50_000_000))
    (directory / "model.onnx.gz").write_bytes(bomb)
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    del content["files"]
    write_manifest(directory, content)
    written = (directory / "model.yaml").read_text(encoding="utf-8")
    assert "unpacked_bytes: 50000000" in written
    (directory / "model.yaml").write_text(written.replace("unpacked_bytes: 50000000", "unpacked_bytes: 31444"))
    with pytest.raises(RegistryError, match=r"unpacks to 50000000 bytes, model.yaml .* says 31444"):
        load_servable(directory, 1)


def test_weights_elsewhere_are_found_in_a_packed_file(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "model.onnx.gz").write_bytes(pack(model.SerializeToString()))
    assert external_locations(tmp_path / "model.onnx.gz") == ["weights.bin"]
    assert onnx.load_from_string(read_model_file(tmp_path / "model.onnx.gz")) == model


@pytest.mark.parametrize(("change", "said"), [("unpacked", "lacks unpacked_bytes"), ("twice", "the model twice")])
def test_model_yaml_says_the_size_and_names_one_file(tmp_path: Path, change: str, said: str) -> None:
    directory = _packed(tmp_path, "digits", "1.1.0", "model.onnx")
    content = yaml.safe_load((directory / "model.yaml").read_text(encoding="utf-8"))
    entry = content["files"]["model.onnx.gz"]
    if change == "unpacked":
        del entry["unpacked_bytes"]
    else:
        content["files"]["model.onnx"] = dict(entry)
    (directory / "model.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RegistryError, match=said):
        read_manifest(directory)
