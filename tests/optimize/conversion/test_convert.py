"""Every pair of the guide's table is converted, and answers as its source; what is refused says why."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import LabelPropagation
from sklearn.svm import LinearSVC

from app.errors import InvalidContent
from app.optimize.conversion.forms import FORMS, form_of, open_source
from app.optimize.conversion.samples import random_samples
from app.optimize.conversion.source import Given, Target, digest_of, parse_input
from app.optimize.conversion.version import Conversion, convert_source, origin_of, write_version
from app.optimize.conversion.weights import read_safetensors
from app.registry.drafting.draft import Wishes
from app.registry.manifest import ClassificationAnswer, Manifest, read_manifest
from tests.fixtures_convert import (
    LITERT_PYTHON,
    TENSORFLOW_PYTHON,
    fit,
    images,
    import_keras,
    keras_network,
    needs_litert,
    needs_tensorflow,
    save_keras,
    save_program,
    trained,
    write_nets,
    write_pickle,
)
from tests.running import ROOT

TRUST = Given(may_unpickle=True)
IMAGE = (parse_input("image:FP32:n,1,8,8"),)
# As a user saves one, with an operator that neither target has where `lacking` is said.
SAVED_MODEL = """
import sys
import tensorflow as tf

class Scores(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal((64, 10), (1, 2)))

    @tf.function(input_signature=[tf.TensorSpec((None, 64), tf.float32, name="pixels")])
    def __call__(self, pixels):
        scores = tf.matmul(pixels, self.weights)
        if len(sys.argv) > 2:
            scores = tf.math.bessel_i0e(scores, name="body/bessel")
        return {"probabilities": tf.nn.softmax(scores)}

scores = Scores()
tf.saved_model.save(scores, sys.argv[1], signatures={"serving_default": scores.__call__})
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with nets.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    write_nets(tmp_path)
    return tmp_path


def _network(folder: Path) -> torch.nn.Module:
    return trained(write_nets(folder))


def _program(folder: Path) -> tuple[str, Given]:
    save_program(folder / "digits.pt2", _network(folder), images(2))
    return "digits.pt2", Given()


def _factory(folder: Path) -> tuple[str, Given]:
    torch.save(_network(folder).state_dict(), folder / "digits.pt")
    return "nets:digits", Given(weights=folder / "digits.pt", inputs=IMAGE, output_names=("logits",))


def _pickle(folder: Path) -> tuple[str, Given]:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.save(module, folder / "whole.pt")
    return "whole.pt", Given(inputs=IMAGE, may_unpickle=True)


def _keras(folder: Path) -> tuple[str, Given]:
    save_keras(keras_network(import_keras()), folder / "digits.keras")
    return "digits.keras", Given()


def _sklearn(folder: Path) -> tuple[str, Given]:
    estimator = make_pipeline(StandardScaler(), LogisticRegression())
    return str(write_pickle(folder / "blobs.pkl", fit(estimator, names=["ant", "bee", "cat"]))), TRUST


def _saved_model(folder: Path, *lacking: str) -> tuple[str, Given]:
    command = [str(TENSORFLOW_PYTHON), "-c", SAVED_MODEL, str(folder / "saved"), *lacking]
    subprocess.run(command, check=True, capture_output=True)
    return "saved", Given(converter_python=TENSORFLOW_PYTHON)


def _onnx(folder: Path) -> tuple[str, Given]:
    (folder / "digits.onnx").write_bytes((ROOT / "models/digits/1.1.0/model.onnx").read_bytes())
    return "digits.onnx", Given()


MAKERS: dict[str, Callable[[Path], tuple[str, Given]]] = {
    "PyTorch program": _program,
    "PyTorch module:factory": _factory,
    "PyTorch pickle": _pickle,
    "Keras": _keras,
    "TensorFlow SavedModel": _saved_model,
    "scikit-learn": _sklearn,
    "ONNX": _onnx,
}


def _pairs() -> list[Any]:
    pairs = []
    for form in FORMS:
        for target, converter in form.to.items():
            apart = converter.endswith("apart")
            needs = needs_litert if "litert" in converter else needs_tensorflow
            marks = [pytest.mark.slow, needs] if apart else []
            pairs.append(pytest.param(form.name, target, marks=marks, id=f"{form.name} to {target}"))
    return pairs


def _no_progress(name: str, total: int) -> Callable[[], None]:  # noqa: ARG001
    return lambda: None


def _convert(source: str, target: Target, given: Given, folder: Path, tolerance: float = 1e-4) -> Conversion:
    opened = open_source(source, target, given)
    origin = origin_of(source, given.weights, target, "headway convert")
    made = folder / "made"
    made.mkdir(exist_ok=True)
    return convert_source(opened, origin, random_samples(opened.inputs, 0), made, tolerance, _no_progress)


