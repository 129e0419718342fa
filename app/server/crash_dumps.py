"""What a worker wrote as it crashed: one file in memory for each slot, written by faulthandler, read by the master.

In the file rather than on stderr it tells the master which thread crashed, and it is one record of the log.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys

_MOST_BYTES = 64 * 1024
_CRASHED_THREAD = re.compile(r"^Current thread 0x([0-9a-f]+)", re.MULTILINE)

logger = logging.getLogger("headway.server")


class CrashDumps:
    """Made before the first fork. Where there are no such files, the dumps go to stderr."""

    def __init__(self, slots: int) -> None:
        self._files = [_make_file() for _ in range(slots)]

    def enable(self, slot: int) -> None:
        """From now on a crash of this process is written down; called in the worker."""
        file = self._files[slot]
        try:
            if file is None:
                faulthandler.enable()
            else:
                faulthandler.enable(file)
        except (OSError, ValueError):
            logger.debug("no stderr for faulthandler")

    def take(self, slot: int) -> str:
        """What the slot's worker wrote, once it has ended; empty if it did not crash."""
        file = self._files[slot]
        if file is None:
            return ""
        dump = os.pread(file, _MOST_BYTES, 0).decode(errors="replace")
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        return dump.partition("\nExtension modules: ")[0].strip()


def find_crashed_thread(dump: str) -> int | None:
    """The identifier of the thread that crashed; None where it was none of Python's, such as one of a thread pool."""
    found = _CRASHED_THREAD.search(dump)
    return int(found[1], 16) if found else None


def _make_file() -> int | None:
    if sys.platform != "linux":
        return None
    try:
        return os.memfd_create("headway-crash")
    except OSError:  # forbidden by a sandbox
        return None
