"""What the protocol's reading routes answer, for the OpenAPI document."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ServerRead(BaseModel):
    name: str = Field(examples=["headway"])
    version: str
    extensions: list[str] = Field(examples=[["binary_tensor_data", "statistics"]])


class LiveRead(BaseModel):
    live: bool


class ReadyRead(LiveRead):
    ready: bool


class ModelNames(BaseModel):
    models: list[str]


class ModelReadyRead(BaseModel):
    name: str
    ready: bool


class TensorRead(BaseModel):
    """A size of -1 is free."""

    name: str
    datatype: str = Field(examples=["FP32"])
    shape: list[int] = Field(examples=[[-1, 64]])


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="Those that are released.", examples=[["1.0.0", "1.1.0"]])
    platform: str = Field(examples=["onnxruntime_onnx"])
    inputs: list[TensorRead]
    outputs: list[TensorRead]


class ConfigTensor(BaseModel):
    """`dims` are without the rows where `max_batch_size` is not 0."""

    name: str
    data_type: str = Field(examples=["TYPE_FP32"])
    dims: list[int] = Field(examples=[[64]])


class SpecificVersions(BaseModel):
    versions: list[str]


class VersionPolicy(BaseModel):
    specific: SpecificVersions


class DynamicBatching(BaseModel):
    """How many rows share a run, and how long the first waits for others."""

    preferred_batch_size: list[int]
    max_queue_delay_microseconds: int


class ModelConfig(BaseModel):
    name: str
    platform: str
    backend: str
    version_policy: VersionPolicy
    max_batch_size: int = Field(description="The most rows that a request should have; 0 where they are not rows.")
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    dynamic_batching: DynamicBatching | None = None


class Duration(BaseModel):
    count: int = Field(ge=0)
    ns: int = Field(ge=0)


class ComputeDurations(BaseModel):
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class InferenceDurations(ComputeDurations):
    success: Duration
    fail: Duration
    queue: Duration
    cache_hit: Duration
    cache_miss: Duration


class BatchStatistics(ComputeDurations):
    batch_size: int


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: int = Field(ge=0, description="Unix time in ms; 0 before the first.")
    inference_count: int = Field(ge=0, description="Rows that were run.")
    execution_count: int = Field(ge=0, description="Runs.")
    inference_stats: InferenceDurations
    batch_stats: list[BatchStatistics]


class StatisticsRead(BaseModel):
    model_stats: list[ModelStatistics]


class IndexEntry(BaseModel):
    name: str
    version: str
    state: str = Field(examples=["READY"], description="READY, LOADING or UNAVAILABLE.")
    reason: str
