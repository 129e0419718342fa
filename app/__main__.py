"""The console script `headway`, and `python -m app`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    if os.getpid() == 1:
        # The kernel keeps from a container's first process what it has not asked for: until the server does, SIGTERM
        # would be ignored, and the container killed at the end of its whole grace period.
        signal.signal(signal.SIGTERM, _end)
    from app.cli.main import cli

    cli()


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
