"""How versions come into the registry and leave it: one door, nothing changed in place, safe at any moment."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.errors import (
    ArchiveTooLarge,
    BadArchive,
    Conflict,
    RegistryError,
    RegistryFull,
    RegistryReadOnly,
    VersionExists,
    VersionInUse,
    VersionNotFound,
    VersionRefused,
    VersionTooSmall,
)
from app.registry.manifest import read_manifest
from app.registry.servables.loading import load_servable
from app.registry.store import Store, verify_files
from app.registry.storing.archive import Limits
from app.registry.storing.intake import Intake, Published, is_verified
from tests.fixtures_models import edit_manifest, file_entry, onnx_file, write_model, write_release
from tests.running import PATIENCE_SECONDS, ROOT

LIMITS = Limits(max_bytes=5_000_000, max_files=100)
GOLDEN = json.dumps({"requests": [{"inputs": [[0.1, 0.2, 0.7]], "top": [{"index": 2, "confidence": 0.7}]}]}).encode()
WITH_GOLDEN: dict[str, Any] = {
    "files": {"golden/golden.json": GOLDEN},
    "golden": {"file": "golden/golden.json", "top1": "equal", "tolerance": 0.01},
}


def _no_trial(_: Store, directory: Path) -> None:
    verify_files(directory, read_manifest(directory).files)


@pytest.fixture
def intake(root: Path) -> Intake:
    """With a trial that looks at digests only."""
    return Intake(Store(root), trial=_no_trial)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    return path


def _tar(directory: Path, prefix: str = "") -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(directory.rglob("*")):
            tar.add(path, prefix + str(path.relative_to(directory)), recursive=False)
    buffer.seek(0)
    return buffer


def _add(intake: Intake, directory: Path, **how: Any) -> Published:
    return intake.publish(intake.copy_in(directory, LIMITS), **how)


def _hidden(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("prefix", ["", "./", "1.0.0/", "scores/1.0.0/"])
def test_receive_and_publish(root: Path, outside: Path, prefix: str) -> None:
    """The whole way, with the real trial."""
    intake = Intake(Store(root))
    directory = write_model(outside, **WITH_GOLDEN)
    published = intake.publish(intake.receive(_tar(directory, prefix), "tar", LIMITS))
    assert published == Published("scores", "1.0.0", is_new=True, is_verified=True)
    found = read_manifest(root / "scores" / "1.0.0")
    assert found == read_manifest(directory)
    assert is_verified(found)
    verify_files(root / "scores" / "1.0.0", found.files)
    assert _hidden(root) == []
    assert (root / "scores" / "1.0.0").stat().st_mode & 0o777 == 0o755


async def _chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [7, 1 << 22])
def test_receive_chunks(intake: Intake, outside: Path, size: int) -> None:
    data = _tar(write_model(outside)).getvalue()
    staged = asyncio.run(intake.receive_chunks(_chunks(data, size), None, LIMITS))
    assert intake.publish(staged).is_new


def test_receive_chunks_that_end_early_leaves_nothing(intake: Intake, root: Path, outside: Path) -> None:
    data = _tar(write_model(outside)).getvalue()

    async def leaving() -> AsyncIterator[bytes]:
        yield data[:100]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(intake.receive_chunks(leaving(), None, LIMITS))

    async def cancelled() -> None:
        async def waiting() -> AsyncIterator[bytes]:
            yield data
            await asyncio.sleep(PATIENCE_SECONDS)

        await asyncio.wait_for(intake.receive_chunks(waiting(), None, LIMITS), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    with pytest.raises(ArchiveTooLarge):
        asyncio.run(intake.receive_chunks(_chunks(data * 3, 100), None, Limits(len(data))))
    assert list(root.iterdir()) == []


def test_staged_version_is_not_seen_before_it_is_published(intake: Intake, root: Path, outside: Path) -> None:
    with intake.copy_in(write_model(outside), LIMITS) as staged:
        assert (staged.manifest.name, staged.directory.name) == ("scores", "1.0.0")
        assert Store(root).model_names() == []
    assert list(root.iterdir()) == []


def test_archives_that_are_no_version(intake: Intake, root: Path, outside: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        write_model(outside, version=version)
    with pytest.raises(BadArchive, match=r"holds 2 versions \(1\.0\.0/model\.yaml, 1\.1\.0/model\.yaml\)"):
        intake.receive(_tar(outside / "scores"), None, LIMITS)
    shutil.rmtree(outside / "scores" / "1.1.0")
    (outside / "scores" / "notes.txt").write_text("x")
    with pytest.raises(BadArchive, match=r"holds 'notes\.txt' beside the version's directory"):
        intake.receive(_tar(outside / "scores"), None, LIMITS)
    (outside / "scores" / "1.0.0" / "model.yaml").unlink()
    with pytest.raises(BadArchive, match=r"holds no model\.yaml"):
        intake.receive(_tar(outside / "scores" / "1.0.0"), None, LIMITS)
    with pytest.raises(BadArchive, match="there is no such directory"):
        intake.copy_in(outside / "nowhere", LIMITS)
    assert list(root.iterdir()) == []


def test_manifest_that_is_wrong_is_named_as_the_sender_knows_it(intake: Intake, outside: Path) -> None:
    directory = write_model(outside)
    edit_manifest(directory, licence=None)
    with pytest.raises(VersionRefused, match=r"^model\.yaml: licence: is missing"):
        intake.copy_in(directory, LIMITS)
    edit_manifest(directory, licence="x", name="../../etc")
    with pytest.raises(VersionRefused, match="is not a model name"):
        intake.copy_in(directory, LIMITS)


def _crashing(root: Path) -> Path:
    """INT64 -2⁶³ / -1: x86 ends the process (docs/decisions/0010)."""
    constants = {"least": np.array([-(2**63)]), "minus": np.array([-1])}
    nodes = [helper.make_node("Add", ["x", "least"], ["low"]), helper.make_node("Div", ["low", "minus"], ["y"])]
    data = onnx_file(nodes, [("x", "INT64", [1])], [("y", "INT64", [1])], constants)
    inputs, outputs = ([{"name": name, "datatype": "INT64", "shape": [1]}] for name in "xy")
    return write_model(
        root, kind="same", files={"model.onnx": data}, inputs=inputs, outputs=outputs, batch={"axis": None}
    )


def _external(root: Path, location: str, **files: bytes) -> Path:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, 3])],
        [weights],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert onnx.ModelProto().FromString(model.SerializeToString())
    return write_model(root, files={"model.onnx": model.SerializeToString(), **files})


def test_trial_refuses_what_could_not_serve(root: Path, outside: Path) -> None:
    intake = Intake(Store(root))
    directory = write_model(outside, **WITH_GOLDEN)
    data = bytearray((directory / "model.onnx").read_bytes())
    (directory / "model.onnx").write_bytes(bytes(data[:-1]) + b"\xff")
    with pytest.raises(VersionRefused, match=r"^model\.onnx: has SHA-256"):
        _add(intake, directory)
    wrong = GOLDEN.replace(b"0.7}", b"0.2}")
    write_model(outside, **{**WITH_GOLDEN, "files": {"golden/golden.json": wrong}})
    with pytest.raises(VersionRefused, match=r"golden\.json: request 1 no longer gives its recorded answer"):
        _add(intake, directory)
    with pytest.raises(VersionRefused, match="its trial was ended by SIGFPE: it crashes the runtime"):
        _add(intake, _crashing(outside))
    assert Store(root).model_names() == []
    assert list(root.iterdir()) == []


def test_composition_is_tried_with_the_versions_that_it_names(root: Path, outside: Path) -> None:
    intake = Intake(Store(root))
    steps = {"type": "average", "steps": [{"model": "scores@1.0.0"}, {"model": "scores@1.1.0"}]}
    both = write_model(outside, "both", runtime="composition", composition=steps, batch=None)
    (both / "model.onnx").unlink()
    edit_manifest(both, files=None)
    edit_manifest(both, files={"labels.txt": file_entry((both / "labels.txt").read_bytes())})
    with pytest.raises(VersionRefused, match="scores"):
        _add(intake, both)
    for version in ("1.0.0", "1.1.0"):
        _add(intake, write_model(outside, version=version))
    assert _add(intake, both).is_new


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_outside_of_the_version_are_refused(root: Path, outside: Path, location: str) -> None:
    (outside / "scores").mkdir()
    (outside / "scores" / "secret.bin").write_bytes(b"\x00" * 12)
    with pytest.raises(VersionRefused, match=r"model\.onnx: keeps weights in '.*', which is not listed in model\.yaml"):
        _add(Intake(Store(root)), _external(outside, location))
    with pytest.raises(RegistryError, match="not listed"):  # nor one that came by Git
        load_servable(_external(root, location), 1)


def test_weights_in_a_listed_file_are_good(root: Path, outside: Path) -> None:
    weights = np.ones(3, np.float32).tobytes()
    assert _add(Intake(Store(root)), _external(outside, "weights.bin", **{"weights.bin": weights})).is_new


def test_published_version_never_changes(intake: Intake, root: Path, outside: Path) -> None:
    directory = write_model(outside)
    assert _add(intake, directory).is_new
    before = {path: path.stat().st_ino for path in (root / "scores").rglob("*")}
    assert _add(intake, directory) == Published("scores", "1.0.0", is_new=False, is_verified=False)
    edit_manifest(directory, licence="MIT")
    with pytest.raises(VersionExists, match=r"scores@1\.0\.0 is published already, and differs"):
        _add(intake, directory)
    write_model(outside, files={"labels.txt": b"a\nb\nc\n"})
    with pytest.raises(VersionExists):
        _add(intake, directory)
    after = {path: path.stat().st_ino for path in (root / "scores").rglob("*") if path.name != ".lock"}
    assert after == before
    assert _hidden(root) == []


def test_damaged_version_is_made_good_by_itself(intake: Intake, root: Path, outside: Path) -> None:
    directory = write_model(outside, **WITH_GOLDEN)
    _add(intake, directory)
    published = root / "scores" / "1.0.0"
    (published / "model.onnx").write_bytes(b"damaged")
    shutil.rmtree(published / "golden")
    assert not _add(intake, directory).is_new
    verify_files(published, read_manifest(published).files)


def test_weights_are_kept_once(intake: Intake, root: Path, outside: Path) -> None:
    big = {"notes.bin": os.urandom(10_000)}
    _add(intake, write_model(outside, files=big))
    _add(intake, write_model(outside, version="1.0.1", files=big, limits={"queue": 5}))
    one, two = (root / "scores" / version / "notes.bin" for version in ("1.0.0", "1.0.1"))
    assert one.samefile(two)
    one.write_bytes(b"damaged")
    _add(intake, write_model(outside, version="1.0.2", files=big, limits={"queue": 6}))
    verify_files(root / "scores" / "1.0.2", read_manifest(root / "scores" / "1.0.2").files)


def test_step_that_is_too_small_is_refused(intake: Intake, outside: Path) -> None:
    _add(intake, write_model(outside))
    other = {"labels.txt": b"low\nmedium\nhigh\n"}
    with pytest.raises(VersionTooSmall, match=r"1\.1\.0 is a minor step from 1\.0\.0, but .* major step, 2\.0\.0"):
        _add(intake, write_model(outside, version="1.1.0", files=other))
    damaged = write_model(outside, version="1.1.0", files=other)
    (damaged / "labels.txt").write_bytes(b"low\nmedium\n")
    with pytest.raises(VersionRefused, match=r"labels\.txt: has 11 bytes, model\.yaml \(files\) says 16"):
        _add(intake, damaged)
    assert _add(intake, write_model(outside, version="1.1.0", files=other), any_step=True).is_new
    assert _add(intake, write_model(outside, version="1.1.1", files=other)).is_new
    assert _add(intake, write_model(outside, version="2.0.0")).is_new


def test_two_processes_that_publish_lose_nothing(root: Path, outside: Path) -> None:
    """Twenty versions of one new model by four threads in each of two processes, all at once."""
    code = (
        "import sys, threading\nfrom pathlib import Path\n"
        "from tests.registry.storing.test_intake import LIMITS, _no_trial\n"
        "from app.registry.storing.intake import Intake\nfrom app.registry.store import Store\n"
        "intake = Intake(Store(Path(sys.argv[1])), trial=_no_trial)\n"
        "def add(versions):\n"
        "    for path in versions: intake.publish(intake.copy_in(Path(path), LIMITS))\n"
        "threads = [threading.Thread(target=add, args=(sys.argv[2 + n :: 4],)) for n in range(4)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
    )
    versions = [str(write_model(outside, version=f"1.{number}.0")) for number in range(20)]
    orders = [versions, versions[::-1]]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(root), *order], cwd=ROOT, stderr=subprocess.PIPE)
        for order in orders
    ]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (process.returncode, errors) == (0, b"")
    assert len(Store(root).version_names("scores")) == 20
    assert _hidden(root) == []


def test_remove_and_undelete(intake: Intake, root: Path, outside: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        _add(intake, write_model(outside, version=version))
    intake.remove("scores", "1.0.0")
    assert [str(version) for version in Store(root).version_names("scores")] == ["1.1.0"]
    assert Store(root).model_names() == ["scores"]
    assert [(entry.name, entry.version) for entry in intake.bin.entries()] == [("scores", "1.0.0")]
    with pytest.raises(VersionNotFound, match=r"has no version 1\.0\.0 .* it has 1\.1\.0"):
        intake.remove("scores", "1.0.0")
    intake.undelete("scores", "1.0.0")
    assert [str(version) for version in Store(root).version_names("scores")] == ["1.0.0", "1.1.0"]
    assert intake.bin.entries() == []
    with pytest.raises(VersionNotFound, match=r"scores@1\.0\.0 is not in the bin; it holds nothing"):
        intake.undelete("scores", "1.0.0")


def test_version_in_use_is_not_removed(intake: Intake, root: Path, outside: Path) -> None:
    for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0"):
        _add(intake, write_model(outside, version=version))
    with pytest.raises(VersionInUse, match=r"without a release\.yaml the newest version serves"):
        intake.remove("scores", "1.3.0")
    aliases = {"canary": {"version": "1.1.0", "weight": 5}}
    write_release(root, "scores", "1.0.0", aliases=aliases, also_serve=["1.2.0"])
    for version, user in (("1.0.0", "stable"), ("1.1.0", "canary"), ("1.2.0", "also_serve")):
        with pytest.raises(VersionInUse, match=rf"release\.yaml names it \({user}\)"):
            intake.remove("scores", version, force=True)
    intake.remove("scores", "1.3.0")
    (root / "scores" / "release.yaml").write_text("nonsense: 1")
    with pytest.raises(Conflict, match="is in use cannot be told"):
        intake.remove("scores", "1.2.0")


def test_model_leaves_with_its_last_version_and_comes_back(intake: Intake, root: Path, outside: Path) -> None:
    _add(intake, write_model(outside))
    intake.remove("scores", "1.0.0", force=True)
    assert Store(root).model_names() == []
    intake.undelete("scores", "1.0.0")
    assert [str(version) for version in Store(root).version_names("scores")] == ["1.0.0"]


def test_undelete_never_replaces(intake: Intake, root: Path, outside: Path) -> None:
    _add(intake, write_model(outside))
    intake.remove("scores", "1.0.0", force=True)
    _add(intake, write_model(outside, licence="MIT"))
    with pytest.raises(VersionExists):
        intake.undelete("scores", "1.0.0")
    assert read_manifest(root / "scores" / "1.0.0").licence == "MIT"
    intake.remove("scores", "1.0.0", force=True)
    intake.undelete("scores", "1.0.0")
    assert read_manifest(root / "scores" / "1.0.0").licence == "MIT"


def test_undelete_of_what_was_damaged_in_the_bin(intake: Intake, outside: Path) -> None:
    _add(intake, write_model(outside))
    intake.remove("scores", "1.0.0", force=True)
    (intake.bin.entries()[0].directory / "model.onnx").unlink()
    with pytest.raises(VersionRefused, match=r"scores@1\.0\.0 is damaged"):
        intake.undelete("scores", "1.0.0")


def test_releases_in_a_directory_of_their_own(root: Path, outside: Path, tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    releases.mkdir()
    intake = Intake(Store(root, releases), trial=_no_trial)
    for version in ("1.0.0", "1.1.0"):
        _add(intake, write_model(outside, version=version))
    write_release(releases, "scores", "1.0.0")
    with pytest.raises(VersionInUse):
        intake.remove("scores", "1.0.0")
    intake.remove("scores", "1.1.0")
    assert (releases / "scores" / ".lock").exists()
    assert not (root / "scores" / ".lock").exists()


def test_sweep_empties_the_bin_after_its_time(root: Path, outside: Path) -> None:
    intake = Intake(Store(root), bin_days=2, trial=_no_trial)
    _add(intake, write_model(outside))
    intake.remove("scores", "1.0.0", force=True)
    (root / ".bin" / "notes").write_text("not ours")
    assert intake.sweep(time.time() + 1.9 * 86_400) == 0
    assert intake.sweep(time.time() + 2.1 * 86_400) == 1
    assert os.listdir(root / ".bin") == ["notes"]


def test_sweep_leaves_what_a_live_process_receives(intake: Intake, root: Path, outside: Path) -> None:
    staged = intake.copy_in(write_model(outside), LIMITS)
    left = root / ".staging-left"
    left.mkdir()
    (left / ".held").touch()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom app.registry.storing.staging import sweep_staging\n"
        "print(sweep_staging(Path(sys.argv[1]), time.time() + float(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(root)]
    assert subprocess.run([*command, "0"], cwd=ROOT, capture_output=True, check=True).stdout == b"0\n"
    assert subprocess.run([*command, "1000"], cwd=ROOT, capture_output=True, check=True).stdout == b"1\n"
    assert intake.sweep(time.time() + 1000) == 0
    assert not left.exists()
    assert intake.publish(staged).is_new


def test_missing_registry(tmp_path: Path, outside: Path) -> None:
    with pytest.raises(Conflict, match="there is no such registry directory"):
        _add(Intake(Store(tmp_path / "nowhere")), write_model(outside))
    assert Intake(Store(tmp_path / "nowhere")).sweep(time.time()) == 0


def test_read_only_registry(outside: Path) -> None:
    """/sys is a directory that root cannot write either."""
    with pytest.raises(RegistryReadOnly, match=r"cannot be changed here .*; make the change where the directory comes"):
        _add(Intake(Store(Path("/sys/kernel"))), write_model(outside))


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", root], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small disk needs rights that this user has not")
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_full_disk(small_disk: Path, intake: Intake, outside: Path) -> None:
    _add(intake, write_model(outside))
    large = write_model(outside, version="1.1.0", files={"notes.bin": os.urandom(100_000)})
    with pytest.raises(RegistryFull, match="has no space left"):
        _add(intake, large)
    with pytest.raises(RegistryFull):
        intake.receive(_tar(large), None, LIMITS)
    with pytest.raises(RegistryFull):
        asyncio.run(intake.receive_chunks(_chunks(_tar(large).getvalue(), 1000), None, LIMITS))
    assert [path.name for path in small_disk.iterdir()] == ["scores"]
    shutil.rmtree(large)
    assert _add(intake, write_model(outside, version="1.1.0")).is_new


def test_file_size_limit_is_a_full_disk(root: Path, outside: Path) -> None:
    large = write_model(outside, files={"notes.bin": os.urandom(100_000)})
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.registry.storing.test_intake import LIMITS\n"
        "from app.errors import RegistryFull\n"
        "from app.registry.storing.intake import Intake\nfrom app.registry.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: Intake(Store(Path(sys.argv[1]))).copy_in(Path(sys.argv[2]), LIMITS)\n"
        "except RegistryFull as exc: print(exc)\n"
    )
    command = [sys.executable, "-c", code, str(root), str(large)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert os.strerror(errno.EFBIG) in done.stdout
    assert list(root.iterdir()) == []


# The child kills itself after the nth of its calls to the file system; one fork for each n, so that it imports once.
_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.registry.storing.test_intake import run_change, _no_trial

CALLS = ["open", "write", "mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "close", "chmod"]
root, outside, change = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def count(limit):
    left = [limit]
    def wrap(call):
        def counted(*args, **kwargs):
            result = call(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return counted
    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        count(int(line))
        run_change(root, outside, change)
        os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def run_change(root: Path, outside: Path, change: str) -> None:
    intake = Intake(Store(root), trial=_no_trial)
    if change == "remove":
        intake.remove("scores", "1.0.0")
    elif change == "undelete":
        intake.undelete("scores", "1.0.0")
    else:
        intake.publish(intake.receive(_tar(outside / "scores" / change), None, LIMITS))


@pytest.mark.parametrize("change", ["first", "1.2.0", "remove", "undelete"])
def test_kill_after_any_call_leaves_a_valid_registry(tmp_path: Path, change: str) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    big = {"notes.bin": os.urandom(5_000)}  # one that is shared with the version before
    kill = [sys.executable, "-c", _KILLED, str(root), str(outside), "1.0.0" if change == "first" else change]
    with subprocess.Popen(kill, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(1, 500):
            shutil.rmtree(root, ignore_errors=True)
            before = _prepare(root, outside, change, big)
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            status = int(child.stdout.readline())
            after = _state(root)
            assert after in (before, _changed(change)), f"after call {number}"
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            _check_goes_on(root, outside, change, after != before)
        else:
            pytest.fail("it never came to its end")
        assert number > 10
        assert _state(root) == _changed(change)
        child.stdin.close()


def _prepare(root: Path, outside: Path, change: str, files: dict[str, bytes]) -> dict[str, list[str]]:
    root.mkdir()
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        if not (outside / "scores" / version).exists():
            write_model(outside, version=version, files=files)
    if change != "first":
        intake = Intake(Store(root), trial=_no_trial)
        for version in ("1.0.0", "1.1.0"):
            _add(intake, outside / "scores" / version)
        if change == "undelete":
            intake.remove("scores", "1.0.0")
    return _state(root)


def _state(root: Path) -> dict[str, list[str]]:
    """What readers see, each version complete."""
    store = Store(root)
    found = {}
    for name in store.model_names():
        versions = store.version_names(name)
        assert versions, "a model without versions"
        for version in versions:
            directory = store.version(name, version)
            assert directory.manifest is not None, directory.error
            verify_files(directory.path, directory.manifest.files)
        found[name] = [version.text for version in versions]
    return found


def _changed(change: str) -> dict[str, list[str]]:
    after = {"first": ["1.0.0"], "1.2.0": ["1.0.0", "1.1.0", "1.2.0"], "remove": ["1.1.0"]}
    return {"scores": after.get(change, ["1.0.0", "1.1.0"])}


def _check_goes_on(root: Path, outside: Path, change: str, is_done: bool) -> None:
    """The next process sweeps, and makes the change that was killed."""
    Intake(Store(root)).sweep(time.time() + 1000)
    assert [name for name in _hidden(root) if name != ".bin"] == []
    if not (is_done and change in ("remove", "undelete")):
        run_change(root, outside, "1.0.0" if change == "first" else change)
    assert _state(root) == _changed(change)


def test_changes_of_threads_take_turns(intake: Intake, outside: Path) -> None:
    """lockf knows processes only: two threads would both get it."""
    for version in ("1.0.0", "1.1.0"):
        _add(intake, write_model(outside, version=version))
    failures: list[Exception] = []

    def turn() -> None:
        for _ in range(20):
            try:
                intake.remove("scores", "1.0.0")
                intake.undelete("scores", "1.0.0")
            except VersionNotFound:
                continue
            except Exception as exc:
                failures.append(exc)

    threads = [threading.Thread(target=turn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [str(version) for version in intake.store.version_names("scores")] == ["1.0.0", "1.1.0"]
    assert intake.bin.entries() == []


@pytest.mark.parametrize(("name", "version"), [("..", "beside"), (".", "scores"), ("scores", ".."), ("scores", "x")])
def test_remove_never_leaves_the_registry(intake: Intake, root: Path, name: str, version: str) -> None:
    (root.parent / "beside").mkdir(exist_ok=True)
    (root / "scores" / "x").mkdir(parents=True, exist_ok=True)
    with pytest.raises(VersionNotFound):
        intake.remove(name, version, force=True)
    assert (root.parent / "beside").is_dir()
    assert (root / "scores" / "x").is_dir()
