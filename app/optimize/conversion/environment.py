"""Converters that need packages which Headway must not have beside it: each runs as a program of another Python."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import InvalidContent
from app.optimize.networks.torch_export import NoTranslation

_HERE = Path(__file__).parent
_SHOWN_LINES = 5


@dataclass(frozen=True, slots=True)
class Environment:
    """A program beside this module, and what it runs in. `folder` is looked for in the current directory."""

    program: str
    package: str
    folder: str
    install: str

    def find_python(self, given: Path | None) -> Path:
        """Raises InvalidContent with what to install."""
        python = given or Path.cwd() / self.folder / "bin" / "python"
        if python.is_file():
            return python
        missing = f"there is no {given}" if given else f"there is no {self.folder} in {Path.cwd()}"
        raise InvalidContent(
            f"this needs {self.package} in an environment of its own, and {missing}. Make one: python -m venv "
            f"{self.folder} && {self.folder}/bin/pip install {self.install}; elsewhere, name its Python with "
            "--converter-python"
        )


LITERT = Environment("with_litert.py", "litert-torch", ".venv-conversion", "litert-torch==0.10.0 torch==2.13.0")
TENSORFLOW = Environment(
    "with_tensorflow.py", "TensorFlow", ".venv-tensorflow", "tensorflow-cpu==2.21.0 tf2onnx==1.17.0"
)


def run_converter(environment: Environment, python: Path | None, request: Mapping[str, Any]) -> dict[str, Any]:
    """The program's answer to `request`. Raises InvalidContent with its own words, and NoTranslation."""
    interpreter = environment.find_python(python)
    with tempfile.TemporaryDirectory(prefix="headway-convert-") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        # Isolated: neither the current directory nor the user's packages are looked into.
        command = [str(interpreter), "-I", str(_HERE / environment.program), str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError as exc:
            raise InvalidContent(f"{interpreter}: cannot be run ({exc.strerror})") from exc
        if not answered.exists():
            raise InvalidContent(f"{environment.package} has failed: {_end_of(done.stderr, done.returncode)}")
        answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    if "missing" in answer:
        raise InvalidContent(
            f"{interpreter}: has no package {answer['missing']!r}; {interpreter} -m pip install {environment.install}"
        )
    if "operator" in answer:
        raise NoTranslation(answer["operator"], answer["place"])
    if "error" in answer:
        raise InvalidContent(f"{environment.package} refuses the network: {answer['error']}")
    return answer


def _end_of(stderr: bytes, code: int) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_SHOWN_LINES:]) or f"it ended with {code}"
