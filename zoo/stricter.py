"""The list of models that may refuse sizes that their library takes: ``stricter.toml``."""

from __future__ import annotations

import fnmatch
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["pattern_of", "reasons"]


@functools.cache
def reasons() -> Mapping[str, str]:
    """Why, by the pattern of model ids."""
    listed: Mapping[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["models"]
    return listed


def pattern_of(model: str) -> str | None:
    """The first pattern of the list that means a model, by its id; None where it must take what its library takes."""
    return next((pattern for pattern in reasons() if fnmatch.fnmatchcase(model, pattern)), None)
