"""A text becomes one string of a tensor as it was sent, or is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidText, TextTooLong
from app.processing.text import TextProcessing, TextProcessor, decode_text, takes_text
from app.tensors import TensorSpec


def processor(max_characters: int = 10, shape: tuple[int, ...] = (-1,)) -> TextProcessor:
    parameters = TextProcessing(type="text", max_characters=max_characters)
    return TextProcessor(parameters, TensorSpec("text", "BYTES", shape))


@pytest.mark.parametrize("text", ["a", "grün", "很好", "👍🏽", "a\0b", " spaces ", "line\nbreak\r\n", "\ufeffmark"])
def test_a_text_is_kept_as_it_was_sent(text: str) -> None:
    array = processor(20).prepare(text)
    assert (array.dtype, array.shape) == (np.dtype(object), (1,))
    assert array[0] == text.encode()


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50).filter(lambda text: text.strip()))
def test_every_unicode_text_is_kept_as_text_and_as_bytes(text: str) -> None:
    assert processor(50).prepare(text).tolist() == [text.encode()]
    expected = text.encode().removeprefix(b"\xef\xbb\xbf")
    if expected.decode().strip():
        assert processor(50).prepare(text.encode()).tolist() == [expected]


def test_the_array_has_the_shape_of_the_input() -> None:
    assert processor(shape=(-1, 1)).prepare("a").shape == (1, 1)
    assert processor(shape=(1,)).prepare("a").shape == (1,)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000", b""])
def test_an_empty_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidText, match="the text is empty"):
        processor().prepare(text)


@pytest.mark.parametrize("value", [None, 7, 1.5, True, ["a"], {"text": "a"}])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(InvalidText, match=f"a text is a string, not {type(value).__name__}"):
        processor().prepare(value)


def test_a_lone_surrogate_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidText, match=r"no valid Unicode .* at character 2"):
        processor().prepare("ab\ud800")


def test_bytes_that_are_not_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(InvalidText, match=r"not UTF-8 .* at byte 3"):
        decode_text(b"abc\xff")


def test_length_is_counted_in_characters() -> None:
    assert processor(4).prepare("👍👍很好").tolist() == ["👍👍很好".encode()]
    with pytest.raises(TextTooLong, match="has 1,001 characters; at most 1,000"):
        processor(1000).prepare("很" * 1001)


def test_texts_of_a_tensor_have_the_same_limit() -> None:
    texts = np.array(["很好很好".encode(), b"", b"abcd"], dtype=object)
    processor(4).check(texts)
    processor(4, (-1, 1)).check(texts.reshape(3, 1))
    with pytest.raises(TextTooLong):
        processor(3).check(texts)


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([("BYTES", (-1,))], True),
        ([("BYTES", (-1, 1))], True),
        ([("BYTES", (1,))], True),
        ([("BYTES", ())], False),
        ([("BYTES", (3,))], False),
        ([("BYTES", (-1, 2))], False),
        ([("FP32", (-1,))], False),
        ([("BYTES", (-1,)), ("BYTES", (-1,))], False),
    ],
)
def test_models_of_texts_are_told_by_their_input(specs: list[tuple[str, tuple[int, ...]]], expected: bool) -> None:
    assert takes_text([TensorSpec(f"x{n}", *spec) for n, spec in enumerate(specs)]) is expected
