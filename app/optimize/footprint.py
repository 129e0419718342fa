"""The memory that a version takes, measured in a process of its own.

`python -m app.optimize.footprint '{…}'` prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import app
from app.engine.inference import Inference
from app.errors import RunFailed
from app.optimize.evaluate import predict_image
from app.registry.servables.opening import Opener
from app.registry.servables.servable import Resolved, Servable
from app.registry.serving.lifecycle import Registry
from app.registry.store import Store

_STATUS = Path("/proc/self/status")
_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Memory:
    """What loading a version adds to the resident memory of a fresh process: at the end, and at the highest."""

    rss_bytes: int
    peak_rss_bytes: int


def measure_memory(
    directory: Path, store: Store, *, photo: Path | None = None, threads: int = 1, runtime: str | None = None
) -> Memory | None:
    """Load the version in `directory` in a process of its own, with its trial runs, and answer `photo` there.

    None where there is no /proc. The libraries of Headway do not count. One that only this runtime needs does, except
    where `runtime` names it as `headway profile` knows it. Raises RunFailed.
    """
    if not _STATUS.exists():
        return None
    paths = {
        "directory": directory, "root": store.root, "releases": store.release_path("-").parent.parent, "photo": photo,
    }  # fmt: skip
    task: dict[str, str | int | None] = {"threads": threads, "runtime": runtime}
    task |= {name: str(path.resolve()) if path is not None else None for name, path in paths.items()}
    command = [sys.executable, "-P", "-m", "app.optimize.footprint", json.dumps(task)]
    env = os.environ | {"PYTHONPATH": str(Path(app.__file__).parent.parent)}
    label = f"{directory.parent.name}@{directory.name}"
    try:
        done = subprocess.run(command, env=env, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as exc:
        raise RunFailed(f"{label}: was not loaded in a process of its own within {_SECONDS} s") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        raise RunFailed(
            f"{label}: the process that measures its memory ended with code {done.returncode}"
            f"{f' ({said[-1]})' if said else ''}; is there enough memory to load it twice?"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def measure_footprint(directory: Path, store: Store) -> int | None:
    """Bytes that loading the version in `directory` and its trial runs add, at the end. As `measure_memory`."""
    memory = measure_memory(directory, store)
    return memory.rss_bytes if memory is not None else None


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _open(store: Store, directory: Path, threads: int, runtime: str | None) -> Servable:
    if runtime is None:
        return Opener(store, threads).open_directory(directory)
    from app.optimize.profiling.stack import open_with

    return open_with(store, directory, runtime, threads).servable  # type: ignore[arg-type]


def _main() -> None:
    task = json.loads(sys.argv[1])
    store, runtime = Store(Path(task["root"]), Path(task["releases"])), task["runtime"]
    photo = Path(task["photo"]).read_bytes() if task["photo"] is not None else None
    inference = Inference(Registry(store))
    if runtime is not None:
        from app.optimize.profiling.stack import import_runtime

        import_runtime(runtime)
    before = _status_bytes("VmRSS")
    servable = _open(store, Path(task["directory"]), task["threads"], runtime)
    if photo is not None:
        predict_image(inference, Resolved(servable, None), photo)
    memory = Memory(_status_bytes("VmRSS") - before, _status_bytes("VmHWM") - before)
    sys.stdout.write("\n" + json.dumps(asdict(memory)) + "\n")
    servable.close()


if __name__ == "__main__":
    _main()
