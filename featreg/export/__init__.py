"""Stores as files of other formats."""

from __future__ import annotations

from featreg.export.run import export_store
from featreg.export.writing import FORMATS

__all__ = ["FORMATS", "export_store"]
