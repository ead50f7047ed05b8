"""What a run file can say: every option of ``featreg extract``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs

from featreg.engine.planning.plan import check_part
from featreg.engine.planning.selection import IsShare
from featreg.engine.runfile.choices import LayerChoice, StoreDtype, as_choices, parse_layer
from featreg.engine.runfile.runrules import (
    CHOICE_SCHEMA,
    DTYPES_SCHEMA,
    RECIPE_SCHEMA,
    AreJoined,
    IsAmount,
    IsBatchSize,
    IsDtypes,
    IsKind,
    IsPool,
)
from featreg.errors import SpecError
from featreg.fields import AtLeast, IsBool, IsText, OneOf, as_whole
from featreg.pool import Pool
from featreg.recipe import Recipe
from featreg.spec import Layer
from featreg.steps import IsSeed

__all__ = ["RunConfig", "StoreDtypes", "parse_part"]

StoreDtypes: TypeAlias = StoreDtype | Mapping[Layer, StoreDtype]
"""One type for all layers, or one by layer."""

_PART = re.compile(r"([0-9]+)/([0-9]+)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def parse_part(value: Any) -> tuple[int, int] | None:
    """A part as it is written, ``2/8``, or as (2, 8); raises SpecError."""
    match = _PART.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        raise SpecError(f"{value!r} is no I/N", "part I of N, counted from 0, as in 0/8", repr(value))
    return check_part(value if match is None else (int(match[1]), int(match[2])))


def _recipes(value: Any) -> Any:
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(Recipe.parse(one) if isinstance(one, str) else one for one in several)


def _dtypes(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {parse_layer(key) if isinstance(key, str) else key: dtype for key, dtype in value.items()}


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _pool(value: Any) -> Any:
    return Pool.parse(value) if isinstance(value, str) else value


def _mapping(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _text(**more: Any) -> Any:
    return attrs.field(default=None, validator=IsText(optional=True), **more)


def _path() -> Any:
    return _text(converter=_as_text)


def _count() -> Any:
    return attrs.field(default=None, converter=as_whole, validator=AtLeast(1, optional=True))


def _several(convert: Any, items: Mapping[str, Any], validator: Any = None) -> Any:
    schema = {"type": "array", "items": items}
    return attrs.field(default=(), converter=convert, validator=validator, metadata={"schema": schema})


def _options() -> Any:
    return attrs.field(factory=dict, converter=_mapping)


@attrs.frozen
class RunConfig:
    """A run of ``featreg extract``: each field is the option of its name, with the singular of a list as the flag.

    ``source``, ``store``, ``fit_from`` and ``metrics`` are paths or URLs, paths from the current folder; ``layers`` are
    to be kept, ``derive`` and ``concat`` recipes to be computed. None, an empty list or an empty mapping stands for
    what was not asked for. Raises SpecError and LayerError for values that no run could have.
    """

    source: str | None = _path()
    store: str | None = _path()
    kind: str | None = attrs.field(default=None, validator=IsKind())
    source_options: Mapping[str, Any] = _options()
    limit: int | None = _count()
    fraction: float | None = attrs.field(default=None, validator=IsShare())
    seed: int = attrs.field(default=0, converter=as_whole, validator=IsSeed())
    model: str | None = _text()
    weights: str | None = _path()
    options: Mapping[str, Any] = _options()
    output_stride: int | None = _count()
    device: str | None = _text()
    dtype: Literal["float32", "float16", "bfloat16"] | None = attrs.field(
        default=None, validator=OneOf(("float32", "float16", "bfloat16", None))
    )
    layers: tuple[LayerChoice, ...] = _several(as_choices, CHOICE_SCHEMA)
    pool: Pool | None = attrs.field(default=None, converter=_pool, validator=IsPool())
    flatten: bool = attrs.field(default=False, validator=IsBool())
    derive: tuple[Recipe, ...] = _several(_recipes, RECIPE_SCHEMA)
    concat: tuple[Recipe, ...] = _several(_recipes, RECIPE_SCHEMA, AreJoined())
    fit_from: str | None = _path()
    store_dtype: StoreDtypes | None = attrs.field(
        default=None, converter=_dtypes, validator=IsDtypes(), metadata={"schema": DTYPES_SCHEMA, "raw": True}
    )
    batch_size: int | Literal["auto"] | None = attrs.field(
        default=None,
        converter=as_whole,
        validator=IsBatchSize(),
        metadata={"schema": IsBatchSize.schema, "raw": True},
    )
    num_workers: int | None = _count()
    on_error: Literal["record", "raise"] = attrs.field(default="record", validator=OneOf(("record", "raise")))
    max_error_rate: float | None = attrs.field(default=None, validator=IsShare(zero=True))
    part: tuple[int, int] | None = attrs.field(
        default=None,
        converter=parse_part,
        metadata={"schema": {"type": ["string", "null"], "pattern": "^[0-9]+/[0-9]+$"}, "raw": True},
    )
    overwrite: bool = attrs.field(default=False, validator=IsBool())
    metrics: str | None = _path()
    engine: Literal["local", "ray"] = attrs.field(default="local", validator=OneOf(("local", "ray")))
    num_gpus: float | None = attrs.field(default=None, validator=IsAmount())
    address: str | None = _text()
    add_layers: tuple[LayerChoice, ...] = _several(as_choices, CHOICE_SCHEMA)
    append: bool = attrs.field(default=False, validator=IsBool())

    def located(self) -> RunConfig:
        """The same run with whole paths, which goes from any folder.

        ``weights`` stay as they are: they are part of the request, and so of the fingerprint.
        """
        paths = {name: getattr(self, name) for name in ("source", "store", "fit_from", "metrics")}
        whole: dict[str, Any] = {name: _whole(path) for name, path in paths.items() if path is not None}
        return attrs.evolve(self, **whole)


def _whole(path: str) -> str:
    return path if _URL.match(path) else str(Path(path).absolute())
