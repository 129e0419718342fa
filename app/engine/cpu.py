"""How much CPU and memory this process may use, and how many workers and threads follow from it.

Never from the host's core count alone: a container with a quota of 2 on a host of 64 gets 2.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 for "no limit"


@dataclass(frozen=True, slots=True)
class CpuAllowance:
    """`cpus` may be a fraction; `reason` says where it comes from, for people."""

    cpus: float
    reason: str


@dataclass(frozen=True, slots=True)
class Sizing:
    """Worker processes, inference threads in each, and why."""

    workers: int
    threads: int
    reason: str


def cpu_allowance(setting: float | None = None, root: Path = Path("/")) -> CpuAllowance:
    """`setting`, else the smallest of the cgroup's CPU quota (v1 or v2), the CPU affinity and the host."""
    if setting is not None:
        return CpuAllowance(setting, f"HEADWAY_CPUS is {setting:g}")
    host = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else host
    candidates = [(float(affinity), f"{affinity} of {host} CPUs may be used" if affinity < host else f"{host} CPUs")]
    quota = cgroup_cpu_quota(root)
    if quota is not None:
        candidates.append((quota, f"the CPU quota of the cgroup is {quota:g}"))
    return CpuAllowance(*min(candidates, key=lambda candidate: candidate[0]))


def cgroup_cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup's quota allows, the smallest on the way up; None where there is no quota."""
    quotas = []
    for directory in _cgroup_directories(root, "cpu"):
        v2 = _words(directory / "cpu.max")
        if len(v2) == 2 and v2[0] != "max":
            quotas.append(int(v2[0]) / int(v2[1]))
        quota, period = _number(directory / "cpu.cfs_quota_us"), _number(directory / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The cgroup's memory limit, else the machine's memory; None where neither can be read."""
    limits = []
    for directory in _cgroup_directories(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(directory / name)
            if limit is not None and limit < _UNLIMITED:
                limits.append(limit)
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 1024)
    return min(limits, default=None)


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """What may still be used: the least of each cgroup's limit without its use, and of the machine's free memory.

    The page cache that can be dropped (`inactive_file`) counts as free. None where nothing can be read.
    """
    free = []
    for directory in _cgroup_directories(root, "memory"):
        for limit_name, use_name in (("memory.max", "memory.current"), _V1_MEMORY):
            limit, use = _number(directory / limit_name), _number(directory / use_name)
            if limit is not None and use is not None and limit < _UNLIMITED:
                free.append(limit - use + _cache_bytes(directory / "memory.stat"))
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free.append(int(line.split()[1]) * 1024)
    return min(free, default=None)


def _cache_bytes(path: Path) -> int:
    for line in _lines(path):
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def cpu_features(root: Path = Path("/")) -> frozenset[str]:
    """The CPU's feature flags as Linux names them (`avx2`, `avx512_vnni`); empty where they cannot be read."""
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def choose_sizing(
    allowance: CpuAllowance,
    *,
    workers: int | None = None,
    threads: int | None = None,
    worker_bytes: int = 0,
    memory_bytes: int | None = None,
) -> Sizing:
    """Workers and threads for an allowance; given numbers are kept.

    One worker a CPU, one thread each; a half counts as a whole, so below 1.5 CPUs one worker. `worker_bytes` is what
    one worker needs: where 80 % of `memory_bytes` does not hold that many, fewer workers with more threads.
    """
    cpus = max(1, math.floor(allowance.cpus + 0.5))
    reason = allowance.reason
    chosen = workers
    if chosen is None:
        chosen = cpus if threads is None else max(1, cpus // threads)
        fitting = int(memory_bytes * 0.8 // worker_bytes) if memory_bytes and worker_bytes else chosen
        if fitting < chosen:
            chosen = max(1, fitting)
            reason += f"; 80 % of {memory_bytes // 2**20 if memory_bytes else 0} MB of memory holds {chosen}"
    else:
        reason += f"; workers set to {chosen}"
    if threads is None:
        threads = max(1, cpus // chosen)
    else:
        reason += f"; threads set to {threads}"
    return Sizing(chosen, threads, reason)


def _cgroup_directories(root: Path, controller: str) -> list[Path]:
    """This process's cgroup and its ancestors, for v2 and for the v1 hierarchy of `controller`."""
    directories: list[Path] = []
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            bases = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            bases = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        relative = Path(path.strip().lstrip("/"))
        for base in bases:
            # Inside a container the path is often the host's: then only the mounted root exists.
            directories += [base / ancestor for ancestor in (relative, *relative.parents)]
    return list(dict.fromkeys(directories))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _number(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None
