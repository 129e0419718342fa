"""The whole error tree and its one rendering.

Every expected refusal is a class with a stable `code` and one line in this table; only a bug is a 500.

    HeadwayError
    ├── InvalidContent           400  bad_content
    │   ├── InvalidImage         400  bad_image
    │   ├── InvalidTensor        400  bad_tensor
    │   ├── InvalidText          400  bad_text
    │   ├── ModelRequired        400  model_required
    │   ├── ImageTooLarge        413  image_too_large
    │   ├── TextTooLong          413  text_too_long
    │   ├── BadArchive           400  bad_archive
    │   ├── ArchiveTooLarge      413  archive_too_large
    │   ├── InvalidRelease       400  bad_release
    │   ├── ForgedPrediction     400  forged_prediction (a prediction_id that no key of ours has signed)
    │   ├── UnknownLabel         400  unknown_label
    │   └── VersionRefused       400  version_refused (an added version that could not serve)
    ├── Unauthorized             401  unauthorized
    ├── Forbidden                403  forbidden (management that is asked for on the public listener)
    ├── ModelNotFound            404  model_not_found
    │   ├── VersionNotFound      404  version_not_found
    │   └── VersionNotReleased   404  version_not_released
    ├── RouteNotFound            404  not_found
    ├── MethodNotAllowed         405  method_not_allowed
    ├── BodyTimeout              408  body_timeout
    │   └── HeaderTimeout        408  header_timeout
    ├── Conflict                 409  conflict
    │   ├── ReleaseConflict      409  release_conflict
    │   ├── VersionUnverified    409  version_unverified
    │   ├── VersionExists        409  version_exists
    │   ├── VersionInUse         409  version_in_use
    │   ├── VersionTooSmall      409  version_too_small
    │   ├── DoubleFeedback       409  double_feedback
    │   └── RegistryReadOnly     409  registry_read_only
    ├── ExpiredPrediction        410  expired_prediction
    ├── BodyTooLarge             413  body_too_large
    ├── UnsupportedMediaType     415  unsupported_media_type
    ├── MalformedRequest         422  malformed_request
    ├── HeadersTooLarge          431  headers_too_large
    ├── MalformedHttp            400  malformed_http
    ├── ClientClosed             499  client_closed (counted, never sent)
    ├── Unavailable              503  not_ready          (Retry-After)
    │   ├── Overloaded           503  overloaded
    │   ├── Draining             503  draining
    │   ├── OutOfBodyMemory      503  body_memory
    │   ├── RegistryBusy         503  registry_busy
    │   ├── FeedbackUnavailable  503  feedback_unavailable (no secret, or no database)
    │   ├── ModelNotReady        503  model_not_ready
    │   ├── ModelUnloaded        503  model_unloaded (by a caller of the repository API)
    │   └── ModelFailed          503  model_failed
    │       └── ModelQuarantined 503  model_quarantined
    ├── DeadlineExceeded         504  deadline_exceeded
    ├── RegistryFull             507  registry_full
    ├── Internal                 500  internal
    ├── RunFailed                500  run_failed     (the model, not the server)
    ├── RegistryError            503  registry_error (a file is wrong; only management requests get it)
    │   ├── InsufficientMemory   503  insufficient_memory
    │   └── StepNotReady         503  step_not_ready (a step of a composition)
    └── RuntimeLoadError         503  load_failed    (raised at load, never by a request)
"""

from __future__ import annotations

import json
import math
import random
from typing import ClassVar


