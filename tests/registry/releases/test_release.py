"""Traffic by weight, sticky by key."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from app.registry.releases.release import Release, bucket, implicit_release
from app.registry.versions import Version

KEYS = [f"user-{number}".encode() for number in range(20_000)]


def _release(**weights: float) -> Release:
    aliases: dict[str, Any] = {"stable": {"version": "1.0.0"}}
    for number, (alias, weight) in enumerate(weights.items(), 1):
        aliases[alias] = {"version": f"1.{number}.0", "weight": weight}
    return Release.model_validate({"schema": "1", "aliases": aliases})


def test_route_without_weights_is_stable() -> None:
    assert {_release().route("m", key) for key in KEYS[:100]} == {"stable"}
    assert _release(canary=0).route("m", None) == "stable"


def test_route_is_sticky() -> None:
    release = _release(canary=30)
    assert all(release.route("m", key) == release.route("m", key) for key in KEYS[:200])
    # Another process reads the same file: the same answers.
    again = Release.model_validate_json(release.model_dump_json(by_alias=True))
    assert [again.route("m", key) for key in KEYS[:200]] == [release.route("m", key) for key in KEYS[:200]]


def test_route_shares_are_the_weights() -> None:
    release = _release(canary=5, beta=20)
    counts = Counter(release.route("m", key) for key in KEYS)
    assert counts["canary"] / len(KEYS) == pytest.approx(0.05, abs=0.006)  # 4 standard deviations
    assert counts["beta"] / len(KEYS) == pytest.approx(0.20, abs=0.012)


def test_route_without_key_takes_the_weights() -> None:
    counts = Counter(_release(canary=50).route("m", None) for _ in range(2_000))
    assert counts["canary"] == pytest.approx(1_000, abs=130)  # 6 standard deviations


def test_route_keeps_everyone_in_while_a_weight_is_raised() -> None:
    inside: set[bytes] = set()
    for weight in (0.5, 1, 5, 25, 50, 99, 100):
        release = _release(canary=weight)
        now = {key for key in KEYS[:3_000] if release.route("m", key) == "canary"}
        assert inside <= now
        inside = now
    assert len(inside) == 3_000


def test_route_gives_models_different_people() -> None:
    release = _release(canary=10)
    first, second = ({key for key in KEYS if release.route(model, key) == "canary"} for model in ("a", "b"))
    assert len(first & second) / len(first) == pytest.approx(0.1, abs=0.03)


def test_bucket_is_the_documented_one() -> None:
    digest = hashlib.blake2b(b"digits\0user-7", digest_size=8).digest()
    assert bucket("digits", b"user-7") == int.from_bytes(digest, "big") / 2**64
    assert all(0 <= bucket("m", key) < 1 for key in KEYS[:1_000])


def test_versions_are_each_named_once_and_stable_first() -> None:
    release = Release.model_validate(
        {
            "aliases": {"canary": {"version": "2.0.0"}, "stable": {"version": "1.0.0"}, "old": {"version": "1.0.0"}},
            "also_serve": ["2.0.0", "0.9.0"],
        }
    )
    assert release.versions == ("1.0.0", "2.0.0", "0.9.0")


def test_shadow_is_loaded_but_takes_no_traffic() -> None:
    release = Release.model_validate(
        {"aliases": {"stable": {"version": "1.0.0"}}, "shadow": {"version": "2.0.0", "share": "10"}, "load": "lazy"}
    )
    assert release.versions == ("1.0.0", "2.0.0")
    assert {release.route("m", key) for key in KEYS[:100]} == {"stable"}
    assert (release.load, _release().load) == ("lazy", "eager")


def test_weights_show_what_stable_has_left() -> None:
    assert _release(canary=5, beta=2.5).weights == {"stable": 92.5, "canary": 5, "beta": 2.5}
    assert _release(a=33.4, b=33.3, c=33.3).weights["stable"] == 0


def test_users_of_a_version() -> None:
    release = Release.model_validate(
        {
            "aliases": {"stable": {"version": "1.0.0"}, "old": {"version": "1.0.0"}},
            "shadow": {"version": "2.0.0", "share": 1},
            "also_serve": ["2.0.0", "3.0.0"],
        }
    )
    assert release.users_of("1.0.0") == ("stable", "old")
    assert release.users_of("2.0.0") == ("shadow", "also_serve")
    assert release.users_of("4.0.0") == ()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no stable": ({"aliases": {"canary": {"version": "1.0.0"}}}, "aliases.stable is missing"),
    "no aliases": ({}, "aliases"),
    "weight of stable": ({"aliases": {"stable": {"version": "1.0.0", "weight": "5"}}}, "stable takes no weight"),
    "weights over 100": (
        {
            "aliases": {
                "stable": {"version": "1.0.0"},
                "a": {"version": "1.0.0", "weight": "60"},
                "b": {"version": "1.0.0", "weight": "41"},
            }
        },
        "add up to more than 100",
    ),
    "negative weight": ({"aliases": {"stable": {"version": "1"}, "a": {"version": "1", "weight": "-1"}}}, "weight"),
    "weight that is no number": (
        {"aliases": {"stable": {"version": "1"}, "a": {"version": "1", "weight": "nan"}}},
        "weight",
    ),
    "alias like a version": ({"aliases": {"stable": {"version": "1.0.0"}, "2": {"version": "1.0.0"}}}, "not an alias"),
    "alias in capitals": ({"aliases": {"stable": {"version": "1.0.0"}, "A": {"version": "1.0.0"}}}, "not an alias"),
    "alias shadow": (
        {"aliases": {"stable": {"version": "1"}, "shadow": {"version": "1"}}},
        "'shadow' is not an alias: write it beside aliases",
    ),
    "share of nothing": ({"aliases": {"stable": {"version": "1"}}, "shadow": {"version": "1", "share": 0}}, "share"),
    "share that is no number": (
        {"aliases": {"stable": {"version": "1"}}, "shadow": {"version": "1", "share": "nan"}},
        "share",
    ),
    "load": ({"aliases": {"stable": {"version": "1"}}, "load": "soon"}, "'eager', 'lazy' or 'pinned'"),
    "no version": ({"aliases": {"stable": {"version": "newest"}}}, "is not a version"),
    "also_serve": ({"aliases": {"stable": {"version": "1.0.0"}}, "also_serve": ["1.0"]}, "is not a version"),
    "schema": ({"schema": "2", "aliases": {"stable": {"version": "1.0.0"}}}, "needs a newer one"),
    "unknown key": ({"aliases": {"stable": {"version": "1.0.0"}}, "alsoserve": []}, "extra"),
}


@pytest.mark.parametrize("name", BAD)
def test_release_refuses(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(ValidationError, match=message):
        Release.model_validate(content)


def test_weights_may_fill_everything() -> None:
    parts = {"a": 33.4, "b": 33.3, "c": 33.3}
    release = _release(**parts)
    assert "stable" not in {release.route("m", key) for key in KEYS[:2_000]}


def test_implicit_release_is_the_newest_final_version() -> None:
    versions = [Version.parse(text) for text in ("1.9.0", "1.10.0", "2.0.0-rc.1")]
    release = implicit_release(versions)
    assert release is not None
    assert release.versions == ("1.10.0",)
    assert implicit_release([Version.parse("2.0.0-rc.1")]) is None
    assert implicit_release([]) is None
