"""Log lines on stderr: text for a person at a terminal, JSON for a machine."""

from __future__ import annotations

import atexit
import json
import logging
import logging.handlers
import queue
import sys
import time
from typing import Any, Literal


class JsonFormatter(logging.Formatter):
    """One JSON object a line, made by json.dumps."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "access", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:00 warning  message`; an access line reads `POST /predict 200 12.3 ms digits@1.1.0`."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        access = getattr(record, "access", None)
        if access:
            model = f" {access['model']}@{access['version']}" if "model" in access else ""
            error = f" {access['error_code']}" if "error_code" in access else ""
            message = f"{access['method']} {access['path']} {access['status']} {access['duration_ms']} ms{model}{error}"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower():8}{message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(level: str, style: Literal["auto", "json", "text"]) -> None:
    """Send the log of this process to stderr. Called once in the master and once in each worker.

    Lines are written by a thread of their own: a reader of stderr that stalls must not stall the event loop.
    """
    is_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(TextFormatter() if is_text else JsonFormatter())
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(stream)
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "PIL", "uvicorn.error", "python_multipart"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class _AccessQueue(logging.handlers.QueueHandler):
    """Drops a line rather than wait: 10,000 may be pending."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # never leaves this process, so nothing has to be picklable

    def handleError(self, record: logging.LogRecord) -> None:
        """The queue is full: the line is lost, the request is not."""


def write_access_log_in_background() -> logging.handlers.QueueListener:
    """Take the access log off the event loop; call `stop()` on the result to write what is pending."""
    lines: queue.Queue[logging.LogRecord] = queue.Queue(10_000)
    access = logging.getLogger("headway.access")
    access.handlers = [_AccessQueue(lines)]
    access.propagate = False
    listener = logging.handlers.QueueListener(lines, *logging.getLogger().handlers)
    listener.start()
    atexit.register(lambda: listener.stop() if listener._thread else None)
    return listener
