"""Versions come in and leave by the management API, over real workers."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import ENVIRONMENT, change, code, open_admin
from tests.fixtures_models import GOLDEN, write_model
from tests.running import PATIENCE_SECONDS, RunningServer, running_server


def archive(directory: Path, kind: str) -> bytes:
    buffer = io.BytesIO()
    files = [path for path in directory.rglob("*") if path.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(directory.parent))
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "gzip" else "w") as packed:
            for path in files:
                packed.add(path, path.relative_to(directory.parent))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        ("tar", "application/x-tar"),
        ("gzip", "application/gzip"),
        ("zip", "application/zip"),
        ("gzip", "application/octet-stream"),
    ],
)
def test_upload_and_release_in_one_call(
    admin: httpx.Client, managed: RunningServer, tmp_path: Path, kind: str, content_type: str
) -> None:
    name = f"up-{kind}-{content_type.rpartition('/')[2]}"
    directory = write_model(tmp_path, name, "1.0.0", **GOLDEN)
    answer = admin.post(
        "/update",
        content=archive(directory, kind),
        headers={"content-type": content_type},
        params={"alias": "stable", "why": "new", "wait_seconds": PATIENCE_SECONDS},
    )
    assert answer.status_code == 201, answer.text
    added = answer.json()
    release = added.pop("release")
    assert added == {"model": name, "version": "1.0.0", "is_new": True, "is_verified": True}
    assert release["release"]["aliases"] == {"stable": {"version": "1.0.0"}}
    assert release["has_converged"]
    body = {"model": name, "inputs": [[0, 0, 1]]}
    assert httpx.post(f"{managed.url}/predict", json=body, timeout=PATIENCE_SECONDS).status_code == 200


def test_upload_as_a_form(admin: httpx.Client, tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m", "4.0.0", **GOLDEN)
    data = archive(directory, "gzip")
    for expected in (201, 200):
        files = {"file": ("m.tar.gz", data)}
        answer = admin.post("/update", data={"alias": "canary", "weight": "2.5"}, files=files)
        assert answer.status_code == expected, answer.text
    assert answer.json()["release"]["release"]["aliases"]["canary"] == {"version": "4.0.0", "weight": 2.5}
    broken = admin.post("/update", files={"data": ("m.tar.gz", data)})
    assert code(broken) == (422, "malformed_request")


def test_version_that_differs_is_refused(admin: httpx.Client, tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m", "1.0.0", licence="MIT")
    headers = {"content-type": "application/x-tar"}
    assert code(admin.post("/update", content=archive(directory, "tar"), headers=headers)) == (409, "version_exists")


def test_version_without_golden_requests_is_not_promoted(admin: httpx.Client, tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m", "5.0.0")
    body = {"path": str(directory), "alias": "stable"}
    assert code(admin.post("/update", json=body)) == (409, "version_unverified")
    answer = admin.post("/update", json=body | {"unverified": True})
    assert answer.status_code == 200  # it was added the first time
    assert not answer.json()["is_verified"]
    assert answer.json()["release"]["release"]["aliases"] == {"stable": {"version": "5.0.0"}}


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b"no archive", "application/x-tar", (400, "bad_archive")),
        (b"\x1f\x8b broken", "application/gzip", (400, "bad_archive")),
        (b"PK broken", "application/zip", (400, "bad_archive")),
        (b"x", "text/plain", (415, "unsupported_media_type")),
        (b'{"path": "/nowhere"}', "application/json", (400, "bad_archive")),
        (b'{"paht": "/nowhere"}', "application/json", (422, "malformed_request")),
        (b"{", "application/json", (422, "malformed_request")),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", (422, "malformed_request")),
        (b"--x", "multipart/form-data", (422, "malformed_request")),
    ],
)
def test_broken_upload_leaves_nothing(
    admin: httpx.Client, managed_root: Path, content: bytes, content_type: str, expected: tuple[int, str]
) -> None:
    answer = admin.post("/update", content=content, headers={"content-type": content_type})
    assert code(answer) == expected, answer.text
    assert not list(managed_root.glob(".staging-*"))


def test_upload_that_is_too_large_is_cut_off(managed_root: Path, tmp_path: Path) -> None:
    environment = {"HEADWAY_MODELS": str(managed_root), "HEADWAY_MAX_UPLOAD_BYTES": "100000", **ENVIRONMENT}

    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield bytes(10_000)

    with running_server(tmp_path / "log", workers=1, **environment) as server, open_admin(server) as client:
        headers = {"content-type": "application/x-tar"}
        assert code(client.post("/update", content=endless(), headers=headers)) == (413, "archive_too_large")
    assert not list(managed_root.glob(".staging-*"))


def test_remove_and_undelete(admin: httpx.Client, managed_root: Path) -> None:
    write_model(managed_root, "m", "6.0.0", **GOLDEN)
    change(admin, "canary", version="6.0.0", weight=0)
    in_use = admin.delete("/models/m/versions/6.0.0")
    assert code(in_use) == (409, "version_in_use")
    assert "canary" in in_use.json()["error"]
    change(admin, "drop", name="canary")
    assert admin.delete("/models/m/versions/6.0.0").json() == {"model": "m", "version": "6.0.0", "state": "in_bin"}
    assert not (managed_root / "m/6.0.0").exists()
    assert code(admin.delete("/models/m/versions/6.0.0")) == (404, "version_not_found")
    assert code(change(admin, "canary", version="6.0.0", weight=0)) == (404, "version_not_found")
    assert admin.post("/models/m/versions/6.0.0/undelete").json()["state"] == "on_disk"
    assert (managed_root / "m/6.0.0/model.yaml").exists()
    assert code(admin.delete("/models/%2e%2e/versions/1.0.0")) == (404, "version_not_found")
    assert code(admin.delete("/models/m/versions/release.yaml")) == (404, "version_not_found")
