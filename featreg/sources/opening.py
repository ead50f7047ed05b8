"""From a path or a URL to the source that it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

from featreg.errors import SourceError, near_matches
from featreg.sources.base import Source
from featreg.sources.telling import tell_kind
from featreg.sources.uris import file_uri

__all__ = ["KINDS", "is_reopenable", "open_source"]

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "folder": "featreg.sources.folder:FolderSource",
        "imagefolder": "featreg.sources.folder:FolderSource",
        "list": "featreg.sources.lists:ListSource",
        "tar": "featreg.sources.tar:TarSource",
        "parquet": "featreg.sources.parquet:ParquetSource",
        "numpy": "featreg.sources.arrays:NumpySource",
        "hdf5": "featreg.sources.hdf5:Hdf5Source",
        "huggingface": "featreg.sources.huggingface:HuggingFaceSource",
        "text": "featreg.sources.text:TextSource",
    }
)
"""Every kind of source, and its class, which is imported when it is used."""


def open_source(source: Source | str | os.PathLike[str], kind: str | None = None, **options: Any) -> Source:
    """A source as it is, or the one that a path, a glob or brace pattern, or a URL of fsspec stands for.

    ``kind`` is one of :data:`KINDS`; without it the path tells (see ``specs/sources.md``). ``options`` are those of the
    kind's class, plain data such as column names. What ``source.kind``, ``source.uri`` and ``source.options`` of a
    reopenable source give back opens an equal one.

    Raises SourceError for a path that is missing or tells no kind, and for a kind or an option that there is not.
    """
    if isinstance(source, Source):
        if kind is not None or options:
            raise SourceError("an open source has its kind and options", "a source alone", _given(kind, options))
        return source
    if not isinstance(source, str | os.PathLike):
        raise SourceError("not a source of images", "a path, a URL, or a featreg.sources.Source", type(source).__name__)
    uri = file_uri(source)
    told = tell_kind(uri, KINDS) if kind is None else kind
    if not isinstance(told, str) or told not in KINDS:
        raise SourceError(
            f"there is no kind of source {told!r}", ", ".join(KINDS), repr(told), near_matches(str(told), KINDS)
        )
    made = _source_class(told)
    known = inspect.signature(made).parameters
    _check_options(told, [name for name in known if name not in ("path", "kind")], options)
    opened: Source = made(uri, **options, **({"kind": kind} if "kind" in known else {}))
    return opened


def is_reopenable(source: Source) -> bool:
    """Whether another process can open this source from its kind, URI and options."""
    return source.kind in KINDS and type(source) is _source_class(source.kind)


def _source_class(kind: str) -> type[Any]:
    module, _, name = KINDS[kind].partition(":")
    made: type[Any] = getattr(import_module(module), name)
    return made


def _check_options(kind: str, known: Sequence[str], options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise SourceError(
                f"a source of kind {kind!r} has no option {name!r}",
                ", ".join(known) or "no options",
                name,
                near_matches(name, known),
            )


def _given(kind: str | None, options: Mapping[str, Any]) -> str:
    return ", ".join([*([f"kind={kind!r}"] if kind else []), *(f"{name}={value!r}" for name, value in options.items())])