def _write(conversion: Conversion, folder: Path, **wishes: Any) -> Manifest:
    directory = folder / "registry" / "made" / "1.0.0"
    directory.mkdir(parents=True)
    write_version(directory, conversion, Wishes(name="made", version="1.0.0", **wishes))
    return read_manifest(directory)


@pytest.mark.parametrize(("form", "target"), _pairs())
def test_pair_answers_as_its_source(folder: Path, form: str, target: Target) -> None:
    source, given = MAKERS[form](folder)
    if target == "tflite" and form != "TensorFlow SavedModel":
        given = Given(
            given.weights, given.inputs, given.examples, given.output_names, LITERT_PYTHON, given.may_unpickle
        )
    assert form_of(source).name == form
    conversion = _convert(source, target, given, folder)
    assert conversion.agreement.rows == 17
    assert conversion.agreement.largest < 1e-5
    manifest = _write(conversion, folder, content="tensor")
    assert manifest.runtime == target
    assert manifest.training is not None
    assert f"({form})" in manifest.training.algorithm
    if target == "tflite" or form == "scikit-learn":  # of PyTorch's ONNX test_convert_export holds it
        again = _convert(source, target, given, folder)
        assert digest_of(again.path) == manifest.files[manifest.model_file].sha256


def test_guide_has_this_very_table() -> None:
    guide = (ROOT / "docs/guides/convert.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", guide, re.MULTILINE)
    found = {name: (written.replace("`", ""), by_onnx, by_tflite) for name, written, by_onnx, by_tflite in rows}
    for form in FORMS:
        assert found[form.name] == (form.written, form.to.get("onnx", "no"), form.to.get("tflite", "no"))
    assert set(found) - {form.name for form in FORMS} == {"source", "---"}
    assert set(MAKERS) == {form.name for form in FORMS}


def test_version_says_where_it_comes_from(folder: Path) -> None:
    source, given = _factory(folder)
    manifest = _write(_convert(source, "onnx", given, folder), folder, content="tensor", licence="MIT")
    assert [str(spec) for spec in manifest.input_specs] == ["image: FP32 [n, 1, 8, 8]"]
    assert [str(spec) for spec in manifest.output_specs] == ["logits: FP32 [n, 10]"]
    assert manifest.batch.axis == 0
    assert manifest.training is not None
    assert manifest.training.parameters == {"sha256 of digits.pt": digest_of(folder / "digits.pt")}
    (evaluation,) = manifest.evaluation
    assert evaluation.data == "the source, on 17 random rows, seed 0"
    assert evaluation.note is not None
    assert re.fullmatch(r"largest difference from the source \S+ \(of 'logits'\), same top-1", evaluation.note)
    assert {"torch", "onnxscript", "onnxruntime"} <= set(evaluation.libraries)
    card = (folder / "registry/made/1.0.0/README.md").read_text()
    assert "| Converted from | nets:digits with digits.pt (PyTorch module:factory) |" in card
    assert str(folder) not in card


def test_classifier_of_scikit_learn_brings_its_labels(folder: Path) -> None:
    source, given = _sklearn(folder)
    manifest = _write(_convert(source, "onnx", given, folder), folder)
    assert isinstance(manifest.answer, ClassificationAnswer)
    assert (manifest.answer.output, manifest.answer.activation) == ("probabilities", "none")
    assert (folder / "registry/made/1.0.0/labels.txt").read_text() == "ant\nbee\ncat\n"


