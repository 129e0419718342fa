from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.flags import check_flags, may_hold_flags
from app.errors import InvalidTensor

NESTED = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=4)
)


def leaves(values: Any) -> list[Any]:
    return [leaf for one in values for leaf in leaves(one)] if isinstance(values, list) else [values]


@given(st.dictionaries(st.text(), NESTED, max_size=3))
def test_what_holds_flags_is_seen(content: dict[str, Any]) -> None:
    if any(type(leaf) is bool for values in content.values() for leaf in leaves(values)):
        assert may_hold_flags(json.dumps(content).encode())


@pytest.mark.parametrize(
    "body", [b"", b'{"inputs": [0.5, 1e-7]}', b'{"outputs": ["rue", "alse", "u", "f"]}', b"rue alse"]
)
def test_what_holds_none(body: bytes) -> None:
    assert not may_hold_flags(body)


@given(st.lists(NESTED))
def test_mixed_values_are_refused_and_no_others(values: list[Any]) -> None:
    kinds = {type(leaf) is bool for leaf in leaves(values)}
    if kinds == {True, False}:
        with pytest.raises(InvalidTensor, match="input 'x' has true or false among other values"):
            check_flags("input 'x'", values)
    else:
        check_flags("input 'x'", values)
