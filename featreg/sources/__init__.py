"""Data sets: an ordered index of samples, each of which can be read on its own."""

from __future__ import annotations

from featreg.sources.base import Content, Sample, Source
from featreg.sources.folder import FolderSource
from featreg.sources.opening import KINDS, is_reopenable, open_source

__all__ = ["KINDS", "Content", "FolderSource", "Sample", "Source", "is_reopenable", "open_source"]
