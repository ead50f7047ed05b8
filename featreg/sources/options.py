"""The options of a source, as the plain data that a store records and another process opens it with."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from featreg.errors import SourceError

__all__ = ["plain_options"]


def plain_options(**given: Any) -> dict[str, Any]:
    """The options that are not None: ``classes`` as names, ``rows`` as whole numbers or a text, any other as a text.

    Raises SourceError for a value that is nothing of the kind.
    """
    plain = {}
    for name, value in given.items():
        if value is not None:
            read: Callable[[str, Any], Any] = READERS.get(name, _text)
            plain[name] = read(name, value)
    return plain


def _text(name: str, value: Any) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str):
        return str(text)
    raise _wrong(name, "a text", value)


def _names(name: str, value: Any) -> list[str]:
    items = _items(name, value, "several names, such as ['cat', 'dog']")
    if all(isinstance(item, str) for item in items):
        return list(map(str, items))
    raise _wrong(name, "several names, such as ['cat', 'dog']", value)


def _rows(name: str, value: Any) -> list[int] | str:
    if isinstance(value, str | os.PathLike):
        return _text(name, value)
    items = _items(name, value, "whole numbers")
    if all(isinstance(item, numbers.Integral) and not isinstance(item, bool) for item in items):
        return list(map(int, items))
    raise _wrong(name, "whole numbers", value)


READERS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType({"classes": _names, "rows": _rows})
"""How the options are read that are no texts."""


def _items(name: str, value: Any, expected: str) -> list[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise _wrong(name, expected, value)
    return list(value)


def _wrong(name: str, expected: str, value: Any) -> SourceError:
    return SourceError(f"the option {name!r} of a source is of another type", expected, repr(value)[:200])
