"""Running a model over a data set."""

from __future__ import annotations

from featreg.engine.local import extract

__all__ = ["extract"]
