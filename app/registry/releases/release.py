"""Which version of a model gets which traffic: `release.yaml`, the desired state.

What a change makes of it is in changes.py; how it is written in editor.py.
"""

from __future__ import annotations

import datetime
import hashlib
import random
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.registry.versions import ALIAS_NAME, Version, is_version

SCHEMA = 1
STABLE = "stable"
CANARY = "canary"
SHADOW = "shadow"
HISTORY_LENGTH = 20

# eager: loaded at start; lazy: at the first request, and unloaded where memory is short; pinned: eager, never unloaded.
Load = Literal["eager", "lazy", "pinned"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _version(value: str) -> str:
    return Version.parse(value).text


class AliasEntry(_Section):
    """`weight` is the percentage of unaddressed traffic; `stable` takes what the others leave."""

    version: str
    weight: float | None = Field(default=None, ge=0, le=100)

    _good_version = field_validator("version")(_version)


class Shadow(_Section):
    """`share` is the percentage of the traffic of which a copy runs on `version` after the answer."""

    version: str
    share: float = Field(gt=0, le=100)

    _good_version = field_validator("version")(_version)


class Analysis(_Section):
    """How a canary is held against stable (monitoring/canary.py), and whether a worse one loses its traffic by itself.

    Margins are shares, as 0.01 for one point of a hundred; `false_alarm` is over the whole life of a canary.
    """

    rollback: bool = True
    errors_margin: float = Field(default=0.01, ge=0, lt=1)
    latency_margin: float = Field(default=0.05, ge=0, lt=1)
    accuracy_margin: float = Field(default=0.05, ge=0, lt=1)
    false_alarm: float = Field(default=0.01, ge=1e-6, le=0.5)
    min_requests: int = Field(default=100, ge=1)
    min_labelled: int = Field(default=30, ge=1)


class Changed(_Section):
    """Who made this revision. `restores`: a rollback, to the aliases of that revision."""

    at: datetime.datetime
    by: str
    why: str
    restores: int | None = None


class HistoryEntry(_Section):
    """The aliases of an earlier revision. Who made it is not known of one that was written by hand."""

    revision: int = Field(ge=0)
    aliases: dict[str, AliasEntry]
    at: datetime.datetime | None = None
    by: str | None = None
    why: str | None = None
    restores: int | None = None


class Release(_Section):
    """`history` begins with the newest revision; our own tools keep HISTORY_LENGTH of them."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    revision: int = Field(default=0, ge=0)
    aliases: dict[str, AliasEntry]
    shadow: Shadow | None = None
    also_serve: tuple[str, ...] = ()
    load: Load = "eager"
    analysis: Analysis | None = None
    changed: Changed | None = None
    history: tuple[HistoryEntry, ...] = ()

    @field_validator("schema_")
    @classmethod
    def _known_schema(cls, value: int) -> int:
        if value != SCHEMA:
            raise ValueError(f"this Headway reads schema {SCHEMA}; a file of schema {value} needs a newer one")
        return value

    @field_validator("also_serve")
    @classmethod
    def _good_versions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_version(version) for version in value)

    @field_validator("aliases", mode="before")
    @classmethod
    def _good_aliases(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if not ALIAS_NAME.fullmatch(str(name)) or is_version(str(name)):
                raise ValueError(f"{name!r} is not an alias: use a-z, 0-9, '_' and '-', beginning with a letter")
            if name == SHADOW:
                raise ValueError(
                    "'shadow' is not an alias: write it beside aliases, as shadow: {version: …, share: 10}"
                )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Release:
        if STABLE not in self.aliases:
            raise ValueError("aliases.stable is missing; it names the version that serves")
        if self.aliases[STABLE].weight is not None:
            raise ValueError("aliases.stable takes no weight; it gets what the others leave")
        if sum(entry.weight or 0 for entry in self.aliases.values()) > 100:
            raise ValueError("the weights of the aliases add up to more than 100")
        return self

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that is loaded, each once, `stable` first; the shadow's is one of them."""
        named = [
            self.aliases[STABLE].version,
            *(entry.version for entry in self.aliases.values()),
            *self.also_serve,
            *([self.shadow.version] if self.shadow is not None else []),
        ]
        return tuple(dict.fromkeys(named))

    @property
    def weights(self) -> dict[str, float]:
        """The percentage of unaddressed traffic that each alias gets; `stable` what the others leave."""
        others = {alias: entry.weight or 0.0 for alias, entry in self.aliases.items() if alias != STABLE}
        return {STABLE: max(0.0, round(100 - sum(others.values()), 6)), **others}

    def users_of(self, version: str) -> tuple[str, ...]:
        """The aliases and sections that name a version: why it cannot be removed."""
        users = [alias for alias, entry in self.aliases.items() if entry.version == version]
        users += [SHADOW] if self.shadow is not None and self.shadow.version == version else []
        return (*users, "also_serve") if version in self.also_serve else tuple(users)

    def route(self, model: str, routing_key: bytes | None) -> str:
        """The alias that takes a call which names none: by weight, sticky by `routing_key` where one is given.

        The same key gets the same alias on every worker and replica. While the weight of the only weighted alias is
        raised, whoever was in stays in.
        """
        weighted = [(alias, entry.weight) for alias, entry in self.aliases.items() if entry.weight]
        if not weighted:
            return STABLE
        point = random.random() if routing_key is None else bucket(model, routing_key)
        edge = 0.0
        for alias, weight in weighted:
            edge += weight / 100
            if point < edge:
                return alias
        return STABLE


def bucket(model: str, routing_key: bytes) -> float:
    """Where a routing key falls in [0, 1): the first 8 bytes of BLAKE2b(model, 0, key)."""
    digest = hashlib.blake2b(model.encode() + b"\0" + routing_key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def implicit_release(versions: list[Version]) -> Release | None:
    """What serves where there is no release.yaml: the newest final version, nothing else."""
    finals = [version for version in versions if version.is_final]
    if not finals:
        return None
    return Release(aliases={STABLE: AliasEntry(version=max(finals).text)})
