"""Policies of values: each action on each kind of violation, held against scikit-learn, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from app.errors import InvalidTensor, RegistryError
from app.processing.consistency import Consistency, InputCheck, Violation
from app.processing.tensor import tensors_from_json
from app.processing.value_policy import ValuePolicy
from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from app.tensors import NUMPY_DTYPES, Array, TensorSpec
from tests.fixtures_models import write_model

ROWS = TensorSpec("x", "FP32", (-1, 3))
NAN = math.nan
INTEGERS = [name for name, dtype in NUMPY_DTYPES.items() if dtype.kind in "iu"]


def _apply(values: Any, spec: TensorSpec = ROWS, **policy: Any) -> tuple[Array, list[Violation]]:
    """An array, held against a policy as a raw tensor is."""
    found: list[Violation] = []
    array = np.array(values, NUMPY_DTYPES[spec.datatype])
    given = array.copy()
    made = _consistency(spec, **policy).check({"x": array}, [spec], found)["x"]
    np.testing.assert_array_equal(array, given)  # the caller's stays as it is
    assert (made.dtype, made.shape) == (array.dtype, array.shape)
    return made, found


def _read(values: Any, spec: TensorSpec = ROWS, **policy: Any) -> tuple[Array, list[Violation]]:
    """Nested lists, held against a policy as JSON is."""
    found: list[Violation] = []
    return _consistency(spec, **policy).read(values, [spec], found)["x"], found


def _consistency(spec: TensorSpec, **policy: Any) -> Consistency:
    return Consistency([(spec, ValuePolicy.model_validate(policy))])


IMPUTE = {"action": "impute", "fill": [7, 8, 9]}
CLIP = {"action": "clip", "low": 0, "high": [1, 2, 3]}
OUTLIERS = {"mean": [0, 10, 0], "std": [1, 2, 0.5], "z": 2}
DONE: dict[str, tuple[dict[str, Any], list[float], list[float], str]] = {
    "missing, imputed": (
        {"missing": IMPUTE},
        [1, NAN, NAN],
        [1, 8, 9],
        "input 'x', row 1, column 1 (counted from 0): the value is missing (null or NaN); "
        "there are 2 such values; imputed",
    ),
    "missing, flagged": (
        {"missing": {"action": "flag"}},
        [NAN, 0, 0],
        [NAN, 0, 0],
        "input 'x', row 1, column 0 (counted from 0): the value is missing (null or NaN); taken as it is",
    ),
    "out of range, clipped": (
        {"range": CLIP},
        [-1, 2, 3.5],
        [0, 2, 3],
        "input 'x', row 1, column 0 (counted from 0): -1 is out of range; allowed is 0 to 1; there are 2 such values; "
        "clipped",
    ),
    "infinite, clipped": (
        {"range": CLIP},
        [0, math.inf, 0],
        [0, 2, 0],
        "input 'x', row 1, column 1 (counted from 0): inf is out of range; allowed is 0 to 2; clipped",
    ),
    "below the only end, flagged": (
        {"range": {"action": "flag", "low": [None, 5, None]}},
        [-9, 4, -9],
        [-9, 4, -9],
        "input 'x', row 1, column 1 (counted from 0): 4 is out of range; allowed is at least 5; taken as it is",
    ),
    "above the only end, clipped": (
        {"range": {"action": "clip", "high": 5}},
        [-9, 5.5, 5],
        [-9, 5, 5],
        "input 'x', row 1, column 1 (counted from 0): 5.5 is out of range; allowed is at most 5; clipped",
    ),
    "outlier, clipped": (
        {"outliers": OUTLIERS | {"action": "clip"}},
        [2, 5.5, -1],
        [2, 6, -1],
        "input 'x', row 1, column 1 (counted from 0): 5.5 is an outlier; allowed is 6 to 14 (2 standard deviations "
        "around the mean); clipped",
    ),
    "outlier, flagged": (
        {"outliers": OUTLIERS | {"action": "flag"}},
        [0, 10, 1.25],
        [0, 10, 1.25],
        "input 'x', row 1, column 2 (counted from 0): 1.25 is an outlier; allowed is -1 to 1 (2 standard deviations "
        "around the mean); taken as it is",
    ),
}


@pytest.mark.parametrize("name", DONE)
def test_policy_changes_or_flags(name: str) -> None:
    policy, row, expected, message = DONE[name]
    fine = [0.5, 10, 0.5] if "outliers" in policy else [1, 2, 3]
    if "low" in policy.get("range", {}) and policy["range"]["action"] == "flag":
        fine = [1, 5, 3]
    made, found = _apply([fine, row], **policy)
    np.testing.assert_array_equal(made, np.array([fine, expected], np.float32))
    (violation,) = found
    assert violation.message == message
    assert violation.input == "x"
    assert violation.action == next(iter(policy.values()))["action"]
    assert violation.kind == {"missing": "missing", "range": "out_of_range", "outliers": "outlier"}[next(iter(policy))]


@pytest.mark.parametrize(
    ("policy", "row", "message"),
    [
        ({"missing": {"action": "reject"}}, [1, NAN, 3], "row 1, column 1 .*: the value is missing .*; send a number$"),
        ({"range": CLIP | {"action": "reject"}}, [1, 2, 4], "column 2 .*: 4 is out of range; allowed is 0 to 3$"),
        ({"range": CLIP | {"action": "reject"}}, [2, 3, 4], "column 0 .*; there are 3 such values$"),
        (
            {"outliers": OUTLIERS | {"action": "reject"}},
            [3, 10, 0],
            r"column 0 .*: 3 is an outlier; allowed is -2 to 2",
        ),
    ],
)
def test_policy_rejects_naming_row_and_column(policy: dict[str, Any], row: list[float], message: str) -> None:
    fine, found = [[1, 10 if "outliers" in policy else 2, 0]], []
    with pytest.raises(InvalidTensor, match=message) as caught:
        _consistency(ROWS, **policy).check({"x": np.array([*fine, row], np.float32)}, [ROWS], found)
    assert str(caught.value).startswith("input 'x', row 1, column ")
    assert [(one.action, one.message) for one in found] == [("reject", str(caught.value))]


def test_policy_order_is_missing_then_range_then_outliers() -> None:
    """A clipped value is then held against the mean; what was imputed is not (a sentinel stays)."""
    policy = {
        "missing": {"action": "impute", "fill": -999},
        "range": {"action": "clip", "low": 0, "high": 100},
        "outliers": {"action": "clip", "mean": 20, "std": 10, "z": 3},
    }
    made, found = _apply([[NAN, 500, 20]], **policy)
    np.testing.assert_array_equal(made, np.array([[-999, 50, 20]], np.float32))
    assert [(one.kind, one.count) for one in found] == [("missing", 1), ("out_of_range", 1), ("outlier", 1)]


@pytest.mark.parametrize(
    ("shape", "values", "place"),
    [
        ((), 9, "input 'x': 9"),
        ((-1,), [0, 9], "input 'x', row 1 (counted from 0): 9"),
        ((2,), [0, 9], "input 'x', column 1 (counted from 0): 9"),
        ((-1, 2, 2), [[[0, 0], [0, 0]], [[0, 0], [9, 0]]], "input 'x', row 1, 1, column 0 (counted from 0): 9"),
    ],
)
@pytest.mark.parametrize("datatype", ["FP16", "FP64", "UINT8", "INT64"])
def test_policy_of_every_shape_and_datatype(shape: tuple[int, ...], values: Any, place: str, datatype: str) -> None:
    spec = TensorSpec("x", datatype, shape)
    made, (violation,) = _apply(values, spec, range={"action": "clip", "high": 5})
    assert violation.message.startswith(place)
    assert made.tolist() == np.minimum(np.array(values), 5).tolist()
    missing = {"action": "impute", "fill": 3}
    boxed = np.array(values, object)
    boxed[boxed == 9] = None
    made, (violation,) = _read(boxed.tolist(), spec, missing=missing, range={"action": "reject", "low": 0, "high": 5})
    assert (violation.kind, violation.count) == ("missing", 1)
    assert isinstance(made, np.ndarray)
    assert made.dtype == NUMPY_DTYPES[datatype]
    assert made.tolist() == np.where(np.array(values) == 9, 3, values).tolist()


def test_read_takes_null_and_nan_alike() -> None:
    for value in (None, NAN):
        made, (violation,) = _read([[1, value, 3], [4, 5, 6]], missing=IMPUTE)
        assert made.tolist() == [[1, 8, 3], [4, 5, 6]]
        assert violation.count == 1
    made, (violation,) = _read([[None, None, None]], missing={"action": "flag"})
    assert np.isnan(made).all()
    assert violation.count == 3
    made, _ = _read(np.array([[1, NAN, 3]]), missing=IMPUTE)
    assert made.tolist() == [[1, 8, 3]]
    with pytest.raises(InvalidTensor, match=r"row 0, column 2 .*: the value is missing"):
        _read([[1, 2, None]], missing={"action": "reject"})


def test_read_counts_missing_integers_apart_from_their_range() -> None:
    spec = TensorSpec("x", "INT64", (-1, 2))
    policy = {"missing": {"action": "impute", "fill": -1}, "range": {"action": "clip", "low": 5, "high": 9}}
    made, found = _read([[None, 20], [6, 2**60]], spec, **policy)
    assert made.tolist() == [[-1, 9], [6, 9]]
    assert [(one.kind, one.count) for one in found] == [("missing", 1), ("out_of_range", 2)]
    with pytest.raises(InvalidTensor, match=r"row 0, column 1 .*: the value is missing"):
        _read([[6, None]], spec, missing={"action": "reject"})


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2, None]], [[1, 2, NAN]], [[1, 2, math.inf]], [[1, 2, "3"]], [[1, 2], [3]], [[1, 2, [None]]], [[1, None]],
        None, [[1, 2, {}]], {"y": [[1, 2, 3]]}, [[1, 2, 1e39]],
    ],
)  # fmt: skip
def test_read_refuses_as_ever_what_no_policy_is_for(values: Any) -> None:
    with pytest.raises(InvalidTensor) as ours:
        _read(values, range=CLIP)
    with pytest.raises(InvalidTensor) as plain:
        tensors_from_json(values, [ROWS])
    assert str(ours.value) == str(plain.value)


@pytest.mark.parametrize("values", [[[None, 2, "3"]], [[None, 2], [3]], [[None, math.inf, 1]], [[None, 1]], [None, {}]])
def test_read_refuses_what_is_wrong_beside_null(values: Any) -> None:
    with pytest.raises(InvalidTensor, match="input 'x'"):
        _read(values, missing=IMPUTE)


def test_read_several_inputs_each_by_its_own_policy() -> None:
    specs = [TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT64", (-1,)), TensorSpec("c", "FP32", (-1,))]
    consistency = Consistency(
        [
            (specs[0], ValuePolicy.model_validate({"missing": {"action": "impute", "fill": 1}})),
            (specs[1], ValuePolicy.model_validate({"range": {"action": "flag", "low": 0}})),
        ]
    )
    found: list[Violation] = []
    tensors = consistency.read({"a": [[None, 2]], "b": [-1], "c": [5]}, specs, found)
    assert {name: array.tolist() for name, array in tensors.items()} == {"a": [[1, 2]], "b": [-1], "c": [5]}
    assert [(one.input, one.kind) for one in found] == [("a", "missing"), ("b", "out_of_range")]
    with pytest.raises(InvalidTensor, match="without null"):
        consistency.read({"a": [[1, 2]], "b": [None], "c": [5]}, specs, found)
    with pytest.raises(InvalidTensor, match="without null"):
        consistency.read({"a": [[None, 2]], "b": [1], "c": [None]}, specs, found)


def test_range_ends_are_allowed_as_the_datatype_has_them() -> None:
    """0.1 as FP32 lies above 0.1 as FP64, and the caller wrote 0.1."""
    for datatype in ("FP16", "FP32", "FP64"):
        spec = TensorSpec("x", datatype, (-1,))
        ends = {"action": "reject", "low": 0.1, "high": 0.7}
        assert _apply([0.1, 0.7], spec, range=ends)[1] == []
    huge = {"action": "reject", "high": 1e6}
    assert _apply([65504], TensorSpec("x", "FP16", (-1,)), range=huge)[1] == []
    with pytest.raises(InvalidTensor, match="inf is out of range; allowed is at most 1000000"):
        _apply([math.inf], TensorSpec("x", "FP16", (-1,)), range=huge)


@pytest.mark.parametrize("datatype", INTEGERS)
def test_range_of_integers_is_rounded_inwards(datatype: str) -> None:
    spec, info = TensorSpec("x", datatype, (-1,)), np.iinfo(NUMPY_DTYPES[datatype])
    made, _ = _apply([0, 1, 2, 3], spec, range={"action": "clip", "low": 0.5, "high": 2.5})
    assert made.tolist() == [1, 1, 2, 2]
    wide = {"action": "clip", "low": -1e30, "high": 1e30}
    assert _apply([info.min, info.max], spec, range=wide)[1] == []


@st.composite
def _rows_within(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """Rows of 3 columns with an end of the range in every column, and the policy that they keep."""
    numbers = st.floats(-1e6, 1e6, width=32)
    lows = draw(st.lists(numbers, min_size=3, max_size=3))
    highs = [low + draw(st.floats(0, 1e6, width=32)) for low in lows]
    ends = [(float(np.float32(low)), float(np.float32(high))) for low, high in zip(lows, highs, strict=True)]
    columns = [st.floats(*pair, width=32) for pair in ends]
    rows = draw(st.lists(st.tuples(*columns), min_size=1, max_size=8))
    action = draw(st.sampled_from(["reject", "clip", "flag"]))
    return np.array(rows, np.float32), {"action": action, "low": lows, "high": highs}


@given(_rows_within(), st.sampled_from(["reject", "impute"]))
def test_rows_within_bounds_are_never_changed(rows_and_range: tuple[Array, dict[str, Any]], missing: str) -> None:
    rows, ends = rows_and_range
    policy = ValuePolicy.model_validate(
        {"missing": {"action": missing} | ({"fill": 0} if missing == "impute" else {}), "range": ends}
    )
    found: list[Violation] = []
    assert InputCheck(ROWS, policy).apply(rows, None, found) is rows
    assert found == []


@given(
    hnp.arrays(np.float32, (6, 3), elements=st.floats(width=32)),
    st.sampled_from(["clip", "flag"]),
    st.sampled_from(["impute", "flag"]),
)
def test_good_values_keep_their_bits_beside_bad_ones(rows: Array, action: str, missing: str) -> None:
    policy = {
        "missing": {"action": missing} | ({"fill": [5, 6, 7]} if missing == "impute" else {}),
        "range": {"action": action, "low": -10, "high": [10, 20, 30]},
    }
    made, found = _apply(rows, **policy)
    wrong = ~((rows >= -10) & (rows <= np.array([10, 20, 30])))
    np.testing.assert_array_equal(made.view(np.uint32)[~wrong], rows.view(np.uint32)[~wrong])
    assert sum(one.count for one in found) == np.count_nonzero(wrong)
    if (action, missing) == ("clip", "impute"):
        assert not np.isnan(made).any()
        assert ((made >= -10) & (made <= np.array([10, 20, 30]))).all()


@pytest.mark.parametrize("seed", range(5))
def test_impute_clip_and_z_score_as_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    training = random.normal(random.normal(size=4) * 10, random.uniform(0.5, 5, 4), (200, 4))
    rows = random.normal(training.mean(0), 4 * training.std(0), (300, 4))
    rows[random.random(rows.shape) < 0.1] = NAN
    scaler, imputer = StandardScaler().fit(training), SimpleImputer(strategy="median").fit(training)
    policy = {
        "missing": {"action": "impute", "fill": imputer.statistics_.tolist()},
        "outliers": {"action": "flag", "mean": scaler.mean_.tolist(), "std": scaler.scale_.tolist(), "z": 3},
    }
    spec = TensorSpec("x", "FP64", (-1, 4))
    made, found = _apply(rows, spec, **policy)
    np.testing.assert_array_equal(made, imputer.transform(rows))
    with np.errstate(invalid="ignore"):
        far = np.abs(scaler.transform(rows)) > 3
    assert {one.kind: one.count for one in found} == {"missing": np.isnan(rows).sum(), "outlier": far.sum()}
    clipped, _ = _apply(rows, spec, outliers=policy["outliers"] | {"action": "clip"})
    scores = scaler.transform(clipped)
    np.testing.assert_allclose(scores, np.clip(scaler.transform(rows), -3, 3), rtol=1e-9, atol=1e-9)


VALUES: dict[str, tuple[Any, str]] = {
    "empty": ({}, "inputs[0].values: says nothing; write missing, range or outliers, or leave values out"),
    "unknown key": ({"rage": {}}, "inputs[0].values.rage: unknown key; did you mean 'range'?"),
    "no action": ({"range": {"low": 0}}, "inputs[0].values.range.action: is missing; add it"),
    "wrong action": ({"range": {"low": 0, "action": "impute"}}, "inputs[0].values.range.action: "),
    "no end": ({"range": {"action": "clip"}}, "inputs[0].values.range: needs low or high"),
    "impute nothing": ({"missing": {"action": "impute"}}, "inputs[0].values.missing: action: impute and fill go"),
    "fill unused": ({"missing": {"action": "flag", "fill": 0}}, "inputs[0].values.missing: action: impute and fill go"),
    "text": ({"range": {"action": "clip", "low": [0, "a", 0]}}, "inputs[0].values.range.low[1]: "),
    "NaN": ({"missing": {"action": "impute", "fill": "nan"}}, "inputs[0].values.missing.fill[0]: "),
    "infinite": ({"range": {"action": "clip", "high": "inf"}}, "inputs[0].values.range.high[0]: "),
    "no numbers": ({"range": {"action": "clip", "low": []}}, "inputs[0].values.range.low: "),
    "too few columns": (
        {"range": {"action": "clip", "low": [0, 0]}},
        "values.range.low: has 2 numbers, and input 'x' has 3 columns (its last size); write one for each, or one for",
    ),
    "too many means": (
        {"outliers": {"action": "flag", "mean": [0] * 4, "std": 1, "z": 3}},
        "values.outliers.mean: has 4 numbers, and input 'x' has 3 columns",
    ),
    "no deviation": (
        {"outliers": {"action": "flag", "mean": 0, "std": [1, 0, 1], "z": 3}},
        "inputs[0].values.outliers.std[1]: ",
    ),
    "negative z": ({"outliers": {"action": "flag", "mean": 0, "std": 1, "z": -3}}, "inputs[0].values.outliers.z: "),
    "upside down": (
        {"range": {"action": "clip", "low": 0, "high": [1, -1, 1]}},
        "values.range: leaves no value of FP32 to column 1",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_manifest_refuses_a_policy_naming_the_field(tmp_path: Path, name: str) -> None:
    values, message = VALUES[name]
    entry = {"name": "x", "datatype": "FP32", "shape": [-1, 3], "values": values}
    directory = write_model(tmp_path, inputs=[entry])
    with pytest.raises(RegistryError) as caught:
        read_manifest(directory)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "message"),
    [
        ("BYTES", (-1,), {"missing": {"action": "reject"}}, "values: is for numbers, and input 'x' takes BYTES"),
        ("BOOL", (-1,), {"range": {"action": "clip", "low": 0}}, "values: is for numbers, and input 'x' takes BOOL"),
        ("INT64", (-1,), {"missing": {"action": "flag"}}, "values.missing.action: INT64 has no NaN that could stay"),
        ("INT8", (-1,), {"missing": {"action": "impute", "fill": 1.5}}, "values.missing.fill: must be of the input's"),
        ("UINT8", (-1,), {"missing": {"action": "impute", "fill": -1}}, "values.missing.fill: must be of the input's"),
        ("FP16", (-1,), {"missing": {"action": "impute", "fill": 1e6}}, "values.missing.fill: must be of the input's"),
        ("UINT8", (-1,), {"range": {"action": "clip", "low": 300}}, "values.range: leaves no value of UINT8"),
        ("UINT8", (-1,), {"range": {"action": "clip", "high": -1}}, "values.range: leaves no value of UINT8"),
        ("INT32", (-1,), {"range": {"action": "clip", "low": 0.2, "high": 0.8}}, "values.range: leaves no value"),
        ("FP32", (-1,), {"range": {"action": "clip", "low": [0, 1]}}, "has no fixed number of columns .*write one num"),
        ("FP32", (), {"range": {"action": "clip", "low": [0, 1]}}, "values.range.low: has 2 numbers"),
    ],
)
def test_check_refuses_what_does_not_fit_the_input(
    datatype: str, shape: tuple[int, ...], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        InputCheck(TensorSpec("x", datatype, shape), ValuePolicy.model_validate(values))


def test_servable_with_a_policy_answers_golden_requests_with_null(tmp_path: Path) -> None:
    values = {"missing": {"action": "impute", "fill": [0, 0, 1]}}
    entry = {"name": "x", "datatype": "FP32", "shape": [-1, 3], "values": values}
    golden = b'{"requests": [{"inputs": [[0, 0, null]], "top": [{"index": 2, "confidence": 1}]}]}'
    directory = write_model(
        tmp_path, inputs=[entry], files={"golden.json": golden}, golden={"file": "golden.json", "tolerance": 0.01}
    )
    load_servable(directory, threads=1).close()


def test_servable_of_images_takes_no_policy(tmp_path: Path) -> None:
    values = {"range": {"action": "clip", "high": 200}}
    entry = {"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3], "values": values}
    with pytest.raises(RegistryError, match="values is for numbers of callers, and this version takes images"):
        load_servable(write_model(tmp_path, "colour", kind="colour", inputs=[entry]), threads=1)


def test_servable_takes_no_policy_for_outputs(tmp_path: Path) -> None:
    entry = {"name": "scores", "datatype": "FP32", "shape": [-1, 3], "values": {"missing": {"action": "flag"}}}
    with pytest.raises(RegistryError, match="outputs: values is for inputs"):
        load_servable(write_model(tmp_path, outputs=[entry]), threads=1)
