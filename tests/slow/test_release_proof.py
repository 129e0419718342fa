"""What is served changes, fails to change, and loses its disks, under 64 connections: no caller notices.

Run by `make verify`. Mounts two small disks, so it needs the rights to mount.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.registry.serving.worker_states import read_worker_states
from tests.fixtures_models import GOLDEN, write_model, write_release
from tests.running import MODELS, PATIENCE_SECONDS, ROOT, RunningServer, running_server

pytestmark = pytest.mark.slow

TOKEN = "correct horse battery staple"
NEIGHBOUR = "efficientnet-lite0"
API_SWAPS, FILE_SWAPS, ROLLBACKS = 25, 25, 20
GRACE_SECONDS = 2.0
QUIET_SECONDS = 12.0
LOOK_SECONDS = 0.02
REGISTRY_BYTES, RUN_BYTES = 24 << 20, 64 << 20


# --- what was asked, what was there, what was answered


class Answer(NamedTuple):
    sent: float
    done: float
    status: int
    model: str
    version: str
    label: str


@dataclass
class Change:
    """`version` became stable between `began` and `ended`; from `settled` on every worker was seen to serve it."""

    version: str
    began: float
    ended: float
    settled: float | None = None


class Watcher:
    """Reads what the workers tell each other of model m, and notes what has changed since it last looked."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        # Of each worker: since when it served which version, and whether another that it was asked for was not there.
        self.notes: dict[int, list[tuple[float, str, bool]]] = {}

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._is_over.set()
        self._thread.join(PATIENCE_SECONDS)

    def is_excused(self, answer: Answer) -> bool:
        """Whether a worker was seen to serve this version because the next was not there, or could not be loaded."""
        for notes in self.notes.values():
            first = max(0, bisect.bisect(notes, (answer.sent - LOOK_SECONDS,)) - 1)
            for since, version, is_waiting in notes[first:]:
                if since > answer.done:
                    break
                if is_waiting and version == answer.version:
                    return True
        return False

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            for state in read_worker_states(self._run_dir):
                model = state.models["m"]
                serving = model["serving"]["stable"]
                states = {entry["state"] for version, entry in model["versions"].items() if version != serving}
                notes = self.notes.setdefault(state.slot, [])
                found = serving, bool(states & {"loading", "failed"})
                if not notes or notes[-1][1:] != found:
                    notes.append((time.monotonic(), *found))


@dataclass
class Operator:
    """Changes what is released, and keeps the log of it."""

    server: RunningServer
    admin: httpx.Client
    root: Path
    log: list[Change]
    quiet: list[tuple[float, float]] = field(default_factory=list)

    @property
    def other(self) -> str:
        return "1.0.0" if self.log[-1].version == "2.0.0" else "2.0.0"

    def post(self, *, wait: float = PATIENCE_SECONDS, **content: Any) -> httpx.Response:
        return self.admin.post("/models/m/release", json=content, params={"wait_seconds": wait})

    def swap(self, *, wait: float = PATIENCE_SECONDS, **content: Any) -> None:
        """By the API: promote, unless `content` says another way."""
        self._ask(content or {"action": "promote", "version": self.other}, self.other, wait)

    def rollback(self) -> None:
        self._ask({"action": "rollback"}, self.other, PATIENCE_SECONDS)

    def swap_file(self, version: str = "") -> None:
        """As `git pull` does: another file in its place."""
        change = Change(version or self.other, time.monotonic(), 0.0)
        staged = write_release(self.root.parent / "staged", "m", change.version)
        change.began = time.monotonic()
        os.replace(staged, self.root / "m/release.yaml")
        change.ended = time.monotonic()
        self.log.append(change)

    def settle(self) -> None:
        """Wait until GET /models says that all workers serve what was asked for last."""
        limit = time.monotonic() + PATIENCE_SECONDS
        while True:
            model = self.read()
            if model["has_converged"] and model["serving"] == {"stable": self.log[-1].version}:
                self.log[-1].settled = self.log[-1].settled or time.monotonic()
                return
            assert time.monotonic() < limit, model
            time.sleep(LOOK_SECONDS)

    def read(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.server.url}/models/m", timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def be_quiet(self) -> None:
        began = time.monotonic()
        time.sleep(QUIET_SECONDS)
        self.quiet.append((began, time.monotonic()))

    def _ask(self, content: dict[str, Any], version: str, wait: float) -> None:
        change = Change(version, time.monotonic(), 0.0)
        answer = self.post(wait=wait, **content)
        change.ended = time.monotonic()
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["release"]["aliases"] == {"stable": {"version": version}}
        if wait:
            assert found["has_converged"], found
            change.settled = change.ended
        self.log.append(change)


