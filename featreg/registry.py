"""Finding backends: entry points, one plugin at a time, and resolving ``"timm:resnet50"``.

Three steps, each as late as can be: :meth:`Registry.names` reads metadata and runs no plugin code, :meth:`Registry.spec`
loads one plugin's light module, :meth:`Registry.backend` imports its framework. Whatever goes wrong in one plugin is kept
as its failure and raised when that backend is asked for; the others are not touched.

``FEATREG_ONLY`` and ``FEATREG_DISABLE`` hold comma-separated backend names; ``FEATREG_STRICT=1`` makes any failure an
error at once.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

import attrs
import pluggy

from featreg import hookspecs
from featreg.errors import (
    AmbiguousModelError,
    BackendError,
    DuplicateBackendError,
    FeatregError,
    MissingDependencyError,
    PluginHookError,
    PluginImportError,
    SpecVersionError,
    UnknownBackendError,
    UnknownModelError,
    near_matches,
)
from featreg.hookspecs import PROJECT, BackendSpec
from featreg.plugin import Backend
from featreg.spec import SPEC_VERSION

__all__ = ["Plugin", "Registry", "default_registry", "guarded"]

T = TypeVar("T")


@attrs.frozen
class Plugin:
    """One entry point of the group ``featreg``: the backend's name, where it points, and who ships it."""

    name: str
    target: str
    distribution: str
    version: str


