"""Labelled texts in a CSV file."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import InvalidContent
from app.optimize.evaluate import Sample
from app.optimize.texts import find_texts

LABELS = ("bad", "good")


def test_classes_are_named_by_label_or_by_index(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text('\ufefflabel,more,text\ngood,,fine\n0,,"a, b\nc"\n', encoding="utf-8")
    assert find_texts(path, LABELS) == [Sample(path, 1, "fine", 2), Sample(path, 0, "a, b\nc", 4)]
    path.write_text("text,class_index\nfine,1\n", encoding="utf-8")
    assert find_texts(path, LABELS) == [Sample(path, 1, "fine", 2)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the columns text, and class_index or label"),
        (b"words,label\ngood,1\n", "the columns text, and class_index or label"),
        (b"text,label,class_index\ngood,1,1\n", "the columns text, and class_index or label"),
        (b"text,label\n", "holds no labelled texts"),
        (b"text,label\ngood,1\ngood,great\n", "line 3: label 'great' is neither a label nor in 0…1"),
        (b"text,class_index\ngood,2\n", "line 2: class_index '2' is neither"),
        (b"text,class_index\ngood,-1\n", "line 2: class_index '-1' is neither"),
        (b"label,text\n1\n", "line 2"),
        (b"text,label\n\xff,1\n", "is not a CSV file in UTF-8"),
        (b'text,label\n"good,1\n', "is not a CSV file in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidContent) as caught:
        find_texts(path, LABELS)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidContent, match="cannot be read"):
        find_texts(tmp_path, LABELS)
