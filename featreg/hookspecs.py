"""The two hooks that a plugin may implement."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import pluggy

from featreg.errors import SpecError
from featreg.spec import CAPABILITIES

__all__ = ["PROJECT", "BackendSpec", "featreg_backends", "featreg_conformance_cases", "hookimpl"]

PROJECT = "featreg"
"""The name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@attrs.frozen
class BackendSpec:
    """A backend as its plugin declares it, without importing its framework.

    ``name`` is also the entry point's name. ``factory`` is ``"package.module:Class"``, imported on first use. ``spec`` is
    the range of specification versions it was written for and ``requirements`` the distributions that its factory
    imports, both as in PEP 440 and PEP 508. ``install`` is the pip line that a user is shown.
    """

    name: str
    factory: str
    spec: str = ">=1.0,<2"
    requirements: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=lambda names: tuple(sorted(names)))
    summary: str = ""
    url: str = ""
    install: str = ""

    def __attrs_post_init__(self) -> None:
        module, separator, name = self.factory.partition(":")
        if not (separator and module and name):
            raise SpecError(f"the factory of {self.name!r} is not importable", "package.module:Class", self.factory)
        unknown = [name for name in self.capabilities if name not in CAPABILITIES]
        if unknown:
            raise SpecError(f"unknown capabilities: {', '.join(unknown)}", f"some of {', '.join(CAPABILITIES)}")


@hookspec
def featreg_backends() -> Iterable[BackendSpec]:  # type: ignore[empty-body]
    """The backends of this plugin; imports no framework."""


@hookspec
def featreg_conformance_cases(backend: str) -> Iterable[Any]:  # type: ignore[empty-body]
    """The author's own cases for the conformance kit."""
