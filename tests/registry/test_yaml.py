"""YAML in which every scalar is text, and messages that name the file, the field and the fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from app.errors import RegistryError
from app.registry.yaml import MAX_DEPTH, MAX_FILE_BYTES, read_yaml


class Anything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Cat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["cat"]
    whiskers: int = Field(ge=0)


class Dog(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["dog"]


class Zoo(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    size: int = 1
    animals: tuple[Cat, ...] = ()
    star: Cat | Dog | None = Field(default=None, discriminator="type")


def _read(path: Path, text: str | bytes) -> Any:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_yaml(path, Anything).model_extra


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.yaml"


@pytest.mark.parametrize(
    "scalar",
    [
        "1.10",
        "no",
        "on",
        "off",
        "yes",
        "True",
        "2026-11-21",
        "2026-11-21T10:00:00Z",
        "0x1f",
        "010",
        "1_000",
        "1e3",
        ".inf",
        ".nan",
        "12:30:45",
        "<<",
        "=",
    ],
)
def test_scalars_stay_text(path: Path, scalar: str) -> None:
    assert _read(path, f"key: {scalar}\n{scalar}: value\n") == {"key": scalar, scalar: "value"}


def test_null_is_none_unless_quoted(path: Path) -> None:
    assert _read(path, "a: ~\nb: null\nc:\nd: 'null'\ne: \"\"\n") == {
        "a": None,
        "b": None,
        "c": None,
        "d": "null",
        "e": "",
    }


def test_nested_structures(path: Path) -> None:
    text = "a:\n  - {b: 1, c: [x, y]}\n  - - z\nd: |\n  two\n  lines\n"
    assert _read(path, text) == {"a": [{"b": "1", "c": ["x", "y"]}, ["z"]], "d": "two\nlines\n"}


def test_merge_keys_do_not_merge(path: Path) -> None:
    assert _read(path, "<<: {a: 1}\nb: 2\n") == {"<<": {"a": "1"}, "b": "2"}


BAD: dict[str, tuple[str | bytes, str]] = {
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice.*line 3"),
    "duplicate key in a section": ("a:\n  b: 1\n  b: 2\n", "the key 'b' stands twice.*line 3"),
    "anchor": ("a: &x 1\n", "anchors and aliases are not allowed.*line 1"),
    "anchor on a section": ("a: &x {b: 1}\n", "anchors and aliases are not allowed"),
    "alias": ("a: 1\nb: *a\n", "anchors and aliases are not allowed.*line 2"),
    "python object": ("a: !!python/object/apply:os.getcwd []\n", "the tag .*os.getcwd' is not allowed"),
    "own tag": ("a: !thing 1\n", "the tag '!thing' is not allowed"),
    "integer tag": ("a: !!int x\n", "tag .* is not allowed"),
    "timestamp tag": ("a: !!timestamp never\n", "tag .* is not allowed"),
    "key that is a list": ("? [a]\n: 1\n", "a key must be text"),
    "key that is null": ("~: 1\n", "a key must be text"),
    "two documents": ("a: 1\n---\nb: 2\n", "more than one document"),
    "broken": ("a: [1\n", "is not valid YAML"),
    "tab": ("a:\n\t- 1\n", "is not valid YAML"),
    "control character": (b"a: \x00\n", "is not valid YAML"),
    "not UTF-8": (b"a: \xff\xfe\n", "is not valid YAML"),
    "empty": ("", "must hold a mapping"),
    "only a comment": ("# nothing\n", "must hold a mapping"),
    "list": ("- 1\n", "must hold a mapping"),
    "text": ("hello\n", "must hold a mapping"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(path: Path, name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(RegistryError, match=message) as caught:
        _read(path, text)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_refuses_deep_nesting(path: Path) -> None:
    deepest = MAX_DEPTH - 2
    assert _read(path, "a: " + "[" * deepest + "]" * deepest)
    with pytest.raises(RegistryError, match=f"nested more than {MAX_DEPTH} deep"):
        _read(path, "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_very_deep_nesting_does_not_end_the_process(path: Path) -> None:
    path.write_text("a: " + "[" * (MAX_FILE_BYTES - 10))
    code = (
        "import sys; from pathlib import Path; from pydantic import BaseModel\n"
        "from app.errors import RegistryError; from app.registry.yaml import read_yaml\n"
        "try: read_yaml(Path(sys.argv[1]), BaseModel)\n"
        "except RegistryError as exc: sys.exit(f'refused: {exc}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "refused: " in done.stderr


def test_refuses_a_huge_file(path: Path) -> None:
    with pytest.raises(RegistryError, match=f"larger than {MAX_FILE_BYTES} bytes; this cannot be a model.yaml"):
        _read(path, b"a: " + b"x" * MAX_FILE_BYTES)


def test_missing_file_and_directory(path: Path) -> None:
    with pytest.raises(RegistryError, match=r"model\.yaml: cannot be read \(No such file.*\); check that it exists"):
        read_yaml(path, Anything)
    path.mkdir()
    with pytest.raises(RegistryError, match=r"cannot be read \(Is a directory\)"):
        read_yaml(path, Anything)


INVALID: dict[str, tuple[str, str]] = {
    "unknown key near a known one": ("nmae: x\nname: x\n", "nmae: unknown key; did you mean 'name'?"),
    "unknown key in a section": (
        "name: x\nstar: {type: cat, wiskers: 1, whiskers: 1}\n",
        "star.wiskers: unknown key; did",
    ),
    "unknown key far from all": ("name: x\nqqqqqq: 1\n", "qqqqqq: unknown key; remove it"),
    "missing": ("size: 1\n", "name: is missing; add it"),
    "missing in a section": ("name: x\nstar: {type: cat}\n", "star.whiskers: is missing; add it"),
    "missing in a list": ("name: x\nanimals: [{type: cat}]\n", "animals[0].whiskers: is missing; add it"),
    "wrong type": ("name: x\nsize: big\n", "size: input should be a valid integer"),
    "what it says": ("name: x\nsize: big\n", "(it says 'big')"),
    "wrong in a section": ("name: x\nstar: {type: cat, whiskers: -1}\n", "star.whiskers: input should be greater"),
    "unknown kind": ("name: x\nstar: {type: cow}\n", "star: "),
    "several at once": ("nmae: x\nsize: big\n", "size: input should"),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_says_file_field_and_fix(path: Path, name: str) -> None:
    text, message = INVALID[name]
    path.write_text(text)
    with pytest.raises(RegistryError) as caught:
        read_yaml(path, Zoo)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_invalid_shows_no_endless_value(path: Path) -> None:
    path.write_text(f"name: x\nsize: {'9' * 5000}x\n")
    with pytest.raises(RegistryError) as caught:
        read_yaml(path, Zoo)
    assert len(str(caught.value)) < 500


def test_invalid_counts_what_it_does_not_list(path: Path) -> None:
    path.write_text("name: x\n" + "".join(f"zzz{number}: 1\n" for number in range(9)))
    with pytest.raises(RegistryError, match="and 4 more"):
        read_yaml(path, Zoo)
