"""What compositions name: no circles, no levels without end, nothing that is taken from under them."""

from __future__ import annotations

from app.errors import RegistryError
from app.registry.manifest import Manifest
from app.registry.releases.release import STABLE
from app.registry.servables.composed import MAX_DEPTH
from app.registry.store import Store
from app.registry.versions import ModelRef, Version, is_version


def check_steps(store: Store, manifest: Manifest) -> None:
    """Follow the steps of a version as they are on disk. Raises RegistryError for a circle, or too many levels.

    What cannot be found or read is left to whoever loads it.
    """
    _follow(store, manifest, ())


def list_step_users(store: Store, model: str) -> dict[str, str]:
    """The versions and aliases of a model that compositions name which are served, each with one of those."""
    users: dict[str, str] = {}
    for name in store.model_names():
        try:
            release, _ = store.release(name)
        except (RegistryError, OSError):
            continue
        for text in release.versions if release is not None else ():
            manifest = store.version(name, Version.parse(text)).manifest
            if manifest is not None and manifest.composition is not None:
                refs = [step.ref for step in manifest.composition.steps]
                users |= {ref.tag: f"{name}@{text}" for ref in refs if ref.name == model and ref.tag}
    return users


def _follow(store: Store, manifest: Manifest, trail: tuple[str, ...]) -> None:
    label = f"{manifest.name}@{manifest.version}"
    if manifest.composition is None:
        return
    if label in trail or len(trail) >= MAX_DEPTH:
        path = store.root / trail[0].replace("@", "/") / "model.yaml" if trail else store.root / label
        what = "name each other in a circle" if label in trail else f"are more than {MAX_DEPTH} levels"
        raise RegistryError(f"{path}: composition.steps: {' → '.join([*trail, label])} {what}; take one step out")
    for step in manifest.composition.steps:
        for version in _versions_of(store, step.ref):
            found = store.version(step.ref.name, version).manifest
            if found is not None:
                _follow(store, found, (*trail, label))


def _versions_of(store: Store, ref: ModelRef) -> list[Version]:
    """All that may answer a reference: of a model without a tag each version that gets traffic."""
    if ref.tag is not None and is_version(ref.tag):
        return [Version.parse(ref.tag)]
    try:
        release, _ = store.release(ref.name)
    except (RegistryError, OSError):
        return []
    aliases = release.aliases if release is not None else {}
    chosen = [ref.tag] if ref.tag else [alias for alias, entry in aliases.items() if entry.weight or alias == STABLE]
    return [Version.parse(aliases[alias].version) for alias in chosen if alias in aliases]
