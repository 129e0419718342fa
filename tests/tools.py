"""Programs that tests drive and that no package index has."""

from __future__ import annotations

import os
import shutil

import pytest


def require_command(command: str, package: str) -> str:
    """Its path. Where it is missing the test is skipped, saying how to get it; in CI that is a failure."""
    found = shutil.which(command)
    if found is not None:
        return found
    words = f"{command} is not installed; on Debian and Ubuntu: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(words)
    pytest.skip(words)
