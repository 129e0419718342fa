"""scripts/deploy.sh and rollout-restart.sh, a script in kubectl's place, and a real server where port-forward leads.

There is no cluster here: what a real one answers is not shown by this, but which commands are given, and when.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.rendering import find_kubectl, find_objects
from tests.running import ROOT, RunningServer

pytestmark = pytest.mark.xdist_group("deploy")  # none may leave a directory behind, and each looks for that


@pytest.fixture
def fake(tmp_path: Path, server: RunningServer) -> Path:
    """The directory from which the script in kubectl's place answers."""
    (tmp_path / "kubectl").symlink_to(ROOT / "tests/k8s/fake_kubectl.sh")
    (tmp_path / "address").write_text(server.url.removeprefix("http://"))
    for name in ("headway", "headway-nginx"):
        (tmp_path / f"revision-{name}").write_text("7\n")
    return tmp_path


def _run(fake: Path, script: str, *arguments: str, **more: str) -> tuple[int, str]:
    env = {
        **os.environ,
        "PATH": f"{fake}:{os.environ['PATH']}",
        "FAKE": str(fake),
        "REAL_KUBECTL": find_kubectl(),
        **more,
    }
    done = subprocess.run(
        [ROOT / "scripts" / script, *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
    )
    assert not list(ROOT.glob(".deploy-*"))
    return done.returncode, done.stdout


def _calls(fake: Path) -> list[str]:
    return (fake / "calls").read_text().splitlines()


def test_deploy_applies_waits_and_tries_a_photo(fake: Path) -> None:
    status, said = _run(fake, "deploy.sh", "--image", "registry.example.com:5000/team/headway:1.2.3")
    assert status == 0, said
    assert "tiger cat" in said
    assert said.endswith("Deployed to the namespace headway.\n")
    verbs = [" ".join(word for word in call.split() if word not in ("-n", "headway"))[:24] for call in _calls(fake)]
    assert [verb.split()[0] for verb in verbs] == [
        "kustomize",
        "get",
        "get",
        "apply",
        "rollout",
        "rollout",
        "port-forward",
    ]
    applied = list(yaml.safe_load_all((fake / "applied.yaml").read_text()))
    (deployment,) = find_objects(applied, "Deployment", "headway")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com:5000/team/headway:1.2.3"


def test_deploy_of_an_overlay_to_another_namespace(fake: Path) -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    image = f"registry.example.com/headway@{digest}"
    status, said = _run(fake, "deploy.sh", "--overlay", "production", "--image", image, "--namespace", "other")
    assert status == 0, said
    applied = list(yaml.safe_load_all((fake / "applied.yaml").read_text()))
    assert {it["metadata"].get("namespace", it["metadata"]["name"]) for it in applied} == {"other"}
    assert all(call.startswith(("-n other ", "kustomize ", "apply ")) for call in _calls(fake))
    (deployment,) = find_objects(applied, "Deployment", "headway")
    pod = deployment["spec"]["template"]["spec"]
    assert {it["image"] for it in pod["containers"] + pod["initContainers"]} == {image}


def test_deploy_of_a_directory_elsewhere(fake: Path) -> None:
    mine = fake / "mine"
    mine.mkdir()
    up = os.path.relpath(ROOT / "k8s", mine)
    (mine / "kustomization.yaml").write_text(f"resources: [{up}]\n")
    status, said = _run(fake, "deploy.sh", "--overlay", str(mine))
    assert status == 0, said


def test_pods_that_do_not_get_ready_are_undone(fake: Path) -> None:
    (fake / "not-ready").write_text("headway-nginx\n")
    status, said = _run(fake, "deploy.sh", "--timeout", "3s")
    assert status == 1
    assert "headway-nginx is not ready after 3s; what ran before comes back" in said
    undone = [call for call in _calls(fake) if "rollout undo" in call]
    assert undone == [
        "-n headway rollout undo deployment/headway --to-revision=7",
        "-n headway rollout undo deployment/headway-nginx --to-revision=7",
    ]
    assert "headway: as in revision 7 again" in said
    assert not any("port-forward" in call for call in _calls(fake))


def test_photo_that_is_not_classified_undoes(fake: Path) -> None:
    (fake / "unchanged").write_text("headway-nginx\n")
    (fake / "photo.jpg").write_text("no photo")
    status, said = _run(fake, "deploy.sh", "--photo", str(fake / "photo.jpg"))
    assert status == 1
    assert "a photo was not classified" in said
    assert "headway-nginx: revision 7, which this run did not change" in said
    assert [call for call in _calls(fake) if "rollout undo" in call] == [
        "-n headway rollout undo deployment/headway --to-revision=7"
    ]


def test_first_deployment_has_nothing_to_go_back_to(fake: Path) -> None:
    for name in ("headway", "headway-nginx"):
        (fake / f"revision-{name}").unlink()
    (fake / "not-ready").write_text("headway\n")
    status, said = _run(fake, "deploy.sh")
    assert status == 1
    assert said.count("this was its first revision; there is none to bring back") == 2
    assert not any("undo" in call for call in _calls(fake))


def test_undo_that_fails_is_told(fake: Path) -> None:
    (fake / "not-ready").write_text("headway\n")
    (fake / "refuses-undo").write_text("no such revision\n")
    status, said = _run(fake, "deploy.sh")
    assert status == 1
    assert "headway: revision 7 could not be brought back" in said


def test_service_that_cannot_be_reached(fake: Path) -> None:
    (fake / "refuses").write_text("port-forward\n")
    status, said = _run(fake, "deploy.sh")
    assert status == 1
    assert "the server refused: port-forward" in said
    assert "the Service cannot be reached by port-forward" in said


@pytest.mark.parametrize(
    ("arguments", "refuses", "message"),
    [
        (("--overlay", "mars"), "", "there is no overlay mars"),
        (("--image", "registry.example.com:5000/headway"), "", "--image needs a tag or a digest"),
        (("--image",), "", "--image needs a value"),
        (("--photo", "/nowhere.jpg"), "", "there is no photo /nowhere.jpg"),
        (("--fast",), "", "unknown option --fast"),
        ((), "get", "the cluster cannot be asked; nothing was changed"),
        ((), "kustomize", "the manifests cannot be rendered; nothing was changed"),
    ],
)
def test_refused_before_anything_is_changed(fake: Path, arguments: tuple[str, ...], refuses: str, message: str) -> None:
    (fake / "refuses").write_text(f"{refuses}\n")
    (fake / "calls").touch()
    status, said = _run(fake, "deploy.sh", *arguments)
    assert status == (1 if refuses else 2)
    assert message in said
    assert not any("apply" in call for call in _calls(fake))


def test_restart(fake: Path) -> None:
    status, said = _run(fake, "rollout-restart.sh", "--namespace", "other")
    assert status == 0, said
    assert _calls(fake) == [
        "-n other rollout restart deployment/headway",
        "-n other rollout status deployment/headway --timeout=10m",
    ]
    (fake / "not-ready").write_text("headway-nginx\n")
    status, said = _run(fake, "rollout-restart.sh", "headway-nginx")
    assert status == 1
    assert "kubectl -n headway rollout undo deployment/headway-nginx" in said
    assert _run(fake, "rollout-restart.sh", "--fast")[0] == 2
    (fake / "refuses").write_text("rollout\n")
    assert _run(fake, "rollout-restart.sh")[0] == 1


@pytest.mark.parametrize("script", ["deploy.sh", "rollout-restart.sh"])
def test_help(fake: Path, script: str) -> None:
    status, said = _run(fake, script, "--help")
    assert status == 0
    assert said.startswith(f"{script} [")
    assert "Exits 1" in said or "exits 1" in said