class HeadwayError(Exception):
    """Something the caller or the operator can act on.

    `str(error)` is a sentence that says what is wrong and what to do. `code` is a stable identifier,
    `status` the HTTP status, `grpc` the name of the gRPC status.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    retry_after_seconds: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


class InvalidContent(HeadwayError):
    """The request is well formed, but what it carries cannot be used."""

    code = "bad_content"
    status = 400
    grpc = "INVALID_ARGUMENT"


class InvalidImage(InvalidContent):
    code = "bad_image"


class InvalidTensor(InvalidContent):
    code = "bad_tensor"


class InvalidText(InvalidContent):
    code = "bad_text"


class ModelRequired(InvalidContent):
    code = "model_required"


class ImageTooLarge(InvalidContent):
    code = "image_too_large"
    status = 413


class TextTooLong(InvalidContent):
    code = "text_too_long"
    status = 413


class BadArchive(InvalidContent):
    """What was sent is no archive of one version, or one that must not be unpacked."""

    code = "bad_archive"


class ArchiveTooLarge(InvalidContent):
    code = "archive_too_large"
    status = 413


class InvalidRelease(InvalidContent):
    """The change that is asked for leaves no valid release."""

    code = "bad_release"


class ForgedPrediction(InvalidContent):
    """A prediction_id that is damaged, or that no key of ours has signed."""

    code = "forged_prediction"


class UnknownLabel(InvalidContent):
    """Feedback names what the version that answered cannot say."""

    code = "unknown_label"


class VersionRefused(InvalidContent):
    """An added version is complete, but could not serve; the message carries what the trial said."""

    code = "version_refused"


class Unauthorized(HeadwayError):
    code = "unauthorized"
    status = 401
    grpc = "UNAUTHENTICATED"
    headers = (("www-authenticate", 'Bearer realm="headway"'),)


class Forbidden(HeadwayError):
    """A known route that is not for this listener. Routes of our own do not show themselves there at all."""

    code = "forbidden"
    status = 403
    grpc = "PERMISSION_DENIED"


class ModelNotFound(HeadwayError):
    code = "model_not_found"
    status = 404
    grpc = "NOT_FOUND"


class VersionNotFound(ModelNotFound):
    code = "version_not_found"


class VersionNotReleased(ModelNotFound):
    code = "version_not_released"


class RouteNotFound(HeadwayError):
    code = "not_found"
    status = 404
    grpc = "UNIMPLEMENTED"


class MethodNotAllowed(HeadwayError):
    code = "method_not_allowed"
    status = 405
    grpc = "UNIMPLEMENTED"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.headers = (("allow", allow),)


class BodyTimeout(HeadwayError):
    """The connection is closed: what is left of the body would have to be awaited before the next request."""

    code = "body_timeout"
    status = 408
    grpc = "DEADLINE_EXCEEDED"
    headers: tuple[tuple[str, str], ...] = (("connection", "close"),)


class HeaderTimeout(BodyTimeout):
    """Answered by the protocol layer, which closes by itself."""

    code = "header_timeout"
    headers = ()


class Conflict(HeadwayError):
    """What is asked for contradicts what is there."""

    code = "conflict"
    status = 409
    grpc = "FAILED_PRECONDITION"


class ReleaseConflict(Conflict):
    """The release is no longer the one that the caller saw."""

    code = "release_conflict"
    grpc = "ABORTED"


class VersionUnverified(Conflict):
    """A version without golden requests would become stable."""

    code = "version_unverified"


class VersionExists(Conflict):
    """A published version never changes."""

    code = "version_exists"
    grpc = "ALREADY_EXISTS"


class VersionInUse(Conflict):
    code = "version_in_use"


class VersionTooSmall(Conflict):
    """The difference to the version before is larger than the new version's number says."""

    code = "version_too_small"


class DoubleFeedback(Conflict):
    """Another feedback came before for this prediction."""

    code = "double_feedback"


class ExpiredPrediction(HeadwayError):
    """A prediction_id that is older than feedback is taken for."""

    code = "expired_prediction"
    status = 410
    grpc = "FAILED_PRECONDITION"


class RegistryReadOnly(Conflict):
    code = "registry_read_only"


class BodyTooLarge(HeadwayError):
    code = "body_too_large"
    status = 413
    grpc = "INVALID_ARGUMENT"


class UnsupportedMediaType(HeadwayError):
    code = "unsupported_media_type"
    status = 415
    grpc = "INVALID_ARGUMENT"


class MalformedRequest(HeadwayError):
    code = "malformed_request"
    status = 422
    grpc = "INVALID_ARGUMENT"


class HeadersTooLarge(HeadwayError):
    code = "headers_too_large"
    status = 431
    grpc = "INVALID_ARGUMENT"


