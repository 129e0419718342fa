from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from app.server.metrics_dir import FILE_BYTES, allocate, create_metrics_dir, sweep

FILES = ("counter", "gauge_livesum")

HOLD = """
import sys, time
from pathlib import Path
from app.server.metrics_dir import create_metrics_dir
held = create_metrics_dir(("counter",), 1, (Path(sys.argv[1]),))
print(held.path, flush=True)
time.sleep(600)
"""


def test_files_are_allocated_in_full(tmp_path: Path) -> None:
    held = create_metrics_dir(FILES, 2, (tmp_path,))
    assert held is not None
    held.prepare(0)
    names = {path.name for path in held.path.glob("*.db")}
    assert names == {"counter_0.db", "gauge_livesum_0.db"}
    for path in held.path.glob("*.db"):
        assert path.stat().st_size == FILE_BYTES
        assert path.stat().st_blocks * 512 >= FILE_BYTES
    held.remove()
    assert list(tmp_path.iterdir()) == []


def test_counters_stay_and_live_gauges_go(tmp_path: Path) -> None:
    held = create_metrics_dir(FILES, 1, (tmp_path,))
    assert held is not None
    held.prepare(0)
    for name in FILES:
        (held.path / f"{name}_0.db").write_bytes(b"used" + bytes(FILE_BYTES - 4))
    held.reset_live(0)
    held.prepare(0)
    assert (held.path / "counter_0.db").read_bytes().startswith(b"used")
    assert not any((held.path / "gauge_livesum_0.db").read_bytes())
    assert {path.suffix for path in held.path.iterdir()} <= {".db", ""}
    held.remove()


def test_prometheus_client_reads_prepared_files(tmp_path: Path) -> None:
    code = """
import sys
import tempfile
from prometheus_client import CollectorRegistry, Counter, values
from prometheus_client.multiprocess import MultiProcessCollector
values.ValueClass = values.MultiProcessValue(lambda: 0)
import prometheus_client.metrics
prometheus_client.metrics.values.ValueClass = values.ValueClass
Counter("things", "Things.", registry=None).inc(3)
registry = CollectorRegistry()
MultiProcessCollector(registry, sys.argv[1])
assert registry.get_sample_value("things_total") == 3
"""
    held = create_metrics_dir(FILES, 1, (tmp_path,))
    assert held is not None
    held.prepare(0)
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(held.path)}
    subprocess.run([sys.executable, "-c", code, str(held.path)], check=True, env=env)
    assert (held.path / "counter_0.db").stat().st_size == FILE_BYTES
    held.remove()


def test_dead_servers_directory_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        path = Path(other.stdout.readline().strip())
        sweep(tmp_path)
        assert path.is_dir()
        other.kill()
        other.wait()
        sweep(tmp_path)
        assert not path.exists()


def test_directory_that_is_being_made_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "headway-metrics-1-1-new"
    path.mkdir()
    sweep(tmp_path)
    assert path.is_dir()
    os.utime(path, (0, 0))
    sweep(tmp_path)
    assert not path.exists()


def test_base_without_room_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert create_metrics_dir(FILES, 1 << 40, (tmp_path,)) is None
    assert "MiB free" in caplog.text
    held = create_metrics_dir(FILES, 1, (tmp_path / "none", tmp_path))
    assert held is not None
    assert held.path.parent == tmp_path
    held.remove()


def test_failed_allocation_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "counter_0.db"
    allocate(path, 4096)
    with pytest.raises(OSError, match=r"."):
        allocate(path, 1 << 62)
    assert path.stat().st_size == 4096
    assert [each.name for each in tmp_path.iterdir()] == ["counter_0.db"]


def list_directories(pid: int) -> list[Path]:
    bases = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    return [path for base in bases if base.is_dir() for path in base.glob(f"headway-metrics-{pid}-*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_removes_its_directory(start: Any, number: int) -> None:
    server = start(workers=2)
    (path,) = list_directories(server.process.pid)
    assert {each.name for each in path.glob("counter_*.db")} == {"counter_0.db", "counter_1.db"}
    server.tell(number)
    assert server.wait() == 0
    assert list_directories(server.process.pid) == []


def test_next_server_sweeps_the_killed_ones(start: Any) -> None:
    server = start()
    workers = server.list_workers()
    server.tell(signal.SIGKILL)
    server.wait()
    assert list_directories(server.process.pid)
    server.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no workers")
    start()
    assert list_directories(server.process.pid) == []
