"""gunicorn's lines and ours, by standard logging as "headway.server"; handlers are the caller's matter."""

from __future__ import annotations

import logging
from typing import Any


class ServerLog:
    """What gunicorn wants of a logger. Its INFO is a banner and a line a step, so it is DEBUG here."""

    def __init__(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("headway.server")
        self.access_log = logging.getLogger("headway.access")
        self.setup(cfg)

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.setLevel(getattr(logging, str(cfg.loglevel).upper(), logging.INFO))

    def critical(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.critical(msg, *args, **kwargs)

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.error(msg, *args, **kwargs)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.warning(msg, *args, **kwargs)

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.debug(msg, *args, **kwargs)

    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: gunicorn's debug lines are its whole configuration."""

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.error_log.exception(msg, *args, **kwargs)

    def close_on_exec(self) -> None:
        """No files of our own."""

    def reopen_files(self) -> None:
        """No files of our own."""
