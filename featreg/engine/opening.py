"""The source of a run: from what the caller gives, or from what a store says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from featreg.engine.planning.sorts import check_sort
from featreg.errors import CapabilityError
from featreg.extractor import Extractor
from featreg.request import thaw
from featreg.sources import Source, open_source
from featreg.sources.uris import file_name, file_uri, suffix
from featreg.stores.layout import Manifest, SourceRecord

__all__ = ["chosen", "opened_for", "preopened", "source_of"]


def chosen(
    source: Source | str | os.PathLike[str], kind: str | None, options: Mapping[str, Any] | None
) -> Source | str | os.PathLike[str]:
    """A source that its kind or its options decide; else a path as it is, which the model may help to understand.

    Raises as :func:`~featreg.sources.open_source`.
    """
    return open_source(source, kind=kind, **(options or {})) if kind is not None or options else source


def preopened(source: Source | str | os.PathLike[str]) -> Source:
    """A source as its path tells; of a .txt file the model tells whether it lists images or holds texts.

    Raises as :func:`~featreg.sources.open_source`: a path that is missing is said before a model is opened.
    """
    return open_source(source, kind="text" if _is_text_file(source) else None)


def opened_for(source: Source | str | os.PathLike[str], found: Source, extractor: Extractor) -> Source:
    """What :func:`preopened` found, or the list of images that a .txt file is for a model that takes images.

    Raises SourceError for texts where the model takes images, and the other way round.
    """
    opened = open_source(source) if _is_text_file(source) and not extractor.takes_text else found
    check_sort(opened, extractor)
    return opened


def _is_text_file(source: Any) -> bool:
    """Whether a path ends with .txt and is no pattern."""
    return isinstance(source, str | os.PathLike) and suffix(file_name(file_uri(source))) == ".txt"


def source_of(manifest: Manifest, uri: str, source: Source | str | os.PathLike[str] | None = None) -> Source:
    """The source of a store, opened from its record; or ``source``, with the options of the record if its kind is that.

    Raises CapabilityError for one that only the process that made it can read, and SourceError where it is gone.
    """
    record = manifest.source
    if source is not None:
        return _opened_alike(source, record)
    if not record.reopenable:
        raise CapabilityError(
            f"the source of {uri!r} cannot be opened from the store: it is no source of featreg",
            "a source of featreg.sources.KINDS",
            f"{record.kind!r}, {record.uri!r}",
            remedy="run featreg.extract(source, store, ...) with the same source once more: it goes on",
        )
    return open_source(record.uri, kind=record.kind, **thaw(record.options))


def _opened_alike(source: Source | str | os.PathLike[str], record: SourceRecord) -> Source:
    """A path as the kind that it is, with the column names and the like of a record of that kind."""
    if isinstance(source, Source):
        return source
    found = open_source(source, kind="text" if record.kind == "text" else None)
    alike = record.reopenable and found.kind == record.kind
    return open_source(source, kind=found.kind, **thaw(record.options)) if alike else found
