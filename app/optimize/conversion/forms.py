"""Which forms of trained networks are converted to which, and a source opened by its form."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from app.errors import InvalidContent
from app.optimize.conversion.source import Given, Source, Target


class Form(NamedTuple):
    """`opener` is `module:function`, imported when a source has this form; `to` the targets with their converters."""

    name: str
    written: str
    opener: str
    to: dict[Target, str]


_TORCH: dict[Target, str] = {"onnx": "torch.onnx", "tflite": "litert-torch, apart"}
# docs/guides/convert.md has this table.
FORMS: tuple[Form, ...] = (
    Form("PyTorch program", ".pt2", "from_torch:open_program", _TORCH),
    Form("PyTorch module:factory", "module:factory", "from_torch:open_factory", _TORCH),
    Form("PyTorch pickle", ".pt, .pth", "from_torch:open_pickled", _TORCH),
    Form("Keras", ".keras, .h5", "from_keras:open_keras", _TORCH),
    Form(
        "TensorFlow SavedModel",
        "directory",
        "from_tensorflow:open_saved_model",
        {"onnx": "tf2onnx, apart", "tflite": "TensorFlow, apart"},
    ),
    Form("scikit-learn", ".pkl, .pickle, .joblib", "from_sklearn:open_pickle", {"onnx": "skl2onnx"}),
    Form("ONNX", ".onnx", "from_onnx:open_onnx", {"onnx": "onnx"}),
)
_NEEDS = {"from_torch": "training", "from_keras": "training"}


def form_of(source: str) -> Form:
    """Raises InvalidContent where there is no such file, or none of these forms."""
    path = Path(source)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return _form("TensorFlow SavedModel")
        raise InvalidContent(f"{source}: is a directory without saved_model.pb, so it is no SavedModel")
    if not path.is_file() and ":" in source:
        return _form("PyTorch module:factory")
    for form in FORMS:
        if path.suffix.lower() in form.written.split(", "):
            if not path.is_file():
                raise InvalidContent(f"{source}: there is no such file")
            return form
    known = ", ".join(form.written for form in FORMS)
    raise InvalidContent(f"{source}: is none of {known} (a directory being a SavedModel)")


def open_source(source: str, target: Target, given: Given) -> Source:
    """Raises InvalidContent, also where the pair is not converted."""
    form = form_of(source)
    if target not in form.to:
        raise InvalidContent(
            f"{source}: {form.name} is not converted to {target}: there is no converter that is kept up to date; "
            f"say --to {' or '.join(form.to)}"
        )
    if given.weights is not None and form.name != "PyTorch module:factory":
        raise InvalidContent("--weights is for module:factory; the others hold their own")
    module, _, function = form.opener.partition(":")
    try:
        opener: Callable[..., Source] = getattr(import_module(f"app.optimize.conversion.{module}"), function)
        return opener(source if form.written == "module:factory" else Path(source), given)
    except ImportError as exc:
        extra = _NEEDS.get(module, "optimize")
        raise InvalidContent(
            f"{form.name} needs a package that is missing ({exc}): pip install 'headway[{extra}]'"
        ) from exc


def _form(name: str) -> Form:
    return next(form for form in FORMS if form.name == name)
