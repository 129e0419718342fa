"""Release notes are the version's own section of CHANGELOG.md, and a tag that does not fit is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

CHANGELOG = """# Changelog

## [Unreleased]

- Not yet.

## [1.2.3] - 2026-01-01

### Added

- A thing.

## [1.2.2] - 2025-12-01

- An older thing.
"""


def _notes(root: Path, tag: str, version: str, changelog: str = CHANGELOG) -> subprocess.CompletedProcess[str]:
    """Of a project laid out as this one is."""
    (root / ".github").mkdir()
    script = root / ".github" / "release_notes.py"
    script.write_bytes((ROOT / ".github" / "release_notes.py").read_bytes())
    (root / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n', encoding="utf-8")
    (root / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    return subprocess.run([sys.executable, script, tag], capture_output=True, text=True, check=False)


def test_notes_are_the_section_of_the_version(tmp_path: Path) -> None:
    done = _notes(tmp_path, "v1.2.3", "1.2.3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "### Added\n\n- A thing.\n", "")


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "says"),
    [
        ("v1.2.4", "1.2.3", CHANGELOG, "The tag is v1.2.4, but pyproject.toml has version 1.2.3"),
        ("1.2.3", "1.2.3", CHANGELOG, "tag v1.2.3"),
        ("v1.2.5", "1.2.5", CHANGELOG, "CHANGELOG.md says nothing of 1.2.5"),
        ("v1.2.3", "1.2.3", "## [1.2.3] - 2026-01-01\n\n## [1.2.2]\n\n- Old.\n", "CHANGELOG.md says nothing of 1.2.3"),
        ("v1.2.3", "1.2.3", "", "CHANGELOG.md says nothing of 1.2.3"),
    ],
)
def test_tag_that_does_not_fit_is_refused(tmp_path: Path, tag: str, version: str, changelog: str, says: str) -> None:
    done = _notes(tmp_path, tag, version, changelog)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
