"""One change of a model at a time, between threads and processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.errors import Conflict, RegistryBusy, RegistryFull, RegistryReadOnly
from app.registry.storing.locking import LOCK_NAME, changing, describe_write_error, remove_lock
from tests.running import PATIENCE_SECONDS, ROOT

_HOLD = (
    "import sys\nfrom pathlib import Path\nfrom app.registry.storing.locking import changing\n"
    "with changing(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)
_COUNT = (
    "import sys\nfrom pathlib import Path\nfrom app.registry.storing.locking import changing\n"
    "path = Path(sys.argv[1]) / 'count'\n"
    "for _ in range(200):\n"
    "    with changing(path.parent): path.write_text(str(int(path.read_text()) + 1))\n"
)


@contextmanager
def _holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLD, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_held_by_another_process(tmp_path: Path) -> None:
    with _holder(tmp_path / "m") as process:
        with pytest.raises(RegistryBusy, match="another process is changing this model"), changing(tmp_path / "m", 0.1):
            pytest.fail("two hold it")
        with changing(tmp_path / "other", 0.1):
            pass
        process.kill()
        process.wait()
        with changing(tmp_path / "m", PATIENCE_SECONDS):  # a killed process holds nothing
            pass


def test_held_by_another_thread(tmp_path: Path) -> None:
    with changing(tmp_path / "m"):
        outcome: list[Exception] = []

        def attempt() -> None:
            try:
                with changing(tmp_path / "m", 0.05):
                    pass
            except RegistryBusy as exc:
                outcome.append(exc)

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
        assert len(outcome) == 1
        # The attempt has closed no descriptor of the file: that would have given the lock away.
        done = subprocess.run(
            [sys.executable, "-c", _HOLD.replace("]))", "]), 0.1)"), str(tmp_path / "m")],
            cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False,
        )  # fmt: skip
        assert "RegistryBusy" in done.stderr


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", _COUNT, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "400"


def test_error_in_a_change_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), changing(tmp_path / "m"):
        raise ZeroDivisionError
    with changing(tmp_path / "m", 0.1):
        pass


def test_directory_that_leaves_with_its_lock(tmp_path: Path) -> None:
    with changing(tmp_path / "m"):
        (tmp_path / "m" / "file").touch()
        remove_lock(tmp_path / "m")
        assert (tmp_path / "m" / LOCK_NAME).exists()
        (tmp_path / "m" / "file").unlink()
        remove_lock(tmp_path / "m")
        assert not (tmp_path / "m").exists()
    with changing(tmp_path / "m", 0.1):
        pass


def test_whoever_waited_for_a_lock_that_was_removed_takes_the_new_one(tmp_path: Path) -> None:
    outcome: list[str] = []

    def wait() -> None:
        try:
            with changing(tmp_path / "m"):
                outcome.append("held")
        except Conflict as exc:
            outcome.append(str(exc))

    command = _HOLD.replace("    sys.stdin.read()", "    sys.stdin.readline()").replace("import changing", "import *")
    command += "    remove_lock(Path(sys.argv[1]))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(tmp_path / "m")],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    thread = threading.Thread(target=wait)
    thread.start()
    process.communicate("go\n", PATIENCE_SECONDS)
    thread.join()
    assert outcome[0] == "held" or "was removed in this moment" in outcome[0]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, RegistryReadOnly),
        (errno.EACCES, RegistryReadOnly),
        (errno.EXDEV, RegistryReadOnly),
        (errno.ENOLCK, RegistryReadOnly),
        (errno.ENOSPC, RegistryFull),
        (errno.EDQUOT, RegistryFull),
        (errno.EIO, type(None)),
    ],
)
def test_errors_of_the_disk_in_words(number: int, kind: type) -> None:
    refusal = describe_write_error(Path("models"), OSError(number, os.strerror(number)))
    assert isinstance(refusal, kind)
    if refusal is not None:
        assert os.strerror(number) in str(refusal)


def test_directory_that_cannot_be_written() -> None:
    with pytest.raises(RegistryReadOnly), changing(Path("/sys/kernel/headway")):
        pass


def test_registry_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """An unmounted volume must not be filled under its mount point."""
    with pytest.raises(FileNotFoundError), changing(tmp_path / "gone" / "m"):
        pass
    assert not (tmp_path / "gone").exists()
