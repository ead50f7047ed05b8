"""Running a model over a data set."""

from __future__ import annotations

from featreg.engine.additions import add_layers, append
from featreg.engine.local import extract
from featreg.engine.planning.estimate import Estimate
from featreg.engine.resume import repair, work

__all__ = ["Estimate", "add_layers", "append", "extract", "repair", "work"]
