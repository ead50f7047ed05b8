"""Data sets: an ordered index of samples, each of which can be read on its own."""

from __future__ import annotations

import os

from featreg.errors import SourceError
from featreg.sources.base import Sample, Source
from featreg.sources.folder import FolderSource

__all__ = ["FolderSource", "Sample", "Source", "open_source"]


def open_source(source: Source | str | os.PathLike[str]) -> Source:
    """A source as it is, or the images in a folder; raises SourceError."""
    if isinstance(source, Source):
        return source
    if isinstance(source, str | os.PathLike):
        return FolderSource(source)
    raise SourceError("not a source of images", "a folder, or a featreg.sources.Source", type(source).__name__)
