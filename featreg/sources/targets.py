"""Targets as they stand in a table, as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import attrs

from featreg.errors import SourceError, near_matches

__all__ = ["Targets"]

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

MAX_CLASSES = 100_000
"""The most names of classes that are gathered from a column: more are no classes, but a column of something else."""


@attrs.frozen
class Targets:
    """How a column becomes numbers: by the names of ``classes``, or, without them, as the whole numbers that it is.

    ``unknown`` is a number that stands for no target, as -1 does in the labels of Hugging Face's datasets.
    """

    classes: tuple[str, ...] | None = None
    unknown: int | None = None
    _places: dict[str, int] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        places = {name: place for place, name in enumerate(self.classes or ())}
        if len(places) != len(self.classes or ()):
            raise SourceError("a class is named twice", "different names", repr(self.classes))
        object.__setattr__(self, "_places", places)

    @classmethod
    def of(cls, values: Iterable[Any]) -> Targets:
        """Numbers where all values are whole, else the distinct names in code point order; None counts as neither."""
        names: set[str] = set()
        whole = True
        for value in values:
            if _is_empty(value):
                continue
            whole = whole and _whole(value) is not None
            if len(names) <= MAX_CLASSES:
                names.add(_name(value))
            elif not whole:
                raise SourceError("the targets are no classes", f"at most {MAX_CLASSES} names", "more")
        return cls(None if whole else tuple(sorted(names)))

    def number(self, value: Any, key: str) -> int | None:
        """One target: the place of its name among the classes, or the number itself; None for an empty one.

        Raises SourceError for what is neither.
        """
        if _is_empty(value) or value == self.unknown:
            return None
        place, number = self._places.get(_name(value)), _whole(value)
        if place is not None:
            return place
        if number is not None and (self.classes is None or 0 <= number < len(self.classes)):
            return number
        if self.classes is None:
            raise SourceError(
                f"the target of {key!r} is no whole number",
                "a number of 64 bits, or the option classes=[...] with all names in order",
                repr(value),
            )
        raise SourceError(
            f"the target of {key!r} is none of the {len(self.classes)} classes",
            "the name or the place of a class",
            repr(value),
            near_matches(str(value), self.classes),
        )


def _is_empty(value: Any) -> bool:
    """None, an empty cell, or the NaN that pandas writes for either."""
    return value is None or value == "" or value != value  # noqa: PLR0124


def _name(value: Any) -> str:
    if isinstance(value, bytes | list | tuple | dict):
        raise SourceError("a target is neither a number nor a name", "numbers, or texts", repr(value)[:200])
    return str(value)


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():  # pandas, where a column has gaps
        value = int(value)
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else None
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) else None
