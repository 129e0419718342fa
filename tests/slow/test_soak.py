"""200,000 requests: what a worker holds once it is warm, it holds at the end. Run by `make verify`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from bench.generator import Generator
from bench.workloads import Workload, workloads, write_registry
from tests.running import CAT, RunningServer, rss_bytes, running_server

pytestmark = pytest.mark.slow

ROW_REQUESTS = 180_000
PHOTO_REQUESTS = 20_000
PHOTO_SIZES = 50
CONNECTIONS = 16
PARTS = 10
MOST_GROWTH = 1.05


def photos_of_all_sizes() -> list[bytes]:
    """JPEGs from 200 × 150 to 1,670 × 1,252, no two of one size."""
    cat = Image.open(CAT)
    found = []
    for width in range(200, 200 + 30 * PHOTO_SIZES, 30):
        buffer = io.BytesIO()
        cat.resize((width, width * 3 // 4)).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def test_memory_is_flat_over_200_000_requests(tmp_path: Path) -> None:
    """The tiny model's rows, then photos of 50 sizes; of each kind the first tenth is the warm-up."""
    generator, cases = Generator(tmp_path), workloads()
    models = tmp_path / "models"
    models.mkdir()
    write_registry(models)
    with running_server(tmp_path / "log", workers=2, HEADWAY_MODELS=str(models)) as server:
        workers = server.worker_pids()
        soak(server, generator, cases["c"], [cases["c"].body], ROW_REQUESTS)
        soak(server, generator, cases["b"], photos_of_all_sizes(), PHOTO_REQUESTS)
        assert server.worker_pids() == workers


def soak(server: RunningServer, generator: Generator, case: Workload, bodies: list[bytes], requests: int) -> None:
    """Send the requests in ten parts, and hold each worker's memory after the later ones against the first."""
    warm: dict[int, int] = {}
    for part in range(PARTS):
        traffic = generator.closed_loop(
            server.url + case.path,
            bodies,
            {"content-type": case.content_type},
            requests=requests // PARTS,
            connections=CONNECTIONS,
        )
        assert traffic.count(200) == requests // PARTS
        sizes = {pid: rss_bytes(pid) for pid in server.worker_pids()}
        warm = warm or sizes
        ratios = {pid: size / warm[pid] for pid, size in sizes.items()}
        words = ", ".join(f"{sizes[pid] / 1e6:.1f} MB ({ratio:.3f} ×)" for pid, ratio in ratios.items())
        print(f"{case.title}: after {requests // PARTS * (part + 1):,} requests the workers hold {words}")
        assert max(ratios.values()) <= MOST_GROWTH
