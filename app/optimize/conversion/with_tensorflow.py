"""A SavedModel to ONNX or TFLite, and its answers. Runs in an environment of its own, so it imports nothing of ours.

    python with_tensorflow.py REQUEST.json ANSWER.json

REQUEST has `source` (the directory) and `do`: `describe` (ANSWER has `inputs`, `outputs`), `run` (`tensors`, `answers`:
.npz files), `onnx` or `tflite` (`target`). ANSWER has `libraries`, or `missing`, `error`, or `operator` and `place`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIGNATURE = "serving_default"
_OPSET = 18  # the newest that tf2onnx writes


def answer(request: dict[str, Any]) -> dict[str, Any]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf  # type: ignore[import-untyped]

    if request["do"] == "tflite":
        return _to_tflite(tf, request)
    if request["do"] == "onnx":
        return _to_onnx(tf, request)
    try:
        loaded = tf.saved_model.load(request["source"])
    except Exception as exc:
        return {"error": _first_line(exc)}
    if SIGNATURE not in loaded.signatures:
        found = ", ".join(loaded.signatures) or "none"
        return {"error": f"it has no signature {SIGNATURE} (there is: {found}); save it with one"}
    signature = loaded.signatures[SIGNATURE]
    return _run(tf, signature, request) if request["do"] == "run" else _describe(signature)


def _describe(signature: Any) -> dict[str, Any]:
    _, inputs = signature.structured_input_signature
    return {
        "inputs": [_tensor(name, spec) for name, spec in inputs.items()],
        "outputs": [_tensor(name, spec) for name, spec in signature.structured_outputs.items()],
    }


def _tensor(name: str, spec: Any) -> dict[str, Any]:
    shape = None if spec.shape.rank is None else [-1 if size is None else size for size in spec.shape]
    return {"name": name, "dtype": "object" if spec.dtype.name == "string" else spec.dtype.name, "shape": shape}


def _run(tf: Any, signature: Any, request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    with np.load(request["tensors"]) as tensors:
        given = {name: tf.constant(tensors[name]) for name in tensors.files}
    try:
        found = signature(**given)
    except Exception as exc:
        return {"error": _first_line(exc)}
    arrays = {name: value.numpy() for name, value in found.items()}
    np.savez(request["answers"], **{name: a.astype("S") if a.dtype == object else a for name, a in arrays.items()})
    return {}


def _to_tflite(tf: Any, request: dict[str, Any]) -> dict[str, Any]:
    converter = tf.lite.TFLiteConverter.from_saved_model(request["source"], signature_keys=[SIGNATURE])
    try:
        data = converter.convert()
    except Exception as exc:
        place = re.search(r'fused\["(\w+):", "([^"@]+)', str(exc))
        if place and "neither a custom op nor a flex op" in str(exc):
            return {"operator": place[1], "place": place[2]}
        return {"error": _first_line(exc)}
    Path(request["target"]).write_bytes(data)
    return {"libraries": {"tensorflow": tf.__version__}}


def _to_onnx(tf: Any, request: dict[str, Any]) -> dict[str, Any]:
    from tf2onnx import convert  # type: ignore[import-not-found]

    told: list[str] = []
    listener = logging.Handler(logging.ERROR)
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("tf2onnx").addHandler(listener)
    sys.argv = ["tf2onnx", "--saved-model", request["source"], "--output", request["target"], "--tag", "serve"]
    sys.argv += ["--signature_def", SIGNATURE, "--opset", str(_OPSET)]
    try:
        convert.main()
    except Exception as exc:
        return {"error": _first_line(exc)}
    # An operator without translation is logged, and left in the file.
    for line in told:
        place = re.search(r"Tensorflow op \[(.+): (\w+)\] is not supported", line)
        if place:
            return {"operator": place[2], "place": re.sub(r"^(StatefulPartitionedCall/)+", "", place[1])}
    if told:
        return {"error": told[0]}
    return {"libraries": {"tensorflow": tf.__version__, "tf2onnx": version("tf2onnx")}}


def _first_line(exc: Exception) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0] if lines else 'no message'}"


def main(asked: Path, answered: Path) -> None:
    try:
        found = answer(json.loads(asked.read_text(encoding="utf-8")))
    except ImportError as exc:
        found = {"missing": exc.name or str(exc)}
    answered.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