@contextlib.contextmanager
def calling(url: str, lines: Path) -> Iterator[Callable[[], list[Answer]]]:
    """The callers run; what is given stops them, and tells what they were answered."""
    process = subprocess.Popen([sys.executable, "-m", "tests.slow.callers", url, str(lines)], cwd=ROOT)

    def stop() -> list[Answer]:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
        return [read_line(line) for line in lines.read_text().splitlines()]

    try:
        yield stop
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def read_line(line: str) -> Answer:
    sent, done, status, *words = line.split(maxsplit=5)
    assert status == "200", line
    return Answer(float(sent), float(done), 200, *words)


# --- disks


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={REGISTRY_BYTES}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = f"this proof needs the rights to mount (root, CAP_SYS_ADMIN): {done.stderr.strip()}"
        if os.geteuid() == 0 or os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Not a byte is left on it."""
    path = disk / "fill"
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        assert os.statvfs(disk).f_bavail == 0
        yield
    finally:
        path.unlink()


# --- what does not work


def pack(directory: Path, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:  # type: ignore[call-overload]
        packed.add(directory, directory.name)
    return buffer.getvalue()


def broken_uploads(folder: Path) -> dict[str, bytes]:
    """Nine bodies that must not become a version."""

    def version(number: int, **overrides: Any) -> Path:
        return write_model(folder, "m", f"2.{number}.0", **(labelled("2.0.0") | overrides))

    whole = pack(version(0, licence="MIT"))
    missing, wrong_digest, zipped = version(1), version(2), io.BytesIO()
    (missing / "model.onnx").unlink()
    (wrong_digest / "model.onnx").write_bytes((wrong_digest / "model.onnx").read_bytes() + b"\0")
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.write(version(3) / "model.yaml", "m/model.yaml")
    files = labelled("2.0.0")["files"]
    mismatch = files | {"golden.json": files["golden.json"].replace(b'"index": 2', b'"index": 1')}
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as packed:
        packed.add(folder / "m/2.3.0/model.yaml", "../model.yaml")
    return {
        "no archive": b"no archive at all",
        "truncated gzip": whole[: len(whole) // 2],
        "truncated tar": pack(folder / "m/2.0.0", "w")[:2000],
        "truncated zip": zipped.getvalue()[:-30],
        "path outside": outside.getvalue(),
        "missing file": pack(missing),
        "wrong digest": pack(wrong_digest),
        "golden mismatch": pack(version(4, files=mismatch)),
        "damaged network": pack(version(5, files=files | {"model.onnx": os.urandom(5000)})),
    }


def send_half_an_upload(url: str, data: bytes) -> None:
    """The tenth: the caller dies on the way."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /update?alias=stable HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {TOKEN}\r\n"
        head += f"content-type: application/gzip\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[: len(data) // 2])
        time.sleep(0.2)


def labelled(version: str) -> dict[str, Any]:
    """What tells the answer of one version from that of another: its labels."""
    labels = "".join(f"{label}-of-{version}\n" for label in ("low", "middle", "high")).encode()
    return {**GOLDEN, "files": {**GOLDEN["files"], "labels.txt": labels}}


# --- the proof


def test_releases_under_load(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        root = disk / "models"
        write_registry(root)
        environment = {
            "HEADWAY_MODELS": str(root),
            "HEADWAY_ADMIN_TOKEN": TOKEN,
            "HEADWAY_MANAGEMENT_BIND": "127.0.0.1:0",
        }
        log, lines = tmp_path / "log", tmp_path / "answers"
        with running_server(log, through=own_memory_disk(RUN_BYTES), **environment) as server:
            prove(server, root, lines)
        assert "Traceback" not in log.read_text()


def own_memory_disk(size: int) -> tuple[str, ...]:
    """A command that runs another with a /dev/shm of its own, in which the server puts what its workers share."""
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mount, "sh")


