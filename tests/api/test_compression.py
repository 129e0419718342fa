"""Bodies that are packed, and answers that are asked for so."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.compression import choose_encoding, compress, decompress, read_encoding
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


@pytest.mark.parametrize("header", ["br", "gzip, br", "gzip, gzip", "gzip, deflate", "br, identity", "gzip;q=1"])
def test_other_encodings_are_refused(header: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=f"'{header}' is not taken; send gzip, deflate or identity"):
        read_encoding(header.encode(), takes_compressed=True)


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("gzip", "gzip"),
        ("X-GZIP", "gzip"),
        (" deflate ", "deflate"),
        ("identity, gzip", "gzip"),
        ("gzip ,identity,", "gzip"),
        ("identity", None),
        ("identity, identity", None),
        ("", None),
    ],
)
def test_encodings_that_are_taken(header: str, encoding: str | None) -> None:
    assert read_encoding(header.encode(), takes_compressed=True) == encoding
    if encoding is not None:
        with pytest.raises(UnsupportedMediaType, match="not taken here"):
            read_encoding(header.encode(), takes_compressed=False)


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
