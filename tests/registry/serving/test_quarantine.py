"""What a worker marks is read by the master after its end, and what the master quarantines is seen by every worker.

That the marks outlive a crash is in tests/server/test_crashing_models.py, where the crashes are real.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest

from app.errors import ModelFailed, ModelQuarantined
from app.metrics import Metrics
from app.registry.serving.lifecycle import Registry
from app.registry.serving.quarantine import Quarantine, WorkerQuarantine
from app.registry.serving.states import ModelStates
from app.registry.serving.status import State
from app.registry.store import Store
from app.registry.versions import ModelRef
from tests.fixtures_models import write_model, write_release

SENTENCE = "scores@1.0.0 crashed a worker 3 times and is quarantined; restart the server, or release another version"
NEVER_COUNTED = (None, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine(slots=4, threads=2)


@contextmanager
def in_flight(worker: WorkerQuarantine, *labels: str) -> Iterator[dict[str, int]]:
    """Each of these is being run in a thread of its own; gives the thread of each."""
    threads: dict[str, int] = {}
    has_entered, may_leave = threading.Barrier(len(labels) + 1), threading.Event()

    def work(label: str) -> None:
        marker = worker.marker(*label.split("@"))
        place = marker.enter()
        threads[label] = get_ident()
        has_entered.wait()
        may_leave.wait()
        marker.leave(place)

    workers = [threading.Thread(target=work, args=[label]) for label in labels]
    for thread in workers:
        thread.start()
    has_entered.wait()
    try:
        yield threads
    finally:
        may_leave.set()
        for thread in workers:
            thread.join()


def crash(quarantine: Quarantine, *labels: str, slot: int = 0, by: int | None = signal.SIGSEGV, times: int = 1) -> None:
    """A worker of that slot ends with these in flight; which thread it was is not known."""
    for _ in range(times):
        with in_flight(quarantine.join(slot), *labels):
            quarantine.record_exit(slot, by, None, 0.0)


@contextmanager
def loaded(root: Path, quarantine: Quarantine, slot: int = 0) -> Iterator[Registry]:
    registry = Registry(Store(root), quarantine=quarantine.join(slot))
    registry.load()
    yield registry
    registry.close()


# --- marks and counts


def test_three_crashes_quarantine_a_version_for_all_workers(quarantine: Quarantine) -> None:
    workers = [quarantine.join(slot) for slot in range(4)]
    for slot in (0, 3, 0):
        assert [worker.length for worker in workers] == [0, 0, 0, 0]
        crash(quarantine, "bad@1.0.0", slot=slot)
    assert [worker.length for worker in workers] == [1, 1, 1, 1]
    assert [worker.list_labels() for worker in workers] == [["bad@1.0.0"]] * 4


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_signal_of_a_crash_is_counted(quarantine: Quarantine, name: str) -> None:
    crash(quarantine, "bad@1.0.0", by=signal.Signals[name], times=3)
    assert quarantine.join(1).list_labels() == ["bad@1.0.0"]


@pytest.mark.parametrize("by", NEVER_COUNTED)
def test_other_end_is_never_counted(quarantine: Quarantine, by: int | None) -> None:
    crash(quarantine, "good@1.0.0", by=by, times=20)
    assert quarantine.join(0).length == 0


def test_known_thread_is_counted_alone(quarantine: Quarantine) -> None:
    for _ in range(3):
        with in_flight(quarantine.join(0), "busy@1.0.0", "bad@1.0.0", "busy@2.0.0") as threads:
            quarantine.record_exit(0, signal.SIGSEGV, threads["bad@1.0.0"], 0.0)
    assert quarantine.join(0).list_labels() == ["bad@1.0.0"]


def test_crash_outside_of_any_run_counts_for_nobody(quarantine: Quarantine) -> None:
    for _ in range(20):
        with in_flight(quarantine.join(0), "busy@1.0.0"):
            quarantine.record_exit(0, signal.SIGSEGV, get_ident(), 0.0)
    assert quarantine.join(0).length == 0


def test_ended_run_is_not_in_flight(quarantine: Quarantine) -> None:
    worker = quarantine.join(0)
    with in_flight(worker, "good@1.0.0"):
        pass
    with worker.loading("good", "2.0.0"):
        pass
    for _ in range(3):
        quarantine.record_exit(0, signal.SIGSEGV, None, 0.0)
    assert worker.length == 0


def test_crash_while_loading_is_counted_though_a_trial_run_has_ended(quarantine: Quarantine) -> None:
    for hour in range(3):
        worker = quarantine.join(0)
        marker = worker.marker("bad", "1.0.0")
        with worker.loading("bad", "1.0.0"):
            marker.leave(marker.enter())
            quarantine.record_exit(0, signal.SIGSEGV, get_ident(), hour * 3600.0)
    assert worker.list_labels() == ["bad@1.0.0"]


def test_marks_of_the_last_worker_are_not_those_of_the_next(quarantine: Quarantine) -> None:
    with in_flight(quarantine.join(0), "good@1.0.0"):
        quarantine.record_exit(0, signal.SIGKILL, None, 0.0)
        for _ in range(3):
            quarantine.record_exit(0, signal.SIGSEGV, None, 0.0)
    assert quarantine.join(0).length == 0


def test_many_threads_mark_at_once(quarantine: Quarantine) -> None:
    """Each finds its own mark wherever it looks, and the table of the neighbouring slot stays empty."""
    worker = quarantine.join(1)
    markers = [worker.marker(f"m{number}", "1.0.0") for number in range(8)]
    problems: list[str] = []
    interval = sys.getswitchinterval()

    def work(number: int) -> None:
        marker = markers[number]
        for _ in range(2000):
            place = marker.enter()
            found = worker._memory[place].rstrip(b"\0").decode()
            if found != f"m{number}@1.0.0":
                problems.append(found)
            marker.leave(place)

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
    assert [quarantine._take(slot) for slot in range(4)] == [[], [], [], []]


def test_thread_without_a_place_is_not_marked_and_harms_nobody(quarantine: Quarantine) -> None:
    worker = quarantine.join(3)
    labels = [f"m{number}@1.0.0" for number in range(80)]
    with in_flight(worker, *labels):
        assert len(quarantine._take(3)) == 2 + 64
        assert worker.list_labels() == []
    crash(quarantine, "bad@1.0.0", slot=3, times=3)
    assert worker.list_labels() == ["bad@1.0.0"]


def test_longest_names_are_kept_whole(quarantine: Quarantine) -> None:
    label = f"{'n' * 63}@1.0.0-{'a' * 58}"
    crash(quarantine, label, times=3)
    crash(quarantine, "bad@1.0.0", times=3)
    assert quarantine.join(0).list_labels() == [label, "bad@1.0.0"]


def test_full_quarantine_takes_no_more(quarantine: Quarantine, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(256):
        crash(quarantine, f"m{number}@1.0.0", times=3)
    assert len(quarantine.join(0).list_labels()) == 255
    assert "m255@1.0.0 crashed workers 3 times, but the quarantine is full" in caplog.text


def test_last_runs_of_a_quarantined_version_blame_nobody_else(quarantine: Quarantine) -> None:
    crash(quarantine, "bad@1.0.0", times=3)
    crash(quarantine, "bad@1.0.0", "good@1.0.0", times=9)
    assert quarantine.join(0).list_labels() == ["bad@1.0.0"]


def test_quarantined_version_is_not_counted_again(quarantine: Quarantine, caplog: pytest.LogCaptureFixture) -> None:
    crash(quarantine, "bad@1.0.0", times=7)
    assert quarantine.join(0).length == 1
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "CRITICAL"]
    assert "bad@1.0.0 was in flight as worker 0 crashed: 2 of 3 times" in caplog.text
    assert caplog.messages[-1].startswith("bad@1.0.0 crashed a worker 3 times and is quarantined: ")


# --- what a worker does with it


def test_loaded_version_is_withdrawn_from_the_next_request_on(root: Path, quarantine: Quarantine) -> None:
    write_model(root, "scores")
    write_model(root, "sum", kind="sum")
    with loaded(root, quarantine) as registry:
        running = registry.resolve(ModelRef("scores")).servable
        crash(quarantine, "scores@1.0.0", slot=1, times=3)
        for tag in (None, "stable", "1.0.0"):
            with pytest.raises(ModelQuarantined) as caught:
                registry.resolve(ModelRef("scores", tag))
            assert str(caught.value) == SENTENCE
        assert registry.resolve(ModelRef("sum")).servable.name == "sum"
        status = registry.models["scores"].versions["1.0.0"]
        assert (status.state, status.error, status.servable) == (State.QUARANTINED, SENTENCE, None)
        # What had begun is answered.
        assert running.run({"x": np.ones((1, 3), np.float32)})["scores"].tolist() == [[1, 1, 1]]
        running.close()


def test_quarantined_version_is_not_loaded(
    root: Path, quarantine: Quarantine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_model(root, "scores")
    write_model(root, "scores", "2.0.0")
    write_release(root, "scores", "1.0.0", aliases={"canary": {"version": "2.0.0", "weight": 0}})
    crash(quarantine, "scores@1.0.0", times=3)
    with loaded(root, quarantine) as registry:
        versions = registry.models["scores"].versions
        assert {version: status.state for version, status in versions.items()} == {
            "1.0.0": State.QUARANTINED,
            "2.0.0": State.READY,
        }
        assert "scores@1.0.0 is not loaded: it is quarantined" in caplog.text
        assert registry.resolve(ModelRef("scores", "canary")).servable.version == "2.0.0"
        with pytest.raises(ModelFailed):
            registry.resolve(ModelRef("scores"))


def test_version_quarantined_while_the_others_load_is_withdrawn(root: Path, quarantine: Quarantine) -> None:
    write_model(root, "scores")
    registry = Registry(Store(root), quarantine=quarantine.join(0))
    crash(quarantine, "scores@1.0.0", slot=1, times=3)
    registry.withdraw_quarantined()  # before there is anything to withdraw
    registry.load()
    assert registry.models["scores"].versions["1.0.0"].state is State.QUARANTINED


def test_requests_without_a_model_do_not_pass_to_another(root: Path, quarantine: Quarantine) -> None:
    """Its default is still the one that fits, so they learn what is wrong with it."""
    write_model(root, "scores")
    with loaded(root, quarantine) as registry:
        crash(quarantine, "scores@1.0.0", times=3)
        with pytest.raises(ModelQuarantined, match="quarantined"):
            registry.resolve(registry.default_for("tensor"))
    with loaded(root, quarantine) as registry, pytest.raises(ModelQuarantined):
        registry.resolve(registry.default_for("tensor"))


def test_states_follow_in_the_metrics(root: Path, quarantine: Quarantine) -> None:
    write_model(root, "scores")
    write_model(root, "broken", files={"model.onnx": b"none"})
    metrics = Metrics()
    with loaded(root, quarantine) as registry:
        states = ModelStates(registry, metrics)
        states.publish()
        assert _states(metrics) == {"scores ready": 1.0, "broken failed": 1.0}
        crash(quarantine, "scores@1.0.0", times=3)
        registry.withdraw_quarantined()
        states.publish()
        states.publish()
        assert _states(metrics) == {"scores ready": 0.0, "scores quarantined": 1.0, "broken failed": 1.0}


def _states(metrics: Metrics) -> dict[str, float]:
    (family,) = metrics.model_state.collect()
    return {f"{sample.labels['model']} {sample.labels['state']}": sample.value for sample in family.samples}
