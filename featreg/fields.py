"""Converters and validators of the specification's fields.

Converters accept what means the same (lists for tuples, NumPy's whole numbers for Python's) and pass anything else on;
validators raise SpecError for it. ``schema`` of a validator is its rule as JSON Schema.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeAlias

import attrs

from featreg.errors import SpecError

__all__ = [
    "AreTexts",
    "AtLeast",
    "IsBool",
    "IsColor",
    "IsNumbers",
    "IsSize",
    "IsText",
    "OneOf",
    "SomeOf",
    "as_color",
    "as_names",
    "as_numbers",
    "as_pair",
    "as_tuple",
    "as_whole",
]

Schema: TypeAlias = dict[str, Any]


def as_whole(value: Any) -> Any:
    """NumPy's whole numbers as ``int``; booleans are no numbers here."""
    return int(value) if not isinstance(value, bool) and isinstance(value, numbers.Integral) else value


def as_pair(value: Any) -> Any:
    """A sequence of whole numbers as a tuple."""
    return tuple(map(as_whole, value)) if isinstance(value, Iterable) and not isinstance(value, str) else value


def as_numbers(value: Any) -> Any:
    """A sequence of numbers as a tuple of ``float``; what is no number stays as it is."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    return tuple(float(v) if not isinstance(v, bool) and isinstance(v, numbers.Real) else v for v in value)


def as_tuple(value: Any) -> Any:
    """Any sequence as a tuple; a lone string, which iterates over its letters, stays as it is."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def as_names(value: Any) -> Any:
    """A sequence of strings, each once and sorted; anything else as it is."""
    names = as_tuple(value)
    return tuple(sorted(set(names))) if isinstance(names, tuple) and all(isinstance(v, str) for v in names) else names


def as_color(value: Any) -> Any:
    """Three whole numbers; one stands for three."""
    return as_pair(value if isinstance(value, list | tuple) else (value,) * 3)


@attrs.frozen
class OneOf:
    """The value is one of a few; None only where it is among them."""

    allowed: tuple[Any, ...]

    @property
    def schema(self) -> Schema:
        return {"enum": list(self.allowed)}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in self.allowed:
            expected = f"one of {', '.join(map(repr, self.allowed))}"
            raise SpecError(f"{attribute.name} cannot be {value!r}", expected, repr(value))


@attrs.frozen
class SomeOf:
    """A tuple of values, each one of a few."""

    allowed: tuple[str, ...]

    @property
    def schema(self) -> Schema:
        return {"items": {"enum": list(self.allowed)}}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        unknown = [item for item in value if item not in self.allowed] if isinstance(value, tuple) else value
        if unknown or not isinstance(value, tuple):
            raise SpecError(f"unknown {attribute.name}: {unknown!r}", f"some of {', '.join(self.allowed)}", repr(value))


@attrs.frozen
class AreTexts:
    """A tuple of strings, none of them empty."""

    @property
    def schema(self) -> Schema:
        return {"items": {"type": "string", "minLength": 1}}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
            raise SpecError(f"{attribute.name} are sentences", "strings, none of them empty", repr(value))


@attrs.frozen
class AtLeast:
    """A whole number with a lower bound."""

    least: int
    optional: bool = False

    @property
    def schema(self) -> Schema:
        return {"minimum": self.least}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and self.optional:
            return
        if type(value) is not int or value < self.least:
            raise SpecError(
                f"{attribute.name} is out of range", f"a whole number of at least {self.least}", repr(value)
            )


@attrs.frozen
class IsSize:
    """(height, width), two positive whole numbers."""

    optional: bool = False

    @property
    def schema(self) -> Schema:
        return {"prefixItems": [{"type": "integer", "minimum": 1}] * 2}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and self.optional:
            return
        if not isinstance(value, tuple) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
            raise SpecError(
                f"{attribute.name} is not a size", "(height, width), two positive whole numbers", repr(value)
            )


@attrs.frozen
class IsNumbers:
    """Three finite numbers, one per colour; above 0 where ``positive``."""

    positive: bool = False

    @property
    def schema(self) -> Schema:
        return {"prefixItems": [{"type": "number", **({"exclusiveMinimum": 0} if self.positive else {})}] * 3}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        fits = isinstance(value, tuple) and len(value) == 3
        if (
            not fits
            or not all(isinstance(v, float) and math.isfinite(v) for v in value)
            or (self.positive and min(value) <= 0)
        ):
            expected = "three numbers above 0" if self.positive else "three numbers"
            raise SpecError(f"{attribute.name} is not {expected}", expected, repr(value))


@attrs.frozen
class IsColor:
    """Red, green and blue, each from 0 to 255."""

    @property
    def schema(self) -> Schema:
        return {"prefixItems": [{"type": "integer", "minimum": 0, "maximum": 255}] * 3}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != 3 or not all(type(v) is int and 0 <= v <= 255 for v in value):
            raise SpecError(f"{attribute.name} is not a color", "a whole number from 0 to 255, or three", repr(value))


@attrs.frozen
class IsText:
    """A string, not empty unless ``empty``."""

    optional: bool = False
    empty: bool = False

    @property
    def schema(self) -> Schema:
        return {} if self.empty else {"minLength": 1}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is None and self.optional:
            return
        if not isinstance(value, str) or not (value or self.empty):
            expected = "a string" if self.empty else "a string, not empty"
            raise SpecError(f"{attribute.name} is not a name", expected, repr(value))


@attrs.frozen
class IsBool:
    """True or False, and nothing that only acts like one."""

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, bool):
            raise SpecError(f"{attribute.name} is neither True nor False", "a boolean", repr(value))
