"""What was measured of a version, on which hardware with which software: profiles.json in its directory.

The file is not listed in model.yaml: a measurement of a version is not the version, which never changes.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import Conflict, RegistryError
from app.registry.releases.release_file import FileCalls, replace_release
from app.registry.store import Store
from app.registry.storing.locking import changing, describe_write_error

PROFILES = "profiles.json"
RuntimeName = Literal["onnx", "tflite", "openvino"]
RUNTIME_TITLES: dict[RuntimeName, str] = {"onnx": "ONNX Runtime", "tflite": "LiteRT", "openvino": "OpenVINO"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hardware(_Section):
    """`cpus`: how many this process may use, a fraction under a quota."""

    cpu: str
    architecture: str
    cpu_features: tuple[str, ...]
    cpus: float = Field(gt=0)

    def __str__(self) -> str:
        kernels = f" {self.cpu_features[-1]}" if self.cpu_features else ""
        return f"{self.cpu} ({self.architecture}{kernels}, {self.cpus:g} CPU{'s' if self.cpus != 1 else ''})"


class Stack(_Section):
    """A runtime and its version."""

    runtime: RuntimeName
    version: str

    def __str__(self) -> str:
        return f"{RUNTIME_TITLES[self.runtime]} {self.version}"


class Percentiles(_Section):
    """In ms."""

    p50: float = Field(ge=0)
    p95: float = Field(ge=0)
    p99: float = Field(ge=0)


class Throughput(_Section):
    """Of the model alone, in runs of `batch_size` rows."""

    rows_per_second: float = Field(ge=0)
    batch_size: int = Field(ge=1)


class Accuracy(_Section):
    """`is_measured`: by this profile; else it is what the version's own evaluation says."""

    top1: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    data: str
    is_measured: bool


class MemoryUse(_Section):
    """What loading the version and its trial runs add to a process of its own: at the end, and at the highest."""

    rss_bytes: int
    peak_rss_bytes: int


class Profile(_Section):
    """`inputs` names what was timed. `run_ms` is of one row and the model alone, `whole_ms` from what a caller sends to
    its answer; `run_cpu_ms` is the CPU time of all threads of the former, which other work on the machine changes less.
    `golden` says how the stack's answers to the golden requests differ, "" where they are as recorded, None
    where there are none. `flops` is twice the multiply-adds of a row. `unknown` says why a figure is None.
    """

    hardware: Hardware
    stack: Stack
    threads: int = Field(ge=1)
    date: datetime.date
    libraries: dict[str, str]
    inputs: str
    run_ms: Percentiles
    run_cpu_ms: float = Field(ge=0)
    whole_ms: Percentiles
    throughput: Throughput
    accuracy: Accuracy | None
    memory: MemoryUse | None
    flops: int | None = Field(ge=0)
    parameters: int | None = Field(ge=0)
    golden: str | None
    unknown: dict[str, str] = {}

    @property
    def key(self) -> tuple[Hardware, Stack, int]:
        """Of two with one key the newer replaces the older."""
        return self.hardware, self.stack, self.threads


class _File(_Section):
    schema_: Literal[1] = Field(alias="schema")
    profiles: tuple[Profile, ...]


def read_profiles(directory: Path) -> tuple[Profile, ...]:
    """What is kept in a version's directory. Raises RegistryError for a file that cannot be read."""
    path = directory / PROFILES
    try:
        return _File.model_validate_json(path.read_bytes()).profiles
    except FileNotFoundError:
        return ()
    except OSError as exc:
        raise RegistryError(f"{path}: cannot be read ({exc.strerror})") from exc
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RegistryError(
            f"{path}: holds no profiles that this Headway can read ({where}{': ' if where else ''}{problem['msg']}); "
            "remove it, and measure again"
        ) from exc


def keep_profiles(store: Store, name: str, version: str, new: Sequence[Profile]) -> None:
    """Add `new` to what is kept, whole or not at all; processes that do so at once lose nothing.

    Raises RegistryReadOnly, RegistryFull, RegistryBusy, Conflict where the version has left, RegistryError.
    """
    directory = store.root / name / version
    with changing(store.release_path(name).parent):
        kept = {profile.key: profile for profile in (*read_profiles(directory), *new)}
        ordered = sorted(
            kept.values(), key=lambda profile: (str(profile.hardware), str(profile.stack), profile.threads)
        )
        content = {"schema": 1, "profiles": [profile.model_dump(mode="json") for profile in ordered]}
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        try:
            replace_release(directory / PROFILES, text.encode(), FileCalls())
        except FileNotFoundError as exc:
            raise Conflict(f"{name}@{version} was removed in this moment; nothing was kept") from exc
        except OSError as exc:
            refusal = describe_write_error(directory, exc)
            raise refusal or RegistryError(f"{directory / PROFILES}: cannot be written ({exc.strerror})") from exc
