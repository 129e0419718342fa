"""Recorded requests must give their recorded answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.errors import RegistryError
from app.registry.drafting.golden_record import record_golden
from app.registry.servables.loading import load_servable
from tests.fixtures_models import write_model
from tests.processing.conftest import encode

RED = encode(Image.new("RGB", (8, 8), (255, 0, 51)), "PNG")


def _write(
    root: Path, *requests: dict[str, Any], kind: str = "scores", raw: bytes | None = None, **golden: Any
) -> Path:
    data = raw if raw is not None else json.dumps({"requests": requests}).encode()
    section = {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.01, **golden}
    files = {"golden/golden.json": data, "golden/red.png": RED}
    return write_model(root, "m", kind=kind, files=files, golden=section)


def _top(index: int, confidence: float) -> list[dict[str, Any]]:
    return [{"index": index, "confidence": confidence}]


def test_golden_answers_that_are_given(root: Path) -> None:
    directory = _write(
        root,
        {"inputs": [[0.1, 0.2, 0.7]], "top": [*_top(2, 0.7), *_top(1, 0.2)]},
        {"inputs": {"x": [[1, 0, 0]]}, "top": _top(0, 0.995)},
    )
    load_servable(directory, 1).close()


def test_golden_image(root: Path) -> None:
    load_servable(_write(root, {"image": "red.png", "top": [*_top(0, 1.0), *_top(2, 0.2)]}, kind="colour"), 1).close()
    with pytest.raises(RegistryError, match=r"request 1 no longer .*: the confidence of index 2 is 0\.2"):
        load_servable(_write(root, {"image": "red.png", "top": [*_top(0, 1.0), *_top(2, 0.4)]}, kind="colour"), 1)


def test_golden_text(root: Path) -> None:
    load_servable(_write(root, {"text": "good", "top": [*_top(1, 0.75), *_top(0, 0.25)]}, kind="mood"), 1).close()
    with pytest.raises(RegistryError, match=r"request 1 no longer .*: the confidence of index 1 is 0\.5"):
        load_servable(_write(root, {"text": "better", "top": _top(1, 0.75)}, kind="mood", top1=None), 1)
    with pytest.raises(RegistryError, match=r"request 1 no longer .*: the text is empty"):
        load_servable(_write(root, {"text": "", "top": _top(1, 0.75)}, kind="mood"), 1)


def test_golden_value(root: Path) -> None:
    load_servable(_write(root, {"inputs": [[1, 2, 3]], "value": 6.005}, kind="sum"), 1).close()
    with pytest.raises(RegistryError, match=r"request 1 no longer gives its recorded answer: value 6\.0"):
        load_servable(_write(root, {"inputs": [[1, 2, 3]], "value": 6.02}, kind="sum"), 1)


def test_golden_other_first_label(root: Path) -> None:
    good = {"inputs": [[1, 0, 0]], "top": _top(0, 1)}
    directory = _write(root, good, {"inputs": [[0.5, 0.6, 0]], "top": _top(0, 0.5)})
    with pytest.raises(
        RegistryError, match=r"golden\.json: request 2 .*: the first label is 'middle' \(index 1\), rec"
    ):
        load_servable(directory, 1)
    # Without top1 only the confidences count.
    load_servable(_write(root, {"inputs": [[0.5, 0.6, 0]], "top": _top(0, 0.5)}, top1=None), 1).close()


def test_golden_tolerance(root: Path) -> None:
    load_servable(_write(root, {"inputs": [[0.5, 0, 0]], "top": _top(0, 0.509)}), 1).close()
    with pytest.raises(RegistryError, match=r"confidence of index 0 is 0\.5, recorded is 0\.52"):
        load_servable(_write(root, {"inputs": [[0.5, 0, 0]], "top": _top(0, 0.52)}), 1)
    load_servable(_write(root, {"inputs": [[0.5, 0, 0]], "top": _top(0, 0.52)}, tolerance=0.05), 1).close()


PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "input that does not fit": ({"inputs": [[1, 2]], "top": _top(0, 1)}, "scores", "shape"),
    "index that is not there": (
        {"inputs": [[1, 0, 0]], "top": [*_top(0, 1), *_top(9, 0)]},
        "scores",
        "index 9 is None",
    ),
    "labels of a regression": ({"inputs": [[1, 0, 0]], "top": _top(0, 1)}, "sum", "gave no labels"),
    "value of a classifier": ({"inputs": [[1, 0, 0]], "value": 1}, "scores", "value None"),
    "image for numbers": ({"image": "red.png", "top": _top(0, 1)}, "scores", "takes numbers"),
    "answer of plain tensors": ({"inputs": [[1, 0, 0]], "top": _top(0, 1)}, "positive", "gave no answer"),
    "no answer recorded": ({"inputs": [[1, 0, 0]]}, "scores", "either top, value or outputs"),
    "two answers recorded": ({"inputs": [[1, 0, 0]], "value": 1, "outputs": {"y": []}}, "sum", "either top, value or"),
    "no outputs recorded": ({"inputs": [[1, 0, 0]], "outputs": {}}, "positive", "outputs"),
    "two kinds of content": (
        {"inputs": [[1]], "image": "red.png", "top": _top(0, 1)},
        "scores",
        "either image, text or inputs",
    ),
    "two rows": (
        {"inputs": [[1, 0, 0], [0, 1, 0]], "top": _top(0, 1)},
        "scores",
        "it has 2 answers, and one is recorded",
    ),
    "unknown key": ({"input": [[1, 0, 0]], "top": _top(0, 1)}, "scores", "input"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_golden_problem_names_the_file(root: Path, name: str) -> None:
    request, kind, message = PROBLEMS[name]
    with pytest.raises(RegistryError, match=rf"golden\.json: .*{message}"):
        load_servable(_write(root, request, kind=kind), 1)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"requests": []}', b"\xff", b'{"requests": [{"inputs"'])
def test_golden_file_that_is_none(root: Path, raw: bytes) -> None:
    with pytest.raises(RegistryError, match=r"golden\.json: is not a file of golden requests"):
        load_servable(_write(root, raw=raw), 1)


@pytest.mark.parametrize("image", ["blue.png", "../../../../secret.png", "/etc/passwd"])
def test_golden_image_that_is_not_listed(root: Path, image: str) -> None:
    with pytest.raises(RegistryError, match=r"golden\.json: request 1 .*is not listed in model\.yaml \(files\)"):
        load_servable(_write(root, {"image": image, "top": _top(0, 1)}, kind="colour"), 1)


def test_golden_outputs(root: Path) -> None:
    """Whether each value is positive: held exactly, any number of rows."""
    request = {"inputs": [[1, 0, 2], [0, -1, 3]]}
    given = [[True, False, True], [False, False, True]]
    load_servable(_write(root, request | {"outputs": {"is_positive": given}}, kind="positive"), 1).close()
    other = [[True, False, True], [False, True, True]]
    with pytest.raises(RegistryError, match=r"output 'is_positive'\[1\]\[1\] is False, recorded is True"):
        load_servable(_write(root, request | {"outputs": {"is_positive": other}}, kind="positive"), 1)


def test_golden_outputs_of_floats(root: Path) -> None:
    """Within the tolerance; 10 and 10.0 are the same in JSON."""
    for recorded in ([10, 30.009], [9.991, 30]):
        load_servable(_write(root, {"inputs": [0, 2], "outputs": {"found": recorded}}, kind="lookup"), 1).close()
    for recorded, message in (
        ([10, 30.02], r"output 'found'\[1\] is 30\.0, recorded is 30\.02"),
        ([10], r"output 'found' has 2 values, recorded are 1"),
        ([10, None], r"output 'found'\[1\] is 30\.0, recorded is None"),
        ([10, True], r"output 'found'\[1\] is 30\.0, recorded is True"),
        ([10, [30]], r"output 'found'\[1\] is 30\.0, recorded is \[30\]"),
    ):
        with pytest.raises(RegistryError, match=message):
            load_servable(_write(root, {"inputs": [0, 2], "outputs": {"found": recorded}}, kind="lookup"), 1)


def test_golden_outputs_that_are_not_there(root: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no output 'lost'; the outputs are found"):
        load_servable(_write(root, {"inputs": [0], "outputs": {"lost": [10]}}, kind="lookup"), 1)


def test_golden_outputs_are_recorded(root: Path, tmp_path: Path) -> None:
    directory = write_model(root, "m", kind="lookup")
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "one.json").write_text("[2, 0]")
    record_golden(directory, tmp_path / "requests")
    (request,) = json.loads((directory / "golden/golden.json").read_bytes())["requests"]
    assert request == {"inputs": [2, 0], "outputs": {"found": [30.0, 10.0]}}
    load_servable(_write(root, request, kind="lookup"), 1).close()
