"""The access log: every line whole and in order, written away from the event loop."""

from __future__ import annotations

import json
import re

import pytest

from app.logs import AccessLog

LINE = {"method": "POST", "path": "/predict", "status": 200, "duration_ms": 1.5, "model": "m", "version": "1.0.0"}


def test_access_log_writes_what_is_pending_at_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("json")
    log.start()
    for number in range(500):
        log.record(LINE | {"request_id": str(number)})
    log.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["request_id"] for line in lines] == [str(number) for number in range(500)]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", lines[0]["time"])


def test_access_log_text_is_one_line_whatever_the_path(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog("text")
    log.start()
    log.record(LINE | {"path": "/a\nb\x1b[31m", "error_code": "not_found"})
    log.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(r"POST /a\nb\x1b[31m 200 1.5 ms m@1.0.0 not_found")


def test_access_log_that_was_never_started_closes() -> None:
    AccessLog("json").close()
