"""GET /v1/models…: which versions there are and in which state, and which tensors they take and give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from app.api.examples import ERROR_RESPONSES
from app.api.open_inference.describe import Description
from app.api.schemas import ErrorResponse
from app.api.tf_serving.predict import SUBJECTS
from app.api.tf_serving.request import SIGNATURE
from app.api.tf_serving.versions import ServingVersions
from app.errors import Unavailable
from app.registry.serving.lifecycle import Registry
from app.registry.serving.status import State, VersionStatus
from app.registry.serving.worker_states import merge_versions, read_worker_states
from app.registry.versions import ModelRef, Version
from app.tensors import TensorSpec

_REFUSALS: dict[int | str, dict[str, Any]] = {status: ERROR_RESPONSES[status] for status in (400, 401, 404, 503)}
_VERB_REFUSAL: dict[int | str, dict[str, Any]] = {
    405: {"model": ErrorResponse, "description": "The last part of the path has a colon: a verb, which takes POST"}
}
# https://github.com/tensorflow/serving/blob/master/tensorflow_serving/apis/get_model_status.proto
_STATES = {
    State.UNLOADED: "START",
    State.LOADING: "LOADING",
    State.READY: "AVAILABLE",
    State.FAILED: "END",
    State.QUARANTINED: "END",
}
_DTYPES = {
    "BOOL": "DT_BOOL",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
}


class ServingNames(BaseModel):
    models: list[str] = Field(examples=[["digits", "efficientnet-lite0"]])


class StatusRead(BaseModel):
    error_code: str = Field("OK", examples=["OK"])
    error_message: str = ""


class VersionStatusRead(BaseModel):
    version: str = Field(examples=["123"], description="The serial of model.yaml; where it has none the version.")
    state: str = Field(description="START (loaded by its first request), LOADING, AVAILABLE or END (failed).")
    status: StatusRead


class ServingStatus(BaseModel):
    """TensorFlow Serving's clients read `model_version_status`, KServe's `ready`."""

    name: str = Field(examples=["digits"])
    ready: bool = Field(description="Whether a request would be answered, maybe after a load.")
    model_version_status: list[VersionStatusRead]


class ServingMetadata(BaseModel):
    model_spec: dict[str, str] = Field(examples=[{"name": "digits", "signature_name": "", "version": "1.1.0"}])
    metadata: dict[str, Any]


class ServingStatusApi:
    """`run_dir` holds the states of all workers of this machine; without it, this process is all there is."""

    def __init__(
        self, registry: Registry, versions: ServingVersions, description: Description, run_dir: Path | None = None
    ) -> None:
        self._registry = registry
        self._versions = versions
        self._description = description
        self._run_dir = run_dir

    def add_routes(self, router: APIRouter) -> None:
        """After those of `ServingPredictApi`: a path with a verb also looks like the name of a model."""
        tags: list[Any] = ["TensorFlow Serving"]
        router.add_api_route("/v1/models", self.list_models, response_model=ServingNames, tags=tags)
        for subject in SUBJECTS:
            parameters = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in ("name", "version", "label")
                if f"{{{name}}}" in subject
            ]
            for path, endpoint, model, more in (
                (f"{subject}/metadata", self.get_metadata, ServingMetadata, {}),
                (subject, self.get_status, ServingStatus, _VERB_REFUSAL),
            ):
                router.add_api_route(
                    path,
                    endpoint,
                    response_model=model,
                    responses=_REFUSALS | more,
                    tags=tags,
                    openapi_extra={"parameters": parameters},
                )

    def list_models(self) -> ServingNames:
        """The names of all models, as KServe's version 1 lists them."""
        return ServingNames(models=list(self._registry.models))

    def get_status(self, request: Request) -> ServingStatus:
        """Every released version; or that of the path."""
        ref = self._versions.parse(request.path_params)
        found = self._registry.find(ref)
        states = self._states(found)
        chosen = [found.version] if ref.tag is not None else sorted(states, key=Version.parse, reverse=True)
        return ServingStatus(
            name=ref.name,
            ready=self._is_ready(ref),
            model_version_status=[self._describe(ref.name, one, *states[one]) for one in chosen],
        )

    def get_metadata(self, request: Request) -> ServingMetadata:
        """The inputs and outputs of a version, which need not be loaded."""
        ref = self._versions.parse(request.path_params)
        described = self._description.model(ref.name, ref.tag)
        inputs, outputs = described.specs()
        signature = {
            "inputs": {spec.name: _describe_tensor(spec) for spec in inputs},
            "outputs": {spec.name: _describe_tensor(spec) for spec in outputs},
            "method_name": "tensorflow/serving/predict",
            "defaults": {},
        }
        number = self._versions.number(ref.name, described.manifest.version)
        return ServingMetadata(
            model_spec={"name": ref.name, "signature_name": "", "version": number},
            metadata={"signature_def": {"signature_def": {SIGNATURE: signature}}},
        )

    def _is_ready(self, ref: ModelRef) -> bool:
        try:
            self._description.check_ready(ref.name, ref.tag)
        except Unavailable:
            return False
        return True

    def _states(self, found: VersionStatus) -> dict[str, tuple[State, str | None]]:
        """The state of each version of its model, over all workers the one furthest from ready, and its error."""
        model = self._registry.models.get(found.name)
        versions = {found.version: found, **(model.versions if model is not None else {})}
        states = {version: (entry.state, entry.error) for version, entry in versions.items()}
        workers = read_worker_states(self._run_dir) if self._run_dir is not None else []
        for version, entry in merge_versions(workers, found.name).items():
            states[version] = State(entry["state"]), entry["error"]
        return states

    def _describe(self, name: str, version: str, state: State, error: str | None) -> VersionStatusRead:
        is_lost = state in (State.FAILED, State.QUARANTINED)
        return VersionStatusRead(
            version=self._versions.number(name, version),
            state=_STATES[state],
            status=StatusRead(error_code="UNAVAILABLE", error_message=error or "") if is_lost else StatusRead(),
        )


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in spec.shape]
    shape = {"dim": sizes, "unknown_rank": False}
    return {"dtype": _DTYPES[spec.datatype], "tensor_shape": shape, "name": spec.name}
