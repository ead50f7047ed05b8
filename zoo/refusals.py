"""The lists of refused models, read as data: ``refused.toml`` in each plugin's package."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files

import featreg.refused

__all__ = ["refusals", "set_aside"]


@functools.cache
def refusals(backend: str) -> Mapping[str, str]:
    """Each refused model of a backend, and why; empty where its plugin has no list."""
    listed = files(f"featreg_{backend}") / "refused.toml"
    if not listed.is_file():
        return {}
    models: Mapping[str, str] = tomllib.loads(listed.read_text("utf-8")).get("models", {})
    return models


@contextmanager
def set_aside() -> Iterator[None]:
    """Let featreg open what is on its lists, to see whether a refused model would not work after all."""
    read = featreg.refused.read_refused
    featreg.refused.read_refused = lambda package: {}  # type: ignore[assignment]  # a cached function for a plain one
    try:
        yield
    finally:
        featreg.refused.read_refused = read