class Registry:
    """The backends that are installed, each loaded when it is first asked for."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environ is None else environ
        self._only = _names(environment.get("FEATREG_ONLY", ""))
        self._disabled = _names(environment.get("FEATREG_DISABLE", ""))
        self._strict = environment.get("FEATREG_STRICT", "") == "1"
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._lock = threading.RLock()
        self._specs: dict[str, BackendSpec] = {}
        self._backends: dict[str, Backend] = {}
        self._failures: dict[str, FeatregError] = {}
        self._plugins = dict(self._discover())

    # --- names: no plugin code runs --------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The names of all backends, broken ones too, sorted. With ``FEATREG_STRICT=1`` a broken one raises."""
        if self._strict:
            for name in self._plugins:
                self.spec(name)
        return tuple(sorted(self._plugins))

    def plugin(self, name: str) -> Plugin:
        """Where a backend comes from; raises UnknownBackendError with the nearest names or the pip line."""
        if name in self._plugins:
            return self._plugins[name]
        if name in self._hidden(name):
            raise UnknownBackendError(
                f"the backend {name!r} is switched off", remedy="unset FEATREG_DISABLE or FEATREG_ONLY, or change them"
            )
        remedy = "featreg backends lists those that are installed"
        if name in _extras():
            remedy = f'pip install "{PROJECT}[{name}]"'
        raise UnknownBackendError(
            f"no backend {name!r} is installed",
            f"one of {', '.join(sorted(self._plugins)) or '(none is installed)'}",
            repr(name),
            near_matches(name, [*self._plugins, *(extra for extra in _extras() if extra not in self._plugins)]),
            remedy,
        )

    def failures(self) -> dict[str, FeatregError]:
        """Every plugin that cannot be used and why, after trying them all; imports no framework."""
        for name in sorted(self._plugins):
            self._quiet_spec(name)
        return dict(self._failures)

    def _discover(self) -> Iterator[tuple[str, Plugin]]:
        found: dict[str, list[Plugin]] = {}
        for point in metadata.entry_points(group=PROJECT):
            owner = point.dist
            plugin = Plugin(point.name, point.value, owner.name if owner else "", owner.version if owner else "")
            known = found.setdefault(point.name, [])
            if all(other.distribution != plugin.distribution for other in known):  # one on sys.path twice is one
                known.append(plugin)
        for name, plugins in found.items():
            if self._hidden(name):
                continue
            yield name, plugins[0]
            if len(plugins) > 1:
                owners = sorted(plugin.distribution for plugin in plugins)
                self._fail(
                    name,
                    DuplicateBackendError(
                        f"the backend name {name!r} is claimed by {len(owners)} distributions: {', '.join(owners)}",
                        "one distribution per name",
                        remedy=f"pip uninstall all but one of {', '.join(owners)}",
                    ),
                )

    def _hidden(self, name: str) -> set[str]:
        off = name in self._disabled or (self._only and name not in self._only)
        return {name} if off else set()

    def _fail(self, name: str, failure: FeatregError) -> FeatregError:
        self._failures[name] = failure
        return failure

    # --- specs: one plugin's light module is imported -----------------------------------------------------------------

    def spec(self, name: str) -> BackendSpec:
        """What a backend declares of itself; raises its PluginError where it is broken or something is missing."""
        with self._lock:
            plugin = self.plugin(name)
            if name in self._failures:
                raise self._failures[name]
            if name not in self._specs:
                try:
                    self._specs[name] = self._load(plugin)
                    _check_versions(plugin, self._specs[name])
                except FeatregError as failure:
                    raise self._fail(name, failure) from failure.__cause__
            return self._specs[name]

    def declared(self, name: str) -> BackendSpec | None:
        """What a backend declares, also where a requirement of it is missing; None where its plugin does not load."""
        self._quiet_spec(name)
        return self._specs.get(name)

    def _quiet_spec(self, name: str) -> None:
        try:
            self.spec(name)
        except FeatregError:
            if self._strict:
                raise

    def _load(self, plugin: Plugin) -> BackendSpec:
        module = _import_plugin(plugin)
        try:
            if self._manager.get_name(module) is None:
                self._manager.register(module, name=plugin.target)
            others = [other for other in self._manager.get_plugins() if other is not module]
            answers = self._manager.subset_hook_caller("featreg_backends", remove_plugins=others)()
            specs = [spec for answer in answers for spec in answer]
        except (Exception, SystemExit) as error:
            raise PluginHookError(
                f"the hooks of {plugin.target!r} (backend {plugin.name!r}, {_owner(plugin)}) do not work: {error}",
                "@hookimpl def featreg_backends() that yields BackendSpec objects",
                f"{type(error).__name__}: {error}",
                remedy=f"report it to the authors of {_owner(plugin)}, or set FEATREG_DISABLE={plugin.name}",
            ) from error
        for spec in specs:
            if isinstance(spec, BackendSpec) and spec.name == plugin.name:
                return spec
        raise PluginHookError(
            f"{plugin.target!r} ({_owner(plugin)}) declares no backend {plugin.name!r}",
            f"featreg_backends() yields a BackendSpec named {plugin.name!r}, as its entry point is",
            str([getattr(spec, "name", spec) for spec in specs]),
            remedy=f"report it to the authors of {_owner(plugin)}, or set FEATREG_DISABLE={plugin.name}",
        )

    # --- backends: the framework is imported --------------------------------------------------------------------------

    def backend(self, name: str) -> Backend:
        """The backend itself, made once; raises PluginError or UnknownBackendError."""
        with self._lock:
            if name not in self._backends:
                spec = self.spec(name)
                try:
                    self._backends[name] = self._make(spec)
                except FeatregError as failure:
                    raise self._fail(name, failure) from failure.__cause__
            return self._backends[name]

    def _make(self, spec: BackendSpec) -> Backend:
        module, _, attribute = spec.factory.partition(":")
        try:
            backend = getattr(importlib.import_module(module), attribute)()
        except FeatregError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginImportError(
                f"the backend {spec.name!r} cannot be loaded from {spec.factory!r}",
                f"a working installation of {', '.join(spec.requirements) or 'its requirements'}",
                f"{type(error).__name__}: {error}",
                remedy=spec.install or f"featreg doctor; or set FEATREG_DISABLE={spec.name}",
            ) from error
        if not isinstance(backend, Backend):
            raise PluginHookError(f"{spec.factory!r} is no Backend", "featreg.plugin.Backend", type(backend).__name__)
        return backend

    # --- model ids ----------------------------------------------------------------------------------------------------

    def resolve(self, model_id: str) -> tuple[str, str]:
        """``(backend, model)`` of a model id; a bare name resolves where exactly one backend has it.

        Raises UnknownBackendError, UnknownModelError or AmbiguousModelError, with the nearest matches.
        """
        name, separator, model = model_id.partition(":")
        if not separator:
            return self._resolve_bare(model_id)
        backend = self.backend(name)
        if not model or not guarded(name, backend.has, model):
            raise UnknownModelError(
                f"the backend {name!r} has no model {model!r}",
                got=repr(model),
                matches=near_matches(model, self.models(name)),
                remedy=f"featreg models {name} lists them all",
            )
        return name, model

    def models(self, name: str) -> tuple[str, ...]:
        """Every model of a backend, sorted; imports its framework."""
        return tuple(guarded(name, self.backend(name).models))

    def _resolve_bare(self, model: str) -> tuple[str, str]:
        usable = {name: self.backend(name) for name in self.names() if self._usable(name)}
        owners = [name for name, backend in usable.items() if guarded(name, backend.has, model)]
        if len(owners) == 1:
            return owners[0], model
        if owners:
            raise AmbiguousModelError(
                f"{len(owners)} backends have a model {model!r}",
                "a model id, backend:model",
                repr(model),
                tuple(f"{name}:{model}" for name in owners),
            )
        everything = [f"{name}:{other}" for name in usable for other in self.models(name)]
        broken = f" (not looked in: {', '.join(self._failures)})" if self._failures else ""
        raise UnknownModelError(
            f"no backend has a model {model!r}{broken}",
            "a model id, backend:model",
            repr(model),
            near_matches(model, everything),
            "featreg backends lists the backends, featreg models BACKEND its models",
        )

    def _usable(self, name: str) -> bool:
        try:
            self.backend(name)
        except FeatregError:
            return False
        return True


