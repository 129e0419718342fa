"""The statuses of errors are TensorFlow Serving's, but for those that docs/reference/api.md names."""

from __future__ import annotations

import inspect

from app import errors
from app.errors import HeadwayError

# tensorflow_serving/model_servers/http_server.cc; whatever else there is, is 500.
_THEIRS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_HTTP_OWN = {405, 408, 413, 415, 422, 431}
# What no prediction raises: feedback, management, and what a load says to those.
_ELSEWHERE = {"registry_full", "expired_prediction", "not_found", "registry_error", "step_not_ready"}
_ELSEWHERE |= {"insufficient_memory", "load_failed"}


def test_statuses_are_theirs_or_https_own() -> None:
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, HeadwayError)]
    differ = {
        cls.code: cls.status
        for cls in classes
        if cls.status != _THEIRS.get(cls.grpc, 500) and cls.code not in _ELSEWHERE and cls.status != 409
    }
    assert set(differ.values()) <= _HTTP_OWN, differ
