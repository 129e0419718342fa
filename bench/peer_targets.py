"""The peers as targets: how each is started, with what settings, and why those. Two rows a peer: as its documentation
shows, and with Headway's image processing pasted in (no bar).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import wires
from bench.environments import find_versions, prepare_environment
from bench.targets import Target, plain_fastapi
from bench.workloads import ROOT

PASTED_IN = "Headway's images"


@dataclass(frozen=True, slots=True)
class Peer:
    """`command(python, port)`; `{root}` in `environment` becomes a directory of its own and `{workers}` the cores."""

    name: str
    title: str
    command: Callable[[Path, int], list[str]]
    wires: wires.Wires
    ready_path: str
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict)


def _litserve(python: Path, port: int) -> list[str]:
    return [str(python), "-m", "bench.peers.litserve_server", str(port)]


def _bentoml(python: Path, port: int) -> list[str]:
    service = "bench.peers.bentoml_service:Peer"
    return [str(python.with_name("bentoml")), "serve", service, "--host", "127.0.0.1", "--port", str(port)]


def _mlserver(python: Path, port: int) -> list[str]:
    ports = {"HTTP": port, "GRPC": 0, "METRICS": 0}
    assignments = [f"MLSERVER_{name}_PORT={number}" for name, number in ports.items()]
    return ["env", *assignments, str(python.with_name("mlserver")), "start", "bench/peers/mlserver"]


def _kserve(python: Path, port: int) -> list[str]:
    options = ["--workers", "{workers}", "--enable_grpc", "false", "--enable_latency_logging", "false"]
    logs = ["--log_config_file", "bench/peers/kserve_logging.json"]
    return [str(python), "-m", "bench.peers.kserve_server", "--http_port", str(port), *options, *logs]


def _ray(python: Path, port: int) -> list[str]:
    return [str(python), "-m", "bench.peers.ray_server", str(port)]


PEERS = (
    Peer(
        "litserve",
        "LitServe",
        _litserve,
        wires.LITSERVE,
        "/health",
        "workers_per_device = cores, as advised for a CPU; fast_queue, as advised above 100 requests/s; as many HTTP "
        "servers as workers, its default; no access log. It takes JSON and forms, so no row for a raw body.",
    ),
    Peer(
        "bentoml",
        "BentoML",
        _bentoml,
        wires.BENTOML,
        "/readyz",
        "workers = cores, synchronous APIs on its default of one thread a worker; no access log, no usage tracking. "
        "The raw body is its root input of content type image/jpeg.",
        {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{root}/bentoml"},
    ),
    Peer(
        "mlserver",
        "MLServer",
        _mlserver,
        wires.MLSERVER,
        "/v2/health/ready",
        "parallel_workers = cores, debug (and with it the access log) off; a custom runtime for each model with "
        "decode_args; the Open Inference Protocol as JSON with the photo as base64. No row for a raw body: the "
        "protocol has none. uvloop is pinned to 0.21: with newer ones the workers of 1.7.1 do not start.",
        {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "{workers}",
            "MLSERVER_METRICS_DIR": "{root}/metrics",
            "MLSERVER_ENVIRONMENTS_DIR": "{root}/environments",
        },
    ),
    Peer(
        "kserve",
        "KServe",
        _kserve,
        wires.KSERVE,
        "/v2/health/ready",
        "workers = cores, no gRPC, no log line a request; a custom Model for each model over the V1 protocol, the "
        "photo as b64. No row for a raw body: the protocol has none.",
    ),
    Peer(
        "ray",
        "Ray Serve",
        _ray,
        wires.RAY,
        "/ready",
        "num_replicas = cores with one CPU each, a FastAPI ingress; throughput-optimized mode with HAProxy in front, "
        "as its performance guide says; no dashboard, no usage statistics, files in a directory of its own.",
        {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "{root}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": "{root}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "{root}",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "{root}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "{root}/metrics.sock",
            "RAY_TMPDIR": "{root}/ray",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
)


def peer_targets(models: Path, workers: int) -> list[Target]:
    """Two targets for each peer and the second of plain FastAPI; makes the environments that are missing."""
    targets = [_pasted_in(plain_fastapi(models, workers))]
    for peer in PEERS:
        python = prepare_environment(peer.name)
        versions = find_versions(python)
        plain = _target(peer, python, versions, models, workers)
        targets += [plain, _pasted_in(plain)]
    return targets


def _target(peer: Peer, python: Path, versions: Mapping[str, str], models: Path, workers: int) -> Target:
    own = models / f".{peer.name}"
    for part in ("metrics", "environments", "ray", "bentoml"):
        (own / part).mkdir(parents=True, exist_ok=True)
    shared = {"BENCH_MODELS": str(models), "BENCH_WORKERS": str(workers), "PYTHONPATH": str(ROOT)}
    fill = functools.partial(_fill, root=own, workers=workers)
    environment = {name: fill(value) for name, value in peer.environment.items()}
    return Target(
        peer.title,
        lambda port: [fill(argument) for argument in peer.command(python, port)],
        shared | environment,
        ready_path=peer.ready_path,
        wires=peer.wires,
        settings=f"{peer.title} {versions[peer.name]}: {peer.settings}",
        versions=versions,
    )


def _fill(text: str, root: Path, workers: int) -> str:
    return text.replace("{root}", str(root)).replace("{workers}", str(workers))


def _pasted_in(target: Target) -> Target:
    """Only photos are processed, so that the others would be the same row again."""
    photos = {key: wire for key, wire in (target.wires or {}).items() if key != "c"}
    environment = {**target.environment, "BENCH_PIXELS": "headway"}
    return replace(target, name=f"{target.name}, {PASTED_IN}", environment=environment, wires=photos, settings="")
