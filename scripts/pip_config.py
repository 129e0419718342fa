"""Print what this host's pip is configured with as one pip.conf, and on stderr the directories that it names.

So a build in a container finds packages where this host does. The standard library alone: it runs before there is more.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Where packages come from; nothing else of a host is for an image.
KEYS = ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index", "timeout", "proxy")


def read_configuration() -> dict[str, list[str]]:
    """Values by key; those of all levels together."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in KEYS:
            words = str(ast.literal_eval(value)).split()
            found[key] = [*found.get(key, []), *(word for word in words if word not in found.get(key, []))]
    return found


def local_directory(location: str, is_index: bool) -> Path | None:
    """The directory that a value names, as a path or a file URL; of an index the one above: its files lie beside it."""
    parts = urlsplit(location)
    path = Path(unquote(parts.path))
    if parts.scheme not in ("", "file") or not path.is_absolute() or not path.is_dir():
        return None
    return path.parent if is_index and path.parent != Path("/") else path


def main() -> None:
    configuration = read_configuration()
    if configuration:
        sys.stdout.write("[global]\n")
    for key, values in configuration.items():
        sys.stdout.write(f"{key} = " + "\n    ".join(values) + "\n")
    directories = {
        local_directory(value, key != "find-links")
        for key in ("index-url", "extra-index-url", "find-links")
        for value in configuration.get(key, [])
    }
    for directory in sorted(filter(None, directories)):
        sys.stderr.write(f"{directory}\n")


if __name__ == "__main__":
    main()
