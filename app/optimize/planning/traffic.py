"""Requests a second over time: a day as it might be, or what a file says."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from app.errors import InvalidContent
from app.tensors import Array

STEP_SECONDS = 15
DAY_SECONDS = 86_400
_STEPS = DAY_SECONDS // STEP_SECONDS
_TROUGH_HOUR, _SWING, _NOISE, _MEMORY = 3, 0.7, 0.04, 0.9
OVERLOAD_HOUR, OVERLOAD_MINUTES, OVERLOAD_FACTOR = 7, 20, 10
_MOST_BYTES, _MOST_DAYS, _MOST_PER_SECOND = 50_000_000, 8, 1e7


@dataclass(frozen=True, slots=True)
class Traffic:
    """`per_second` is the mean of each step of 15 s; `start_seconds` the time of day of the first."""

    per_second: Array
    start_seconds: float = 0.0


def make_day(mean_per_second: float, *, overload: float = OVERLOAD_FACTOR, seed: int = 0) -> Traffic:
    """From midnight: least at 03:00, most at 15:00, noise that lasts for minutes, and 20 minutes from 07:00 on with
    `overload` times as many requests."""
    times = np.arange(_STEPS) * STEP_SECONDS
    wave = 1 - _SWING * np.cos(2 * math.pi * (times / 3600 - _TROUGH_HOUR) / 24)
    draws = np.random.default_rng(seed).normal(0, _NOISE, _STEPS)
    noise = np.zeros(_STEPS)
    for step in range(1, _STEPS):
        noise[step] = _MEMORY * noise[step - 1] + math.sqrt(1 - _MEMORY**2) * draws[step]
    begin = OVERLOAD_HOUR * 3600
    during = (times >= begin) & (times < begin + OVERLOAD_MINUTES * 60)
    return Traffic(np.asarray(mean_per_second * wave * np.exp(noise) * np.where(during, overload, 1.0)))


def read_traffic(path: Path) -> Traffic:
    """A CSV file of two columns: seconds or ISO times that rise, and requests per second, which hold until the next
    row. Its first line may be a header. Raises InvalidContent with the line."""
    rows = _read_rows(path)
    if len(rows) < 2:
        raise InvalidContent(f"{path}: has {len(rows)} rows of traffic; write two or more, as 0,120.5")
    seconds, rates = (np.array(column) for column in zip(*rows, strict=True))
    length = seconds[-1] - seconds[0] + float(np.median(np.diff(seconds)))
    steps = math.ceil(length / STEP_SECONDS - 1e-9)
    if length > _MOST_DAYS * DAY_SECONDS:
        raise InvalidContent(f"{path}: is {length / DAY_SECONDS:.0f} days long; a replay takes at most {_MOST_DAYS}")
    ends = np.append(seconds, seconds[0] + length)
    sums = np.concatenate([[0.0], np.cumsum(rates * np.diff(ends))])
    edges = np.minimum(seconds[0] + STEP_SECONDS * np.arange(steps + 1), ends[-1])
    means = np.diff(np.interp(edges, ends, sums)) / np.diff(edges)
    return Traffic(means, float(seconds[0] % DAY_SECONDS))


def _read_rows(path: Path) -> list[tuple[float, float]]:
    """(seconds, requests a second), strictly rising in time."""
    rows: list[tuple[float, float]] = []
    is_iso: bool | None = None
    for number, row in enumerate(_read_lines(path), start=1):
        if not any(cell.strip() for cell in row) or (not rows and number == 1 and _is_header(row)):
            continue
        try:
            time, iso = _parse_row(row)
        except ValueError as exc:
            raise InvalidContent(f"{path}, line {number}: {exc}") from exc
        if is_iso is not None and iso != is_iso:
            raise InvalidContent(f"{path}, line {number}: seconds and ISO times are mixed; write one kind")
        if rows and time[0] <= rows[-1][0]:
            raise InvalidContent(f"{path}, line {number}: the time is not after that of the row before; sort the rows")
        is_iso = iso
        rows.append(time)
    return rows


def _read_lines(path: Path) -> list[list[str]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidContent(f"{path}: is larger than {_MOST_BYTES // 10**6} MB; write a row a minute")
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.reader(file))
    except OSError as exc:
        raise InvalidContent(f"{path}: cannot be read ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidContent(f"{path}: is not a CSV file ({exc})") from exc


def _is_header(row: list[str]) -> bool:
    return not any(character.isdigit() for cell in row for character in cell)


def _parse_row(row: list[str]) -> tuple[tuple[float, float], bool]:
    """((seconds, requests a second), whether the time is ISO). Raises ValueError."""
    if len(row) != 2:
        raise ValueError(f"has {len(row)} columns; write a time and requests per second, as 0,120.5")
    text, rate_text = row[0].strip(), row[1].strip()
    try:
        seconds, is_iso = float(text), False
    except ValueError:
        seconds, is_iso = _parse_iso(text), True
    try:
        rate = float(rate_text)
    except ValueError as exc:
        raise ValueError(f"{rate_text!r} is no number of requests per second") from exc
    if not (math.isfinite(seconds) and abs(seconds) < 1e12):
        raise ValueError(f"{text!r} is no time in seconds")
    if not 0 <= rate <= _MOST_PER_SECOND:
        raise ValueError(f"{rate_text!r} requests per second; it must be from 0 to {_MOST_PER_SECOND:.0f}")
    return (seconds, rate), is_iso


def _parse_iso(text: str) -> float:
    """Without an offset it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is neither seconds nor an ISO time, as 2026-11-21T07:00:00") from exc
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
