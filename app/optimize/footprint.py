"""The memory that a version takes, measured in a process of its own.

`python -m app.optimize.footprint DIRECTORY ROOT` prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import app
from app.errors import RunFailed
from app.registry.opening import Opener
from app.registry.store import Store

_STATUS = Path("/proc/self/status")
_SECONDS = 600


def measure_footprint(directory: Path, store: Store) -> int | None:
    """Bytes that loading the version in `directory` and its trial runs add to a fresh process; None without /proc.

    Raises RunFailed.
    """
    if not _STATUS.exists():
        return None
    command = [
        sys.executable,
        "-P",
        "-m",
        "app.optimize.footprint",
        str(directory.resolve()),
        str(store.root.resolve()),
    ]
    env = os.environ | {"PYTHONPATH": str(Path(app.__file__).parent.parent)}
    try:
        done = subprocess.run(command, env=env, capture_output=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as exc:
        raise RunFailed(f"{directory}: was not loaded in a process of its own within {_SECONDS} s") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        raise RunFailed(
            f"{directory}: the process that measures its memory ended with code {done.returncode}"
            f"{f' ({said[-1]})' if said else ''}; is there enough memory to load it twice?"
        )
    return int(json.loads(done.stdout.splitlines()[-1])["rss_bytes"])


def _rss_bytes() -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _main() -> None:
    directory, root = map(Path, sys.argv[1:3])
    opener = Opener(Store(root))
    before = _rss_bytes()
    servable = opener.open_directory(directory)
    sys.stdout.write("\n" + json.dumps({"rss_bytes": _rss_bytes() - before}) + "\n")
    servable.close()


if __name__ == "__main__":
    _main()
