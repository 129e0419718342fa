"""What commands share that make versions: the place that they work in."""

from __future__ import annotations

import tempfile

import pytest

from app.cli.derive import temporary_directory
from app.errors import Conflict


def test_temporary_directory_goes_also_when_the_disk_is_full() -> None:
    with pytest.raises(Conflict) as caught, temporary_directory() as folder, open("/dev/full", "wb", 0) as full:
        full.write(b"a model")
    assert str(caught.value).startswith(f"{tempfile.gettempdir()}: has no space left (No space left on device)")
    assert not folder.exists()


def test_temporary_directory_hides_no_other_error() -> None:
    with pytest.raises(FileNotFoundError), temporary_directory() as folder:
        (folder / "gone").read_bytes()
