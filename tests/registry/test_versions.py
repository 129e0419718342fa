"""The order of semver.org, and references."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.registry.versions import ModelRef, Version, is_version

# https://semver.org/#spec-item-11, and the examples of item 11.2.
PRECEDENCE = [
    "0.0.0", "0.0.1-alpha", "0.0.1", "0.9.9", "1.0.0-0", "1.0.0-2", "1.0.0-11", "1.0.0-alpha", "1.0.0-alpha.1",
    "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.9.0", "1.10.0",
    "1.11.0", "2.0.0", "2.1.0", "2.1.1", "3", "9", "10", "10.0.1",
]  # fmt: skip
# From the test cases that semver.org's regular expression is published with.
GOOD = [
    "0.0.4", "1.2.3", "10.20.30", "1.1.2-prerelease+meta", "1.1.2+meta", "1.0.0-alpha0.valid",
    "1.0.0-alpha-a.b-c-somethinglong+build.1-aef.1-its-okay", "1.0.0-rc.1+build.123", "2.0.0+build.1848",
    "1.0.0-0A.is.legal", "1.2.3----RC-SNAPSHOT.12.9.1--.12", "1.0.0+0.build.1-rc.10000aaa-kk-0.1", "3", "0",
]  # fmt: skip
BAD = [
    "", "1.2", "1.2.3-0123", "1.1.2+.123", "+invalid", "alpha", "1.0.0-alpha_beta", "1.0.0-alpha..", "01.1.1", "1.01.1",
    "1.1.01", "1.2.3.DEV", "v1.2.3", "1.2.3 ", " 1.2.3", "1.2.3\n", "-1.0.3", "1.2.31.2.3", "latest", "stable", "03",
    "1e3", "-1", "1.2.3-", "1.2.3+", "..", "1/2", "1\N{ARABIC-INDIC DIGIT THREE}.0.0", "\N{ARABIC-INDIC DIGIT THREE}",
    "1.0.0-" + "a" * 64, "9" * 19,
]  # fmt: skip


def test_version_order_of_semver() -> None:
    shuffled = [Version.parse(text) for text in PRECEDENCE]
    random.Random(7).shuffle(shuffled)
    assert [version.text for version in sorted(shuffled)] == PRECEDENCE


@pytest.mark.parametrize("text", GOOD)
def test_version_good(text: str) -> None:
    assert str(Version.parse(text)) == text
    assert is_version(text)


@pytest.mark.parametrize("text", BAD)
def test_version_bad(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a version: write MAJOR.MINOR.PATCH"):
        Version.parse(text)
    assert not is_version(text)


def test_version_integer_sorts_as_its_major_release() -> None:
    assert Version.parse("2.9.9") < Version.parse("3") < Version.parse("3.0.1")
    assert Version.parse("3").release == (3, 0, 0)


def test_version_final() -> None:
    assert Version.parse("1.0.0").is_final
    assert Version.parse("1.0.0+build").is_final
    assert not Version.parse("1.0.0-rc.1+build").is_final


_numbers = st.integers(0, 30)
_identifiers = st.one_of(_numbers.map(str), st.from_regex(r"\A[0-9A-Za-z-]*[A-Za-z-][0-9A-Za-z-]*\Z"))
_pre_releases = st.one_of(st.just(""), st.lists(_identifiers, min_size=1, max_size=4).map(".".join))
_texts = st.builds(
    lambda major, minor, patch, pre: f"{major}.{minor}.{patch}" + (f"-{pre}" if pre else ""),
    _numbers, _numbers, _numbers, _pre_releases,
).filter(lambda text: len(text) <= 64)  # fmt: skip


def _compare(a: str, b: str) -> int:
    """semver.org's item 11, as it stands there."""
    core_a, _, pre_a = a.partition("-")
    core_b, _, pre_b = b.partition("-")
    for left, right in zip(core_a.split("."), core_b.split("."), strict=True):
        if int(left) != int(right):
            return -1 if int(left) < int(right) else 1
    if not pre_a or not pre_b:
        return bool(pre_b) - bool(pre_a) and (1 if pre_b else -1)
    return _compare_pre_releases(pre_a.split("."), pre_b.split("."))


def _compare_pre_releases(a: list[str], b: list[str]) -> int:
    for left, right in zip(a, b, strict=False):
        if left == right:
            continue
        if left.isdigit() and right.isdigit():
            return -1 if int(left) < int(right) else 1
        if left.isdigit() != right.isdigit():
            return -1 if left.isdigit() else 1
        return -1 if left < right else 1
    return (len(a) > len(b)) - (len(a) < len(b))


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(_texts, min_size=2, max_size=8))
def test_version_order_is_total_and_agrees_with_the_specification(texts: list[str]) -> None:
    versions = [Version.parse(text) for text in texts]
    assert [version.text for version in sorted(versions)] == sorted(texts, key=functools.cmp_to_key(_compare))
    for a in versions:
        for b in versions:
            assert (a < b) + (a == b) + (a > b) == 1
            assert (a <= b) == (not b < a)


@pytest.mark.parametrize(
    ("text", "name", "tag"),
    [
        ("digits", "digits", None),
        ("digits@1.1.0", "digits", "1.1.0"),
        ("digits@3", "digits", "3"),
        ("digits@canary", "digits", "canary"),
        ("a.b_c-9@1.0.0-rc.1+b", "a.b_c-9", "1.0.0-rc.1+b"),
        ("9", "9", None),
    ],
)
def test_model_ref(text: str, name: str, tag: str | None) -> None:
    ref = ModelRef.parse(text)
    assert (ref.name, ref.tag) == (name, tag)
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "digits@",
        "@1.0.0",
        "Digits",
        "digits@Canary",
        "digits@1.0",
        "digits@a@b",
        "../digits",
        "a/b",
        ".hidden",
        "digits ",
        "digits@-x",
        "x" * 64,
        "digits@../../etc",
        "digits:1",
        "ä",
        "digits@1\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_model_ref_bad(text: str) -> None:
    with pytest.raises(ValueError, match="name, name@version or name@alias"):
        ModelRef.parse(text)


@pytest.mark.parametrize("text", ["a" * 64, "digits@" + "1" * 65, f"digits@1.0.0-{'a' * 60}", "digits@" + "a" * 64])
def test_model_ref_is_short(text: str) -> None:
    """What is good is kept for the next caller, so it must not fill the memory."""
    with pytest.raises(ValueError, match="write the model as"):
        ModelRef.parse(text)
