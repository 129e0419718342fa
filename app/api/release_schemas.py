"""The wire schemas of the management API, and what each asks of the registry. They end here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from app.registry.releases.changes import (
    AlsoServe,
    Change,
    Drop,
    Promote,
    Replace,
    Rollback,
    SetAlias,
    SetAnalysis,
    SetLoad,
    SetShadow,
)
from app.registry.releases.editor import Note
from app.registry.releases.release import CANARY, STABLE, AliasEntry, Analysis, Load, Shadow

DEFAULT_BY = "management API"
_VERSION = Field(description="A version, or an alias that names it.", examples=["1.2.0"])
_UNVERIFIED = Field(False, description="A version without golden requests may become stable, too.")


class _Asked(BaseModel):
    """What every change may carry: the reason and the author, for the history."""

    model_config = ConfigDict(extra="forbid")

    why: str | None = None
    by: str = DEFAULT_BY

    @property
    def note(self) -> Note:
        return Note(self.by, self.why)


class SetAction(_Asked):
    """Let an alias name a version; without `weight` it gets no traffic of its own."""

    action: Literal["set"]
    alias: str
    version: str = _VERSION
    weight: float | None = None
    unverified: bool = _UNVERIFIED

    def to_change(self) -> Change:
        return SetAlias(self.alias, self.version, self.weight)


class CanaryAction(_Asked):
    """Give a version `weight` percent of the traffic."""

    action: Literal["canary"]
    version: str = _VERSION
    weight: float

    def to_change(self) -> Change:
        return SetAlias(CANARY, self.version, self.weight)


class ShadowAction(_Asked):
    """Run a copy of `share` percent of the traffic on a version."""

    action: Literal["shadow"]
    version: str = _VERSION
    share: float

    def to_change(self) -> Change:
        return SetShadow(self.version, self.share)


class AlsoServeAction(_Asked):
    """Make a version addressable by its number."""

    action: Literal["also_serve"]
    version: str = _VERSION

    def to_change(self) -> Change:
        return AlsoServe(self.version)


class PromoteAction(_Asked):
    """Make a version stable; a canary or shadow of that version ends."""

    action: Literal["promote"]
    version: str = _VERSION
    unverified: bool = _UNVERIFIED

    def to_change(self) -> Change:
        return Promote(self.version)


class RollbackAction(_Asked):
    """Bring back the aliases of revision `to`, else of the newest with another stable version."""

    action: Literal["rollback"]
    to: int | None = None

    def to_change(self) -> Change:
        return Rollback(self.to)


class DropAction(_Asked):
    """Take out an alias, the shadow (`shadow`), or a version of also_serve."""

    action: Literal["drop"]
    name: str

    def to_change(self) -> Change:
        return Drop(self.name)


class LoadAction(_Asked):
    """When the model is loaded: at start, by its first request, or at start and never unloaded."""

    action: Literal["load"]
    load: Load

    def to_change(self) -> Change:
        return SetLoad(self.load)


class AnalysisAction(_Asked):
    """How canaries are judged; what is left out stays as it is."""

    action: Literal["analysis"]
    analysis: Analysis

    def to_change(self) -> Change:
        return SetAnalysis(self.analysis.model_dump(exclude_unset=True))


class DesiredState(_Asked):
    """The whole release, as it stands in release.yaml; what is left out has its default."""

    aliases: dict[str, AliasEntry] = Field(examples=[{"stable": {"version": "1.1.0"}}])
    shadow: Shadow | None = None
    also_serve: tuple[str, ...] = ()
    load: Load = "eager"
    unverified: bool = _UNVERIFIED

    def to_change(self) -> Change:
        return Replace(self.aliases, self.shadow, self.also_serve, self.load)


_STATE = "the whole release"


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return str(content.get("action", _STATE))
    return str(getattr(content, "action", _STATE))


ReleaseChange = Annotated[
    Annotated[SetAction, Tag("set")]
    | Annotated[CanaryAction, Tag("canary")]
    | Annotated[ShadowAction, Tag("shadow")]
    | Annotated[AlsoServeAction, Tag("also_serve")]
    | Annotated[PromoteAction, Tag("promote")]
    | Annotated[RollbackAction, Tag("rollback")]
    | Annotated[DropAction, Tag("drop")]
    | Annotated[LoadAction, Tag("load")]
    | Annotated[AnalysisAction, Tag("analysis")]
    | Annotated[DesiredState, Tag(_STATE)],
    Discriminator(
        _kind,
        custom_error_type="unknown_action",
        custom_error_message="action is one of set, canary, shadow, also_serve, promote, rollback, drop, load "
        "and analysis",
    ),
]


class VersionState(BaseModel):
    """`state` is the one furthest from ready; `workers` counts them by state."""

    state: str
    error: str | None = None
    workers: dict[str, int]


class ReleaseRead(BaseModel):
    """`release` is null where the model has neither a release.yaml nor a final version."""

    model: str
    is_explicit: bool = Field(description="Whether release.yaml is there; else the newest final version serves.")
    digest: str = Field(description="Of the file, as in the ETag: send it as If-Match with a change.")
    release: dict[str, Any] | None
    has_converged: bool = Field(description="Whether every worker of this machine serves what the release asks for.")
    versions: dict[str, VersionState] = Field(description="What the workers of this machine have loaded.")


class UpdateOptions(_Asked):
    """What may go with a new version; with `alias` it is released at once."""

    alias: str | None = Field(None, examples=["canary"])
    weight: float | None = None
    unverified: bool = _UNVERIFIED
    any_step: bool = Field(False, description="Take a version that differs by more than its number says.")
    wait_seconds: float = Field(0, ge=0, le=600, description="Wait so long until the workers serve it.")

    def to_change(self, version: str) -> Change | None:
        if self.alias is None:
            return None
        return (
            Promote(version)
            if self.alias == STABLE and self.weight is None
            else SetAlias(self.alias, version, self.weight)
        )


class UpdateFromPath(UpdateOptions):
    """A version directory of the server's own machine."""

    path: str


class UpdateRead(BaseModel):
    """`is_new` is false where the same version was there already."""

    model: str
    version: str
    is_new: bool
    is_verified: bool = Field(description="Whether golden requests hold it to its answers.")
    release: ReleaseRead | None = Field(None, description="Where it was released at once.")


class VersionMoved(BaseModel):
    model: str
    version: str
    state: str = Field(examples=["in_bin"], description="in_bin or on_disk.")
