"""HEADWAY_SECRET and the file of the secret: what is taken, what is refused, and one secret for all processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import FeedbackUnavailable
from app.monitoring.keys import SigningKeys, load_keys
from tests.running import PATIENCE_SECONDS, ROOT, heed_rights

OLD, NEW = "an old secret of 24 byte", "a new secret of 24 bytes"
LOAD = """
import sys
from pathlib import Path
from app.monitoring.keys import load_keys
print("ready", flush=True)
for line in sys.stdin:
    print(load_keys((), Path(line.rstrip("\\n"))).signer.secret.decode(), flush=True)
"""


def test_first_key_signs_and_all_verify() -> None:
    keys = SigningKeys.parse([f"7:{NEW}", f"0:{OLD}", f"255:{NEW}:verify-only"])
    assert (keys.signer.id, keys.signer.secret) == (7, NEW.encode())
    for key_id, secret in ((7, NEW), (0, OLD), (255, NEW)):
        key = keys.find(key_id)
        assert key is not None
        assert key.secret == secret.encode()
    assert keys.find(1) is None


def test_key_that_verifies_only_does_not_sign_even_if_it_is_first() -> None:
    assert SigningKeys.parse([f"2:{NEW}:verify-only", f"1:{OLD}"]).signer.id == 1


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "no key signs"),
        ([f"1:{OLD}:verify-only"], "no key signs"),
        ([f"1:{OLD}", f"1:{NEW}"], "two keys have the same id"),
        ([f"1:{OLD}", f"01:{NEW}:verify-only"], "two keys have the same id"),
        ([OLD], "entry 1: write ID:SECRET"),
        ([f"1:{OLD}", f"2:{NEW}:verify-only:"], "entry 2: write ID:SECRET"),
        ([f"256:{OLD}"], "entry 1: the id"),
        ([f"-1:{OLD}"], "entry 1: the id"),
        ([f":{OLD}"], "entry 1: the id"),
        ([f"a:{OLD}"], "entry 1: the id"),
        ([f"²:{OLD}"], "entry 1: the id"),
        ([f"1:{OLD}", f"2:{NEW}:verify_only"], "entry 2: after the secret only :verify-only"),
        ([f"1:{OLD}:"], "entry 1: after the secret only :verify-only"),
        (["1:"], "entry 1: the secret has 0 bytes"),
        (["1:123456789012345"], "entry 1: the secret has 15 bytes; it must have 16"),
    ],
)
def test_wrong_setting_is_named_and_never_shown(tmp_path: Path, entries: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        SigningKeys.parse(entries)
    assert OLD not in str(caught.value)
    assert NEW not in str(caught.value)
    if entries:
        with pytest.raises(FeedbackUnavailable, match=f"HEADWAY_SECRET: {words}"):
            load_keys(entries, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_secret_counts_in_bytes() -> None:
    assert SigningKeys.parse(["1:éééééééé"]).signer.secret == "éééééééé".encode()


def test_keys_do_not_show_secrets() -> None:
    assert OLD not in repr(SigningKeys.parse([f"1:{OLD}"]).signer)


def test_setting_leaves_the_file_alone(tmp_path: Path) -> None:
    assert load_keys([f"3:{NEW}"], tmp_path).signer.id == 3
    assert list(tmp_path.iterdir()) == []


def test_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "data"
    made = load_keys((), directory)
    assert len(made.signer.secret) == 64
    assert [path.name for path in directory.iterdir()] == ["secret"]
    assert (directory / "secret").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    assert load_keys((), directory).signer == made.signer
    assert load_keys((), tmp_path / "other").signer != made.signer


def test_made_file_is_a_setting(tmp_path: Path) -> None:
    made = load_keys((), tmp_path)
    taken_along = load_keys([f"1:{NEW}", (tmp_path / "secret").read_text().strip()], tmp_path / "none")
    assert taken_along.find(made.signer.id) == made.signer


def test_file_may_hold_several_keys(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"2:{NEW}:verify-only\r\n\n1:{OLD}\n")
    keys = load_keys((), tmp_path)
    assert keys.signer.id == 1
    assert keys.find(2) is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty or cut short"),
        (b"0:0123456789abcdef0123456789", "empty or cut short"),
        (b"\n", "no key signs"),
        (b"\x00\xff\xfe\n", "not text"),
        (b"9f86d081" * 8 + b"\n", "entry 1: write ID:SECRET"),
        (b"0:short\n", "entry 1: the secret has 5 bytes"),
        (b"0:0123456789abcdef0\n" * 10_000, "more than 65536 bytes"),
    ],
)
def test_damaged_file_says_what_to_do_and_stays(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(FeedbackUnavailable, match=words) as caught:
        load_keys((), tmp_path)
    assert str(path) in str(caught.value)
    assert "bring it back from a backup" in str(caught.value)
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")
    with pytest.raises(FeedbackUnavailable, match="it is not a file"):
        load_keys((), tmp_path)


@pytest.mark.parametrize("below", ["file", "file/data", "secret-is-a-dead-link"])
def test_file_that_cannot_be_made_names_the_settings(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "secret-is-a-dead-link").mkdir()
    (tmp_path / "secret-is-a-dead-link" / "secret").symlink_to("nowhere")
    with pytest.raises(FeedbackUnavailable, match="can be neither read nor made") as caught:
        load_keys((), tmp_path / below)
    assert "HEADWAY_SECRET" in str(caught.value)
    assert "HEADWAY_DATA_DIR" in str(caught.value)


def test_directory_that_is_read_only_serves_the_secret_it_has(tmp_path: Path) -> None:
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    secret = load_keys((), tmp_path / "full").signer.secret.decode()
    for name in ("full", "empty"):
        (tmp_path / name).chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        input=f"{tmp_path / 'full'}\n{tmp_path / 'empty'}\n",
        cwd=ROOT,
        preexec_fn=heed_rights,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.stdout.split() == ["ready", secret]
    assert "FeedbackUnavailable" in done.stderr
    assert "Permission denied" in done.stderr


def test_processes_that_race_end_with_one_secret(tmp_path: Path) -> None:
    """Four wait for the name of a directory, and get it at one moment; twenty times."""
    command = [sys.executable, "-c", LOAD]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    try:
        assert [_read(process) for process in processes] == ["ready"] * 4
        for number in range(20):
            directory = tmp_path / str(number)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{directory}\n")
                process.stdin.flush()
            found = {_read(process) for process in processes}
            assert found == {load_keys((), directory).signer.secret.decode()}
            assert [path.name for path in directory.iterdir()] == ["secret"]
    finally:
        for process in processes:
            process.communicate()


def _read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_what_a_killed_process_left_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".secret-half").write_text("0:0123")
    assert load_keys((), tmp_path).signer == load_keys((), tmp_path).signer