def write_registry(root: Path) -> None:
    """m with two good versions, and 3.0.0 which is damaged; the shipped network beside it."""
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        write_model(root, "m", version, **labelled(version))
    (root / "m/3.0.0/labels.txt").write_text("damaged\n")
    write_release(root, "m", "1.0.0")
    shutil.copytree(MODELS / NEIGHBOUR, root / NEIGHBOUR)


def prove(server: RunningServer, root: Path, lines: Path) -> None:
    shm = Path(f"/proc/{server.process.pid}/root/dev/shm")
    (run_dir,) = shm.glob("headway-metrics-*")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    limit = time.monotonic() + PATIENCE_SECONDS
    while server.log.read_text().count(" accepts after ") < 2:
        assert time.monotonic() < limit
        time.sleep(LOOK_SECONDS)
    workers = server.worker_pids()
    with httpx.Client(base_url=server.management_url, headers=headers, timeout=PATIENCE_SECONDS) as admin:
        start = Change("1.0.0", time.monotonic(), time.monotonic(), time.monotonic())
        operator = Operator(server, admin, root, [start])
        with calling(server.url, lines) as stop, Watcher(run_dir) as watcher:
            time.sleep(3)  # both warm
            operator.be_quiet()
            swap_and_roll_back(operator)
            swap_by_file(operator)
            upload_what_is_broken(operator, lines.parent / "broken")
            release_what_is_damaged(operator)
            fill_the_registry(operator)
            fill_the_run_directory(operator, shm)
            lose_the_registry(operator)
            operator.be_quiet()
            answers = stop()
    assert server.worker_pids() == workers
    check_answers(answers, operator.log, watcher)
    check_metrics(server, answers)
    tell_latencies(answers, operator)


def swap_and_roll_back(operator: Operator) -> None:
    for number in range(API_SWAPS):
        if number % 2:
            operator.swap()
        else:
            operator.swap(action="set", alias="stable", version=operator.other)
        if number < ROLLBACKS:
            operator.rollback()


def swap_by_file(operator: Operator) -> None:
    """Not always waiting for the one before."""
    for number in range(FILE_SWAPS):
        operator.swap_file()
        if number % 3 == 0:
            operator.settle()
        time.sleep(random.uniform(0.05, 1.2))
    operator.settle()


def upload_what_is_broken(operator: Operator, folder: Path) -> None:
    uploads = broken_uploads(folder)
    for name, data in uploads.items():
        headers = {"content-type": "application/octet-stream"}
        answer = operator.admin.post("/update", content=data, headers=headers, params={"alias": "stable"})
        print(f"upload, {name}: {answer.status_code} {answer.json()['code']}")
        assert 400 <= answer.status_code < 500, (name, answer.text)
    send_half_an_upload(str(operator.admin.base_url), pack(folder / "m/2.0.0"))
    assert len(uploads) + 1 == 10
    limit = time.monotonic() + PATIENCE_SECONDS
    while left := list(operator.root.glob(".staging-*")):
        assert time.monotonic() < limit, left
        time.sleep(LOOK_SECONDS)
    assert sorted(path.name for path in (operator.root / "m").glob("[0-9]*")) == ["1.0.0", "2.0.0", "3.0.0"]
    operator.settle()


def release_what_is_damaged(operator: Operator) -> None:
    """The version before serves on, for as long as this lasts."""
    before = operator.log[-1].version
    operator.swap_file("3.0.0")
    time.sleep(2 * GRACE_SECONDS)
    assert operator.read()["serving"] == {"stable": before}
    assert not operator.read()["has_converged"]
    operator.swap_file("1.0.0" if before == "2.0.0" else "2.0.0")
    operator.settle()


def fill_the_registry(operator: Operator) -> None:
    """What is asked for now is refused; what was written before the disk was full still takes its place."""
    operator.swap_file()
    with filled(operator.root.parent):
        for _ in range(4):
            answer = operator.post(action="promote", version=operator.other, wait=0)
            assert (answer.status_code, answer.json()["code"]) == (507, "registry_full")
            upload = pack(operator.root / "m/1.0.0")
            answer = operator.admin.post("/update", content=upload, headers={"content-type": "application/gzip"})
            assert (answer.status_code, answer.json()["code"]) == (507, "registry_full")
            operator.settle()
            time.sleep(0.5)
    for _ in range(2):
        operator.swap()


