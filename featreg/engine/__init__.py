"""Running a model over a data set."""

from __future__ import annotations

import importlib
from typing import Any

from featreg.engine.additions import add_layers, append
from featreg.engine.local import extract
from featreg.engine.merge import merge_stores
from featreg.engine.planning.estimate import Estimate
from featreg.engine.resume import repair, work

__all__ = ["Estimate", "add_layers", "append", "extract", "merge_stores", "repair", "work"]


def __getattr__(name: str) -> Any:
    """``featreg.engine.ray`` is imported on first use: it needs the extra ``featreg[ray]``."""
    if name != "ray":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.ray")
