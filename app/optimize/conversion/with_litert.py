"""A traced PyTorch program to TFLite. Runs in an environment of its own, so it imports nothing of ours.

    python with_litert.py REQUEST.json ANSWER.json

REQUEST has `program` (a .pt2 file), `inputs` ({name, dtype, shape} with sizes), `outputs` (names) and `target`.
ANSWER has `libraries`, or `missing`, `error`, or `operator` with the trace's `place`.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_USED = ("litert-torch", "litert-converter", "torch")


def convert(request: dict[str, Any]) -> dict[str, Any]:
    import litert_torch  # type: ignore[import-not-found]
    import torch

    class Named(torch.nn.Module):
        """Inputs and outputs under the names that the file's signature gets."""

        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, **tensors: Any) -> dict[str, Any]:
            found = self.network(*(tensors[entry["name"]] for entry in request["inputs"]))
            flat = torch.utils._pytree.tree_leaves(found)
            return dict(zip(request["outputs"], flat, strict=True))

    torch.set_num_threads(1)
    network = torch.export.load(request["program"]).module()
    example = {
        entry["name"]: torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"])) for entry in request["inputs"]
    }
    try:
        litert_torch.convert(Named(network), sample_kwargs=example).export(request["target"])
    except Exception as exc:
        return _explain(exc)
    return {"libraries": {name: version(name) for name in _USED}}


def _explain(exc: Exception) -> dict[str, str]:
    text = str(exc)
    missing = re.search(r"Lowering not found: ([\w.:]+)", text)
    node = re.search(r"While executing %(\w+)", text)
    if missing:
        return {"operator": missing[1], "place": node[1] if node else ""}
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {"error": f"{type(exc).__name__}: {lines[0] if lines else 'no message'}"}


def main(asked: Path, answered: Path) -> None:
    try:
        answer = convert(json.loads(asked.read_text(encoding="utf-8")))
    except ImportError as exc:
        answer = {"missing": exc.name or str(exc)}
    answered.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
