"""The rules of a run file's values, as checks and as JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from featreg.engine.planning.outputs import STORE_DTYPES
from featreg.engine.runfile.choices import LAYER_FORM
from featreg.errors import SpecError, near_matches
from featreg.pool import FORMS, Pool
from featreg.recipe import RECIPE_FORM, Recipe
from featreg.sources import KINDS

__all__ = [
    "CHOICE_SCHEMA",
    "DTYPES_SCHEMA",
    "RECIPE_SCHEMA",
    "AreJoined",
    "IsAmount",
    "IsBatchSize",
    "IsDtypes",
    "IsKind",
    "IsPool",
]

_TEXT = {"type": "string", "minLength": 1}
_POOL = {"type": "string", "pattern": Pool.pattern}
_LAYER = {"anyOf": [_TEXT, {"type": "integer"}]}


class IsDtypes:
    """None, one type of features, or one by layer."""

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        for dtype in value.values() if isinstance(value, Mapping) else [value]:
            if dtype is not None and dtype not in STORE_DTYPES:
                matches = near_matches(str(dtype), STORE_DTYPES, limit=1)
                raise SpecError(
                    f"{attribute.name} cannot be {dtype!r}", " or ".join(STORE_DTYPES), repr(dtype), matches
                )


class IsKind:
    """None, or a kind of source."""

    schema: ClassVar[dict[str, Any]] = {"enum": [*KINDS, None]}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and value not in KINDS:
            raise SpecError(
                f"there is no kind of source {value!r}", ", ".join(KINDS), repr(value), near_matches(str(value), KINDS)
            )


class IsPool:
    """None, or a pooling."""

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, Pool | None):
            raise SpecError(f"no {attribute.name}ing {value!r}", FORMS, repr(value))


class IsBatchSize:
    """None, a number of samples, or ``"auto"``."""

    schema: ClassVar[dict[str, Any]] = {"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["auto", None]}]}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in ("auto", None) and (type(value) is not int or value < 1):
            raise SpecError(f"{attribute.name} is out of range", "a whole number of at least 1, or 'auto'", repr(value))


class IsAmount:
    """None, or a number that is not below 0."""

    schema: ClassVar[dict[str, Any]] = {"minimum": 0}

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value is not None and (type(value) not in (int, float) or not 0 <= value < float("inf")):
            raise SpecError(f"{attribute.name} is out of range", "a number of at least 0", repr(value))


class AreJoined:
    """Recipes of several layers each."""

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: tuple[Recipe, ...]) -> None:
        lone = [str(recipe) for recipe in value if len(recipe.inputs) < 2]
        if lone:
            raise SpecError(
                f"{attribute.name} joins several layers", "as in name=C3,C4,pooled:pca=256", lone[0], remedy="derive"
            )


CHOICE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer"},
        {"type": "string", "minLength": 1, "description": LAYER_FORM},
        {
            "type": "object",
            "properties": {
                "layer": _LAYER,
                "pool": {"anyOf": [_POOL, {"type": "null"}]},
                "flatten": {"type": "boolean"},
                "dtype": {"enum": [*STORE_DTYPES, None]},
            },
            "required": ["layer"],
            "additionalProperties": False,
        },
    ]
}
RECIPE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "description": RECIPE_FORM},
        {
            "type": "object",
            "properties": {
                "inputs": {"type": "array", "items": _LAYER, "minItems": 1, "uniqueItems": True},
                "steps": {"type": "array", "items": _TEXT},
                "pool": {"type": ["string", "array", "null"]},
                "sample": {"type": ["integer", "null"], "minimum": 1},
                "seed": {"type": "integer", "minimum": 0},
                "name": {"type": "string"},
            },
            "required": ["inputs"],
            "additionalProperties": False,
        },
    ]
}
DTYPES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": [*STORE_DTYPES, None]},
        {"type": "object", "additionalProperties": {"enum": [*STORE_DTYPES]}},
    ]
}