@pytest.mark.parametrize(
    ("estimator", "output"),
    [
        (RandomForestClassifier(5, random_state=0), "probabilities"),
        (LinearSVC(), "label"),
        (Ridge(), "value"),
        (KMeans(3, random_state=0, n_init=1), "value"),
        (PCA(3), "output"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_estimators_of_scikit_learn(folder: Path, estimator: Any, output: str) -> None:
    path = write_pickle(folder / "fitted.joblib", fit(estimator))
    conversion = _convert(str(path), "onnx", TRUST, folder)
    assert conversion.agreement.output == output
    assert onnx.load(conversion.path).graph.output[0].name == output


def test_texts_of_scikit_learn(folder: Path) -> None:
    texts, classes = ["good film", "bad film", "very good Été", "not good", "the bad"], [1, 0, 1, 0, 0]
    pipeline = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression()).fit(texts, classes)
    path = str(write_pickle(folder / "texts.pkl", pipeline))
    with pytest.raises(InvalidContent, match=r"say --input .*--input text:BYTES:n"):
        open_source(path, "onnx", TRUST)
    manifest = _write(
        _convert(path, "onnx", Given(inputs=(parse_input("text:BYTES:n"),), may_unpickle=True), folder), folder
    )
    assert manifest.processing.type == "text"


def test_older_keras_file_of_two_inputs(folder: Path) -> None:
    keras = import_keras()
    values, ids = keras.Input((3,), name="values"), keras.Input((2,), dtype="int32", name="ids")
    words = keras.layers.Flatten()(keras.layers.Embedding(7, 4)(ids))
    joined = keras.layers.Concatenate()([words, values])
    outputs = {"z": keras.layers.Dense(3)(joined), "a": keras.layers.Dense(1)(joined)}
    save_keras(keras.Model({"values": values, "ids": ids}, outputs), folder / "pair.h5")
    manifest = _write(_convert("pair.h5", "onnx", Given(), folder), folder)
    assert {str(spec) for spec in manifest.input_specs} == {"values: FP32 [n, 3]", "ids: INT32 [n, 2]"}
    assert {str(spec) for spec in manifest.output_specs} == {"z: FP32 [n, 3]", "a: FP32 [n, 1]"}


def test_answers_that_differ_are_refused_with_the_figures(folder: Path) -> None:
    given = Given(inputs=(parse_input("x:FP32:n,3"),))
    with pytest.raises(
        InvalidContent, match=r"not registered: .* largest difference from the source 0\.\d+ .* of 17 rows"
    ):
        _convert("nets:Noisy", "onnx", given, folder)


class Evil:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("unpickled", "w")


@pytest.mark.parametrize("name", ["whole.pt", "weights.pt", "forest.pkl", "forest.joblib", "lambda.keras", "odd.pt2"])
def test_pickles_are_not_opened(folder: Path, name: str) -> None:
    source, given = name, Given()
    if name.endswith((".pkl", ".joblib")):
        write_pickle(folder / name, Evil())
    elif name == "lambda.keras":
        keras = import_keras()
        layers = [keras.layers.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]
        save_keras(keras.Sequential(layers), folder / name)
    elif name == "odd.pt2":
        save_program(folder / "plain.pt2", _network(folder), images(2))
        _replace_member(folder / "plain.pt2", folder / name, "sample_inputs/model.pt", Evil())
    else:
        torch.save({"weights": Evil()}, folder / name)
        source = "nets:digits" if name == "weights.pt" else name
        given = Given(weights=folder / name) if name == "weights.pt" else Given()
    with pytest.raises(InvalidContent, match=r"(runs|run) .*--trust-pickle if you know who made it"):
        open_source(source, "onnx", given)
    assert not (folder / "unpickled").exists()


def _replace_member(source: Path, target: Path, suffix: str, value: Any) -> None:
    import io
    import zipfile

    data = io.BytesIO()
    torch.save(value, data)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, data.getvalue() if name.endswith(suffix) else old.read(name))


def test_weights_as_safetensors(folder: Path) -> None:
    import json

    module = _network(folder)
    state = module.state_dict()
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in state.items():
        part = value.numpy().tobytes()
        header[name] = {
            "dtype": "F32" if value.is_floating_point() else "I64", "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(part)],
        }  # fmt: skip
        data += part
    text = json.dumps(header).encode()
    (folder / "digits.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = read_safetensors(folder / "digits.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    source = open_source("nets:digits", "onnx", Given(weights=folder / "digits.safetensors", inputs=IMAGE))
    with torch.no_grad():
        expected = module(torch.from_numpy(images())).numpy()
    assert np.array_equal(source.run({"image": images()})["output"], expected)
    for cut in (4, 60, -10):
        (folder / "cut.safetensors").write_bytes((folder / "digits.safetensors").read_bytes()[:cut])
        with pytest.raises(InvalidContent, match="is no safetensors file"):
            open_source("nets:digits", "onnx", Given(weights=folder / "cut.safetensors", inputs=IMAGE))


def test_onnx_of_an_older_set_becomes_one_that_quantize_takes(folder: Path) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    shape = ["batch", 3]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 11)]
    )
    model.ir_version = 8
    onnx.save(model, folder / "old.onnx")
    conversion = _convert("old.onnx", "onnx", Given(), folder)
    assert onnx.load(conversion.path).opset_import[0].version == 21


def _unknown_operator(folder: Path) -> str:
    node = helper.make_node("Whirl", ["x"], ["y"], name="body/whirl", domain="ours")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ours", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    onnx.save(model, folder / "odd.onnx")
    return "odd.onnx"


def test_operator_without_translation_is_named_with_its_layer(folder: Path) -> None:
    with pytest.raises(InvalidContent, match=r"operator ours\.Whirl in layer body/whirl is not known to ONNX Runtime"):
        open_source(_unknown_operator(folder), "onnx", Given())
    path = write_pickle(folder / "lacking.pkl", fit(make_pipeline(StandardScaler(), LabelPropagation())))
    with pytest.raises(InvalidContent, match="operator LabelPropagation in layer labelpropagation has no ONNX"):
        _convert(str(path), "onnx", TRUST, folder)