def fill_the_run_directory(operator: Operator, shm: Path) -> None:
    """The workers cannot tell each other what they serve, but they serve it."""
    with filled(shm):
        for _ in range(3):
            operator.swap(wait=0)
            time.sleep(2 * GRACE_SECONDS)
    operator.settle()
    operator.swap()


def lose_the_registry(operator: Operator) -> None:
    """It goes, is an empty directory for a while as an unmounted volume is, and comes back with another release."""
    root, away = operator.root, operator.root.with_name("away")
    for version in (operator.log[-1].version, operator.other):
        root.rename(away)
        time.sleep(2 * GRACE_SECONDS)
        assert operator.post(action="promote", version=operator.other, wait=0).status_code >= 400
        root.mkdir()
        time.sleep(GRACE_SECONDS)
        assert operator.post(action="promote", version=operator.other, wait=0).status_code >= 400
        root.rmdir()
        away.rename(root)
        if version != operator.log[-1].version:
            operator.swap_file(version)
        operator.settle()
    model, gone = root / "m", root.parent / "m"
    model.rename(gone)
    time.sleep(2 * GRACE_SECONDS)
    gone.rename(model)
    operator.swap_file()
    operator.settle()
    operator.swap()


# --- the verdict


def check_answers(answers: list[Answer], log: list[Change], watcher: Watcher) -> None:
    ends = [*(change.ended for change in log[1:]), float("inf")]
    begins = [*(change.began for change in log[1:]), float("inf")]
    late, wrong, excused = 0.0, [], 0
    for answer in answers:
        if answer.model == NEIGHBOUR:
            continue
        assert answer.label == f"high-of-{answer.version}"
        wanted = [
            end
            for change, end in zip(log, ends, strict=True)
            if change.version == answer.version and change.began <= answer.done
        ]
        age = max(0.0, answer.sent - max(wanted)) if wanted else float("inf")
        if age and watcher.is_excused(answer):
            excused += 1
        elif age > GRACE_SECONDS:
            wrong.append((age, answer))
        else:
            late = max(late, age)
        last = bisect.bisect([change.began for change in log], answer.sent) - 1
        settled = log[last].settled
        if settled is not None and settled <= answer.sent and answer.done < begins[last]:
            assert answer.version == log[last].version, ("all workers had said that they serve another", answer)
    assert wrong == []
    assert len({answer.label for answer in answers if answer.model == NEIGHBOUR}) == 1
    counts = dict(sorted(Counter((answer.model, answer.version) for answer in answers).items()))
    print(f"{len(answers):,} answers of {len(log) - 1} releases, all 200: {counts}")
    print(f"longest after its release was over: {late:.2f} s; {excused:,} whose successor could not be loaded")


def check_metrics(server: RunningServer, answers: list[Answer]) -> None:
    counted: Counter[tuple[str, str, str]] = Counter()
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_SECONDS).text
    for labels, value in re.findall(r"^headway_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counted[found["model"], found["version"], found["code"]] += int(float(value))
    assert counted == Counter((answer.model, answer.version, str(answer.status)) for answer in answers)


def tell_latencies(answers: list[Answer], operator: Operator) -> None:
    """A swap takes from the change until all workers serve it. The bar is a ratio of 3; a timed test would be flaky."""
    swaps = [(change.began, change.settled) for change in operator.log[1:] if change.settled is not None]
    rows = [answer for answer in answers if answer.model == "m"]
    during, without = (
        [1000 * (row.done - row.sent) for row in rows if any(begin <= row.sent <= end for begin, end in spans)]
        for spans in (swaps, operator.quiet)
    )
    ratio, medians = p99(during) / p99(without), [round(statistics.median(part), 1) for part in (during, without)]
    print(
        f"p99 during {len(swaps)} swaps {p99(during):.1f} ms of {len(during):,}, without {p99(without):.1f} ms of "
        f"{len(without):,}: {ratio:.2f} × (bar 3); medians {medians}"
    )


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
