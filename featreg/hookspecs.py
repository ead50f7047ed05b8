"""The two hooks that a plugin may implement."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs
import pluggy

from featreg.case import Case
from featreg.errors import SpecError
from featreg.fields import IsText, SomeOf, as_names, as_tuple
from featreg.spec import CAPABILITIES

__all__ = ["PROJECT", "BackendSpec", "featreg_backends", "featreg_conformance_cases", "hookimpl"]

PROJECT = "featreg"
"""The name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


def _are_texts(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(text, str) for text in value):
        raise SpecError(f"{attribute.name} is no list of strings", "a list of strings", repr(value))


@attrs.frozen
class BackendSpec:
    """A backend as its plugin declares it, without importing its framework.

    ``name`` is also the entry point's name. ``factory`` is ``"package.module:Class"``, imported on first use. ``spec``
    is the range of specification versions it was written for (PEP 440) and ``requirements`` the distributions that its
    factory imports (PEP 508). ``install`` is the pip line that a user is shown. ``wraps`` holds the qualified names of
    the classes whose instances ``Backend.wrap`` takes (``"torch.nn.modules.module.Module"``).
    """

    name: str = attrs.field(validator=IsText())
    factory: str = attrs.field(validator=IsText())
    spec: str = attrs.field(default=">=1.0,<2", validator=IsText(empty=True))
    requirements: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, validator=_are_texts)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=as_names, validator=SomeOf(CAPABILITIES))
    summary: str = attrs.field(default="", validator=IsText(empty=True))
    url: str = attrs.field(default="", validator=IsText(empty=True))
    install: str = attrs.field(default="", validator=IsText(empty=True))
    wraps: tuple[str, ...] = attrs.field(default=(), converter=as_tuple, validator=_are_texts)

    def __attrs_post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise SpecError(
                "this name cannot be written in a model id", "letters, digits, '_', '-', '.'", repr(self.name)
            )
        module, separator, name = self.factory.partition(":")
        if not (separator and module and name):
            raise SpecError(f"the factory of {self.name!r} is not importable", "package.module:Class", self.factory)


@hookspec
def featreg_backends() -> Iterable[BackendSpec]:  # type: ignore[empty-body]
    """The backends of this plugin; imports no framework."""


@hookspec
def featreg_conformance_cases(backend: str) -> Iterable[Case]:  # type: ignore[empty-body]
    """The author's own cases of one backend for the conformance kit; imports what it needs when it is called."""
