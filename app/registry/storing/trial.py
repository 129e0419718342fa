"""A version loaded once as the server would, golden requests and all, in a process of its own.

A runtime that crashes on it, hangs, or takes all memory harms nobody else.

`python -m app.registry.storing.trial DIRECTORY ROOT RELEASES` is that process; its answer is one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import app
from app.errors import HeadwayError, VersionRefused
from app.registry.store import Store

Trial = Callable[[Store, Path], None]

TRIAL_SECONDS = 600
_NICENESS = 10
# Where memory runs out the kernel ends this process, not a server beside it.
_OOM_SCORE = "800"


def run_trial(store: Store, directory: Path) -> None:
    """Try the version in `directory`, whose steps, if it has some, are in `store`.

    Raises VersionRefused with what is wrong, or how the process ended.
    """
    paths = [path.resolve() for path in (directory, store.root, store.release_path("-").parent.parent)]
    command = [sys.executable, "-P", "-m", "app.registry.storing.trial", *map(str, paths)]
    try:
        done = subprocess.run(
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TRIAL_SECONDS + 10,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise VersionRefused(_too_slow()) from exc
    if -done.returncode == signal.SIGALRM.value:
        raise VersionRefused(_too_slow())
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise VersionRefused(f"its trial was ended by {name}: it crashes the runtime, or needs too much memory")
    try:
        error: str | None = json.loads(done.stdout.splitlines()[-1])["error"]
    except (ValueError, LookupError) as exc:
        raise VersionRefused(f"its trial ended with code {done.returncode} and said nothing") from exc
    if error is not None:
        raise VersionRefused(error.replace(f"{directory.resolve()}/", ""))


def _environment() -> dict[str, str]:
    """Without our settings: keys and tokens are none of its business."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    return env | {"PYTHONPATH": str(Path(app.__file__).parent.parent), "PYTHONWARNINGS": "ignore"}


def _too_slow() -> str:
    return f"its trial has not ended within {TRIAL_SECONDS} s"


def _try(directory: Path, root: Path, releases: Path) -> str | None:
    from app.registry.servables.opening import Opener

    try:
        Opener(Store(root, releases)).open_directory(directory).close()
    except (HeadwayError, OSError) as exc:
        return str(exc)
    except Exception as exc:  # a backend may raise anything on a damaged file
        return f"{type(exc).__name__}: {exc}"
    return None


def _main() -> None:
    import resource  # not on Windows, where this module is imported too

    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    signal.alarm(TRIAL_SECONDS)  # ends a run that is stuck in C too
    sys.stdout.write("\n" + json.dumps({"error": _try(*map(Path, sys.argv[1:4]))}) + "\n")


if __name__ == "__main__":
    _main()
