"""The JSON form of the specification's classes, through cattrs, and their JSON Schemas."""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from featreg.errors import FeatregError, SpecError
from featreg.spec import SPEC_VERSION, ExtractionRequest, FeatureInfo, InputRule, MeasuredGrid, ModelInfo, Preprocess

__all__ = ["DOCUMENTS", "dumps", "from_dict", "json_schema", "loads", "to_dict"]

T = TypeVar("T")

DOCUMENTS: tuple[type, ...] = (FeatureInfo, ExtractionRequest, Preprocess, InputRule, ModelInfo)
"""The classes that have a JSON Schema of their own in ``specs/``."""


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, functools.partial(_strict, scalar))
    converter.register_structure_hook(str | int, lambda value, _: _strict_layer(value))
    converter.register_structure_hook_func(lambda t: t == Mapping[str, Any], lambda value, _: dict(value))
    converter.register_unstructure_hook_func(lambda t: t == Mapping[str, Any], dict)
    for cls in (MeasuredGrid, *DOCUMENTS):
        converter.register_structure_hook(cls, make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True))
    return converter


def _strict(scalar: type, value: Any, _: Any) -> Any:
    """JSON's own types only: no string becomes a number, no number a boolean."""
    accepted: tuple[type, ...] = (int, float) if scalar is float else (scalar,)
    if type(value) not in accepted:
        raise ValueError(f"expected {scalar.__name__}, got {value!r}")
    return scalar(value)


def _problem(error: BaseException, kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown fields: {', '.join(sorted(error.extra_fields))}"
    return error.problem if isinstance(error, FeatregError) else str(error)


def _strict_layer(value: Any) -> Any:
    if type(value) not in (int, str):
        raise ValueError(f"expected a string or a whole number, got {value!r}")
    return value


def to_dict(document: Any) -> dict[str, Any]:
    """A document as plain dictionaries, lists, strings and numbers."""
    plain: dict[str, Any] = json.loads(json.dumps(_converter().unstructure(document)))
    return plain


def from_dict(cls: type[T], plain: Mapping[str, Any]) -> T:
    """The document that :func:`to_dict` gave; raises SpecError that names every wrong, missing or unknown field."""
    try:
        return _converter().structure(plain, cls)
    except FeatregError:
        raise
    except Exception as error:
        problems = "; ".join(cattrs.transform_error(error, format_exception=_problem))
        raise SpecError(f"not a valid {cls.__name__}: {problems}", f"specs/{cls.__name__}.schema.json") from error


def dumps(document: Any) -> str:
    """The JSON text of a document, keys in the order of the class."""
    return json.dumps(to_dict(document))


def loads(cls: type[T], text: str | bytes) -> T:
    """The document in a JSON text; raises SpecError."""
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise SpecError(f"not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise SpecError(f"a {cls.__name__} is a JSON object", "an object", type(plain).__name__)
    return from_dict(cls, plain)


# --- JSON Schema -------------------------------------------------------------------------------------------------

_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one document, generated from its annotations."""
    definitions: dict[str, Any] = {}
    schema = _object(cls, definitions)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        "description": f"{(cls.__doc__ or '').strip().splitlines()[0]} Specification version {SPEC_VERSION}.",
    }
    return {**head, **schema, **({"$defs": definitions} if definitions else {})}


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    fields = attrs.fields(cls)
    return {
        "type": "object",
        "properties": {field.name: _of(hints[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint in _SCALARS:
        return _SCALARS[hint]
    if attrs.has(hint):
        definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is tuple:
        items = [_of(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if hint == Mapping[str, Any]:
        return {"type": "object"}
    raise TypeError(f"no JSON Schema for {hint!r}")
