"""What was asked of this server for a while: to have a model loaded now, or not at all.

No part of the release: a wish holds for the workers of one server, and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = "wishes"


@dataclass(frozen=True, slots=True)
class Wish:
    """`number` tells one wish from the next: the time it was made at (Unix, ns)."""

    number: int
    is_load: bool


class Wishes:
    """In files of `run_dir`, which all workers see; without it in this process. Safe between threads and processes."""

    def __init__(self, run_dir: Path | None) -> None:
        self._directory = run_dir / _DIRECTORY if run_dir is not None else None
        self._here: dict[str, Wish] = {}

    def read(self) -> Mapping[str, Wish]:
        """The last wish for each model that has one; of a file that cannot be read, what was read before."""
        if self._directory is not None:
            for path in self._directory.glob("*.json"):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    content = json.loads(path.read_bytes())
                    self._here[path.stem] = Wish(content["number"], content["is_load"])
        return dict(self._here)

    def make(self, model: str, *, is_load: bool) -> Wish:
        """`model` is the name of one that is there. Raises OSError where there is no room."""
        wish = Wish(time.time_ns(), is_load)
        if self._directory is not None:
            self._directory.mkdir(exist_ok=True)
            staged = self._directory / f"{model}.{os.getpid()}.{threading.get_ident()}.new"
            staged.write_text(json.dumps({"number": wish.number, "is_load": is_load}))
            staged.replace(self._directory / f"{model}.json")
        self._here[model] = wish
        return wish
