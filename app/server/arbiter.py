"""The master's loop: gunicorn's, with worker slots, a pause before hopeless respawns, and a drain at the end.

Unlike gunicorn's own, no exit code of a worker stops the server, save a wrong setting at the first start;
and a reload ends the old workers only when the new ones accept.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.errors import HaltServer  # type: ignore[import-untyped]

from app.server.crash_dumps import find_crashed_thread
from app.server.options import ServerOptions, WorkerExit
from app.server.respawn import RespawnPlan
from app.server.slots import Phase
from app.server.worker import EXIT_CONFIGURATION, HeadwayWorker

# SIGINT and SIGQUIT end within 2 s: what has not ended by then is killed.
QUICK_LIMIT_SECONDS = 1.8
_BUSY_POLL_SECONDS = 0.05
_IDLE_POLL_SECONDS = 1.0

_SIGNAL_NAMES = {each.value: each.name for each in signal.Signals}

logger = logging.getLogger("headway.server")


class HeadwayArbiter(Arbiter):  # type: ignore[misc]
    # No worker's exit code is one of these: a worker that cannot start must not take the others with it.
    WORKER_BOOT_ERROR = -1
    APP_LOAD_ERROR = -1
    LISTENERS: list[Any]

    def __init__(self, app: Any) -> None:
        self.options: ServerOptions = app.options
        self.slots = app.slots
        self._respawns = RespawnPlan()
        self._has_been_ready = False
        self._is_stopped = False
        self._retire_up_to_age = 0  # a reload is under way, and these are the old workers
        self._seat: int | None = None
        super().__init__(app)

    # --- starting workers

    def spawn_workers(self) -> None:
        now = time.monotonic()
        missing = self.num_workers - len(self._list_current())
        if missing <= 0:
            self._respawns.forget_waiting()
            return
        waiting = self._respawns.list_waiting()[:missing]
        due = [slot for slot in self._respawns.list_due(now) if slot in waiting]
        free = [slot for slot in self.slots.list_free() if slot not in self._respawns.list_waiting()]
        for slot in (due + free[: missing - len(waiting)])[:missing]:
            if not self._spawn_in(slot):
                return

    def _spawn_in(self, slot: int) -> bool:
        self._seat = slot
        self._respawns.fill(slot)
        try:
            self.spawn_worker()
        except OSError as exc:  # no memory, no processes, no space for the heartbeat file
            pause = self._respawns.record_death(slot, 0.0, True, time.monotonic())
            logger.error("worker %d could not be started: %s; again in %.1f s", slot, exc, pause)
            self.slots.release(slot)
            return False
        return True

    def seat(self, worker: HeadwayWorker) -> None:
        """gunicorn's pre_fork hook: the worker learns its slot before it exists."""
        assert self._seat is not None
        worker.slot = self._seat
        worker.born_at = time.monotonic()
        self.slots.claim(worker.slot, worker.age)
        if self.app.metrics_dir is not None:
            self.app.metrics_dir.prepare(worker.slot)

    def _list_current(self) -> list[HeadwayWorker]:
        """The workers that are to stay, oldest first; those of before a reload are not."""
        stay = [
            worker for worker in self.WORKERS.values() if not worker.is_retired and worker.age > self._retire_up_to_age
        ]
        return sorted(stay, key=lambda worker: worker.age)

    # --- the loop

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:  # noqa: ARG002
        is_busy = (
            not all(worker.is_announced for worker in self._list_current())
            or self._retire_up_to_age
            or self._respawns.list_waiting()
        )
        signals: list[int] = super().wait_for_signals(_BUSY_POLL_SECONDS if is_busy else _IDLE_POLL_SECONDS)
        return signals

    def manage_workers(self) -> None:
        self.spawn_workers()
        self._announce()
        self._retire()

    def _announce(self) -> None:
        for worker in self._list_current():
            if worker.is_announced or not self.slots.is_accepting(worker.slot):
                continue
            worker.is_announced = True
            seconds = time.monotonic() - worker.born_at
            logger.info("worker %d (pid %d) accepts after %.2f s", worker.slot, worker.pid, seconds)
            if not self._has_been_ready:
                self._has_been_ready = True
                self._call(self.options.on_ready, self.app.address)

    def _retire(self) -> None:
        """End what is over the wanted number (TTOU), and after a reload the old ones, once the new accept."""
        current = self._list_current()
        surplus = current[: max(0, len(current) - self.num_workers)]
        if self._retire_up_to_age and sum(worker.is_announced for worker in current) >= self.num_workers:
            old = [worker for worker in self.WORKERS.values() if worker.age <= self._retire_up_to_age]
            surplus += [worker for worker in old if not worker.is_retired]
            self._retire_up_to_age = 0
        for worker in surplus:
            worker.is_retired = True
            self.kill_worker(worker.pid, signal.SIGTERM)

    def reload(self) -> None:
        if self._retire_up_to_age:
            logger.warning("a reload is under way: SIGHUP ignored")
            return
        logger.info("reload: starting new workers")
        self._retire_up_to_age = self.worker_age

    def handle_usr2(self) -> None:
        logger.warning("SIGUSR2 is not supported: start a second server, or reload with SIGHUP")

    # --- ends of workers

    def reap_workers(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self.WORKERS.pop(pid, None)
            if worker is not None:  # as process 1 of a container we get others' orphans, too
                self._bury(worker, os.waitstatus_to_exitcode(status))

    def _bury(self, worker: HeadwayWorker, status: int) -> None:
        worker.tmp.close()
        has_served = self.slots.is_accepting(worker.slot)
        self.slots.release(worker.slot)
        if self.app.metrics_dir is not None:
            self.app.metrics_dir.reset_live(worker.slot)
        now = time.monotonic()
        dump = self.app.crash_dumps.take(worker.slot)
        end = WorkerExit(
            worker.slot,
            worker.pid,
            status,
            now - worker.born_at,
            is_expected=worker.is_retired or self._is_stopped,
            was_aborted=worker.aborted,
            crashed_thread=find_crashed_thread(dump),
        )
        if not end.is_expected:
            if status == EXIT_CONFIGURATION and not self._has_been_ready:
                raise HaltServer(self.slots.read_report(), 1)
            pause = self._respawns.record_death(end.slot, end.lived_seconds, status != 0, now, has_served=has_served)
            self._log_death(end, pause)
        if dump:
            logger.error("worker %d (pid %d) was here as it ended:\n%s", end.slot, end.pid, dump)
        self._call(self.options.on_worker_exit, end)

    def _call(self, callback: Callable[[Any], None], value: object) -> None:
        """A callback that fails, such as a banner for a terminal that has gone, must not end the server."""
        try:
            callback(value)
        except Exception:
            logger.exception("a callback of the server failed")

    def _log_death(self, end: WorkerExit, pause: float) -> None:
        if end.status == -signal.SIGKILL:
            what = "was killed by SIGKILL, perhaps out of memory"
        elif end.status < 0:
            what = f"was ended by {_SIGNAL_NAMES.get(-end.status, -end.status)}"
        elif end.status == EXIT_CONFIGURATION:
            what = f"found a wrong setting: {self.slots.read_report()}"
        else:
            what = f"ended with exit code {end.status}"
        level = logging.INFO if end.status == 0 else logging.ERROR
        logger.log(level, "worker %d (pid %d) %s; replaced in %.1f s", end.slot, end.pid, what, pause)

    # --- the end of all

    def stop(self, graceful: bool = True) -> None:
        """Tell the workers to end and wait for them. They hold the listeners; our copies are closed now."""
        if self._is_stopped:
            return
        self._is_stopped = True
        logger.info("stopping%s", f", after a drain of {self.options.drain_seconds:g} s" if graceful else "")
        for listener in self.LISTENERS:
            listener.close()
        self.LISTENERS = []
        self.slots.advance(Phase.DRAINING if graceful else Phase.STOPPING)
        self.kill_workers(signal.SIGTERM if graceful else signal.SIGQUIT)
        self._wait_for_workers(self.options.graceful_timeout_seconds if graceful else QUICK_LIMIT_SECONDS)
        if self.WORKERS:
            logger.error("%d workers did not end in time and are killed", len(self.WORKERS))
            self.kill_workers(signal.SIGKILL)
            self._wait_for_workers(1.0)
        logger.info("stopped")

    def _wait_for_workers(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while self.WORKERS and time.monotonic() < limit:
            try:
                received = self.SIG_QUEUE.get(timeout=0.1)
            except queue.Empty:
                received = 0
            if received == signal.SIGTERM:
                self.slots.advance(Phase.LEAVING)  # told twice: the window is over
            elif received in (signal.SIGINT, signal.SIGQUIT) and self.slots.phase < Phase.STOPPING:
                self.slots.advance(Phase.STOPPING)
                self.kill_workers(signal.SIGQUIT)
                limit = min(limit, time.monotonic() + QUICK_LIMIT_SECONDS)
            self.reap_workers()

    def kill_worker(self, pid: int, sig: int) -> None:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            logger.debug("worker with pid %d has already gone", pid)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        self.stop(graceful=exit_status == 0)
        if reason is not None:
            self.app.report_failure(reason)
        sys.exit(exit_status)
