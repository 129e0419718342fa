"""The models of one process: brought to what the registry directory asks for, and asked who answers a reference.

New versions are loaded, tried and warmed beside what serves, then take over at once. What fails is reported, and what
served before goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from app.errors import (
    HeadwayError,
    ModelFailed,
    ModelNotFound,
    ModelNotReady,
    ModelQuarantined,
    ModelRequired,
    ModelUnloaded,
    RegistryError,
    VersionNotFound,
    VersionNotReleased,
)
from app.registry.releases.release import STABLE, Release
from app.registry.servables.opening import Opener
from app.registry.servables.servable import ContentKind, Servable
from app.registry.servables.servable import Resolved as Resolved  # what `resolve` gives
from app.registry.serving.desired import GONE_SECONDS, Desired, Watch
from app.registry.serving.quarantine import WorkerQuarantine
from app.registry.serving.status import ModelStatus, State, VersionStatus, choose_serving
from app.registry.serving.version_loader import VersionLoader, quarantined_status
from app.registry.serving.wishes import Wish, Wishes
from app.registry.store import Defaults, Store
from app.registry.versions import ModelRef, Version, is_version

logger = logging.getLogger(__name__)


class Registry:
    """`load` and `reconcile` are called in one thread, the rest in any: state is replaced, never changed."""

    def __init__(
        self,
        store: Store,
        threads: int = 1,
        cpu_features: frozenset[str] = frozenset(),
        quarantine: WorkerQuarantine | None = None,
        available_bytes: Callable[[], int | None] = lambda: None,
        gone_seconds: float = GONE_SECONDS,
        wishes: Wishes | None = None,
    ) -> None:
        """`quarantine`: where this process is a worker of a server that has one. `available_bytes`: free memory."""
        self._wishes = wishes or Wishes(None)
        self._wished: Mapping[str, Wish] = {}
        self._store = store
        self._threads = threads
        self._quarantine = quarantine
        self._loader = VersionLoader(
            store, threads, cpu_features, quarantine, available_bytes, resolve_step=self._resolve_step
        )
        self._withdrawn = 0  # of the quarantined versions
        self._change = threading.Lock()
        self._gone_seconds = gone_seconds
        self._watch = Watch(store, gone_seconds)
        self._models: Mapping[str, ModelStatus] = {}
        self._defaults = Defaults()
        self._wanted_now: frozenset[str] = frozenset()
        self.has_more_to_do = threading.Event()  # a look is worth while now
        self._is_loaded = False

    @property
    def models(self) -> Mapping[str, ModelStatus]:
        return self._models

    @property
    def store(self) -> Store:
        return self._store

    @property
    def defaults(self) -> dict[str, str]:
        """The default model of each kind of content that has one."""
        return self._defaults.model_dump(exclude_none=True)

    @property
    def is_loaded(self) -> bool:
        """Whether a first attempt at every released version was made."""
        return self._is_loaded

    def load(self, names: Iterable[str] | None = None) -> None:
        """Load every released version (of `names`, else of all models) afresh. Never raises for a bad model."""
        self._watch = Watch(self._store, self._gone_seconds)
        self._read_defaults()
        self._wished = self._wishes.read()
        wanted = self._watch.look()
        chosen = set(wanted) if names is None else set(names) & set(wanted)
        with self._change:
            self._models = {}
        for name in self._steps_first(sorted(chosen), wanted):
            self._replace(self._converge(wanted[name], None, lambda _: None))
        while (waiting := self._find_due_composition(wanted)) is not None:
            self._replace(self._converge(wanted[waiting], self._models[waiting], lambda _: None))
        with self._change:
            self._models = dict(sorted(self._models.items()))
            self._withdrawn = 0
            self._is_loaded = True
        self.withdraw_quarantined()

    def reconcile(
        self,
        on_change: Callable[[], None] = lambda: None,
        turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> list[Servable]:
        """One look at the directory: load what is new, let it take over, and return what serves no more.

        `on_change` is called whenever `models` has changed; a load is made within `turn()`. What is returned is kept by
        whoever still runs it, and its memory is given back after that.
        """
        if self._store.root.is_dir():
            self._read_defaults()
        self._wished = self._wishes.read()
        wanted = self._watch.look()
        retired: list[Servable] = []

        def publish(status: ModelStatus) -> None:
            self._replace(status)
            on_change()

        def converge(name: str) -> None:
            before = self._models.get(name)
            with turn():
                publish(self._converge(wanted[name], before, publish))
            retired.extend(_lost(before, self._models[name]))

        changed = [name for name, desired in wanted.items() if self._has_changed(desired)]
        for name in self._steps_first(changed, wanted):
            converge(name)
        while (waiting := self._find_due_composition(wanted)) is not None:
            converge(waiting)
        for name in set(self._models) - set(wanted):
            with self._change:
                before = self._models[name]
                self._models = {key: status for key, status in self._models.items() if key != name}
            retired += _lost(before, None)
            on_change()
        self.withdraw_quarantined()
        return retired

    def open(self, ref: ModelRef) -> Resolved:
        """Load one model for use without a server; an exact version need not be released.

        Raises ModelNotFound and its kin, RegistryError or RuntimeLoadError.
        """
        return Opener(self._store, self._threads).open(ref)

    def close(self) -> None:
        models, self._models = self._models, {}
        for model in models.values():
            for status in model.versions.values():
                if status.servable is not None:
                    status.servable.close()

    def resolve(self, ref: ModelRef, routing_key: bytes | None = None) -> Resolved:
        """The version that answers `ref`. Raises ModelNotFound and its kin, ModelNotReady, ModelFailed or its kin."""
        model, release = self._find_model(ref.name)
        if ref.tag is None:
            return self._route(model, routing_key)
        version, alias = self._find_version(model, release, ref.tag)
        return self._servable(model, version, alias)

    def find(self, ref: ModelRef) -> VersionStatus:
        """What is known of a released version, by default of stable's; nothing is loaded by that.

        Raises ModelNotFound and its kin, ModelNotReady while the first load goes on, ModelFailed for a bad release.
        """
        model, release = self._find_model(ref.name)
        return model.versions[self._find_version(model, release, ref.tag or STABLE)[0]]

    def shadow_of(self, name: str) -> tuple[Servable, float] | None:
        """The shadow version of a model and its share in percent, where it has one that is ready."""
        model = self._models.get(name)
        shadow = model.release.shadow if model is not None and model.release is not None else None
        if model is None or shadow is None or shadow.version not in model.versions:
            return None
        servable = model.versions[shadow.version].servable
        return (servable, shadow.share) if servable is not None else None

    def withdraw_quarantined(self) -> None:
        """Serve no more what was quarantined since the last call; 0.1 µs where nothing was."""
        if self._quarantine is None or self._quarantine.length == self._withdrawn:
            return
        with self._change:
            labels = self._quarantine.list_labels()
            self._models = {name: _withdraw(model, frozenset(labels)) for name, model in self._models.items()}
            self._withdrawn = len(labels)

    def default_for(self, kind: ContentKind) -> ModelRef:
        """The model for content of this kind where the caller names none. Raises ModelRequired with the choice."""
        named = getattr(self._defaults, kind)
        if named is not None:
            return ModelRef(named)
        fitting = [model.name for model in self._models.values() if _takes(model, kind)]
        if len(fitting) == 1:
            return ModelRef(fitting[0])
        if not fitting and not self._is_loaded:
            raise ModelNotReady("the models are still loading; try again in a second")
        choice = f"choose one of {', '.join(fitting)}" if fitting else "none is served"
        raise ModelRequired(f"name the model that shall take this {kind}: {choice}")

    # --- who answers

    def _route(self, model: ModelStatus, routing_key: bytes | None) -> Resolved:
        """By the weights; a canary that is not there leaves its share to stable."""
        assert model.release is not None
        alias = model.release.route(model.name, routing_key)
        is_there = alias == STABLE or alias in model.serving
        resolved = self._answering(model, alias if is_there else STABLE)
        resolved.is_drawn = is_there
        resolved.fallback_from = None if is_there else alias
        return resolved

    def _find_model(self, name: str) -> tuple[ModelStatus, Release]:
        self.withdraw_quarantined()
        model = self._models.get(name)
        if model is None:
            if not self._is_loaded:
                raise ModelNotReady("the models are still loading; try again in a second")
            raise ModelNotFound(f"there is no model {name!r}; served are {', '.join(self._models) or 'none'}")
        if model.release is None:
            raise ModelFailed(f"model {name!r} cannot be served: {model.error}")
        if model.is_unloaded:
            raise ModelUnloaded(f"model {name!r} was unloaded by request; load it again to have it served")
        return model, model.release

    def _find_version(self, model: ModelStatus, release: Release, tag: str) -> tuple[str, str | None]:
        """The version, and the alias where `tag` is one: what the caller names always wins."""
        if tag in release.aliases:
            return model.serving.get(tag, release.aliases[tag].version), tag
        if tag in release.versions:
            return tag, None
        served = ", ".join([*release.aliases, *release.versions])
        if not is_version(tag):
            raise VersionNotFound(f"model {model.name!r} has no alias {tag!r}; it has {served}")
        if any(version.text == tag for version in self._store.version_names(model.name)):
            raise VersionNotReleased(
                f"version {tag} of {model.name!r} is in the registry but not released; released are {served}"
            )
        raise VersionNotFound(f"model {model.name!r} has no version {tag}; it has {served}")

    def _answering(self, model: ModelStatus, alias: str) -> Resolved:
        assert model.release is not None
        return self._servable(model, model.serving.get(alias, model.release.aliases[alias].version), alias)

    def _servable(self, model: ModelStatus, version: str, alias: str | None) -> Resolved:
        status = model.versions[version]
        if status.servable is not None:
            return Resolved(status.servable, alias)
        if status.state is State.QUARANTINED:
            raise ModelQuarantined(str(status.error))
        if status.state is State.UNLOADED:
            self._wanted_now |= {status.label}
            self.has_more_to_do.set()
        if status.state in (State.UNLOADED, State.LOADING):
            raise ModelNotReady(f"{status.label} is being loaded; try again in a second")
        raise ModelFailed(f"{status.label} cannot be served: {status.error}")

    # --- what is there

    def _replace(self, status: ModelStatus) -> None:
        with self._change:
            self._models = {**self._models, status.name: status}
            self._withdrawn = 0

    def _read_defaults(self) -> None:
        try:
            self._defaults = self._store.defaults()
        except (RegistryError, OSError) as exc:
            logger.error("%s", exc)

    def _resolve_step(self, ref: ModelRef, routing_key: bytes | None) -> Resolved:
        """As `resolve`; also while the first load goes on."""
        if ref.name not in self._models:
            raise ModelNotFound(f"there is no model {ref.name!r}; served are {', '.join(self._models) or 'none'}")
        return self.resolve(ref, routing_key)

    def _has_changed(self, desired: Desired) -> bool:
        before = self._models.get(desired.name)
        if before is None or before.desired is not desired or before.wish != self._wished.get(desired.name):
            return True
        return any(map(self._is_due, before.versions.values()))

    def _steps_first(self, names: Iterable[str], wanted: Mapping[str, Desired]) -> list[str]:
        """Models after those that their compositions name."""
        levels: dict[str, int] = {}

        def level(name: str) -> int:
            if name not in levels:
                levels[name] = 0  # for a circle, which loading tells
                release = wanted[name].release if name in wanted else None
                refs = (
                    [ref for version in release.versions for ref in self._step_refs(name, version)] if release else []
                )
                levels[name] = max((1 + level(ref.name) for ref in refs), default=0)
            return levels[name]

        return sorted(names, key=level)

    def _step_refs(self, name: str, version: str) -> tuple[ModelRef, ...]:
        """The steps of a composition; none where it is none, or cannot be read."""
        manifest = self._store.version(name, Version.parse(version)).manifest
        composition = manifest.composition if manifest is not None else None
        return tuple(step.ref for step in composition.steps) if composition is not None else ()

    def _find_due_composition(self, wanted: Mapping[str, Desired]) -> str | None:
        """A model with a composition that failed, of which other versions answer for the steps now than then."""
        for name, model in self._models.items():
            versions = model.versions.values()
            if name in wanted and any(status.steps and self._is_due(status) for status in versions):
                return name
        return None

    def _answering_for(self, refs: Iterable[ModelRef]) -> dict[ModelRef, str | None]:
        """The versions that answer for steps now, None where none does."""
        found: dict[ModelRef, str | None] = {}
        for ref in refs:
            try:
                servable = self.resolve(ModelRef(ref.name, ref.tag or STABLE)).servable
            except HeadwayError:
                found[ref] = None
            else:
                found[ref] = f"{servable.name}@{servable.version}"
        return found

    def _is_due(self, status: VersionStatus) -> bool:
        """Whether to load what was not loaded, or failed, before."""
        if status.state is State.UNLOADED:
            return status.label in self._wanted_now
        if status.state is State.FAILED:
            return (
                time.monotonic() >= status.retry_at
                or status.fingerprint != self._loader.fingerprint(status)
                or (bool(status.steps) and status.steps != self._answering_for(status.steps))
            )
        return status.state is State.LOADING

    def _converge(
        self, desired: Desired, before: ModelStatus | None, publish: Callable[[ModelStatus], None]
    ) -> ModelStatus:
        """Load what `desired` asks for and is not there; tells `publish` before a load that takes its time."""
        release, wish = desired.release, self._wished.get(desired.name)
        if release is None:
            return ModelStatus(desired, wish=wish)
        known = dict(before.versions) if before is not None else {}
        if wish is not None and not wish.is_load:
            return ModelStatus(desired, {one: self._unloaded(desired.name, one) for one in release.versions}, wish=wish)
        serving = dict(before.serving) if before is not None else {}
        loads_all = wish is not None and (before is None or before.wish != wish)
        versions = {
            version: self._keep(release, desired.name, version, known.get(version), loads_all=loads_all)
            for version in release.versions
        }
        missing = [version for version, status in versions.items() if status.state is State.LOADING]
        if missing and before is not None and before.release is not None:
            publish(replace(before, versions=known | {one: versions[one] for one in missing}, wish=wish))
        for version in missing:
            steps = self._answering_for(self._step_refs(desired.name, version))
            versions[version] = self._loader.load(versions[version], steps)
        there = {version: status for version, status in known.items() if status.servable is not None}
        serving = choose_serving(release, there | versions, serving)
        kept = {version: there[version] for version in serving.values() if version not in versions}
        return ModelStatus(desired, versions | kept, serving, wish)

    def _keep(
        self, release: Release, name: str, version: str, known: VersionStatus | None, *, loads_all: bool
    ) -> VersionStatus:
        """A version as it is, or as one that has to be loaded; `loads_all`, also what is not due by itself."""
        if known is None and release.load == "lazy" and not loads_all:
            return self._unloaded(name, version)
        if known is None:
            return VersionStatus(name, version, State.LOADING)
        is_due = self._is_due(known) or (loads_all and known.state in (State.UNLOADED, State.FAILED))
        return replace(known, state=State.LOADING) if is_due else known

    def _unloaded(self, name: str, version: str) -> VersionStatus:
        return VersionStatus(name, version, State.UNLOADED, kind=self._loader.read_kind(name, version))


def _takes(model: ModelStatus, kind: ContentKind) -> bool:
    if model.release is None:
        return False
    return model.versions[model.serving.get(STABLE, model.release.aliases[STABLE].version)].kind == kind


def _withdraw(model: ModelStatus, labels: frozenset[str]) -> ModelStatus:
    """The model without these versions. What still runs one goes on with it; its memory is given back after that."""
    versions = {
        version: quarantined_status(status, status.kind) if status.label in labels else status
        for version, status in model.versions.items()
    }
    return replace(model, versions=versions)


def _lost(before: ModelStatus | None, after: ModelStatus | None) -> list[Servable]:
    """What `before` served and `after` does not."""
    left = {id(status.servable) for status in after.versions.values()} if after is not None else set()
    gone = [status.servable for status in before.versions.values()] if before is not None else []
    return [servable for servable in gone if servable is not None and id(servable) not in left]
