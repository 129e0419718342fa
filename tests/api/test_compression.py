"""Bodies that are packed, and answers that are asked for so."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.compression import choose_encoding, compress, decompress
from app.errors import BodyTooLarge, InvalidContent, UnsupportedMediaType


@given(st.binary(max_size=1000), st.sampled_from(["gzip", "deflate"]))
def test_there_and_back(body: bytes, encoding: str) -> None:
    packed = compress(body, encoding)
    assert (gzip.decompress if encoding == "gzip" else zlib.decompress)(packed) == body
    assert decompress(packed, encoding, 1000) == body


def test_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BodyTooLarge, match="larger than 1,000 bytes once it is unpacked"):
        decompress(gzip.compress(b"\0" * 10_000_000), "gzip", 1000)


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: data + b"more", lambda data: b"no" + data])
def test_damaged_body_is_refused(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(InvalidContent, match="the body is not"):
        decompress(damage(gzip.compress(b"body")), "gzip", 1000)


def test_other_encodings_are_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="'br' is not taken; send gzip, deflate or identity"):
        decompress(b"", "br", 1000)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.2, deflate;q=0.5, br", "deflate"),
        ("*", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("gzip;q=0", None),
        ("identity", None),
        ("gzip;q=wrong", None),
        ("", None),
    ],
)
def test_choice(accepted: str, encoding: str | None) -> None:
    assert choose_encoding(accepted) == encoding
