from __future__ import annotations

import subprocess
import sys

import pytest

from app.server.options import ServerOptions


def test_graceful_timeout_must_cover_drain_and_deadline() -> None:
    with pytest.raises(ValueError, match="raise it above 65 s"):
        ServerOptions(app="a:b", drain_seconds=5, longest_deadline_seconds=60, graceful_timeout_seconds=65)
    ServerOptions(app="a:b", drain_seconds=5, longest_deadline_seconds=60, graceful_timeout_seconds=65.1)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"drain_seconds": -1.0}])
def test_impossible_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).split("_")[0]):
        ServerOptions(app="a:b", **wrong)  # type: ignore[arg-type]


def test_options_need_no_server() -> None:
    """The application imports them on any system."""
    servers = "{'gunicorn', 'uvicorn', 'fcntl'}"
    code = f"import sys, app.server.options; sys.exit(bool({servers} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
