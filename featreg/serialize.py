"""The JSON form of the specification's classes, through cattrs: strict, and with every mistake named."""

from __future__ import annotations

import functools
import json
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import cattrs
from cattrs.errors import ForbiddenExtraKeysError, IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn

from featreg.errors import FeatregError, SpecError
from featreg.pool import Pool
from featreg.request import Layer, LayerPools, thaw
from featreg.spec import ExtractionRequest, FeatureInfo, InputRule, MeasuredGrid, ModelInfo, Preprocess
from featreg.steps import Step, parse_step

__all__ = ["DOCUMENTS", "dumps", "from_dict", "loads", "schema_name", "strict_converter", "to_dict"]

T = TypeVar("T")

DOCUMENTS: tuple[type, ...] = (FeatureInfo, ExtractionRequest, Preprocess, InputRule, ModelInfo)
"""The classes that have a JSON Schema of their own in ``specs/``."""


def strict_converter() -> cattrs.Converter:
    """A converter of its own to and from plain data, as strict as all documents of the specification are read."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, functools.partial(_strict, scalar))
    converter.register_structure_hook(str | int, lambda value, _: _strict_layer(value))
    converter.register_structure_hook_func(lambda t: t == Mapping[str, Any], lambda value, _: _strict(dict, value, _))
    converter.register_unstructure_hook_func(lambda t: t == Mapping[str, Any], thaw)
    converter.register_structure_hook(Pool, lambda value, _: Pool.parse(_strict(str, value, _)))
    converter.register_unstructure_hook(Pool, str)
    converter.register_structure_hook(Step, lambda value, _: parse_step(_strict(str, value, _)))
    for step in typing.get_args(Step):
        converter.register_unstructure_hook(step, str)
    converter.register_structure_hook(
        Pool | LayerPools | None,
        lambda value, _: None if value is None else converter.structure(value, _pool_hint(value)),
    )
    converter.register_structure_hook(
        bool | tuple[Layer, ...],
        lambda value, _: converter.structure(value, tuple[Layer, ...] if isinstance(value, list | tuple) else bool),
    )
    converter.register_structure_hook_func(_is_tuple, lambda value, hint: _strict_tuple(converter, hint, value))
    for cls in (MeasuredGrid, *DOCUMENTS):
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True))
    return converter


_converter = functools.cache(strict_converter)


def _strict(scalar: type, value: Any, _: Any) -> Any:
    """JSON's own types only: no string becomes a number, no number a boolean."""
    accepted: tuple[type, ...] = (int, float) if scalar is float else (scalar,)
    if type(value) not in accepted:
        raise ValueError(f"expected {scalar.__name__}, got {value!r}")
    return scalar(value)


def _is_tuple(hint: Any) -> bool:
    origin: Any = typing.get_origin(hint)
    return origin is tuple


def _strict_tuple(converter: cattrs.Converter, hint: Any, value: Any) -> tuple[Any, ...]:
    """From a list only: the letters of a string are no items."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {value!r}")
    items = typing.get_args(hint)
    items = items[:1] * len(value) if items[-1] is Ellipsis else items
    if len(items) != len(value):
        raise ValueError(f"expected {len(items)} items, got {value!r}")
    found, problems = [], []
    for index, (item, plain) in enumerate(zip(items, value, strict=True)):
        try:
            found.append(converter.structure(plain, item))
        except Exception as error:  # noqa: BLE001  (all of them are reported, as cattrs does for lists)
            error.add_note(IterableValidationNote(f"item {index}", index, item))
            problems.append(error)
    if problems:
        raise IterableValidationError(f"in {hint}", problems, hint)
    return tuple(found)


def _problem(error: BaseException, kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown fields: {', '.join(sorted(error.extra_fields))}"
    return error.problem if isinstance(error, FeatregError) else str(error)


def _pool_hint(value: Any) -> Any:
    return LayerPools if isinstance(value, list | tuple) else Pool


def _strict_layer(value: Any) -> Any:
    if type(value) not in (int, str):
        raise ValueError(f"expected a string or a whole number, got {value!r}")
    return value


def schema_name(cls: type) -> str:
    """The name of a document's JSON Schema in ``specs/``: ``FeatureInfo`` has ``feature-info.schema.json``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower() + ".schema.json"


def to_dict(document: Any) -> dict[str, Any]:
    """A document as plain dictionaries, lists, strings and numbers."""
    plain: dict[str, Any] = json.loads(json.dumps(_converter().unstructure(document)))
    return plain


def from_dict(cls: type[T], plain: Mapping[str, Any]) -> T:
    """The document that :func:`to_dict` gave; raises SpecError that names every wrong, missing or unknown field."""
    if not isinstance(plain, Mapping):
        raise SpecError(f"a {cls.__name__} is a JSON object", "an object", type(plain).__name__)
    try:
        return _converter().structure(plain, cls)
    except FeatregError:
        raise
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, format_exception=_problem))
        raise SpecError(f"not a valid {cls.__name__}: {problems}", f"a document of {schema_name(cls)}") from error


def dumps(document: Any) -> str:
    """The JSON text of a document, keys in the order of the class."""
    return json.dumps(to_dict(document))


def loads(cls: type[T], text: str | bytes) -> T:
    """The document in a JSON text; raises SpecError."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise SpecError(f"not JSON: {error}") from error
    return from_dict(cls, plain)
