"""The tables of well-known architectures, ``specs/architectures/*.json``, which a wheel carries inside the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from featreg.errors import RequestError, SpecError, near_matches
from featreg.spec import Size

__all__ = ["Architecture", "Deviations", "Level", "Member", "find_architectures", "load_architectures"]

SHIPPED = "architectures"
"""The folder's name inside the wheel."""


Deviations: TypeAlias = Mapping[str, Mapping[Size, float | None]]
"""By level and input size the largest difference, as a part of the level's largest value; None for another shape."""


@attrs.frozen
class Level:
    """A canonical level: its channels, its reduction, and its shape (C, H, W) at the table's input size."""

    name: str
    channels: int
    reduction: int
    shape: tuple[int, int, int]


@attrs.frozen
class Member:
    """A backend that has an architecture: its name of the model, and the options with which it computes as the first.

    ``alike`` is empty where there are none. ``deviates`` says for each level that is another without them how far it is
    off at each input size: the largest difference as a part of the level's largest value, None for another shape.
    """

    backend: str
    model: str
    alike: Mapping[str, Any] = attrs.field(factory=dict)
    deviates: Deviations = attrs.field(factory=dict)


@attrs.frozen
class Architecture:
    """An architecture, its levels from fine to coarse, and its backends, the one that names its weights first."""

    name: str
    input_size: Size
    levels: tuple[Level, ...]
    members: tuple[Member, ...]

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> Architecture:
        levels = [
            Level(entry["level"], entry["channels"], entry["reduction"], tuple(entry["shape"]))
            for entry in table["levels"]
        ]
        members = [
            Member(name, entry["model"], entry.get("alike", {}), _deviations(entry.get("deviates", {})))
            for name, entry in table["backends"].items()
        ]
        height, width = table["input_size"]
        return cls(table["architecture"], (height, width), tuple(levels), tuple(members))


def _deviations(recorded: Mapping[str, Mapping[str, float | None]]) -> Deviations:
    """The recorded deviations of an entry, whose sizes are written ``"224x224"``."""
    return {level: {_size(size): apart for size, apart in found.items()} for level, found in recorded.items()}


def _size(text: str) -> Size:
    height, width = map(int, text.split("x"))
    return height, width


def load_architectures() -> tuple[Architecture, ...]:
    """Every table, by name; raises SpecError where the tables are not there."""
    tables = sorted((file for file in _folder().iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return tuple(Architecture.read(json.loads(file.read_text("utf-8"))) for file in tables)


def find_architectures(name: str | None) -> tuple[Architecture, ...]:
    """The table of a name, all of them where None; raises RequestError for an unknown one, with the nearest."""
    known = {one.name: one for one in load_architectures()}
    if name is None:
        return tuple(known.values())
    if name not in known:
        raise RequestError(
            f"there is no table of the architecture {name!r}",
            f"one of {', '.join(known)}",
            repr(name),
            near_matches(name, known),
        )
    return (known[name],)


def _folder() -> Traversable:
    """The tables in the package, as a wheel has them, or in the tree that the package is run from."""
    package = files("featreg")
    sources = Path(__file__).parents[3] / "specs" / "architectures"
    for folder in (package / SHIPPED, sources):
        if folder.is_dir():
            return folder
    raise SpecError("the tables of architectures are missing", f"{package}/{SHIPPED}", remedy="install featreg again")
