"""One layer with all that is said of it, as in ``C4:avgpool=10,10,4:flatten:float16``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import attrs

from featreg.engine.planning.outputs import STORE_DTYPES
from featreg.errors import LayerError, SpecError, near_matches
from featreg.fields import IsBool, OneOf, as_whole
from featreg.pool import FORMS, Pool
from featreg.spec import Layer

__all__ = ["LAYER_FORM", "LayerChoice", "StoreDtype", "as_choices", "parse_layer"]

LAYER_FORM = "LAYER[:POOL][:flatten][:float16|float32]"
"""The text form, for help and errors."""

StoreDtype: TypeAlias = Literal["float32", "float16"]
"""How features are stored: one of ``STORE_DTYPES``."""

_INTEGER = re.compile("-?[0-9]+")
_WORDS = ("flatten", *STORE_DTYPES)


def _pool(value: Any) -> Any:
    return Pool.parse(value) if isinstance(value, str) else value


@attrs.frozen
class LayerChoice:
    """A layer to keep, how it is pooled, whether it becomes a vector, and in which type it is stored.

    None stands for what goes for all layers. ``str(choice)`` is its text, and :meth:`parse` reads it, but for layers
    whose names hold a colon, or are a whole number in quotes. Raises SpecError and LayerError.
    """

    layer: Layer = attrs.field(converter=as_whole)
    pool: Pool | None = attrs.field(default=None, converter=_pool)
    flatten: bool = attrs.field(default=False, validator=IsBool())
    dtype: StoreDtype | None = attrs.field(default=None, validator=OneOf((*STORE_DTYPES, None)))

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.layer, str | int) or isinstance(self.layer, bool) or self.layer == "":
            raise LayerError(f"{self.layer!r} is not a layer", "a level, an index, a native name or a head")
        if not isinstance(self.pool, Pool | None):
            raise SpecError(f"no pooling {self.pool!r}", FORMS, repr(self.pool))

    @classmethod
    def parse(cls, text: str) -> LayerChoice:
        """The choice that a text stands for; raises SpecError with the forms there are."""
        name, *parts = text.split(":")
        found: dict[str, Any] = {}
        for part in parts:
            kind = "flatten" if part == "flatten" else "dtype" if part in STORE_DTYPES else "pool"
            if kind in found:
                raise SpecError(f"{kind} is said twice in {text!r}", LAYER_FORM, repr(text))
            found[kind] = True if kind == "flatten" else part if kind == "dtype" else _parse_pool(part)
        return cls(parse_layer(name), **found)

    def __str__(self) -> str:
        said = (self.pool, "flatten" if self.flatten else None, self.dtype)
        return ":".join(map(str, (self.layer, *(part for part in said if part is not None))))

    @property
    def plain(self) -> str | int | dict[str, Any]:
        """Its text, or a mapping where the text would be read as another choice."""
        if self == LayerChoice(self.layer) and isinstance(self.layer, int):
            return self.layer
        if LayerChoice._reads_back(self):
            return str(self)
        said = {"layer": self.layer, "pool": self.pool and str(self.pool), "dtype": self.dtype}
        return {**{name: value for name, value in said.items() if value is not None}, "flatten": self.flatten}

    def _reads_back(self) -> bool:
        try:
            return LayerChoice.parse(str(self)) == self
        except (SpecError, LayerError):
            return False


def parse_layer(text: str) -> Layer:
    """A layer as it is written: a whole number is an index."""
    return int(text) if _INTEGER.fullmatch(text) else text


def as_choices(value: Any) -> tuple[LayerChoice, ...]:
    """Layers as texts, indices, mappings or choices; a lone one stands for a list of it."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return tuple(map(_choice, several))


def _choice(value: Any) -> LayerChoice:
    if isinstance(value, LayerChoice):
        return value
    if isinstance(value, Mapping):
        return LayerChoice(**value)
    return LayerChoice.parse(value) if isinstance(value, str) else LayerChoice(value)


def _parse_pool(text: str) -> Pool:
    try:
        return Pool.parse(text)
    except SpecError as error:
        matches = (*error.matches, *near_matches(text, _WORDS, limit=1))
        raise SpecError(error.problem, f"{FORMS}; or {', '.join(_WORDS)}", error.got, matches) from error
