"""CPU quotas and memory limits, read from directories laid out like those of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.engine.cpu import (
    CpuAllowance,
    Sizing,
    cgroup_cpu_quota,
    choose_sizing,
    cpu_allowance,
    cpu_features,
    memory_limit_bytes,
)

GB = 2**30


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2 = {"proc/self/cgroup": "0::/\n"}
NESTED = {"proc/self/cgroup": "0::/system.slice/headway.service\n"}
V1 = {"proc/self/cgroup": "12:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"}
QUOTAS: dict[str, tuple[dict[str, str], float | None]] = {
    "v2": (V2 | {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "v2 without quota": (V2 | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    "v2 at the root of a machine": (V2, None),
    "v2 nested": (NESTED | {"sys/fs/cgroup/system.slice/headway.service/cpu.max": "400000 100000\n"}, 4.0),
    "v2 with the quota above": (
        NESTED
        | {
            "sys/fs/cgroup/system.slice/headway.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "v2 with the smaller quota above": (
        NESTED
        | {
            "sys/fs/cgroup/system.slice/headway.service/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
        },
        3.0,
    ),
    "v2 in a container that sees the host's path": (
        {"proc/self/cgroup": "0::/kubepods/burstable/pod1/abc\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "v2 in a namespace below": (
        {"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2.0,
    ),
    "v1": (
        V1
        | {
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "v1 in a container": (
        V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "v1 without quota": (
        V1 | {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "no cgroups": ({}, None),
    "not Linux's words": (V2 | {"sys/fs/cgroup/cpu.max": "\n"}, None),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_cgroup_cpu_quota(tmp_path: Path, name: str) -> None:
    files, quota = QUOTAS[name]
    assert cgroup_cpu_quota(_write(tmp_path, files)) == quota


LIMITS: dict[str, tuple[dict[str, str], int | None]] = {
    "v2": (V2 | {"sys/fs/cgroup/memory.max": f"{GB}\n"}, GB),
    "v2 without limit": (V2 | {"sys/fs/cgroup/memory.max": "max\n", "proc/meminfo": "MemTotal:  2048 kB\n"}, 2_097_152),
    "v2 with the limit above": (
        NESTED
        | {
            "sys/fs/cgroup/system.slice/headway.service/memory.max": f"{2 * GB}\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{GB}\n",
        },
        GB,
    ),
    "v1": (V1 | {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{GB}\n"}, GB),
    "v1 without limit": (V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    "a limit above the machine's memory": (
        V2 | {"sys/fs/cgroup/memory.max": f"{64 * GB}\n", "proc/meminfo": "MemFree: 1 kB\nMemTotal:       1024 kB\n"},
        1_048_576,
    ),
    "nothing to be read": ({}, None),
}


@pytest.mark.parametrize("name", LIMITS)
def test_memory_limit(tmp_path: Path, name: str) -> None:
    files, limit = LIMITS[name]
    assert memory_limit_bytes(_write(tmp_path, files)) == limit


def test_cpu_allowance_is_the_setting_before_all(tmp_path: Path) -> None:
    root = _write(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "10000 100000\n"})
    assert cpu_allowance(6.5, root) == CpuAllowance(6.5, "HEADWAY_CPUS is 6.5")


def test_cpu_allowance_is_the_quota_where_it_is_smallest(tmp_path: Path) -> None:
    root = _write(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "10000 100000\n"})
    assert cpu_allowance(None, root) == CpuAllowance(0.1, "the CPU quota of the cgroup is 0.1")


def test_cpu_allowance_is_the_affinity_under_a_wide_quota(tmp_path: Path) -> None:
    root = _write(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "100000000 100000\n"})
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        allowance = cpu_allowance(None, root)
    finally:
        os.sched_setaffinity(0, before)
    assert allowance.cpus == 1
    assert "CPU" in allowance.reason


def test_cpu_features(tmp_path: Path) -> None:
    _write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n"})
    assert cpu_features(tmp_path) == {"fpu", "avx2", "avx512_vnni"}
    _write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\n"})
    assert cpu_features(tmp_path) == {"fp", "asimd"}
    assert cpu_features(tmp_path / "nowhere") == frozenset()


# cpus, workers and threads given, bytes of a worker, bytes of memory → workers, threads
SIZINGS = [
    (0.1, None, None, 0, None, 1, 1),
    (1.0, None, None, 0, None, 1, 1),
    (1.49, None, None, 0, None, 1, 1),
    (2.0, None, None, 0, None, 2, 1),
    (3.9, None, None, 0, None, 4, 1),
    (1.5, None, None, 0, None, 2, 1),
    (1.49, None, None, 0, None, 1, 1),
    (64, None, None, 0, None, 64, 1),
    (8, None, 2, 0, None, 4, 2),
    (8, None, 16, 0, None, 1, 16),
    (8, 2, None, 0, None, 2, 4),
    (8, 3, None, 0, None, 3, 2),
    (2, 8, None, 0, None, 8, 1),
    (8, 5, 7, 0, None, 5, 7),
    (8, None, None, GB, 5 * GB, 4, 2),
    (8, None, None, GB, 100 * GB, 8, 1),
    (8, None, None, 10 * GB, GB, 1, 8),
    (8, 6, None, 10 * GB, GB, 6, 1),  # what is given is kept
]


@pytest.mark.parametrize(("cpus", "workers", "threads", "worker", "memory", "want_workers", "want_threads"), SIZINGS)
def test_choose_sizing(
    cpus: float,
    workers: int | None,
    threads: int | None,
    worker: int,
    memory: int | None,
    want_workers: int,
    want_threads: int,
) -> None:
    allowance = CpuAllowance(cpus, "because")
    sizing = choose_sizing(allowance, workers=workers, threads=threads, worker_bytes=worker, memory_bytes=memory)
    assert (sizing.workers, sizing.threads) == (want_workers, want_threads)
    assert sizing.reason.startswith("because")


def test_choose_sizing_gives_its_reasons() -> None:
    allowance = CpuAllowance(8, "8 CPUs")
    assert choose_sizing(allowance) == Sizing(8, 1, "8 CPUs")
    assert choose_sizing(allowance, workers=2, threads=3).reason == "8 CPUs; workers set to 2; threads set to 3"
    by_memory = choose_sizing(allowance, worker_bytes=GB, memory_bytes=5 * GB)
    assert by_memory.reason == "8 CPUs; 80 % of 5120 MB of memory holds 4"
