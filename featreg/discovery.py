"""From an entry point to a backend, one plugin at a time: who ships it, what its hooks say, what its factory makes.

No state is kept here and nothing is shared between plugins; :mod:`featreg.registry` remembers what came out.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

import attrs
import pluggy

from featreg import hookspecs
from featreg.case import Case
from featreg.errors import FeatregError, PluginHookError, PluginImportError
from featreg.hookspecs import PROJECT, BackendSpec
from featreg.plugin import Backend

__all__ = ["Plugin", "create_backend", "find_plugins", "load_cases", "load_spec"]


@attrs.frozen
class Plugin:
    """One entry point of the group ``featreg``: the backend's name, where it points, and who ships it."""

    name: str
    target: str
    distribution: str
    version: str

    @property
    def owner(self) -> str:
        """The distribution and its version, for messages."""
        return f"{self.distribution} {self.version}".strip() or "an unnamed distribution"


_BACKENDS_HOOK = "@hookimpl def featreg_backends() that yields BackendSpec objects"
_CASES_HOOK = (
    "@hookimpl def featreg_conformance_cases(backend) that yields featreg.plugin.Case objects of different names"
)


def find_plugins() -> list[Plugin]:
    """Every entry point of the group; one that is seen twice is one. Runs no plugin code and never raises for one."""
    return list(dict.fromkeys(map(_plugin, metadata.entry_points(group=PROJECT))))


def load_spec(plugin: Plugin) -> BackendSpec:
    """What the hooks of one plugin say of its backend; raises PluginImportError or PluginHookError."""
    module = _import_plugin(plugin)
    remedy = f"report it to the authors of {plugin.distribution or plugin.target}, or set FEATREG_DISABLE={plugin.name}"
    try:
        specs = _call_hook(module, plugin.target, "featreg_backends")
    except (Exception, SystemExit) as error:
        raise PluginHookError(
            f"the hooks of {plugin.target!r} (backend {plugin.name!r}, {plugin.owner}) do not work",
            _CASES_HOOK if "hook 'featreg_conformance_cases'" in str(error) else _BACKENDS_HOOK,
            f"{type(error).__name__}: {error}",
            remedy=remedy,
        ) from error
    for spec in specs:
        if isinstance(spec, BackendSpec) and spec.name == plugin.name:
            return spec
    raise PluginHookError(
        f"{plugin.target!r} ({plugin.owner}) declares no backend {plugin.name!r}",
        f"featreg_backends() yields a BackendSpec named {plugin.name!r}, as its entry point is",
        ", ".join(repr(getattr(spec, "name", spec)) for spec in specs) or "nothing",
        remedy=remedy,
    )


def load_cases(plugin: Plugin) -> tuple[Case, ...]:
    """The author's own cases for the conformance kit, none where he gives none; raises as :func:`load_spec`.

    Cases of one name, and what is no Case, are a PluginHookError.
    """
    module = _import_plugin(plugin)
    try:
        cases = _call_hook(module, plugin.target, "featreg_conformance_cases", backend=plugin.name)
    except (Exception, SystemExit) as error:
        raise _bad_cases(plugin, f"{type(error).__name__}: {error}") from error
    others = [repr(case) for case in cases if not isinstance(case, Case)]
    if others:
        raise _bad_cases(plugin, ", ".join(others))
    names = [case.name for case in cases]
    if len(names) != len(set(names)):
        raise _bad_cases(plugin, f"cases named {', '.join(names)}")
    return tuple(cases)


def _bad_cases(plugin: Plugin, got: str) -> PluginHookError:
    return PluginHookError(
        f"the conformance cases of {plugin.target!r} (backend {plugin.name!r}, {plugin.owner}) cannot be had",
        _CASES_HOOK,
        got,
        remedy=f"report it to the authors of {plugin.distribution or plugin.target}",
    )


def create_backend(spec: BackendSpec) -> Backend:
    """The backend that a factory makes; raises PluginImportError or PluginHookError."""
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
        raise PluginHookError(
            f"{spec.factory!r} of the backend {spec.name!r} is no Backend",
            "a class derived from featreg.plugin.Backend",
            type(backend).__name__,
            remedy=f"report it to its authors, or set FEATREG_DISABLE={spec.name}",
        )
    return backend


def _plugin(point: metadata.EntryPoint) -> Plugin:
    """Never raises: a leftover .dist-info folder without METADATA must not take the other plugins down."""
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
    except Exception:  # noqa: BLE001  (each Python version fails in its own way here)
        name, version = "", ""
    return Plugin(point.name, point.value, name or "", version or "")


def _import_plugin(plugin: Plugin) -> Any:
    try:
        return metadata.EntryPoint(plugin.name, plugin.target, PROJECT).load()
    except (Exception, SystemExit) as error:
        raise PluginImportError(
            f"the plugin of backend {plugin.name!r} ({plugin.owner}) fails while it is imported",
            f"import {plugin.target}",
            f"{type(error).__name__}: {error}",
            remedy=f"reinstall {plugin.distribution or plugin.target}, or set FEATREG_DISABLE={plugin.name}",
        ) from error


def _call_hook(module: Any, target: str, hook: str, **arguments: Any) -> list[Any]:
    """What a hook of one plugin yields.

    Each plugin has a manager of its own: pluggy keeps a plugin whose hooks it refused half registered.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=target)
    manager.check_pending()
    return [spec for answer in getattr(manager.hook, hook)(**arguments) for spec in answer]
