"""The networks of mindcv that torch's libraries have too: their names for the weights, and how they compute.

The facts lie in ``torch_names.toml``, read off torchvision's, timm's and mindcv's own networks.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from featreg.plugin import KeyMap, Rule

__all__ = ["Family", "Source", "family_of"]


@dataclass(frozen=True)
class Source:
    """A torch library's network: its name map (None: the layers pair in order), its padding and its epsilons."""

    library: str
    names: KeyMap | None
    even: bool
    epsilons: Mapping[str, float]
    biases: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Some of mindcv's models, and the sources of the same networks; ``keep`` are weights that torch does not store."""

    models: tuple[str, ...]
    sources: tuple[Source, ...]
    keep: tuple[str, ...]


def family_of(model: str) -> Family | None:
    """The family of one of mindcv's models; None where no torch library is known to have the same network."""
    return next((one for one in _families() if any(fnmatchcase(model, pattern) for pattern in one.models)), None)


@functools.cache
def _families() -> tuple[Family, ...]:
    text = (files(__package__) / "torch_names.toml").read_text("utf-8")
    return tuple(
        Family(tuple(entry["models"]), tuple(map(_source, entry["source"])), tuple(entry.get("keep", ())))
        for entry in tomllib.loads(text)["family"]
    )


def _source(entry: Mapping[str, Any]) -> Source:
    library = entry["library"]
    in_order = entry.get("in_order", False)
    epsilons = {"BatchNorm2d": entry.get("batch_norm"), "LayerNorm": entry.get("layer_norm")}
    return Source(
        library,
        None if in_order else KeyMap(library, tuple(Rule(old, new) for old, new in entry["rules"])),
        entry["padding"] == "even",
        {kind: epsilon for kind, epsilon in epsilons.items() if epsilon is not None},
        tuple(entry.get("biases", ())),
    )
