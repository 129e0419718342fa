"""P(h, s): what was measured on each hardware h with each software stack s, its means, and the fastest stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.optimize.profiling.records import Hardware, Profile, Stack


@dataclass(frozen=True, slots=True)
class Column:
    """A version (name@version) and what runs it."""

    version: str
    stack: Stack

    def __str__(self) -> str:
        return f"{self.version}, {self.stack}"


def _memory_mb(profile: Profile) -> float | None:
    return profile.memory.peak_rss_bytes / 1e6 if profile.memory is not None else None


# Latency is the median of one row and the model alone.
FIGURES: Mapping[str, Callable[[Profile], float | None]] = {
    "latency_ms": lambda profile: profile.run_ms.p50,
    "cpu_ms": lambda profile: profile.run_cpu_ms,
    "rows_per_second": lambda profile: profile.throughput.rows_per_second,
    "top1": lambda profile: profile.accuracy.top1 if profile.accuracy is not None else None,
    "peak_memory_mb": _memory_mb,
}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Profiles of one number of threads. Rows are `hardware`, columns `stacks`; not every cell need be there."""

    threads: int
    hardware: tuple[Hardware, ...]
    stacks: tuple[Column, ...]
    cells: Mapping[tuple[Hardware, Column], Profile]

    def values(self, figure: str) -> list[list[float | None]]:
        """A row for each hardware, a figure for each stack; None where it was not measured."""
        read = FIGURES[figure]
        return [
            [read(self.cells[row, column]) if (row, column) in self.cells else None for column in self.stacks]
            for row in self.hardware
        ]

    def fastest_on(self, hardware: Hardware) -> Column | None:
        """The least latency there; None where fewer than two stacks were measured."""
        times = {c: self.cells[hardware, c].run_ms.p50 for c in self.stacks if (hardware, c) in self.cells}
        return min(times, key=lambda column: times[column]) if len(times) > 1 else None

    @property
    def fastest(self) -> Column | None:
        """The least mean latency over the hardware that all stacks were measured on; None where there is none.

        Over other hardware a stack would win by not being measured on what is slow.
        """
        shared = [row for row in self.hardware if all((row, column) in self.cells for column in self.stacks)]
        if not shared or len(self.stacks) < 2:
            return None
        return min(self.stacks, key=lambda column: sum(self.cells[row, column].run_ms.p50 for row in shared))

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        figures = {}
        for name in FIGURES:
            values = self.values(name)
            figures[name] = {
                "values": values,
                "mean_of_hardware": [mean(row) for row in values],
                "mean_of_stack": [mean(column) for column in zip(*values, strict=True)],
                "mean": mean([value for row in values for value in row]),
            }
        return {
            "threads": self.threads,
            "hardware": [row.model_dump(mode="json") for row in self.hardware],
            "stacks": [{"model": column.version, **column.stack.model_dump()} for column in self.stacks],
            "figures": figures,
            "fastest_on": [_name(self.fastest_on(row)) for row in self.hardware],
            "fastest": _name(self.fastest),
        }


def make_matrix(profiles: Sequence[tuple[str, Profile]], threads: int) -> Matrix:
    """Of (name@version, profile); those with another number of threads are left out."""
    cells = {
        (profile.hardware, Column(version, profile.stack)): profile
        for version, profile in profiles
        if profile.threads == threads
    }
    hardware = dict.fromkeys(row for row, _ in cells)
    stacks = dict.fromkeys(column for _, column in cells)
    return Matrix(threads, tuple(hardware), tuple(stacks), cells)


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _name(column: Column | None) -> str | None:
    return str(column) if column is not None else None