@functools.cache
def default_registry() -> Registry:
    """The registry of this process, made from the environment on first use."""
    return Registry()


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _owner(plugin: Plugin) -> str:
    return f"{plugin.distribution} {plugin.version}".strip() or "an unnamed distribution"


@functools.cache
def _extras() -> tuple[str, ...]:
    """The extras of featreg itself, which are named as the backends that they install."""
    try:
        return tuple(metadata.metadata(PROJECT).get_all("Provides-Extra") or ())
    except metadata.PackageNotFoundError:
        return ()


def _import_plugin(plugin: Plugin) -> Any:
    try:
        return metadata.EntryPoint(plugin.name, plugin.target, PROJECT).load()
    except (Exception, SystemExit) as error:
        raise PluginImportError(
            f"the plugin of backend {plugin.name!r} ({_owner(plugin)}) fails while it is imported",
            f"import {plugin.target}",
            f"{type(error).__name__}: {error}",
            remedy=f"reinstall {plugin.distribution or plugin.target}, or set FEATREG_DISABLE={plugin.name}",
        ) from error


def _check_versions(plugin: Plugin, spec: BackendSpec) -> None:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        if SPEC_VERSION not in SpecifierSet(spec.spec):
            raise SpecVersionError(
                f"the backend {spec.name!r} ({_owner(plugin)}) was written for another version of the specification",
                f"a range that holds {SPEC_VERSION}",
                spec.spec,
                remedy=f"pip install --upgrade {PROJECT} {plugin.distribution}",
            )
        missing = [text for text in spec.requirements if not _satisfied(Requirement(text))]
    except (InvalidSpecifier, InvalidRequirement) as error:
        raise PluginHookError(f"the backend {spec.name!r} ({_owner(plugin)}) declares no valid range: {error}") from error
    if missing:
        raise MissingDependencyError(
            f"the backend {spec.name!r} needs {', '.join(missing)}",
            ", ".join(missing),
            ", ".join(_installed(Requirement(text).name) for text in missing),
            remedy=spec.install or "pip install " + " ".join(f'"{text}"' for text in missing),
        )


def _satisfied(requirement: Any) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _installed(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"no {name}"


def guarded(what: str, method: Callable[..., T], *arguments: Any) -> T:
    """Call a backend; the one place where a framework's exceptions are mapped, to a BackendError that chains them."""
    try:
        return method(*arguments)
    except FeatregError:
        raise
    except Exception as error:
        raise BackendError(f"{what} failed in {method.__name__}", got=f"{type(error).__name__}: {error}") from error
