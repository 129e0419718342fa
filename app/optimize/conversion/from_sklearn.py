"""scikit-learn as a source: a pickled estimator or pipeline, translated by skl2onnx."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from app.errors import InvalidContent
from app.optimize.conversion.source import Given, Source, Target, specs_of, versions_of
from app.optimize.networks import onnx_graph as graphs
from app.tensors import Tensors, TensorSpec

_INSTALL = "pip install 'headway[scikit-learn]'"
_INPUT = "features"
# What skl2onnx has operators for; ONNX Runtime has more.
_OPSETS = {"": 21, "ai.onnx.ml": 3}
_GRAPH_NAME = "estimator"
_LOCALE = "C.UTF-8"
# What text vectorizers split by unless told otherwise, and the same for ONNX Runtime: skl2onnx's own choice,
# [a-zA-Z0-9_]+, takes words of one letter, too, and none of other alphabets.
_TOKEN_PATTERN, _RE2_TOKEN_PATTERN = r"(?u)\b\w\w+\b", r"[\p{L}\p{N}_][\p{L}\p{N}_]+"
_TYPES = {
    "FP32": "FloatTensorType", "FP64": "DoubleTensorType", "INT64": "Int64TensorType", "INT32": "Int32TensorType",
    "BOOL": "BooleanTensorType", "BYTES": "StringTensorType",
}  # fmt: skip


class SklearnSource(Source):
    """The answer of a classifier is its probabilities, else its label; else what it predicts or transforms to."""

    kind = "scikit-learn"

    def __init__(self, estimator: Any, given: Given) -> None:
        """Raises InvalidContent where it is not said what the estimator takes."""
        self._estimator = estimator
        inputs = given.inputs or specs_of({name or _INPUT: array for name, array in given.examples.items()})
        self.inputs = inputs or _own_input(estimator)
        if len(self.inputs) != 1:
            raise InvalidContent("a scikit-learn source has one input, of all columns; save it as one array")
        self._method, self._output = _role(estimator)
        if given.output_names:
            if len(given.output_names) != 1:
                raise InvalidContent("--output-name: a scikit-learn source has one output")
            (self._output,) = given.output_names
        if self._method == "predict_proba":
            self.labels = tuple(str(label) for label in estimator.classes_)

    def run(self, tensors: Tensors) -> Tensors:
        (spec,) = self.inputs
        given = tensors[spec.name]
        if spec.datatype == "BYTES":
            text = np.array([value.decode() for value in given.ravel()], dtype=object).reshape(given.shape)
            given = text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of feature names, which an array has not
                found = getattr(self._estimator, self._method)(given)
        except Exception as exc:  # estimators raise any
            raise InvalidContent(
                f"the source fails on samples ({type(exc).__name__}: {exc}); name such as it takes with --samples"
            ) from exc
        array = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        return {self._output: array}

    def convert(self, target: Target, path: Path) -> Mapping[str, str]:  # noqa: ARG002
        skl2onnx = _import()
        (spec,) = self.inputs
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = skl2onnx.convert_sklearn(
                    self._estimator,
                    _GRAPH_NAME,
                    [(spec.name, _type(skl2onnx, spec))],
                    target_opset=_OPSETS,
                    options=self._options(),
                )
        except Exception as exc:  # skl2onnx raises classes that share no base
            raise InvalidContent(_why_not(exc, self._estimator)) from exc
        _set_locale(model.graph)
        _keep_output(model.graph, self._method, self._output)
        path.write_bytes(graphs.to_bytes(model, _GRAPH_NAME))
        return versions_of("scikit-learn", "skl2onnx")

    def _options(self) -> dict[Any, Any] | None:
        options: dict[Any, Any] = {}
        for part in (self._estimator, *(value for _, value in _parameters(self._estimator))):
            if getattr(part, "token_pattern", None) == _TOKEN_PATTERN:
                options[id(part)] = {"tokenexp": _RE2_TOKEN_PATTERN}
        if self._method == "predict_proba":
            options[id(_last(self._estimator))] = {"zipmap": False}
        return options or None


def open_pickle(path: Path, given: Given) -> SklearnSource:
    """Raises InvalidContent; a pickle runs what code it holds, so it is opened only where that is allowed."""
    if not given.may_unpickle:
        raise InvalidContent(
            f"{path}: is a pickle, and opening one runs what code it holds; say --trust-pickle if you know who made it"
        )
    _import()
    import joblib  # type: ignore[import-untyped]
    from sklearn.exceptions import InconsistentVersionWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", InconsistentVersionWarning)
            # joblib reads plain pickles, too.
            estimator = joblib.load(path)
    except InconsistentVersionWarning as exc:
        raise InvalidContent(
            f"{path}: was made by scikit-learn {exc.original_sklearn_version}, and here is "
            f"{exc.current_sklearn_version}; answers may differ with no error: install that one, or save it anew"
        ) from exc
    except Exception as exc:  # of unpickling any
        raise InvalidContent(f"{path}: cannot be unpickled ({type(exc).__name__}: {exc})") from exc
    if not hasattr(estimator, "get_params") or not hasattr(estimator, "fit"):
        raise InvalidContent(f"{path}: holds a {type(estimator).__name__}, and no estimator of scikit-learn")
    return SklearnSource(estimator, given)


def _import() -> Any:
    try:
        import joblib  # noqa: F401
        import skl2onnx  # type: ignore[import-untyped]
        import sklearn  # noqa: F401
    except ImportError as exc:
        raise InvalidContent(f"scikit-learn sources need {exc.name}: {_INSTALL}") from exc
    return skl2onnx


def _own_input(estimator: Any) -> tuple[TensorSpec, ...]:
    count = getattr(estimator, "n_features_in_", None)
    if count is None:
        raise InvalidContent(
            f"a {type(estimator).__name__} does not say what it takes (is it fitted?): say --input "
            "NAME:DATATYPE:n,SIZE or, for one text a row, --input text:BYTES:n"
        )
    return (TensorSpec(_INPUT, "FP32", (-1, int(count))),)


def _role(estimator: Any) -> tuple[str, str]:
    for method, output in (("predict_proba", "probabilities"), ("predict", "value"), ("transform", "output")):
        if hasattr(estimator, method):
            is_label = method == "predict" and hasattr(estimator, "classes_")
            if np.ndim(getattr(estimator, "classes_", ())) > 1 or isinstance(
                getattr(estimator, "classes_", None), list
            ):
                raise InvalidContent("a classifier with several answers is not converted; convert each one for itself")
            return method, "label" if is_label else output
    raise InvalidContent(f"a {type(estimator).__name__} has neither predict nor transform")


def _type(skl2onnx: Any, spec: TensorSpec) -> Any:
    if spec.datatype not in _TYPES:
        raise InvalidContent(f"--input {spec}: scikit-learn takes {', '.join(_TYPES)}")
    sizes = [None, *spec.shape[1:]]
    # One text a row is a column in ONNX, too.
    return getattr(skl2onnx.common.data_types, _TYPES[spec.datatype])(sizes)


def _last(estimator: Any) -> Any:
    steps = getattr(estimator, "steps", None)
    return _last(steps[-1][1]) if steps else estimator


def _set_locale(graph: Any) -> None:
    """skl2onnx asks for en_US.UTF-8, which few servers have; this one comes with glibc, and lowers the same letters."""
    for node in graph.node:
        if node.op_type == "StringNormalizer":
            kept = [entry for entry in node.attribute if entry.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("locale", _LOCALE)])


def _keep_output(graph: Any, method: str, name: str) -> None:
    """The one output that `method` gives, under `name`; a label that goes with probabilities is left out."""
    kept = graph.output[1 if method == "predict_proba" else 0]
    for node in graph.node:
        node.output[:] = [name if one == kept.name else one for one in node.output]
        node.input[:] = [name if one == kept.name else one for one in node.input]
    kept.name = name
    copy = type(kept)()
    copy.CopyFrom(kept)
    del graph.output[:]
    graph.output.append(copy)


def _why_not(exc: Exception, estimator: Any) -> str:
    """With the step of the pipeline that has no translation."""
    text = str(exc)
    parts = {"the estimator itself": estimator, **{k: v for k, v in _parameters(estimator) if hasattr(v, "fit")}}
    for path, part in parts.items():
        kind = type(part)
        if f"{kind.__module__}.{kind.__qualname__}" in text:
            return (
                f"operator {kind.__name__} in layer {path} has no ONNX translation; skl2onnx.supported_converters() "
                "lists those that have one"
            )
    first = next(iter(text.strip().splitlines()), "no message")
    return f"skl2onnx refuses the estimator: {type(exc).__name__}: {first}"


def _parameters(estimator: Any) -> list[tuple[str, Any]]:
    return [(key.replace("__", "."), value) for key, value in estimator.get_params(deep=True).items()]
