"""A caller's own time, however its protocol says it."""

from __future__ import annotations

import pytest

from app.api.context import RequestContext
from app.api.reception import Arrival
from app.engine.lane import Priority


@pytest.mark.parametrize(("asked", "left", "is_own"), [(None, 1000, False), (5000, 1000, False), (0.5, 0.5, True)])
def test_callers_time_counts_where_it_is_shorter(asked: float | None, left: float, is_own: bool) -> None:
    """`has_own_deadline` keeps what it misses from speaking against a canary."""
    arrival = Arrival(RequestContext("id"), 0.0, 1000, Priority.NORMAL, None, None)
    arrival.shorten(asked)
    assert arrival.deadline_ms == left
    assert arrival.context.has_own_deadline is is_own
