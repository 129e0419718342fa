"""All settings: environment variables with the prefix HEADWAY_, built once at the top and passed down.

The reference with every default is docs/reference/settings.md; a test holds it equal to this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Values are checked when built; a wrong one raises ValidationError naming the variable."""

    model_config = SettingsConfigDict(
        env_prefix="HEADWAY_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    uds: Path | None = Field(None, description="Unix socket to listen on instead of an address and a port.")
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="Port for gRPC, on the address of HTTP; 0 takes a free one; closed if unset."
    )
    models: Path = Field(Path("models"), description="The registry directory.")
    releases: Path | None = Field(
        None, description="Directory of the release.yaml files; the registry itself if unset."
    )
    bin_days: float = Field(30, ge=0, description="How long removed versions can be had again, in days.")
    workers: int | None = Field(None, ge=1, le=512, description="Worker processes; chosen from the CPUs if unset.")
    threads: int | None = Field(None, ge=1, le=512, description="Inference threads in each worker; chosen if unset.")
    cpus: float | None = Field(None, gt=0, description="CPUs to plan for; the cgroup's quota or the affinity if unset.")
    strict: bool = Field(False, description="Not ready while any released model has failed to load.")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that open the prediction routes, separated by commas; open to all if unset."
    )
    management_bind: str = Field(
        "127.0.0.1:8001",
        description="Address and port of the management API, which is open only where an admin token is set.",
    )
    admin_token: SecretStr | None = Field(None, description="Token that opens the management API; closed if unset.")
    admin_token_file: Path | None = Field(None, description="File that holds the admin token, instead.")
    repository_calls: bool = Field(
        False,
        description="Load and unload of the Open Inference Protocol on the public ports too, HTTP and gRPC: with the "
        "admin token where one is set; without one for everybody who reaches them.",
    )
    max_upload_bytes: int = Field(
        5_000_000_000, ge=1024, description="Largest version that the management API takes, unpacked."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose pages may call the API, separated by commas; * for all."
    )
    root_path: str = Field("", description="Path prefix that a proxy strips, as /models.")
    forwarded_allow_ips: str = Field(
        "127.0.0.1",
        description="Proxies whose X-Forwarded-* headers are believed, separated by commas; * for all.",
    )
    ssl_certfile: Path | None = Field(None, description="TLS certificate chain (PEM).")
    ssl_keyfile: Path | None = Field(None, description="TLS private key (PEM).")

    max_body_bytes: int = Field(20_000_000, ge=1024, description="Largest request body; larger ones get 413.")
    max_inflight_bytes: int | None = Field(
        None,
        ge=1024,
        description="Bodies held at one time over all workers; a quarter of the memory limit if unset.",
    )
    max_items: int = Field(64, ge=1, le=10_000, description="Most images or texts in one request.")
    body_timeout_seconds: float = Field(30, gt=0, description="Time to receive a whole body; then 408.")
    body_min_bytes_per_second: int = Field(
        1024,
        ge=0,
        description="Slowest pace of a body, on average, once a third of its time has passed; then 408. 0 sets none.",
    )
    deadline_ms: int = Field(10_000, ge=1, description="Time to answer, from the last byte of the body; then 504.")
    max_deadline_ms: int = Field(60_000, ge=1, description="Largest deadline that a caller may ask for.")
    trust_priority: bool = Field(False, description="Heed Headway-Priority; else every caller could call itself high.")
    drain_seconds: float | None = Field(
        None,
        ge=0,
        description="After SIGTERM: how long requests are still taken while ready answers 503; 5, and 0 on a terminal.",
    )
    graceful_timeout_seconds: float = Field(
        90, gt=0, description="After SIGTERM: when workers that have not ended are killed."
    )
    keepalive_seconds: int = Field(75, ge=1, description="How long an idle connection is kept open.")

    data_dir: Path = Field(
        Path("data"), description="Directory for what is kept beyond the registry: the secret and the SQLite database."
    )
    secret: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Keys of the prediction ids, id:secret, separated by commas: the first signs, all verify; "
        "made once in the data directory if unset.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of feedback and counts, postgresql+psycopg://…; SQLite in the data directory if unset.",
    )
    replicas: int = Field(1, ge=1, description="Servers that share the database; more than one need PostgreSQL.")
    feedback_days: float = Field(30, gt=0, description="How long after its answer feedback on it is taken, in days.")
    feedback_keep_days: float = Field(400, gt=0, description="How long feedback and counts are kept, in days.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe log line shown.")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, else JSON lines."
    )
    access_log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests that get a line in the log; errors of the server always do.",
    )

    @field_validator("api_keys", "cors_origins", "secret", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("management_bind")
    @classmethod
    def _good_address(cls, value: str) -> str:
        _parse_address(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("HEADWAY_SSL_CERTFILE and HEADWAY_SSL_KEYFILE are set together or not at all")
        if self.deadline_ms > self.max_deadline_ms:
            raise ValueError("HEADWAY_DEADLINE_MS must not be larger than HEADWAY_MAX_DEADLINE_MS")
        if self.replicas > 1 and self.database_url is None:
            raise ValueError("HEADWAY_REPLICAS above 1 needs HEADWAY_DATABASE_URL: SQLite is of one machine alone")
        if self.admin_token is not None and self.admin_token_file is not None:
            raise ValueError("set HEADWAY_ADMIN_TOKEN or HEADWAY_ADMIN_TOKEN_FILE, not both")
        return self

    @property
    def open_calls_warning(self) -> str | None:
        """For the log of the start, where whoever comes may change what is served."""
        if not self.repository_calls or self.admin_token is not None or self.admin_token_file is not None:
            return None
        who = "whoever has an API key" if self.api_keys else "everybody who reaches the server"
        return f"HEADWAY_REPOSITORY_CALLS lets {who} load and unload models; set HEADWAY_ADMIN_TOKEN to ask for a token"

    @property
    def management_address(self) -> tuple[str, int]:
        return _parse_address(self.management_bind)

    def read_admin_token(self) -> str | None:
        """None where the management API is to stay closed. Raises ValueError where the file cannot be used."""
        if self.admin_token is not None:
            return self.admin_token.get_secret_value()
        if self.admin_token_file is None:
            return None
        try:
            token = self.admin_token_file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as exc:
            raise ValueError(f"HEADWAY_ADMIN_TOKEN_FILE: {self.admin_token_file} cannot be read ({exc})") from exc
        if not token:
            raise ValueError(f"HEADWAY_ADMIN_TOKEN_FILE: {self.admin_token_file} is empty; write a token into it")
        return token


def _parse_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("write an address and a port, as 127.0.0.1:8001 or [::1]:8001")
    return host.removeprefix("[").removesuffix("]"), int(port)
