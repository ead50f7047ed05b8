"""Finding backends: entry points, one plugin at a time, and resolving ``"timm:resnet50"``.

Three steps, each as late as can be: :meth:`Registry.names` reads metadata and runs no plugin code,
:meth:`Registry.spec` loads one plugin's light module, :meth:`Registry.backend` imports its framework. Whatever goes
wrong in one plugin is kept as its failure and raised when that backend is asked for; the others are not touched.

``FEATREG_ONLY`` and ``FEATREG_DISABLE`` hold comma-separated backend names. With ``FEATREG_STRICT=1`` nothing is
tolerated: the first use of the registry loads every plugin's light module and raises the first failure, also where
another backend was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from featreg.case import Case
from featreg.discovery import Plugin, create_backend, find_plugins, load_cases, load_spec
from featreg.errors import (
    AmbiguousModelError,
    BackendError,
    CapabilityError,
    DuplicateBackendError,
    FeatregError,
    OutOfMemoryError,
    SpecError,
    UnknownBackendError,
    UnknownModelError,
    near_matches,
)
from featreg.hookspecs import PROJECT, BackendSpec
from featreg.plugin import Backend
from featreg.requirements import FEATURES, check_requirements, extras

__all__ = ["Plugin", "Registry", "default_registry", "guarded"]

T = TypeVar("T")


class Registry:
    """The backends that are installed, each loaded when it is first asked for."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environ is None else environ
        self._only = _names(environment.get("FEATREG_ONLY", ""))
        self._disabled = _names(environment.get("FEATREG_DISABLE", ""))
        self._strict = environment.get("FEATREG_STRICT", "").strip().lower() in {"1", "true", "yes", "on"}
        self._lock = threading.RLock()
        self._specs: dict[str, BackendSpec] = {}
        self._backends: dict[str, Backend] = {}
        self._failures: dict[str, FeatregError] = {}
        self._plugins = dict(self._discover())
        unknown = sorted(self._only - set(self._plugins) - self._disabled)
        if unknown:
            warnings.warn(f"FEATREG_ONLY names what is no installed backend: {', '.join(unknown)}", stacklevel=2)

    # --- names: no plugin code runs --------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The names of all backends, broken ones too, sorted. With ``FEATREG_STRICT=1`` a broken one raises."""
        self._enforce_strict()
        return tuple(sorted(self._plugins))

    def plugins(self) -> tuple[Plugin, ...]:
        """Where every backend comes from, broken ones too, sorted by name; never raises."""
        return tuple(self._plugins[name] for name in sorted(self._plugins))

    def plugin(self, name: str) -> Plugin:
        """Where a backend comes from; raises UnknownBackendError with the nearest names or the pip line."""
        if not isinstance(name, str):
            raise SpecError("a backend is named by a string", "as in 'timm'", repr(name))
        if name in self._plugins:
            return self._plugins[name]
        if self._is_off(name):
            raise UnknownBackendError(
                f"the backend {name!r} is switched off", remedy="unset FEATREG_DISABLE or FEATREG_ONLY, or change them"
            )
        known = [*self._plugins, *(extra for extra in extras() if extra not in (*self._plugins, *FEATURES))]
        installable = name in known
        raise UnknownBackendError(
            f"no backend {name!r} is installed",
            f"one of {', '.join(sorted(self._plugins)) or '(none is installed)'}",
            repr(name),
            () if installable else near_matches(name, known),
            f'pip install "{PROJECT}[{name}]"' if installable else "featreg backends lists those that are installed",
        )

    def failures(self) -> dict[str, FeatregError]:
        """Every plugin that cannot be used and why, after trying them all; imports no framework, never raises."""
        for name in sorted(self._plugins):
            self.declared(name)
        return dict(self._failures)

    def _discover(self) -> Iterator[tuple[str, Plugin]]:
        found: dict[str, list[Plugin]] = {}
        for plugin in find_plugins():
            found.setdefault(plugin.name, []).append(plugin)
        for name, plugins in found.items():
            if self._is_off(name):
                continue
            yield name, plugins[0]
            if len(plugins) > 1:
                owners = sorted(plugin.distribution or "an unnamed distribution" for plugin in plugins)
                self._failures[name] = DuplicateBackendError(
                    f"the backend name {name!r} is claimed {len(owners)} times, by {', '.join(owners)}",
                    "one distribution per name",
                    ", ".join(f"{plugin.target} ({plugin.owner})" for plugin in plugins),
                    remedy=f"pip uninstall all but one of {', '.join(owners)}",
                )

    def _is_off(self, name: str) -> bool:
        return name in self._disabled or bool(self._only and name not in self._only)

    def _enforce_strict(self) -> None:
        if self._strict:
            for name in sorted(self._plugins):
                self._load(name)

    # --- specs: one plugin's light module is imported -----------------------------------------------------------------

    def spec(self, name: str) -> BackendSpec:
        """What a backend declares of itself; raises its PluginError where it is broken or something is missing."""
        self._enforce_strict()
        return self._load(name)

    def declared(self, name: str) -> BackendSpec | None:
        """What a backend declares, also where a requirement of it is missing; None where its plugin does not load."""
        with contextlib.suppress(FeatregError):
            self._load(name)
        return self._specs.get(name)

    def _load(self, name: str) -> BackendSpec:
        with self._lock:
            plugin = self.plugin(name)
            self._raise_failure(name)
            if name not in self._specs:
                try:
                    self._specs[name] = load_spec(plugin)
                    check_requirements(self._specs[name], plugin.distribution)
                except FeatregError as failure:
                    self._keep_failure(name, failure)
                    raise
            return self._specs[name]

    def _keep_failure(self, name: str, failure: FeatregError) -> None:
        """Keep a copy to raise later: an exception that is raised again and again collects tracebacks and frames."""
        self._failures[name] = _copy_of(failure)

    def _raise_failure(self, name: str) -> None:
        if name in self._failures:
            failure = self._failures[name]
            raise _copy_of(failure) from failure.__cause__

    # --- backends: the framework is imported --------------------------------------------------------------------------

    def backend(self, name: str) -> Backend:
        """The backend itself, made once; raises PluginError or UnknownBackendError."""
        with self._lock:
            spec = self.spec(name)
            if name not in self._backends:
                try:
                    self._backends[name] = create_backend(spec)
                except FeatregError as failure:
                    self._keep_failure(name, failure)
                    raise
            return self._backends[name]

    def cases(self, name: str) -> tuple[Case, ...]:
        """The author's own cases for the conformance kit; raises PluginError or UnknownBackendError."""
        self.spec(name)
        return load_cases(self.plugin(name))

    def wrapper(self, module: Any) -> str:
        """The name of the backend that wraps modules of this class; raises CapabilityError where none does.

        Loads the light modules of the plugins only.
        """
        classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(module).__mro__]
        specs = [spec for name in self.names() if (spec := self.declared(name)) is not None]
        found = [spec.name for cls in classes for spec in specs if cls in spec.wraps]
        if not found:
            known = sorted({cls for spec in specs for cls in spec.wraps})
            raise CapabilityError(
                f"no installed backend takes a module of the class {type(module).__qualname__}",
                f"an instance of {' or '.join(known) or '(no backend takes any)'}",
                f"{type(module).__module__}.{type(module).__qualname__}",
                remedy="install the plugin of its framework (featreg doctor shows those that do not work)",
            )
        return found[0]

    # --- model ids ----------------------------------------------------------------------------------------------------

    def resolve(self, model_id: str) -> tuple[str, str]:
        """``(backend, model)`` of a model id; a bare name resolves where exactly one backend has it.

        Raises UnknownBackendError, UnknownModelError or AmbiguousModelError, with the nearest matches.
        """
        if not isinstance(model_id, str):
            raise SpecError("a model is named by a string", "'backend:model'", repr(model_id))
        name, separator, model = model_id.partition(":")
        if not separator:
            return self._resolve_bare(model_id)
        backend = self.backend(name)
        if not model or not guarded(name, backend.has, model):
            matches, remedy = self.suggest(name, model)
            raise UnknownModelError(
                f"the backend {name!r} has no model {model!r}", got=repr(model), matches=matches, remedy=remedy
            )
        return name, model

    def suggest(self, name: str, model: str) -> tuple[tuple[str, ...], str]:
        """The nearest models of a backend to one that it does not have, and what to do next."""
        matches, remedy = guarded(name, self.backend(name).suggest, model)
        listing = f"featreg models {name} lists them all" if self.models(name) else "featreg.from_module takes modules"
        return tuple(matches), remedy or listing

    def models(self, name: str) -> tuple[str, ...]:
        """Every model of a backend, sorted; imports its framework."""
        found = guarded(name, self.backend(name).models)
        if not isinstance(found, tuple | list) or not all(isinstance(model, str) for model in found):
            raise BackendError(f"the backend {name!r} broke its contract", "models(), a sequence of names", repr(found))
        return tuple(sorted(found))

    def _resolve_bare(self, model: str) -> tuple[str, str]:
        owners, broken = self._owners(model)
        if len(owners) == 1:
            return owners[0], model
        if owners:
            raise AmbiguousModelError(
                f"{len(owners)} backends have a model {model!r}",
                "a model id, backend:model",
                repr(model),
                tuple(f"{name}:{model}" for name in owners),
            )
        ids: dict[str, list[str]] = {}
        for name in self.names():
            for other in () if name in broken else self.models(name):
                ids.setdefault(other, []).append(f"{name}:{other}")
        raise UnknownModelError(
            f"no backend has a model {model!r}" + (f" (not looked in: {', '.join(broken)})" if broken else ""),
            "a model id, backend:model",
            repr(model),
            tuple(model_id for near in near_matches(model, ids) for model_id in ids[near]),
            "featreg backends lists the backends, featreg models BACKEND its models",
        )

    def _owners(self, model: str) -> tuple[list[str], list[str]]:
        """The backends that have a model, and those that cannot say because they do not work."""
        owners, broken = [], []
        for name in self.names():
            try:
                if guarded(name, self.backend(name).has, model):
                    owners.append(name)
            except FeatregError:
                broken.append(name)
        return owners, broken


