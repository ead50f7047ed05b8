"""JSON Schemas of the specification's documents, generated from their annotations and validators.

``python -m featreg.schema specs/`` writes them.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, Union

import attrs

from featreg.pool import Pool
from featreg.serialize import DOCUMENTS, schema_name
from featreg.spec import SPEC_VERSION

__all__ = ["json_schema", "write_schemas"]

Schema: TypeAlias = dict[str, Any]

_SCALARS: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Pool: {"type": "string", "pattern": Pool.pattern},
}


def json_schema(cls: type) -> Schema:
    """The JSON Schema (draft 2020-12) of one document. What two fields say together it leaves to the prose."""
    definitions: Schema = {}
    schema = _object(cls, definitions)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        "description": f"{(cls.__doc__ or '').strip().splitlines()[0]} Specification version {SPEC_VERSION}.",
    }
    return {**head, **schema, **({"$defs": definitions} if definitions else {})}


def write_schemas(folder: Path) -> None:
    """Write the JSON Schema of every document into a folder."""
    for cls in DOCUMENTS:
        (folder / schema_name(cls)).write_text(json.dumps(json_schema(cls), indent=2) + "\n", encoding="utf-8")


def _object(cls: type, definitions: Schema) -> Schema:
    hints = typing.get_type_hints(cls)
    fields = attrs.fields(cls)
    return {
        "type": "object",
        "properties": {field.name: _property(field, hints[field.name], definitions) for field in fields},
        "required": [field.name for field in fields if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def _property(field: attrs.Attribute[Any], hint: Any, definitions: Schema) -> Schema:
    if "schema" in field.metadata:
        return dict(field.metadata["schema"])
    rule = getattr(field.validator, "schema", {})
    return dict(rule) if "enum" in rule or "anyOf" in rule else {**_of(hint, definitions), **rule}


def _of(hint: Any, definitions: Schema) -> Schema:
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    if attrs.has(hint):
        definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument, definitions) for argument in arguments]}
    if origin is tuple:
        return _array(arguments, definitions)
    if hint == Mapping[str, Any]:
        return {"type": "object"}
    raise TypeError(f"no JSON Schema for {hint!r}")


def _array(arguments: tuple[Any, ...], definitions: Schema) -> Schema:
    if arguments[-1] is Ellipsis:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    items = [_of(argument, definitions) for argument in arguments]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