class MalformedHttp(HeadwayError):
    code = "malformed_http"
    status = 400
    grpc = "INVALID_ARGUMENT"


class ClientClosed(HeadwayError):
    """The caller has left. The status is only ever counted."""

    code = "client_closed"
    status = 499
    grpc = "CANCELLED"


class Unavailable(HeadwayError):
    """Not now; the same request may succeed after `retry_after_seconds`."""

    code = "not_ready"
    status = 503
    grpc = "UNAVAILABLE"
    retry_after_seconds = 1


_MOVED_SHARE = 1 / 8


class Overloaded(Unavailable):
    """`wait_seconds` is the estimate of what waits.

    One in eight closes its connection, so that a caller who stays is dealt anew, maybe to a worker with less to do. To
    close each costs more than the refusal; where that is what the time is spent on (`may_close`), none does.
    """

    code = "overloaded"

    def __init__(self, message: str, wait_seconds: float = 0.0, *, may_close: bool = True) -> None:
        super().__init__(message)
        if may_close and random.random() < _MOVED_SHARE:
            self.headers = (("connection", "close"),)
        self.retry_after_seconds = max(1, math.ceil(wait_seconds))


class Draining(Unavailable):
    code = "draining"


class OutOfBodyMemory(Unavailable):
    code = "body_memory"


class RegistryBusy(Unavailable):
    """Another process holds the model's lock."""

    code = "registry_busy"


class FeedbackUnavailable(Unavailable):
    """There is no secret to check a prediction_id with, or no database to keep feedback in."""

    code = "feedback_unavailable"


class ModelNotReady(Unavailable):
    code = "model_not_ready"


class ModelUnloaded(Unavailable):
    """Somebody asked for the model to be unloaded; it is not served until it is loaded again."""

    code = "model_unloaded"
    retry_after_seconds = 10


class ModelFailed(Unavailable):
    """A released version could not be loaded, or its run failed; the message carries the cause."""

    code = "model_failed"
    retry_after_seconds = 10


class ModelQuarantined(ModelFailed):
    """The version crashed this server's workers too often; no worker of it runs it any more."""

    code = "model_quarantined"


class DeadlineExceeded(HeadwayError):
    code = "deadline_exceeded"
    status = 504
    grpc = "DEADLINE_EXCEEDED"


class RegistryFull(HeadwayError):
    """There is no space left for what is written; nothing of it stays."""

    code = "registry_full"
    status = 507
    grpc = "RESOURCE_EXHAUSTED"


class Internal(HeadwayError):
    """A bug of ours. The message shown to the caller never carries its details."""

    code = "internal"
    status = 500


class RunFailed(HeadwayError):
    """The backend failed while it ran: the fault of the model or of its input, not of the caller's neighbours."""

    code = "run_failed"
    status = 500


class RuntimeLoadError(HeadwayError):
    """The backend cannot load the file. The message carries the backend's own words."""

    code = "load_failed"
    status = 503
    grpc = "FAILED_PRECONDITION"


class RegistryError(HeadwayError):
    """A file of the registry is wrong: the message names the file, the field and the fix."""

    code = "registry_error"
    status = 503
    grpc = "FAILED_PRECONDITION"


class StepNotReady(RegistryError):
    """A version that a composition names cannot answer (yet); tried again when it can."""

    code = "step_not_ready"


class InsufficientMemory(RegistryError):
    """A version needs more memory than is free; tried again after a while."""

    code = "insufficient_memory"


def render(error: HeadwayError, request_id: str) -> bytes:
    """The body of an error answer, the same on every route and from every layer."""
    return json.dumps({"error": str(error), "code": error.code, "request_id": request_id}, ensure_ascii=False).encode()


def error_headers(error: HeadwayError) -> list[tuple[str, str]]:
    """The headers that go with `render`: the content type, Retry-After and what the error adds."""
    headers = [("content-type", "application/json"), *error.headers]
    if error.retry_after_seconds is not None:
        headers.append(("retry-after", str(error.retry_after_seconds)))
    return headers
