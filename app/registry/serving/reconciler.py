"""The thread of a worker that keeps what is served equal to what the registry directory asks for."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from app.registry.servables.servable import Servable
from app.registry.serving.lifecycle import Registry

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Reconciler:
    """Looks every LOOK_SECONDS. `publish` is called after each change and each look, `forget` with what is unloaded.

    `run_dir` is shared by the workers of this machine: one of them loads at a time, so that memory and CPU peaks do not
    add up.
    """

    def __init__(
        self,
        registry: Registry,
        publish: Callable[[], None],
        forget: Callable[[Servable], None],
        run_dir: Path | None,
    ) -> None:
        self._registry = registry
        self._publish = publish
        self._forget = forget
        self._run_dir = run_dir
        self._retired: list[weakref.ref[Servable]] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._watch, name="reconciler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """A load that runs is not waited for."""
        self._is_closing = True
        self._registry.has_more_to_do.set()
        self._thread.join(timeout=0.5)

    def look(self) -> None:
        """One look, as the thread makes it."""
        for servable in self._registry.reconcile(self._publish, self._turn):
            logger.info("%s@%s is not served any more", servable.name, servable.version)
            self._retired.append(weakref.ref(servable))
        self._give_back()
        self._publish()

    def _watch(self) -> None:
        while True:
            self._registry.has_more_to_do.wait(LOOK_SECONDS)
            self._registry.has_more_to_do.clear()
            if self._is_closing:
                return
            try:
                self.look()
            except Exception:
                logger.exception("the registry could not be looked at; tried again")

    def _give_back(self) -> None:
        """What nobody runs any more is freed, and its memory given back to the system."""
        if not self._retired:
            return
        for reference in self._retired:
            # Again and again: a call that was resolved before may have come to the engine after.
            if (servable := reference()) is not None:
                self._forget(servable)
            del servable
        gc.collect()
        left = [reference for reference in self._retired if reference() is not None]
        if len(left) < len(self._retired):
            _trim_memory()
        self._retired = left

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._run_dir is None:
            yield
            return
        import fcntl  # not on Windows, where there is one process and no run_dir

        with (self._run_dir / "load.lock").open("ab") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


def _trim_memory() -> None:
    """glibc keeps freed memory to itself: of 85 MB after an unload 16 come back only so."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
