"""Does an INT8 model give the same answers on a CPU without VNNI?

Runs the same interpreter and the same runtime twice over the same pixels: on this CPU, and under QEMU's user-mode
emulation of a Haswell (AVX2, no AVX-512, no VNNI), where the runtime chooses its AVX2 kernels. About 0.5 s a photo.
On Debian: apt-get install qemu-user-static.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.runtimes.onnx import OnnxRuntime
from app.runtimes.tflite import TfliteRuntime
from app.tensors import Array

EMULATED_CPU = "Haswell"
EMULATORS = ("qemu-x86_64-static", "qemu-x86_64")


@dataclass(frozen=True, slots=True)
class Portability:
    """How many of `n` photos have the same top-1 on both CPUs, and the largest difference of any confidence."""

    n: int
    equal: int
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"same top-1 on {self.equal} of {self.n} photographs on this CPU and under qemu-user -cpu {EMULATED_CPU} "
            f"(AVX2, no VNNI); largest difference of a confidence {self.largest_difference:.1e}"
        )


def find_emulator() -> str | None:
    return next((path for path in map(shutil.which, EMULATORS) if path), None)


def compare(model: Path, photos: Array) -> Portability:
    """Run `photos` (uint8 NHWC) here and on the emulated CPU. Raises RuntimeError where the emulator fails."""
    emulator = find_emulator()
    if emulator is None:
        raise RuntimeError(f"none of {', '.join(EMULATORS)} is installed; on Debian: apt-get install qemu-user-static")
    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder, "pixels.npy")
        np.save(pixels, photos)
        here = _run([], model, pixels)
        emulated = _run([emulator, "-cpu", EMULATED_CPU], model, pixels)
    same = here.argmax(axis=1) == emulated.argmax(axis=1)
    return Portability(len(photos), int(same.sum()), float(np.abs(here - emulated).max()))


def _run(prefix: list[str], model: Path, pixels: Path) -> Array:
    answers = pixels.with_name("answers.npy")
    # The emulator needs the real file of the interpreter, which then does not find its virtual environment.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    interpreter = os.path.realpath(sys.executable)
    command = [*prefix, interpreter, str(Path(__file__).resolve()), str(model), str(pixels), str(answers)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr[-2000:]}")
    return np.load(answers)


def answer(model: Path, photos: Array) -> Array:
    """Confidences of each photo: one thread, one photo at a time, by the runtime that serves such a file."""
    runtime = TfliteRuntime(model, 1) if model.suffix == ".tflite" else OnnxRuntime(model, 1)
    (source,), (target,) = runtime.inputs, runtime.outputs
    return np.concatenate([runtime.run({source.name: row[np.newaxis]})[target.name] for row in photos])


if __name__ == "__main__":
    np.save(sys.argv[3], answer(Path(sys.argv[1]), np.load(sys.argv[2])))