def test_operator_of_a_keras_layer_is_named_with_it(folder: Path) -> None:
    keras = import_keras()

    @keras.saving.register_keras_serializable("tests")
    class Bessel(keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return torch.special.bessel_j0(x)

    layers = [keras.layers.Input((4,)), keras.layers.Dense(3, name="first"), Bessel(name="odd")]
    save_keras(keras.Sequential(layers), folder / "odd.keras")
    with pytest.raises(InvalidContent, match=r"operator prims\.bessel_j0\.default .*\(Keras layer odd \(Bessel\)\)"):
        _convert("odd.keras", "onnx", Given(), folder)


@pytest.mark.slow
@needs_litert
def test_operator_that_tflite_lacks_is_named_with_its_layer(folder: Path) -> None:
    save_program(folder / "lacking.pt2", write_nets(folder)["lacking"](), np.ones((2, 3), np.float32))
    with pytest.raises(InvalidContent, match=r"bessel_j0\.default in layer 1\.1 \(Bessel\) has no TFLite translation"):
        _convert("lacking.pt2", "tflite", Given(converter_python=LITERT_PYTHON), folder)


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize(("target", "name"), [("onnx", "ONNX"), ("tflite", "TFLite")])
def test_operator_of_a_saved_model_is_named_with_its_layer(folder: Path, target: Target, name: str) -> None:
    source, given = _saved_model(folder, "lacking")
    with pytest.raises(InvalidContent, match=f"operator BesselI0e in layer body/bessel.* has no {name} translation"):
        _convert(source, target, given, folder)


def test_converter_that_is_not_there_says_what_to_install(folder: Path) -> None:
    source, _ = _program(folder)
    with pytest.raises(
        InvalidContent, match=r"needs litert-torch in an environment of its own, .*pip install litert-torch"
    ):
        _convert(source, "tflite", Given(), folder)
    with pytest.raises(InvalidContent, match="there is no gone"):
        _convert(source, "tflite", Given(converter_python=Path("gone")), folder)
    # This Python has PyTorch, and not the converter.
    with pytest.raises(InvalidContent, match="has no package 'litert_torch'"):
        _convert(source, "tflite", Given(converter_python=Path(sys.executable)), folder)
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InvalidContent, match="has no package 'tensorflow'"):
        open_source("saved", "onnx", Given(converter_python=Path(sys.executable)))


@pytest.mark.parametrize(
    ("source", "target", "given", "says"),
    [
        ("gone.pt2", "onnx", Given(), "there is no such file"),
        ("nets.py", "onnx", Given(), "is none of .pt2"),
        (".", "onnx", Given(), "is a directory without saved_model.pb"),
        ("digits.onnx", "tflite", Given(), "ONNX is not converted to tflite: .*say --to onnx"),
        ("forest.pkl", "tflite", TRUST, "scikit-learn is not converted to tflite"),
        ("digits.onnx", "onnx", Given(weights=Path("x.pt")), "--weights is for module:factory"),
        ("nets:digits", "onnx", Given(), "draws other weights at each call"),
        ("nets:Bessel", "onnx", Given(), r"forward has x\): say --input"),
        ("nets:Bessel", "onnx", Given(weights=Path("gone.pt")), "gone.pt: cannot be read"),
        ("nets:Residual", "onnx", Given(), "missing 1 required positional argument"),
        ("broken.pt2", "onnx", Given(), "is no program of torch.export.save"),
        ("broken.pt", "onnx", Given(), "is no file of torch.save"),
        ("broken.keras", "onnx", Given(), "Keras cannot open it"),
        ("broken.h5", "onnx", Given(), "Keras cannot open it"),
        ("broken.onnx", "onnx", Given(), "cannot load it|is no ONNX model"),
        ("broken.pkl", "onnx", TRUST, "cannot be unpickled"),
        ("number.pkl", "onnx", TRUST, "holds a int, and no estimator"),
        ("state.pt", "onnx", Given(), "holds weights, and not the module"),
    ],
)  # fmt: skip
def test_refusals(folder: Path, source: str, target: Target, given: Given, says: str) -> None:
    for name in ("broken.pt2", "broken.pt", "broken.keras", "broken.h5", "broken.onnx", "broken.pkl", "forest.pkl"):
        (folder / name).write_bytes(b"not what its name says")
    _onnx(folder)
    write_pickle(folder / "number.pkl", 3)
    torch.save({"weight": torch.zeros(2)}, folder / "state.pt")
    with pytest.raises(InvalidContent, match=says):
        open_source(source, target, given)
