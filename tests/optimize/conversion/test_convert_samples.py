"""Samples fit the inputs, and how far apart two answers are is what numpy says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidContent
from app.optimize.conversion.samples import Samples, by_rows, compare, given_samples, random_samples, read_arrays
from app.optimize.conversion.source import parse_input
from app.tensors import NUMPY_DTYPES, Tensors, TensorSpec

SPECS = (
    TensorSpec("x", "FP32", (-1, 3)),
    TensorSpec("photo", "UINT8", (-1, -1, 2)),
    TensorSpec("ids", "INT64", (-1,)),
    TensorSpec("text", "BYTES", (-1, 1)),
    TensorSpec("flag", "BOOL", (-1,)),
)


def test_random_samples_fit_and_follow_the_seed() -> None:
    samples = random_samples(SPECS, 7)
    assert samples.data == "17 random rows, seed 7"
    for run, rows in zip(samples.runs, (16, 1), strict=True):
        assert [run[spec.name].shape for spec in SPECS] == [(rows, 3), (rows, 8, 2), (rows,), (rows, 1), (rows,)]
        assert all(run[spec.name].dtype == NUMPY_DTYPES[spec.datatype] for spec in SPECS)
        assert set(run["ids"].tolist()) <= {0, 1}
        assert isinstance(run["text"][0, 0], bytes)
    again, other = random_samples(SPECS, 7).runs[0], random_samples(SPECS, 8).runs[0]
    assert all(np.array_equal(samples.runs[0][name], again[name]) for name in again)
    assert not np.array_equal(again["x"], other["x"])
    assert [run["x"].shape for run in random_samples([TensorSpec("x", "FP32", (2, 3))], 0).runs] == [(2, 3)] * 4


@pytest.mark.parametrize("size", [10**13, 10**23])
def test_random_samples_of_a_size_that_no_memory_holds(size: int) -> None:
    with pytest.raises(InvalidContent, match=r"random rows of x: FP32 \[n, 10+\] cannot be made"):
        random_samples([TensorSpec("x", "FP32", (-1, size))], 0)


def _compare(one: np.ndarray, two: np.ndarray) -> tuple[float, int]:
    samples = Samples("two rows", [{"x": np.zeros((len(one), 1), np.float32)}])
    found = compare(samples, lambda _: {"y": one}, lambda _: {"y": two})
    return found.largest, found.other_top1


def test_compare_says_what_numpy_says() -> None:
    random = np.random.default_rng(0)
    one = random.standard_normal((50, 5)).astype(np.float32)
    two = (one + random.standard_normal((50, 5)) * 0.3).astype(np.float32)
    largest, other = _compare(one, two)
    assert largest == pytest.approx(float(np.abs(one.astype(np.float64) - two).max()))
    assert other == int((one.argmax(1) != two.argmax(1)).sum()) > 0


def test_compare_of_special_values() -> None:
    nan, inf = np.nan, np.inf
    assert _compare(np.array([[nan, inf, 1.0]]), np.array([[nan, inf, 1.0]]))[0] == 0
    assert math.isinf(_compare(np.array([[nan, 1.0]]), np.array([[0.0, 1.0]]))[0])
    assert _compare(np.array([[1.0, 1.0, 0.0]]), np.array([[0.9, 1.0, 0.0]])) == (pytest.approx(0.1), 0)  # a tie
    assert _compare(np.array([3, 4]), np.array([[3], [5]])) == (1, 0)
    assert _compare(np.array(["a", "b"]), np.array([b"a", b"b"], dtype=object)) == (0, 0)
    assert math.isinf(_compare(np.array(["a", "b"]), np.array(["a", "c"]))[0])


def test_compare_refuses_other_outputs() -> None:
    samples = Samples("a row", [{"x": np.zeros((1, 1))}])
    with pytest.raises(InvalidContent, match="outputs are z, and those of the source y"):
        compare(samples, lambda _: {"y": np.zeros(1)}, lambda _: {"z": np.zeros(1)})
    with pytest.raises(InvalidContent, match=r"has the shape \[2\], and \[1\] in the source"):
        compare(samples, lambda _: {"y": np.zeros(1)}, lambda _: {"y": np.zeros(2)})


def test_file_of_one_row_is_run_for_each() -> None:
    def double(tensors: Tensors) -> Tensors:
        assert tensors["x"].shape == (1, 2)
        return {"y": tensors["x"] * 2}

    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    answer = by_rows(double, [TensorSpec("x", "FP32", (1, 2))])({"x": rows})
    assert np.array_equal(answer["y"], rows * 2)


def test_given_samples(tmp_path: Path) -> None:
    spec = TensorSpec("x", "FP32", (-1, 3))
    np.save(tmp_path / "rows.npy", np.ones((5, 3)))
    (run,) = given_samples(tmp_path / "rows.npy", read_arrays(tmp_path / "rows.npy"), [spec]).runs
    assert (run["x"].shape, run["x"].dtype) == ((5, 3), np.float32)
    fixed = given_samples(tmp_path / "rows.npy", {"x": np.ones((5, 3), np.float32)}, [TensorSpec("x", "FP32", (2, 3))])
    assert [run["x"].shape for run in fixed.runs] == [(2, 3), (2, 3)]
    texts = given_samples(Path("t.npz"), {"text": np.array(["é", "b"])}, [TensorSpec("text", "BYTES", (-1,))])
    assert texts.runs[0]["text"].tolist() == ["é".encode(), b"b"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.ones((2, 3))}, "has no array 'x'"),
        ({"x": np.ones((2, 4))}, r"has the shape \[2, 4\]"),
        ({"x": np.array([["a", "b", "c"]])}, "is of <U1"),
        ({"x": np.ones((0, 3))}, "at least one"),
    ],
)
def test_given_samples_that_do_not_fit(arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(InvalidContent, match=says):
        given_samples(Path("rows.npz"), arrays, [TensorSpec("x", "FP32", (-1, 3))])


def test_pickles_and_other_files_are_no_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "whole.npz", x=np.ones((9, 9)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    for name in ("objects.npy", "text.npz", "empty.npy", "cut.npz"):
        with pytest.raises(InvalidContent, match=r"is no \.npy or \.npz file of samples"):
            read_arrays(tmp_path / name)
    with pytest.raises(InvalidContent, match="cannot be read"):
        read_arrays(tmp_path / "gone.npz")


@pytest.mark.parametrize("text", ["x", "x:FP32", "x:FP32:1,2", "x:FLOAT:n,2", ":FP32:n", "x:FP32:n,0", "x:FP32:n,-1"])
def test_parse_input_refusals(text: str) -> None:
    with pytest.raises(InvalidContent, match="write NAME:DATATYPE:n,SIZE"):
        parse_input(text)


def test_parse_input() -> None:
    assert parse_input("a.b:INT64:n,3,4") == TensorSpec("a.b", "INT64", (-1, 3, 4))
    assert parse_input("text:BYTES:n") == TensorSpec("text", "BYTES", (-1,))
