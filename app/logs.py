"""Log lines on stderr: text for a person at a terminal, JSON for a machine."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import deque
from typing import Any, Literal

# json.dumps would make an encoder for each line.
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
Style = Literal["auto", "json", "text"]

_FLUSH_SECONDS = 0.2
_MOST_PENDING = 20_000


class JsonFormatter(logging.Formatter):
    """One JSON object a line, made by json."""

    def format(self, record: logging.LogRecord) -> str:
        line = _json_head(record.created, record.levelname.lower(), record.name, record.getMessage())
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(logging.Formatter):
    """`12:00:00 warning  message`."""

    def format(self, record: logging.LogRecord) -> str:
        text = _text_line(record.created, record.levelname.lower(), record.getMessage())
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class AccessLog:
    """One line for each answered request, written by a thread of its own, many at a time.

    A reader of stderr that stalls cannot stall the event loop, and no request wakes a thread: waking one for each
    line cost 8 % of the throughput of photos. Past 20,000 pending lines the oldest are dropped.
    """

    def __init__(self, style: Style) -> None:
        self._render = _access_text if _is_text(style) else _access_json
        self._pending: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_MOST_PENDING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, line: dict[str, Any]) -> None:
        """`line` has method, path, status and duration_ms, and what else is known."""
        self._pending.append((time.time(), line))

    def close(self) -> None:
        """Write what is pending, waiting two seconds at most."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2)

    def _run(self) -> None:
        while not self._closing.wait(_FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        lines = []
        while self._pending:
            lines.append(self._render(*self._pending.popleft()))
        if lines:
            try:
                sys.stderr.write("\n".join(lines) + "\n")
                sys.stderr.flush()
            except (OSError, ValueError):
                return  # nobody reads stderr any more: there is no other place to say so


def configure_logging(level: str, style: Style) -> None:
    """Send the log of this process to stderr. Called once in the master and once in each worker."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(TextFormatter() if _is_text(style) else JsonFormatter())
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(stream)
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "PIL", "uvicorn.error", "python_multipart", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _is_text(style: Style) -> bool:
    return style == "text" or (style == "auto" and sys.stderr.isatty())


def _json_head(created: float, level: str, name: str, message: str) -> dict[str, Any]:
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
    return {
        "time": f"{clock}.{int(created % 1 * 1000):03d}Z",
        "level": level,
        "logger": name,
        "message": message,
    }


def _text_line(created: float, level: str, message: str) -> str:
    return f"{time.strftime('%H:%M:%S', time.localtime(created))} {level:8}{message}"


def _access_json(created: float, line: dict[str, Any]) -> str:
    return _encode(_json_head(created, "info", "headway.access", "request") | line)


def _access_text(created: float, line: dict[str, Any]) -> str:
    """`12:00:00 info    POST /predict 200 12.3 ms digits@1.1.0`."""
    model = f" {line['model']}@{line['version']}" if "version" in line else ""
    error = f" {line['error_code']}" if "error_code" in line else ""
    path = line["path"].encode("unicode_escape").decode("ascii")
    message = f"{line['method']} {path} {line['status']} {line['duration_ms']} ms{model}{error}"
    return _text_line(created, "info", message)
