"""The management API: what is released, which versions there are. On its own listener, with the admin token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.api.admin import ManagementRoute, UploadRoute, check_json_size
from app.api.release_schemas import (
    DesiredState,
    PromoteAction,
    ReleaseChange,
    ReleaseRead,
    SetAction,
    UpdateFromPath,
    UpdateOptions,
    UpdateRead,
    VersionMoved,
    VersionState,
)
from app.api.schemas import ErrorResponse
from app.api.upload import Upload
from app.errors import MalformedRequest, VersionNotFound
from app.registry.releases.editor import CurrentRelease, ReleaseEditor
from app.registry.serving.worker_states import WorkerState, has_converged, merge_versions, read_worker_states
from app.registry.storing.archive import Limits
from app.registry.storing.intake import Intake, Staged
from app.registry.versions import MODEL_NAME, is_version

_POLL_SECONDS = 0.1
_TAG = "management"

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "What is asked for leaves no valid release",
        401: "Without the admin token",
        404: "No such model or version; or this is the public listener",
        409: "The release was changed by another, the version is in use, or the registry is read-only",
        422: "The request is malformed",
        507: "No space left",
    }.items()
}
_UPLOAD_ERRORS: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    400: {"model": ErrorResponse, "description": "No archive of one version, or one that could not serve"},
    413: {"model": ErrorResponse, "description": "The archive is too large"},
    415: {"model": ErrorResponse, "description": "Content-Type not taken"},
}
_ARCHIVE = {"schema": {"type": "string", "format": "binary"}}
_UPDATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": UpdateFromPath.model_json_schema()},
            "application/x-tar": _ARCHIVE,
            "application/gzip": _ARCHIVE,
            "application/zip": _ARCHIVE,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **UpdateOptions.model_json_schema()["properties"],
                    },
                }
            },
        },
    },
    "parameters": [
        {"name": name, "in": "query", "schema": schema, "description": "For an archive as the body."}
        for name, schema in UpdateOptions.model_json_schema()["properties"].items()
    ],
}


class ManagementApi:
    """`run_dir` holds the states of all workers of this machine."""

    def __init__(self, editor: ReleaseEditor, intake: Intake, run_dir: Path | None, max_upload_bytes: int) -> None:
        self._editor = editor
        self._intake = intake
        self._run_dir = run_dir
        self._limits = Limits(max_upload_bytes)

    def add_routes(self, router: APIRouter) -> None:
        release, version = "/models/{name}/release", "/models/{name}/versions/{version}"
        routes: tuple[tuple[str, str, Callable[..., Any], type[Any]], ...] = (
            ("GET", release, self.get_release, ReleaseRead),
            ("POST", release, self.change_release, ReleaseRead),
            ("DELETE", version, self.remove_version, VersionMoved),
            ("POST", version + "/undelete", self.undelete_version, VersionMoved),
        )
        for method, path, endpoint, model in routes:
            router.add_api_route(
                path,
                endpoint,
                methods=[method],
                response_model=model,
                response_model_exclude_none=True,
                responses=_ERRORS,
                tags=[_TAG],
                route_class_override=ManagementRoute,
            )
        router.add_api_route(
            "/update",
            self.update,
            methods=["POST"],
            response_model=UpdateRead,
            response_model_exclude_none=True,
            responses=_UPLOAD_ERRORS,
            openapi_extra=_UPDATE_BODY,
            tags=[_TAG],
            route_class_override=UploadRoute,
        )

    async def get_release(self, name: str, response: Response) -> ReleaseRead:
        """The release of a model, with its history, and how far the workers are. Its ETag is for If-Match."""
        return await self._read(await asyncio.to_thread(self._editor.read, name), response)

    async def change_release(
        self,
        name: str,
        change: Annotated[ReleaseChange, Body()],
        response: Response,
        if_match: Annotated[str | None, Header(description="The ETag that the change was decided on.")] = None,
        wait_seconds: Annotated[float, Query(ge=0, le=600, description="Wait so long until it is served.")] = 0,
    ) -> ReleaseRead:
        """One action, or the whole release. Written when it answers; served within two seconds, or see wait_seconds."""
        allows = isinstance(change, SetAction | PromoteAction | DesiredState) and change.unverified
        current = await asyncio.to_thread(
            self._editor.change,
            name,
            change.to_change(),
            change.note,
            seen=_parse_if_match(if_match),
            unverified=allows,
        )
        return await self._read(current, response, wait_seconds)

    async def update(self, request: Request, response: Response) -> UpdateRead:
        """Add a version: an archive of its directory, or a directory of this machine; and release it, with `alias`."""
        await asyncio.to_thread(self._sweep)
        staged, options = await (self._copy_in(request) if _is_json(request) else self._receive(request))
        published = await asyncio.to_thread(self._intake.publish, staged, any_step=options.any_step)
        answer = UpdateRead(
            model=published.name,
            version=published.version,
            is_new=published.is_new,
            is_verified=published.is_verified,
        )
        change = options.to_change(published.version)
        if change is not None:
            current = await asyncio.to_thread(
                self._editor.change, published.name, change, options.note, unverified=options.unverified
            )
            answer.release = await self._read(current, response, options.wait_seconds)
        response.status_code = 201 if published.is_new else 200
        return answer

    def remove_version(self, name: str, version: str) -> VersionMoved:
        """Take a version that nothing names out of the registry. It waits in the bin for 30 days."""
        _check_names(name, version)
        self._sweep()
        self._intake.remove(name, version)
        return VersionMoved(model=name, version=version, state="in_bin")

    def undelete_version(self, name: str, version: str) -> VersionMoved:
        """Bring a removed version back; it is not released by that."""
        _check_names(name, version)
        self._intake.undelete(name, version)
        return VersionMoved(model=name, version=version, state="on_disk")

    def _sweep(self) -> None:
        """A worker that was killed in an upload cannot clean up after itself."""
        with suppress(OSError):
            self._intake.sweep(time.time())

    async def _copy_in(self, request: Request) -> tuple[Staged, UpdateOptions]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            check_json_size(len(body))
        with _telling():
            options = UpdateFromPath.model_validate_json(bytes(body))
        return await asyncio.to_thread(self._intake.copy_in, Path(options.path), self._limits), options

    async def _receive(self, request: Request) -> tuple[Staged, UpdateOptions]:
        upload = Upload(request)
        with _telling():  # before the body is waited for
            UpdateOptions.model_validate(upload.fields)
        staged = await self._intake.receive_chunks(upload.chunks(), upload.kind, self._limits)
        try:
            with _telling():
                return staged, UpdateOptions.model_validate(upload.fields)
        except MalformedRequest:
            await asyncio.to_thread(staged.discard)
            raise

    async def _read(self, current: CurrentRelease, response: Response, wait_seconds: float = 0) -> ReleaseRead:
        states = await self._wait(current, wait_seconds)
        response.headers["etag"] = f'"{current.digest}"'
        return ReleaseRead(
            **current.describe(),
            has_converged=bool(states) and has_converged(states, current.model, _digest(current)),
            versions={
                version: VersionState(**entry) for version, entry in merge_versions(states, current.model).items()
            },
        )

    async def _wait(self, current: CurrentRelease, seconds: float) -> list[WorkerState]:
        """The states of the workers, once they have done what they can; at the latest after `seconds`."""
        if self._run_dir is None:
            return []
        deadline = time.monotonic() + seconds
        while True:
            states = await asyncio.to_thread(read_worker_states, self._run_dir)
            if _is_settled(states, current) or time.monotonic() >= deadline:
                return states
            if (await asyncio.to_thread(self._editor.read, current.model)).digest != current.digest:
                return states  # another change is what they go for now
            await asyncio.sleep(_POLL_SECONDS)


def _is_settled(states: list[WorkerState], current: CurrentRelease) -> bool:
    """Whether every worker has read this release and tried to load it."""
    models = [state.models.get(current.model, {}) for state in states]
    versions = [entry for model in models for entry in model.get("versions", {}).values()]
    return all(model.get("digest") == _digest(current) for model in models) and all(
        entry["state"] != "loading" for entry in versions
    )


def _digest(current: CurrentRelease) -> str | None:
    """As the workers tell it."""
    return current.digest if current.is_explicit else None


def _parse_if_match(header: str | None) -> str | None:
    """The one digest that it names; a proxy that compresses answers makes `W/"…"` of ours."""
    if header is None or header.strip() == "*":
        return None
    if "," in header:
        raise MalformedRequest("If-Match takes one ETag here: that of the release that you read")
    return header.strip().removeprefix("W/").strip('"')


def _check_names(name: str, version: str) -> None:
    if not MODEL_NAME.fullmatch(name) or not is_version(version):
        raise VersionNotFound(f"{name}@{version} names no version; write a model's name and a version, as 1.2.0")


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise MalformedRequest(f"{field}: {problem['msg']}".removeprefix(": ")) from exc
