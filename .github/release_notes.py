"""`release_notes.py v1.2.3`: what CHANGELOG.md says of version 1.2.3, which must be the one of pyproject.toml."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: release_notes.py TAG")
    try:
        sys.stdout.write(release_notes(sys.argv[1], ROOT) + "\n")
    except ValueError as exc:
        sys.exit(str(exc))


def release_notes(tag: str, root: Path) -> str:
    """The text under the heading of that version, without the heading.

    Raises ValueError where the tag is not `v` and the version of pyproject.toml, or CHANGELOG.md says nothing of it.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    if tag != f"v{version}":
        raise ValueError(
            f"The tag is {tag}, but pyproject.toml has version {version}: tag v{version}, or change it there first."
        )
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)
    for section in sections[1:]:
        heading, _, text = section.partition("\n")
        if heading.startswith(f"[{version}]") and text.strip():
            return text.strip()
    raise ValueError(
        f"CHANGELOG.md says nothing of {version}: give it a heading `## [{version}] - <date>` and what changed."
    )


if __name__ == "__main__":
    main()
