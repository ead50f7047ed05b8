"""YAML that means one thing: what YAML 1.1 and 1.2 read differently, or what few people know, is an error with a line.

PyYAML reads YAML 1.1, where ``no`` is false, ``010`` is eight, ``1e-3`` is a text and of two equal keys the last wins.
Here these are refused, and so are aliases, tags and merges: a file says what it says. What :func:`dump` writes reads
back equal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from featreg.errors import SpecError
from featreg.extras import data_extra

with data_extra():
    import yaml

__all__ = ["Document", "Path", "dump", "load"]

Path: TypeAlias = tuple[str | int, ...]
"""Where in a document: names of mappings and places of lists, from the outside."""

_DEEPEST = 64
_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?")
_NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F]+|[-+]?\.(inf|nan)", re.IGNORECASE
)
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@attrs.frozen
class Document:
    """What a file says: mappings, lists, texts, numbers, booleans and None, and on which line each of them is."""

    value: Any
    lines: Mapping[Path, int]


def load(text: str) -> Document:
    """The one document in a text; raises SpecError that names the line."""
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(error) from error
    if node is None:
        raise SpecError("the text is empty", "a mapping of options to values")
    lines: dict[Path, int] = {}
    return Document(_value(node, (), lines), lines)


def dump(value: Any) -> str:
    """The text of plain data, in the order of the data."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def _check_events(text: str) -> None:
    """Raise SpecError for aliases, and for nesting that PyYAML would take minutes for."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"the alias *{event.anchor}", "every value written out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise _refused(event, "what is nested more deeply", f"at most {_DEEPEST} lists and mappings in each other")


def _value(node: Any, path: Path, lines: dict[Path, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        _refuse_tight_commas(node)
        return [_value(item, (*path, place), lines) for place, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    raise _refused(node, f"the tag {node.tag}", "plain mappings, lists, texts and numbers")


def _refuse_tight_commas(node: Any) -> None:
    """In brackets a comma separates, with a space behind it or not: ``[C4:avgpool=10,4]`` would be two items."""
    for before, after in itertools.pairwise(node.value if node.flow_style else ()):
        if "=" in before.value and after.start_mark.index == before.end_mark.index + 1:
            raise _refused(after, f"the comma behind {before.value!r}", "the whole in quotes, or an item a line")


def _mapping(node: Any, path: Path, lines: dict[Path, int]) -> dict[str | int, Any]:
    found: dict[str | int, Any] = {}
    for named, value in node.value:
        if not isinstance(named, yaml.ScalarNode):
            raise _refused(named, "a key that is a list or a mapping", "a name")
        key = _scalar(named)
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise _refused(named, f"the key {named.value!r}", f"a name, or '{named.value}' in quotes")
        if key in found:
            raise _refused(named, f"the second {key!r}", f"one; the first is on line {lines[*path, key]}")
        found[key] = _value(value, (*path, key), lines)
        lines[*path, key] = named.start_mark.line + 1
    return found


def _scalar(node: Any) -> Any:
    """The value of a scalar; raises SpecError for one that another reader of YAML would take for something else."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "str":
        if node.style is None and _NUMBER.fullmatch(text):
            raise _refused(node, repr(text), _spelling(text))
        return text
    if kind == "null":
        return None
    if kind == "bool" and text in _BOOLEANS:
        return _BOOLEANS[text]
    if kind == "int" and _DECIMAL.fullmatch(text):
        return int(text)
    if kind == "float" and _FLOAT.fullmatch(text):
        return float(text)
    if kind == "bool":
        raise _refused(node, repr(text), f"true or false, or '{text}' in quotes for the text")
    raise _refused(
        node, repr(text), _spelling(text) if kind in ("int", "float") else f"'{text}' in quotes for the text"
    )


def _spelling(text: str) -> str:
    return f"a number in decimal digits, as in 8, 0.5 or 1.0e-3, or '{text}' in quotes for the text"


def _refused(place: Any, what: str, expected: str) -> SpecError:
    return SpecError(f"line {place.start_mark.line + 1}: {what} is not read", expected)


def _syntax_error(error: Any) -> SpecError:
    mark = getattr(error, "problem_mark", None)
    line = "" if mark is None else f"line {mark.line + 1}: "
    return SpecError(
        f"{line}this is no YAML", "a mapping of options to values", getattr(error, "problem", "") or str(error)
    )


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Quotes what :func:`load` would not read as the same text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    """Escapes stand in double quotes alone, and PyYAML itself quotes what it would take for something else."""
    style = '"' if not text.isprintable() else "'" if _NUMBER.fullmatch(text) else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
