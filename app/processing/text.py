"""One text to a model's tensor of strings: checked, and as it was sent. What its words mean is the model's matter."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidText, TextTooLong
from app.tensors import Array, TensorSpec, object_array

# Reading so many takes the models at hand some milliseconds.
DEFAULT_MAX_CHARACTERS = 10_000


class TextProcessing(BaseModel):
    """The `processing` section of a model whose only input is one string a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["text"]
    max_characters: int = Field(DEFAULT_MAX_CHARACTERS, ge=1, le=1_000_000, description="of the longest text taken")


class TextProcessor:
    """Makes one row of each text. Thread-safe; holds no state but its parameters."""

    def __init__(self, parameters: TextProcessing, spec: TensorSpec) -> None:
        """`spec` is that of the input: BYTES, each size 1 or free."""
        self._max_characters = parameters.max_characters
        self._shape = (1,) * len(spec.shape)

    def prepare(self, text: object) -> Array:
        """BYTES, one element. Raises InvalidText for what is no text, is empty, or is not Unicode, and TextTooLong."""
        if isinstance(text, bytes):
            text = decode_text(text)
        if not isinstance(text, str):
            raise InvalidText(f"a text is a string, not {type(text).__name__}")
        self._check_length(len(text))
        if not text or text.isspace():
            raise InvalidText("the text is empty; send at least one character that is no space")
        try:
            return object_array((text.encode(),), self._shape)
        except UnicodeEncodeError as exc:
            raise InvalidText(
                f"the text is no valid Unicode ({exc.reason} at character {exc.start}); send UTF-8"
            ) from exc

    def check(self, array: Array) -> None:
        """Hold texts that came as a tensor of bytes against the same length. Raises TextTooLong."""
        for text in array.flat:
            if len(text) > self._max_characters:  # of bytes there are at least as many
                self._check_length(len(text.decode("utf-8", "replace")))

    def _check_length(self, characters: int) -> None:
        if characters > self._max_characters:
            raise TextTooLong(
                f"the text has {characters:,} characters; at most {self._max_characters:,} are taken, so shorten it"
            )


def decode_text(data: bytes) -> str:
    """UTF-8, with or without a byte order mark. Raises InvalidText with the place of the first wrong byte."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as exc:
        raise InvalidText(f"the text is not UTF-8 ({exc.reason} at byte {exc.start}); save it as UTF-8") from exc


def takes_text(specs: Sequence[TensorSpec]) -> bool:
    """Whether the only input of a model is one string a row."""
    return (
        len(specs) == 1
        and specs[0].datatype == "BYTES"
        and specs[0].shape[:1] in ((1,), (-1,))
        and specs[0].shape[1:] in ((), (1,), (-1,))
    )