@functools.cache
def default_registry() -> Registry:
    """The registry of this process, made from the environment on first use."""
    return Registry()


def guarded(
    what: str,
    method: Callable[..., T],
    *arguments: Any,
    out_of_memory: Callable[[BaseException], bool] = lambda error: isinstance(error, MemoryError),
) -> T:
    """Call a backend; the one place where a framework's exceptions are mapped, to a BackendError that chains them.

    Those that ``out_of_memory`` names become an OutOfMemoryError.
    """
    try:
        return method(*arguments)
    except FeatregError:
        raise
    except (Exception, SystemExit) as error:
        raise _mapped(what, method, error, out_of_memory(error)) from error


def _mapped(what: str, method: Callable[..., Any], error: BaseException, out_of_memory: bool) -> BackendError:
    problem = f"{what} failed in {getattr(method, '__name__', repr(method))}"
    got = f"{type(error).__name__}: {error}"
    if out_of_memory:
        return OutOfMemoryError(
            f"{problem}: memory does not suffice",
            got=got,
            remedy="a smaller batch, fewer or later layers, a pooling, or dtype='float16' on a device that has it",
        )
    return BackendError(
        problem,
        got=got,
        remedy="the cause is chained (featreg --traceback ... shows it); report it to the authors of the backend",
    )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _copy_of(failure: FeatregError) -> FeatregError:
    """The same failure without its traceback, with its cause; a subclass of a plugin's may have any constructor."""
    fresh = type(failure).__new__(type(failure), *failure.args)
    fresh.__dict__.update(failure.__dict__)
    fresh.__cause__ = failure.__cause__
    return fresh
